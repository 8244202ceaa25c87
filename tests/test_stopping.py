"""When a run enters its second phase, ends early or must stop; a resumed run does so at the same step."""

import numpy as np
import pytest
import torch
from tiny_runs import settings, without_time

from mr2ct_lib.files import InputError
from mr2ct_lib.methods import stopping, training
from mr2ct_lib.methods.runs import read_log, train
from tools import kills

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices per domain, discs, bright in one domain and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


def planned(monkeypatch, losses):
    """Steps that do nothing but return what losses(step from 1) says."""

    def step(trainer):
        trainer.step_number += 1
        return losses(trainer.step_number)

    monkeypatch.setattr(training.Trainer, "step", step)


def rates(run):
    return [line["learning_rate"] for line in read_log(run)]


def test_the_second_phase_begins_when_the_total_loss_falls_no_more(data, tmp_path, monkeypatch):
    """Three steps per epoch. The mean falls once, then not for two epochs: phase two begins after step twelve."""
    terms = {"adversarial": 0.1, "discriminator_source": 0.4}
    planned(monkeypatch, lambda step: {"cycle": 1.0 if step > 3 else 2.0} | terms)
    s = settings(epochs=50, decay_epochs=2, patience=2, learning_rate=1.0)
    run = train(s, data, tmp_path / "run")
    assert rates(run) == pytest.approx([1.0] * 13 + [1 - k / 7 for k in range(1, 6)], abs=1e-6)
    assert [line["step"] for line in read_log(run)][-1] == 12 + 6


def test_the_second_phase_ends_when_the_total_loss_falls_no_more(data, tmp_path, monkeypatch):
    planned(monkeypatch, lambda step: {"cycle": 1.0 if step > 3 else 2.0})
    run = train(settings(iterations=6, decay_epochs=50, decay_patience=3), data, tmp_path / "run")
    assert (
        read_log(run)[-1]["step"] == 6 + 3 + 9
    )  # the first epoch of the phase is its lowest, three more bring nothing lower
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


@pytest.mark.parametrize("value, words", [(1e-4, "is never wrong"), (0.2501, "scores everything alike")])
def test_a_collapsed_discriminator_stops_the_run_and_keeps_the_last_good_checkpoint(
    value, words, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(stopping, "COLLAPSED_STEPS", 8)
    planned(
        monkeypatch,
        lambda step: {"cycle": 1.0, "discriminator_source": 0.2, "discriminator_target": value if step > 6 else 0.2},
    )
    with pytest.raises(
        InputError, match=f"discriminator_target has collapsed. Its loss is {value:.4f} at step 14 .*{words}"
    ):
        train(settings(iterations=50), data, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 6


def test_a_working_discriminator_is_never_taken_for_a_collapsed_one():
    """Losses as in healthy runs, 0.05 to 0.4 and back through 1/4, and ones that touch a bound now and then."""
    watch, rng = stopping.CollapseWatch(), np.random.default_rng(0)
    for step in range(5000):
        terms = {"discriminator_source": rng.uniform(0.05, 0.4), "discriminator_target": 0.25 if step % 50 else 0.2}
        watch.check(terms | {"cycle": 1e-5}, step, "run", str)
    assert not watch.suspects


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(data, tmp_path, monkeypatch):
    step = training.Trainer.step
    monkeypatch.setattr(
        training.Trainer, "step", lambda t: step(t) | ({"cycle": float("nan")} if t.step_number == 5 else {})
    )
    with pytest.raises(
        InputError, match="cycle loss is nan at step 5, on source s. slice [01], .*target s. slice [01]"
    ):
        train(settings(), data, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("end, warned", [(0.002, True), (0.02, False)])
def test_a_run_whose_discriminators_are_hardly_ever_wrong_ends_with_a_warning(
    end, warned, data, tmp_path, monkeypatch, capsys
):
    """What counts is the end of the run, the larger of both losses, and no discriminators are no reason to warn."""
    planned(
        monkeypatch,
        lambda step: {"discriminator_source": 0.0015, "discriminator_target": end if step > 40 else 0.2},
    )
    train(settings(iterations=50, log_every=1), data, tmp_path / "run")
    found = capsys.readouterr().err
    assert ("far from their domain" in found) is warned
    assert not warned or "discriminator_source 0.0015, discriminator_target 0.0020" in found
    assert stopping.ignored_discriminators([{"cycle": 1e-9}] * 20) is None
    assert stopping.ignored_discriminators([]) is None
