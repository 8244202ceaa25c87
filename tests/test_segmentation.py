"""The U-Net learns discs from two channels, repeats itself bit by bit, and comes back from disk unchanged."""

import numpy as np
import pytest
import torch

from mr2ct_lib.files import InputError
from mr2ct_lib.methods import segmentation
from mr2ct_lib.methods.segmentation import (
    Segmenter,
    cross_validate,
    fold_of_patients,
    load_segmenter,
    predict,
    save_segmenter,
    train_segmenter,
)
from mr2ct_lib.methods.settings import PROFILES

NAMES = {0: "background", 3: "femur", 8: "gluteus_medius"}


def discs(count: int, seed: int, shape: tuple[int, int] = (30, 34)) -> tuple[np.ndarray, np.ndarray]:
    """Slices (N, 2, H, W) with two discs each: the channels must be read together, since each shows both discs alike
    but one."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros((count, *shape), dtype=np.uint8)
    for n in range(count):
        for value, centre in ((3, 9), (8, 24)):
            row, column, radius = rng.uniform(9, 21), centre + rng.uniform(-2, 2), rng.uniform(5, 8)
            labels[n][(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = value
        if n % 2:
            labels[n] = labels[n, :, ::-1]
    mr = np.where(labels > 0, 0.4, -0.6)  # both discs bright
    ct = np.where(labels == 3, 0.8, -0.2)  # only the femur bright
    channels = np.stack([mr, ct], axis=1) + rng.normal(0, 0.1, (count, 2, *shape))
    return channels.astype(np.float32), labels


def dice(prediction: np.ndarray, truth: np.ndarray, value: int) -> float:
    one, other = prediction == value, truth == value
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


QUICK = {"learning_rate": 5e-3, "batch_size": 8, "precision": "float32", "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return train_segmenter(*discs(24, seed=1), NAMES, iterations=60, seed=3, **QUICK)


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_slices_are_enough_to_learn_them_by_heart(count):
    """Fewer slices than a step takes, and an odd number of them."""
    channels, truth = discs(count, seed=1)
    prediction = predict(train_segmenter(channels, truth, NAMES, iterations=60, seed=3, **QUICK), channels)
    assert min(dice(prediction, truth, value) for value in (3, 8)) > 0.9


def test_learns_unseen_discs_of_an_odd_size(segmenter):
    channels, truth = discs(10, seed=2)
    prediction = predict(segmenter, channels)
    assert prediction.shape == truth.shape and prediction.dtype == np.uint8
    assert set(np.unique(prediction)) <= {0, 3, 8}
    assert dice(prediction, truth, 3) > 0.9
    assert dice(prediction, truth, 8) > 0.9


def test_slices_are_segmented_one_by_one(segmenter):
    """The batch that a slice lies in does not matter."""
    channels, _ = discs(5, seed=4)
    assert np.array_equal(predict(segmenter, channels)[2:3], predict(segmenter, channels[2:3]))
    assert np.array_equal(predict(segmenter, channels, batch_size=2), predict(segmenter, channels))


def test_padding_does_not_shift(segmenter):
    """A slice in a larger field of background keeps its labels at their place."""
    channels, truth = discs(4, seed=5, shape=(32, 40))
    assert dice(predict(segmenter, channels), truth, 3) > 0.85
    for size in ((1, 1), (3, 50), (17, 16)):
        assert predict(segmenter, np.zeros((2, 2, *size), dtype=np.float32)).shape == (2, *size)


def test_equal_seeds_give_equal_bits_and_do_not_touch_the_global_state():
    channels, labels = discs(8, seed=1)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    one, two, other = (
        train_segmenter(channels, labels, NAMES, iterations=3, seed=seed, **QUICK).network.state_dict()
        for seed in (5, 5, 6)
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_the_profile_decides_width_and_slices_per_step():
    options = {name: value for name, value in QUICK.items() if name != "batch_size"}
    for size in ("quick", "full"):
        unet = PROFILES[size].unet
        trained = train_segmenter(*discs(8, seed=1), NAMES, iterations=1, size=size, **options)
        assert (trained.training["batch_size"], trained.widths) == (unet.batch_size, unet.widths)


def test_bf16_learns_too():
    trained = train_segmenter(*discs(16, seed=1), NAMES, iterations=12, **QUICK | {"precision": "bf16"})
    curve = trained.training["curve"]
    assert len(curve) == 10 and curve[-1] < 0.7 * curve[0]


def test_comes_back_from_disk_unchanged(segmenter, tmp_path):
    channels, _ = discs(3, seed=6)
    folder = save_segmenter(segmenter, tmp_path / "unet")
    loaded = load_segmenter(folder)
    assert (loaded.names, loaded.channels, loaded.widths) == (segmenter.names, ("MR", "CT"), segmenter.widths)
    assert loaded.training == segmenter.training and loaded.training["iterations"] == 60
    assert np.array_equal(predict(loaded, channels), predict(segmenter, channels))
    assert sorted(path.name for path in folder.iterdir()) == ["segmenter.json", "segmenter.safetensors"]


def test_damaged_or_foreign_files_are_refused(segmenter, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_segmenter(tmp_path / "none")
    folder = save_segmenter(segmenter, tmp_path / "unet")
    weights = folder / "segmenter.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(InputError, match="no weights of this network"):
        load_segmenter(folder)
    weights.write_bytes(whole)
    description = folder / "segmenter.json"
    description.write_text(description.read_text().replace("128", "64"))
    with pytest.raises(InputError, match="no weights of this network"):
        load_segmenter(folder)
    description.write_text("{}")
    with pytest.raises(InputError, match="does not describe a segmenter"):
        load_segmenter(folder)


def test_folds_are_disjoint_and_even():
    fold_of = fold_of_patients([f"p{n}" for n in range(10)] * 3, folds=5, seed=1)
    assert sorted(np.bincount(list(fold_of.values()))) == [2] * 5
    assert fold_of == fold_of_patients([f"p{n}" for n in reversed(range(10))], folds=5, seed=1)
    with pytest.raises(InputError, match="folds"):
        fold_of_patients(["a", "b"], folds=5)


def test_cross_validation_never_uses_the_patients_own_labels(monkeypatch):
    channels, labels = discs(6, seed=1)
    patients = ["a", "a", "b", "b", "c", "c"]
    channels[:, 0, 0, 0] = np.arange(6)  # marks each slice
    used = []

    def train(some, *_, **__):
        used.append(set(some[:, 0, 0, 0].astype(int)))
        return used[-1]

    def label(seen, some):
        assert not seen & set(some[:, 0, 0, 0].astype(int))
        return np.ones((len(some), *labels.shape[1:]), dtype=np.uint8)

    monkeypatch.setattr(segmentation, "train_segmenter", train)
    monkeypatch.setattr(segmentation, "predict", label)
    result = cross_validate(channels, labels, NAMES, patients, folds=3, progress=False)
    assert (result == 1).all()
    assert sorted(sorted(seen) for seen in used) == [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    "change, word",
    [
        ({"channels": np.zeros((4, 30, 34))}, "channels: shape"),
        ({"channels": np.full((4, 2, 30, 34), np.nan)}, "NaN"),
        ({"labels": np.zeros((4, 30, 30), np.uint8)}, "labels: shape"),
        ({"labels": np.zeros((4, 30, 34))}, "integers"),
        ({"labels": np.full((4, 30, 34), 5, np.uint8)}, r"values \[5\] without a name"),
        ({"names": {0: "background"}}, "names"),
        ({"channel_names": ("MR",)}, "one for each channel"),
        ({"size": "huge"}, "quick, full, paper"),
        ({"precision": "half"}, "float32, bf16"),
        ({"iterations": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_bad_input_is_refused(change, word):
    channels, labels = discs(4, seed=1)
    settings = {"channels": channels, "labels": labels, "names": NAMES, "iterations": 1} | QUICK | change
    with pytest.raises(InputError, match=word):
        train_segmenter(**settings)


def test_wrong_number_of_channels_is_refused(segmenter):
    with pytest.raises(InputError, match="expected 2, namely MR, CT"):
        predict(segmenter, np.zeros((1, 1, 16, 16), dtype=np.float32))
