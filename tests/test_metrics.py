"""Laws, hand values, and independent implementations of every measure."""

import numpy as np
import pytest
import torch
from monai.metrics import DiceHelper
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from skimage import metrics as skimage_metrics

from mr2ct_lib.files import InputError
from mr2ct_lib.measures import baselines, label_metrics, metrics
from mr2ct_lib.measures.displacement import displacement


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A smooth image (24, 32) and a noisy copy of it."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.normal(size=(24, 32)), 2) * 100
    return truth + rng.normal(0, 3, truth.shape), truth


def test_identity_is_the_best_value(pair):
    _, image = pair
    assert metrics.mae(image, image) == metrics.mse(image, image) == 0
    assert metrics.psnr(image, image, data_range=255) == np.inf
    assert metrics.ssim(image, image, data_range=255) == pytest.approx(1)
    assert metrics.normalised_mutual_information(image, image) == pytest.approx(1)
    assert metrics.normalised_mutual_information(image, image, convention="studholme") == pytest.approx(2)


def test_psnr_by_hand():
    """Half the pixels are off by 51 of 255: MSE = 51^2 / 2, so 20 log10(5 sqrt 2) = 16.9897 dB."""
    prediction = np.array([[51.0, 0.0], [0.0, -51.0]])
    assert metrics.psnr(prediction, np.zeros((2, 2)), data_range=255) == pytest.approx(16.989700)


def test_psnr_and_ssim_agree_with_scikit_image(pair):
    expected = skimage_metrics.peak_signal_noise_ratio(pair[1], pair[0], data_range=50)
    assert metrics.psnr(*pair, data_range=50) == pytest.approx(expected)
    assert metrics.ssim(*pair, data_range=50) == pytest.approx(
        skimage_metrics.structural_similarity(pair[1], pair[0], data_range=50)
    )


def test_units_scale_as_they_should(pair):
    """Grey levels to HU: MAE scales, PSNR and SSIM do not when the range scales along."""
    hu = [image * 500 / 255 - 150 for image in pair]
    assert metrics.mae(*hu) == pytest.approx(metrics.mae(*pair) * 500 / 255)
    assert metrics.psnr(*hu, data_range=500) == pytest.approx(metrics.psnr(*pair, data_range=255))
    shifted = [image + 0.0 for image in pair]
    assert metrics.ssim(*[2 * image for image in shifted], data_range=510) == pytest.approx(
        metrics.ssim(*pair, data_range=255)
    )


def test_what_lies_outside_the_mask_does_not_count(pair):
    prediction, truth = pair
    mask = np.zeros(truth.shape, dtype=bool)
    mask[4:12, 5:20] = True
    spoiled = np.where(mask, prediction, 1e4)
    spoiled[~mask & (np.arange(32) > 25)] = np.nan
    for metric, settings in [
        (metrics.mae, {}),
        (metrics.mse, {}),
        (metrics.psnr, {"data_range": 255}),
        (metrics.mutual_information, {}),
        (metrics.normalised_mutual_information, {}),
    ]:
        assert metric(spoiled, truth, mask, **settings) == metric(prediction, truth, mask, **settings)
        assert metric(prediction, truth, mask, **settings) == pytest.approx(
            metric(prediction[4:12, 5:20], truth[4:12, 5:20], **settings)
        )


def test_masked_ssim_is_the_mean_of_the_map(pair):
    prediction, truth = pair
    mask = np.zeros(truth.shape, dtype=bool)
    mask[8:16, 8:16] = True
    whole = skimage_metrics.structural_similarity(truth, prediction, data_range=50, full=True)[1]
    assert metrics.ssim(prediction, truth, mask, data_range=50) == pytest.approx(whole[8:16, 8:16].mean())
    far = prediction.copy()
    far[:, 25:] = 999  # no window that is centred in the mask reaches there
    assert metrics.ssim(far, truth, mask, data_range=50) == pytest.approx(whole[8:16, 8:16].mean())


def test_a_mask_of_ones_changes_no_ssim_and_the_border_counts_in_neither(pair):
    prediction, truth = pair
    everywhere = np.ones(truth.shape, dtype=bool)
    assert metrics.ssim(prediction, truth, everywhere, data_range=50) == metrics.ssim(prediction, truth, data_range=50)
    border = everywhere.copy()
    border[3:-3, 3:-3] = False
    with pytest.raises(InputError, match="border only"):
        metrics.ssim(prediction, truth, border, data_range=50)


def test_ssim_of_the_whole_volume_by_hand():
    """Means 2 and 4, variances 1 and 4, covariance 2, range 10: c1 = 0.01, c2 = 0.09."""
    prediction, truth = np.array([1.0, 3.0]), np.array([2.0, 6.0])
    expected = (2 * 2 * 4 + 0.01) * (2 * 2 + 0.09) / ((4 + 16 + 0.01) * (1 + 4 + 0.09))
    assert metrics.ssim_whole(prediction, truth, data_range=10) == pytest.approx(expected)
    assert metrics.ssim_whole(truth, prediction, data_range=10) == pytest.approx(expected)


def test_ssim_of_the_whole_volume_is_one_window_of_scikit_image(pair):
    first, second = (image[:21, :21] for image in pair)
    window = skimage_metrics.structural_similarity(
        first, second, data_range=50, win_size=21, use_sample_covariance=False
    )
    assert metrics.ssim_whole(first, second, data_range=50) == pytest.approx(window)
    mask = np.zeros(first.shape, dtype=bool)
    mask[2:18, 3:15] = True
    inside = metrics.ssim_whole(first[2:18, 3:15], second[2:18, 3:15], data_range=50)
    assert metrics.ssim_whole(first, second, mask, data_range=50) == pytest.approx(inside)


def test_ms_ssim_of_a_constant_shift_is_the_luminance_of_each_scale():
    """Without structure only l = (2 m n + c1) / (m^2 + n^2 + c1) differs from 1; the five weights sum to 1."""
    truth = np.full((128, 128, 128), 100.0)
    c1 = (0.01 * 255) ** 2
    luminance = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    mask = np.zeros(truth.shape, dtype=bool)
    mask[64:80, 64:80, 64:80] = True  # whose windows stay clear of the border at the coarsest scale, too
    value = metrics.ms_ssim(truth + 20, truth, mask, data_range=255)
    assert value == pytest.approx(luminance ** sum(metrics.MS_SSIM_WEIGHTS), rel=1e-6)
    with pytest.raises(InputError, match="volume"):
        metrics.ms_ssim(truth[0], truth[0], data_range=255)


# --- information ---


def test_mutual_information_of_a_gaussian_pair():
    """I = -1/2 log(1 - r^2) for two normal variables of correlation r; the histogram's bias is about bins^2 / 2n."""
    rng = np.random.default_rng(1)
    first, noise = rng.normal(size=(2, 400, 1000))
    second = 0.8 * first + 0.6 * noise
    expected = -0.5 * np.log(1 - 0.8**2)
    assert metrics.mutual_information(first, second, bins=40) == pytest.approx(expected, abs=0.02)
    assert metrics.mutual_information(first, noise, bins=40) < 0.005


def test_information_ignores_any_one_to_one_exchange_of_grey_values(pair):
    image = np.round(pair[1] / 4)
    exchange = np.random.default_rng(2).permutation(200)
    other = exchange[(image - image.min()).astype(int)]
    assert metrics.normalised_mutual_information(image, other, bins=256) == pytest.approx(1)
    inverted = metrics.mutual_information(-pair[0], pair[1])
    assert inverted == pytest.approx(metrics.mutual_information(*pair), rel=1e-6)


def test_both_conventions_and_scikit_image(pair):
    ours = metrics.normalised_mutual_information(*pair, bins=20, convention="studholme")
    assert ours == pytest.approx(skimage_metrics.normalized_mutual_information(*pair, bins=20))
    unit = metrics.normalised_mutual_information(*pair, bins=20)
    assert unit == pytest.approx(2 * (ours - 1) / ours)
    assert 0 < unit < 1 < ours < 2


def test_information_is_symmetric(pair):
    first, second = pair
    assert metrics.mutual_information(first, second) == pytest.approx(metrics.mutual_information(second, first))


def test_values_beyond_the_limits_count_at_the_limit():
    image = np.array([-9.0, 0.0, 1.0, 99.0])
    clipped = np.clip(image, 0, 1)
    limits = ((0, 1), (0, 1))
    assert metrics.mutual_information(image, image, bins=4, limits=limits) == pytest.approx(np.log(2))
    assert metrics.mutual_information(clipped, image, bins=4, limits=limits) == pytest.approx(np.log(2))


def test_values_beyond_the_limits_count_at_the_limit_of_their_own_image():
    first, second = np.array([-9.0, 0, 1, 99]), np.array([5.0, 10, 30, 700])
    limits = ((0, 1), (10, 20))
    assert metrics.mutual_information(first, second, bins=4, limits=limits) == pytest.approx(np.log(2))
    one = metrics.mutual_information(np.array([0.0, 1]), np.array([0.0, 1]), bins=2, limits=((0, 4), (0, 4)))
    assert one == 0  # both values fall into the lower half of the limits


def test_blank_images_share_nothing():
    blank = np.zeros((8, 8))
    assert metrics.mutual_information(blank, blank) == 0
    assert metrics.normalised_mutual_information(blank, blank) == 0
    assert metrics.normalised_mutual_information(blank, blank, convention="studholme") == 1
    assert metrics.normalised_mutual_information(blank, np.arange(64.0).reshape(8, 8)) == 0


# --- labels ---

NAMES = {0: "background", 1: "pelvis", 2: "femur", 7: "sacrum", 9: "psoas_major"}


def discs(shift: int) -> np.ndarray:
    rows, columns = np.mgrid[:48, :64]
    labels = np.zeros((48, 64), dtype=np.uint8)
    for value, centre in ((1, (14, 16)), (2, (30, 30)), (7, (20, 48))):
        labels[(rows - centre[0]) ** 2 + (columns - centre[1] - shift) ** 2 <= 81] = value
    return labels


def test_dice_agrees_with_monai():
    prediction, truth = discs(3), discs(0)
    ours = label_metrics.dice(prediction, truth, NAMES)
    assert list(ours) == ["pelvis", "femur", "sacrum", "psoas_major"] and np.isnan(ours["psoas_major"])
    helper = DiceHelper(include_background=False, reduction="none", get_not_nans=False, num_classes=10)
    theirs = helper(*(torch.from_numpy(x[None, None].astype(np.int64)) for x in (prediction, truth)))[0]
    assert [ours["pelvis"], ours["femur"], ours["sacrum"]] == pytest.approx([float(theirs[v - 1]) for v in (1, 2, 7)])


def test_dice_table_takes_each_patient_as_one_volume():
    truth = np.stack([discs(0), discs(0), discs(0)])
    prediction = np.stack([discs(0), discs(3), np.zeros_like(discs(0))])
    table = label_metrics.dice_table(prediction, truth, NAMES, ["b", "a", "b"])
    assert table.index.tolist() == ["b", "a"]
    assert table.loc["b", "femur"] == pytest.approx(2 / 3)  # one slice right, one empty: 2n / (n + 2n)
    assert table.loc["a", "femur"] == label_metrics.dice(discs(3), discs(0), NAMES)["femur"]


def test_hausdorff_of_a_shift_and_by_distance_transform():
    spacing = (2.0, 1.5)
    prediction, truth = discs(4), discs(0)
    result = label_metrics.hausdorff_95(prediction, truth, NAMES, spacing)
    assert result["femur"] == pytest.approx(
        max(
            surface_distances(prediction == 2, truth == 2, spacing),
            surface_distances(truth == 2, prediction == 2, spacing),
        ),
        abs=0.1,
    )
    assert 3 < result["femur"] <= 6  # the shift is 4 columns of 1.5 mm
    assert np.isnan(result["psoas_major"])
    assert label_metrics.hausdorff_95(truth, truth, NAMES, spacing)["pelvis"] == 0


def surface_distances(one: np.ndarray, other: np.ndarray, spacing: tuple[float, float]) -> float:
    """95th percentile of the distances from the surface of one to that of the other."""
    surfaces = []
    for mask in (one, other):
        inner = mask.copy()
        for axis in (0, 1):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        surfaces.append(mask & ~inner)
    return float(np.percentile(distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]], 95))


# --- slices and baselines ---


def test_slicewise_is_the_metric_of_each_slice(pair):
    prediction, truth = (np.stack([image, 2 * image, image]) for image in pair)
    mask = np.ones(truth.shape, dtype=bool)
    mask[2] = False
    values = metrics.slicewise(metrics.psnr, prediction, truth, mask, data_range=255)
    assert values[0] == metrics.psnr(*pair, data_range=255) and np.isnan(values[2])
    information = metrics.slicewise(metrics.mutual_information, prediction, truth, bins=16)
    assert information == pytest.approx([metrics.mutual_information(*pair, bins=16)] * 3)


def test_histogram_matching_gives_the_targets_distribution_and_keeps_the_order():
    rng = np.random.default_rng(3)
    source, target = rng.normal(size=(4, 20, 30)), rng.gamma(2, 100, size=(7, 25, 25)) - 150
    matched = baselines.histogram_matching(source, target)
    assert matched.shape == source.shape and matched.dtype == np.float32
    levels = np.linspace(0.01, 0.99, 50)
    assert np.quantile(matched, levels) == pytest.approx(np.quantile(target, levels), abs=3)
    order = np.argsort(source.ravel())
    assert (np.diff(matched.ravel()[order]) >= 0).all()
    assert baselines.histogram_matching(source, source) == pytest.approx(source, abs=1e-5)


def test_histogram_matching_keeps_a_larger_background_black():
    """Ties at the upper end of their ranks would turn the whole background into tissue here."""
    training = np.concatenate([np.zeros(60), np.linspace(10, 20, 40)])
    source = np.concatenate([np.full(70, -3.0), np.linspace(1, 2, 30)])
    matched = baselines.histogram_matching(source, training)
    assert (matched[:70] == 0).all() and matched[70:].min() > 10 and matched[70:].max() < 20.1


def test_mean_target_minimises_the_squared_error_over_the_training_images():
    rng = np.random.default_rng(4)
    training = rng.normal(size=(5, 6, 8))
    mean = baselines.mean_target(training, training.shape)
    assert mean.shape == training.shape
    best = metrics.mse(mean, training)
    assert all(metrics.mse(mean + rng.normal(0, 0.1, (6, 8)), training) > best for _ in range(5))
    volumes = rng.normal(size=(3, 5, 6, 8))
    assert baselines.mean_target(volumes, (5, 6, 8)) == pytest.approx(volumes.mean(axis=0), abs=1e-6)


def test_no_curve_of_pixel_values_has_a_smaller_absolute_error_than_the_fitted_one():
    rng = np.random.default_rng(6)
    source = rng.integers(0, 8, (5, 20, 20)).astype(float)
    target = np.sin(source) * 50 + rng.exponential(10, source.shape)
    fitted = baselines.fitted_curve(source, target, source, bins=8)
    medians = [np.median(target[source == value]) for value in range(8)]
    assert fitted == pytest.approx(np.array(medians)[source.astype(int)], rel=1e-5)
    best = metrics.mae(fitted, target)
    for value in range(8):
        other = fitted + np.where(source == value, rng.choice([-3, 3]), 0)
        assert metrics.mae(other, target) > best


def test_the_curve_is_fitted_inside_the_mask_and_drawn_across_gaps():
    source, target = np.array([0.0, 1, 3, 3]), np.array([10.0, 20, 40, 999])
    curve = baselines.fitted_curve(source, target, np.arange(4.0), mask=np.array([1, 1, 1, 0]), bins=4)
    assert curve.tolist() == [10, 20, 30, 40]


# --- displacement ---


CONTRASTS = {
    "same": (0.1, 0.9, 0.4, 0.7),
    "inverted": (0.9, 0.1, 0.6, 0.3),
    "other": (0.5, 0.1, 0.2, 0.95),  # neither rising nor falling with the first
}


def anatomy(rows: np.ndarray, columns: np.ndarray, contrast: str = "same") -> np.ndarray:
    """Four random tissues with soft borders, seen in one of the contrasts, sampled anywhere."""
    first, second = gaussian_filter(np.random.default_rng(5).normal(size=(2, 128, 128)), (0, 4, 4))
    tissue = (first > 0) + 2 * (second > 0)
    image = gaussian_filter(np.array(CONTRASTS[contrast])[tissue], 1)
    return map_coordinates(image, [rows + 20, columns + 20], order=3)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -2.0), (1.5, 2.25)])
def test_displacement_finds_a_known_shift_under_any_contrast(shift, contrast):
    rows, columns = np.mgrid[:72, :80].astype(float)
    moved = anatomy(rows - shift[0], columns - shift[1], contrast)
    result = displacement(moved, anatomy(rows, columns), (2.0, 1.5))
    expected = (2.0 * shift[0], 1.5 * shift[1])
    assert result.mean_shift == pytest.approx(expected, abs=0.3)  # a sixth of a pixel
    # a length is never negative, so its median keeps the blocks' scatter: a third of a pixel between contrasts
    assert result.magnitude == pytest.approx(np.hypot(*expected), abs=0.6)
    assert result.shifts.shape == result.centres.shape and (result.agreement <= 1 + 1e-6).all()


def test_displacement_of_an_image_against_itself_is_zero_with_full_agreement():
    source = anatomy(*np.mgrid[:64, :64].astype(float))
    result = displacement(source, source, (1, 1))
    assert result.magnitude < 0.05
    assert np.median(result.agreement) == pytest.approx(1, abs=1e-6)


def test_displacement_is_local():
    """The upper half stays, the lower half moves by 3 columns."""
    rows, columns = np.mgrid[:96, :96].astype(float)
    result = displacement(anatomy(rows, columns - 3 * (rows > 48)), anatomy(rows, columns), (1, 1))
    upper, lower = result.centres[:, 0] < 36, result.centres[:, 0] > 60
    assert np.median(result.shifts[upper, 1]) == pytest.approx(0, abs=0.1)
    assert np.median(result.shifts[lower, 1]) == pytest.approx(3, abs=0.1)


# --- refusals ---

IMAGE, LABELS = np.arange(64.0).reshape(8, 8), np.zeros((8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: metrics.mae(IMAGE, IMAGE[:4]), "shape"),
        (lambda: metrics.mae(IMAGE, IMAGE, IMAGE < -1), "no voxel inside"),
        (lambda: metrics.mae(IMAGE, IMAGE, np.ones(4)), "mask: shape"),
        (lambda: metrics.mae(np.full((8, 8), np.nan), IMAGE), "prediction: 64 voxels are NaN"),
        (lambda: metrics.mae(np.empty(0), np.empty(0)), "no voxels"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=0), "data_range"),
        (lambda: metrics.ssim(IMAGE[:5], IMAGE[:5], data_range=1), "Use slicewise"),
        (lambda: metrics.mutual_information(IMAGE, IMAGE, bins=1), "bins"),
        (lambda: metrics.mutual_information(IMAGE, IMAGE, limits=((1, 0), (0, 1))), "limits"),
        (lambda: metrics.normalised_mutual_information(IMAGE, IMAGE, convention="joint"), '"unit" or "studholme"'),
        (lambda: label_metrics.dice(IMAGE, LABELS, NAMES), "integer labels"),
        (lambda: label_metrics.dice(LABELS[:2], LABELS, NAMES), "shape"),
        (lambda: label_metrics.hausdorff_95(LABELS, LABELS, NAMES, (1.0,)), "spacing"),
        (lambda: metrics.slicewise(metrics.mae, IMAGE, IMAGE), "stacks"),
        (lambda: baselines.histogram_matching(IMAGE, np.empty(0)), "no voxels"),
        (lambda: baselines.mean_target(np.ones((2, 3, 3)), (4, 4)), "ends in"),
        (lambda: label_metrics.dice_table(LABELS[None], LABELS[None], NAMES, ["a", "b"]), "patients"),
        (lambda: displacement(IMAGE, IMAGE, (1, 1)), "at least 29"),
        (lambda: displacement(np.zeros((40, 40)), np.zeros((40, 40)), (1, 1)), "no block with edges"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, word):
    with pytest.raises(InputError, match=word):
        call()


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_the_data_range_has_no_default(metric):
    with pytest.raises(TypeError, match="data_range"):
        metric(IMAGE, IMAGE)
