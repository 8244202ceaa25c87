"""The parts of the networks, as PyTorch computes them but quicker on a CPU: padded convolutions, instance normalisation.

Tensors lie channels-last in memory, in which a CPU convolves and pads fastest. Run `python -m benchmarks layers` for what each gains.
"""

import torch
from torch import Tensor, nn
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
        results = [torch.native_batch_norm(image, None, None, None, None, True, 0.0, EPS) for image in x.split(1)]
        ctx.save_for_backward(x, *(tensor for _, *statistics in results for tensor in statistics))
        return torch.cat([y for y, _, _ in results]) if len(results) > 1 else results[0][0]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        x, *statistics = ctx.saved_tensors
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        images = zip(gradient.contiguous(memory_format=layout).split(1), x.split(1), statistics[::2], statistics[1::2], strict=True)
        backward, wanted = torch.ops.aten.native_batch_norm_backward, [True, False, False]
        results = [backward(g, image, None, None, None, mean, scale, True, EPS, wanted)[0] for g, image, mean, scale in images]
        return torch.cat(results) if len(results) > 1 else results[0]
