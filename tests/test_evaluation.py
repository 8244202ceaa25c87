"""Scans and prepared slices against the truth: by hand, by law, and against independent formulas."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.measures import evaluation, metrics


def volume(array, unit="HU"):
    return Volume(np.asarray(array, dtype=np.float32), np.eye(4), unit)


@pytest.fixture
def pair():
    """A smooth CT from -400 to 500 HU, (16, 18, 20), and a noisy copy of it."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.normal(size=(16, 18, 20)), 2)
    truth = (truth - truth.min()) / np.ptp(truth) * 900 - 400
    return volume(truth + rng.normal(0, 20, truth.shape)), volume(truth)


# --- whole volumes ---


def test_ct_is_measured_in_all_hu_and_clipped_to_the_window():
    """One voxel is 1000 HU too high, from 100 HU; the window ends at 350 HU, so 250 HU of that are seen in it."""
    truth = np.full((8, 8, 8), 100.0)
    prediction = truth.copy()
    prediction[4, 4, 4] = 1100
    values = evaluation.compare_volumes(volume(prediction), volume(truth))
    assert values["MAE (HU)"] == pytest.approx(1000 / 512)
    assert values["MAE (HU, clipped to [-150, 350] HU)"] == pytest.approx(250 / 512)
    assert values["MAE (grey levels of 255, clipped to [-150, 350] HU)"] == pytest.approx(250 / 512 * 255 / 500)
    assert values["MSE (HU squared)"] == pytest.approx(1000**2 / 512)


def test_every_clipped_measure_says_so(pair):
    names = list(evaluation.compare_volumes(*pair))
    assert names[:2] == ["MAE (HU)", "MSE (HU squared)"]
    assert all("clipped to [-150, 350] HU" in name for name in names[2:]) and len(names) == 10


def test_a_mask_of_ones_changes_nothing(pair):
    everywhere = np.ones(pair[0].array.shape, bool)
    assert evaluation.compare_volumes(*pair, everywhere) == evaluation.compare_volumes(*pair)
    assert evaluation.synthrad(*(x.array for x in pair), everywhere) == pytest.approx(
        evaluation.synthrad(*(x.array for x in pair))
    )


def test_mr_is_measured_in_its_unit_with_the_range_of_the_truth():
    truth = np.linspace(0, 200, 512).reshape(8, 8, 8)
    values = evaluation.compare_volumes(volume(truth + 5, "%"), volume(truth, "%"))
    assert values["MAE (%)"] == pytest.approx(5, rel=1e-5)
    assert values["PSNR (dB, range 200)"] == pytest.approx(20 * np.log10(40), rel=1e-5)
    with pytest.raises(InputError, match="one value everywhere"):
        evaluation.compare_volumes(volume(truth, "%"), volume(0 * truth, "%"))
    with pytest.raises(InputError, match="truth: NaN"):
        evaluation.compare_volumes(volume(truth), volume(np.where(truth == truth.max(), np.nan, truth)))


def test_thin_volumes_get_ssim_slice_by_slice(pair):
    thin = [volume(x.array[:, :3]) for x in pair]
    values = evaluation.compare_volumes(*thin)
    name = next(name for name in values if "mean over slices" in name)
    clipped = [np.clip(x.array, -150, 350) for x in thin]
    each = [structural_similarity(*(x[:, i] for x in clipped), data_range=500) for i in range(3)]
    assert values[name] == pytest.approx(np.mean(each))
    assert values["MAE (HU)"] == metrics.mae(*(x.array for x in thin))


def test_synthrad_by_its_definitions(pair):
    prediction, truth = (np.pad(x.array, 4, constant_values=-2000) for x in pair)
    mask = truth > -2000
    values = evaluation.synthrad(prediction, truth, mask)
    assert values["MAE (HU)"] == pytest.approx(np.abs(prediction - truth)[mask].mean())
    clipped = [np.clip(x, -1024, 3000)[mask] for x in (truth, prediction)]
    assert values["PSNR (dB)"] == pytest.approx(peak_signal_noise_ratio(*clipped, data_range=4024))
    shifted = [np.where(mask, np.clip(x, -1024, 3000), -1024) + 1024 for x in (prediction, truth)]
    assert values["MS-SSIM"] == pytest.approx(by_luminance_contrast_structure(*shifted, mask, 4024))


def test_ms_ssim_of_images_that_share_little():
    """A part of the truth is inverted, so that some similarities are negative, and all far below 1."""
    rng = np.random.default_rng(0)
    truth = gaussian_filter(rng.normal(size=(16, 18, 20)), 2)
    truth = (truth - truth.min()) / np.ptp(truth) * 3500
    prediction = np.where(np.arange(16)[:, None, None] < 5, 3500 - truth, truth)
    prediction = (prediction + rng.normal(0, 150, truth.shape).clip(-300, 300)).clip(0, 4024)
    mask = truth > 500
    expected = by_luminance_contrast_structure(prediction, truth, mask, 4024)
    assert metrics.ms_ssim(prediction, truth, mask, data_range=4024) == pytest.approx(expected, rel=1e-6)
    assert expected < 0.9


def by_luminance_contrast_structure(prediction, truth, mask, data_range):
    """MS-SSIM written as l * c * s of Wang et al. 2003, each to the scale's weight, voxel by voxel."""
    border = [((97 - n) // 2, 97 - n - (97 - n) // 2) for n in truth.shape]
    prediction, truth, mask = (np.pad(x.astype(float), border, mode="edge") for x in (prediction, truth, mask))
    c1, c2, total = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, 1.0
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        mean = [uniform_filter(x, 7) for x in (prediction, truth)]
        norm = 343 / 342  # sample variances
        var = [norm * np.clip(uniform_filter(x * x, 7) - m * m, 0, None)
               for x, m in zip((prediction, truth), mean, strict=True)]  # fmt: skip
        covariance = norm * (uniform_filter(prediction * truth, 7) - mean[0] * mean[1])
        sd = np.sqrt(var[0] * var[1])
        luminance = (2 * mean[0] * mean[1] + c1) / (mean[0] ** 2 + mean[1] ** 2 + c1)
        contrast, structure = (2 * sd + c2) / (var[0] + var[1] + c2), (covariance + c2 / 2) / (sd + c2 / 2)
        terms = np.prod([np.clip(x, 0, None) ** weight for x in (luminance, contrast, structure)], axis=0)
        inner = (slice(3, -3),) * 3
        total *= terms[inner][mask[inner] > 0].mean()
        halved = []
        for image in (prediction, truth):  # means of 2 x 2 x 2 voxels
            for axis in range(3):
                image = (image + np.roll(np.pad(image, [(0, int(a == axis)) for a in range(3)]), 1, axis)
                         [tuple(slice(0, n) for n in image.shape)]) / 2  # fmt: skip
            halved.append(image[::2, ::2, ::2])
        prediction, truth, mask = *halved, mask[::2, ::2, ::2]
    return total


def test_equal_scans_have_the_best_synthrad_values(pair):
    image = pair[1].array
    assert evaluation.synthrad(image, image) == {"MAE (HU)": 0, "PSNR (dB)": np.inf, "MS-SSIM": pytest.approx(1)}


def test_errors_by_label_by_hand():
    labels = np.array([[1, 1, 2, 0]])
    table = evaluation.errors_by_label(
        np.array([[10.0, 30, 5, 9]]), np.array([[0.0, 0, 7, 0]]), labels, {0: "air", 1: "fat", 2: "bone", 3: "gas"}
    )
    assert table.index.tolist() == ["fat", "bone"]
    assert table.loc["fat"].tolist() == [2, 20, 20, 20, 0, 10, 0]
    assert table.loc["bone", ["mean error", "MAE"]].tolist() == [-2, 2]
    with pytest.raises(InputError, match="none of the structures gas occurs"):
        evaluation.errors_by_label(labels, labels, labels, {3: "gas"})
    with pytest.raises(InputError, match="labels: shape"):
        evaluation.errors_by_label(labels, labels, labels[0], {1: "fat"})


# --- prepared slices ---


def prepared(folder, target, valid=None, patients=2):
    """Two patients of two slices each; the source is the negative of the target."""
    folder.mkdir()
    np.save(folder / "target.npy", target.astype(np.float32))
    np.save(folder / "source.npy", -target.astype(np.float32))
    if valid is not None:
        np.save(folder / "valid.npy", valid)
    rows = [{"id": f"p{i}", "first": 2 * i, "count": 2} for i in range(patients)]
    windows = {"source": MR_WINDOW, "target": CT_WINDOW}
    preparation = Preparation("coronal", 5.0, target.shape[1:], 5.0, windows)
    write_record(folder, preparation, {"source": rows, "target": rows}, anatomy="hip", label_names={})
    return PreparedSlices(folder)


@pytest.fixture
def target():
    return np.random.default_rng(0).uniform(-0.9, 0.5, (4, 16, 16))


def test_the_truth_itself_has_no_error(tmp_path, target):
    table = evaluation.measure(target.astype(np.float32), prepared(tmp_path / "test", target))
    assert table.patient.tolist() == ["p0", "p1"]
    assert table.MAE.max() < 1e-4 and table.SSIM.min() > 1 - 1e-6 and table["SSIM whole"].min() > 1 - 1e-6


def test_an_offset_of_a_tenth_of_the_window_is_25_5_grey_levels_and_50_hu(tmp_path, target):
    table = evaluation.measure((target + 0.2).astype(np.float32), prepared(tmp_path / "test", target))
    np.testing.assert_allclose(table.MAE, 25.5, rtol=1e-4)
    np.testing.assert_allclose(table["MSE unit"], 50.0**2, rtol=1e-4)
    np.testing.assert_allclose(table["PSNR unit"], 20, rtol=1e-4)  # a tenth of the range
    np.testing.assert_allclose(table.PSNR, table["PSNR unit"], rtol=1e-6)


def test_pixels_that_the_truth_does_not_cover_are_left_out(tmp_path, target):
    valid = np.ones((4, 16, 16), bool)
    valid[:, :, 8:] = False
    wrong = np.where(valid, target, 1.0).astype(np.float32)
    assert evaluation.measure(wrong, prepared(tmp_path / "test", target, valid)).MAE.max() < 1e-4


def test_one_patients_error_is_its_own(tmp_path, target):
    wrong = target.copy()
    wrong[2:] += 0.2
    table = evaluation.measure(wrong.astype(np.float32), prepared(tmp_path / "test", target))
    assert table.MAE[0] < 1e-4 < table.MAE[1]


def test_baselines_are_slices_like_the_tests(tmp_path, target):
    train, test = prepared(tmp_path / "train", target), prepared(tmp_path / "test", target + 0.05)
    guesses = evaluation.baselines(train, test)
    shapes = {name: guess.shape for name, guess in guesses.items()}
    assert shapes == {"histogram matching": (4, 16, 16), "mean training slice": (4, 16, 16)}
    expected = target.reshape(2, 2, 16, 16).mean(0)  # the mean over patients, slice by slice
    np.testing.assert_allclose(guesses["mean training slice"].reshape(2, 2, 16, 16)[1], expected, atol=1e-5)


def test_slices_that_are_not_the_test_sets_are_refused(tmp_path, target):
    with pytest.raises(InputError, match="translate the whole test set"):
        evaluation.measure(target[:2].astype(np.float32), prepared(tmp_path / "test", target))


def test_contrast_and_place_by_hand(tmp_path):
    """A synthesis of half the contrast, two pixels lower: quantiles by NumPy, 2 pixels of 3 mm down and none across."""
    images = gaussian_filter(np.random.default_rng(1).normal(size=(4, 64, 64)), (0, 3, 3))
    images = (images / np.abs(images).max()).astype(np.float32)
    test = prepared(tmp_path / "test", images)
    test.preparation, test.source = dataclasses.replace(test.preparation, pixel=3.0), images
    table = evaluation.measure_contrast(np.roll(images, 2, axis=1) / 2, test)
    for i in (0, 1):
        values = images[2 * i : 2 * i + 2]
        assert table["true q99.5"][i] == pytest.approx(np.percentile(values, 99.5))
        assert table["q98.5"][i] == pytest.approx(np.percentile(values, 98.5) / 2)
    assert table["shift rows"].to_numpy() == pytest.approx([6, 6], abs=0.5)
    assert table["shift columns"].to_numpy() == pytest.approx([0, 0], abs=0.3)
    assert table["displacement"].to_numpy() == pytest.approx([6, 6], abs=0.6)
    blank = evaluation.measure_contrast(np.zeros_like(images), test)
    assert blank["displacement"].isna().all() and (blank["q99.5"] == 0).all()


def test_tissues_by_hand(tmp_path):
    """Grain is the SD in the core: an error at the tissue's border changes its MAE, not its grain."""
    labels = np.zeros((4, 16, 16), np.uint8)
    labels[:, 2:9, 2:9] = 4
    labels[:, 12, 2:9] = 7  # one pixel thick: no core
    truth = np.where(labels == 4, -0.2, np.where(labels == 7, 0.9, -1)).astype(np.float32)
    test = prepared(tmp_path / "test", truth)
    test.labels_source = labels
    synthetic = truth.copy()
    synthetic[:, 2, 2:9] += 0.4  # 100 HU on 7 of the 49 pixels, all at the border
    synthetic[:, 12] -= 0.2
    table = evaluation.measure_tissues(synthetic, test, {"muscle": [4], "cortex": [7], "gas": [9]}).set_index("tissue")
    assert table.index.tolist() == ["muscle", "cortex"] * 2
    muscle, cortex = table.iloc[0], table.iloc[1]
    assert muscle.voxels == 98 and pytest.approx(100 / 7, rel=1e-4) == muscle.MAE
    assert muscle["median"] == pytest.approx(muscle["true median"]) == pytest.approx(50)
    assert pytest.approx(0, abs=1e-4) == muscle.SD
    assert cortex["mean error"] == pytest.approx(-50, rel=1e-4) and np.isnan(cortex["SD"])
    grainy = truth + np.where(labels == 4, np.random.default_rng(2).normal(0, 0.08, truth.shape), 0)
    grain = evaluation.measure_tissues(grainy, test, {"muscle": [4]}).SD
    assert grain.to_numpy() == pytest.approx([20, 20], rel=0.2)
    test.labels_source = None
    with pytest.raises(InputError, match="has no labels"):
        evaluation.measure_tissues(truth, test, {"muscle": [4]})
