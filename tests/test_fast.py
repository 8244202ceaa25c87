"""Each fast form equals its formula in value and gradient, in both layouts."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mr2ct_lib import methods
from mr2ct_lib.methods import fast, layers, losses, offsets
from mr2ct_lib.methods.networks import Generator, initialise

INTERPRETED = """
import sys
import torch
from torch.nn import functional as F
sys.path.insert(0, "tests")
from test_fast import assert_same, noise
from mr2ct_lib.methods import fast, kernels, layers

kernels.TILE, kernels.MOST_BLOCKS = 256, 4  # several tiles per program, several programs per image
assert torch.cuda.device_count() == 0
assert fast._kernels(torch.device("cpu"), torch.float32) is kernels  # else what stands in for them would be tested
for n, c, h, w in ((1, 3, 8, 9), (2, 16, 20, 23), (1, 70, 9, 7)):
    x = (noise(n, c, h, w, dtype=torch.float32) + 3).contiguous(memory_format=torch.channels_last)
    x[:, 1] = 2.7  # a flat channel
    assert_same(fast.instance_norm_gpu, layers.instance_norm.__wrapped__, x, rtol=1e-4, atol=1e-5)
    weight = noise(2, c, 7, 7, dtype=torch.float32)
    convolve = lambda function: lambda x: function(x, weight, None, "reflect")
    forms = fast.padded_convolution_gpu, layers.padded_convolution.__wrapped__
    assert_same(*map(convolve, forms), x, rtol=1e-4, atol=1e-4)
"""
IDLE = (layers.NormalisedConvolution, layers.NormalisedTransposedConvolution)
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def values_and_gradients(function, *inputs):
    """What function(*inputs) returns, and the gradients of its sum with fixed random weights in each input."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad((out * noise(*out.shape, seed=9).to(out.dtype)).sum(), inputs)


def assert_same(form, formula, *inputs, **tolerances):
    for a, b in zip(values_and_gradients(form, *inputs), values_and_gradients(formula, *inputs), strict=True):
        torch.testing.assert_close(a, b, **tolerances)


def test_each_fast_form_belongs_to_a_formula_and_switching_off_leaves_the_formula():
    formulas = {name for module in (layers, offsets, losses) for name in vars(module) if name in fast.FORMS["cpu"]}
    assert formulas == set(fast.FORMS["cpu"]) == set(fast.FORMS["cuda"])
    x = noise(1, 2, 8, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fast.FORMS["cpu"], "instance_norm", torch.zeros_like)
        assert layers.instance_norm(x).abs().max() == 0
        with fast.switched_off():
            assert layers.instance_norm(x).abs().max() > 1
        assert layers.instance_norm(x).abs().max() == 0


def test_kernels_for_a_gpu_are_the_formulas():
    """Triton's interpreter computes them without a GPU; with one, test_gpu.py does. Skipped without Triton."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("why", ["Failed to find C compiler", "Tensor-likes are not close!"])
def test_kernels_that_do_not_work_are_named_once_and_done_without(why, monkeypatch, capsys):
    """Triton may find no compiler, not know the GPU or compute nonsense; PyTorch's own kernels then give the same."""

    class Broken:
        @staticmethod
        def apply(x, *_):
            if "compiler" in why:
                raise RuntimeError(f"{why}\nand more of it")
            return x.new_zeros(1, 16, 10, 10).requires_grad_()

    monkeypatch.setitem(
        sys.modules, "mr2ct_lib.methods.kernels", SimpleNamespace(InstanceNorm=Broken, Reflect=Broken)
    )
    monkeypatch.setattr(methods, "kernels", sys.modules["mr2ct_lib.methods.kernels"], raising=False)
    fast._kernels.cache_clear()
    x = noise(1, 3, 8, 9, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        assert_same(fast.instance_norm_gpu, layers.instance_norm.__wrapped__, x, rtol=1e-4, atol=1e-5)
    said = capsys.readouterr().err
    assert said.count("Triton") == 1 and f"({why})" in said
    monkeypatch.setitem(sys.modules, "mr2ct_lib.methods.kernels", None)  # as where Triton is not installed
    monkeypatch.delattr(methods, "kernels")
    fast._kernels.cache_clear()
    assert_same(fast.instance_norm_gpu, layers.instance_norm.__wrapped__, x, rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().err == ""
    fast._kernels.cache_clear()


def test_a_bias_in_front_of_a_normalisation_changes_nothing(monkeypatch):
    """So a GPU leaves it out: same slices without it, and its gradient is rounding."""
    generator = initialise(Generator(4, 1, upsampling="transposed"), seed=0).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() == 1:
                parameter.normal_()
    x = noise(1, 1, 16, 16)
    expected = generator(x)
    expected.square().sum().backward()
    idle = [m.bias for m in generator.modules() if getattr(m, "normalised", isinstance(m, IDLE))]
    assert len(idle) == 7 and all(bias.grad.abs().max() < 1e-10 for bias in idle)
    monkeypatch.setattr(layers, "bias_before_norm", lambda bias: None)
    torch.testing.assert_close(generator(x), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 3])
def test_instance_norm(n, layout):
    x = noise(n, 5, 8, 9).contiguous(memory_format=layout)
    assert_same(fast.instance_norm, layers.instance_norm.__wrapped__, x)
    torch.testing.assert_close(fast.instance_norm(x), layers.instance_norm.__wrapped__(x))  # without gradient
    torch.testing.assert_close(fast.instance_norm(x), F.instance_norm(x))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 3])
def test_gradient_of_the_instance_norm_by_its_equation(n, layout):
    x, g = (noise(n, 5, 8, 9, seed=seed) for seed in (1, 2))
    scale = (x.var((2, 3), correction=0, keepdim=True) + fast.EPS).rsqrt()
    y = (x - x.mean((2, 3), keepdim=True)) * scale
    expected = scale * (g - g.mean((2, 3), keepdim=True) - y * (g * y).mean((2, 3), keepdim=True))
    x = x.contiguous(memory_format=layout).requires_grad_()
    out = fast.instance_norm(x)
    for gradient in (g, g.contiguous(memory_format=torch.channels_last)):  # in its own layout or in another one
        torch.testing.assert_close(torch.autograd.grad(out, x, gradient, retain_graph=True)[0], expected)


@pytest.mark.parametrize("norm", [fast.instance_norm, layers.instance_norm.__wrapped__])
def test_statistics_of_bf16_are_float32(norm):
    """A mean of eight standard deviations rounded to bf16 would move the result by a hundredth of one."""
    x = (noise(1, 4, 64, 64, dtype=torch.float32) * 0.5 + 4).bfloat16().requires_grad_()
    error = norm(x).double() - F.instance_norm(x.detach().double())
    assert error.mean((0, 2, 3)).abs().max() < 2e-3


@pytest.mark.parametrize("form", [fast.padded_convolution, fast.padded_convolution_gpu])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("borders", ["reflect", "replicate"])
@pytest.mark.parametrize("c_in, c_out, kernel", [(1, 5, 7), (5, 1, 7), (3, 4, 3)])
def test_padded_convolution(c_in, c_out, kernel, borders, layout, form):
    x = noise(2, c_in, 11, 13).contiguous(memory_format=layout)
    weight, bias = noise(c_out, c_in, kernel, kernel, seed=1), noise(c_out, seed=2)
    for other in (layers.padded_convolution.__wrapped__, with_torch):
        assert_same(lambda *a: form(*a, borders), lambda *a, other=other: other(*a, borders), x, weight, bias)


def with_torch(x, weight, bias, borders):
    """The same convolution by nn.Conv2d's own padding."""
    module = nn.Conv2d(weight.shape[1], len(weight), weight.shape[-1], padding="same", padding_mode=borders).double()
    return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))


def test_padding_on_a_gpu_keeps_the_channels_last_layout(monkeypatch):
    seen = []
    monkeypatch.setattr(fast.F, "conv2d", lambda x, *_: seen.append(x) or x)
    fast.padded_convolution_gpu(
        noise(1, 4, 8, 8).contiguous(memory_format=torch.channels_last), noise(4, 4, 3, 3), None, "reflect"
    )
    assert seen[0].shape == (1, 4, 10, 10) and seen[0].is_contiguous(memory_format=torch.channels_last)


def test_one_channel_by_hand():
    """A kernel that picks the pixel to the right of the centre moves the image one to the left."""
    kernel, x = torch.zeros(1, 1, 3, 3), torch.arange(20.0).view(1, 1, 4, 5)
    kernel[0, 0, 1, 2] = 1.0
    for convolve in (fast.from_one_channel, fast.to_one_channel):
        assert convolve(x, kernel, torch.zeros(1)).tolist() == x[..., 1:3, 2:5].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fields", [1, 3])
@pytest.mark.parametrize("size", [(7, 9), (1, 4)])
def test_read_displaced(size, fields, layout):
    features = noise(2, 3, *size).contiguous(memory_format=layout)
    assert_same(
        fast.read_displaced, offsets.read_displaced.__wrapped__, features, 2 * noise(2, fields, 2, *size, seed=1)
    )


def test_joint_histogram():
    a, b = (noise(3, 1, 20, 20, seed=seed).mul(0.5) for seed in (1, 2))  # some values lie outside [-1, 1]
    formula = losses.joint_histogram.__wrapped__.__wrapped__
    assert_same(lambda x, y: fast.joint_histogram(x, y, 32), lambda x, y: formula(x, y, 32), a, b)


@pytest.mark.parametrize("n", [1, 2])
def test_a_generator_is_the_same_function_with_and_without_fast_forms(n):
    generator, x = initialise(Generator(4, 2, "per_channel"), 0).double(), noise(n, 1, 32, 32)
    results = []
    for block in (fast.switched_off(), torch.enable_grad()):
        with block:
            out = torch.cat(generator.both(x)).double()
            results.append(torch.autograd.grad(out.square().sum(), generator.parameters()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # the output is float32


@pytest.mark.parametrize("norm", [fast.instance_norm, layers.instance_norm.__wrapped__])
def test_a_flat_channel_passes_no_gradient_and_the_others_are_as_they_were(norm):
    x = noise(2, 3, 8, 8)
    x[0, 1] = 0.3
    _, gradient = values_and_gradients(norm, x)
    assert gradient[0, 1].abs().max() == 0
    alone = values_and_gradients(lambda y: torch.cat([norm(y[:, :1]), y[:, 1:2], norm(y[:, 2:])], dim=1), x)[1]
    torch.testing.assert_close(gradient[:, [0, 2]], alone[:, [0, 2]])
