"""Virtual heads: sizes of a real head, the same person on every grid, structures where they belong."""

from dataclasses import replace

import numpy as np
import pytest

from mr2ct_lib.patients.head import HEAD_NAMES, head_patient
from mr2ct_lib.patients.tissues import tissue_of

VALUE = {name: value for value, name in HEAD_NAMES.items()}


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return affine


SHAPE, SPACING = (60, 70, 60), (3.0, 3.0, 3.0)
AFFINE = grid(SHAPE, SPACING)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sizes_are_those_of_a_human_brain(seed):
    labels = head_patient(seed).paint(SHAPE, AFFINE)
    litres = np.bincount(labels.ravel(), minlength=len(HEAD_NAMES)) * np.prod(SPACING) / 1e6
    brain = litres[1:].sum() - litres[VALUE["csf"]] - litres[VALUE["ventricles"]]
    assert 1.0 < brain < 1.45
    assert 0.8 < litres[VALUE["grey_matter"]] / litres[VALUE["white_matter"]] < 2.2
    assert 0.008 < litres[VALUE["ventricles"]] < 0.08
    place = np.argwhere(labels > 0)
    extent = np.ptp(place, axis=0) * SPACING
    assert (extent > [115, 145, 105]).all() and (extent < [155, 195, 155]).all()
    assert (labels[[0, -1]] == 0).all() and (labels[:, [0, -1]] == 0).all()  # nothing leaves the field of view


def test_every_structure_is_there_and_has_a_tissue():
    labels = head_patient(4).paint(SHAPE, AFFINE)
    assert set(np.unique(labels)) == set(HEAD_NAMES)
    tissues = {name: tissue_of(name).name for name in HEAD_NAMES.values()}
    assert tissues["ventricles"] == "fluid" and tissues["brain_stem"] == "white_matter"


def test_same_seed_is_the_same_person_and_another_seed_another():
    first, again, other = (head_patient(seed).paint(SHAPE, AFFINE) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.05


def test_labels_belong_to_places_not_to_grids():
    head = head_patient(7)
    fine = head.paint(SHAPE, AFFINE)
    coarse_affine = AFFINE.copy()
    coarse_affine[:3, :3] *= 2
    coarse = head.paint((30, 35, 30), coarse_affine)
    assert (coarse != fine[::2, ::2, ::2]).mean() < 1e-4  # rounding of float32 places at most


def test_cerebellum_lies_behind_and_below_and_the_thalamus_inside():
    labels = replace(head_patient(8), tilt=np.eye(3)).paint(SHAPE, AFFINE)
    middle = {name: np.argwhere(labels == value).mean(0) for name, value in VALUE.items()}
    assert middle["cerebellar_grey_matter"][1] < middle["thalamus"][1]
    assert middle["cerebellar_grey_matter"][2] < middle["thalamus"][2]
    assert middle["caudate"][1] > middle["thalamus"][1]  # the caudate's head lies in front
    assert abs(middle["putamen"][0] - (SHAPE[0] - 1) / 2) < 2  # one on each side


def test_traits_act_in_their_direction():
    def volume(name, **traits):
        return (replace(head_patient(9), **traits).paint(SHAPE, AFFINE) == VALUE[name]).sum()

    assert volume("ventricles", ventricles=1.6) > 1.5 * volume("ventricles", ventricles=0.8)
    assert volume("csf", atrophy=1.6) > 1.2 * volume("csf", atrophy=0.7)
    assert volume("white_matter", scale=(1.05,) * 3) > 1.2 * volume("white_matter", scale=(0.95,) * 3)
