"""Tiny training runs that the tests of training share: settings, what of a run's folder is compared, a fake GPU."""

import copy

import torch

from mr2ct_lib.methods.runs import read_log
from mr2ct_lib.methods.settings import make_settings

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


def settings(method="cyclegan", **changes):
    in_epochs = {
        steps for steps, epochs in (("iterations", "epochs"), ("decay_iterations", "decay_epochs")) if epochs in changes
    }
    return make_settings(
        method, "quick", **({name: value for name, value in TINY.items() if name not in in_epochs} | changes)
    )


def bits(run):
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    return checkpoint["networks"], checkpoint["pools"], checkpoint["optimisers"]


def without_time(run):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in read_log(run)]


def tensors(value):
    """All tensors in nested dictionaries and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


class Replayer:
    """Stands for CudaRecorder: recording computes nothing that lasts, replaying writes to the same memory."""

    def __init__(self, trainer):
        self.trainer, self.recorded = trainer, 0

    def warm_up(self, function):
        return function()

    def record(self, function):
        optimisers = [optimiser.state_dict()["state"] for optimiser in self.trainer.optimisers.values()]
        scales = [[vars(s).get("_scale"), vars(s).get("_growth_tracker")] for s in self.trainer.scalers.values()]
        kept = [self.trainer.networks.state_dict(), optimisers, scales]
        before = copy.deepcopy(kept)
        outputs = function()
        for tensor, value in zip(tensors(kept), tensors(before), strict=True):
            tensor.data.copy_(value)
        for tensor in tensors(outputs):
            tensor.fill_(float("nan"))  # nothing is computed before the first replay
        self.recorded += 1
        return outputs, lambda: [t.copy_(new) for t, new in zip(tensors(outputs), tensors(function()), strict=True)]
