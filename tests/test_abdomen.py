"""Virtual abdomens: one person on two tables, the aneurysm's layers, the deformation known and invertible."""

from dataclasses import replace

import numpy as np
import pytest

from mr2ct_lib.files import InputError
from mr2ct_lib.patients.abdomen import ABDOMEN_NAMES, abdomen_patient, aorta_mask
from mr2ct_lib.patients.tissues import tissue_of

VALUE = {name: value for value, name in ABDOMEN_NAMES.items()}
SHAPE, SPACING = (128, 128, 12), np.array([3.125, 3.125, 8.0])
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING


def paint(seed, scanner="mr", **options):
    return abdomen_patient(seed, scanner, **options).paint(SHAPE, AFFINE)


def test_every_structure_is_there_and_has_a_tissue():
    seen = set().union(*(np.unique(paint(seed, "ct")) for seed in (1, 2)))
    assert seen == set(ABDOMEN_NAMES)
    tissues = {name: tissue_of(name).name for name in ABDOMEN_NAMES.values()}
    assert tissues["aorta_thrombus"] == "thrombus" and tissues["table"] == "table"


def test_same_seed_is_the_same_person():
    np.testing.assert_array_equal(paint(3), paint(3))
    assert (paint(3) != paint(4)).mean() > 0.1


def test_only_the_ct_scan_holds_a_table_and_the_posture_decides_the_shape():
    mr, truth, ct = paint(5), paint(5, "ct", posture="mr"), paint(5, "ct")
    assert not (mr == VALUE["table"]).any()
    np.testing.assert_array_equal(np.where(truth == VALUE["table"], 0, truth), mr)
    assert (np.where(ct == VALUE["table"], 0, ct) != mr).mean() > 0.02


def test_the_table_is_painted_outside_the_body_only():
    for posture in ("ct", "mr"):
        labels = paint(6, "ct", posture=posture)
        alone = paint(6, posture=posture)
        assert ((labels == VALUE["table"]) & (alone > 0)).sum() == 0


@pytest.mark.parametrize("seed", [1, 2, 7])
def test_mr_presses_the_back_flat_and_ct_leaves_it_round(seed):
    def rise(posture):  # how much higher the back lies at the flanks than beside the furrow over the spine, mm
        body = paint(seed, posture=posture)[:, :, 6] > 0
        x = AFFINE[0, 3] + np.arange(SHAPE[0]) * SPACING[0]
        lowest = AFFINE[1, 3] + body.argmax(1) * SPACING[1]
        near, far = (np.abs(np.abs(x) - place) < 8 for place in (42, 92))
        return lowest[far].mean() - lowest[near].mean()

    assert abs(rise("mr")) < 5 and rise("ct") > rise("mr") + 5


@pytest.mark.parametrize("posture", ["mr", "ct"])
def test_deformation_is_inverted_and_never_folds(posture):
    patient = abdomen_patient(8, posture=posture)
    points = np.random.default_rng(0).uniform([-170, -130, -60], [170, 120, 60], (4000, 3))
    np.testing.assert_allclose(patient.from_scanner(patient.to_scanner(points)), points, atol=0.01)
    step = np.array([0, 0.1, 0])
    stretch = (patient.to_scanner(points + step) - patient.to_scanner(points))[:, 1] / 0.1
    assert stretch.min() > 0.5


def test_mapping_carries_labels_from_one_scan_to_the_other():
    mr, ct = abdomen_patient(9, "mr"), abdomen_patient(9, "ct")
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1).reshape(-1, 3)
    points = index * SPACING + AFFINE[:3, 3]
    moved = ct.to_scanner(mr.from_scanner(points))
    assert 4 < np.abs(moved - points).max() < 30
    nearest = np.rint((moved - AFFINE[:3, 3]) / SPACING).astype(int)
    inside = ((nearest >= 0) & (nearest < SHAPE)).all(1)
    carried = ct.paint(SHAPE, AFFINE)[tuple(nearest[inside].T)]
    carried = np.where(carried == VALUE["table"], 0, carried)
    original = mr.paint(SHAPE, AFFINE)[tuple(index[inside].T)]
    still = (paint(9, "ct")[tuple(index[inside].T)] == original)[original > 0].mean()
    agreement = (carried == original)[original > 0].mean()
    assert agreement > 0.85 and agreement > still + 0.1  # the rest is rounding to the nearest voxel


def test_aneurysm_is_lumen_in_thrombus_in_wall():
    drawn = abdomen_patient(10)
    patient = replace(drawn, aneurysm=(30.0, *drawn.aneurysm[1:]))
    labels = patient.paint(SHAPE, AFFINE)
    mask = aorta_mask(labels)
    level = int(np.rint((patient.landmarks["aneurysm"][2] - AFFINE[2, 3]) / SPACING[2]))
    area = mask[:, :, level].sum() * SPACING[0] * SPACING[1]
    assert area == pytest.approx(np.pi * 30**2 * patient.scale[0] * patient.scale[1], rel=0.1)
    assert (labels[:, :, level] == VALUE["aorta_thrombus"]).sum() > (labels[:, :, level] == VALUE["aorta_lumen"]).sum()
    close = np.diag([1.0, 1.0, 8.0, 1.0])  # finer than the wall is thick
    close[:3, 3] = np.array(patient.landmarks["aneurysm"]) - [45, 45, 24]
    near = patient.paint((91, 91, 7), close)
    lumen = near == VALUE["aorta_lumen"]
    ring = np.zeros_like(lumen)
    for axis in (0, 1):
        ring |= np.roll(lumen, 1, axis) | np.roll(lumen, -1, axis)
    assert lumen.any() and aorta_mask(near)[ring].all()  # the blood never touches anything but the aorta's own layers
    x, y = ((np.array(patient.landmarks["aneurysm"]) - AFFINE[:3, 3]) / SPACING)[:2]
    assert mask[round(x), round(y), level]


def test_liver_is_right_spleen_left_spine_behind():
    labels = paint(11)
    x, y = (AFFINE[axis, 3] + np.arange(SHAPE[axis]) * SPACING[axis] for axis in (0, 1))
    middle = {name: np.argwhere(labels == VALUE[name]).mean(0) for name in ("liver", "spleen", "vertebra")}
    assert x[round(middle["liver"][0])] > 20 and x[round(middle["spleen"][0])] < -40
    assert y[round(middle["vertebra"][1])] < -15


def test_wrong_choices_are_named():
    with pytest.raises(InputError, match="scanner"):
        abdomen_patient(1, "pet")
    with pytest.raises(InputError, match="posture"):
        abdomen_patient(1, "ct", posture="prone")
