"""What holds on a GPU, with tolerances: sums are taken in no fixed order there. Skipped where there is none."""

import copy
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from test_supervised import pairs
from tiny_runs import settings
from torch.nn import functional as F

from benchmarks import gpu
from mr2ct_lib.course.supervised import SupervisedTrainer
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.methods import fast, hardware, layers, losses, offsets
from mr2ct_lib.methods.captured import Batches
from mr2ct_lib.methods.runs import read_log, train
from mr2ct_lib.methods.segmentation import predict, train_segmenter
from mr2ct_lib.methods.training import Trainer
from tools import kills

pytestmark = pytest.mark.skipif(not torch.cuda.device_count(), reason="needs a GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six slices per domain, discs, bright in one domain and dark in the other, of three patients."""
    return kills.make_slices(tmp_path_factory.mktemp("prepared"))


def trainer(data, device="cuda", kind=Trainer, **changes):
    """A run at its first step."""
    changes = {"precision": "float32"} | changes
    return kind(settings(**changes), PreparedSlices(data), Fabric(accelerator=device, devices=1))


def losses_of(run, steps):
    return [[float(value) for value in run.step().values()] for _ in range(steps)]


@pytest.mark.parametrize("method", ["cyclegan", "dicyclegan"])
def test_captured_updates_give_the_losses_of_plain_ones(method, data):
    """The first step from one state to 1e-3, the second as well as two plain runs agree in it."""
    made = []

    def make():
        made.append(trainer(data, method=method))
        return made[-1]

    (first, second), (_, of_plain) = gpu.two_steps_apart(make)
    assert first <= 1e-3 and second <= max(1e-3, 3 * of_plain)
    assert all(update.replay is not None for update in made[0].updates.values())


def test_captured_updates_on_pairs_give_the_losses_of_plain_ones(tmp_path):
    data, made = pairs(tmp_path / "pairs", truth=lambda x: x / 4), []

    def make():
        made.append(trainer(data, kind=SupervisedTrainer))
        return made[-1]

    (first, second), (_, of_plain) = gpu.two_steps_apart(make)
    assert first <= 1e-3 and second <= max(1e-3, 3 * of_plain)
    assert made[0].updates["generators"].replay is not None


def test_a_recording_that_breaks_off_leaves_a_run_that_goes_on(data, capsys):
    broken, plain, again = (trainer(data) for _ in range(3))
    for run in (plain, again):
        for update in run.updates.values():
            update.recorder = None
    update = broken.updates["discriminators"].update

    def waiting(*inputs):
        terms = update(*inputs)
        if torch.cuda.is_current_stream_capturing():
            terms["discriminator_source"].item()
        return terms

    broken.updates["discriminators"].update = waiting
    of_broken, of_plain, of_again = (np.array(losses_of(run, 8)) for run in (broken, plain, again))
    assert np.abs(of_broken - of_plain).max() <= max(1e-3, 10 * np.abs(of_again - of_plain).max())
    assert capsys.readouterr().err.count("CUDA graph: not recorded") == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    fresh = trainer(data)  # the next run of the same process is recorded
    assert np.isfinite(losses_of(fresh, 6)).all()
    assert all(update.replay is not None for update in fresh.updates.values())


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("fits", [True, False])
def test_no_step_waits_for_the_gpu(fits, precision, data):
    """Nor does the loss scaling of float16, which GPUs without bf16 take."""
    run = trainer(data, augment=True, average=0.9, precision=precision)
    run.batches = Batches(run.data, run.settings, run.fabric.device, fits)
    losses_of(run, 6)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(update.replay is not None for update in run.updates.values())
    assert np.isfinite(losses_of(run, 1)).all()


def test_this_process_keeps_its_gpu_when_the_service_that_others_share_it_by_has_ended():
    """Also where it asks for the GPU inside the block for the first time."""
    code = "import torch\nfrom mr2ct_lib.methods.captured import shared_gpu\nwith shared_gpu():\n"
    code += "    torch.cuda.get_device_name()\nprint(torch.ones(3, device='cuda').sum().item())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert said.stdout == "3.0\n", said.stderr


def test_a_run_moves_between_cpu_and_gpu(data):
    """Its next losses are the same to TF32, whose products keep ten binary digits."""
    cpu, gpu = (trainer(data, device, average=0.9) for device in ("cpu", "cuda"))
    losses_of(cpu, 4)
    gpu.load_state(copy.deepcopy(cpu.state()))
    np.testing.assert_allclose(losses_of(gpu, 5), losses_of(cpu, 5), rtol=0.03, atol=0.01)
    cpu.load_state(copy.deepcopy(gpu.state()))
    np.testing.assert_allclose(losses_of(gpu, 2), losses_of(cpu, 2), rtol=0.03, atol=0.01)
    slices = np.array(cpu.data.source)
    np.testing.assert_allclose(gpu.averaged.translate(slices), cpu.averaged.translate(slices), atol=0.03)


def test_a_u_net_learns_and_predicts(data):
    slices = PreparedSlices(data)
    channels, labels = np.array(slices.source)[:, None], (np.array(slices.source) > 0).astype(np.uint8)
    unet = train_segmenter(channels, labels, {1: "disc"}, channel_names=("MR",), iterations=40, learning_rate=3e-3,
                           progress=False)  # fmt: skip
    assert next(unet.network.parameters()).is_cuda
    assert (predict(unet, channels) == labels).mean() > 0.8


@pytest.mark.parametrize("offset_layers", ["per_channel", "shared", "convolution", "field", "none"])
def test_every_network_can_be_captured_in_the_precision_that_a_gpu_takes(offset_layers, data):
    precision = hardware.lower_precision(torch.device("cuda"))
    run = trainer(data, method="dicyclegan", offset_layers=offset_layers, upsampling="resize", precision=precision)
    assert np.isfinite(losses_of(run, 8)).all()
    assert all(update.replay is not None for update in run.updates.values())


def test_a_resumed_run_ends_near_one_that_was_never_stopped(data, tmp_path):
    s = settings(iterations=12, decay_iterations=6, precision="float32", sample_every=0)
    unbroken = [read_log(train(s, data, tmp_path / name, device="cuda")) for name in ("whole", "again", "third")]
    step = Trainer.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            Trainer, "step", lambda run: step(run) if run.step_number < 8 else (_ for _ in ()).throw(KeyboardInterrupt)
        )
        train(s, data, tmp_path / "cut", device="cuda")
    cut = read_log(train(s, data, tmp_path / "cut", resume=True, device="cuda"))
    *tables, resumed = (
        np.array([[v for k, v in line.items() if k != "seconds"] for line in log]) for log in (*unbroken, cut)
    )
    spread = max(np.abs(one - other).max() for one, other in combinations(tables, 2))
    assert np.abs(resumed - tables[0]).max() <= max(3 * spread, 1e-3)


SHAPES = [(1, 16, 128, 128), (2, 64, 31, 31), (1, 256, 64, 64), (1, 64, 256, 256), (3, 70, 9, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_the_formulas(shape, dtype):
    """At the networks' own sizes and an odd one, in float32 to its rounding and in 16 bits to that of bf16."""
    if dtype == torch.bfloat16 and hardware.lower_precision(torch.device("cuda")) != "bf16":
        pytest.skip("this GPU has no bf16")
    kernels = fast._kernels(torch.device("cuda", 0), dtype)
    assert kernels is not None
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    x = (torch.randn(shape, device="cuda") + 3).to(dtype).contiguous(memory_format=torch.channels_last)
    x[:, 1] = 0.3  # a flat channel
    upstream = torch.randn((*shape[:2], shape[2] + 6, shape[3] + 6), device="cuda")
    for function, formula in (
        (fast.instance_norm_gpu, layers.instance_norm.__wrapped__),
        (lambda x: kernels.Reflect.apply(x, 3), lambda x: F.pad(x, [3] * 4, mode="reflect")),
    ):
        results = []
        for one in (function, formula):
            y = x.clone(memory_format=torch.preserve_format).requires_grad_()
            out = one(y)
            loss = (out.float() * upstream[..., : out.shape[2], : out.shape[3]]).sum()
            results.append((out, *torch.autograd.grad(loss, y)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


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
