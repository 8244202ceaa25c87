"""The scanners of each anatomy: what they measure, their grids in each profile, and a function that scans a patient.

To add a profile, add an entry to PROFILES. To add an anatomy, add an entry to ANATOMIES and its grids to each profile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.patients.abdomen import abdomen_patient
from mr2ct_lib.patients.acquisition import Patient, acquire_ct, acquire_mr
from mr2ct_lib.patients.faults import DISTORTION_SEED, thin_plate_distortion
from mr2ct_lib.patients.head import head_patient
from mr2ct_lib.patients.hip import hip_patient
from mr2ct_lib.patients.physics import SEQUENCES
from mr2ct_lib.patients.tissues import tissue_of

MARGIN_MM = 12.0  # of a CT beyond the field of view of the MR: room for reslicing


@dataclass(frozen=True)
class Grid:
    """The voxels of an acquisition: shape (x, y, z), spacing in mm, and how many parts each voxel is cut into."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    supersample: tuple[int, int, int]

    def affine(self, centre: tuple[float, float, float]) -> np.ndarray:
        """Return the RAS+ affine (4, 4) of this grid around `centre` (mm)."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = np.asarray(centre) - (np.asarray(self.shape) - 1) / 2 * self.spacing
        return affine

    def block_around(self, other: "Grid", margin: float) -> tuple[slice, slice, slice]:
        """Return the voxels of this grid that cover `other`, which has the same centre, and `margin` mm beyond it."""
        reach = (np.asarray(other.shape) * other.spacing / 2 + margin) / self.spacing  # voxels of this grid
        middle = (np.asarray(self.shape) - 1) / 2
        first, last = np.floor(middle - reach).clip(0).astype(int), np.ceil(middle + reach).astype(int) + 1
        return tuple(slice(int(a), int(min(b, n))) for a, b, n in zip(first, last, self.shape, strict=True))


@dataclass(frozen=True)
class Profile:
    """How finely patients are scanned. `grids[anatomy][domain]` are the voxels.

    noise_share: how much of the paper grids' noise is left, since larger voxels average it (the square root of the
    ratio of their volumes, bounded by texture).
    """

    noise_share: float
    grids: dict[str, dict[str, Grid]]


@dataclass(frozen=True)
class Scanner:
    """One domain of an anatomy: modality "MR" or "CT", the name and the unit of its scans, and how it is simulated.

    noise: SD on the paper's grid, of MR relative to the mean signal of the body, of CT in HU. MR has a sequence (a key
    of SEQUENCES) and may be stripped (0 outside the body); CT may have a table ("curved" or "flat").
    """

    modality: str
    name: str
    unit: str
    noise: float
    sequence: str | None = None
    strip: bool = False
    table: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what cohort.json says of this scanner."""
        common = {"modality": self.modality, "name": self.name, "unit": self.unit, "noise": self.noise}
        if self.modality == "CT":
            return common | {"table": self.table}
        return common | {"sequence": self.sequence} | ({"strip": True} if self.strip else {})


@dataclass(frozen=True)
class Anatomy:
    """A kind of virtual patient and its two scanners.

    patient(seed, domain, posture): the patient of a seed in the scanner of `domain`, with the back pressed by the table
    of the domain `posture`. positioning_sd: how far (SD in mm along x, y, z) the centre of the field of view lies from
    the landmark. postures_differ: the two tables press the body into different shapes.
    """

    patient: Callable[[int, str, str], Patient]
    scanners: dict[str, Scanner]
    positioning_sd: tuple[float, float, float] = (0.0, 0.0, 0.0)
    postures_differ: bool = False


def _both(*grid: tuple) -> dict[str, Grid]:
    """One grid for the source and the target domain."""
    return dict.fromkeys(("source", "target"), Grid(*grid))


def _heads(*grid: tuple) -> dict[str, dict[str, Grid]]:
    """One grid for heads of every contrast."""
    return dict.fromkeys(("head", "head_t1"), _both(*grid))


# Paper: hip MR coronal, 320 mm, 256 x 256, slab of 76 mm in slices of 2 mm; CT axial, 360 mm, 512 x 512, 2 mm (Hiasa et
# al. 2018). Abdomen 1.56 x 1.56 x 5 mm, of which 192 x 192 are cropped; head 1.8 mm, 128 x 128 (Wang et al. 2018).
# "full" has larger voxels in the same fields of view: it serves the quick and the full profile of training. "coarse" is
# for tests and first tries.
PROFILES: dict[str, Profile] = {
    "coarse": Profile(
        noise_share=1 / 3,
        grids={
            "hip": {
                "source": Grid((64, 12, 64), (5.0, 76 / 12, 5.0), (2, 2, 2)),
                "target": Grid((72, 72, 72), (5.0, 5.0, 5.0), (2, 2, 2)),
            },
            **_heads((64, 64, 12), (3.6, 3.6, 6.0), (2, 2, 2)),
            "abdomen": _both((64, 64, 10), (6.25, 6.25, 5.0), (2, 2, 2)),
        },
    ),
    "full": Profile(
        noise_share=2 / 3,
        grids={
            "hip": {
                "source": Grid((128, 19, 128), (2.5, 4.0, 2.5), (2, 2, 2)),
                "target": Grid((144, 144, 144), (2.5, 2.5, 2.5), (2, 2, 1)),
            },
            **_heads((128, 128, 40), (1.8, 1.8, 3.6), (2, 2, 1)),
            "abdomen": _both((192, 192, 20), (2.08, 2.08, 5.0), (1, 1, 3)),
        },
    ),
    "paper": Profile(
        noise_share=1.0,
        grids={
            "hip": {
                "source": Grid((256, 38, 256), (1.25, 2.0, 1.25), (2, 2, 2)),
                "target": Grid((512, 512, 180), (0.703125, 0.703125, 2.0), (1, 1, 2)),
            },
            **_heads((128, 128, 80), (1.8, 1.8, 1.8), (2, 2, 2)),
            "abdomen": _both((256, 256, 40), (1.56, 1.56, 5.0), (1, 1, 3)),
        },
    ),
}
_TABLE = {"source": "mr", "target": "ct"}  # whose table the virtual abdomen lies on
_MR, _CT = partial(Scanner, "MR", unit="a.u."), partial(Scanner, "CT", "CT", "HU", noise=12.0)
_T2 = _MR("T2", noise=0.02, sequence="head_t2", strip=True)
ANATOMIES: dict[str, Anatomy] = {
    "hip": Anatomy(
        patient=lambda seed, domain, posture: hip_patient(seed),
        scanners={"source": _MR("T1 SPGR", noise=0.04, sequence="hip_spgr"), "target": _CT(table="curved")},
        positioning_sd=(10.0, 5.0, 12.0),
    ),
    "head": Anatomy(  # heads lie in the space of one template, as in IXI
        patient=lambda seed, domain, posture: head_patient(seed),
        scanners={
            "source": _MR("PD", noise=0.02, sequence="head_pd", strip=True),
            "target": _T2,
        },
    ),
    "head_t1": Anatomy(  # the same people
        patient=lambda seed, domain, posture: head_patient(seed),
        scanners={"source": _MR("T1", noise=0.02, sequence="head_t1", strip=True), "target": _T2},
    ),
    "abdomen": Anatomy(  # the virtual abdomen brings the table that presses it
        patient=lambda seed, domain, posture: abdomen_patient(seed, _TABLE[domain], posture=_TABLE[posture]),
        scanners={"source": _MR("T2*", noise=0.04, sequence="abdomen_t2star"), "target": _CT()},
        postures_differ=True,
    ),
}


def scan(
    patient: Patient,
    scanner: Scanner,
    grid: Grid,
    seed: int,
    centre: tuple[float, float, float] | None = None,
    distort: bool | int = False,
    around: Grid | None = None,
) -> tuple[Volume, Volume]:
    """Scan a patient.

    Args:
        patient: anybody who can be painted.
        scanner: modality, sequence, noise and table.
        grid: the voxels of the scan.
        seed: the scan's own: gain, coil and noise.
        centre: middle of the field of view in mm; by default the patient's landmark "centre".
        distort: distort an MR by the fixed distortion of the head's target domain; a number, by that of this seed.
        around: keep only the part of a CT that covers this grid, which has the same centre, and MARGIN_MM beyond it.

    Returns:
        The scan (MR in arbitrary units, CT in HU) and the labels at its voxel centres, on one grid. A CT's table is
        no part of the labels.
    """
    affine = grid.affine(patient.landmarks["centre"] if centre is None else centre)
    options = {"noise": scanner.noise, "supersample": grid.supersample}
    if scanner.modality == "CT":
        block = None if around is None else grid.block_around(around, MARGIN_MM)
        image, labels = acquire_ct(patient, grid.shape, affine, seed, table=scanner.table, block=block, **options)
        tables = [value for value, name in patient.names.items() if tissue_of(name).name == "table"]
        array = np.where(np.isin(labels.array, tables), 0, labels.array).astype(labels.array.dtype)
        return image, labels.replace(array=array)
    if distort:
        isocentre = affine @ [*(np.asarray(grid.shape) - 1) / 2, 1]
        distortion = thin_plate_distortion(DISTORTION_SEED if distort is True else distort)
        options["displacement"] = lambda x, y: distortion(x - isocentre[0], y - isocentre[1])
    sequence = SEQUENCES[scanner.sequence]
    return acquire_mr(patient, grid.shape, affine, sequence, seed, strip=scanner.strip, **options)
