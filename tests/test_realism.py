"""The page on realism says what was measured, and what was measured is as good as was aimed for."""

import numpy as np
import pytest

from mr2ct_lib.files import read_json
from tools.realism import DOCS, PAGE, RESULTS, spectrum, with_tables

VALUES = read_json(RESULTS / "realism.json")


def test_the_tables_of_the_page_are_those_of_the_results():
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text, VALUES) == text
    assert "| gluteus medius |" in text


def test_bones_and_muscles_of_the_real_hip_are_found_as_well_as_was_aimed_for():
    for structure, aim in (("pelvis", 0.8), ("femur", 0.8), ("gluteus_maximus", 0.6), ("gluteus_medius", 0.6)):
        assert VALUES["dice"][structure]["real"] >= aim, structure


def test_the_pages_pictures_are_there_and_small():
    for name in ("realism_hips.jpg", "realism_abdomens.jpg", "realism_noise.png"):
        assert name in PAGE.read_text(encoding="utf-8")
        assert 1_000 < (DOCS / name).stat().st_size < 200_000


def test_measured_tissues_have_the_real_order_and_hounsfield_units():
    hu = VALUES["tissues"]["hu"]
    for tissue in ("fat", "liver", "spleen", "kidney", "blood", "back muscle", "psoas"):
        assert hu[tissue]["virtual"] == pytest.approx(hu[tissue]["real"], abs=12), tissue
        assert hu[tissue]["virtual_sd"] == pytest.approx(hu[tissue]["real_sd"], rel=0.35), tissue
    mr = VALUES["tissues"]["mr"]
    order = sorted(mr, key=lambda tissue: (mr[tissue]["real"], mr[tissue]["virtual"]))
    assert order == sorted(mr, key=lambda tissue: mr[tissue]["virtual"])


def test_spectrum_of_a_wave_peaks_at_its_frequency():
    x = np.arange(48)
    frequency, power = spectrum([np.cos(2 * np.pi * 0.2 * x)[:, None] + 0 * x])
    assert abs(frequency[power.argmax()] - 0.2) < 0.03 and power.max() == 1
