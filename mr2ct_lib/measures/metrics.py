"""How far an image is from the truth, how much two images share, and how far one is displaced against the other.

Every measure takes NumPy arrays of one shape and, where it makes sense, a mask of that shape; it returns a float. The
unit is that of the input: HU in, HU out; grey levels of [0, 255] in (paper of Hiasa et al.), grey levels out; images
divided by their standard deviation in (paper of Wang et al.), SD out.

Two traps are closed on purpose. PSNR and SSIM depend on the data range, so it has no default: 255 for grey levels, 500
for a CT window [-150, 350] HU; see `papers.implied_range` for z-scored images. And a mask never silently means "all".
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage import metrics as skimage_metrics

from mr2ct_lib.files import InputError


def _pair(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both images as float64, cut to the mask; InputError for what cannot be compared."""
    prediction, truth = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if prediction.shape != truth.shape:
        raise InputError(f"prediction: shape {prediction.shape}; expected the truth's {truth.shape}. Reslice one onto the other")
    if prediction.size == 0:
        raise InputError("prediction: no voxels; expected at least one. Check the slices that were chosen")
    if mask is not None:
        mask = _mask(mask, truth.shape)
        prediction, truth = prediction[mask], truth[mask]
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not np.isfinite(image).all():
            count = int((~np.isfinite(image)).sum())
            raise InputError(f"{name}: {count} voxels are NaN or infinite; expected numbers. Mask them out or repair the image")
    return prediction, truth


def _mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask as booleans; InputError when its shape differs or it is empty."""
    mask = np.asarray(mask).astype(bool)
    if mask.shape != shape:
        raise InputError(f"mask: shape {mask.shape}; expected the images' {shape}. Reslice it onto them")
    if not mask.any():
        raise InputError("mask: no voxel inside; expected at least one. Check threshold and position of the mask")
    return mask


def _range(data_range: float) -> float:
    """Return the data range; InputError unless it is positive."""
    if not (np.isfinite(data_range) and data_range > 0):
        raise InputError(f"data_range: {data_range}; expected a positive number, such as 255 for grey levels or 500 for a CT window")
    return float(data_range)


def mae(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean absolute error, in the unit of the images.

    >>> mae(np.array([1.0, 2.0, 9.0]), np.array([2.0, 2.0, 4.0]))
    2.0
    """
    prediction, truth = _pair(prediction, truth, mask)
    return float(np.abs(prediction - truth).mean())


def mse(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean squared error, in the squared unit of the images.

    >>> mse(np.array([1.0, 3.0]), np.array([2.0, 0.0]))
    5.0
    """
    prediction, truth = _pair(prediction, truth, mask)
    return float(((prediction - truth) ** 2).mean())


def psnr(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB: 20 log10(data_range / sqrt(MSE)) (Hiasa et al., section 3.2, with 255).

    Infinite for equal images. Scaling images and data range together leaves it unchanged.

    >>> round(psnr(np.full((4, 4), 25.5), np.zeros((4, 4)), data_range=255), 6)
    20.0
    """
    data_range = _range(data_range)
    error = mse(prediction, truth, mask)
    return float(np.inf) if error == 0 else float(20 * np.log10(data_range / np.sqrt(error)))


def ssim(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, data_range: float, window: int = 7) -> float:
    """Structural similarity (Wang et al. 2004, scikit-image); 1 for equal images.

    The window runs over all axes of the arrays: 3D for a volume, 2D for a slice (a stack: `slicewise`).
    With a mask: the mean of the SSIM map inside it; the map comes from the whole images, since a window needs neighbours.
    """
    data_range = _range(data_range)
    prediction, truth = _pair(prediction, truth, None)
    inside = None if mask is None else _mask(mask, truth.shape)
    if min(truth.shape) < window:
        raise InputError(f"truth: shape {truth.shape}; expected at least {window} an axis. Use slicewise or a smaller window")
    value, similarity = skimage_metrics.structural_similarity(truth, prediction, data_range=data_range, win_size=window, full=True)
    return float(value if inside is None else similarity[inside].mean())


# --- information -----------------------------------------------------------------------------------------------------

Limits = tuple[float, float]


def _entropies(
    first: np.ndarray, second: np.ndarray, mask: np.ndarray | None, bins: int, limits: tuple[Limits, Limits] | None
) -> tuple[float, float, float]:
    """Return H(first), H(second), H(first, second) in nats; values beyond the limits count at the limit."""
    first, second = (image.ravel() for image in _pair(first, second, mask))
    if bins < 2:
        raise InputError(f"bins: {bins}; expected at least 2")
    if limits is not None:
        for low, high in limits:
            if not low < high:
                raise InputError(f"limits: ({low}, {high}); expected the lower value first, then a higher one")
        first, second = np.clip(first, *limits[0]), np.clip(second, *limits[1])
    joint = np.histogram2d(first, second, bins=bins, range=limits)[0] / first.size
    return tuple(float(-np.sum(p[p > 0] * np.log(p[p > 0]))) + 0.0 for p in (joint.sum(axis=1), joint.sum(axis=0), joint))


def mutual_information(
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    bins: int = 64,
    limits: tuple[Limits, Limits] | None = None,
) -> float:
    """Mutual information I = H(first) + H(second) - H(first, second), in nats, from a joint histogram of bins x bins.

    `limits`: (low, high) of each image, wider values counted at the limit; without it its own minimum, maximum.
    Hiasa et al. report the mean over slices: `slicewise(mutual_information, ...).mean()`. It grows with the bins: compare
    only values of one setting. Two independent halves that repeat share log 2:

    >>> round(mutual_information(np.array([0, 0, 1, 1]), np.array([5, 5, 3, 3]), bins=2), 6)
    0.693147
    """
    one, other, joint = _entropies(first, second, mask, bins, limits)
    return max(one + other - joint, 0.0)


def normalised_mutual_information(
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    bins: int = 64,
    limits: tuple[Limits, Limits] | None = None,
    convention: str = "unit",
) -> float:
    """Normalised mutual information by one of the two conventions in use, named so that they cannot be mixed up.

    "unit":        2 I / (H(first) + H(second)), in [0, 1]: 0 independent, 1 each a function of the other (DicycleGAN).
    "studholme":   (H(first) + H(second)) / H(first, second), in [1, 2]: 1 independent, 2 each a function of the other
                   (Studholme et al. 1999; scikit-image). The two are tied by unit = 2 (studholme - 1) / studholme.

    A pair of constant images shares no information: 0 and 1.

    >>> checker, half = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    >>> normalised_mutual_information(checker, half, bins=2)
    0.0
    >>> normalised_mutual_information(checker, 1 - checker, bins=2)
    1.0
    """
    one, other, joint = _entropies(first, second, mask, bins, limits)
    if convention == "unit":
        return 0.0 if one + other == 0 else float(np.clip(2 * (one + other - joint) / (one + other), 0, 1))
    if convention == "studholme":
        return 1.0 if joint == 0 else float(np.clip((one + other) / joint, 1, 2))
    raise InputError(f'convention: "{convention}"; expected "unit" or "studholme"')


# --- labels ----------------------------------------------------------------------------------------------------------


def dice(prediction: np.ndarray, truth: np.ndarray, names: Mapping[int, str]) -> dict[str, float]:
    """Dice overlap 2 |P and T| / (|P| + |T|) of each named label but background (0); NaN where both lack it.

    >>> dice(np.array([0, 1, 1, 2]), np.array([1, 1, 1, 0]), {1: "femur", 2: "sacrum", 3: "psoas_major"})
    {'femur': 0.8, 'sacrum': 0.0, 'psoas_major': nan}
    """
    prediction, truth = _labels(prediction, truth)
    result = {}
    for value, name in names.items():
        if int(value) == 0:
            continue
        one, other = prediction == int(value), truth == int(value)
        total = int(one.sum()) + int(other.sum())
        result[name] = 2 * int((one & other).sum()) / total if total else float("nan")
    return result


def dice_table(prediction: np.ndarray, truth: np.ndarray, names: Mapping[int, str], patients: Iterable[str]) -> pd.DataFrame:
    """Dice of every structure (columns) for every patient (rows), each over the patient's whole volume.

    prediction, truth: labels (N, H, W); patients: the patient of each of the N slices, in any order.
    """
    prediction, truth = _labels(prediction, truth)
    patients = np.asarray(list(patients))
    if len(patients) != len(truth):
        raise InputError(f"patients: {len(patients)} names; expected one for each of the {len(truth)} slices")
    rows = {p: dice(prediction[patients == p], truth[patients == p], names) for p in dict.fromkeys(patients.tolist())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="patient", columns="structure")


def hausdorff_95(prediction: np.ndarray, truth: np.ndarray, names: Mapping[int, str], spacing: tuple[float, ...]) -> dict[str, float]:
    """95th percentile of the surface distances in mm of each named label, the larger of both directions (MONAI).

    NaN where either image lacks the label.

    prediction, truth: labels (H, W) or (I, J, K); spacing: mm along each axis.
    """
    import torch
    from monai.metrics import compute_hausdorff_distance

    prediction, truth = _labels(prediction, truth)
    if len(spacing) != truth.ndim or not all(step > 0 for step in spacing):
        raise InputError(f"spacing: {tuple(spacing)}; expected {truth.ndim} positive distances in mm")
    result = {}
    for value, name in names.items():
        if int(value) == 0:
            continue
        one, other = prediction == int(value), truth == int(value)
        if not (one.any() and other.any()):
            result[name] = float("nan")
            continue
        first, second = (torch.from_numpy(image[None, None].astype(np.float32)) for image in (one, other))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of its own arguments
            distance = compute_hausdorff_distance(
                first, second, include_background=True, percentile=95, spacing=[float(step) for step in spacing]
            )
        result[name] = float(distance)
    return result


def _labels(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both label images; InputError when the shapes differ or the values are no integers."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise InputError(f"prediction: shape {prediction.shape}; expected the truth's {truth.shape}. Reslice one onto the other")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.dtype.kind not in "iub":
            raise InputError(f"{name}: values of type {labels.dtype}; expected integer labels. Round them if they are labels")
    return prediction, truth


# --- slices ----------------------------------------------------------------------------------------------------------


def slicewise(
    metric: Callable[..., float],
    prediction: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray | None = None,
    **settings: object,
) -> np.ndarray:
    """Apply a metric to each slice of two stacks (N, H, W); returns (N,), NaN for a slice without a voxel in the mask.

    >>> slicewise(mae, np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1)))
    array([1., 3.])
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise InputError(f"prediction: shape {prediction.shape} against {truth.shape}; expected two stacks (N, H, W) of one shape")
    if mask is None:
        return np.array([metric(p, t, **settings) for p, t in zip(prediction, truth, strict=True)])
    mask = _mask(mask, truth.shape)
    rows = zip(prediction, truth, mask, strict=True)
    return np.array([metric(p, t, m, **settings) if m.any() else np.nan for p, t, m in rows])


# --- baselines -------------------------------------------------------------------------------------------------------


def histogram_matching(source: np.ndarray, target_training: np.ndarray) -> np.ndarray:
    """First trivial baseline: the source with the grey-value distribution of the training targets, order kept.

    source and target_training may have any shapes; returns the source's shape, in the target's unit, float32. It needs
    no network, so a translator has to beat it. Equal values take the middle of their ranks, so that a black background
    becomes background also where it is a little larger than in the training images.

    >>> histogram_matching(np.array([3, 1, 2]), np.array([10.0, 30.0, 20.0]))
    array([30., 10., 20.], dtype=float32)
    """
    source, target_training = np.asarray(source, dtype=np.float64), np.asarray(target_training, dtype=np.float64)
    if not source.size or not target_training.size:
        raise InputError("histogram_matching: no voxels in source or target_training; expected at least one in each")

    _, place, counts = np.unique(source.ravel(), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - counts / 2) / source.size  # of each distinct value, the middle one
    ordered = np.sort(target_training, axis=None)
    chosen = np.ceil(rank * ordered.size).astype(int) - 1  # np.quantile does the same, but takes minutes for so many ranks
    return ordered[chosen][place].reshape(source.shape).astype(np.float32)


def mean_target(target_training: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Second trivial baseline: the mean training target, whatever the source shows.

    target_training (M, ...): the mean runs over the first axis, so patients (P, N, H, W) give the mean volume and
    slices (M, H, W) the mean slice; the result is repeated to `shape`, float32.
    """
    target_training = np.asarray(target_training)
    if target_training.ndim < 2 or not len(target_training):
        raise InputError(f"target_training: shape {target_training.shape}; expected (M, ...) images with M at least 1")
    mean = target_training.mean(axis=0, dtype=np.float64).astype(np.float32)
    try:
        return np.broadcast_to(mean, shape).copy()
    except ValueError as error:
        raise InputError(f"shape: {shape}; expected one that ends in the training images' {mean.shape}") from error


# --- displacement ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Displacement:
    """Local shifts of one image against another, for M blocks that hold enough edges."""

    centres: np.ndarray  # (M, 2) row and column of the block's centre, pixels
    shifts: np.ndarray  # (M, 2) mm along rows and columns: where the source's edges lie in the synthesis
    agreement: np.ndarray  # (M,) normalised correlation of the edges at that shift, in [0, 1]

    @property
    def magnitude(self) -> float:
        """Median length of the shifts in mm. Between two contrasts it does not fall below about a third of a pixel."""
        return float(np.median(np.hypot(*self.shifts.T)))

    @property
    def mean_shift(self) -> tuple[float, float]:
        """Median shift in mm along rows and columns: what all blocks share."""
        rows, columns = np.median(self.shifts, axis=0)
        return float(rows), float(columns)


def _edge_tensor(image: np.ndarray) -> np.ndarray:
    """(H, W) -> (3, H, W): outer product of the normalised gradient. Equal for both polarities of an edge."""
    rows, columns = np.gradient(gaussian_filter(image, 0.7))
    size = rows**2 + columns**2
    share = 1 / (size + max(float(size.mean()), 1e-12))  # edges weaker than the mean gradient fade out
    return np.stack([rows * rows, np.sqrt(2) * rows * columns, columns * columns]) * share


def displacement(
    synthesis: np.ndarray, source: np.ndarray, spacing: tuple[float, float], *, block: int = 17, reach: int = 6
) -> Displacement:
    """How far a synthesis has moved against its source, block by block, whatever their contrasts.

    Inside each block (block x block pixels, half overlapping) the normalised gradients of the two slices (H, W) are
    correlated over all shifts up to `reach` pixels, in the form of squared inner products (normalised gradient fields,
    Haber and Modersitzki 2006), so edges of either polarity count. The peak, refined by a parabola, is the shift.
    Blocks with few edges or with their peak at the border of the search are left out. spacing: mm a row, mm a column.

    Raises InputError when no block holds enough edges.
    """
    synthesis, source = _pair(synthesis, source, None)
    if source.ndim != 2 or min(source.shape) < block + 2 * reach:
        raise InputError(f"source: shape {source.shape}; expected (H, W) of at least {block + 2 * reach} pixels each")
    moved, fixed = _edge_tensor(synthesis), _edge_tensor(source)
    padded = np.pad(moved, ((0, 0), (reach, reach), (reach, reach)))
    height, width = source.shape
    half = block // 2
    step = max(half, 1)
    rows = np.arange(half + reach, height - half - reach, step)
    columns = np.arange(half + reach, width - half - reach, step)
    pick = np.ix_(rows, columns)

    def local(image: np.ndarray) -> np.ndarray:
        return uniform_filter(image, block)[pick]

    own = np.maximum(local((fixed**2).sum(axis=0)), 0)  # the running sums of the filter may fall below 0 by rounding
    offsets = range(2 * reach + 1)
    score = np.empty((len(offsets), len(offsets), len(rows), len(columns)))
    for down in offsets:
        for right in offsets:
            window = padded[:, down : down + height, right : right + width]
            energy = np.sqrt(own * np.maximum(local((window**2).sum(axis=0)), 0))
            score[down, right] = local((fixed * window).sum(axis=0)) / np.maximum(energy, 1e-9)

    enough = own > 0.25 * own.max()
    centres, shifts, agreement = [], [], []
    for i, j in np.argwhere(enough):
        down, right = np.unravel_index(np.argmax(score[:, :, i, j]), score.shape[:2])
        if not (0 < down < 2 * reach and 0 < right < 2 * reach):
            continue
        fine_down = _parabola(score[down - 1 : down + 2, right, i, j])
        fine_right = _parabola(score[down, right - 1 : right + 2, i, j])
        centres.append((rows[i], columns[j]))
        shifts.append(((down - reach + fine_down) * spacing[0], (right - reach + fine_right) * spacing[1]))
        agreement.append(score[down, right, i, j])
    if not shifts or own.max() <= 0:
        raise InputError("source: no block with edges that the synthesis shows too; expected anatomy in both slices")
    return Displacement(np.array(centres), np.array(shifts), np.array(agreement))


def _parabola(three: np.ndarray) -> float:
    """Place of the peak of a parabola through three values around their highest, in [-0.5, 0.5]."""
    left, middle, right = three
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))
