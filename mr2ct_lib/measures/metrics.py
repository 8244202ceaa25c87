"""How far an image is from the truth, and how much information two images share.

Every measure takes NumPy arrays of one shape and, where it makes sense, a mask of that shape. It returns a float in
the unit of the input: HU for HU, grey levels for images on [0, 255] (Hiasa et al.), SD for z-scored images (Wang
et al.).

Two traps are closed on purpose. PSNR and SSIM depend on the data range, so it has no default: 255 for grey levels, 500
for a CT window of [-150, 350] HU; see `papers.implied_range` for z-scored images. And an empty mask is an error, it
never means "everywhere".
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

from mr2ct_lib.files import InputError

Limits = tuple[float, float]
SSIM_WINDOW = 7  # voxels
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # from fine to coarse (Wang et al. 2003)


def mae(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the mean absolute error, in the unit of the images.

    >>> mae(np.array([1.0, 2.0, 9.0]), np.array([2.0, 2.0, 4.0]))
    2.0
    """
    prediction, truth = _pair(prediction, truth, mask)
    return float(np.abs(prediction - truth).mean())


def mse(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the mean squared error, in the squared unit of the images.

    >>> mse(np.array([1.0, 3.0]), np.array([2.0, 0.0]))
    5.0
    """
    prediction, truth = _pair(prediction, truth, mask)
    return float(((prediction - truth) ** 2).mean())


def psnr(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, data_range: float) -> float:
    """Return the peak signal-to-noise ratio in dB: 20 log10(data_range / sqrt(MSE)) (Hiasa et al., with 255).

    Infinite for equal images. Scaling images and data range together leaves it unchanged.

    >>> round(psnr(np.full((4, 4), 25.5), np.zeros((4, 4)), data_range=255), 6)
    20.0
    """
    data_range = _range(data_range)
    error = mse(prediction, truth, mask)
    return float(np.inf) if error == 0 else float(20 * np.log10(data_range / np.sqrt(error)))


def ssim(
    prediction: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    data_range: float,
) -> float:
    """Return the windowed structural similarity (Wang, Bovik et al. 2004, by scikit-image); 1 for equal images.

    The window of SSIM_WINDOW voxels runs over all axes of the arrays: 3D for a volume, 2D for a slice (for a stack see
    `slicewise`). The similarity of each voxel comes from the whole images, since a window needs neighbours; the mean
    runs over the mask.
    Voxels whose window reaches over the image's border are left out, with a mask and without, as scikit-image and the
    SynthRAD challenge do. So a mask of ones changes nothing.

    Raises InputError for images smaller than the window and for a mask that lies in that border only.
    """
    data_range = _range(data_range)
    prediction, truth = _pair(prediction, truth, None)
    inside = np.ones(truth.shape, dtype=bool) if mask is None else _mask(mask, truth.shape)
    similarity, inside = (_inner(x) for x in (_similarity(prediction, truth, data_range), inside))
    if not inside.any():
        raise InputError("mask: lies at the image's border only, where no window fits; expected voxels further inside")
    return float(similarity[inside].mean())


def ssim_whole(
    prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, data_range: float
) -> float:
    """Return the structural similarity from one mean, variance and covariance of the whole volume (no window).

    (2 m_p m_t + c1) (2 cov + c2) / ((m_p^2 + m_t^2 + c1) (v_p + v_t + c2)) with c1 = (0.01 range)^2 and
    c2 = (0.03 range)^2. DicycleGAN's paper (Wang et al. 2018) defines its SSIM by these moments; the constants are
    those of Wang, Bovik et al. 2004. It is `ssim` with one window as large as the image.

    >>> ssim_whole(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]), data_range=1)
    1.0
    """
    data_range = _range(data_range)
    prediction, truth = _pair(prediction, truth, mask)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    means = prediction.mean(), truth.mean()
    covariance = ((prediction - means[0]) * (truth - means[1])).mean()
    luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    return float(luminance * (2 * covariance + c2) / (prediction.var() + truth.var() + c2))


def ms_ssim(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None, *, data_range: float) -> float:
    """Return the masked multi-scale SSIM of two volumes, as the SynthRAD2025 challenge defines it; 1 for equal images.

    At each of five scales: the SSIM of each voxel (window 7), set to 0 where negative, to the power of the scale's
    weight; its mean inside the mask. The result is the product of the five means. The next scale halves the images by
    means of 2 x 2 x 2 voxels, and the mask by taking every other voxel. Volumes shorter than 97 voxels along an axis
    are extended by their border values. The challenge shifts HU so that the range starts at 0, and sets both images to
    the lowest value outside the mask: `evaluation.synthrad` does both.

    prediction, truth: (I, J, K), values of at least 0. Raises InputError for other shapes.
    """
    data_range = _range(data_range)
    prediction, truth = _pair(prediction, truth, None)
    if truth.ndim != 3:
        raise InputError(f"truth: shape {truth.shape}; expected a volume (I, J, K). Use ssim for slices")
    inside = np.ones(truth.shape, dtype=bool) if mask is None else _mask(mask, truth.shape)
    missing = [max(97 - size, 0) for size in truth.shape]  # 97 voxels leave the window of 7 room at the fifth scale
    border = [(count // 2, count - count // 2) for count in missing]
    prediction, truth, inside = (np.pad(image, border, mode="edge") for image in (prediction, truth, inside))
    result = 1.0
    for weight in MS_SSIM_WEIGHTS:
        counted = _inner(inside)
        if not counted.any():
            raise InputError("mask: has no voxel left at a coarse scale; expected a larger region")
        similarity = _inner(_similarity(prediction, truth, data_range))
        result *= (np.clip(similarity, 0, None) ** weight)[counted].mean()
        prediction, truth = (uniform_filter(image, 2, mode="constant")[::2, ::2, ::2] for image in (prediction, truth))
        inside = inside[::2, ::2, ::2]
    return float(result)


def mutual_information(
    first: np.ndarray,
    second: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    bins: int = 64,
    limits: tuple[Limits, Limits] | None = None,
) -> float:
    """Return the mutual information I = H(first) + H(second) - H(first, second) in nats, from bins x bins.

    limits: (low, high) of each image, values beyond them counted at the limit; by default each image's own minimum and
    maximum. Hiasa et al. report the mean over slices: `slicewise(mutual_information, ...).mean()`. The value grows with
    the number of bins, so compare only values of one setting. Two images that share one of two halves share log 2:

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
    """Return the normalised mutual information in one of the two conventions in use.

    "unit":        2 I / (H(first) + H(second)), in [0, 1]: 0 independent, 1 each a function of the other (DicycleGAN).
    "studholme":   (H(first) + H(second)) / H(first, second), in [1, 2]: 1 independent, 2 each a function of the other
                   (Studholme et al. 1999; scikit-image). unit = 2 (studholme - 1) / studholme.

    Two constant images share no information: 0 and 1.

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


def slicewise(
    metric: Callable[..., float],
    prediction: np.ndarray,
    truth: np.ndarray,
    mask: np.ndarray | None = None,
    **settings: object,
) -> np.ndarray:
    """Apply a metric to each slice of two stacks (N, H, W).

    Returns (N,), NaN for a slice without a voxel in the mask. settings: further arguments of the metric.

    >>> slicewise(mae, np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1)))
    array([1., 3.])
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise InputError(
            f"prediction: shape {prediction.shape} against {truth.shape}; expected two stacks (N, H, W) of one shape"
        )
    if mask is None:
        return np.array([metric(p, t, **settings) for p, t in zip(prediction, truth, strict=True)])
    mask = _mask(mask, truth.shape)
    rows = zip(prediction, truth, mask, strict=True)
    return np.array([metric(p, t, m, **settings) if m.any() else np.nan for p, t, m in rows])


def _pair(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return both images as float64, cut to the mask; InputError for images that cannot be compared."""
    prediction, truth = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if prediction.shape != truth.shape:
        raise InputError(
            f"prediction: shape {prediction.shape}; expected the truth's {truth.shape}. Reslice one onto the other"
        )
    if prediction.size == 0:
        raise InputError("prediction: no voxels; expected at least one. Check the slices that were chosen")
    if mask is not None:
        mask = _mask(mask, truth.shape)
        prediction, truth = prediction[mask], truth[mask]
    for name, image in (("prediction", prediction), ("truth", truth)):
        if not np.isfinite(image).all():
            count = int((~np.isfinite(image)).sum())
            raise InputError(
                f"{name}: {count} voxels are NaN or infinite; expected numbers. Mask them out or repair the image"
            )
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
        raise InputError(
            f"data_range: {data_range}; expected a positive number, such as 255 for grey levels or 500 for a CT window"
        )
    return float(data_range)


def _inner(image: np.ndarray) -> np.ndarray:
    """Return the part of the image in which a window does not reach over the border."""
    return image[tuple(slice(SSIM_WINDOW // 2, size - SSIM_WINDOW // 2) for size in image.shape)]


def _similarity(prediction: np.ndarray, truth: np.ndarray, data_range: float) -> np.ndarray:
    """Return the windowed SSIM around each voxel; InputError for images smaller than the window."""
    if min(truth.shape) < SSIM_WINDOW:
        raise InputError(f"truth: shape {truth.shape}; expected at least {SSIM_WINDOW} per axis. Use slicewise")
    return structural_similarity(truth, prediction, data_range=data_range, win_size=SSIM_WINDOW, full=True)[1]


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
    return tuple(float(-np.sum(p[p > 0] * np.log(p[p > 0]))) + 0.0 for p in (joint.sum(1), joint.sum(0), joint))
