"""Recorded updates equal plain ones, losses that are read late stop a run as soon, slices on the device are the same.

There is no GPU in these tests: a recorder that calls again what it was given stands for CUDA graphs.
"""

import copy
import os

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from tiny_runs import Replayer, settings, without_time

from benchmarks import measure
from mr2ct_lib.files import InputError
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods import captured
from mr2ct_lib.methods.captured import Batches, CapturedUpdate, memory_of_run, runs_at_once
from mr2ct_lib.methods.runs import train
from mr2ct_lib.methods.settings import make_settings
from mr2ct_lib.methods.training import Trainer
from tools import kills
from tools.kills import same

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices per domain, discs, bright in one domain and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


def run(data, method, steps, recorder=None, **changes):
    """Losses and state of a trainer after `steps` steps, its updates recorded by `recorder`."""
    changes = {"augment": True, "average": 0.9} | changes
    trainer = Trainer(settings(method, **changes), PreparedSlices(data), Fabric(accelerator="cpu", devices=1))
    if recorder is not None:
        trainer.recorder = recorder(trainer)
        for update in trainer.updates.values():
            update.recorder = trainer.recorder
    losses = [{name: float(value) for name, value in trainer.step().items()} for _ in range(steps)]
    return losses, trainer


@pytest.mark.parametrize("precision", ["float32", "bf16", "float16"])
@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_replayed_updates_give_the_bits_of_plain_ones(method, precision, data):
    plain, one = run(data, method, 8, precision=precision)
    replayed, other = run(data, method, 8, Replayer, precision=precision)
    assert other.recorder.recorded == 2  # both updates, once each
    assert plain == replayed and same(one.state(), other.state())


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_cannot_be_recorded_is_said_once_and_done_step_by_step(precision, data, capsys):
    class Refusing(Replayer):
        """As PyTorch: the recording of the second update breaks off, then it cannot be ended."""

        def record(self, function):
            if self.recorded == 0:
                return super().record(function)
            for scaler in filter(torch.amp.GradScaler.is_enabled, self.trainer.scalers.values()):
                scaler._per_optimizer_states[id(self.trainer.optimisers["discriminators"])]["stage"] = "broken off"
                self.trainer.optimisers["discriminators"].grad_scale = torch.tensor(float("nan"))
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nand a long account of it")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B012

    plain, one = run(data, "cyclegan", 8, precision=precision)
    capsys.readouterr()
    replayed, other = run(data, "cyclegan", 8, Refusing, precision=precision)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "operation not permitted when stream is capturing)" in said[0]
    assert plain == replayed and same(one.state(), other.state())
    assert not any(update.recorder or update.replay for update in other.updates.values())


def test_a_failure_without_a_message_is_named_by_its_type(capsys):
    class Mute:
        warm_up = staticmethod(lambda function: function())

        @staticmethod
        def record(function):
            raise RuntimeError

    update = CapturedUpdate(lambda x: 2 * x["a"], Mute(), lambda: None)
    assert [float(update({"a": torch.tensor(float(n))})) for n in range(6)] == [2.0 * n for n in range(6)]
    assert "not recorded (RuntimeError)" in capsys.readouterr().err


@pytest.mark.parametrize("device, before", [("cpu", 2), ("cuda", captured.WARM_UP + 1)])
def test_a_benchmark_drops_the_turns_until_updates_are_recorded(device, before, monkeypatch):
    clock, calls = [0.0], []

    def work():
        calls.append(None)
        clock[0] += 100 if len(calls) <= before else 1

    monkeypatch.setattr(measure, "DEVICE", torch.device(device))
    monkeypatch.setattr(measure, "now", lambda: clock[0])
    assert measure.seconds({"work": work}, rounds=1) == {"work": 1}


def test_a_checkpoint_from_recorded_updates_continues_to_the_same_bits(data):
    _, whole = run(data, "cyclegan", 9, Replayer)
    _, first = run(data, "cyclegan", 6, Replayer)
    _, second = run(data, "cyclegan", 0, Replayer)
    second.load_state(copy.deepcopy(first.state()))
    for update in second.updates.values():
        assert update.replay is None  # recorded anew, since the optimisers' state lies elsewhere now
        update.recorder = second.recorder
    for _ in range(3):
        second.step()
    assert same(whole.state(), second.state())


def test_a_checkpoint_of_a_device_with_another_layout_continues_to_the_same_bits(data):
    """Networks are contiguous on a GPU in float32, channels-last elsewhere; Adam takes its moments as they lie."""
    _, whole = run(data, "cyclegan", 5)
    _, first = run(data, "cyclegan", 3)
    state = copy.deepcopy(first.state())
    for optimiser in state["optimisers"].values():
        for moments in optimiser.values():
            moments |= {name: x.contiguous() for name, x in moments.items()}
    _, second = run(data, "cyclegan", 0)
    second.load_state(state)
    for _ in range(2):
        second.step()
    assert same(whole.state(), second.state())


@pytest.mark.parametrize("wanted, taken", [("auto", "bf16"), ("float16", "float16")])
def test_a_run_of_a_device_with_another_16_bit_type_continues_in_that_of_its_own(wanted, taken, data, monkeypatch):
    """A T4 has no bf16, and all but it are slow in float16; what is asked for by name stays."""
    monkeypatch.setattr("mr2ct_lib.methods.hardware.gain", lambda *_: 2.0)
    _, first = run(data, "cyclegan", 1, precision="float16")
    _, second = run(data, "cyclegan", 0, precision=wanted)
    second.load_state(copy.deepcopy(first.state()))
    second.step()
    assert second.precision == taken and second.scalers["generators"].is_enabled() == (taken == "float16")


def test_an_update_reads_what_it_is_given_and_not_what_it_was_recorded_with():
    class Twice:
        warm_up = staticmethod(lambda function: function())

        @staticmethod
        def record(function):
            outputs = function()
            return outputs, lambda: outputs.copy_(function())

    update = CapturedUpdate(lambda x: 2 * x["a"], Twice(), lambda: None)
    assert [float(update({"a": torch.tensor(float(n))})) for n in range(8)] == [2.0 * n for n in range(8)]


def test_losses_that_are_read_late_end_in_the_same_run(data, tmp_path, monkeypatch):
    """On a GPU losses are read where a line of the log is due; early stopping still counts every step."""
    s = settings(epochs=20, decay_epochs=5, patience=2, decay_patience=2, log_every=5, checkpoint_every=7)
    whole = train(s, data, tmp_path / "whole")
    monkeypatch.setattr(Trainer, "asynchronous", True)
    late = train(s, data, tmp_path / "late")
    assert without_time(whole) == without_time(late)
    assert same(*(torch.load(folder / "checkpoint.pt", weights_only=True)["networks"] for folder in (whole, late)))


def test_a_loss_that_is_no_number_is_named_with_its_own_step_and_spoils_no_checkpoint(data, tmp_path, monkeypatch):
    step = Trainer.step
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(Trainer, "step", lambda t: step(t) | ({"cycle": nan} if t.step_number >= 5 else {}))
    monkeypatch.setattr(Trainer, "asynchronous", True)
    with pytest.raises(InputError, match="cycle loss is nan at step 5"):
        train(settings(log_every=100, checkpoint_every=3, iterations=20), data, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3


def test_weights_that_are_no_numbers_spoil_no_checkpoint(data, tmp_path, monkeypatch):
    """The loss of their step is finite, and that of the next step comes after the checkpoint."""
    step = Trainer.step

    def spoiling(trainer):
        terms = step(trainer)
        if trainer.step_number == 6:
            next(trainer.networks.discriminator_source.parameters()).data.view(-1)[0] = float("inf")
        return terms

    monkeypatch.setattr(Trainer, "step", spoiling)
    with pytest.raises(InputError, match="weights are not finite after step 6"):
        train(settings(checkpoint_every=3, iterations=20), data, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("augment", [False, True])
def test_slices_on_the_device_are_those_of_the_disk(augment, data):
    s, prepared = settings(augment=augment, patients=2), PreparedSlices(data)
    disk, device = (Batches(prepared, s, CPU, fits=fits) for fits in (False, True))
    for step in range(5):
        a, b = disk.of_step(step), device.of_step(step)
        assert all(torch.equal(a[domain], b[domain]) for domain in ("source", "target"))


def test_slices_go_to_a_gpu_that_holds_them_four_times(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 8000))
    assert captured.fits_on_gpu(999, CPU) and not captured.fits_on_gpu(1001, CPU)


def test_a_step_is_described_by_patients_and_slices_and_by_blank_ones_alone(data, tmp_path):
    s = settings()
    assert len(Batches(PreparedSlices(data), s, CPU).describe(0).split(", ")) == 4  # two slices per domain
    folder = tmp_path / "blank"
    folder.mkdir()
    for domain in ("source", "target"):
        slices = np.load(data / f"{domain}.npy")
        slices[3] = -1  # the second slice of the second patient
        np.save(folder / f"{domain}.npy", slices)
    (folder / "prepared.json").write_text((data / "prepared.json").read_text())
    batches = Batches(PreparedSlices(folder), s, CPU)
    said = [batches.describe(step) for step in range(3)]  # one epoch
    assert sum("source s1 slice 1 (blank)" in text for text in said) == 1
    assert sum("target s1 slice 1 (blank)" in text for text in said) == 1


@pytest.mark.parametrize("precision", ["float32", "bf16", "float16"])
def test_blank_slices_do_not_overflow(precision, tmp_path):
    """Half of the slices are blank: without flat channels held back, a run in bf16 is lost at its third step."""
    folder = kills.make_slices(tmp_path / "slices", size=48)
    for domain in ("source", "target"):
        slices = np.load(folder / f"{domain}.npy")
        slices[::2] = -1
        np.save(folder / f"{domain}.npy", slices)
    s = make_settings("cyclegan", "full", seed=1, precision=precision, discriminator_layers=3)
    trainer = Trainer(s, PreparedSlices(folder), Fabric(accelerator="cpu", devices=1))
    for _ in range(6):
        assert all(torch.isfinite(value) for value in trainer.step().values())
    assert all(torch.isfinite(p).all() for p in trainer.networks.parameters())


def test_overflow_in_float16_leaves_a_step_out_and_halves_the_scale(data):
    _, trainer = run(data, "cyclegan", 1, precision="float16")
    before, scale = copy.deepcopy(trainer.networks.state_dict()), trainer.scalers["generators"].get_scale()
    trainer._descend("generators", sum(p.sum() for p in trainer.parameters["generators"]) * 1e38)
    assert same(before, dict(trainer.networks.state_dict()))
    assert trainer.scalers["generators"].get_scale() == scale / 2


def test_how_many_runs_share_a_gpu():
    assert runs_at_once(5, cores=2) == 2
    assert runs_at_once(5, cores=8, memory=10, per_run=3) == 3
    assert runs_at_once(5, cores=8, memory=10, per_run=100) == 1
    small, large = (
        memory_of_run(make_settings("cyclegan", profile), (n, n)) for profile, n in (("quick", 64), ("paper", 256))
    )
    assert 2 * 2**30 < small < 3 * 2**30 < large < 16 * 2**30
    assert memory_of_run(make_settings("dicyclegan", "paper"), (256, 256)) > large


@pytest.mark.parametrize("fails", ["", "-d", "-c"])
def test_processes_share_a_gpu_where_the_service_starts_and_works(fails, tmp_path, monkeypatch):
    """A service that does not start, or with which nothing computes, is as none; it ends with the block."""
    said = []

    def succeeds(command, **options):
        said.append(command[1] if len(command) > 1 else options["input"].strip())
        return said[-1] != fails

    monkeypatch.setattr(captured, "_succeeds", succeeds)
    monkeypatch.setattr(captured.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "init", lambda: said.append("here, without it"))
    monkeypatch.delenv(captured.MPS_FOLDER, raising=False)
    with pytest.raises(KeyError), captured.shared_gpu() as works:
        assert works == (not fails) == (captured.MPS_FOLDER in os.environ)
        raise KeyError
    assert captured.MPS_FOLDER not in os.environ and said[-1] == "quit"
    assert said[:2] == ["here, without it", "-d"]  # else this process would lose its GPU with the service
    said.clear()
    monkeypatch.setenv(captured.MPS_FOLDER, "/of/the/cluster")
    with captured.shared_gpu() as works:
        assert works
    monkeypatch.delenv(captured.MPS_FOLDER)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with captured.shared_gpu() as works:
        assert not works
    assert said == []
