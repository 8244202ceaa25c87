"""The parts of the networks, as PyTorch computes them but quicker on a CPU: padded convolutions, instance normalisation.

Tensors lie channels-last in memory, in which a CPU convolves and pads fastest.
"""

import copy

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPS = 1e-5  # added to the variance, as PyTorch does


class Padded(nn.Conv2d):
    """A convolution of odd kernel that keeps the size, borders continued by "reflect" or "replicate": (n, c_in, h, w) -> (n, c_out, h, w).

    As nn.Conv2d with this padding_mode, but bf16 is padded as bf16, where autocast would pad it in float32, there and back.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, borders: str = "reflect"):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2, padding_mode=borders)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c_in, h, w) -> (n, c_out, h, w); float32 in any precision where c_out is 1."""
        with torch.autocast(x.device.type, enabled=False):
            x = F.pad(x, [self.kernel_size[0] // 2] * 4, mode=self.padding_mode)
        if self.out_channels == 1:
            return to_one_channel(x, self.weight, self.bias)
        if self.in_channels == 1:
            return from_one_channel(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias)


def from_one_channel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv2d of one channel, with the kernel's columns as channels: x (n, 1, h, w), weight (c, 1, k, k) -> (n, c, h - k + 1, w - k + 1).

    A processor's convolution works on 16 channels at once or wastes its time, most of all in the gradient.
    """
    k, width = weight.shape[-1], x.shape[-1] - weight.shape[-1] + 1
    columns = torch.stack([x[:, 0, :, i : i + width] for i in range(k)], dim=-1).movedim(-1, 1)  # (n, k, h, width), channels last
    return F.conv2d(columns, weight.squeeze(1).movedim(-1, 1).unsqueeze(-1).contiguous(), bias)  # weight (c, k, k, 1)


def to_one_channel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv2d to one channel, the same way: x (n, c, h, w), weight (1, c, k, k) -> (n, 1, h - k + 1, w - k + 1), float32 from bf16."""
    k, width = weight.shape[-1], x.shape[-1] - weight.shape[-1] + 1
    columns = F.conv2d(x, weight.squeeze(0).movedim(-1, 0).unsqueeze(-1).contiguous())  # weight (k, c, k, 1); result (n, k, h - k + 1, w)
    columns = columns if columns.dtype == torch.float64 else columns.float()
    return sum(columns[:, i : i + 1, :, i : i + width] for i in range(k)) + bias.view(1, 1, 1, 1)


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1, nothing learned: what nn.InstanceNorm2d does by default.

    It is a group normalisation with one channel a group, for which PyTorch keeps the channels-last layout. That function's own
    gradient is slow in this layout on a CPU (15 ms where a convolution takes 11), so training takes `_Normalisation` there.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        if x.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu":
            return _Normalisation.apply(x)
        return F.group_norm(x, self.channels)


class _Normalisation(torch.autograd.Function):
    """Instance normalisation as a batch normalisation of each image by itself: PyTorch's is fast forth and back in every layout."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # of the statistics, also of bf16
        ones, zeros = x.new_ones(x.shape[1], dtype=exact), x.new_zeros(x.shape[1], dtype=exact)
        means, scales, out = *(x.new_empty(x.shape[:2], dtype=exact) for _ in range(2)), torch.empty_like(x)
        for i in range(len(x)):
            parts = {"out": out[i : i + 1], "save_mean": means[i], "save_invstd": scales[i]}
            torch.ops.aten.native_batch_norm.out(x[i : i + 1], ones, zeros, None, None, True, 0.0, EPS, **parts)
        ctx.save_for_backward(x, ones, means, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        x, ones, means, scales = ctx.saved_tensors
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        gradient, found = gradient.contiguous(memory_format=layout), []
        for i in range(len(x)):
            statistics = (None, None, means[i], scales[i], True, EPS, [True, False, False])
            found.append(torch.ops.aten.native_batch_norm_backward(gradient[i : i + 1], x[i : i + 1], ones, *statistics)[0])
        return torch.cat(found) if len(found) > 1 else found[0]


def plain(network: nn.Module) -> nn.Module:
    """A copy of a network of nothing but torch.nn's own layers, the same function of the same weights: for exporting, and for comparing."""
    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, InstanceNorm):
                setattr(parent, name, nn.InstanceNorm2d(part.channels))
            elif isinstance(part, Padded):
                options = {"padding": part.padding, "padding_mode": part.padding_mode}
                usual = nn.Conv2d(part.in_channels, part.out_channels, part.kernel_size, **options, dtype=part.weight.dtype)
                usual.load_state_dict(part.state_dict())
                setattr(parent, name, usual)
    return network.to(memory_format=torch.contiguous_format)
