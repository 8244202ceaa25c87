"""The precision is the one that the device is measured to be faster in."""

import pytest
import torch

from mr2ct_lib.methods import hardware

CPU = torch.device("cpu")


@pytest.mark.parametrize("gain, chosen", [(0.4, "float32"), (1.1, "float32"), (1.7, "bf16"), (5.0, "bf16")])
def test_auto_is_the_lower_precision_where_it_gains(gain, chosen, monkeypatch):
    monkeypatch.setattr(hardware, "gain", lambda *_: gain)
    assert hardware.choose_precision("auto", CPU) == chosen
    words = ("bf16", "float16", "float32")
    assert tuple(hardware.choose_precision(word, CPU) for word in words) == words


@pytest.mark.parametrize("has_bf16, chosen", [(True, "bf16"), (False, "float16")])
def test_a_gpu_without_bf16_takes_float16(has_bf16, chosen, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(hardware, "gain", lambda *arguments: asked.append(arguments) or 2.0)
    gpu = torch.device("cuda")
    assert hardware.choose_precision("auto", gpu, channels=256) == chosen
    assert asked == [(gpu, chosen, 256)]  # measured in the type it would take, on layers of the run's own width


def test_the_measurement_is_made_once_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    hardware.gain.cache_clear()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # wherever it is asked for
        assert hardware.gain(CPU) > 0 and hardware.gain(CPU) == hardware.gain(CPU)
    assert torch.get_num_threads() == threads


def test_a_measurement_that_fails_leaves_the_threads_alone(monkeypatch):
    def failing(work):
        raise RuntimeError("no memory")

    monkeypatch.setattr(hardware, "_thread_seconds", failing)
    hardware.gain.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            hardware.gain(CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
