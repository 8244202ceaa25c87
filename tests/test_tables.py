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
    full = pd.concat([rows("hip_few", [10, 12]), rows("hip_few", [14, 16], seed=2)])
    records = {"full": (full, PROVENANCE), "quick": (rows("hip_few", [20, 21, 22]), {})}
    table = tables.beside({"hip_few": "few"}, {"MAE": 1}, records, {("MAE", "hip_few"): 30.233})
    assert table.loc["few"].tolist() == ["30.2", "13.0 ± 2.8", "21.0", "2 / 2 / 800", "1 / 3 / -"]
    behind = "seeds / patients / steps"
    assert table.columns.tolist() == [("MAE", "paper"), *((name, p) for name in ("MAE", behind) for p in records)]


def test_what_is_not_recorded_keeps_its_row_and_shows_a_dash():
    records = {"full": (rows("hip_few", [10, 12]), PROVENANCE)}
    table = tables.beside({"hip_few": "few", "hip_many": "many"}, {"MAE": 1, "MI": 2}, records)
    assert (table.loc["many"] == "-").all() and (table["MI"] == "-").all(axis=None)
    assert ("MAE", "paper") not in table.columns and table.loc["few", ("MAE", "full")] == "11.0"
    with pytest.raises(InputError, match="measures: none"):
        tables.beside({"hip_few": "few"}, {}, records)


def test_the_paper_stands_in_the_row_of_the_run_that_repeats_it():
    nothing = {"full": (rows("x", [1]), {})}
    first = tables.beside_hiasa({"MAE": 2}, nothing)["MAE", "paper"]
    assert first["many, GC"] == "25.54" and first["few, no GC"] == "30.23" and first["many, GC 0.3"] == "-"
    second = tables.beside_wang("deformed", "head_distorted", nothing)
    assert second.loc[("PD -> T2", "CycleGAN"), ("MSE / SD²", "paper")] == "0.586"
    assert second.loc[("T2 -> PD", "DicycleGAN"), ("SSIM by moments", "paper")] == "0.771"
    assert ("SSIM", "paper") not in second.columns
    aorta = tables.beside_wang("in the aorta", "abdomen", nothing)
    assert aorta.loc[("T2* -> CT", "DicycleGAN"), ("PSNR / dB", "paper")] == "23.71"
    assert ("MSE / SD²", "paper") not in tables.beside_wang("deformed", "head_t1", nothing).columns


def test_further_runs_of_a_cohort_get_a_row_when_they_are_recorded():
    longer = rows("head_distorted_cyclegan_equal_time", [1], "head_distorted", **{"MSE unit": 0.5})
    records = {"full": (longer, {}), "quick": (longer[:0], {})}
    table = tables.beside_wang("deformed", "head_distorted", records)
    assert table.loc[("PD -> T2", "CycleGAN, equal time"), ("MSE / SD²", "full")] == "0.500"
    other = tables.beside_wang("undeformed", "head", records)
    assert other.loc["PD -> T2"].index.tolist()[:3] == ["CycleGAN", "DicycleGAN", "supervised"]


def test_rows_are_runs_of_the_catalogue_or_frames():
    trained = {run.removesuffix("_mean").removesuffix("_spin") for run in tables.HIPS}
    assert trained - set(tables.BASELINES) <= set(TRAININGS)
    assert set(tables.HIASA) <= set(tables.HIPS)
    assert set(tables.HIASA.values()) == set(papers.cyclegan_errors().columns)


def test_gains_by_hand():
    values = {"PSNR unit": 20.0, "MSE unit": 0.6}
    one = rows("head_cyclegan", [0, 0], "head", **values)
    two = rows("head_dicyclegan", [0, 0], "head", **{"PSNR unit": 22.5, "MSE unit": 0.2})
    table = tables.gains({"quick": (pd.concat([one, two]), {})})
    row = table.loc[("undeformed", "PD -> T2")]
    assert row["PSNR / dB", "quick"] == 2.5 and row["MSE ratio", "quick"] == 3
    assert row["PSNR / dB", "paper"] == pytest.approx(26.49 - 27.35)
    assert np.isnan(table.loc[("deformed", "T2 -> PD"), ("MSE ratio", "quick")])


def test_claims_that_nobody_recorded_stay_without_a_verdict():
    recorded = [rows("hip_many_gc", [9, 10 + s / 9], seed=s) for s in range(3)]
    recorded += [rows("hip_many", [12 + s / 9, 13], seed=s) for s in range(3)]
    table = tables.claims(pd.concat(recorded), "Hiasa et al.")
    assert len(table) == len(CLAIMS["Hiasa et al."])
    by_claim = table.set_index(["better", "than", "measure"])
    assert by_claim.loc[("many, GC", "many, no GC", "MAE / grey levels"), "verdict"] == "supported"
    of_mi = by_claim.loc[("many, GC", "many, no GC", "MI / nats")]
    assert of_mi[["p (Holm)", "verdict"]].tolist() == ["-", "n too small"]
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


def test_the_information_of_unpaired_scans_is_that_of_every_fourth_slice():
    """A network that returns its input: MI is the entropy of the slice's two equally frequent values, ln 2."""
    half = np.where(np.arange(64).reshape(8, 8) % 2, 0.5, -0.5)
    slices = np.stack([half if n % 4 == 0 else np.zeros((8, 8)) for n in range(8)])
    data = SimpleNamespace(target=slices, patients=lambda domain: [("p1", slice(0, 8))])
    same = SimpleNamespace(translate=lambda given, direction: {"target_to_source": given}[direction])
    table = tables.unpaired_information("hip_many", same, data)
    assert table.to_dict("records") == [{"run": "hip_many", "patient": "p1", "MI": pytest.approx(np.log(2))}]


def test_what_is_shown_is_recorded_except_in_the_papers_own_size(monkeypatch):
    monkeypatch.setattr(experiments, "recorded_translator", lambda name: f"recorded {name}")
    monkeypatch.setattr(experiments, "translator", lambda *which: f"trained {which}")
    assert tables.shown("hip_many_gc") == "recorded hip_many_gc"
    assert tables.shown("hip_many_gc", "paper", 3) == "trained ('hip_many_gc', 'paper', 3)"
