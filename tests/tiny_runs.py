"""Tiny training runs that the tests of training share: settings, data, and what of a run's folder is compared."""

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
