"""How far a synthesis has moved against its source, whatever the contrasts of the two.

The method: edges of both slices, correlated block by block over all shifts within reach.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from mr2ct_lib.files import InputError


@dataclass(frozen=True)
class Displacement:
    """Local shifts of one image against another, for M blocks that hold enough edges."""

    centres: np.ndarray  # (M, 2) row and column of each block's centre, pixels
    shifts: np.ndarray  # (M, 2) mm along rows and columns, signed: where the source's edges lie in the synthesis
    agreement: np.ndarray  # (M,) normalised correlation of the edges at that shift, in [0, 1]

    @property
    def magnitude(self) -> float:
        """Median length of the shifts in mm. Between two contrasts it stays above about a third of a pixel."""
        return float(np.median(np.hypot(*self.shifts.T)))

    @property
    def mean_shift(self) -> tuple[float, float]:
        """Median signed shift in mm along rows and columns: what all blocks share."""
        rows, columns = np.median(self.shifts, axis=0)
        return float(rows), float(columns)


def displacement(
    synthesis: np.ndarray, source: np.ndarray, spacing: tuple[float, float], *, block: int = 17, reach: int = 6
) -> Displacement:
    """Measure how far a synthesis has moved against its source, block by block.

    Inside each block the normalised gradients of the two slices are correlated over all shifts up to `reach`, as
    squared inner products (normalised gradient fields, Haber and Modersitzki 2006), so an edge counts whatever its
    polarity. The peak, refined by a parabola, is the shift. Blocks with few edges, or with their peak at the border of
    the search, are left out.

    Args:
        synthesis, source: slices (H, W) of at least block + 2 reach pixels each.
        spacing: mm per row, mm per column.
        block: side of the square blocks in pixels, half overlapping.
        reach: largest shift in pixels.

    Raises InputError for smaller or unlike slices and when no block holds enough edges.
    """
    synthesis, source = np.asarray(synthesis, dtype=np.float64), np.asarray(source, dtype=np.float64)
    if source.ndim != 2 or min(source.shape) < block + 2 * reach or synthesis.shape != source.shape:
        raise InputError(
            f"source: shape {source.shape}, synthesis: {synthesis.shape}; expected two slices (H, W) of one shape, "
            f"at least {block + 2 * reach} pixels each"
        )
    if not (np.isfinite(synthesis).all() and np.isfinite(source).all()):
        raise InputError("synthesis or source: NaN or infinite pixels; expected numbers. Repair the image")
    half = block // 2
    rows, columns = (np.arange(half + reach, size - (block - 1 - half) - reach, max(half, 1)) for size in source.shape)
    score, edges = _scores(_edge_tensor(synthesis), _edge_tensor(source), rows, columns, block, reach)
    centres, shifts, agreement = [], [], []
    for i, j in np.argwhere(edges > 0.25 * edges.max()):
        down, right = np.unravel_index(np.argmax(score[:, :, i, j]), score.shape[:2])
        if not (0 < down < 2 * reach and 0 < right < 2 * reach):
            continue
        fine_down = _parabola(score[down - 1 : down + 2, right, i, j])
        fine_right = _parabola(score[down, right - 1 : right + 2, i, j])
        centres.append((rows[i], columns[j]))
        shifts.append(((down - reach + fine_down) * spacing[0], (right - reach + fine_right) * spacing[1]))
        agreement.append(score[down, right, i, j])
    if not shifts:
        raise InputError("source: no block with edges that the synthesis shows too; expected anatomy in both slices")
    return Displacement(np.array(centres), np.array(shifts), np.array(agreement))


def _edge_tensor(image: np.ndarray) -> np.ndarray:
    """(H, W) -> (3, H, W): outer product of the normalised gradient, equal for both polarities of an edge."""
    rows, columns = np.gradient(gaussian_filter(image, 0.7))
    size = rows**2 + columns**2
    share = 1 / (size + max(float(size.mean()), 1e-12))  # edges weaker than the mean gradient fade out
    return np.stack([rows * rows, np.sqrt(2) * rows * columns, columns * columns]) * share


def _scores(
    moved: np.ndarray, fixed: np.ndarray, rows: np.ndarray, columns: np.ndarray, block: int, reach: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation (2 reach + 1, 2 reach + 1, rows, columns) of each block and shift, and the block's edges.

    moved, fixed: edge tensors (3, H, W); rows, columns: centres of the blocks.
    """
    pick = np.ix_(rows, columns)
    height, width = fixed.shape[1:]
    padded = np.pad(moved, ((0, 0), (reach, reach), (reach, reach)))

    def block_mean(image: np.ndarray) -> np.ndarray:
        return uniform_filter(image, block)[pick]

    edges = np.maximum(block_mean((fixed**2).sum(axis=0)), 0)  # running sums may fall below 0 by rounding
    shifts = range(2 * reach + 1)
    score = np.empty((len(shifts), len(shifts), len(rows), len(columns)))
    for down in shifts:
        for right in shifts:
            window = padded[:, down : down + height, right : right + width]
            energy = np.sqrt(edges * np.maximum(block_mean((window**2).sum(axis=0)), 0))
            score[down, right] = block_mean((fixed * window).sum(axis=0)) / np.maximum(energy, 1e-9)
    return score, edges


def _parabola(three: np.ndarray) -> float:
    """Place of the peak of a parabola through three values around their highest, in [-0.5, 0.5]."""
    left, middle, right = three
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))
