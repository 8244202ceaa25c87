"""Grids of points: places in mm, fields interpolated to them, and painting without a look at every voxel."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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

    The grid lies along the axes (diagonal affine). Returns float32 (c, I, J, K).
    """
    weights = []
    for axis in range(3):
        where = (affine[axis, 3] + affine[axis, axis] * np.arange(shape[axis]) - origin[axis]) / step
        where = np.clip(where, 0, values.shape[axis + 1] - 1.001)
        low = np.floor(where).astype(int)
        along = np.zeros((shape[axis], values.shape[axis + 1]), dtype=np.float32)
        along[np.arange(shape[axis]), low] = 1 - (where - low)
        along[np.arange(shape[axis]), low + 1] = where - low
        weights.append(along)
    return separable_sum(values.astype(np.float32), *weights)


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

    Labels are painted in rows (rows, n): the n voxels that a block has of one line along the last axis, which lie side
    by side in memory. `points` (3, rows, n) are their coordinates; the first and the last row of a line repeat its end.
    `on_grid` brings what is painted to (I, J, K).
    """

    def __init__(self, coordinates: np.ndarray) -> None:
        self.shape = coordinates.shape[1:]
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
        lines = np.zeros((1, 1, 1, 1), np.intp)  # of each column of blocks along the last axis: where its lines begin
        for axis, (n, block, count) in enumerate(zip(self.shape[:2], self._block, self._nodes.shape[1:], strict=False)):
            index = np.arange(count)[:, None] * block + np.arange(block) - block // 2
            index = np.clip(index, 0, n - 1)  # blocks at a face are thinner: some of their rows come twice
            lines = lines * n + (index[:, None, :, None] if axis == 0 else index[:, None, :])
        self._lines = (lines * self._nodes.shape[3]).reshape(-1, self._block[0] * self._block[1])
        before, row = self._block[2] // 2, self._block[2]
        beyond = self._nodes.shape[3] * row - before - self.shape[2]
        self.points = np.pad(coordinates, [(0, 0)] * 3 + [(before, beyond)], mode="edge").reshape(3, -1, row)

    def on_grid(self, values: np.ndarray) -> np.ndarray:
        """Return `values` (rows, n) as (I, J, K)."""
        before = self._block[2] // 2
        return values.reshape(*self.shape[:2], -1)[..., before : before + self.shape[2]]

    def near(
        self, low: Sequence[float], high: Sequence[float], hits: Callable[..., np.ndarray]
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield (where, x, y, z) of blocks around nodes where hits(x, y, z) is true and next to them, in portions.

        `where` (m,) are the numbers of the blocks' rows, x, y, z (m, n) their coordinates. Only coordinates from `low`
        to `high` (3,) are looked at.
        """
        box = self._box(np.asarray(low) - self._reach, np.asarray(high) + self._reach)
        if box is not None:
            nodes = self._nodes[(slice(None), *box)]
            blocks = _with_neighbours(hits(*nodes)) if self._reach else np.ones(nodes.shape[1:], bool)
            yield from self._portions(blocks, [part.start for part in box])

    def layers(self, classify: Callable[..., np.ndarray]) -> np.ndarray:
        """Return classify(x, y, z), uint8 (rows, n), computed voxel by voxel only near nodes of another class."""
        classes = classify(*self._nodes)
        nearest = [
            np.minimum((np.arange(n) + b // 2) // b, nodes - 1)
            for n, b, nodes in zip(self.shape[:2], self._block, classes.shape, strict=False)
        ]
        labels = np.repeat(classes[np.ix_(*nearest)].reshape(-1, 1), self._block[2], axis=1)
        if self._reach:
            mixed = ndimage.maximum_filter(classes, 3) > ndimage.minimum_filter(classes, 3)
            for where, *point in self._portions(mixed, (0, 0, 0)):
                put_rows(labels, where, classify(*point))
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

    def _portions(self, blocks: np.ndarray, first: Sequence[int]) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield (where, x, y, z) of the rows of `blocks` (a, b, c), bool, counted from block `first`."""
        i, j, k = np.unravel_index(np.flatnonzero(blocks), blocks.shape)
        column, k = (i + first[0]) * self._nodes.shape[2] + j + first[1], k[:, None] + first[2]
        count = max(1, CACHED // int(np.prod(self._block)))
        for start in range(0, len(k), count):
            portion = slice(start, start + count)
            where = (self._lines.take(column[portion], axis=0) + k[portion]).reshape(-1)
            yield where, *self.points.take(where, axis=1, mode="clip")


def put_rows(values: np.ndarray, where: np.ndarray, part: np.ndarray) -> None:
    """Do `values[where] = part` for `values` (rows, n), contiguous, and `part` (m, n) of its type: a row at once."""
    row = np.dtype((np.void, values.itemsize * values.shape[1]))
    values.view(row)[:, 0][where] = np.ascontiguousarray(part).view(row)[:, 0]


def _with_neighbours(mask: np.ndarray) -> np.ndarray:
    """Return the mask (I, J, K) and every voxel that touches it, over a face, an edge or a corner."""
    for axis in range(3):
        wide = mask.copy()
        along, before = wide.swapaxes(0, axis), mask.swapaxes(0, axis)
        along[1:] |= before[:-1]
        along[:-1] |= before[1:]
        mask = wide
    return mask


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
    first, length, piece = connected_runs(structures)
    sizes, values = np.bincount(piece, length), np.zeros(piece.max(initial=-1) + 1, structures.dtype)
    values[piece] = structures[tuple(first)]
    largest_first = np.argsort(-sizes, kind="stable")
    kept = np.zeros(len(sizes), bool)
    kept[largest_first[np.unique(values[largest_first], return_index=True)[1]]] = True
    for axis, n in enumerate(labels.shape):
        last = first[axis] + (length - 1 if axis == 2 else 0)
        for end, cut in ((0, first[axis] == 0), (-1, last == n - 1)):
            if (axis, end) not in inner_faces:
                kept[piece[cut]] = True
    loose = ~kept[piece]
    left = np.repeat(first[:, loose], length[loose], axis=1).T
    left[:, 2] += np.arange(len(left)) - np.repeat(np.cumsum(length[loose]) - length[loose], length[loose])
    stray = np.zeros(labels.shape, bool)
    stray[tuple(left.T)] = True
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


def connected_runs(structures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of equal values > 0 along the last axis of `structures` (I, J, K), and which are of one piece.

    Returns the rows' first voxels (3, n), their lengths (n,), and the number (n,) of the piece that each belongs to.
    Pieces are of one value, connected over faces, edges and corners, numbered by their first voxel: all pieces of
    `scipy.ndimage.label` for all values at once, from the few rows instead of the many voxels.
    """
    walled = np.pad(structures, ((0, 0), (0, 1), (0, 1)))  # neighbouring rows never touch around an end
    _, lines, line = walled.shape
    flat = walled.reshape(-1)
    first = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = np.append(0, first) if flat[0] else first
    stop = np.append(first[1:], flat.size)
    shown = flat[first] > 0
    first, stop, value = first[shown], stop[shown], flat[first[shown]]
    pairs = []
    for step in (line, (lines - 1) * line, lines * line, (lines + 1) * line):  # to the rows that follow and touch
        low, high = np.searchsorted(stop, first + step, "left"), np.searchsorted(first, stop + step, "right")
        count = high - low
        one = np.repeat(np.arange(len(first)), count)
        other = np.arange(len(one)) + np.repeat(low - (np.cumsum(count) - count), count)
        same = value[one] == value[other]
        pairs.append((one[same], other[same]))
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(first), len(first)))
    place = np.stack(np.unravel_index(first, walled.shape))
    return place, stop - first, connected_components(graph, directed=False)[1]
