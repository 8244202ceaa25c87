"""The tables beside the papers: by hand, and what is missing stays visible."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mr2ct_lib.course import experiments, papers, tables
from mr2ct_lib.course.catalogue import CLAIMS, TRAININGS
from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import Window
from mr2ct_lib.patients.abdomen import aorta_mask


def rows(run, values, cohort="hip", direction="source_to_target", seed=1, **others):
    """A row per patient, p0, p1, ..., with these values of MAE."""
    same = {"run": run, "seed": seed, "cohort": cohort, "direction": direction} | others
    return pd.DataFrame([same | {"patient": f"p{i}", "MAE": value} for i, value in enumerate(values)])


PROVENANCE = {"runs": {"hip_few:1": {"steps": 800}, "hip_few:2": {"steps": 800}, "hip_few_gc:1": {"steps": 9}}}


def test_a_row_by_hand():
    """Seeds 1 and 2 have means of 11 and 15 over two patients: 13, with a sample SD of 4 / sqrt 2."""
    recorded = pd.concat([rows("hip_few", [10, 12]), rows("hip_few", [14, 16], seed=2)])
    paper = {("MAE", "hip_few"): 30.233}
    table = tables.beside({"hip_few": "few"}, {"MAE": 1}, recorded, PROVENANCE, rows("hip_few", [20, 21]), paper)
    assert table.loc["few"].tolist() == ["30.2", "13.0 ± 2.8", "20.5", "2", "2", "800"]
    assert table.columns.tolist()[:3] == [("MAE", whose) for whose in ("paper", "recorded", "yours")]


def test_what_is_not_recorded_keeps_its_row_and_shows_a_dash():
    recorded, yours = rows("hip_few", [10, 12]), rows("hip_few", [20])
    table = tables.beside({"hip_few": "few", "hip_many": "many"}, {"MAE": 1, "MI": 2}, recorded, PROVENANCE, yours)
    assert (table.loc["many"] == "-").all() and (table["MI"] == "-").all(axis=None)
    assert ("MAE", "paper") not in table.columns and table.loc["few", ("MAE", "recorded")] == "11.0"
    with pytest.raises(InputError, match="measures: none"):
        tables.beside({"hip_few": "few"}, {}, recorded, PROVENANCE, yours)


def test_the_paper_stands_in_the_row_of_the_run_that_repeats_it():
    nothing = rows("x", [1])
    first = tables.beside_hiasa({"MAE": 2}, nothing, {}, nothing)["MAE", "paper"]
    assert first["many, GC"] == "25.54" and first["few, no GC"] == "30.23" and first["many, GC 0.3"] == "-"
    second = tables.beside_wang("deformed", "head_distorted", nothing, {}, nothing)
    assert second.loc[("PD -> T2", "CycleGAN"), ("MSE / SD²", "paper")] == "0.586"
    assert second.loc[("T2 -> PD", "DicycleGAN"), ("SSIM by moments", "paper")] == "0.771"
    assert ("SSIM", "paper") not in second.columns
    aorta = tables.beside_wang("in the aorta", "abdomen", nothing, {}, nothing)
    assert aorta.loc[("T2* -> CT", "DicycleGAN"), ("PSNR / dB", "paper")] == "23.71"


def test_further_runs_of_a_cohort_get_a_row_when_they_are_recorded():
    recorded = rows("head_distorted_cyclegan_equal_time", [1], "head_distorted", **{"MSE unit": 0.5})
    table = tables.beside_wang("deformed", "head_distorted", recorded, {}, recorded[:0])
    assert table.loc[("PD -> T2", "CycleGAN, equal time"), ("MSE / SD²", "recorded")] == "0.500"
    other = tables.beside_wang("undeformed", "head", recorded, {}, recorded[:0])
    assert other.loc["PD -> T2"].index.tolist()[:3] == ["CycleGAN", "DicycleGAN", "supervised"]


def test_rows_are_runs_of_the_catalogue_or_frames():
    assert set(tables.HIPS) - set(tables.FRAMES) <= set(TRAININGS)
    assert set(tables.HIASA) <= set(tables.HIPS)
    assert set(tables.HIASA.values()) == set(papers.cyclegan_errors().columns)


def test_gains_by_hand():
    values = {"PSNR unit": 20.0, "MSE unit": 0.6}
    one = rows("head_cyclegan", [0, 0], "head", **values)
    two = rows("head_dicyclegan", [0, 0], "head", **{"PSNR unit": 22.5, "MSE unit": 0.2})
    table = tables.gains({"yours": pd.concat([one, two])})
    row = table.loc[("undeformed", "PD -> T2")]
    assert row["PSNR / dB", "yours"] == 2.5 and row["MSE ratio", "yours"] == 3
    assert row["PSNR / dB", "paper"] == pytest.approx(26.49 - 27.35)
    assert np.isnan(table.loc[("deformed", "T2 -> PD"), ("MSE ratio", "yours")])


def test_claims_that_nobody_recorded_stay_without_a_verdict():
    recorded = [rows("hip_many_gc", [9, 10 + s / 9], seed=s) for s in range(3)]
    recorded += [rows("hip_many", [12 + s / 9, 13], seed=s) for s in range(3)]
    table = tables.claims(pd.concat(recorded), "Hiasa et al.")
    assert len(table) == len(CLAIMS["Hiasa et al."])
    by_claim = table.set_index(["better", "than", "measure"])
    assert by_claim.loc[("hip_many_gc", "hip_many", "MAE"), "verdict"] == "supported"
    assert by_claim.loc[("hip_many_gc", "hip_many", "MI"), ["p (Holm)", "verdict"]].tolist() == ["-", "n too small"]
    with pytest.raises(InputError, match="'Wang' is unknown"):
        tables.claims(pd.concat(recorded), "Wang")


def test_two_seeds_are_too_few_for_a_verdict():
    recorded = [
        rows(run, [v, v + 1 + s / 9], seed=s) for run, v in (("hip_many_gc", 9), ("hip_many", 12)) for s in (1, 2)
    ]
    assert set(tables.claims(pd.concat(recorded), "Hiasa et al.").verdict) == {"n too small"}


def test_the_aorta_is_measured_by_itself_in_sd_of_the_true_scan():
    inside = aorta_mask(np.arange(256, dtype=np.uint8))
    labels = np.zeros((4, 40, 40), np.uint8)
    labels[:, 10:30, 10:30] = np.flatnonzero(inside)[0]
    truth = np.random.default_rng(0).normal(0, 0.2, labels.shape)
    data = SimpleNamespace(
        folder="scratch", source=-truth, target=truth, labels_source=labels, valid=None, truth_source_to_target=None,
        windows={"source": Window(0, 100, "%"), "target": Window(-150, 350, "HU")},
        patients=lambda domain: [("p1", slice(0, 2)), ("p2", slice(2, 4))],
    )  # fmt: skip
    error = np.where(labels > 0, 0.1, 0.9)  # 25 HU inside, and what lies outside does not count
    table = tables.in_aorta(truth + error, data, "source_to_target").set_index("patient")
    spread = (truth[:2] * 250).std()
    assert table.loc["p1", "MSE aorta"] == pytest.approx(25**2 / spread**2, rel=1e-3)
    assert table.loc["p1", "PSNR aorta"] == pytest.approx(20 * np.log10(500 / 25), rel=1e-3)


@pytest.fixture
def hips(hips, monkeypatch):
    """The two patients, and a translator that turns the sign, as their truth does."""
    turn = SimpleNamespace(translate=lambda slices, direction: -np.asarray(slices))
    monkeypatch.setattr(experiments, "translator", lambda *_: turn)
    return hips


def test_a_perfect_run_is_measured_as_one_beside_the_frames(hips):
    table = tables.measured("hip", ["hip_many_gc"])
    perfect = table[table.run == "hip_many_gc"]
    assert len(perfect) == 4 and perfect.MAE.max() < 1e-4 and perfect["SSIM whole"].min() > 0.999
    assert set(table.run) == {"hip_many_gc", *tables.FRAMES}
    forth = table[table.direction == "source_to_target"]
    assert forth.groupby("run")["MAE muscle"].mean().idxmin() == "hip_many_gc"
    assert forth.groupby("run").MAE.mean()[tables.CURVE] < 1  # the sign is a curve, and bins are fine
    information = tables.unpaired_information(["hip_many_gc"], every=1).set_index("patient").MI
    back = perfect[perfect.direction == "target_to_source"].set_index("patient").MI
    assert information.to_dict() == pytest.approx(back.to_dict())


def test_a_network_that_is_not_recorded_is_the_readers_own(hips, monkeypatch):
    def none(name):
        raise InputError(f"{name}: is no recorded one")

    monkeypatch.setattr(experiments, "recorded_translator", none)
    assert tables.shown("hip_many_gc")[1] == "yours"
    monkeypatch.setattr(experiments, "recorded_translator", lambda name: "kept")
    assert tables.shown("hip_many_gc") == ("kept", "recorded")
