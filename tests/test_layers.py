"""Laws of the networks' parts: the same function and gradient as PyTorch's plain layers, in both layouts, and one image at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mr2ct_lib.methods.layers import EPS, InstanceNorm, Padded, from_one_channel, plain, to_one_channel
from mr2ct_lib.methods.networks import Generator, initialise

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 3])
def test_normalisation_and_its_gradient_are_the_formulas(n, layout):
    x, g = (noise(n, 5, 8, 9, seed=seed) for seed in (1, 2))
    mean, scale = x.mean((2, 3), keepdim=True), (x.var((2, 3), correction=0, keepdim=True) + EPS).rsqrt()
    y = (x - mean) * scale
    expected = scale * (g - g.mean((2, 3), keepdim=True) - y * (g * y).mean((2, 3), keepdim=True))
    x = x.contiguous(memory_format=layout).requires_grad_()
    out = InstanceNorm(5)(x)
    torch.testing.assert_close(out, y)
    for gradient in (g, g.contiguous(memory_format=torch.channels_last)):  # in its own layout or in another one
        torch.testing.assert_close(torch.autograd.grad(out, x, gradient, retain_graph=True)[0], expected)
    torch.testing.assert_close(InstanceNorm(5)(x.detach()), y)  # the way without a gradient


def test_statistics_of_bf16_are_float32():
    """A mean of eight standard deviations rounded to bf16 would move the result by a hundredth of one."""
    x = (noise(1, 4, 64, 64, dtype=torch.float32) * 0.5 + 4).bfloat16().requires_grad_()
    error = InstanceNorm(4)(x).double() - F.instance_norm(x.detach().double())
    assert error.mean((0, 2, 3)).abs().max() < 2e-3


@pytest.mark.parametrize("borders", ["reflect", "replicate"])
@pytest.mark.parametrize("c_in, c_out, kernel", [(1, 5, 7), (5, 1, 7), (3, 4, 3)])
def test_padded_convolutions_are_pytorchs(c_in, c_out, kernel, borders):
    ours = Padded(c_in, c_out, kernel, borders).double()
    theirs = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, padding_mode=borders).double()
    theirs.load_state_dict(ours.state_dict())
    x = noise(2, c_in, 11, 13).requires_grad_()
    g = noise(2, c_out, 11, 13, seed=1)
    for a, b in zip(*(torch.autograd.grad(m(x), [x, *m.parameters()], g) for m in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ours(x), theirs(x))


def test_one_channel_by_hand():
    """A kernel that picks the pixel to the right of the centre moves the image one to the left."""
    kernel, x = torch.zeros(1, 1, 3, 3), torch.arange(20.0).view(1, 1, 4, 5)
    kernel[0, 0, 1, 2] = 1.0
    for convolve in (from_one_channel, to_one_channel):
        assert convolve(x, kernel, torch.zeros(1)).tolist() == x[..., 1:3, 2:5].tolist()


@pytest.mark.parametrize("n", [1, 2])
def test_a_generator_of_plain_layers_has_the_same_output_and_gradients(n):
    ours = initialise(Generator(4, 2), 0).double()
    x = noise(n, 1, 32, 32)
    for a, b in zip(*(torch.autograd.grad(g(x).double().square().sum(), g.parameters()) for g in (ours, plain(ours))), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # its output is float32
