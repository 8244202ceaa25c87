"""The gallery: patients are chosen by number, and what is not recorded is left out."""

import pandas as pd
import pytest

from mr2ct_lib.course import experiments
from mr2ct_lib.course.catalogue import SHOWN, TRAININGS
from mr2ct_lib.files import InputError
from tools import gallery


def test_median_best_and_worst_by_hand():
    errors = pd.DataFrame({"patient": ["a", "b", "c", "d"], "MAE": [4.0, 1.0, 3.0, 2.0]})
    assert gallery.choose(errors) == {"median": "c", "best": "b", "worst": "a"}
    with pytest.raises(InputError, match="2 patients; expected at least 3"):
        gallery.choose(errors[:2])


def test_every_run_is_one_whose_translator_is_kept():
    assert set(gallery.SHOWN) <= set(SHOWN)
    assert {TRAININGS[run].cohort.split("_")[0] for run in gallery.SHOWN} == {"hip", "head", "abdomen"}


def test_a_run_without_a_recorded_translator_is_left_out(monkeypatch, tmp_path):
    def none(name):
        raise InputError(f"{name}: is no recorded one")

    monkeypatch.setattr(experiments, "recorded_translator", none)
    assert gallery.section("hip_many_gc", tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_every_picture_of_the_page_is_there_and_small():
    page = (gallery.DOCS / "gallery.md").read_text(encoding="utf-8")
    pictures = [line.rpartition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert pictures and len(pictures) % 3 == 0
    assert all((gallery.DOCS / name).stat().st_size < 150_000 for name in pictures)
