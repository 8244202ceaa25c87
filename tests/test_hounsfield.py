"""CT on another scale than HU is refused, whatever its file says; CT in HU, whole or cut to a window, is not."""

import numpy as np
import pytest

from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import modality_and_reason
from mr2ct_lib.images.hounsfield import wrong_scale
from mr2ct_lib.images.volumes import Volume

RNG = np.random.default_rng(0)


def patient(around: float = -1000.0, share: float = 0.5) -> np.ndarray:
    """HU of fat, muscle, spongy and dense bone in noisy air, each at random places, (20, 20, 50) whole numbers."""
    parts = {around: 1 - share, -100: 0.35 * share, 45: 0.5 * share, 250: 0.1 * share, 600: 0.05 * share}
    values = RNG.choice(list(parts), p=list(parts.values()), size=(20, 20, 50))
    return np.round(values + RNG.normal(0, 15, values.shape)).astype(np.float32)


def ct(values: np.ndarray, unit: str = "a.u.") -> Volume:
    return Volume(np.asarray(values, np.float32), np.eye(4), unit)


IN_HU = {
    "as it is": lambda hu: hu,
    "padded with -2000": lambda hu: np.pad(hu, 8, constant_values=-2000),
    "padded with -1000": lambda hu: np.pad(hu, 8, constant_values=-1000),
    "[-150, 350] HU": lambda hu: np.clip(hu, -150, 350),
    "[-100, 240] HU": lambda hu: np.clip(hu, -100, 240),
    "[-1000, 1000] HU": lambda hu: np.clip(hu, -1000, 1000),
    "[-500, 500] HU": lambda hu: np.clip(hu, -500, 500),
    "padded with -3024 and -2000": lambda hu: np.pad(np.pad(hu, 4, constant_values=-2000), 4, constant_values=-3024),
    "lung, no air": lambda hu: patient(around=-850),
    "80 HU too high": lambda hu: hu + 80,
    "cropped to tissue": lambda hu: patient(around=20),
}


@pytest.mark.parametrize("change", IN_HU.values(), ids=IN_HU)
@pytest.mark.parametrize("unit", ["HU", "a.u."])
def test_hounsfield_units_are_accepted(change, unit):
    assert modality_and_reason(ct(change(patient()), unit))[0] == "CT"


NOT_IN_HU = {
    "tenfold": (lambda hu: 10 * hu, "most of the body lies above 200"),
    "a tenth": (lambda hu: hu / 10, "soft tissue spans less than 25"),
    "300 too high": (lambda hu: hu + 300, "air lies near -(70|69)|more of it lies near 1000"),
    "500 too high": (lambda hu: hu + 500, "air lies near -[45]|more of it lies near 1000"),
    "200 too low": (lambda hu: hu - 200, "air lies near -1[12]|near -1000"),
    "twice": (lambda hu: 2 * hu, "air lies near -(20|19)"),
    "twice, no air": (lambda hu: 2 * np.where(hu < -500, 40, hu), "fat lies near -(20|19|21)"),
    "half": (lambda hu: hu / 2, "air lies near -(50|49)"),
    "1024 too low": (lambda hu: hu - 1024, "soft tissue lies near -1000"),
    "inverted": (lambda hu: -hu, "inverted|offset|near 1000 than bone"),
    "inverted, little air": (lambda hu: -patient(share=0.93), "more of it lies near 1000 than bone can"),
    "masked with 0": (lambda hu: np.where(hu < -500, 0, hu), r"\d+% are exactly 0, water"),
    "padded with 0": (lambda hu: np.pad(hu, 2), r"\d+% are exactly 0, water"),
}


@pytest.mark.parametrize("change, reason", NOT_IN_HU.values(), ids=NOT_IN_HU)
@pytest.mark.parametrize("unit", ["HU", "a.u."])
def test_a_ct_on_another_scale_is_refused(change, reason, unit):
    with pytest.raises(InputError, match=reason):
        modality_and_reason(ct(change(patient()), unit))


@pytest.mark.parametrize("change", [
    lambda hu: np.clip((hu + 150) / 500, 0, 1) * 255, lambda hu: hu / 1000, lambda hu: hu + 8192,
], ids=["grey levels", "thousandths", "above 7000"])  # fmt: skip
def test_a_file_that_says_hu_is_believed_only_where_its_values_agree(change):
    """A program that changed the values may have kept the header."""
    with pytest.raises(InputError, match="not in Hounsfield units"):
        modality_and_reason(ct(change(patient()), "HU"))


def test_two_valued_bodies_and_random_numbers_are_left_alone():
    assert wrong_scale(np.repeat([-1000.0, 0, 50], 100)) is None
    assert wrong_scale(RNG.uniform(-1024, 2000, 10_000)) is None
