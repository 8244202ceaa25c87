"""What a scanner adds to the ideal signal: coil sensitivity, noise, and the distortion of the head's target domain."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from scipy import fft
from scipy.interpolate import RBFInterpolator, RegularGridInterpolator

from mr2ct_lib.files import InputError
from mr2ct_lib.patients.grids import separable_sum

BIAS_MM = 130.0  # distance over which a receive coil's sensitivity varies
DISTORTION_SEED = 1808  # of the head's target domain: the same in every cohort, training or test


def along_axes(affine: np.ndarray) -> np.ndarray:
    """Return the affine as float64. Raises InputError for a grid that is not along the axes (positive diagonal)."""
    affine = np.asarray(affine, dtype=np.float64)
    if np.any(affine[:3, :3][~np.eye(3, dtype=bool)] != 0) or np.any(np.diag(affine)[:3] <= 0):
        raise InputError(
            "affine: oblique or flipped; expected a virtual scanner's grid along the axes; reslice afterwards"
        )
    return affine


def smooth_field(
    shape: tuple[int, int, int], affine: np.ndarray, length: float, seed: Any, extent: float = 450.0
) -> np.ndarray:
    """Return a smooth random field, float32, at the voxel centres of a grid; mean 0 and SD 1 over many draws.

    White noise on a lattice of `length` mm that is fixed in space is interpolated by cubic B-splines, so that the same
    seed gives the same field at the same place on any grid. Beyond +-`extent` mm the field repeats itself.

    Raises InputError for a grid that is not along the axes (positive diagonal affine).
    """
    along_axes(affine)
    knots = int(np.ceil(2 * extent / length))
    splines = [np.zeros((n, knots), dtype=np.float32) for n in shape]
    for axis in range(3):
        position = (affine[axis, 3] + affine[axis, axis] * np.arange(shape[axis]) + extent) / length
        first = np.floor(position).astype(int)
        t = (position - first).astype(np.float32)
        weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
        for tap, weight in enumerate(weights):
            splines[axis][np.arange(shape[axis]), (first + tap) % knots] = weight
        splines[axis] /= np.float32((151 / 315) ** 0.5)  # the integral of the squared cubic B-spline
    used = [np.flatnonzero(spline.any(axis=0)) for spline in splines]  # the knots that reach this grid
    drawn = (int(used[0].max(initial=-1)) + 1, knots, knots)  # of (knots, knots, knots): what follows is not needed
    noise = np.random.default_rng(seed).standard_normal(drawn, dtype=np.float32)
    return separable_sum(noise[np.ix_(*used)], *(spline[:, knots] for spline, knots in zip(splines, used, strict=True)))


def bias_field(shape: tuple[int, int, int], affine: np.ndarray, strength: float, seed: Any) -> np.ndarray:
    """Return a coil's sensitivity, float32, positive: the exponential of a smooth random field of SD `strength`.

    strength: 0 none, 0.2 usual, 0.5 strong.
    """
    return np.exp(np.float32(strength) * smooth_field(shape, affine, BIAS_MM, seed))


def rician(signal: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Return what an MR magnitude image shows: |signal + n1 + i n2| with n1, n2 ~ N(0, sd); shape as `signal`."""
    real = signal + sd * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sd * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, imaginary)


def ct_noise(shape: tuple[int, int, int], sd: float, rng: np.random.Generator) -> np.ndarray:
    """Return CT noise of SD `sd` in HU, float32 of `shape`.

    In each axial slice its power grows with frequency and falls to 0 at the edge of the band, as filtered
    back-projection leaves it: ramp filter times a Hann window, without a constant part.
    """
    frequency = np.hypot(
        fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None]
    )  # cycles a voxel; 0.5 is the edge of the band
    amplitude = np.sqrt(frequency) * np.where(frequency < 0.5, np.cos(np.pi * frequency) ** 2, 0)
    twice = np.full(
        amplitude.shape[1], 2.0
    )  # every column of a real transform but the first (and an even last) stands for two
    twice[0] = 1
    if shape[1] % 2 == 0:
        twice[-1] = 1
    power = (amplitude**2 * twice).sum() / (shape[0] * shape[1])
    amplitude = (sd / np.sqrt(max(power, 1e-12)) * amplitude).astype(np.float32)
    noise = np.empty(shape, dtype=np.float32)
    for k in range(shape[2]):
        white = rng.standard_normal(shape[:2], dtype=np.float32)
        noise[..., k] = fft.irfft2(fft.rfft2(white) * amplitude, s=shape[:2])
    return noise


@cache
def thin_plate_distortion(
    seed: int = DISTORTION_SEED,
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return one invertible thin-plate-spline distortion of 8 mm (root mean square) in a disc of 180 mm.

    It maps places in the axial plane, x and y in mm, to (dx, dy) in mm, each of the same shape; places beyond 135 mm
    move as those at 135 mm. A distorted scan shows at (x, y) what lies at (x + dx, y + dy). Every slice is distorted
    alike, because networks that see slices can undo no more.

    A 5 x 5 lattice of control points over 1.4 diameters is displaced at random. Its affine part (shift, rotation,
    scaling, shear) is removed, and a smoothed thin-plate spline approximates the rest. A draw that folds (Jacobian
    below 0.3 anywhere) is drawn again.

    >>> dx, dy = thin_plate_distortion()(np.array([0.0, 50.0]), np.array([10.0, -20.0]))
    >>> dx.shape, bool(np.hypot(dx, dy).max() < 40)
    ((2,), True)
    """
    rng = np.random.default_rng(seed)
    size = 180.0  # mm, the diameter of the disc
    lattice = np.linspace(-0.7, 0.7, 5) * size
    control = np.stack(np.meshgrid(lattice, lattice, indexing="ij"), axis=-1).reshape(-1, 2)
    affine_part = np.column_stack([np.ones(len(control)), control])
    nodes = np.linspace(-0.75, 0.75, 49) * size
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), axis=-1)
    inside = np.hypot(grid[..., 0], grid[..., 1]) < size / 2
    while True:
        moved = rng.standard_normal((len(control), 2))
        moved -= affine_part @ np.linalg.lstsq(affine_part, moved, rcond=None)[0]
        spline = RBFInterpolator(control, moved, kernel="thin_plate_spline", smoothing=size**2 * 0.1)
        field_ = spline(grid.reshape(-1, 2)).reshape(grid.shape)
        field_ *= 8.0 / np.sqrt((field_[inside] ** 2).sum(axis=-1).mean())  # mm
        (xx, xy), (yx, yy) = (np.gradient(field_[..., c], nodes, nodes) for c in (0, 1))
        if ((1 + xx) * (1 + yy) - xy * yx).min() > 0.3:
            break
    interpolate = RegularGridInterpolator((nodes, nodes), field_, method="cubic")

    def distortion(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = np.stack(np.broadcast_arrays(x, y), axis=-1).clip(nodes[0], nodes[-1])
        return tuple(np.moveaxis(interpolate(points), -1, 0))

    return distortion
