"""The tissue table."""

import numpy as np
import pytest

from mr2ct_lib.files import InputError
from mr2ct_lib.patients.hip import HIP_NAMES
from mr2ct_lib.patients.tissues import TISSUES, lookup, tissue_of


@pytest.mark.parametrize(
    ("structure", "tissue"),
    [
        ("femur", "trabecular_bone"),
        ("femur_cortex", "cortical_bone"),
        ("femur_marrow", "yellow_marrow"),
        ("Gluteus Maximus", "muscle"),
        ("kidney_left", "kidney"),
        ("background", "air"),
        ("subcutaneous_fat", "fat"),
        ("bladder", "fluid"),
    ],
)
def test_structures_have_the_tissue_that_an_anatomist_expects(structure, tissue):
    assert tissue_of(structure).name == tissue


def test_order_of_hounsfield_units():
    order = ["air", "fat", "fluid", "muscle", "trabecular_bone", "cortical_bone"]
    values = [TISSUES[name].hu for name in order]
    assert values == sorted(values)


def test_t2star_never_exceeds_t2_and_t1_grows_with_the_field():
    for tissue in TISSUES.values():
        assert tissue.t2star <= tissue.t2
        assert tissue.t1_10 <= tissue.t1_15


def test_muscle_row_is_that_of_the_sources():
    muscle = tissue_of("muscle")
    assert (muscle.t1_10, muscle.t1_15, muscle.t2, muscle.pd) == (990, 1130, 35, 0.9)


@pytest.mark.parametrize("name", ["unobtainium", "muscle_cortex", ""])
def test_unknown_names_are_refused_by_name(name):
    with pytest.raises(InputError, match="no tissue is known"):
        tissue_of(name)


def test_lookup_is_indexed_by_label_value():
    table = lookup(HIP_NAMES, "hu")
    assert table.dtype == np.float32 and len(table) == max(HIP_NAMES) + 1
    for value, name in HIP_NAMES.items():
        assert table[value] == np.float32(tissue_of(name).hu)
