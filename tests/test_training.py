"""Laws of training: same seed same bits, resumed or not, on one process or two; and refusals."""

import os
import signal
import socket
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from mr2ct_lib.files import InputError
from mr2ct_lib.images.slices import PreparedSlices, unpaired_batch
from mr2ct_lib.methods import distributed, stopping, training
from mr2ct_lib.methods.settings import make_settings
from mr2ct_lib.methods.training import ImagePool, read_log, train
from mr2ct_lib.methods.translator import load_translator
from tools import kills
from tools.kills import same

TINY = {
    "filters": 4,
    "blocks": 1,
    "discriminator_filters": 4,
    "discriminator_layers": 2,
    "batch_size": 2,
    "iterations": 4,
    "decay_iterations": 2,
    "pool_size": 3,
    "log_every": 1,
    "checkpoint_every": 3,
    "sample_every": 6,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny networks lose by threads, and the same number of them is part of the law of same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices of discs a domain, bright in one and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


def settings(method="cyclegan", **changes):
    in_epochs = {steps for steps, epochs in (("iterations", "epochs"), ("decay_iterations", "decay_epochs")) if epochs in changes}
    return make_settings(method, "quick", **({name: value for name, value in TINY.items() if name not in in_epochs} | changes))


def bits(run):
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    return checkpoint["networks"], checkpoint["pools"], checkpoint["optimisers"]


def without_time(run):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_log(run)]


@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_same_seed_same_bits_other_seed_others(method, data, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        train(settings(method, seed=seed), data, tmp_path / name)
    assert same(bits(tmp_path / "one"), bits(tmp_path / "again"))
    assert not same(bits(tmp_path / "one"), bits(tmp_path / "other"))


@pytest.mark.parametrize("method, stop_at", [("cyclegan", 4), ("dicyclegan", 5)])
def test_an_interrupted_and_resumed_run_ends_in_the_same_bits(method, stop_at, data, tmp_path, monkeypatch):
    train(settings(method), data, tmp_path / "whole")
    step = training.Trainer.step

    def stop(trainer):
        if trainer.step_number == stop_at:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(training.Trainer, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(settings(method), data, tmp_path / "cut")
    monkeypatch.undo()
    train(settings(method), data, tmp_path / "cut", resume=True)
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


def test_what_killed_writes_left_behind_is_taken_away(data, tmp_path):
    run = tmp_path / "run"
    (run / ".config.json.x1").mkdir(parents=True)
    train(settings(sample_every=3), data, run)
    (run / "translator" / "translator.json").unlink()
    for leftover in (run / ".checkpoint.pt.x2", run / "samples" / ".0000003.png.x3"):
        leftover.mkdir()
    train(settings(sample_every=3), data, run, resume=True)
    assert not list(run.rglob(".*"))


def planned(monkeypatch, losses):
    """Steps that do nothing but return what losses(step from 1) says."""

    def step(trainer):
        trainer.step_number += 1
        return losses(trainer.step_number)

    monkeypatch.setattr(training.Trainer, "step", step)


def rates(run):
    return [line["learning_rate"] for line in read_log(run)]


def test_the_second_phase_begins_when_the_total_loss_falls_no_more(data, tmp_path, monkeypatch):
    """Six slices in batches of two: three steps an epoch. The mean falls once, then not for two epochs: phase two begins after twelve."""
    planned(monkeypatch, lambda step: {"cycle": 1.0 if step > 3 else 2.0, "adversarial": 0.1, "judge_source": 9.0 / step})
    s = settings(epochs=50, decay_epochs=2, patience=2, learning_rate=1.0)
    run = train(s, data, tmp_path / "run")
    assert rates(run) == pytest.approx([1.0] * 13 + [1 - k / 7 for k in range(1, 6)], abs=1e-6)
    assert [line["step"] for line in read_log(run)][-1] == 12 + 6


def test_the_second_phase_ends_when_the_total_loss_falls_no_more(data, tmp_path, monkeypatch):
    planned(monkeypatch, lambda step: {"cycle": 1.0 if step > 3 else 2.0})
    run = train(settings(iterations=6, decay_epochs=50, decay_patience=3), data, tmp_path / "run")
    assert read_log(run)[-1]["step"] == 6 + 3 + 9  # the first epoch of the phase is its lowest, three more bring nothing lower
    assert (run / "translator" / "translator.json").is_file()


def test_patience_is_kept_in_the_checkpoint(data, tmp_path, monkeypatch):
    s = settings(epochs=50, decay_epochs=4, patience=2, decay_patience=2, checkpoint_every=4)
    plan = lambda step: {"cycle": 1.0 / min(step, 8)}  # noqa: E731
    planned(monkeypatch, plan)
    whole = train(s, data, tmp_path / "whole")
    assert read_log(whole)[-1]["step"] == 18 + 9
    for stop in (7, 18, 25):  # in phase one, between the phases, in phase two
        planned(monkeypatch, lambda step, stop=stop: plan(step) if step <= stop else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(s, data, tmp_path / str(stop))
        planned(monkeypatch, plan)
        assert without_time(train(s, data, tmp_path / str(stop), resume=True)) == without_time(whole)


@pytest.mark.parametrize("value, words", [(1e-4, "has won"), (0.2501, "scores everything alike")])
def test_a_collapsed_judge_stops_the_run_and_keeps_the_last_good_checkpoint(value, words, data, tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "COLLAPSED_STEPS", 8)
    planned(monkeypatch, lambda step: {"cycle": 1.0, "judge_source": 0.2, "judge_target": value if step > 6 else 0.2})
    with pytest.raises(InputError, match=f"judge_target has collapsed, its loss is {value:.4f} at step 14 .*{words}"):
        train(settings(iterations=50), data, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 6


def test_a_working_judge_is_never_taken_for_a_collapsed_one():
    """Losses as in healthy runs, 0.05 to 0.4 and back through 1/4, and ones that touch a bound now and then."""
    judges, rng = stopping.Judges(), np.random.default_rng(0)
    for step in range(5000):
        judges.look({"judge_source": rng.uniform(0.05, 0.4), "judge_target": 0.25 if step % 50 else 0.2, "cycle": 1e-5}, step, "run")
    assert not judges.suspect


def start(out, both, data, *more):
    """A process of `mr2ct train` with the settings of `both`."""
    words = [sys.executable, "-m", "mr2ct_lib.cli", "train", "cyclegan", "--data", data, "--out", out, "--device", "cpu", *more]
    for name, value in both.items():
        words += ["--set", f"{name}={value}"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(w) for w in words], env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


def test_two_processes_equal_one_and_a_lost_one_ends_the_run_which_goes_on_alone(data, tmp_path):
    """Five steps agree to 1e-5. Then the second process dies; the first says so and ends, and one process resumes."""
    both = TINY | {"iterations": 12, "decay_iterations": 0, "precision": "float32", "sample_every": 0, "checkpoint_every": 5}
    s = make_settings("cyclegan", **both)
    one = read_log(train(s, data, tmp_path / "one", device="cpu"))
    (tmp_path / "sitecustomize.py").write_text(  # the second process kills itself in its ninth step
        "import os, signal\n"
        "if os.environ.get('RANK') == '1' and 'mr2ct_lib.cli' in ' '.join(__import__('sys').orig_argv):\n"
        "    from mr2ct_lib.methods.training import Trainer\n"
        "    step = Trainer.step\n"
        "    Trainer.step = lambda t: os.kill(os.getpid(), signal.SIGKILL) if t.step_number == 8 else step(t)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        run = start(tmp_path / "two", both, data, "--torchrun", "--nproc-per-node 2")
        said = run.communicate()[1]
    assert run.returncode == 2 and "Traceback" not in said
    assert "process 1 of the run was ended by SIGKILL" in said and "--resume" in said
    assert len(read_log(tmp_path / "two")) == 8
    two = read_log(train(s, data, tmp_path / "two", resume=True, device="cpu"))
    assert [line["step"] for line in two] == list(range(1, 13))
    for number, (a, b) in enumerate(zip(one, two, strict=True)):
        for name in a.keys() - {"seconds"}:
            # the log holds six decimals; later the game blows rounding up, and only a mistake in going on would make more of it
            assert b[name] == pytest.approx(a[name], rel=1e-5 if number < 5 else 0.05, abs=2e-6)


def test_two_launchers_as_on_two_machines_equal_one_process(data, tmp_path):
    """docs/engine.md's command line for two machines, both played by this one."""
    both = TINY | {"iterations": 5, "decay_iterations": 0, "precision": "float32", "sample_every": 0}
    one = read_log(train(make_settings("cyclegan", **both), data, tmp_path / "one", device="cpu"))
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    options = f"--nnodes 2 --master-addr localhost --master-port {port} --nproc-per-node 1 --node-rank"
    machines = [start(tmp_path / "two", both, data, "--torchrun", f"{options} {rank}") for rank in (0, 1)]
    said = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    for a, b in zip(one, read_log(tmp_path / "two"), strict=True):
        assert {name: b[name] for name in a.keys() - {"seconds"}} == pytest.approx(
            {name: a[name] for name in a.keys() - {"seconds"}}, rel=1e-5, abs=2e-6
        )


def test_the_run_folder_holds_what_its_users_look_for(data, tmp_path):
    run = train(settings("dicyclegan"), data, tmp_path / "run")
    assert {"config.json", "log.jsonl", "checkpoint.pt", "samples", "translator"} == {path.name for path in run.iterdir()}
    assert {"adversarial", "cycle", "dicycle", "align", "judge_source", "judge_target", "learning_rate"} <= read_log(run)[0].keys()
    translator = load_translator(run)
    slices = np.load(data / "source.npy")
    out = translator.translate(slices, deform=True)
    assert out.shape == slices.shape and np.abs(out).max() <= 1


def test_gradient_consistency_is_part_of_the_loss_only_when_weighted(data, tmp_path):
    assert "gc" in read_log(train(settings(), data, tmp_path / "with"))[0]
    assert "gc" not in read_log(train(settings(lambda_gc=0.0), data, tmp_path / "without"))[0]


def test_the_translator_is_the_mean_of_the_weights_of_all_steps(data, tmp_path, monkeypatch):
    """With average near 1 the mean is the plain one; with 0 it is the last step's weights."""
    seen, step = [], training.Trainer.step

    def watched(trainer):
        terms = step(trainer)
        seen.append([p.detach().clone() for p in trainer.networks.translator.parameters()])
        return terms

    monkeypatch.setattr(training.Trainer, "step", watched)
    for average, expected in ((0.999, lambda weights: torch.stack(weights).mean(0)), (0.0, lambda weights: weights[-1])):
        seen.clear()
        run = train(settings(average=average), data, tmp_path / str(average))
        for parameter, *weights in zip(load_translator(run).parameters(), *seen, strict=True):
            torch.testing.assert_close(parameter, expected(weights), atol=1e-6, rtol=1e-5)


def test_the_judges_learn(data, tmp_path):
    log = read_log(train(settings(iterations=60, decay_iterations=0, learning_rate=1e-3, sample_every=0), data, tmp_path / "run"))
    assert np.mean([line["judge_target"] for line in log[-10:]]) < np.mean([line["judge_target"] for line in log[:10]])


def test_blank_slices_survive(data, tmp_path):
    folder = tmp_path / "blank"
    folder.mkdir()
    for domain in ("source", "target"):
        np.save(folder / f"{domain}.npy", np.full((6, 32, 32), -1, np.float32))
    (folder / "prepared.json").write_text((data / "prepared.json").read_text())
    for method in ("cyclegan", "dicyclegan"):
        log = read_log(train(settings(method, lambda_gc=0.3), folder, tmp_path / method))
        assert all(np.isfinite(list(line.values())).all() for line in log)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(data, tmp_path, monkeypatch):
    step = training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda t: step(t) | ({"cycle": float("nan")} if t.step_number == 5 else {}))
    with pytest.raises(InputError, match="cycle loss is nan at step 5"):
        train(settings(), data, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3


def test_a_second_run_in_the_same_folder_and_other_settings_are_refused(data, tmp_path):
    run = train(settings(), data, tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run"):
        train(settings(), data, run)
    with pytest.raises(InputError, match="filters=4, not 8"):
        train(settings(filters=8), data, run, resume=True)
    before = (run / "checkpoint.pt").read_bytes()
    train(settings(), data, run, resume=True)  # finished: left as it is
    assert (run / "checkpoint.pt").read_bytes() == before


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
        train(settings(), copied(data, tmp_path / "data", target=np.load(data / "target.npy") * scale), tmp_path / "run")


def test_domains_of_two_shapes_are_refused(data, tmp_path):
    with pytest.raises(InputError, match=r"target.npy: has shape \(6, 16, 32\); expected \(6, 32, 32\)"):
        train(settings(), copied(data, tmp_path / "data", target=np.load(data / "target.npy")[:, ::2]), tmp_path / "run")


def test_slices_smaller_than_a_judge_can_see_are_refused(data, tmp_path):
    with pytest.raises(InputError, match="32 pixels on a side; expected at least 48 for discriminator_layers=4"):
        train(settings(discriminator_layers=4), data, tmp_path / "run")
    train(settings(discriminator_layers=3, iterations=1, decay_iterations=0), kills.make_slices(tmp_path / "small", 24), tmp_path / "run")


def test_the_order_of_the_data_is_that_of_the_seed_alone(data):
    """Two processes take every other slice of each batch: together what one process takes."""
    slices = PreparedSlices(data)
    for step in range(5):
        whole = unpaired_batch(slices, step, 4, seed=3)
        for batch, again in zip(whole, unpaired_batch(slices, step, 4, seed=3), strict=True):
            assert torch.equal(batch, torch.stack([again[0::2], again[1::2]], dim=1).flatten(0, 1))


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.choose_device("auto") == "cpu"
    with pytest.raises(InputError, match="sees no GPU here; take --device cpu"):
        distributed.choose_device("cuda")
    with pytest.raises(InputError, match="expected one of auto, cpu, cuda"):
        distributed.choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert distributed.choose_device("auto", 2) == distributed.choose_device("cuda") == "cuda"
    with pytest.raises(InputError, match="3 processes and 2 GPUs"):
        distributed.choose_device("auto", 3)


class TwoProcesses:
    world_size = 2


@pytest.mark.parametrize(
    "happens, words",
    [
        (lambda: (_ for _ in ()).throw(RuntimeError("[gloo] Connection closed by peer")), "connection to another process was lost"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "was told to end"),
    ],
)
def test_a_lost_process_is_said_with_what_to_do(happens, words):
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(distributed.LostProcess, match=f"runs/a, step 7: .*{words}.*--resume"),
        distributed.together(TwoProcesses, lambda: "runs/a, step 7"),
    ):
        happens()
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(RuntimeError, match="out of memory"), distributed.together(TwoProcesses, str):
        raise RuntimeError("out of memory")


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
    assert {("cycle", 1), ("judge_target", 6), ("learning_rate", 6), ("sample", 6)} <= set(Board.seen)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard, or train without it"):
        train(settings(), data, tmp_path / "other", tensorboard=True)


def test_fewer_patients_are_the_first_ones(data):
    few = PreparedSlices(data)
    seen = torch.cat([unpaired_batch(few, step, 2, seed=3, patients=1)[0] for step in range(4)])
    known = torch.from_numpy(np.load(data / "source.npy")[:2])
    assert all(any(torch.equal(image[0], k) for k in known) for image in seen)


def test_image_pool_gives_back_half_of_what_it_holds():
    pool, rng = ImagePool(10), np.random.default_rng(0)
    first = torch.arange(10.0).view(10, 1, 1, 1)
    assert torch.equal(pool.query(first, rng), first)
    later = torch.cat([pool.query(torch.full((1, 1, 1, 1), 100.0 + i), rng) for i in range(400)]).flatten()
    old = (later != 100.0 + torch.arange(400)).float().mean()
    assert 0.4 < old < 0.6 and len(pool.images) == 10
    assert torch.equal(ImagePool(0).query(first, rng), first)


def test_weights_of_another_architecture_are_refused(data, tmp_path):
    run = train(settings(), data, tmp_path / "run")
    path = run / "translator" / "translator.json"
    path.write_text(path.read_text().replace('"blocks": 1', '"blocks": 2'))
    with pytest.raises(InputError, match="another architecture"):
        load_translator(run)
    with pytest.raises(InputError, match="translator.json"):
        load_translator(tmp_path)
