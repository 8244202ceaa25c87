"""Painters that virtual patients share.

A *patient* is an object with `names` (label value -> name), `seed`, `landmarks` (name -> (x, y, z) in mm, RAS+, always
with "centre") and `paint(shape, affine)` -> label array. Solids are computed on coordinate arrays of any shape: tubes
and outlines as signed distances in mm (negative inside), chains and ellipsoids as depths (positive inside). Where muscles meet, the
smaller distance wins, so there are no gaps and no overlaps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

CHUNK = 400_000  # points painted at once: bounds the memory of large grids
CACHED = 100_000  # points whose arrays fit into a processor's cache
NODE, BLOCK = (
    5.6,
    4,
)  # mm and voxels from one node to the next, at most; solids that are thinner throughout could be overlooked
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


class SectionTable(NamedTuple):
    """Sections of a tube, one per mm along z: float32 (7, m) x, y, cos, sin, half length, half width, bend; lowest z."""

    columns: np.ndarray
    lowest: float


def section_table(sections: np.ndarray) -> SectionTable:
    """Interpolate sections along z, to be looked up by height.

    `sections` (n, 7): z, x, y, half length, half width (mm), angle of the long axis from x (degrees), and how far the
    section bends at its ends (mm, along the width axis). Angles go the short way from section to section.
    """
    rows = np.array(sorted(map(tuple, sections)), dtype=np.float64)
    turns = np.round(np.diff(rows[:, 5]) / 180.0).cumsum()
    rows[1:, 5] -= 180.0 * turns
    rows[1:, 6] *= np.where(turns % 2, -1.0, 1.0)  # half a turn exchanges the two ends and the side of the bend
    z = np.arange(rows[0, 0], rows[-1, 0] + 1.0)
    x, y, long, wide, angle, bend = (np.interp(z, rows[:, 0], column) for column in rows.T[1:])
    angle = np.radians(angle)
    columns = np.stack([x, y, np.cos(angle), np.sin(angle), long, wide, bend]).astype(np.float32)
    return SectionTable(columns, float(rows[0, 0]))


def tube(x: np.ndarray, y: np.ndarray, z: np.ndarray, sections: np.ndarray | SectionTable) -> np.ndarray:
    """Signed distance (mm, first order) to a tube along z whose sections are bent ellipses (see `section_table`).

    A tube that is used more than once is given as its SectionTable.

    >>> straight = [(-50, 0, 0, 10, 5, 0, 0), (50, 0, 0, 10, 5, 0, 0)]
    >>> tube(*np.array([[0.0, 12, 0], [0, 0, 4], [0, 0, 0]], dtype=np.float32), straight).round(1).tolist()
    [-5.0, 2.0, -1.0]
    """
    table, lowest = sections if isinstance(sections, SectionTable) else section_table(sections)
    height = np.rint(z - np.float32(lowest)).astype(np.intp)
    cx, cy, cos, sin, long, wide, bend = table.take(height, axis=1, mode="clip")
    dx, dy = x - cx, y - cy
    u = (dx * cos + dy * sin) / long
    v = dy * cos - dx * sin
    v = (v - bend * np.minimum(u * u, 2.25)) / wide + np.float32(1e-3)
    rho = np.sqrt(u * u + v * v)
    slope = np.sqrt((u / long) ** 2 + (v / wide) ** 2)
    distance = (rho - 1) * rho / slope
    top = lowest + table.shape[1] - 1
    return np.maximum(distance, np.maximum(z - np.float32(top), np.float32(lowest) - z))


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


def ellipsoid_depth(points: np.ndarray, centre: tuple, radii: tuple) -> np.ndarray:
    """Depth in mm below an ellipsoid's surface, at `points` (..., 3): positive inside; first-order exact at the surface.

    >>> ellipsoid_depth(np.array([[0.0, 0, 0], [9, 0, 0], [12, 0, 0]]), (0, 0, 0), (10, 10, 10)).round(3).tolist()
    [10.0, 1.0, -2.0]
    """
    scaled = (points - np.asarray(centre, points.dtype)) / np.asarray(radii, points.dtype)
    rho = np.sqrt(np.einsum("...j,...j->...", scaled, scaled))
    steep = scaled / np.asarray(radii, points.dtype)
    slope = np.sqrt(np.einsum("...j,...j->...", steep, steep))
    return np.where(rho > 1e-3, (1 - rho) * rho / np.maximum(slope, 1e-9), np.float32(min(radii)))


def chain_depth(x: np.ndarray, y: np.ndarray, z: np.ndarray, line: np.ndarray, flat: tuple = (1, 1, 1)) -> np.ndarray:
    """Depth in mm inside a chain of round cones: `line` (m, 4) holds x, y, z, radius of its knots; positive inside.

    `flat` stretches each axis before distances are taken (values below 1 make the chain wider along that axis).

    >>> chain_depth(*np.array([[0.0, 0], [0, 3], [5, 5]]), np.array([[0.0, 0, 0, 2], [0, 0, 10, 4]])).tolist()
    [3.0, 0.0]
    """
    line = np.asarray(line, x.dtype)
    wx, wy, wz = np.asarray(flat, x.dtype)
    best = None
    for first, second in zip(line[:-1], line[1:], strict=True):
        ax, ay, az = (second[:3] - first[:3]) * (wx, wy, wz)
        px, py, pz = (
            (axis - start) * weight for axis, start, weight in zip((x, y, z), first, (wx, wy, wz), strict=False)
        )
        t = np.clip((px * ax + py * ay + pz * az) * (1 / (ax * ax + ay * ay + az * az)), 0, 1)
        px -= t * ax
        py -= t * ay
        pz -= t * az
        depth = first[3] + t * (second[3] - first[3]) - np.sqrt(px * px + py * py + pz * pz)
        best = depth if best is None else np.maximum(best, depth)
    return best


def outline(x: np.ndarray, y: np.ndarray, z: np.ndarray, rows: tuple) -> np.ndarray:
    """Signed distance (mm, in the axial plane) to a stack of outlines, flat in front and rounder at the back.

    `rows` (n, 5): z, x of the middle, half width, y of the middle, half depth, mm; the ends are cut off flat.
    """
    heights, *columns = np.array(rows, dtype=np.float64).T
    fine = np.arange(heights[0], heights[-1] + 1.0)
    index = np.rint(z - np.float32(fine[0])).astype(np.intp)
    table = np.stack([np.interp(fine, heights, column) for column in columns]).astype(np.float32)
    middle_x, wide, middle_y, deep = table.take(index, axis=1, mode="clip")
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


@dataclass(frozen=True)
class Waves:
    """A smooth random field of unit variance: sum of `amplitude * cos(k . p + phase)`; k in rad/mm (n, 3), phase in rad (n,)."""

    k: np.ndarray
    phase: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, count: int, wavelength: float, spread: float = 0.25) -> "Waves":
        """`count` plane waves of random direction, wavelengths within a fraction `spread` of `wavelength` (mm)."""
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = 2 * np.pi / (wavelength * rng.uniform(1 - spread, 1 + spread, (count, 1)))
        return cls((direction * length).astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    @classmethod
    def of_seed(cls, seed: int, length: float, count: int = 6) -> "Waves":
        """The `count` waves of a seed, of lengths from 0.7 to 1.5 times `length` (mm)."""
        rng = np.random.default_rng(seed)
        k, phase = np.empty((count, 3)), np.empty(count)
        for wave in range(count):
            direction = rng.normal(size=3)
            k[wave] = direction * 2 * np.pi / (length * rng.uniform(0.7, 1.5) * np.linalg.norm(direction))
            phase[wave] = rng.uniform(0, 2 * np.pi) - np.pi / 2
        return cls(k.astype(np.float32), phase.astype(np.float32))

    def on(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Values at coordinates of any one shape, a wave at a time: little memory where there are many points."""
        total = np.float32(0)
        for (kx, ky, kz), phase in zip(self.k, self.phase, strict=True):
            total = total + np.cos(kx * x + ky * y + kz * z + phase)
        return total * np.float32(np.sqrt(2 / len(self.phase)))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values (n,) at `points` (n, 3) in mm."""
        return np.cos(points @ self.k.T + self.phase).sum(1) * np.float32(np.sqrt(2 / len(self.phase)))

    def value_and_slope(self, points: np.ndarray, phase: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Values (n,) and the length of their gradient (n,) per mm; `phase` (n, waves) or (waves,) in the place of the own one."""
        angle = points @ self.k.T + (self.phase if phase is None else phase)
        scale = np.float32(np.sqrt(2 / len(self.phase)))
        slope = (np.sin(angle) @ self.k) * scale
        return np.cos(angle).sum(1) * scale, np.sqrt(np.einsum("ij,ij->i", slope, slope))


def grid_points(shape: tuple[int, int, int], affine: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (slice of the flattened grid, its points (n, 3) in mm, float32), a bounded number at a time."""
    affine = np.asarray(affine, float)
    total = int(np.prod(shape))
    for start in range(0, total, CHUNK):
        part = slice(start, min(start + CHUNK, total))
        index = np.stack(np.unravel_index(np.arange(part.start, part.stop), shape), 1).astype(np.float32)
        yield part, index @ affine[:3, :3].T.astype(np.float32) + affine[:3, 3].astype(np.float32)


def interpolate_lattice(
    values: np.ndarray, origin: np.ndarray, step: float, shape: tuple, affine: np.ndarray
) -> np.ndarray:
    """Linear interpolation of `values` (c, l, m, n) on a lattice with corner `origin` and spacing `step` (mm) to a grid.

    Returns float32 (c, I, J, K). Separable (three small matrix products) when the grid's axes are those of the patient.
    """
    affine = np.asarray(affine, dtype=np.float64)
    matrix = affine[:3, :3]
    if np.count_nonzero(matrix) == 3 and np.all(np.diag(matrix) != 0):
        weights = []
        for axis in range(3):
            where = (affine[axis, 3] + matrix[axis, axis] * np.arange(shape[axis]) - origin[axis]) / step
            where = np.clip(where, 0, values.shape[axis + 1] - 1.001)
            low = np.floor(where).astype(int)
            along = np.zeros((shape[axis], values.shape[axis + 1]), dtype=np.float32)
            along[np.arange(shape[axis]), low] = 1 - (where - low)
            along[np.arange(shape[axis]), low + 1] = where - low
            weights.append(along)
        return separable_sum(values.astype(np.float32), *weights)
    points = (voxel_centres(shape, affine) - np.asarray(origin, np.float32)[:, None, None, None]) / np.float32(step)
    return np.stack([ndimage.map_coordinates(v.astype(np.float32), points, order=1, mode="nearest") for v in values])


def separable_sum(values: np.ndarray, along_x: np.ndarray, along_y: np.ndarray, along_z: np.ndarray) -> np.ndarray:
    """Return sum_lmn X[i, l] Y[j, m] Z[k, n] values[..., l, m, n], shape (..., I, J, K), as three matrix products."""
    *channels, _, m, n = values.shape
    along = along_x @ values.reshape(*channels, along_x.shape[1], m * n)
    return along_y @ along.reshape(*channels, along_x.shape[0], m, n) @ along_z.T


class Nodes:
    """Looks at a field of coordinates (3, I, J, K) on nodes first, and at its voxels only where a solid may be.

    Nodes stand at most NODE mm apart, the outer ones in the grid's faces, each amid a block of voxels; it speaks for that and the blocks
    around. So a solid is found that is as thick as the nodes' distance; thinner ends are, when they go on from what is thicker.
    """

    def __init__(self, coordinates: np.ndarray) -> None:
        self.shape, self._flat = coordinates.shape[1:], coordinates.reshape(3, -1)
        self._block = [max(1, min(BLOCK, int(NODE / _step(coordinates, axis)))) for axis in range(3)]
        self._nodes = coordinates
        for axis, (n, block) in enumerate(zip(self.shape, self._block, strict=True), start=1):
            if block > 1:
                self._nodes = self._nodes.take(np.append(np.arange(0, n - 1, block), n - 1), axis)
        self._reach = NODE if max(self._block) > 1 else 0.0  # mm from a node to the block's last voxel, and some more
        lowest, highest = ([extreme(self._nodes, 3), extreme(self._nodes, 2)] for extreme in (np.amin, np.amax))
        self._ranges = [  # of the coordinates in each slice across an axis: lowest, highest, each (n of the axis, 3)
            (lowest[i].min(axis=other).T, highest[i].max(axis=other).T) for i, other in ((0, 2), (0, 1), (1, 1))
        ]

    def near(
        self, low: Sequence[float], high: Sequence[float], hits: Callable[..., np.ndarray]
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield (where, x, y, z), flat arrays, of all voxels around nodes at which hits(x, y, z) is true, and around those next to them.

        `where` are indices of the flattened grid. Only coordinates from `low` to `high` (3,) are looked at.
        """
        box = self._box(np.asarray(low) - self._reach, np.asarray(high) + self._reach)
        if box is not None:
            nodes = self._nodes[(slice(None), *box)]
            blocks = (
                ndimage.binary_dilation(hits(*nodes), np.ones((3, 3, 3)))
                if self._reach
                else np.ones(nodes.shape[1:], bool)
            )
            yield from self._voxels(blocks, [part.start for part in box])

    def layers(self, classify: Callable[..., np.ndarray]) -> np.ndarray:
        """classify(x, y, z) -> uint8 of every voxel, (I, J, K); called for voxels only where a node's neighbours are of another class."""
        classes = classify(*self._nodes)
        nearest = [
            np.minimum((np.arange(n) + b // 2) // b, nodes - 1)
            for n, b, nodes in zip(self.shape, self._block, classes.shape, strict=True)
        ]
        found = classes[np.ix_(*nearest)]
        if self._reach:
            mixed = ndimage.maximum_filter(classes, 3) > ndimage.minimum_filter(classes, 3)
            for where, *point in self._voxels(mixed, (0, 0, 0)):
                found.reshape(-1)[where] = classify(*point)
        return found

    def _box(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice, slice] | None:
        """Slices of the smallest box of blocks whose nodes have `low` <= coordinates <= `high`, None when there are none."""
        slices = []
        for smallest, largest in self._ranges:
            hit = np.flatnonzero(((high >= smallest) & (low <= largest)).all(axis=1))
            if len(hit) == 0:
                return None
            slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return tuple(slices)

    def _voxels(self, blocks: np.ndarray, first: Sequence[int]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield (where, x, y, z) of the voxels of `blocks` (a, b, c), which begin at block `first`, as many at a time as a cache holds."""
        chosen = np.argwhere(blocks) + first
        count = max(1, CACHED // int(np.prod(self._block)))
        for start in range(0, len(chosen), count):
            where = np.zeros((1, 1, 1, 1), np.intp)
            for axis, (n, block) in enumerate(zip(self.shape, self._block, strict=True)):
                index = chosen[start : start + count, axis, None] * block + np.arange(block) - block // 2
                index = np.clip(index, 0, n - 1)  # blocks at a face are thinner: some of their voxels come twice
                where = where * n + index.reshape(len(index), *[-1 if axis == other else 1 for other in range(3)])
            where = where.reshape(-1)
            yield where, *self._flat.take(where, axis=1, mode="clip")


def _step(coordinates: np.ndarray, axis: int) -> float:
    """The largest distance (mm) from a voxel of the first slice along an axis to the next; infinite where there is none."""
    if coordinates.shape[axis + 1] < 2:
        return np.inf
    first, second = (coordinates.take(n, axis=axis + 1) for n in (0, 1))
    return float(np.sqrt(((second - first) ** 2).sum(axis=0)).max())


def join_strays(labels: np.ndarray, structures: np.ndarray, inner_faces: tuple[tuple[int, int], ...] = ()) -> None:
    """Give every stray piece of a structure to what surrounds it, in place: afterwards a structure is one connected piece.

    `labels` (I, J, K) values; `structures` (I, J, K) which structure they belong to (0: not looked at). On a coarse grid a thin tip may
    hang on to its muscle by less than a voxel, or a neighbour may cut it off. A piece that touches a face of the grid may go on beyond it
    and stays; `inner_faces` (axis, 0 or -1) are faces beyond which it does not, such as the midline.
    """
    if min(labels.shape) < 3:  # each voxel touches a face
        return
    stray = np.zeros(labels.shape, bool)
    for value, box in enumerate(ndimage.find_objects(structures), start=1):
        if box is None:
            continue
        pieces, count = ndimage.label(structures[box] == value, np.ones((3, 3, 3)))
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())
        kept = {0, 1 + int(sizes[1:].argmax())}
        for axis, part in enumerate(box):
            for end, cut in ((0, part.start == 0), (-1, part.stop == labels.shape[axis])):
                if cut and (axis, end) not in inner_faces:
                    kept |= set(np.unique(pieces.take(end, axis=axis)).tolist())
        stray[box] |= ~np.isin(pieces, list(kept))
    left = np.argwhere(stray)
    while len(left):
        found = np.zeros(len(left), bool)
        taken = np.empty(len(left), labels.dtype)
        for step in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
            place = left + step
            inside = ((place >= 0) & (place < labels.shape)).all(axis=1) & ~found
            place = tuple(place[inside].T)
            usable = ~stray[place]
            where = np.flatnonzero(inside)[usable]
            taken[where] = labels[place][usable]
            found[where] = True
        if not found.any():
            return
        labels[tuple(left[found].T)] = taken[found]
        stray[tuple(left[found].T)] = False
        left = left[~found]
