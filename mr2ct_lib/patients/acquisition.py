"""From a painted patient to an MR or CT scan.

A scan follows the order of the real process. The patient is painted on a grid finer than the scan's. Each small voxel
gets its tissue's signal and a little texture. The signals (not the labels) are averaged over the voxel, which gives
partial volume. Then come coil bias and noise, and the receiver's gain scales both. `physics` lists what is left out.
"""

from collections.abc import Callable
from typing import Protocol
from zlib import crc32

import numpy as np
from scipy import ndimage

from mr2ct_lib.files import InputError
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.patients.faults import along_axes, bias_field, ct_noise, rician, smooth_field
from mr2ct_lib.patients.physics import Sequence, tissue_signals
from mr2ct_lib.patients.tissues import lookup

AIR_HU = -1000.0
FINE_VOXELS = 6_000_000  # painted at a time, so that memory stays small whatever the scan's size
TEXTURE_MM = 9.0  # distance over which a tissue's own signal varies

Displacement = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Patient(Protocol):
    """Anybody that can be scanned.

    `names` maps label values to structures, `landmarks` names to points (mm, RAS+) with "centre" among them. `paint`
    returns the labels (I, J, K) at the voxel centres of a grid.
    """

    names: dict[int, str]
    seed: int
    landmarks: dict[str, tuple[float, float, float]]

    def paint(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Return the label at each voxel centre of the grid (shape, affine in mm), integers (I, J, K); 0 is air."""
        ...


def finer_grid(shape, affine: np.ndarray, supersample) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of the grid that cuts each voxel into `supersample` (3 integers) equal ones."""
    factors = np.asarray(supersample, dtype=int)
    fine = affine.copy()
    fine[:3, :3] = affine[:3, :3] / factors
    fine[:3, 3] = affine[:3, 3] + affine[:3, :3] @ ((1 / factors - 1) / 2)
    return tuple(int(n) for n in np.asarray(shape) * factors), fine


def _slabs(shape, affine: np.ndarray, supersample):
    """Yield (slice of k, shape, affine) of slabs whose finer grids have at most FINE_VOXELS voxels, or one slice."""
    per_slice = shape[0] * shape[1] * int(np.prod(supersample))
    thickness = max(1, FINE_VOXELS // per_slice)
    for first in range(0, shape[2], thickness):
        count = min(thickness, shape[2] - first)
        slab = affine.copy()
        slab[:3, 3] += affine[:3, 2] * first
        yield slice(first, first + count), (shape[0], shape[1], count), slab


def _take(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return table[labels]; InputError naming the label values that the table does not hold."""
    if labels.min(initial=0) >= 0 and labels.max(initial=0) < len(table):
        values = table[labels]
        if not (np.isnan(table).any() and np.isnan(values).any()):
            return values
    unknown = [int(value) for value in np.unique(labels) if not 0 <= value < len(table) or np.isnan(table[value])]
    raise InputError(
        f"names: no structure for the label values {unknown}; expected one for each value painted. Add them"
    )


def _average(fine: np.ndarray, supersample) -> np.ndarray:
    a, b, c = supersample
    if (a, b, c) == (1, 1, 1):
        return fine
    nx, ny, nz = fine.shape
    return fine.reshape(nx // a, a, ny // b, b, nz // c, c).mean(axis=(1, 3, 5), dtype=np.float32)


def _displaced(shape, affine: np.ndarray, displacement: Displacement) -> np.ndarray:
    """Return the in-plane voxel coordinates (2, nx, ny) from which a displaced scan takes its values."""
    i, j = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    dx, dy = displacement(affine[0, 3] + affine[0, 0] * i, affine[1, 3] + affine[1, 1] * j)
    return np.stack([i + dx / affine[0, 0], j + dy / affine[1, 1]])


def _warp(volume: np.ndarray, coordinates: np.ndarray, order: int) -> np.ndarray:
    slices = [ndimage.map_coordinates(volume[..., k], coordinates, order=order) for k in range(volume.shape[2])]
    return np.stack(slices, axis=-1)


def _scan(patient: Patient, shape, affine, supersample, displacement, fine_signal) -> tuple[np.ndarray, np.ndarray]:
    """Paint finer, turn into signal by fine_signal(labels, shape, affine), displace, average.

    Returns the mean signal of each voxel (float32) and the labels at the voxel centres.
    """
    signal, labels = np.empty(shape, dtype=np.float32), None
    for where, slab_shape, slab in _slabs(shape, affine, supersample):
        fine_shape, fine_affine = finer_grid(slab_shape, slab, supersample)
        painted = np.asarray(patient.paint(fine_shape, fine_affine))
        fine = fine_signal(painted, fine_shape, fine_affine)
        if displacement is not None:
            coordinates = _displaced(fine_shape, fine_affine, displacement)
            fine, painted = _warp(fine, coordinates, 1), _warp(painted, coordinates, 0)
        signal[..., where] = _average(fine, supersample)
        if all(factor % 2 for factor in supersample):
            centre = painted[tuple(slice(factor // 2, None, factor) for factor in supersample)]
        else:
            centre = np.asarray(patient.paint(slab_shape, slab))
            if displacement is not None:
                centre = _warp(centre, _displaced(slab_shape, slab, displacement), 0)
        labels = np.empty(shape, dtype=painted.dtype) if labels is None else labels
        labels[..., where] = centre
    return signal, labels


def acquire_mr(
    patient: Patient,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    sequence: Sequence,
    seed: int,
    noise: float = 0.04,
    bias: float = 0.15,
    texture: float = 0.04,
    gain: float | None = None,
    supersample: tuple[int, int, int] = (2, 2, 2),
    strip: bool = False,
    displacement: Displacement | None = None,
) -> tuple[Volume, Volume]:
    """Scan a patient by MR.

    Args:
        patient: whom to scan.
        shape, affine: the grid of the scan, along the axes (positive diagonal affine).
        sequence: the MR sequence.
        seed: the scan's own (gain, coil, noise). Two sequences with one seed are echoes of one acquisition and share
            gain and coil.
        noise: SD of the two channels of Rician noise, relative to the mean signal of the body.
        bias: SD of the logarithm of the coil's sensitivity.
        texture: relative SD of the signal inside a tissue; it belongs to the patient.
        gain: factor of the whole scan; None draws one, since MR has no unit.
        supersample: into how many small voxels each voxel is cut along x, y, z.
        strip: 0 outside the body, as in skull-stripped data.
        displacement: in the axial plane, (x, y) mm -> (dx, dy) mm. The scan shows at (x, y) what lies at
            (x + dx, y + dy).

    Returns:
        The scan in arbitrary units (float32) and the labels at its voxel centres, both on the grid.

    Raises InputError for an oblique or flipped grid, or label values without a tissue.
    """
    affine = along_axes(affine)
    lut = tissue_signals(patient.names, sequence).astype(np.float32)

    def fine_signal(labels, fine_shape, fine_affine):
        signal = _take(lut, labels)
        if texture:
            field = smooth_field(fine_shape, fine_affine, TEXTURE_MM, [patient.seed, 11])
            field *= np.float32(texture)
            field += 1
            signal *= field
        return signal

    signal, labels = _scan(patient, shape, affine, supersample, displacement, fine_signal)
    body = labels > 0
    sd = noise * float(signal[body].mean()) if body.any() else 0.0
    if bias:
        signal *= bias_field(shape, affine, bias, [seed, 12])
    if noise:
        signal = rician(signal, sd, np.random.default_rng([seed, 13, crc32(sequence.name.encode())]))
    if gain is None:
        gain = float(np.exp(np.random.default_rng([seed, 14]).normal(np.log(3000), 0.35)))
    if strip:
        signal = np.where(body, signal, 0)
    return Volume((signal * gain).astype(np.float32), affine, "a.u."), Volume(labels, affine, "label")


def acquire_ct(
    patient: Patient,
    shape: tuple[int, int, int],
    affine: np.ndarray,
    seed: int,
    noise: float = 12.0,
    texture: float = 0.4,
    table: str | None = "curved",
    supersample: tuple[int, int, int] = (2, 2, 1),
    block: tuple[slice, slice, slice] | None = None,
) -> tuple[Volume, Volume]:
    """Scan a patient by CT.

    Args:
        patient: whom to scan.
        shape, affine: the grid of the whole field of view, along the axes (positive diagonal affine).
        seed, noise: the scan's own seed, and the SD of its noise in HU.
        texture: share of a tissue's spread of HU in real scans that is texture, not noise and partial volume.
        table: "curved", "flat" or None. It touches the patient's lowest point.
        supersample: into how many small voxels each voxel is cut along x, y, z.
        block: reconstruct these voxels of the grid only; the table lies where the whole field of view puts it.

    Returns:
        The scan in HU (int16, air -1000) and the labels at its voxel centres, both on the grid or its block.

    Raises InputError for an unknown table, an oblique or flipped grid, or label values without a tissue.
    """
    affine = along_axes(affine)
    hu, hu_sd = (lookup(patient.names, field).astype(np.float32) for field in ("hu", "hu_sd"))
    hu[0], hu_sd[0] = AIR_HU, 0
    x, y, body = _outline(patient, shape, affine)
    outside = _air if table is None else _table(x, y, body, affine[0, 3] + (shape[0] - 1) / 2 * affine[0, 0], table)
    if block is not None:
        affine = affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in block]
        shape = tuple(part.stop - part.start for part in block)

    def around(fine_shape, fine_affine):  # (nx, ny, 1): what lies outside the body
        x, y = (fine_affine[axis, 3] + fine_affine[axis, axis] * np.arange(fine_shape[axis]) for axis in (0, 1))
        return outside(x[:, None], y[None])[..., None]

    def fine_signal(labels, fine_shape, fine_affine):
        signal = _take(hu, labels)
        if texture:
            field = smooth_field(fine_shape, fine_affine, TEXTURE_MM, [patient.seed, 11])
            field *= (np.float32(texture) * hu_sd)[labels]
            signal += field
        if table is not None:
            np.copyto(signal, around(fine_shape, fine_affine), where=labels == 0)
        return signal

    signal = np.empty(shape, dtype=np.float32)
    signal[...] = _average(around(*finer_grid(shape, affine, (*supersample[:2], 1))), (*supersample[:2], 1))
    labels = np.zeros(shape, dtype=np.uint8)
    box, inner = _box_of(body, x, y, affine)
    if signal[box].size:  # much of the field of view is air
        signal[box], inside = _scan(patient, signal[box].shape, inner, supersample, None, fine_signal)
        labels = labels.astype(inside.dtype)
        labels[box] = inside
    if noise:
        signal += ct_noise(shape, noise, np.random.default_rng([seed, 15]))
    scan = np.rint(np.clip(signal, -1024, 3071)).astype(np.int16)
    return Volume(scan, affine, "HU"), Volume(labels, affine, "label")


def _air(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.full(np.broadcast_shapes(x.shape, y.shape), AIR_HU, dtype=np.float32)


def _box_of(body: np.ndarray, x: np.ndarray, y: np.ndarray, affine: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """Return the voxels (slices along x, y) of a grid that hold the body and 10 mm around it, and their affine."""
    if not body.any():
        return (slice(0, 0), slice(0, 0)), affine
    box = []
    for axis, along in enumerate((x[body.any(axis=1)], y[body.any(axis=0)])):
        first, last = ((end - affine[axis, 3]) // affine[axis, axis] for end in (along.min() - 10, along.max() + 10))
        box.append(slice(max(0, int(first)), max(0, int(last) + 2)))
    inner = affine.copy()
    inner[:2, 3] += [part.start * affine[axis, axis] for axis, part in enumerate(box)]
    return tuple(box), inner


def _outline(patient: Patient, shape, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y (mm) of a coarse grid over the field of view, and the patient's shadow along z, bool (nx, ny)."""
    coarse = np.array([6.0, 4.0, 12.0])
    extent = affine.diagonal()[:3] * shape
    count = np.maximum(np.ceil(extent / coarse), 1).astype(int)
    grid = np.diag([*(extent / count), 1.0])
    grid[:3, 3] = affine[:3, 3] - affine.diagonal()[:3] / 2 + extent / count / 2
    inside = getattr(patient, "body_mask", patient.paint)  # the same voxels, sooner
    body = np.asarray(inside(tuple(int(n) for n in count), grid)).any(axis=2)
    x, y = (grid[axis, 3] + grid[axis, axis] * np.arange(count[axis]) for axis in (0, 1))
    return x, y, body


def _table(
    x: np.ndarray, y: np.ndarray, body: np.ndarray, centre: float, kind: str
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return HU(x, y), on every slice, of a table that touches the body from below: a thin shell around foam."""
    curvature = {"curved": 1 / 900.0, "flat": 0.0}.get(kind)
    if curvature is None:
        raise InputError(f"table: {kind!r}; expected 'curved', 'flat' or None")
    i, j = np.nonzero(body)
    top = float((y[j] - curvature / 2 * (x[i] - centre) ** 2).min()) - 2 if i.size else -1e9

    def hu(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        depth = top + curvature / 2 * (x - centre) ** 2 - y  # mm below the surface that the patient lies on
        inside = (np.abs(x - centre) < 215) & (depth > 0) & (depth < 36)
        shell = (depth < 3) | (depth > 33) | (np.abs(x - centre) > 212)
        return np.where(inside, np.where(shell, np.float32(-350), np.float32(-930)), np.float32(AIR_HU)).astype(
            np.float32
        )

    return hu
