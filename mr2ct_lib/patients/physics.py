"""From tissues to MR signals: the equations of the sequences that the scanners use.

Left out here and in the acquisition:
- Chemical shift. At TE 3.08 ms and 1.0 T fat and water are nearly opposed, so that real scans have dark lines where fat
  meets muscle.
- Flip angles that vary over the field of view.
- Flow, motion, metal, beam hardening and scatter.
- Fine partial volume. Each voxel is cut into a few equal ones (Grid.supersample, one to three per axis), so that the
  share of a tissue changes in steps and thin oblique borders look like strings of beads.
"""

from dataclasses import dataclass

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.patients.tissues import lookup


@dataclass(frozen=True)
class Sequence:
    """An MR sequence: kind "spgr" (spoiled gradient echo) or "spin_echo"; times in ms, flip in degrees, field in T."""

    name: str
    kind: str
    tr: float
    te: float
    flip: float = 90.0
    field: float = 1.5


# The hip's is the first paper's (Hiasa et al. 2018). The head's two are the echoes of one dual-echo acquisition, with
# the times of IXI's Hammersmith scans. Fluid is brighter than grey matter and grey brighter than white on both: fluid
# by an eighth on PD, nearly threefold on T2. On its T1 (a choice, near BrainWeb's) they stand the other way round, so
# that a T2 is nearly its negative. The abdomen's is a common T2*-weighted gradient echo (the paper names
# none).
SEQUENCES = {
    "hip_spgr": Sequence("T1 SPGR", "spgr", tr=7.9, te=3.08, flip=30.0, field=1.0),
    "head_pd": Sequence("PD spin echo", "spin_echo", tr=5725.79, te=8.0),
    "head_t2": Sequence("T2 spin echo", "spin_echo", tr=5725.79, te=100.0),
    "head_t1": Sequence("T1 SPGR", "spgr", tr=18.0, te=10.0, flip=30.0),
    "abdomen_t2star": Sequence("T2* gradient echo", "spgr", tr=130.0, te=15.0, flip=30.0),
}


def spgr(t1, t2star, pd, tr, te, flip_degrees):
    """Return the steady-state signal of a spoiled gradient echo, any broadcastable shapes, times in ms.

    S = PD sin(a) (1 - E1) / (1 - E1 cos(a)) exp(-TE / T2*), E1 = exp(-TR / T1).

    >>> round(float(spgr(t1=250, t2star=58, pd=0.95, tr=7.9, te=3.08, flip_degrees=30)), 4)  # fat
    0.0871
    >>> round(float(spgr(t1=990, t2star=28, pd=0.90, tr=7.9, te=3.08, flip_degrees=30)), 4)  # muscle
    0.0227
    """
    angle = np.deg2rad(flip_degrees)
    e1 = np.exp(-np.divide(tr, t1))
    return pd * np.sin(angle) * (1 - e1) / (1 - e1 * np.cos(angle)) * np.exp(-np.divide(te, t2star))


def spin_echo(t1, t2, pd, tr, te, mtr=0.0):
    """Return the signal of a multi-slice spin echo, any broadcastable shapes, times in ms.

    S = PD (1 - MTR) (1 - exp(-TR / T1)) exp(-TE / T2). The pulses for one slice also saturate the macromolecules of
    the others, which take a share of the water's signal with them: the magnetisation transfer ratio, about 0.2 in
    white matter in vivo (Radunsky et al. 2021) and 0 in fluid. Without it fluid would be as bright as grey matter on
    PD.

    >>> round(float(spin_echo(t1=4300, t2=2100, pd=1.0, tr=5725.79, te=100)), 3)  # CSF is bright in T2
    0.702
    """
    return pd * (1 - mtr) * (1 - np.exp(-np.divide(tr, t1))) * np.exp(-np.divide(te, t2))


def tissue_signals(names: dict[int, str], sequence: Sequence) -> np.ndarray:
    """Return the noise-free signal of every label value under `sequence`, indexed by label value.

    Raises InputError for a kind of sequence or a field that is not known, or a structure without a tissue.
    """
    if sequence.field not in (1.0, 1.5):
        raise InputError(f"field: {sequence.field} T; expected 1.0 or 1.5, the fields that the tissue table holds")
    fields = ("t1_10" if sequence.field == 1.0 else "t1_15", "t2", "t2star", "pd", "mtr")
    t1, t2, t2star, pd, mtr = (lookup(names, name).astype(np.float64) for name in fields)
    if sequence.kind == "spgr":
        return spgr(t1, t2star, pd, sequence.tr, sequence.te, sequence.flip)
    if sequence.kind == "spin_echo":
        return spin_echo(t1, t2, pd, sequence.tr, sequence.te, mtr)
    raise InputError(f"sequence: kind {sequence.kind!r}; expected 'spgr' or 'spin_echo'")
