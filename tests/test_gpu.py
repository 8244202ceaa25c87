"""What holds on a GPU, with tolerances: sums are taken in no fixed order there. Skipped where there is none."""

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from tiny_runs import settings

from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods import fast, hardware, layers, losses, offsets
from mr2ct_lib.methods.runs import read_log, train
from mr2ct_lib.methods.training import Trainer
from tools import kills

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices per domain, discs, bright in one domain and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


def trainer(data, **changes):
    """A run on the GPU at its first step."""
    changes = {"precision": "float32"} | changes
    return Trainer(settings(**changes), PreparedSlices(data), Fabric(accelerator="cuda", devices=1))


def losses_of(run, steps):
    return [[float(value) for value in run.step().values()] for _ in range(steps)]


@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_captured_updates_give_the_losses_of_plain_ones(method, data):
    """Twenty steps in float32 agree to 1e-3: the game between the networks enlarges the rounding of the first."""
    captured, plain = trainer(data, method=method), trainer(data, method=method)
    for update in plain.updates.values():
        update.recorder = None
    np.testing.assert_allclose(losses_of(captured, 20), losses_of(plain, 20), rtol=1e-3, atol=1e-3)
    assert all(update.replay is not None for update in captured.updates.values())


@pytest.mark.parametrize("offset_layers", ["per_channel", "shared", "convolution", "field", "none"])
def test_every_network_can_be_captured_in_the_precision_that_a_gpu_takes(offset_layers, data):
    precision = hardware.lower_precision(torch.device("cuda"))
    run = trainer(data, method="dicyclegan", offset_layers=offset_layers, upsampling="resize", precision=precision)
    assert np.isfinite(losses_of(run, 8)).all()
    assert all(update.replay is not None for update in run.updates.values())


def test_a_resumed_run_ends_near_one_that_was_never_stopped(data, tmp_path):
    s = settings(iterations=12, decay_iterations=6, precision="float32", sample_every=0)
    whole, again = (read_log(train(s, data, tmp_path / name, device="cuda")) for name in ("whole", "again"))
    step = Trainer.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            Trainer, "step", lambda run: step(run) if run.step_number < 8 else (_ for _ in ()).throw(KeyboardInterrupt)
        )
        train(s, data, tmp_path / "cut", device="cuda")
    cut = read_log(train(s, data, tmp_path / "cut", resume=True, device="cuda"))
    tables = [np.array([[v for k, v in line.items() if k != "seconds"] for line in log]) for log in (whole, again, cut)]
    spread = np.abs(tables[0] - tables[1]).max()
    assert np.abs(tables[0] - tables[2]).max() <= max(3 * spread, 1e-3)


@pytest.mark.parametrize("name", sorted(fast.FORMS["cuda"]))
def test_fast_forms_on_the_gpu_are_the_formulas(name):
    def noise(*shape):
        x = torch.randn(*shape, device="cuda", dtype=torch.float64).mul(0.5)
        return (x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x).requires_grad_()

    weight = torch.randn(4, 3, 3, 3, device="cuda", dtype=torch.float64)
    cases = {
        "instance_norm": (layers.instance_norm, (noise(2, 3, 8, 9),), ()),
        "padded_convolution": (
            layers.padded_convolution,
            (noise(2, 3, 8, 9),),
            (weight, weight[:, 0, 0, 0], "reflect"),
        ),
        "read_displaced": (offsets.read_displaced, (noise(2, 3, 8, 9), noise(2, 3, 2, 8, 9)), ()),
        "joint_histogram": (losses.joint_histogram.__wrapped__, (noise(2, 1, 9, 9), noise(2, 1, 9, 9)), (16,)),
    }
    formula, inputs, options = cases[name]
    results = []
    for function in (fast.FORMS["cuda"][name], formula.__wrapped__):
        out = function(*inputs, *options)
        results.append((out, *torch.autograd.grad(out.sin().sum(), inputs)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
