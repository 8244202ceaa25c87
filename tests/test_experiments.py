"""Experiments by name: what is measured, what is compared, what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mr2ct_lib.course import experiments
from mr2ct_lib.files import InputError, write_json
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods.settings import make_settings

CT = {"low": -150.0, "high": 350.0, "unit": "HU"}
MR = {"low": 0.0, "high": 100.0, "unit": "%"}


def prepared(folder, target, valid=None, patients=2):
    """Two patients of two slices each, 16 x 16; the source is the negative of the target."""
    folder.mkdir()
    np.save(folder / "target.npy", target.astype(np.float32))
    np.save(folder / "source.npy", -target.astype(np.float32))
    if valid is not None:
        np.save(folder / "valid.npy", valid)
    rows = [{"id": f"p{i}", "first": 2 * i, "count": 2} for i in range(patients)]
    meta = {"format": 1, "anatomy": "hip", "shape": [16, 16], "patients": {"source": rows, "target": rows}, "label_names": {}}
    write_json(meta | {"windows": {"source": MR, "target": CT}}, folder / "prepared.json")
    return PreparedSlices(folder)


@pytest.fixture
def target():
    return np.random.default_rng(0).uniform(-0.9, 0.5, (4, 16, 16))


def test_the_truth_itself_has_no_error(tmp_path, target):
    found = experiments.measure(target.astype(np.float32), prepared(tmp_path / "test", target))
    assert found.patient.tolist() == ["p0", "p1"]
    assert found.MAE.max() < 1e-4 and found.SSIM.min() > 1 - 1e-6


def test_an_offset_of_a_tenth_of_the_window_is_25_5_grey_levels_and_50_hu(tmp_path, target):
    found = experiments.measure((target + 0.2).astype(np.float32), prepared(tmp_path / "test", target))
    np.testing.assert_allclose(found.MAE, 25.5, rtol=1e-4)
    np.testing.assert_allclose(found["MSE unit"], 50.0**2, rtol=1e-4)
    np.testing.assert_allclose(found["PSNR unit"], 20, rtol=1e-4)  # a tenth of the range
    np.testing.assert_allclose(found.PSNR, found["PSNR unit"], rtol=1e-6)


def test_pixels_that_the_truth_does_not_cover_are_left_out(tmp_path, target):
    valid = np.ones((4, 16, 16), bool)
    valid[:, :, 8:] = False
    wrong = np.where(valid, target, 1.0).astype(np.float32)
    assert experiments.measure(wrong, prepared(tmp_path / "test", target, valid)).MAE.max() < 1e-4


def test_one_patient_s_error_is_its_own(tmp_path, target):
    wrong = target.copy()
    wrong[2:] += 0.2
    found = experiments.measure(wrong.astype(np.float32), prepared(tmp_path / "test", target))
    assert found.MAE[0] < 1e-4 < found.MAE[1]


def test_baselines_are_slices_like_the_tests(tmp_path, target):
    train, test = prepared(tmp_path / "train", target), prepared(tmp_path / "test", target + 0.05)
    made = experiments.baselines(train, test)
    assert {name: b.shape for name, b in made.items()} == {"histogram matching": (4, 16, 16), "mean training slice": (4, 16, 16)}
    expected = target.reshape(2, 2, 16, 16).mean(0)  # the mean over patients, slice by slice
    np.testing.assert_allclose(made["mean training slice"].reshape(2, 2, 16, 16)[1], expected, atol=1e-5)


def test_unknown_names_and_unlike_shapes_are_refused(tmp_path, target):
    with pytest.raises(InputError, match="'hips' is unknown.*hip_many"):
        experiments.run("hips", root=tmp_path)
    with pytest.raises(InputError, match="'hips' is unknown.*hip_test"):
        experiments.prepared("hips", root=tmp_path)
    with pytest.raises(InputError, match="translate the whole test set"):
        experiments.measure(target[:2].astype(np.float32), prepared(tmp_path / "test", target))
    with pytest.raises(InputError, match="tools.record nothing"):
        experiments.recorded("nothing")


def test_compared_runs_differ_only_in_what_is_compared():
    """Same data and, but for the method's own losses, the same settings: else a table would compare two things at once."""
    runs = experiments.TRAININGS
    for gc, without in (("hip_many_gc", "hip_many"), ("hip_few_gc", "hip_few")):
        assert runs[gc][:2] == runs[without][:2]
        assert {**runs[without][2]} == {**runs[gc][2], "lambda_gc": 0.0}
    for cohort in ("head", "head_distorted", "abdomen"):
        assert runs[f"{cohort}_cyclegan"][0] == runs[f"{cohort}_dicyclegan"][0] == cohort
    trained = {cohort for cohort, _, _ in runs.values()}
    seeds = {name: arguments["seed"] for name, (arguments, _) in experiments.COHORTS.items()}
    assert all(seeds[name] != seeds[f"{name}_test"] for name in trained)


def test_compared_runs_of_the_second_paper_see_as_many_slices():
    """Quick: the same steps, as in the second paper. Paper: the same epochs, patience and augmentation."""
    quick, paper = experiments.SCHEDULES["quick"], experiments.SCHEDULES["paper"]
    wang = make_settings("dicyclegan", "paper")
    for cohort in ("head", "head_distorted", "abdomen"):
        cycle, dicycle = quick[f"{cohort}_cyclegan"], quick[f"{cohort}_dicyclegan"]
        assert cycle == dicycle
        settings = make_settings("cyclegan", "paper", **(experiments.TRAININGS[f"{cohort}_cyclegan"][2] | paper[f"{cohort}_cyclegan"]))
        for name in ("epochs", "decay_epochs", "patience", "decay_patience", "augment", "lambda_cycle", "learning_rate", "batch_size"):
            assert getattr(settings, name) == getattr(wang, name)
    assert set(quick) | set(paper) <= set(experiments.TRAININGS)


def test_a_run_of_other_settings_says_which_folder_to_remove(tmp_path, target, monkeypatch):
    monkeypatch.setattr(experiments, "prepared", lambda *_: prepared(tmp_path / "data", target))
    folder = tmp_path / "quick" / "hip_many_seed7"
    write_json({"settings": {"filters": 99}, "data": {}}, folder / "config.json")
    monkeypatch.setattr("mr2ct_lib.methods.training._check_data", lambda *_: None)
    with pytest.raises(InputError, match=f"filters=99, not 16.*; remove the folder {folder} and run this again"):
        experiments.run("hip_many", root=tmp_path)


def _remember_threads(folder, *_):
    """A job for `side_by_side`: leaves its threads in a file where there is none yet, and returns what the file says."""
    path = Path(folder) / "threads.txt"
    if not path.exists():
        path.write_text(f"{os.getpid()} {torch.get_num_threads()}")
    return path.read_text()


def test_jobs_side_by_side_are_done_by_other_processes_that_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "_is_made", lambda *_, **__: False)
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
        patch.setattr(experiments, "_is_made", lambda *_, **__: False)
        patch.setattr(experiments, "prepared", lambda *_: None)
        experiments.side_by_side((_refuse, "one"), (_refuse, "two"), root=tmp_path)
    assert not str(refusal.value).endswith(str(os.getpid()))
    with pytest.raises(InputError, match="experiment 'hip_none' is unknown"):
        experiments.side_by_side((experiments.run, "hip_none"), (experiments.run, "hip_neither"), root=tmp_path)
