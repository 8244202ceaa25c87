"""Registration of pairs against a deformation that is known."""

import numpy as np
import pytest
from scipy import ndimage

from mr2ct_lib.files import InputError
from mr2ct_lib.images.registration import register
from mr2ct_lib.images.volumes import Volume

SHAPE, SPACING = (48, 36, 32), 6.0
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])
AFFINE[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING


def tissues(points: np.ndarray) -> np.ndarray:
    """Labels at points (3, ...) mm: air outside an ellipsoid, inside a random pattern of three tissues some 20 mm
    wide."""
    rng = np.random.default_rng(0)
    x, y, z = points
    pattern = 0
    for _ in range(40):
        wave, phase = rng.normal(0, 1 / 16, 3), rng.uniform(0, 2 * np.pi)
        pattern = pattern + np.cos(np.tensordot(wave, points, 1) + phase)
    inside = (x / 110) ** 2 + (y / 75) ** 2 + (z / 130) ** 2 < 1
    return np.where(inside, 1 + np.digitize(pattern / np.sqrt(20), (-0.5, 0.7)), 0)


def displacement(points: np.ndarray) -> np.ndarray:
    """Where the CT's patient lies, less where the MR's does: smooth, up to about 14 mm."""
    x, y, z = points
    bend = [7 * np.sin(y / 45 + 0.3) * np.cos(z / 60), 6 * np.cos(x / 50) * np.sin(z / 55 + 0.4)]
    bend += [7 * np.sin(x / 60 + y / 70)]
    return np.stack([b + shift for b, shift in zip(bend, (4, -3, 2), strict=True)])


def test_a_known_smooth_deformation_is_found_from_the_geometric_centre():
    rng = np.random.default_rng(1)
    points = np.indices(SHAPE) * SPACING + AFFINE[:3, 3][:, None, None, None]
    moved = tissues(points + displacement(points))
    mr = ndimage.gaussian_filter(np.array([2, 100, 40, 70])[moved] + rng.normal(0, 2, SHAPE), 0.5)
    ct = ndimage.gaussian_filter(np.array([-1000, -95, 45, 300])[tissues(points)] + rng.normal(0, 8, SHAPE), 0.5)
    registered, transform = register(Volume(ct, AFFINE, "HU"), Volume(mr, AFFINE))

    places = points[:, moved > 0].T[::17]
    lps = np.array([-1, -1, 1])
    found = np.array([transform.TransformPoint((place * lps).tolist()) for place in places]) * lps
    error = np.linalg.norm(found - places - displacement(places.T).T, axis=1)
    length = np.linalg.norm(displacement(places.T), axis=0)
    assert np.median(length) > 8 and 14 < length.max() < 15
    assert np.median(error) < 2
    assert registered.array.min() < -800  # the CT's own values, though the metric saw them through a window
    assert registered.unit == "HU"
    assert registered.array.shape == SHAPE


def test_too_few_landmarks_are_refused():
    scan = Volume(np.random.default_rng(0).normal(size=(8, 8, 8)), np.eye(4))
    with pytest.raises(InputError, match="landmarks"):
        register(scan, scan, landmarks=(np.zeros((2, 3)), np.zeros((2, 3))))


def test_landmarks_place_a_patient_whom_the_centre_would_miss():
    """The same scan 300 mm and a quarter turn away: without landmarks there would be no overlap."""
    points = np.indices((24, 20, 16)) * 10.0 - np.array([115.0, 95, 75])[:, None, None, None]
    affine = np.diag([10.0, 10, 10, 1])
    affine[:3, 3] = [-115, -95, -75]
    scan = Volume(np.array([0.0, 100, 40, 70])[tissues(points)].astype(np.float32), affine)
    turn = np.array([[0.0, -1, 0, 300], [1, 0, 0, -50], [0, 0, 1, 20], [0, 0, 0, 1]])
    away = scan.replace(affine=turn @ affine)
    marks = np.array([[0.0, 0, 0], [50, 0, 0], [0, 40, 0], [0, 0, 30]])
    _, transform = register(away, scan, landmarks=(marks, marks @ turn[:3, :3].T + turn[:3, 3]), spacing=120)
    lps = np.array([-1, -1, 1])
    found = np.array([transform.TransformPoint((mark * lps).tolist()) for mark in marks]) * lps
    assert np.abs(found - (marks @ turn[:3, :3].T + turn[:3, 3])).max() < 3


def test_what_cannot_be_registered_gets_a_sentence():
    scan = Volume(np.random.default_rng(0).normal(size=(12, 12, 5)), np.eye(4))
    one_voxel = np.indices(scan.array.shape).sum(axis=0) == 0
    with pytest.raises(InputError, match=r"register: the scans cannot be registered \(.+\); expected"):
        register(scan, scan, mask=one_voxel)
    thin = Volume(scan.array[..., :3], np.eye(4))
    with pytest.raises(InputError, match="less than 4"):
        register(thin, scan)
