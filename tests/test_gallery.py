"""The gallery: patients are chosen by number, and what is not recorded is left out."""

import pandas as pd
import pytest

from mr2ct_lib.course.catalogue import SHOWN, TRAININGS
from mr2ct_lib.files import InputError
from tools import gallery


def test_median_best_and_worst_by_hand():
    errors = pd.DataFrame({"patient": ["a", "b", "c", "d"], "MAE": [4.0, 1.0, 3.0, 2.0]})
    assert gallery.choose(errors) == {"median": "c", "best": "b", "worst": "a"}
    with pytest.raises(InputError, match="2 patients; expected at least 3"):
        gallery.choose(errors[:2])


def test_every_anatomy_has_a_run_whose_translator_is_kept():
    kept = [[run for run in runs if run in SHOWN] for runs, *_ in gallery.SHOWN.values()]
    assert [TRAININGS[runs[0]].cohort.split("_")[0] for runs in kept] == ["hip", "head", "head", "abdomen"]


def test_an_anatomy_without_a_recorded_translator_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(gallery, "is_recorded", lambda run: False)
    assert gallery.section("Hips: MR to CT", tmp_path) == ""
    assert not list(tmp_path.iterdir())


def test_every_picture_of_the_page_is_there_and_small():
    page = (gallery.DOCS / "gallery.md").read_text(encoding="utf-8")
    pictures = [line.rpartition("(")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert pictures and len(pictures) % 3 == 0
    assert all((gallery.DOCS / name).stat().st_size < 150_000 for name in pictures)
