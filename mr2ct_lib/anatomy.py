"""Painters that virtual patients share, and any label map as a patient.

A *patient* is an object with `names` (label value -> name), `seed`, `landmarks` (name -> (x, y, z) in mm, RAS+, always
with "centre") and `paint(shape, affine)` -> label array. Solids are signed distances in mm (negative inside), computed
on coordinate arrays of any shape; where solids meet, the smaller distance wins, so there are no gaps and no overlaps.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from mr2ct_lib.files import InputError, read_json
from mr2ct_lib.tissues import tissue_of
from mr2ct_lib.volumes import Volume

FAT_MM = 12.0  # subcutaneous fat that complete_labels lays over a map without a body
SKIN_MM = 2.0
REACH = 4.0  # mm around a tube's box in which it may still be painted


def voxel_centres(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Return the voxel centres of a grid in mm as float32, (3, I, J, K).

    >>> voxel_centres((1, 1, 2), np.diag([2.0, 2.0, 3.0, 1.0]))[:, 0, 0, 1].tolist()
    [0.0, 0.0, 3.0]
    """
    index = np.ix_(*[np.arange(n, dtype=np.float32) for n in shape])
    rows = np.asarray(affine, dtype=np.float32)[:3]
    full = [row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3] for row in rows]
    return np.stack([np.broadcast_to(axis, shape) for axis in full])


def section_table(sections: np.ndarray, step: float = 1.0) -> tuple[np.ndarray, float]:
    """Interpolate sections along z, to be looked up by height.

    `sections` (n, 7): z, x, y, half length, half width (mm), angle of the long axis from x (degrees), and how far the
    section bends at its ends (mm, along the width axis). Returns a float32 table (7, m): x, y, cos, sin, half length,
    half width, bend, one column every `step` mm, and the lowest z. Angles go the short way from section to section.
    """
    rows = np.array(sorted(map(tuple, sections)), dtype=np.float64)
    turns = np.round(np.diff(rows[:, 5]) / 180.0).cumsum()
    rows[1:, 5] -= 180.0 * turns
    rows[1:, 6] *= np.where(turns % 2, -1.0, 1.0)  # half a turn exchanges the two ends and the side of the bend
    z = np.arange(rows[0, 0], rows[-1, 0] + step, step)
    x, y, long, wide, angle, bend = (np.interp(z, rows[:, 0], column) for column in rows.T[1:])
    angle = np.radians(angle)
    return np.stack([x, y, np.cos(angle), np.sin(angle), long, wide, bend]).astype(np.float32), float(rows[0, 0])


def tube(x: np.ndarray, y: np.ndarray, z: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Signed distance (mm, first order) to a tube along z whose sections are bent ellipses (see `section_table`).

    >>> straight = [(-50, 0, 0, 10, 5, 0, 0), (50, 0, 0, 10, 5, 0, 0)]
    >>> tube(*np.array([[0.0, 12, 0], [0, 0, 4], [0, 0, 0]], dtype=np.float32), straight).round(1).tolist()
    [-5.0, 2.0, -1.0]
    """
    table, lowest = section_table(sections)
    height = np.rint(z - np.float32(lowest)).astype(np.int32)
    cx, cy, cos, sin, long, wide, bend = (np.take(column, height, mode="clip") for column in table)
    dx, dy = x - cx, y - cy
    u = (dx * cos + dy * sin) / long
    v = dy * cos - dx * sin
    v = (v - bend * np.minimum(u * u, 2.25)) / wide + np.float32(1e-3)
    rho = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / long) ** 2 + (v / wide) ** 2)
    distance = (rho - 1) * rho / slope
    top = lowest + table.shape[1] - 1
    return np.maximum(distance, np.maximum(z - np.float32(top), np.float32(lowest) - z))


def chain(x: np.ndarray, y: np.ndarray, z: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to a chain of round cones; `points` (n, 4): x, y, z, radius in mm.

    >>> chain(*np.array([[5.0], [4.0], [0.0]], dtype=np.float32), [(0, 0, 0, 1), (10, 0, 0, 3)]).tolist()
    [2.0]
    """
    points = np.asarray(points, dtype=np.float32)
    best = None
    for start, end in zip(points[:-1], points[1:], strict=True):
        axis = end[:3] - start[:3]
        px, py, pz = x - start[0], y - start[1], z - start[2]
        along = np.clip((px * axis[0] + py * axis[1] + pz * axis[2]) / max(float(axis @ axis), 1e-6), 0, 1)
        px, py, pz = px - along * axis[0], py - along * axis[1], pz - along * axis[2]
        distance = np.sqrt(px * px + py * py + pz * pz) - (start[3] + along * (end[3] - start[3]))
        best = distance if best is None else np.minimum(best, distance)
    return best


def tube_bounds(sections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,) of the box that holds a tube."""
    rows = np.asarray(sections, dtype=np.float64)
    angle = np.radians(rows[:, 5])
    half_x = np.hypot(rows[:, 3] * np.cos(angle), rows[:, 4] * np.sin(angle)) + np.abs(rows[:, 6] * np.sin(angle))
    half_y = np.hypot(rows[:, 3] * np.sin(angle), rows[:, 4] * np.cos(angle)) + np.abs(rows[:, 6] * np.cos(angle))
    half = np.stack([half_x, half_y, np.zeros_like(half_x)], axis=1) + REACH
    middle = rows[:, [1, 2, 0]]
    return (middle - half).min(axis=0), (middle + half).max(axis=0)


def chain_bounds(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (3,) of the box that holds a chain."""
    rows = np.asarray(points, dtype=np.float64)
    return (rows[:, :3] - rows[:, 3:]).min(axis=0), (rows[:, :3] + rows[:, 3:]).max(axis=0)


def ellipsoid(x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: tuple, radii: tuple, power: float = 2) -> np.ndarray:
    """Signed distance (mm, scaled by the mean radius: exact for a sphere) to an ellipsoid; `power` > 2 makes it boxier.

    >>> float(ellipsoid(np.float32(3), np.float32(0), np.float32(0), (0, 0, 0), (2, 2, 2)))
    1.0
    """
    ratio = sum(
        np.abs((axis - np.float32(middle)) / np.float32(radius)) ** np.float32(power)
        for axis, middle, radius in zip((x, y, z), centre, radii, strict=True)
    )
    return (ratio ** np.float32(1 / power) - 1) * np.float32(np.mean(radii))


def outline(x: np.ndarray, y: np.ndarray, z: np.ndarray, rows: tuple) -> np.ndarray:
    """Signed distance (mm, in the axial plane) to a stack of outlines, flat in front and rounder at the back.

    `rows` (n, 5): z, x of the middle, half width, y of the middle, half depth, mm; the ends are cut off flat.
    """
    heights, *columns = np.array(rows, dtype=np.float64).T
    fine = np.arange(heights[0], heights[-1] + 1.0)
    index = np.rint(z - np.float32(fine[0])).astype(np.int32)
    middle_x, wide, middle_y, deep = (
        np.take(np.interp(fine, heights, column).astype(np.float32), index, mode="clip") for column in columns
    )
    v = (y - middle_y) / deep
    front = v > 0
    u = np.square((x - middle_x) / wide)
    v *= v
    # the squares of two superellipses, of power 4 (flat between the iliac spines) and 2 (round), mixed at the back
    square = np.sqrt(u * u + v * v)
    rho = np.sqrt(np.where(front, square, np.float32(0.35) * square + np.float32(0.65) * (u + v)))
    distance = (rho - 1) * np.minimum(wide, deep)
    return np.maximum(distance, np.maximum(np.float32(fine[0]) - z, z - np.float32(heights[-1])))


def smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return 0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def turn(vector: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Rotate vectors (3, ...) by rotation vectors (3, ...) in radians (Rodrigues' formula)."""
    angle = np.sqrt((rotation**2).sum(axis=0)) + 1e-9
    axis = rotation / angle
    cross = np.cross(axis, vector, axis=0)
    along = (axis * vector).sum(axis=0)
    return vector * np.cos(angle) + cross * np.sin(angle) + axis * along * (1 - np.cos(angle))


def waves(x: np.ndarray, y: np.ndarray, z: np.ndarray, seed: int, length: float, count: int = 6) -> np.ndarray:
    """Smooth noise of about zero mean and unit SD: `count` plane waves of wavelength about `length` mm; any points."""
    rng = np.random.default_rng(seed)
    total = np.float32(0)
    for _ in range(count):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (length * rng.uniform(0.7, 1.5) * np.linalg.norm(direction))
        kx, ky, kz = direction.astype(np.float32)
        total = total + np.sin(kx * x + ky * y + kz * z + np.float32(rng.uniform(0, 2 * np.pi)))
    return total * np.float32(np.sqrt(2 / count))


def interpolate_lattice(values: np.ndarray, origin: np.ndarray, step: float, shape: tuple, affine: np.ndarray) -> np.ndarray:
    """Linear interpolation of `values` (c, l, m, n) on a lattice with corner `origin` and spacing `step` (mm) to a grid.

    Returns float32 (c, I, J, K). Separable (three small matrix products) when the grid's axes are those of the patient.
    """
    affine = np.asarray(affine, dtype=np.float64)
    matrix = affine[:3, :3]
    if np.count_nonzero(matrix) == 3 and np.all(np.diag(matrix) != 0):
        out = values.astype(np.float32)
        for axis in range(3):
            where = (affine[axis, 3] + matrix[axis, axis] * np.arange(shape[axis]) - origin[axis]) / step
            where = np.clip(where, 0, values.shape[axis + 1] - 1.001)
            low = np.floor(where).astype(int)
            weights = np.zeros((shape[axis], values.shape[axis + 1]), dtype=np.float32)
            weights[np.arange(shape[axis]), low] = 1 - (where - low)
            weights[np.arange(shape[axis]), low + 1] = where - low
            out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis + 1)), 0, axis + 1)
        return np.ascontiguousarray(out)
    points = (voxel_centres(shape, affine) - np.asarray(origin, np.float32)[:, None, None, None]) / np.float32(step)
    return np.stack([ndimage.map_coordinates(v.astype(np.float32), points, order=1, mode="nearest") for v in values])


class Boxes:
    """Finds, for a field of coordinates (3, I, J, K), the index box that holds all voxels of a coordinate range."""

    def __init__(self, coordinates: np.ndarray) -> None:
        self._ranges = []
        for axis in range(3):
            others = tuple(1 + other for other in range(3) if other != axis)
            self._ranges.append((coordinates.min(axis=others), coordinates.max(axis=others)))  # each (3, n of the axis)

    def of(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice, slice] | None:
        """Return slices for `low` <= coordinates <= `high` (3,), None when there are none."""
        slices = []
        for smallest, largest in self._ranges:
            hit = np.flatnonzero(((high >= smallest.T) & (low <= largest.T)).all(axis=1))
            if len(hit) == 0:
                return None
            slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return tuple(slices)


def read_names(path: str | Path) -> dict[int, str]:
    """Read a JSON object of label values and names; value 0 is "background" when absent.

    Raises InputError when it is not such an object or a name has no tissue.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds no names; expected a JSON object such as {{\"1\": \"femur\"}}. Write one")
    names = {}
    for key, name in content.items():
        if not str(key).strip().isdigit() or not isinstance(name, str):
            raise InputError(f"{path}: entry {key!r}: {name!r}; expected a label value and a name, as \"1\": \"femur\"")
        names[int(key)] = name
    names.setdefault(0, "background")
    for value, name in names.items():
        try:
            tissue_of(name)
        except InputError as error:
            raise InputError(f"{path}: label {value}: {error}") from error
    return dict(sorted(names.items()))


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, count = ndimage.label(mask)
    return mask if count < 2 else parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])


def _guess_body(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Closing of the labelled part in each axial slice (convex hull of its pieces), widened by FAT_MM."""
    from skimage.morphology import convex_hull_image

    hull = np.zeros_like(inside)
    for k in np.flatnonzero(inside.any(axis=(0, 1))):
        parts, count = ndimage.label(ndimage.binary_dilation(inside[:, :, k], iterations=max(1, int(12 / spacing[0]))))
        for part in range(1, count + 1):
            piece = inside[:, :, k] & (parts == part)
            if piece.sum() > 3:
                hull[:, :, k] |= convex_hull_image(piece)
    return ndimage.distance_transform_edt(~hull, sampling=spacing) <= FAT_MM + SKIN_MM


def complete_labels(
    labels: np.ndarray, names: dict[int, str], spacing: np.ndarray, body: np.ndarray | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Turn a map of muscles and bones into one of a whole patient.

    `labels` (I, J, K) whole numbers; `names` value -> name; `spacing` (3,) mm; `body` bool (I, J, K) or None (then it
    is guessed: closing of the labelled part, plus subcutaneous fat). Voxels that have a label keep it, except that the
    outer shell of each bone becomes `<bone>_cortex`; what is unlabelled inside the body becomes intermuscular fat near
    muscle and bone, else subcutaneous fat, and its rim skin. A map that already names skin and fat comes back as it is.

    Returns the new labels (uint8 or int16) and names. Raises InputError for values without a name, names without a
    tissue, or a map without any label.
    """
    present = np.unique(labels)
    missing = [int(value) for value in present if int(value) not in names and value != 0]
    if missing:
        raise InputError(f"label map: values {missing} have no name; expected one for each value. Add them to the names")
    tissues = {value: tissue_of(name).name for value, name in names.items()}
    if not (present != 0).any():
        raise InputError("label map: holds background only; expected some structures. Choose another file")
    have = {names[int(value)] for value in present if value}
    names = {0: "background"} | dict(names)
    if "skin" in have or {"subcutaneous_fat", "fat"} & have:
        return labels.astype(np.uint8 if max(names) < 256 else np.int16), names

    spacing = np.asarray(spacing, dtype=float)
    inside = labels > 0
    step = [max(1, int(round(3.0 / mm))) for mm in spacing[:2]]  # soft outlines need no more than 3 mm in plane
    coarse, wide = inside[:: step[0], :: step[1]], spacing * (*step, 1)

    def fine(mask: np.ndarray) -> np.ndarray:
        return mask.repeat(step[0], axis=0).repeat(step[1], axis=1)[: labels.shape[0], : labels.shape[1]]

    if body is None:
        body = fine(_guess_body(coarse, wide))
    body = _largest(np.asarray(body, bool) | inside)
    body = np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], axis=2)
    out = labels.astype(np.int16)
    following = max(names) + 1
    rim = np.ones((3, 3, 1), bool)  # skin is counted in the axial plane: a scan's first and last slice are cuts
    within = ndimage.binary_erosion(body, rim, iterations=max(1, int(round(SKIN_MM / spacing[:2].min()))))
    near = ndimage.distance_transform_edt(~coarse, sampling=wide) <= 8.0
    core = fine(ndimage.binary_closing(np.pad(near, 6), iterations=5)[6:-6, 6:-6, 6:-6])
    empty = body & ~inside
    for name, where in (
        ("skin", empty & ~within),
        ("intermuscular_fat", empty & core),
        ("subcutaneous_fat", empty),
    ):
        names[following] = name
        out[where & (out == 0)] = following
        following += 1
    thick = 2.2 + 0.5 * spacing.min()  # mm, from the centre of the first voxel outside
    for value in [int(v) for v in present if v and tissues[int(v)] == "trabecular_bone"]:
        bone = labels == value
        box = ndimage.find_objects(bone.astype(np.uint8))[0]
        grown = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        solid = ndimage.binary_closing(np.pad(bone[grown], 2, mode="edge"), iterations=1)[2:-2, 2:-2, 2:-2]
        inner = np.pad(solid, 1, mode="edge")  # a bone cut by the scan's edge has no cortex there
        shell = bone[grown] & (ndimage.distance_transform_edt(inner, sampling=spacing)[1:-1, 1:-1, 1:-1] <= thick)
        names[following] = f"{names[value]}_cortex"
        out[grown][shell] = following
        following += 1
    return out.astype(np.uint8 if following <= 256 else np.int16), names


@dataclass(frozen=True)
class LabelMapPatient:
    """Any label map through the interface of the virtual patients: nearest voxel, optionally smoothly deformed by seed.

    `labels` a Volume of unit "label"; `names` value -> name; `body` an optional Volume mask on the same grid; `seed`
    chooses the deformation (about `amplitude` mm, wavelength 150 mm, so that it stays invertible); `deform=False` or
    seed 0 gives the map as it is. Without skin and fat the map is completed first (see `complete_labels`).

    Raises InputError as `complete_labels`, or when the body lies on another grid.
    """

    labels: Volume
    names: dict[int, str]
    body: Volume | None = None
    seed: int = 0
    deform: bool = True
    amplitude: float = 5.0
    completed: Volume = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.body is not None and self.body.array.shape != self.labels.array.shape:
            raise InputError(
                f"body mask: has shape {self.body.array.shape}; expected that of the label map, "
                f"{self.labels.array.shape}. Reslice it onto the label map"
            )
        body = None if self.body is None else self.body.array > 0
        array, names = complete_labels(self.labels.array, self.names, self.labels.spacing, body)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "completed", self.labels.replace(array=array, unit="label"))

    def with_seed(self, seed: int, deform: bool = True) -> "LabelMapPatient":
        """Return another patient from the same map, without completing it again."""
        return LabelMapPatient(self.completed, self.names, None, seed, deform, self.amplitude)

    @cached_property
    def landmarks(self) -> dict[str, tuple[float, float, float]]:
        """"centre": between the femoral heads when the map names a femur (its highest 40 mm), else the map's middle."""
        array, affine = self.completed.array, self.completed.affine
        values = [value for value, name in self.names.items() if name in ("femur", "femur_left", "femur_right")]
        index = np.argwhere(np.isin(array, values)) if values else np.empty((0, 3))
        if len(index) == 0:
            index = np.argwhere(array > 0)
            return {"centre": tuple(float(v) for v in affine[:3, :3] @ index.mean(axis=0) + affine[:3, 3])}
        points = index @ affine[:3, :3].T + affine[:3, 3]
        heads = []
        middle = 0.5 * (points[:, 0].min() + points[:, 0].max())
        for sign in (1, -1):
            side = points[sign * (points[:, 0] - middle) > 0]
            if len(side) == 0:
                continue
            top = side[side[:, 2] > side[:, 2].max() - 45]
            inner = (sign * top[:, 0]).min()
            head = top[sign * top[:, 0] < inner + 45]
            heads.append(0.5 * (head.min(axis=0) + head.max(axis=0)) * (1, 1, 0) + (0, 0, head[:, 2].max() - 23))
        return {"centre": tuple(float(v) for v in np.mean(heads, axis=0))}

    def paint(self, shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
        """Return labels (I, J, K) at the voxel centres of a grid; background outside of the map."""
        points = voxel_centres(shape, affine)
        if self.deform and self.seed:
            # a displacement of 5 mm over 150 mm has a gradient of about 0.2, far below 1: invertible
            shift = [waves(*points, seed=3 * self.seed + axis, length=150.0) for axis in range(3)]
            points = points + np.float32(self.amplitude) * np.stack(shift)
        inverse = np.linalg.inv(self.completed.affine).astype(np.float32)
        index = np.rint(np.tensordot(inverse[:3, :3], points, axes=1) + inverse[:3, 3, None, None, None]).astype(np.int32)
        size = np.array(self.completed.array.shape)[:, None, None, None]
        valid = ((index >= 0) & (index < size)).all(axis=0)
        index = np.clip(index, 0, size - 1)
        return np.where(valid, self.completed.array[tuple(index)], self.completed.array.dtype.type(0))
