"""Virtual hips: laws of anatomy and of painting."""

import numpy as np
import pytest
from scipy import ndimage

from mr2ct_lib.files import InputError, read_json
from mr2ct_lib.patients import grids
from mr2ct_lib.patients.hip import hip_patient, structure_labels
from mr2ct_lib.patients.hip_reference import HEAD_RADIUS, HIP_NAMES, MUSCLES, STRUCTURES
from mr2ct_lib.patients.tissues import tissue_of

VALUE = {name: value for value, name in HIP_NAMES.items()}
# mL, both sides, of one real adult, whose scan ends 168 mm below the hip joints
REAL_ML = {
    "pelvis": 787, "femur": 463, "sacrum": 264, "gluteus_maximus": 1409, "gluteus_medius": 650,
    "gluteus_minimus": 122, "iliacus": 190, "psoas_major": 211, "adductor_muscles": 664,
    # measured on the same map
    "obturator_externus": 92, "obturator_internus": 77, "pectineus": 52, "piriformis": 43, "biceps_femoris": 35,
    "gracilis": 51,
    "rectus_femoris": 195, "sartorius": 96, "semitendinosus": 76, "tensor_fasciae_latae": 88, "vastus_medialis": 42,
    "vastus_lateralis_and_intermedius": 424,
}  # fmt: skip


def grid_around(patient, spacing, low=(-230, -150, -168), high=(230, 230, 288)):
    """Shape and affine of a grid over `low` to `high` mm around the patient's centre."""
    spacing = np.broadcast_to(np.asarray(spacing, float), 3)
    shape = tuple(int(n) for n in (np.array(high) - low) / spacing)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = np.array(patient.landmarks["centre"]) + low
    return shape, affine


@pytest.fixture(scope="module")
def painted():
    """Patient 1 at 2.5 mm: (patient, labels, affine)."""
    patient = hip_patient(1)
    shape, affine = grid_around(patient, 2.5)
    return patient, patient.paint(shape, affine), affine


def test_names_are_those_of_the_real_map_and_have_tissues(real_data):
    real = read_json(real_data / "hip_labels" / "names.json")
    assert {int(value): name for value, name in real.items()} == {value: HIP_NAMES[value] for value in range(29)}


def test_every_name_has_a_tissue_and_every_structure_is_named():
    assert all(tissue_of(name) for name in HIP_NAMES.values())
    assert len(STRUCTURES) == 22 and set(STRUCTURES) <= set(HIP_NAMES.values())
    assert set(STRUCTURES[3:]) <= set(MUSCLES)


def test_every_structure_is_painted(painted):
    _, labels, _ = painted
    assert set(np.unique(labels)) == set(HIP_NAMES)


def test_each_structure_is_one_piece_a_side(painted):
    patient, labels, affine = painted
    middle = round((patient.origin[0] - affine[0, 3]) / affine[0, 0])
    structures = structure_labels(labels, HIP_NAMES)
    for index, name in enumerate(STRUCTURES, start=1):
        for half in (structures[:middle], structures[middle:]):
            parts, _ = ndimage.label(half == index, np.ones((3, 3, 3)))
            assert parts.max() == 1, name


def test_nothing_touches_the_air_but_skin(painted):
    _, labels, _ = painted
    inner = np.zeros(labels.shape, bool)
    inner[1:-1, 1:-1, 1:-1] = True
    air = ndimage.binary_dilation(labels == 0) & inner & (labels > 0)
    share = np.isin(labels[air], [VALUE["skin"], VALUE["subcutaneous_fat"]]).mean()
    assert share == 1.0  # skin is thinner than a voxel of this grid, muscle and bone are never nearer than 4 mm
    assert (labels[air] == VALUE["skin"]).mean() > 0.7


def test_no_bone_of_the_leanest_leaves_the_skin():
    patient = hip_patient(37)  # of the hundred below the one with the least flesh over spine and pelvis: 3 mm
    shape, affine = grid_around(patient, (2.5, 2.5, 20.0))
    labels = patient.paint(shape, affine)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])[:, :, None]  # neighbours in the axial slice, 2.5 mm away
    near_air = ndimage.binary_dilation(labels == 0, cross) & (labels > 0)
    near_air[[0, -1]] = near_air[:, [0, -1]] = False
    assert {HIP_NAMES[value] for value in np.unique(labels[near_air])} <= {"skin", "subcutaneous_fat"}


@pytest.fixture(scope="module")
def hundred():
    """100 virtual adults at 5 mm, the quick profile's pixels: volumes (100, 23) in mL, and what is wrong with any."""
    volumes, wrong = [], []
    for seed in range(100):
        patient = hip_patient(seed)
        shape, affine = grid_around(patient, 5.0)
        labels = patient.paint(shape, affine)
        structures = structure_labels(labels, HIP_NAMES)
        volumes.append(np.bincount(structures.ravel(), minlength=23) * 5.0**3 / 1000)
        middle = np.searchsorted(affine[0, 3] + affine[0, 0] * np.arange(shape[0]), patient.origin[0])
        for index, name in enumerate(STRUCTURES, start=1):
            for half in (structures[:middle], structures[middle:]):
                pieces = ndimage.label(half == index, np.ones((3, 3, 3)))[1]
                if pieces != 1:
                    wrong.append(f"seed {seed}: {name} in {pieces} pieces")
        if ndimage.label(labels > 0)[1] != 1:
            wrong.append(f"seed {seed}: the body in several pieces")
    return np.array(volumes), wrong


def test_each_structure_of_100_adults_is_one_piece_a_side(hundred):
    assert not hundred[1]


def test_mean_volumes_of_100_adults_are_those_of_a_real_one(hundred):
    mean = hundred[0].mean(axis=0)
    for name, expected in REAL_ML.items():
        assert mean[1 + STRUCTURES.index(name)] == pytest.approx(expected, rel=0.3), name


def test_femoral_cortex_is_thick_at_the_shaft_and_thin_at_the_head():
    """Textbooks: some 5 to 9 mm about the middle of the shaft, 1 to 3 mm at head and trochanters."""
    for seed in range(4):
        patient = hip_patient(seed, flexion=0, abduction=0, rotation=0)
        shaft, head = (np.array(patient.landmarks[f"{name}_right"]) for name in ("shaft_lower", "head"))
        for place, low, high in ((shaft + [0, 0, 25], 4.5, 9.0), (head, 1.0, 3.0)):
            close = np.diag([0.5, 0.5, 1.0, 1.0])
            close[:3, 3] = place - [40, 40, 0]
            labels = patient.paint((161, 161, 1), close)[:, :, 0]
            bone = np.isin(labels, [VALUE["femur"], VALUE["femur_cortex"], VALUE["femur_marrow"]])
            inner = bone & (labels != VALUE["femur_cortex"])
            depth = ndimage.distance_transform_edt(bone, sampling=0.5)
            thickness = np.median(depth[ndimage.binary_dilation(inner) & (labels == VALUE["femur_cortex"])])
            assert low < thickness < high, (seed, thickness)


@pytest.mark.parametrize("seed", range(0, 100, 5))
def test_neck_shaft_angle_and_head_diameter_are_in_the_textbook_range(seed):
    patient = hip_patient(seed)
    for side in ("right", "left"):
        head, base, upper, lower = (
            np.array(patient.landmarks[f"{name}_{side}"])
            for name in ("head", "neck_base", "shaft_upper", "shaft_lower")
        )
        neck, shaft = head - base, lower - upper
        angle = np.degrees(np.arccos(neck @ shaft / np.linalg.norm(neck) / np.linalg.norm(shaft)))
        assert 115 < angle < 135
    assert 42 <= 2 * HEAD_RADIUS * patient.size <= 54


def test_painted_head_is_a_ball_at_its_landmark(painted):
    patient, labels, affine = painted
    index = np.argwhere(np.isin(labels, [VALUE["femur"], VALUE["femur_cortex"]]))
    points = index @ affine[:3, :3].T + affine[:3, 3]
    head = np.array(patient.landmarks["head_right"])
    cap = points[(np.linalg.norm(points - head, axis=1) < 30) & (points[:, 0] < head[0] - 5)]  # medial of the neck
    assert np.linalg.norm(cap - head, axis=1).max() == pytest.approx(HEAD_RADIUS * patient.size, abs=3)


def test_gluteus_minimus_lies_under_medius_under_maximus(painted):
    patient, labels, affine = painted
    head = np.array(patient.landmarks["head_right"])
    distance = []
    for name in ("gluteus_minimus", "gluteus_medius", "gluteus_maximus"):
        index = np.argwhere(labels == VALUE[name])
        points = index @ affine[:3, :3].T + affine[:3, 3]
        points = points[(points[:, 0] > patient.origin[0]) & (abs(points[:, 2] - head[2] - 45) < 15)]
        distance.append(np.hypot(points[:, 0] - head[0] + 20, points[:, 1] - head[1]).mean())
    assert distance == sorted(distance)


def test_same_seed_same_patient_other_seed_another(painted):
    patient, labels, affine = painted
    assert np.array_equal(labels, hip_patient(1).paint(labels.shape, affine))
    assert hip_patient(2) != patient


def test_a_point_has_one_label_whatever_the_grid(painted):
    patient, labels, affine = painted
    part = affine.copy()
    part[:3, 3] += affine[:3, :3] @ [30, 40, 50]
    crop = patient.paint((60, 50, 40), part)
    assert (crop == labels[30:90, 40:90, 50:90]).mean() > 0.9999  # up to rounding on a surface


@pytest.mark.parametrize("knobs", [{}, {"fat": 8, "muscle": 0.7, "flexion": 20, "abduction": -15, "rotation": 30}])
def test_looking_at_nodes_first_overlooks_less_than_a_voxel_in_100_000(knobs, monkeypatch):
    patient = hip_patient(3, **knobs)
    shape, affine = grid_around(patient, (0.8, 1.0, 0.8), low=(-200, -30, -60), high=(200, 30, 60))
    quick = patient.paint(shape, affine)
    monkeypatch.setattr(grids, "NODE", 0.0)  # each voxel a node
    assert (quick != patient.paint(shape, affine)).mean() < 1e-5


def test_an_oblique_or_flipped_grid_is_refused():
    oblique = np.eye(4)
    oblique[0, 1] = 0.1
    for affine in (oblique, np.diag([-1.0, 1, 1, 1])):
        with pytest.raises(InputError, match="oblique or flipped"):
            hip_patient(4).paint((4, 4, 4), affine)


def test_mapping_to_the_reference_and_back_is_the_identity():
    patient = hip_patient(5, flexion=15, abduction=8, rotation=15)
    points = np.random.default_rng(0).uniform((10, -60, -160), (180, 60, 150), (400, 3)).T
    for sign in (1, -1):
        back = patient.to_reference(patient.to_patient(points, sign), sign)
        error = np.linalg.norm(back - points, axis=0)
        assert np.median(error) < 0.1 and np.quantile(error, 0.98) < 2


def test_left_and_right_differ_a_little(painted):
    patient, labels, affine = painted
    middle = round((patient.origin[0] - affine[0, 3]) / affine[0, 0])
    right = (labels[middle:] == VALUE["gluteus_maximus"]).sum()
    left = (labels[:middle] == VALUE["gluteus_maximus"]).sum()
    assert left != right
    assert left == pytest.approx(right, rel=0.4)


def test_pose_turns_the_femur_about_its_head():
    rest, abducted, flexed = (hip_patient(6, flexion=f, abduction=a, rotation=0) for f, a in ((0, 0), (0, 10), (10, 0)))
    for side, lateral in (("right", 1), ("left", -1)):
        base = np.array(rest.landmarks[f"shaft_lower_{side}"])
        assert lateral * (abducted.landmarks[f"shaft_lower_{side}"][0] - base[0]) > 15  # outwards
        assert flexed.landmarks[f"shaft_lower_{side}"][1] - base[1] > 15  # forwards
        assert abducted.landmarks[f"head_{side}"] == pytest.approx(rest.landmarks[f"head_{side}"], abs=0.5)


def test_inward_rotation_brings_the_knee_side_of_the_neck_forward():
    out, inward = (hip_patient(6, flexion=0, abduction=0, rotation=r) for r in (-20, 20))
    for side in ("right", "left"):
        assert inward.landmarks[f"neck_base_{side}"][1] > out.landmarks[f"neck_base_{side}"][1] + 8


def test_fat_and_muscle_are_knobs():
    def volume(name, **knobs):
        patient = hip_patient(3, **knobs)
        shape, affine = grid_around(patient, 6.0)
        return (patient.paint(shape, affine) == VALUE[name]).sum()

    assert volume("subcutaneous_fat", fat=30) > 1.4 * volume("subcutaneous_fat", fat=14)
    assert volume("gluteus_maximus", muscle=1.2) > 1.2 * volume("gluteus_maximus", muscle=0.8)


@pytest.mark.parametrize(
    ("knobs", "match"),
    [({"colour": 3}, "colour"), ({"sex": "other"}, "sex"), ({"flexion": 90}, "flexion"), ({"fat": -1}, "fat")],
)
def test_unknown_or_impossible_knobs_are_refused(knobs, match):
    with pytest.raises(InputError, match=match):
        hip_patient(0, **knobs)


def test_structure_labels_merge_bone_with_its_cortex_and_marrow():
    values = [VALUE[n] for n in ("pelvis", "pelvis_cortex", "femur_marrow", "vastus_medialis", "skin", "spine_cortex")]
    assert structure_labels(np.array(values), HIP_NAMES).tolist() == [1, 1, 2, 22, 0, 0]


@pytest.mark.parametrize("first_x", [-190.0, 30.0])
def test_the_body_mask_is_where_anything_is_painted(first_x):
    affine = np.diag([9.0, 7.0, 12.0, 1.0])
    affine[:3, 3] = first_x, -140, -160
    patient = hip_patient(6)
    painted = patient.paint((43, 40, 25), affine) > 0
    assert painted.any() and not painted.all()
    np.testing.assert_array_equal(patient.body_mask((43, 40, 25), affine), painted)
