"""A scan that is unlike the training scans is noticed, by its values and by what comes back."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.methods.training_data import (
    better_sized,
    better_turned,
    check_scan,
    coarse_mean,
    cycle_error,
    describe_training_data,
    wasserstein,
)
from mr2ct_lib.methods.translator import Architecture, Translator, load_translator


class Clamp(nn.Module):
    """A generator that gives back what lies below 0.5, and 0.5 for all else."""

    def forward(self, x, deform=False):
        return x.clamp(max=0.5)


def slices(seed: int, low: float, high: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (6, 32, 32)).astype(np.float32)


@pytest.fixture
def translator(tmp_path) -> Translator:
    """Trained, so to say, on values from -0.8 to 0.55 in both domains: half of one percent does not come back."""
    preparation = Preparation("coronal", 5.0, (32, 32), 5.0, {"source": MR_WINDOW, "target": CT_WINDOW})
    for domain in ("source", "target"):
        np.save(tmp_path / f"{domain}.npy", slices(0, -0.8, 0.55))
    rows = [{"id": "a", "first": 0, "count": 6}]
    write_record(tmp_path, preparation, {"source": rows, "target": rows})
    result = Translator(Architecture(4, 1, None, "resize"), preparation, {})
    result.source_to_target, result.target_to_source = Clamp(), Clamp()
    result.register_parameter("anchor", nn.Parameter(torch.zeros(1)))
    result.training_data = describe_training_data(result, PreparedSlices(tmp_path))
    return result


def test_the_record_by_hand(translator):
    record = translator.training_data["source"]
    assert record["histogram"][:6] == [0] * 6 and sum(record["histogram"]) == pytest.approx(1, abs=1e-4)
    assert record["coverage"] == 1.0
    assert record["cycle"] == pytest.approx(0.05 / 1.35 * 0.025, rel=0.1)  # 0.025 lost on average above 0.5


def test_a_body_far_wider_than_the_scans_of_training_is_told(translator):
    """As where voxels of 5 mm are said to measure 10 mm. The length of a scan says nothing."""
    block = np.zeros((32, 4, 32), np.float32)
    block[1:-1, :, 1:-1] = np.random.default_rng(0).uniform(100, 775, (30, 4, 30))
    found = {}
    for name, mm in {"right": (5, 5, 5), "long": (5, 5, 10), "wide": (10, 5, 5)}.items():
        scan, place = translator.preparation.to_slices(Volume(block, np.diag([*mm, 1.0])), "source")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_scan(scan[place.training], translator, "source", place=place)
        found[name] = " ".join(str(warning.message) for warning in caught)
    assert "1.9 times as wide as the field of view of training" in found["wide"]
    assert "as wide" not in found["right"] + found["long"]


def test_the_distance_of_a_shift_is_the_shift():
    one, other = (np.histogram(slices(0, -0.5, 0) + move, np.linspace(-1, 1, 65))[0] / 6144 for move in (0, 0.25))
    assert wasserstein(one, other) == pytest.approx(0.25, abs=1e-3)
    assert wasserstein(one, one) == 0


def test_a_scan_like_those_of_training_passes_in_silence(translator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scan(slices(1, -0.8, 0.55), translator, "source", strict=True)
        check_scan(slices(1, -0.8, 0.55), translator, "target", strict=True)


def test_other_values_are_named(translator):
    dark = slices(1, -1, -0.5)
    with pytest.warns(UserWarning, match="unlike the training scans: its values are others .Wasserstein distance 0.6"):
        check_scan(dark, translator, "source")
    with pytest.raises(InputError, match="Wasserstein distance.*leave --strict out"):
        check_scan(dark, translator, "source", strict=True)


def test_what_does_not_come_back_is_named(translator):
    bright = slices(1, -0.8, 0.7)
    assert cycle_error(translator, bright, "source") > 5 * translator.training_data["source"]["cycle"]
    with pytest.warns(UserWarning, match="training scans: it does not come back from both generators .cycle L1 0.01"):
        check_scan(bright, translator, "source")


def test_without_a_record_the_scan_is_not_compared_and_that_is_said(translator):
    translator.training_data = None
    with pytest.warns(UserWarning, match="no record of its training data"):
        check_scan(slices(1, -1, -0.5), translator, "source", strict=True)


def test_the_record_lies_in_the_translators_folder(tmp_path, translator):
    real = Translator(translator.architecture, translator.preparation, {})
    real.training_data = translator.training_data
    real.save(tmp_path / "translator")
    loaded = load_translator(tmp_path / "translator")
    assert loaded.training_data == translator.training_data and loaded.preparation == translator.preparation


def test_the_coarse_mean_by_hand():
    stack = np.zeros((2, 32, 64))
    stack[0, :2, :4] = 1  # one coarse pixel of 2 x 4, in one of two slices
    expected = np.zeros((16, 16))
    expected[0, 0] = 0.5
    np.testing.assert_allclose(coarse_mean(stack), expected)


def test_a_turned_scan_is_more_like_those_of_training_when_it_is_turned_back():
    top_heavy = np.full((3, 32, 32), -1.0)
    top_heavy[:, :16, 8:24] = 0.5
    mean = coarse_mean(top_heavy)
    assert better_turned(top_heavy, mean) is None
    assert better_turned(top_heavy[:, :, ::-1], mean) is None  # left and right are not compared
    assert better_turned(top_heavy[:, ::-1], mean) == "upside down"
    assert {better_turned(np.rot90(top_heavy, k, (1, 2)), mean) for k in (1, 3)} == {"by 90 degrees", "by -90 degrees"}
    assert better_turned(np.zeros((3, 32, 32)), mean) is None
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32))
    assert better_turned(noise, mean) is None


def two_bones(times: float) -> np.ndarray:
    """Three slices (64, 64) of a body with two bones, so many times its size, about the middle of the image."""
    y, x = ((np.indices((64, 64)) - 31.5) / times)[..., None]
    body = np.hypot(x / 24, y / 20) < 1
    bones = (np.hypot(x - 11, y + 3) < 6) | (np.hypot(x + 11, y + 3) < 6)
    return np.repeat(np.where(bones, 0.8, np.where(body, -0.2, -1.0)).transpose(2, 0, 1), 3, axis=0)


def test_a_scan_of_another_size_is_more_like_those_of_training_at_its_own_size():
    mean = coarse_mean(two_bones(1))
    assert [better_sized(two_bones(times), mean) for times in (0.9, 1, 1.1)] == [None] * 3
    for times in (0.62, 0.7, 0.77, 1.3, 1.4, 1.6):
        assert better_sized(two_bones(times), mean) == pytest.approx(times, rel=0.12)
    assert better_sized(np.zeros((3, 64, 64)), mean) is None
    assert better_sized(np.random.default_rng(0).uniform(-1, 1, (3, 64, 64)), mean) is None


def lopsided_people(count: int, side: int, seed: int) -> np.ndarray:
    """Slices (count, 32, 32), one per patient: an organ on one side (side 1 or -1), on either where side is 0."""
    rng = np.random.default_rng(seed)
    stack = rng.normal(-0.5, 0.05, (count, 32, 32)).clip(-1, 1)
    for image in stack:
        image[8:24, 4:12] += 0.4
        if side == -1 or (side == 0 and rng.random() < 0.5):
            image[:] = image[:, ::-1].copy()
    return stack.astype(np.float32)


@pytest.mark.parametrize(("trained_side", "patients", "noticed"), [(1, 8, True), (0, 8, False), (1, 4, False)])
def test_a_mirrored_scan_is_noticed_where_all_training_patients_are_lopsided_alike(
    tmp_path, translator, trained_side, patients, noticed
):
    folder = tmp_path / "prepared"
    folder.mkdir()
    for domain in ("source", "target"):
        np.save(folder / f"{domain}.npy", lopsided_people(patients, trained_side, 1))
    rows = [{"id": str(n), "first": n, "count": 1} for n in range(patients)]
    write_record(folder, translator.preparation, {"source": rows, "target": rows})
    translator.training_data = describe_training_data(translator, PreparedSlices(folder))
    for side, wrong in ((1, False), (-1, noticed)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check_scan(lopsided_people(3, side, 2), translator, "source")
        assert [("left and right are exchanged" in str(one.message)) for one in said] == [True] * wrong
