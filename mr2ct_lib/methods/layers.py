"""The parts of both networks: reflection-padded convolutions and instance normalisation, as formulas.

`fast` has a quicker form of both functions; which of the two computes is decided there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mr2ct_lib.methods.fast import EPS, FLAT, bias_before_norm, has_fast_form


@has_fast_form
def padded_convolution(x: Tensor, weight: Tensor, bias: Tensor, borders: str) -> Tensor:
    """Convolve x (n, c_in, h, w) with weight (c_out, c_in, k, k), k odd, to (n, c_out, h, w).

    borders: how the image continues by k // 2 pixels, "reflect" or "replicate".
    """
    return F.conv2d(F.pad(x, [weight.shape[-1] // 2] * 4, mode=borders), weight, bias)


@has_fast_form
def instance_norm(x: Tensor) -> Tensor:
    """Bring each channel of each image (n, c, h, w) to mean 0 and variance 1: (x - mean) / sqrt(variance + 1e-5).

    A flat channel becomes 0 and passes no gradient. It has nothing to normalise, and the factor of 316 that the formula
    leaves would multiply its gradient in every layer of a network that sees a blank slice.
    """
    exact = x if x.dtype == torch.float64 else x.float()  # statistics in float32, also of bf16
    mean, variance = exact.mean((2, 3), keepdim=True), exact.var((2, 3), correction=0, keepdim=True)
    scale = torch.where(variance > FLAT, (variance + EPS).rsqrt(), 0)
    return ((exact - mean) * scale).to(x.dtype)


class PaddedConvolution(nn.Conv2d):
    """`padded_convolution` with weights to learn: (n, c_in, h, w) -> (n, c_out, h, w).

    normalised: an instance normalisation follows, see `fast.bias_before_norm`.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, borders: str = "reflect", normalised: bool = False):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2, padding_mode=borders)
        self.normalised = normalised

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, h, w)."""
        bias = bias_before_norm(self.bias) if self.normalised else self.bias
        return padded_convolution(x, self.weight, bias, self.padding_mode)


class NormalisedConvolution(nn.Conv2d):
    """A convolution with zero padding that an instance normalisation follows, see `fast.bias_before_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, about h / stride, about w / stride)."""
        return self._conv_forward(x, self.weight, bias_before_norm(self.bias))


class NormalisedTransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution that an instance normalisation follows, see `fast.bias_before_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, stride h, stride w)."""
        bias = bias_before_norm(self.bias)
        return F.conv_transpose2d(x, self.weight, bias, self.stride, self.padding, self.output_padding)


class InstanceNorm(nn.Module):
    """`instance_norm` as a module; nothing is learned, as in nn.InstanceNorm2d: (n, c, h, w) -> (n, c, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return instance_norm(x)
