"""Tiny training runs that the tests of training share: settings, data, and what of a run's folder is compared."""

import pytest
import torch

from mr2ct_lib.methods.runs import read_log
from mr2ct_lib.methods.settings import make_settings
from tools import kills

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
