"""Which precision is taken."""

import pytest
import torch

from mr2ct_lib.methods import machine

CPU = torch.device("cpu")


@pytest.mark.parametrize("gain, chosen", [(0.4, "float32"), (1.1, "float32"), (1.7, "bf16"), (5.0, "bf16")])
def test_auto_is_bf16_where_it_gains(gain, chosen, monkeypatch):
    monkeypatch.setattr(machine, "gain", lambda device: gain)
    assert machine.choose_precision("auto", CPU) == chosen
    assert [machine.choose_precision(word, CPU) for word in ("bf16", "float32")] == ["bf16", "float32"]


def test_the_measurement_is_made_once_and_leaves_the_threads_alone():
    threads = torch.get_num_threads()
    machine.gain.cache_clear()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # wherever it is asked for
        assert machine.gain(CPU) > 0 and machine.gain(CPU) == machine.gain(CPU)
    assert torch.get_num_threads() == threads
