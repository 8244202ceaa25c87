"""Experiments by name: what is measured, what is compared, what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mr2ct_lib.course import catalogue, experiments, recorded
from mr2ct_lib.files import InputError, write_json
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import write_record
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods.settings import PROFILES, make_settings

PREPARATION = Preparation("coronal", 5.0, (16, 16), 5.0, {"source": MR_WINDOW, "target": CT_WINDOW})


def prepared(folder, target, valid=None, patients=2):
    """Two patients of two slices each, 16 x 16; the source is the negative of the target."""
    folder.mkdir()
    np.save(folder / "target.npy", target.astype(np.float32))
    np.save(folder / "source.npy", -target.astype(np.float32))
    if valid is not None:
        np.save(folder / "valid.npy", valid)
    rows = [{"id": f"p{i}", "first": 2 * i, "count": 2} for i in range(patients)]
    write_record(folder, PREPARATION, {"source": rows, "target": rows}, anatomy="hip", label_names={})
    return PreparedSlices(folder)


@pytest.fixture
def target():
    return np.random.default_rng(0).uniform(-0.9, 0.5, (4, 16, 16))


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="'hips' is unknown.*hip_many"):
        experiments.run("hips", root=tmp_path)
    with pytest.raises(InputError, match="'hips' is unknown.*hip_test"):
        experiments.prepared("hips", root=tmp_path)
    with pytest.raises(InputError, match="holds no nothing; expected a table"):
        experiments.recorded("nothing")


def test_compared_runs_differ_only_in_what_is_compared():
    """Same data and, but for the method's own losses, the same settings: else a table would compare two things."""
    runs = catalogue.TRAININGS
    for gc, without in (("hip_many_gc", "hip_many"), ("hip_few_gc", "hip_few")):
        assert (runs[gc].cohort, runs[gc].method, runs[gc].few) == (
            runs[without].cohort, runs[without].method, runs[without].few
        )  # fmt: skip
        assert runs[without].settings == {**runs[gc].settings, "lambda_gc": 0.0}
    for cohort in ("head", "head_distorted", "abdomen"):
        assert runs[f"{cohort}_cyclegan"].cohort == runs[f"{cohort}_dicyclegan"].cohort == cohort


def test_no_person_is_in_two_cohorts_of_different_purpose():
    seeds = {name: plan.arguments["seed"] for name, plan in catalogue.COHORTS.items()}
    for training in catalogue.TRAININGS.values():
        for seed in (0, 7):
            tests = [catalogue.cohort_plan(f"{training.tested_on(seed)}_{split}") for split in ("test", "validation")]
            assert len(of_test := {plan.arguments["seed"] for plan in tests}) == 2
            assert catalogue.cohort_plan(training.data(seed)).arguments["seed"] not in of_test
    assert len({seeds[f"hip{part}"] for part in ("", "_test", "_validation", "_labelled", "_paired")}) == 5


def test_resampled_runs_of_distorted_heads_meet_another_distortion_for_each_seed_in_training_and_in_tests():
    training = catalogue.TRAININGS["head_distorted_dicyclegan_resampled"]
    for seed in (1, 2):
        learned = catalogue.cohort_plan(training.data(seed))
        test = catalogue.cohort_plan(f"{training.tested_on(seed)}_test")
        assert learned.arguments == {"anatomy": "head", "seed": 100 + seed, "distort_target": 100 + seed}
        assert test.arguments == {"anatomy": "head", "seed": 2, "distort_target": 100 + seed, "paired": True}
        assert (learned.patients["full"], test.patients["full"]) == (38, 28)
    same = catalogue.TRAININGS["head_distorted_dicyclegan"]
    assert same.data(1) == same.data(2) == "head_distorted"
    with pytest.raises(InputError, match="'hips' is unknown"):
        catalogue.cohort_plan("hips")
    with pytest.raises(InputError, match="'hip_people3' is unknown"):
        catalogue.cohort_plan("hip_people3")


def test_a_supervised_experiment_learns_from_pairs_and_no_other_does():
    for training in catalogue.TRAININGS.values():
        plan = catalogue.cohort_plan(training.data(7))
        assert bool(plan.arguments.get("paired")) == (training.method == "supervised")


def test_equal_time_is_twice_the_steps():
    names = ("head_distorted_cyclegan", "head_distorted_cyclegan_equal_time")
    once, twice = (catalogue.training_settings(name, "quick", seed=7) for name in names)
    assert (twice.iterations, twice.decay_iterations) == (2 * once.iterations, 2 * once.decay_iterations)


def test_profiles_that_share_scans_take_their_first_patients(monkeypatch, tmp_path):
    """Quick uses full's scans: same folders, patients as a setting."""
    assert catalogue.training_settings("head_cyclegan", "quick", seed=7).patients == 38
    assert catalogue.training_settings("hip_many", "quick", seed=7).patients == 60
    assert catalogue.training_settings("hip_few", "quick", seed=7).patients == 6
    assert catalogue.training_settings("hip_many", "full", seed=7).patients is None
    ids = [f"p{i:04d}" for i in range(1, 29)]
    write_json({"complete": True, "patients": dict.fromkeys(ids)}, tmp_path / "full/cohorts/head_test/cohort.json")
    assert experiments.cohort("head_test", "quick", tmp_path) == tmp_path / "full/cohorts/head_test"


def test_compared_runs_of_the_second_paper_see_as_many_slices():
    """Quick: the same steps, as in the second paper. Paper: the same epochs, patience and augmentation."""
    wang = make_settings("dicyclegan", "paper")
    for cohort in ("head", "head_distorted", "abdomen"):
        quick = [
            catalogue.training_settings(f"{cohort}_{method}", "quick", seed=7) for method in ("cyclegan", "dicyclegan")
        ]
        assert quick[0].iterations == quick[1].iterations and quick[0].decay_iterations == quick[1].decay_iterations
        settings = catalogue.training_settings(f"{cohort}_cyclegan", "paper", seed=7)
        for name in ("epochs", "decay_epochs", "patience", "decay_patience", "augment", "lambda_cycle", "batch_size"):
            assert getattr(settings, name) == getattr(wang, name)
    for profile in PROFILES.values():
        for start in profile.experiments:
            assert any(name.startswith(start) for name in catalogue.TRAININGS), f"{start} names no experiment"


@pytest.mark.parametrize("profile", catalogue.SCANS)
def test_every_training_has_settings_in_every_profile(profile):
    for name in catalogue.TRAININGS:
        settings = catalogue.training_settings(name, profile, seed=3)
        assert settings.seed == 3 and settings.profile == profile


def test_a_larger_cohort_serves_a_profile_with_fewer_patients(tmp_path, target):
    whole = prepared(tmp_path / "test", target)
    part = whole.first_patients(1, 1)
    assert part.patients("source") == [("p0", slice(0, 2))] and part.count("target") == 2
    np.testing.assert_array_equal(part.target, whole.target[:2])
    assert len(whole.source) == 4 and whole.first_patients(2, 2) is whole


def test_a_run_of_other_settings_says_which_folder_to_remove(tmp_path, target, monkeypatch):
    monkeypatch.setattr(experiments, "prepared", lambda *_: prepared(tmp_path / "data", target))
    folder = tmp_path / "full" / "hip_many_seed7"
    write_json({"settings": {"filters": 99}, "data": {}}, folder / "config.json")
    monkeypatch.setattr("mr2ct_lib.methods.runs._check_data", lambda *_: None)
    with pytest.raises(InputError, match=f"filters=99, not 16.*; remove the folder {folder} and run this again"):
        experiments.run("hip_many", "full", root=tmp_path)


def _remember_threads(folder, *_):
    """A job for `side_by_side`: writes its threads to a file unless there is one, and returns what the file says."""
    path = Path(folder) / "threads.txt"
    if not path.exists():
        path.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    return path.read_text()


def test_jobs_side_by_side_are_done_by_other_processes_that_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "_is_done", lambda *_, **__: False)
    monkeypatch.setattr(experiments, "prepared", lambda *_: None)
    monkeypatch.setattr(experiments.cores, "available", lambda: 5)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    found = experiments.side_by_side(*[(_remember_threads, folder) for folder in folders], root=tmp_path)
    processes, threads = zip(*(text.split() for text in found), strict=True)
    assert str(os.getpid()) not in processes
    assert threads == ("2", "2")


def _refuse(folder, *_):
    raise InputError(f"{folder}: refused by process {os.getpid()}")


def test_what_fails_side_by_side_says_so_here(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments.cores, "available", lambda: 2)
    with monkeypatch.context() as patch, pytest.raises(InputError, match="one: refused by process") as refusal:
        patch.setattr(experiments, "_is_done", lambda *_, **__: False)
        patch.setattr(experiments, "prepared", lambda *_: None)
        experiments.side_by_side((_refuse, "one"), (_refuse, "two"), root=tmp_path)
    assert not str(refusal.value).endswith(str(os.getpid()))
    with pytest.raises(InputError, match="experiment 'hip_none' is unknown"):
        experiments.side_by_side((experiments.run, "hip_none"), (experiments.run, "hip_neither"), root=tmp_path)


# --- recorded results ---


def test_recorded_values_are_those_of_one_split(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    (tmp_path / "full").mkdir()
    for name, mae in (("hip", 1), ("head", 2)):
        (tmp_path / "full" / f"{name}.csv").write_text(f"run,split,MAE\n{name},test,{mae}\n{name},validation,9\n")
    write_json({"profile": "full"}, tmp_path / "full" / "provenance.json")
    table, provenance = experiments.recorded("images", "full")
    assert table.MAE.tolist() == [2, 1] and provenance == {"profile": "full"}
    assert experiments.recorded("images", "full", split="validation")[0].MAE.tolist() == [9, 9]


def test_a_translator_is_found_by_its_folder_or_its_recorded_name(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    for folder in ("results/translators/hip_many_gc", "runs/a/translator"):
        write_json({}, tmp_path / folder / "translator.json")
    assert recorded.find_translator("hip_many_gc") == tmp_path / "results/translators/hip_many_gc"
    assert recorded.find_translator("runs/a") == Path("runs/a")  # load_translator takes a run's folder, too
    assert recorded.find_translator(Path("runs/a/translator")) == Path("runs/a/translator")
    for name in ("hip", "../results", "runs", tmp_path):
        with pytest.raises(InputError, match="one of the recorded ones: hip_many_gc"):
            recorded.find_translator(name)


def test_runs_side_by_side_on_a_gpu_count_its_memory(monkeypatch):
    monkeypatch.setattr(experiments.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(experiments.torch.cuda, "mem_get_info", lambda: (16 * 2**30, 16 * 2**30))
    small = experiments._gpu_memory([(experiments.run, "hip_many_gc")], "paper")
    memory, large = experiments._gpu_memory(
        [(experiments.run, "hip_many_gc"), (experiments.run, "head_dicyclegan")], "paper"
    )
    assert small[0] == memory == 16 * 2**30
    assert 2 * 2**30 < small[1] < large < memory  # the larger of the two runs decides
