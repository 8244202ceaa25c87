"""Label maps as patients: what is completed, what is kept, and that a deformation never folds."""

import json

import numpy as np
import pytest
from scipy import ndimage

from mr2ct_lib.files import InputError
from mr2ct_lib.images.volumes import Volume, read_volume
from mr2ct_lib.patients.atlas import read_tissues
from mr2ct_lib.patients.grids import voxel_centres
from mr2ct_lib.patients.label_map import SMALLEST_JACOBIAN, LabelMapPatient, complete_labels
from mr2ct_lib.patients.tissues import tissue_of

NAMES = {0: "background", 1: "femur", 5: "gluteus_maximus"}


def small_map() -> tuple[np.ndarray, np.ndarray]:
    """A 'leg': a bone of 15 mm radius inside a muscle of 40 mm radius, voxels of 3 mm."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    x, y, _ = voxel_centres((48, 48, 20), affine)
    radius = np.hypot(x - 70.5, y - 70.5)
    return np.where(radius < 15, 1, np.where(radius < 40, 5, 0)).astype(np.uint8), affine


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
    spoken = {value: name.replace("_", " ").capitalize() for value, name in names.items()}
    assert np.array_equal(once, complete_labels(once, spoken, (3, 3, 3))[0])


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
    [
        ({"1": "unobtainium"}, "label 1"),
        ({"one": "femur"}, "'one'"),
        ([1], "names"),
        ({"1": 4}, "entry"),
        ({}, "names"),
        ({"²": "femur"}, "entry '²'"),
        ({"1": "femur", "01": "pelvis"}, "two names for one value"),
        ({"0": "fat", "1": "femur"}, "label 0 is 'fat'"),
    ],
)
def test_bad_names_are_refused(tmp_path, content, match):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=match) as caught:
        read_tissues(path)
    assert str(path) in str(caught.value)


def test_names_gain_a_background(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"2": "femur"}')
    assert read_tissues(path) == {0: "background", 2: "femur"}


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


def test_a_femur_in_one_sagittal_plane_is_centred_on_its_points():
    labels = np.full((9, 9, 9), 5, np.uint8)
    labels[4, 2:5, 1:8], labels[0] = 1, 6  # a map that names skin is taken as it is
    patient = LabelMapPatient(Volume(labels, np.diag([3.0, 3.0, 3.0, 1.0]), "label"), NAMES | {6: "skin"})
    index = np.argwhere(patient.completed.array == 1)
    np.testing.assert_allclose(patient.landmarks["centre"], 3 * index.mean(axis=0))


@pytest.mark.parametrize("name", ["femur_left", "left_femur", "Femur left", "FEMUR"])
def test_a_bone_of_one_side_is_completed_like_the_bone(name):
    labels, affine = small_map()
    out, names = complete_labels(labels, NAMES | {1: name}, (3, 3, 3))
    same, _ = complete_labels(labels, NAMES, (3, 3, 3))
    np.testing.assert_array_equal(out, same)
    assert [tissue_of(name).name for name in names.values()].count("cortical_bone") == 1
    volume = Volume(labels, affine, "label")
    assert LabelMapPatient(volume, NAMES | {1: name}).landmarks == LabelMapPatient(volume, NAMES).landmarks


def test_body_of_another_shape_is_refused():
    labels, affine = small_map()
    with pytest.raises(InputError, match="body mask"):
        LabelMapPatient(Volume(labels, affine, "label"), NAMES, Volume(np.ones((2, 2, 2)), affine, "label"))


def test_real_label_map_becomes_a_recognisable_patient(real_data):
    folder = real_data / "hip_labels"
    names = read_tissues(folder / "names.json")
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


@pytest.mark.parametrize("amplitude", [5.0, 25.0])
def test_deformations_never_fold(amplitude):
    """Jacobian determinants by finite differences; 25 mm over 150 mm would fold without the limit."""
    labels = np.zeros((60, 50, 40), np.uint8)
    labels[10:50, 10:40, 5:35] = 5
    patient = LabelMapPatient(
        Volume(labels, np.diag([8.0, 8.0, 10.0, 1.0]), "label"), NAMES, seed=1, amplitude=amplitude
    )
    points = np.random.default_rng(0).uniform([0, 0, 0], [470, 390, 390], (3000, 3)).T
    strengths = []
    for seed in range(1, 5):
        other = patient.with_seed(seed)
        step = 0.5
        columns = []
        for axis in np.eye(3):
            ends = [points + sign * step * axis[:, None] for sign in (1, -1)]
            columns.append((ends[0] + other.displacement(ends[0]) - ends[1] - other.displacement(ends[1])) / (2 * step))
        assert np.linalg.det(np.stack(columns).transpose(2, 0, 1)).min() > 0.5 * SMALLEST_JACOBIAN
        strengths.append(other.strength)
    assert max(strengths) <= amplitude and (min(strengths) < amplitude) == (amplitude > 5)


def test_a_deformed_map_can_be_brought_back():
    """The fixed point of p = there - displacement(p) exists: for each place in the map one place in the patient."""
    labels, affine = small_map()
    patient = LabelMapPatient(Volume(labels, affine, "label"), NAMES, seed=4)
    there = voxel_centres((12, 12, 5), affine @ np.diag([4, 4, 4, 1.0])).astype(np.float64)
    back = there.copy()
    for _ in range(60):
        back = there - patient.displacement(back)
    np.testing.assert_allclose(back + patient.displacement(back), there, atol=1e-3)
    assert np.abs(back - there).max() > 3


def test_a_shaft_gets_thick_cortex_and_marrow_and_a_joint_cartilage():
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    x, y, z = voxel_centres((40, 40, 60), affine)
    labels = np.where(np.hypot(x - 39, y - 39) < 30, 5, 0)  # a thigh of muscle
    labels[(np.hypot(x - 39, y - 39) < 15) & (z < 200)] = 1  # with a femur in it,
    labels[(np.hypot(x - 39, y - 39) < 15) & (z == 200)] = 0
    labels[(np.hypot(x - 39, y - 39) < 15) & (z > 200)] = 2  # a slice below another bone
    out, names = complete_labels(labels.astype(np.uint8), NAMES | {2: "pelvis"}, (2, 2, 4))
    value = {name: key for key, name in names.items()}
    assert (out[18:21, 18:21, 50] == value["cartilage"]).all()
    assert (out[18:21, 18:21, 5:20] == value["femur_marrow"]).all() and (out[18:21, 18:21, 46] == 1).all()
    thick = [(out[:, 20, k] == value["femur_cortex"]).sum() * 2.0 / 2 for k in (10, 45)]  # mm a side
    assert 5 <= thick[0] <= 8 and 2 <= thick[1] <= 4


def test_what_bones_and_muscles_enclose_is_filled():
    labels = np.zeros((60, 60, 4), np.uint8)
    x, y, _ = voxel_centres(labels.shape, np.diag([4.0, 4.0, 4.0, 1.0]))
    radius = np.hypot(x - 118, y - 118)
    labels[(radius > 80) & (radius < 100) & (np.abs(x - 118) > 3)] = 5  # a ring with a narrow gap in front and behind
    out, names = complete_labels(labels, NAMES, (4, 4, 4))
    kinds = [names[int(v)] for v in out[radius < 55]]
    assert set(kinds) == {"pelvic_contents", "subcutaneous_fat"}  # organs with streaks of fat between them
    assert kinds.count("pelvic_contents") > 0.6 * len(kinds)


def test_maps_of_equal_names_become_patients_of_equal_names():
    labels, affine = small_map()
    whole = LabelMapPatient(Volume(labels, affine, "label"), NAMES)
    boneless = LabelMapPatient(Volume(np.where(labels == 1, 0, labels), affine, "label"), NAMES)
    assert whole.names == boneless.names
