"""What a translator must beat: three translations that need no network."""

import numpy as np

from mr2ct_lib.files import InputError


def histogram_matching(source: np.ndarray, target_training: np.ndarray) -> np.ndarray:
    """Return the source with the grey-value distribution of the training targets, in unchanged order.

    source, target_training: any shapes. Returns the source's shape, in the target's unit, float32. Equal values take
    the middle of their ranks, so a black background stays background even where it is a little larger than in the
    training images. Raises InputError for empty images and NaN.

    >>> histogram_matching(np.array([3, 1, 2]), np.array([10.0, 30.0, 20.0]))
    array([30., 10., 20.], dtype=float32)
    """
    source, target_training = (np.asarray(image, dtype=np.float64) for image in (source, target_training))
    if not source.size or not target_training.size:
        raise InputError("histogram_matching: no voxels in source or target_training; expected at least one in each")
    _finite(source=source, target_training=target_training)
    _, place, counts = np.unique(source.ravel(), return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - counts / 2) / source.size  # the middle rank of each distinct value
    ordered = np.sort(target_training, axis=None)
    chosen = np.ceil(rank * ordered.size).astype(int) - 1  # np.quantile gives the same, but takes minutes
    return ordered[chosen][place].reshape(source.shape).astype(np.float32)


def mean_target(target_training: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mean training target, whatever the source shows.

    target_training (M, ...): the mean runs over the first axis, so patients (P, N, H, W) give the mean volume and
    slices (M, H, W) the mean slice. The result is repeated to `shape`, float32. Raises InputError when it cannot be.
    """
    target_training = np.asarray(target_training)
    if target_training.ndim < 2 or not len(target_training):
        raise InputError(f"target_training: shape {target_training.shape}; expected (M, ...) images with M at least 1")
    mean = target_training.mean(axis=0, dtype=np.float64).astype(np.float32)
    try:
        return np.broadcast_to(mean, shape).copy()
    except ValueError as error:
        raise InputError(f"shape: {shape}; expected one that ends in the training images' {mean.shape}") from error


def fitted_curve(
    source: np.ndarray, target: np.ndarray, apply_to: np.ndarray, mask: np.ndarray | None = None, bins: int = 256
) -> np.ndarray:
    """Return `apply_to` through the curve from source values to target values that true pairs show.

    The curve is the median target value of each of `bins` equally wide source bins: of all functions of one pixel's
    value it has the smallest mean absolute error. Fitted on the test pairs themselves, it is the hardest baseline that
    looks at single pixels. Bins without a pixel take the value between their neighbours.

    source, target: corresponding images of one shape; mask: where they correspond, bool. apply_to: any shape, in the
    source's unit. Returns its shape, in the target's unit, float32. Raises InputError for shapes that differ and NaN.

    >>> fitted_curve(np.array([0, 0, 0, 1]), np.array([5, 5, 9, 2]), np.array([1, 0]), bins=2)
    array([2., 5.], dtype=float32)
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    for name, other in (("target", target), ("mask", mask)):
        if other is not None and np.shape(other) != source.shape:
            raise InputError(f"{name}: shape {np.shape(other)}; expected the source's {source.shape}")
    _finite(source=source, target=target, apply_to=apply_to)
    inside = np.ones(source.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if not inside.any():
        raise InputError("source: no voxel to fit a curve on; expected at least one inside the mask")
    low, high = source[inside].min(), source[inside].max()

    def bin_of(values: np.ndarray) -> np.ndarray:
        return np.clip((values - low) / max(high - low, 1e-12) * bins, 0, bins - 1).astype(int)

    place, values = bin_of(source[inside]), target[inside]
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], np.arange(bins + 1))
    filled = np.flatnonzero(np.diff(first))
    ordered = values[order]
    medians = [np.median(ordered[first[b] : first[b + 1]]) for b in filled]
    curve = np.interp(np.arange(bins), filled, medians)
    return curve[bin_of(np.asarray(apply_to, dtype=np.float64))].astype(np.float32)


def _finite(**images: np.ndarray) -> None:
    """InputError for NaN and infinite values."""
    for name, image in images.items():
        if not np.isfinite(image).all():
            raise InputError(f"{name}: NaN or infinite values; expected numbers. Repair the images")
