"""Grids of points: places in mm, fields interpolated to them, and painting without a look at every voxel."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import ndimage

CHUNK = 400_000  # points painted at once: bounds the memory of large grids
CACHED = 100_000  # points whose arrays fit into a processor's cache
NODE, BLOCK = 5.6, 4  # mm and voxels from one node to the next, at most; solids thinner than that could be overlooked


def voxel_centres(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Return the voxel centres of a grid in mm as float32, (3, I, J, K).

    >>> voxel_centres((1, 1, 2), np.diag([2.0, 2.0, 3.0, 1.0]))[:, 0, 0, 1].tolist()
    [0.0, 0.0, 3.0]
    """
    index = np.ix_(*[np.arange(n, dtype=np.float32) for n in shape])
    rows = np.asarray(affine, dtype=np.float32)[:3]
    full = [row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3] for row in rows]
    return np.stack([np.broadcast_to(axis, shape) for axis in full])


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
    """Interpolate `values` (c, l, m, n) linearly from a lattice with corner `origin` and spacing `step` (mm) to a grid.

    Returns float32 (c, I, J, K). Separable (three small matrix products) when the grid lies along the lattice's axes.
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
    """Looks at coordinates (3, I, J, K) on nodes first, and at all voxels only where a solid may be.

    Nodes are at most NODE mm apart, the outer ones in the grid's faces; each stands for a block of voxels around it
    and for the neighbouring blocks. A solid as thick as the distance of the nodes is always seen; so are thinner ends
    that continue a thicker part.
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
        """Yield (where, x, y, z), flat arrays, of voxels around nodes where hits(x, y, z) is true and next to them.

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
        """Return classify(x, y, z), uint8 (I, J, K), computed voxel by voxel only near nodes of another class."""
        classes = classify(*self._nodes)
        nearest = [
            np.minimum((np.arange(n) + b // 2) // b, nodes - 1)
            for n, b, nodes in zip(self.shape, self._block, classes.shape, strict=True)
        ]
        labels = classes[np.ix_(*nearest)]
        if self._reach:
            mixed = ndimage.maximum_filter(classes, 3) > ndimage.minimum_filter(classes, 3)
            for where, *point in self._voxels(mixed, (0, 0, 0)):
                labels.reshape(-1)[where] = classify(*point)
        return labels

    def _box(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice, slice] | None:
        """Return the smallest box of blocks whose nodes have `low` <= coordinates <= `high`; None if there are none."""
        slices = []
        for smallest, largest in self._ranges:
            hit = np.flatnonzero(((high >= smallest) & (low <= largest)).all(axis=1))
            if len(hit) == 0:
                return None
            slices.append(slice(int(hit[0]), int(hit[-1]) + 1))
        return tuple(slices)

    def _voxels(self, blocks: np.ndarray, first: Sequence[int]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield (where, x, y, z) of the voxels of `blocks` (a, b, c), counted from block `first`, in portions."""
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
    """Return the largest distance (mm) from an axis's first slice to the next; infinite for a single slice."""
    if coordinates.shape[axis + 1] < 2:
        return np.inf
    first, second = (coordinates.take(n, axis=axis + 1) for n in (0, 1))
    return float(np.sqrt(((second - first) ** 2).sum(axis=0)).max())


def join_strays(labels: np.ndarray, structures: np.ndarray, inner_faces: tuple[tuple[int, int], ...] = ()) -> None:
    """Give every stray piece of a structure to its surroundings, in place, so that a structure is one connected piece.

    On a coarse grid a thin tip may be separated from its muscle by less than a voxel, or by a neighbour.

    Args:
        labels: values (I, J, K), changed in place.
        structures: which structure each voxel belongs to (I, J, K); 0 is left alone.
        inner_faces: (axis, 0 or -1) of faces beyond which a structure does not continue, such as the midline. A piece
            at another face may continue beyond the grid and stays.
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
        settled = np.zeros(len(left), bool)
        neighbours = np.empty(len(left), labels.dtype)
        for step in np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
            place = left + step
            inside = ((place >= 0) & (place < labels.shape)).all(axis=1) & ~settled
            place = tuple(place[inside].T)
            usable = ~stray[place]
            where = np.flatnonzero(inside)[usable]
            neighbours[where] = labels[place][usable]
            settled[where] = True
        if not settled.any():
            return
        labels[tuple(left[settled].T)] = neighbours[settled]
        stray[tuple(left[settled].T)] = False
        left = left[~settled]
