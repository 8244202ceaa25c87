"""Intensities: windows, the body, bias fields, and units for MR."""

import numpy as np
import pytest
from scipy import ndimage

from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import (
    CT_WINDOW,
    HEAD_WINDOWS,
    MR_WINDOW,
    WHOLE_BODY_WINDOW,
    Window,
    body_mask,
    n4,
    normalise_mr,
)
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.patients import acquisition, faults, physics
from mr2ct_lib.patients.abdomen import abdomen_patient
from mr2ct_lib.patients.hip import hip_patient
from mr2ct_lib.patients.scanner import PROFILES


@pytest.mark.parametrize("window", [CT_WINDOW, MR_WINDOW, WHOLE_BODY_WINDOW, *HEAD_WINDOWS.values()])
def test_a_window_is_exact_inside_and_cuts_outside(window):
    inside = np.linspace(window.low, window.high, 1001)
    np.testing.assert_allclose(window.from_network(window.to_network(inside)), inside, atol=1e-9)
    assert window.to_network(np.array([window.low - 1, window.high + 1])).tolist() == [-1, 1]
    assert Window.from_dict(window.as_dict()) == window


def test_every_whole_hu_survives_float32():
    hu = np.arange(-150, 351, dtype=np.float32)
    np.testing.assert_array_equal(np.round(CT_WINDOW.from_network(CT_WINDOW.to_network(hu).astype(np.float32))), hu)


def test_grey_levels_by_hand():
    assert CT_WINDOW.to_grey(np.array([-150.0, 100, 350])).tolist() == [0, 127.5, 255]
    assert np.isclose(np.diff(CT_WINDOW.to_grey(np.array([0.0, 500 / 255])))[0], 1)  # the paper: a level is 1.96 HU


def test_a_window_upside_down_is_refused():
    with pytest.raises(InputError, match="low < high"):
        Window(350, -150, "HU")


@pytest.mark.parametrize("ends", [(-np.inf, np.inf), (0, np.inf), (np.nan, 1)])
def test_a_window_has_finite_ends(ends):
    with pytest.raises(InputError, match="expected finite numbers"):
        Window(*ends, "HU")


def phantom(shape=(40, 32, 24), gain=1.0, bias=0.0) -> tuple[Volume, np.ndarray, np.ndarray]:
    """An MR of a body with three tissues in noise, its field, and where the body is."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = x**2 + y**2 < 0.8
    array = 300.0 * body
    array[(x / 0.7) ** 2 + (y / 0.6) ** 2 < 1] = 120
    array[(x - 0.3) ** 2 + y**2 + (z / 2) ** 2 < 0.06] = 200
    field = np.exp(bias * (np.sin(1.5 * x + 0.5) + 0.8 * np.cos(1.7 * y) + 0.4 * z))
    array = np.abs(array * field + np.random.default_rng(0).normal(0, 4, shape))
    return Volume((gain * array).astype(np.float32), np.diag([6.0, 6, 6, 1])), field, body


def test_the_body_is_found_in_mr_and_ct():
    scan, _, body = phantom()
    assert (body_mask(scan) == body).mean() > 0.97
    hu = np.where(body, 40.0, -1000.0).astype(np.float32)
    hu[4:-4, 1:2] = 20  # a table's shell
    assert (body_mask(Volume(hu, scan.affine, "HU")) == body).mean() > 0.97
    assert not body_mask(Volume(np.zeros((4, 4, 4)), np.eye(4))).any()


@pytest.mark.parametrize("profile", ["coarse", "full"])
def test_n4_takes_a_known_bias_away(profile):
    clean, _, body = phantom()
    biased, field, _ = phantom(bias=0.25)
    corrected = n4(biased, profile=profile)
    inner = ndimage.binary_erosion(body)

    def rms(scan: Volume) -> float:
        ratio = (ndimage.gaussian_filter(scan.array, 1) / ndimage.gaussian_filter(clean.array, 1))[inner]
        return float(np.std(ratio / ratio.mean()))  # the global scale means nothing in MR

    assert rms(biased) > 0.13
    assert rms(corrected) < 0.05


@pytest.mark.parametrize("anatomy, strength", [("hip", 0.15), ("hip", 0.3), ("abdomen", 0.15)])
def test_n4_leaves_less_than_5_percent_of_a_virtual_patients_bias(anatomy, strength):
    """The field that N4 finds against the one that the scan was made with, RMS of the logarithm inside the body."""
    person, sequence = {"hip": (hip_patient(2), "hip_spgr"), "abdomen": (abdomen_patient(2), "abdomen_t2star")}[anatomy]
    grid = PROFILES["coarse"].grids[anatomy]["source"]
    affine = grid.affine(person.landmarks["centre"])
    options = {"noise": 0.015, "bias": strength, "supersample": (1, 1, 1)}
    scan, _ = acquisition.acquire_mr(person, grid.shape, affine, physics.SEQUENCES[sequence], 3, **options)
    body = body_mask(scan)
    true = np.log(faults.bias_field(grid.shape, affine, strength, [3, 12]))[body]
    corrected = n4(scan, profile="coarse")
    found = np.log(np.maximum(scan.array, 1e-6) / np.maximum(corrected.array, 1e-6))[body]
    assert np.std(true) > 0.06
    assert np.std(found - true) < 0.05


def test_n4_leaves_a_scan_without_bias_alone():
    clean, _, body = phantom()
    ratio = (n4(clean, profile="coarse").array / np.maximum(clean.array, 1e-6))[body & (clean.array > 20)]
    assert np.std(np.log(ratio)) < 0.02


def test_n4_is_deterministic_and_leaves_blank_volumes_alone():
    scan, _, _ = phantom(bias=0.2)
    np.testing.assert_array_equal(n4(scan, profile="coarse").array, n4(scan, profile="coarse").array)
    blank = Volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    assert n4(blank) is blank


@pytest.mark.parametrize("method", ["percentile", "zscore"])
def test_the_gain_of_an_mr_does_not_matter(method):
    first, second = (normalise_mr(phantom(gain=gain)[0], method) for gain in (1.0, 37.0))
    np.testing.assert_allclose(first.array, second.array, rtol=1e-4, atol=1e-4)


def test_mr_units_by_hand():
    scan, _, body = phantom()
    percent, sd = normalise_mr(scan, "percentile"), normalise_mr(scan, "zscore")
    assert (percent.unit, sd.unit) == ("%", "SD")
    assert np.isclose(np.percentile(percent.array[body_mask(scan)], 99.5), 100, rtol=1e-4)
    assert abs(sd.array.mean()) < 1e-4
    assert np.isclose(sd.array.std(), 1, rtol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_n4_takes_a_single_slice(axis):
    """ITK's filter fails on one: it is corrected as if the next slice looked the same."""
    shape = np.insert([24, 28], axis, 1)
    along = np.linspace(0, 1, shape.max())
    bias = np.exp(0.4 * np.moveaxis(along.reshape(1, 1, -1), 2, int(shape.argmax())))
    scan = Volume((100 * np.broadcast_to(bias, shape)).astype(np.float32), np.diag([8.0, 8, 8, 1]))
    corrected = n4(scan, profile="coarse").array
    assert corrected.shape == tuple(shape)
    assert corrected.std() / corrected.mean() < 0.5 * scan.array.std() / scan.array.mean()
