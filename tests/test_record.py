"""Recording: what is done, in which order, what is kept, and that tables follow from the values of each patient."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mr2ct_lib.course import catalogue, experiments
from mr2ct_lib.course.catalogue import Training
from mr2ct_lib.files import InputError, read_json, write_json
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.measures import metrics
from mr2ct_lib.methods.networks import Generator
from mr2ct_lib.methods.translator import DIRECTIONS, Architecture, Translator
from tools import measuring, record, result_tables


def rows(run, seed, mae, split="test", patients=("p1", "p2")):
    """Values of one run on a hip cohort, a row per patient."""
    same = {"run": run, "seed": seed, "cohort": "hip", "split": split, "direction": "source_to_target"}
    return pd.DataFrame([same | {"patient": p, "MAE": mae + i} for i, p in enumerate(patients)])


# --- what is recorded ---


def test_the_plan_names_what_the_catalogue_knows_each_once_the_hips_first():
    jobs = record.jobs()
    assert len(set(jobs)) == len(jobs)
    for kind, name, _ in jobs:
        known = {"frames": catalogue.COHORTS, "translator": catalogue.TRAININGS, "ct_unet": catalogue.TRAININGS}
        assert name in known.get(kind, {*catalogue.TRAININGS, *catalogue.ALONE, "mr_only"})
    order = [name for kind, name, _ in jobs if kind == "translator"]
    assert order.index("hip_many_gc") < order.index("head_distorted_dicyclegan") < order.index("abdomen_dicyclegan")
    assert order.index("abdomen_dicyclegan") < order.index("head_dicyclegan") < order.index("hip_many_signed_gc")


def test_at_least_three_seeds_of_each_training_that_is_compared_and_five_with_and_without_gc():
    seeds = pd.DataFrame(record.jobs(), columns=["kind", "name", "seed"]).query("kind == 'translator'").groupby("name")
    counts = seeds["seed"].nunique()
    once = {"head_dicyclegan_augmented", "abdomen_dicyclegan_augmented"}  # once per table; no claim names them
    assert counts.drop([*once]).min() >= 3 and (counts[["hip_many", "hip_many_gc"]] == 5).all()
    baselines = {"curve fitted on test pairs", "mean training slice", "histogram matching"}
    compared = {
        run for claims in catalogue.CLAIMS.values() for claim in claims for run in (claim.better, claim.against)
    }
    compared = {run.removesuffix("_spin") for run in compared} - baselines
    assert compared <= {*counts.index} - once
    assert set(catalogue.SHOWN) <= {*counts.index}


@pytest.fixture
def plan(monkeypatch):
    """Three jobs; `do` writes down what it is asked for."""
    monkeypatch.setattr(record, "RECORDED", (("translator", ("a", "b"), (1,)), ("translator", ("a",), (2,))))
    monkeypatch.setattr(record, "keep", lambda *_: None)
    done = []

    def do(job, profile):
        done.append(job[1:])
        table = rows(job[1], job[2], 10.0).assign(**{"PSNR unit": 1.0, "SSIM": 0.5, "displacement": 2.0})
        return {"hip": table}, {"minutes": 1}

    monkeypatch.setattr(record, "do", do)
    monkeypatch.setattr(record.experiments, "jobs_at_once", lambda *_: 1)  # in this process
    return done


def test_recording_continues_where_it_stopped(plan, tmp_path, capsys):
    assert not record.record("full", tmp_path, only="b")
    assert (tmp_path / "full" / "missing.txt").read_text() == "translator a seed 1\ntranslator a seed 2\n"
    assert record.record("full", tmp_path)
    assert plan == [("b", 1), ("a", 1), ("a", 2)]
    assert (tmp_path / "full" / "missing.txt").read_text() == "nothing\n"
    table = pd.read_csv(tmp_path / "full" / "hip.csv")
    assert table[["run", "seed", "patient"]].agg(lambda r: "".join(map(str, r)), axis=1).tolist() == [
        "a1p1", "a1p2", "a2p1", "a2p2", "b1p1", "b1p2",
    ]  # fmt: skip
    assert list(read_json(tmp_path / "full" / "provenance.json")["runs"]) == ["a:1", "a:2", "b:1"]
    lines = [line for line in capsys.readouterr().out.splitlines() if " translator " in line]
    assert sum("min:" in line for line in lines) == 3  # one line per run
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.csv")}
    assert record.record("full", tmp_path, again=True) and len(plan) == 6
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.csv")}


def test_translators_side_by_side_are_recorded_as_one_by_one(plan, tmp_path, monkeypatch, capsys):
    """Their data are prepared first and once; one that cannot be done stops no other, and the budget ends all."""
    prepared, do = [], record.do
    monkeypatch.setattr(record.cores, "pool", lambda workers, threads: ThreadPoolExecutor(workers))
    monkeypatch.setattr(record.experiments, "prepared", lambda name, profile: prepared.append(name))
    known = Training("hip", "cyclegan")
    monkeypatch.setattr(record, "TRAININGS", {"a": known, "b": known})
    assert record.record("full", tmp_path / "one") and record.record("full", tmp_path / "two", workers=2)
    assert prepared[:3] == ["hip", "hip_test", "hip_validation"]
    tables = [(tmp_path / name / "full" / "hip.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1] and sorted(plan[:3]) == sorted(plan[3:])

    def refuse(job, profile):
        if job[1:] == ("a", 1):
            raise InputError("cohort: disk is full")
        return do(job, profile)

    monkeypatch.setattr(record, "do", refuse)
    assert not record.record("full", tmp_path / "three", workers=2)
    assert "runs a:1: left out. cohort: disk is full" in capsys.readouterr().out

    def unprepared(name, profile):
        if name == "head":
            raise InputError("head: disk is full")

    monkeypatch.setattr(record, "do", do)
    monkeypatch.setattr(record.experiments, "prepared", unprepared)
    monkeypatch.setattr(record, "TRAININGS", {"a": Training("head", "cyclegan"), "b": known})
    assert not record.record("full", tmp_path / "five", workers=2)
    assert (tmp_path / "five" / "full" / "missing.txt").read_text() == "translator a seed 1\ntranslator a seed 2\n"
    order = [("frames", "hip", 0), ("translator", "b", 1), ("spin", "b", 1), ("translator", "b", 2)]
    assert [job for job, _, _ in record.outcomes(order, "full", workers=2)] == order  # the most important first
    monkeypatch.setattr(record, "do", lambda *_: time.sleep(3))
    assert not record.record("full", tmp_path / "four", budget=0.3 / 60, workers=2)
    assert "the budget" in capsys.readouterr().out


def test_what_cannot_be_done_is_named_and_does_not_stop_the_rest(plan, tmp_path, monkeypatch, capsys):
    do = record.do

    def refuse(job, profile):
        if job[1:] == ("a", 1):
            raise InputError("cohort: disk is full")
        return do(job, profile)

    monkeypatch.setattr(record, "do", refuse)
    assert not record.record("full", tmp_path)
    assert "runs a:1: left out. cohort: disk is full" in capsys.readouterr().out
    assert (tmp_path / "full" / "missing.txt").read_text() == "translator a seed 1\n"


def test_the_budget_ends_a_training_under_way(plan, tmp_path, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(record, "do", lambda *_: (time.sleep(30), ended.append(1)))
    assert not record.record("full", tmp_path, budget=0.3 / 60) and not ended
    out = capsys.readouterr().out
    assert "the budget" in out and "0 of 3 recorded" in out


def test_a_structure_counts_for_those_who_have_it(tmp_path):
    """Neither a perfect miss (NaN) nor a stray pixel (0) in a patient without it enters the mean."""
    values = {"Dice": [0.8, 0.0, np.nan], "HD95": [2.0, np.nan, np.nan], "true mL": [5.0, 0.0, 0.0]}
    same = {"run": "a", "seed": 7, "structure": "sacrum", "split": "test"}
    records = pd.DataFrame(values | {"patient": ["p1", "p2", "p3"]}).assign(**same)
    table = result_tables.seeds_table(records, ["run", "structure", "split"], {"Dice": 3, "HD95": 2})
    assert table[["Dice", "HD95", "patients"]].to_numpy().tolist() == [["0.800", "2.00", 1]]


def test_a_run_is_compared_with_the_catalogue_in_steps(tmp_path, monkeypatch):
    settings = vars(catalogue.training_settings("head_dicyclegan", "paper", 7).in_steps(20))
    ids = [{"id": f"s{i}", "count": 10} for i in range(2)]
    config = {"settings": settings, "data": {"patients": {"source": ids, "target": ids}}}
    write_json(config, tmp_path / "config.json")
    (tmp_path / "log.jsonl").write_text('{"step": 10, "seconds": 60.0}\n')
    monkeypatch.setattr(record.experiments, "run_folder", lambda *_: tmp_path)
    assert not record.provenance_of_run("head_dicyclegan", 7, "paper").get("differs_from_catalogue")
    write_json(config | {"settings": settings | {"patients": 1, "blocks": 2}}, tmp_path / "config.json")
    found = record.provenance_of_run("head_dicyclegan", 7, "paper")["differs_from_catalogue"]
    assert set(found) >= {"patients", "blocks"}


def test_new_values_take_the_place_of_the_same_run_only(tmp_path):
    record.add({"hip": pd.concat([rows("a", 1, 5.0), rows("a", 2, 6.0), rows("b", 1, 7.0)])}, tmp_path)
    record.add({"hip": rows("a", 1, 1.0, patients=("p3",))}, tmp_path)
    table = pd.read_csv(tmp_path / "hip.csv")
    assert table[table.run == "a"].MAE.tolist() == [1, 6, 7] and len(table) == 5


# --- tables ---


def test_tables_by_hand_and_the_same_bytes_again(tmp_path):
    record.add({"hip": pd.concat([rows("a", 1, 10.0), rows("a", 2, 14.0), rows("a", 1, 90.0, "validation")])}, tmp_path)
    paths = result_tables.write_tables(tmp_path)
    table = pd.read_csv(tmp_path / "tables" / "hip.csv")
    # patients' means 10.5 and 14.5 of two seeds: mean 12.5, SD 4 / sqrt 2
    assert table[["split", "MAE", "seeds", "patients"]].to_numpy().tolist() == [
        ["test", "12.50 ± 2.83", 2, 2],
        ["validation", "90.50", 1, 2],
    ]
    claims = pd.read_csv(tmp_path / "tables" / "claims.csv")
    assert (claims.verdict == "n too small").all()
    before = [path.read_bytes() for path in paths]
    assert before == [path.read_bytes() for path in result_tables.write_tables(tmp_path)]


@pytest.mark.parametrize(
    "profile", sorted(path.name for path in experiments.RESULTS.glob("*") if (path / "tables").is_dir())
)
def test_the_tables_in_the_repository_follow_from_its_values(profile, tmp_path):
    folder = experiments.RESULTS / profile
    for path in folder.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    made = {path.name: path.read_bytes() for path in result_tables.write_tables(tmp_path)}
    assert made == {path.name: path.read_bytes() for path in (folder / "tables").glob("*.csv")}


def test_recorded_files_are_small():
    for path in experiments.RESULTS.rglob("*.csv"):
        assert path.stat().st_size < 1e6, path
    for part, limit in (("translators", 16e6), ("segmenters", 2e6)):
        assert sum(path.stat().st_size for path in (experiments.RESULTS / part).rglob("*")) < limit


# --- measuring ---


def test_a_perfect_translation_is_measured_as_one_in_both_directions_and_splits(hips):
    tables = measuring.measure_images("hip", lambda data, way: getattr(data, way.split("_to_")[1]), "full", 3, "ideal")
    errors, tissue = tables["hip"], tables["tissues"]
    assert len(errors) == 8 and set(errors.split) == {"test", "validation"} and set(errors.seed) == {3}
    assert errors.MAE.max() < 1e-4 and errors["SSIM whole"].min() > 0.999
    assert (errors["q99.5"] == errors["true q99.5"]).all()
    expected = metrics.slicewise(metrics.mutual_information, hips.target, hips.source, limits=((-1, 1), (-1, 1)))
    first = errors[(errors.direction == "source_to_target") & (errors.split == "test")]
    assert first.MI.tolist() == pytest.approx(expected.reshape(2, 2).mean(axis=1))
    assert set(tissue.tissue) == {"muscle", "trabecular_bone"} and set(tissue.direction) == {"source_to_target"}
    assert tissue[tissue.tissue == "muscle"]["true SD"].to_numpy() == pytest.approx(0.05 * 250, rel=0.1)


def test_frames_hold_baselines_and_curves_and_a_fitted_curve_wins_where_one_suffices(hips):
    errors = measuring.measure_frames("hip", "full")["hip"]
    means = errors[errors.split == "test"].groupby("run").MAE.mean()
    assert set(means.index) == {
        "histogram matching", "mean training slice", "curve fitted on test pairs", "curve fitted on validation pairs",
    }  # fmt: skip
    assert means.idxmin() in ("curve fitted on test pairs", "curve fitted on validation pairs") and means.min() < 1


def test_the_mean_of_networks_is_without_what_one_invents_and_another_takes_away(hips, monkeypatch):
    """The truth is the negative; errors of +0.3, -0.3 and 0 cancel, the first alone has 0.3 / 2 * 255 grey levels."""

    def network(name, profile, seed):
        return SimpleNamespace(translate=lambda slices, way, spin: -slices + {1: 0.3, 2: -0.3, 3: 0.0}[seed])

    monkeypatch.setattr(measuring, "finished_translator", network)
    errors = measuring.measure_mean("hip_many_gc", "full", (1, 2, 3))["hip"]
    assert set(errors.run) == {"hip_many_gc_mean"} and set(errors.seed) == {0} and errors.MAE.max() < 1e-3
    alone = measuring.measure_mean("hip_many_gc", "full", (1,))["hip"]
    assert alone.MAE.to_numpy() == pytest.approx(0.3 / 2 * 255, rel=0.15)  # less where the scale ends
    assert record.place(("mean", "hip_many_gc", 0)) == ("means", "hip_many_gc")


def test_without_offset_layers_the_undeformed_pass_is_the_same():
    import torch

    preparation = Preparation("axial", 1.0, (32, 32), 1.0, {"source": MR_WINDOW, "target": CT_WINDOW})
    whole = Translator(Architecture(8, 1, "per_channel", "resize"), preparation, {})
    whole.training_data = {"source": {}}
    torch.nn.init.normal_(whole.source_to_target.offsets[0].predict.weight)
    slices = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32)).astype(np.float32)
    plain = record.without_offsets(whole)
    for direction in DIRECTIONS:
        np.testing.assert_array_equal(plain.translate(slices, direction), whole.translate(slices, direction))
    assert plain.training_data == whole.training_data and not plain.source_to_target.offsets
    assert not np.allclose(whole.translate(slices), whole.translate(slices, deform=True))


def test_half_precision_halves_a_network_and_hardly_changes_it():
    import torch

    torch.manual_seed(0)
    whole = Generator(8, 1, None, "resize")
    small = record.half(whole)
    assert next(small.parameters()).dtype == torch.float16 and next(whole.parameters()).dtype == torch.float32
    images = torch.rand(1, 1, 32, 32) * 2 - 1
    back = Generator(8, 1, None, "resize")
    back.load_state_dict(small.state_dict())  # what loading does: half the numbers, whole arithmetic
    assert (back(images) - whole(images)).abs().max() < 0.01  # of a range of 2
