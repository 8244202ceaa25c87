"""Laws of a run's folder: resumed runs end in the same bits; what it holds; what is refused."""

import json
import os
import sys
import types

import numpy as np
import pytest
import torch
from tiny_runs import bits, settings, without_time

from mr2ct_lib import files
from mr2ct_lib.files import InputError
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods import distributed, training
from mr2ct_lib.methods.runs import read_log, train
from mr2ct_lib.methods.training_data import describe_training_data
from mr2ct_lib.methods.translator import load_translator
from tools import kills
from tools.kills import same

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices per domain, discs, bright in one domain and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


FIELD = {"offset_layers": "field", "lambda_dicycle": 0.0}
RUNS = [("cyclegan", 4, {}), ("dicyclegan", 5, {}), ("dicyclegan", 4, FIELD)]


@pytest.mark.parametrize("method, stop_at, changes", RUNS)
def test_an_interrupted_and_resumed_run_ends_in_the_same_bits(method, stop_at, changes, data, tmp_path, monkeypatch):
    s = settings(method, **changes)
    train(s, data, tmp_path / "whole")
    step = training.Trainer.step

    def stop(trainer):
        if trainer.step_number == stop_at:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(training.Trainer, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(s, data, tmp_path / "cut")
    monkeypatch.undo()
    train(s, data, tmp_path / "cut", resume=True)
    assert same(bits(tmp_path / "whole"), bits(tmp_path / "cut"))
    assert without_time(tmp_path / "whole") == without_time(tmp_path / "cut")
    assert [line["step"] for line in read_log(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_kills_at_random_moments_change_nothing(method, tmp_path):
    """A small part of `python -m tools.kills`, which makes fifty."""
    runs = kills.Kills(tmp_path, method)
    found = [runs.run(seed) for seed in (0, 2)]
    assert sum(killed for killed, *_ in found) > 0 and all(identical for *_, identical in found)


def test_the_log_of_a_run_killed_before_its_first_checkpoint_begins_anew(data, tmp_path, monkeypatch):
    whole = train(settings(), data, tmp_path / "whole")
    step = training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda t: step(t) if t.step_number < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(settings(), data, tmp_path / "cut")
    monkeypatch.undo()
    with (tmp_path / "cut" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "sec')  # as a kill may leave it
    assert without_time(train(settings(), data, tmp_path / "cut", resume=True)) == without_time(whole)


def killed(folder):
    """What a write that was killed leaves behind."""
    folder.mkdir(parents=True)
    (folder / files.LOCK).touch()
    return folder


def test_what_killed_writes_left_behind_is_taken_away(data, tmp_path):
    run = tmp_path / "run"
    killed(run / ".config.json.x1")
    (run / ".config.json.x0").mkdir()  # killed before there was a lock
    train(settings(sample_every=3), data, run)
    (run / "translator" / "translator.json").unlink()
    (run / ".config.json.x0").rmdir()
    killed(run / ".checkpoint.pt.x2"), killed(run / "samples" / ".0000003.png.x3")
    train(settings(sample_every=3), data, run, resume=True)
    assert not list(run.rglob(".*"))


def test_hidden_folders_of_the_user_and_what_a_living_run_writes_stay(data, tmp_path):
    run = train(settings(), data, tmp_path / "run")
    (run / ".my.notes").mkdir()
    (run / ".my.notes" / "text").write_text("mine")
    with open(killed(run / ".checkpoint.pt.x1") / files.LOCK, "r+") as lock:
        assert files._locked(lock)
        train(settings(), data, run, resume=True)
        assert (run / ".checkpoint.pt.x1").is_dir()
    train(settings(), data, run, resume=True)
    assert {path.name for path in run.glob(".*")} == {".my.notes"}
    assert (run / ".my.notes" / "text").read_text() == "mine"


def test_the_run_folder_holds_what_its_users_look_for(data, tmp_path):
    run = train(settings("dicyclegan"), data, tmp_path / "run")
    assert {"config.json", "log.jsonl", "checkpoint.pt", "samples", "translator"} == {
        path.name for path in run.iterdir()
    }
    terms = {"adversarial", "cycle", "dicycle", "align", "discriminator_source", "discriminator_target"}
    assert terms | {"step", "seconds", "learning_rate"} == read_log(run)[0].keys()
    translator = load_translator(run)
    slices = np.load(data / "source.npy")
    out = translator.translate(slices, deform=True)
    assert out.shape == slices.shape and np.abs(out).max() <= 1


def test_a_second_run_in_the_same_folder_and_other_settings_are_refused(data, tmp_path):
    run = train(settings(), data, tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        train(settings(), data, run)
    with pytest.raises(InputError, match="filters=4, not 8"):
        train(settings(filters=8), data, run, resume=True)
    before = (run / "checkpoint.pt").read_bytes()
    config = json.loads((run / "config.json").read_text())
    del config["settings"]["discriminator_rate"]  # as if the run were older than this setting
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="discriminator_rate=1.0, not 0.5"):
        train(settings(discriminator_rate=0.5), data, run, resume=True)
    train(settings(), data, run, resume=True)  # finished: left as it is
    assert (run / "checkpoint.pt").read_bytes() == before


def test_a_run_knows_the_patients_that_it_learns_from_and_no_others(data, tmp_path):
    """So a cohort may grow without making the runs on its first patients those of other data."""
    for patients in (1, None):
        run = train(settings(patients=patients), data, tmp_path / f"run{patients}")
        held = json.loads((data / "prepared.json").read_text())["patients"]
        known = json.loads((run / "config.json").read_text())["data"]["patients"]
        assert known == {domain: rows[:patients] for domain, rows in held.items()}
        translator, slices = load_translator(run), PreparedSlices(data)
        for n in (1, 2, 3):
            described = describe_training_data(translator, slices.first_patients(n, n))
            for domain, record in translator.training_data.items():
                same_ones = [record[name] == described[domain][name] for name in ("histogram", "mean")]
                assert same_ones == [n == (patients or 3)] * 2


def test_truncated_and_foreign_checkpoints_are_named(data, tmp_path):
    run = train(settings(), data, tmp_path / "run")
    path = run / "checkpoint.pt"
    whole = path.read_bytes()
    (run / "translator" / "translator.json").unlink()
    for broken in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="checkpoint.pt.*truncated or no checkpoint"):
            train(settings(), data, run, resume=True)
    other = train(settings(filters=8), data, tmp_path / "other")
    path.write_bytes((other / "checkpoint.pt").read_bytes())
    with pytest.raises(InputError, match="another architecture"):
        train(settings(), data, run, resume=True)


def test_a_checkpoint_of_an_earlier_version_is_refused(data, tmp_path):
    run = train(settings(), data, tmp_path / "run")
    (run / "translator" / "translator.json").unlink()
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    del state["format"]
    torch.save(state, run / "checkpoint.pt")
    with pytest.raises(InputError, match="checkpoint.pt: is not of format 3.*start the run anew"):
        train(settings(), data, run, resume=True)


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_loading_a_checkpoint_never_runs_code(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(settings(), data, tmp_path / "run")
    (run / "translator" / "translator.json").unlink()
    torch.save({"step": Malicious()}, run / "checkpoint.pt")
    with pytest.raises(InputError, match="checkpoint.pt"):
        train(settings(), data, run, resume=True)
    assert not (tmp_path / "ran").exists()


def test_too_few_slices_and_patients_are_named(data, tmp_path):
    with pytest.raises(InputError, match="6 source slices; expected at least a batch of 7"):
        train(settings(batch_size=7), data, tmp_path / "run")
    with pytest.raises(InputError, match="3 source patients; expected 4"):
        train(settings(patients=4), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def copied(data, folder, **arrays):
    folder.mkdir()
    for domain in ("source", "target"):
        np.save(folder / f"{domain}.npy", arrays.get(domain, np.load(data / f"{domain}.npy")))
    (folder / "prepared.json").write_text((data / "prepared.json").read_text())
    return folder


@pytest.mark.parametrize("scale", [4.0, float("nan")])
def test_values_that_no_window_made_are_refused(scale, data, tmp_path):
    with pytest.raises(InputError, match="target.npy: holds values from .* expected -1 to 1"):
        train(
            settings(), copied(data, tmp_path / "data", target=np.load(data / "target.npy") * scale), tmp_path / "run"
        )


def test_domains_of_two_shapes_are_refused(data, tmp_path):
    with pytest.raises(InputError, match=r"target.npy: has shape \(6, 16, 32\); expected \(6, 32, 32\)"):
        train(
            settings(), copied(data, tmp_path / "data", target=np.load(data / "target.npy")[:, ::2]), tmp_path / "run"
        )


def test_slices_smaller_than_a_discriminator_can_see_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="32 pixels on a side; expected at least 48 for discriminator_layers=4"):
        train(settings(discriminator_layers=4), data, tmp_path / "run")
    train(
        settings(discriminator_layers=3, iterations=1, decay_iterations=0),
        kills.make_slices(tmp_path / "small", 24),
        tmp_path / "run",
    )
    for layers in (1, 2):  # here it is the generator that sees too little
        small = kills.make_slices(tmp_path / f"smaller{layers}", 12)
        with pytest.raises(InputError, match="12 pixels on a side; expected at least 16 .* Prepare them larger$"):
            train(settings(discriminator_layers=layers), small, tmp_path / "other")


def test_options_of_torchrun_that_cannot_be_split_are_refused():
    with pytest.raises(InputError, match="--torchrun .*No closing quotation.*Close each quotation mark"):
        distributed.launch('--nproc-per-node "2', ["train"])


class Board:
    seen = []

    def __init__(self, folder, purge_step):
        self.seen.append(("from", purge_step))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.seen.append("closed")

    def add_scalar(self, name, value, step):
        self.seen.append((name, step))

    def add_image(self, name, image, step, dataformats):
        assert image.min() >= 0 and image.max() <= 1 and dataformats == "HW"
        self.seen.append((name, step))


def test_tensorboard_gets_what_the_log_and_the_samples_get(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Board))
    train(settings(), data, tmp_path / "run", tensorboard=True)
    assert Board.seen[0] == ("from", 1) and Board.seen[-1] == "closed"
    assert {("cycle", 1), ("discriminator_target", 6), ("learning_rate", 6), ("sample", 6)} <= set(Board.seen)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard, or train without it"):
        train(settings(), data, tmp_path / "other", tensorboard=True)


def test_weights_of_another_architecture_are_refused(data, tmp_path):
    run = train(settings(), data, tmp_path / "run")
    path = run / "translator" / "translator.json"
    path.write_text(path.read_text().replace('"blocks": 1', '"blocks": 2'))
    with pytest.raises(InputError, match="another architecture"):
        load_translator(run)
    path.write_text(path.read_text().replace('"filters": 4', '"filters": -1'))
    with pytest.raises(InputError, match="translator.json: cannot be used .*negative"):
        load_translator(run)
    with pytest.raises(InputError, match="translator.json"):
        load_translator(tmp_path)
