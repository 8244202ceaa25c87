"""Painters and label map patients."""

import json

import numpy as np
import pytest
from scipy import ndimage

from mr2ct_lib.anatomy import (
    Boxes,
    LabelMapPatient,
    chain,
    complete_labels,
    ellipsoid,
    interpolate_lattice,
    read_names,
    tube,
    voxel_centres,
    waves,
)
from mr2ct_lib.files import InputError
from mr2ct_lib.volumes import Volume, read_volume

NAMES = {0: "background", 1: "femur", 5: "gluteus_maximus"}


def small_map() -> tuple[np.ndarray, np.ndarray]:
    """A 'leg': a bone of 15 mm radius inside a muscle of 40 mm radius, voxels of 3 mm."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    x, y, _ = voxel_centres((48, 48, 20), affine)
    radius = np.hypot(x - 70.5, y - 70.5)
    return np.where(radius < 15, 1, np.where(radius < 40, 5, 0)).astype(np.uint8), affine


def test_voxel_centres_follow_an_oblique_affine():
    affine = np.array([[1.0, 0.5, 0, 3], [0, 2, 0, -4], [0.1, 0, 5, 1], [0, 0, 0, 1]])
    points = voxel_centres((2, 3, 4), affine)
    assert points[:, 1, 2, 3] == pytest.approx((affine @ [1, 2, 3, 1])[:3])


def test_round_tube_is_a_cylinder():
    points = np.random.default_rng(0).uniform(-20, 20, (3, 500)).astype(np.float32)
    distance = tube(*points, [(-40, 0, 0, 10, 10, 0, 0), (40, 0, 0, 10, 10, 0, 0)])
    assert distance == pytest.approx(np.hypot(points[0], points[1]) - 10, abs=0.02)


def test_tube_has_the_volume_of_its_sections():
    grid = voxel_centres((60, 60, 60), np.diag([1.0, 1, 1, 1]))
    sections = [(10, 30, 30, 20, 8, 30, 5), (50, 30, 30, 20, 8, 40, 5)]
    assert (tube(*grid, sections) < 0).sum() == pytest.approx(np.pi * 20 * 8 * 40, rel=0.05)


def test_angles_go_the_short_way_round():
    # 85 and -85 degrees are 10 degrees apart: half way the section stands upright
    sections = [(-10, 0, 0, 20, 2, 85, 0), (10, 0, 0, 20, 2, -85, 0)]
    probe = np.array([[0.0, 18.0], [18.0, 0.0], [0.0, 0.0]], dtype=np.float32)
    upright, flat = tube(*probe, sections)
    assert upright < 0 < flat


def test_chain_of_two_points_is_a_capsule():
    points = np.random.default_rng(1).uniform(-20, 20, (3, 200)).astype(np.float32)
    along = np.clip(points[2], 0, 10)
    expected = np.sqrt(points[0] ** 2 + points[1] ** 2 + (points[2] - along) ** 2) - 4
    assert chain(*points, [(0, 0, 0, 4), (0, 0, 10, 4)]) == pytest.approx(expected, abs=1e-4)


def test_ellipsoid_with_equal_radii_is_a_ball():
    points = np.random.default_rng(2).normal(0, 5, (3, 100)).astype(np.float32)
    expected = np.linalg.norm(points, axis=0) - 3
    assert ellipsoid(*points, (0, 0, 0), (3, 3, 3)) == pytest.approx(expected, abs=1e-4)


def test_waves_have_zero_mean_unit_spread_and_are_those_of_their_seed():
    points = np.random.default_rng(3).uniform(-2000, 2000, (3, 20000))
    first = waves(*points, seed=4, length=50)
    assert abs(first.mean()) < 0.05
    assert first.std() == pytest.approx(1, abs=0.05)
    assert np.array_equal(first, waves(*points, seed=4, length=50))
    assert not np.array_equal(first, waves(*points, seed=5, length=50))


@pytest.mark.parametrize("oblique", [False, True])
def test_lattice_interpolation_is_exact_for_linear_fields(oblique):
    origin, step = np.array([-5.0, -5, -5]), 4.0
    lattice = np.diag([step, step, step, 1.0])
    lattice[:3, 3] = origin
    nodes = voxel_centres((8, 8, 8), lattice)
    affine = np.array([[1.5, 0.2 * oblique, 0, 0], [0, 1, 0, 1], [0, 0, 2, -3], [0, 0, 0, 1.0]])
    found = interpolate_lattice(nodes, origin, step, (5, 6, 7), affine)
    assert found == pytest.approx(voxel_centres((5, 6, 7), affine), abs=1e-3)


def test_boxes_hold_every_voxel_of_a_range():
    rng = np.random.default_rng(0)
    q = voxel_centres((20, 22, 24), np.eye(4)) + rng.normal(0, 0.5, (3, 20, 22, 24)).astype(np.float32)
    low, high = np.array([4, 5, 6]), np.array([9, 12, 11])
    inside = ((q.transpose(1, 2, 3, 0) >= low) & (q.transpose(1, 2, 3, 0) <= high)).all(axis=-1)
    box = Boxes(q).of(low, high)
    outside = inside.copy()
    outside[box] = False
    assert inside.any() and not outside.any()
    assert Boxes(q).of(np.array([100, 0, 0]), np.array([120, 9, 9])) is None


def test_completed_map_keeps_labels_and_adds_skin_fat_and_cortex():
    labels, _ = small_map()
    out, names = complete_labels(labels, NAMES, (3, 3, 3))
    value = {name: key for key, name in names.items()}
    assert (out[labels == 5] == 5).all()
    assert set(np.unique(out[labels == 1])) == {1, value["femur_cortex"]}
    for k in range(out.shape[2]):  # from outside to inside: air, skin, fat, muscle, cortex, marrow
        row = out[:24, 24, k]
        order = [row[0]] + [b for a, b in zip(row[:-1], row[1:], strict=True) if a != b]
        inner = [names[int(v)] for v in order]
        assert inner[:2] == ["background", "skin"] and inner[-3:] == ["gluteus_maximus", "femur_cortex", "femur"]
        assert all("fat" in name for name in inner[2:-3])


def test_given_body_is_used():
    labels, _ = small_map()
    body = np.zeros(labels.shape, bool)
    body[2:-2, 2:-2] = True
    out, names = complete_labels(labels, NAMES, (3, 3, 3), body)
    assert np.array_equal(out > 0, body)
    assert "subcutaneous_fat" in names.values()


def test_complete_map_comes_back_unchanged():
    labels, _ = small_map()
    once, names = complete_labels(labels, NAMES, (3, 3, 3))
    twice, names_again = complete_labels(once, names, (3, 3, 3))
    assert np.array_equal(once, twice) and names == names_again


def test_values_without_name_and_empty_maps_are_refused():
    labels, _ = small_map()
    with pytest.raises(InputError, match=r"\[5\]"):
        complete_labels(labels, {0: "background", 1: "femur"}, (3, 3, 3))
    with pytest.raises(InputError, match="background only"):
        complete_labels(np.zeros((3, 3, 3), int), NAMES, (3, 3, 3))
    with pytest.raises(InputError, match="no tissue is known"):
        complete_labels(labels, NAMES | {5: "unobtainium"}, (3, 3, 3))


@pytest.mark.parametrize(
    ("content", "match"),
    [({"1": "unobtainium"}, "label 1"), ({"one": "femur"}, "'one'"), ([1], "names"), ({"1": 4}, "entry"), ({}, "names")],
)
def test_bad_names_are_refused(tmp_path, content, match):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=match) as caught:
        read_names(path)
    assert str(path) in str(caught.value)


def test_names_gain_a_background(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"2": "femur"}')
    assert read_names(path) == {0: "background", 2: "femur"}


def test_label_map_patient_without_deformation_is_the_map():
    labels, affine = small_map()
    patient = LabelMapPatient(Volume(labels, affine, "label"), NAMES, deform=False, seed=9)
    painted = patient.paint(labels.shape, affine)
    assert np.array_equal(painted, patient.completed.array)
    assert np.array_equal(painted[::2, 1::2], patient.paint((24, 24, 20), affine @ np.diag([2, 2, 1, 1.0]) + np.array(
        [[0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0], [0, 0, 0, 0]])))  # fmt: skip


def test_deformation_is_that_of_the_seed_and_keeps_the_structures():
    labels, affine = small_map()
    first = LabelMapPatient(Volume(labels, affine, "label"), NAMES, seed=1)
    other = first.with_seed(2)
    a, b = first.paint(labels.shape, affine), other.paint(labels.shape, affine)
    assert np.array_equal(a, first.with_seed(1).paint(labels.shape, affine))
    assert (a != b).mean() > 0.01
    for value in (1, 5):
        assert (b == value).sum() == pytest.approx((first.completed.array == value).sum(), rel=0.3)


def test_outside_of_the_map_is_background():
    labels, affine = small_map()
    patient = LabelMapPatient(Volume(labels, affine, "label"), NAMES)
    far = affine.copy()
    far[:3, 3] = 1e4
    assert not patient.paint((4, 4, 4), far).any()


def test_body_of_another_shape_is_refused():
    labels, affine = small_map()
    with pytest.raises(InputError, match="body mask"):
        LabelMapPatient(Volume(labels, affine, "label"), NAMES, Volume(np.ones((2, 2, 2)), affine, "label"))


def test_real_label_map_becomes_a_recognisable_patient(real_data):
    folder = real_data / "hip_labels"
    names = read_names(folder / "names.json")
    scan = read_volume(folder / "hip_labels.nii.gz", unit="label")
    scan = scan.replace(array=scan.array[::3, ::3], affine=scan.affine @ np.diag([3, 3, 1, 1.0]))
    truth = read_volume(folder / "body_mask.nii.gz", unit="label").array[::3, ::3] > 0
    patient = LabelMapPatient(scan, names, deform=False)
    body = patient.completed.array > 0
    # the guessed outline resembles the scanned one where bones and muscles show where the body is
    rows = np.flatnonzero((scan.array > 0).any(axis=(0, 1)))[5:-5]
    overlap = 2 * (body & truth)[:, :, rows].sum() / (body[:, :, rows].sum() + truth[:, :, rows].sum())
    assert overlap > 0.85
    assert {"pelvis_cortex", "femur_cortex", "skin", "subcutaneous_fat"} <= set(patient.names.values())
    assert ndimage.label(body)[1] == 1
    # centre: between the femoral heads, measured by fitting balls to them
    assert patient.landmarks["centre"] == pytest.approx((-0.9, 47.6, 302.5), abs=8)
