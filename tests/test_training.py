"""Laws of training: same seed same bits, resumed or not, on one process or two; and refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mr2ct_lib import training
from mr2ct_lib.files import InputError, write_json
from mr2ct_lib.settings import make_settings
from mr2ct_lib.slices import PreparedSlices
from mr2ct_lib.training import ImagePool, read_log, train
from mr2ct_lib.translator import load_translator

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
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    for domain, sign in (("source", 1), ("target", -1)):
        slices = [
            np.where((rows - rng.uniform(12, 20)) ** 2 + (columns - rng.uniform(12, 20)) ** 2 < rng.uniform(30, 60), 0.7, -0.7)
            for _ in range(6)
        ]
        np.save(folder / f"{domain}.npy", (sign * np.stack(slices)).astype(np.float32))
    patients = [{"id": f"s{i}", "first": 2 * i, "count": 2} for i in range(3)]
    window = {"low": 0.0, "high": 1.0, "unit": "a.u."}
    meta = {"format": 1, "shape": [32, 32], "patients": {"source": patients, "target": patients}}
    write_json(meta | {"windows": {"source": window, "target": window}}, folder / "prepared.json")
    return folder


def settings(method="cyclegan", **changes):
    return make_settings(method, "quick", **(TINY | changes))


def bits(run):
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    return checkpoint["networks"], checkpoint["pools"], checkpoint["optimisers"]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


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


def test_a_killed_process_resumes_to_the_same_bits(data, tmp_path):
    long = settings(iterations=30, checkpoint_every=2, sample_every=0)
    train(long, data, tmp_path / "whole")
    script = (
        "import sys, json; from mr2ct_lib.settings import Settings; from mr2ct_lib.training import train;"
        "train(Settings(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3])"
    )
    command = [sys.executable, "-c", script, json.dumps(dataclasses.asdict(long)), str(data), str(tmp_path / "cut")]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    while len(read_log(tmp_path / "cut")) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    train(long, data, tmp_path / "cut", resume=True)
    assert same(bits(tmp_path / "whole"), bits(tmp_path / "cut"))


def test_two_processes_equal_one(data, tmp_path):
    both = settings(iterations=5, decay_iterations=0, precision="float32", sample_every=0, checkpoint_every=5)
    train(both, data, tmp_path / "one")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, json\nfrom mr2ct_lib.settings import Settings\nfrom mr2ct_lib.training import train\n"
        "train(Settings(**json.loads(sys.argv[1])), sys.argv[2], sys.argv[3])\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = [json.dumps(dataclasses.asdict(both)), str(data), str(tmp_path / "two")]
    subprocess.run(command + arguments, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        for name in a.keys() - {"seconds"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-5)  # the log holds six decimals
    for a, b in zip(bits(tmp_path / "one")[0].values(), bits(tmp_path / "two")[0].values(), strict=True):
        # Adam's first steps are sign-like: where a gradient is nearly 0 (biases before a normalisation) its rounding decides
        assert ((a - b).abs() <= 1e-5 + 1e-4 * a.abs()).float().mean() > 0.9 or a.dim() == 1


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


def test_fewer_patients_are_the_first_ones(data):
    few = PreparedSlices(data)
    from mr2ct_lib.slices import unpaired_batch

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
