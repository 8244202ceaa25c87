"""Speed, and nothing else: quicker forms of formulas that stand elsewhere.

A function marked with `has_fast_form` where its formula stands is replaced by the function of the same name in FORMS
below, on the devices listed there. Tests hold both forms to equal values and gradients. Without this module everything
computes the same results, more slowly.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPS = 1e-5  # added to the variance by instance normalisation, as in PyTorch
FLAT = 1e-10  # a variance that is nothing but rounding
CHANNELS_LAST = torch.channels_last
FORMS: dict[
    str, dict[str, Callable[..., Tensor]]
] = {}  # device type: {name of the formula: its fast form}; filled below
_switched_off = False


def has_fast_form(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark a formula: where FORMS has its name for the device of its first argument, that form computes instead."""

    @wraps(formula)
    def chosen(x: Tensor, *arguments, **options) -> Tensor:
        form = None if _switched_off else FORMS.get(x.device.type, {}).get(formula.__name__)
        return (form or formula)(x, *arguments, **options)

    return chosen


@contextmanager
def switched_off() -> Iterator[None]:
    """Within this block the formulas themselves compute: for export, and for comparing."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


# --- Layers -----------------------------------------------------------------------------------------------------------
# Networks keep their tensors channels-last in memory. In this layout a CPU convolves and pads fastest, and so does a
# GPU in bf16.


def padded_convolution(x: Tensor, weight: Tensor, bias: Tensor, borders: str) -> Tensor:
    """`layers.padded_convolution` on a CPU; float32 in any precision where c_out is 1.

    bf16 is padded as bf16, where autocast would convert it to float32 and back.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = F.pad(x, [weight.shape[-1] // 2] * 4, mode=borders)
    if len(weight) == 1:
        return to_one_channel(x, weight, bias)
    return from_one_channel(x, weight, bias) if x.shape[1] == 1 else F.conv2d(x, weight, bias)


def from_one_channel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv2d of x (n, 1, h, w) with weight (c, 1, k, k) -> (n, c, h - k + 1, w - k + 1).

    A CPU's convolution works on 16 channels at once, or wastes its time. So the kernel's columns become k channels.
    """
    k, width = weight.shape[-1], x.shape[-1] - weight.shape[-1] + 1
    columns = torch.stack([x[:, 0, :, i : i + width] for i in range(k)], dim=-1).movedim(-1, 1)  # (n, k, h, width)
    return F.conv2d(columns, weight.squeeze(1).movedim(-1, 1).unsqueeze(-1).contiguous(), bias)  # weight (c, k, k, 1)


def to_one_channel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.conv2d of x (n, c, h, w) with weight (1, c, k, k) -> (n, 1, h - k + 1, w - k + 1), as `from_one_channel`.

    The result of bf16 is float32.
    """
    k, width = weight.shape[-1], x.shape[-1] - weight.shape[-1] + 1
    columns = F.conv2d(x, weight.squeeze(0).movedim(-1, 0).unsqueeze(-1).contiguous())  # weight (k, c, k, 1)
    columns = columns if columns.dtype == torch.float64 else columns.float()  # (n, k, h - k + 1, w)
    return sum(columns[:, i : i + 1, :, i : i + width] for i in range(k)) + bias.view(1, 1, 1, 1)


@lru_cache
def _kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The kernels in Triton, which comes with PyTorch for GPUs on Linux; None where it is missing or does not work.

    It needs a C compiler, for example, and a GPU that it knows.
    """
    try:
        from mr2ct_lib.methods import kernels

        with torch.inference_mode(False), torch.enable_grad():
            for channels, k in ((16, 1), (64, 3)):
                x = torch.arange(channels * 64.0, device=device).view(1, channels, 8, 8) / channels
                x = x.to(dtype).contiguous(memory_format=CHANNELS_LAST)
                out = kernels.Reflect.apply(kernels.InstanceNorm.apply(x.requires_grad_(), EPS, FLAT), k)
                out.sum().backward()
                expected = F.pad(F.instance_norm(x.detach().float()), [k] * 4, mode="reflect")
                torch.testing.assert_close(out.detach().float(), expected, rtol=0, atol=0.05)  # waits for the kernels
    except ImportError:
        return None
    except Exception as error:  # of any kind: what a run can do without must not end it
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        print(f"Triton: does not work here ({reason}); PyTorch's kernels are used, which are slower", file=sys.stderr)
        return None
    return kernels


def _suits_kernels(x: Tensor) -> bool:
    """Whether x is a feature map that `kernels` can read: channels-last, not float64, more than one channel.

    They count the values of an image, and the pixels of all, in 32 bits.
    """
    layout = x.shape[1] > 1 and x.is_contiguous(memory_format=CHANNELS_LAST)
    suits = layout and x.shape[1:].numel() < 2**31 and x.dtype != torch.float64
    return suits and _kernels(x.device, x.dtype) is not None


def padded_convolution_gpu(x: Tensor, weight: Tensor, bias: Tensor | None, borders: str) -> Tensor:
    """`layers.padded_convolution` on a GPU: padding keeps the channels-last layout, one channel comes out as float32.

    F.pad of an image copies it to the contiguous layout first. Without a kernel for it, the channel counts as a third
    spatial dimension that is not padded, so that PyTorch's kernel for volumes reads and writes the memory as it is.
    """
    k = weight.shape[-1] // 2
    if borders == "reflect" and k < min(x.shape[2:]) and _suits_kernels(x):
        x = _kernels(x.device, x.dtype).Reflect.apply(x, k)
    elif x.shape[1] > 1 and x.is_contiguous(memory_format=CHANNELS_LAST):
        volume = x.permute(0, 2, 3, 1).unsqueeze(1)  # (n, 1, h, w, c), contiguous
        x = F.pad(volume, [0, 0, k, k, k, k], mode=borders).squeeze(1).permute(0, 3, 1, 2)
    else:
        x = F.pad(x, [k] * 4, mode=borders)
    out = F.conv2d(x, weight, bias)
    return out.to(torch.promote_types(out.dtype, torch.float32)) if len(weight) == 1 else out


def bias_before_norm(bias: Tensor) -> Tensor | None:
    """The bias of a convolution in front of an instance normalisation, which takes it away again: none on a GPU.

    There its sum, its gradient and their conversions cost a tenth of a step. A CPU keeps it, and its bits.
    """
    return None if bias.is_cuda and not _switched_off else bias


def instance_norm_gpu(x: Tensor) -> Tensor:
    """`layers.instance_norm` on a GPU, by the kernels where they can read x."""
    if _suits_kernels(x):
        return _kernels(x.device, x.dtype).InstanceNorm.apply(x, EPS, FLAT)
    return _InstanceNorm.apply(x)


def instance_norm(x: Tensor) -> Tensor:
    """`layers.instance_norm`, in the type and layout of x.

    Without gradient: group normalisation with one channel per group. Its own gradient is slow in the channels-last
    layout (15 ms where a convolution takes 11).

    A flat channel (variance at most FLAT), which the formula makes 0, keeps values near 0, (x - mean) / sqrt(variance
    + EPS). It passes no gradient either.
    """
    if not (x.requires_grad and torch.is_grad_enabled()):
        return F.group_norm(x, x.shape[1], eps=EPS)
    return _InstanceNorm.apply(x)


class _InstanceNorm(torch.autograd.Function):
    """Batch normalisation of each image by itself: PyTorch's is fast in both directions and in every layout."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # of the statistics, also of bf16
        ones, zeros = x.new_ones(x.shape[1], dtype=exact), x.new_zeros(x.shape[1], dtype=exact)
        means, scales, out = *(x.new_empty(x.shape[:2], dtype=exact) for _ in range(2)), torch.empty_like(x)
        for i in range(len(x)):
            parts = {"out": out[i : i + 1], "save_mean": means[i], "save_invstd": scales[i]}
            torch.ops.aten.native_batch_norm.out(x[i : i + 1], ones, zeros, None, None, True, 0.0, EPS, **parts)
        scales.masked_fill_(scales > (EPS + FLAT) ** -0.5, 0)  # flat channels pass no gradient
        ctx.save_for_backward(x, ones, means, scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        x, ones, means, scales = ctx.saved_tensors
        layout = CHANNELS_LAST if x.is_contiguous(memory_format=CHANNELS_LAST) else torch.contiguous_format
        gradient, of_images = gradient.contiguous(memory_format=layout), []
        for i in range(len(x)):
            statistics = (None, None, means[i], scales[i], True, EPS, [True, False, False])
            image, g = x[i : i + 1], gradient[i : i + 1]
            of_images.append(torch.ops.aten.native_batch_norm_backward(g, image, ones, *statistics)[0])
        return torch.cat(of_images) if len(of_images) > 1 else of_images[0]


# --- Offset layers ----------------------------------------------------------------------------------------------------

BILINEAR_CLAMPED = (0, 1, True)  # PyTorch's numbers for mode="bilinear", padding_mode="border", align_corners=True


def read_displaced(features: Tensor, offsets: Tensor) -> Tensor:
    """`offsets.read_displaced` in the layout and type of features."""
    return _ReadDisplaced.apply(features, offsets.flatten(1, 2))


class _ReadDisplaced(torch.autograd.Function):
    """PyTorch's bilinear sampler, with one pass over memory each for the ways into its form and back.

    features (n, c, h, w), displacements (n, 2 fields, h, w), each dy before its dx -> (n, c, h, w).
    """

    @staticmethod
    def forward(ctx, features: Tensor, displacements: Tensor) -> Tensor:
        n, c, h, w = features.shape
        fields = displacements.shape[1] // 2
        dtype = torch.float64 if torch.float64 in (features.dtype, displacements.dtype) else torch.float32
        # the sampler wants (x, y) in [-1, 1] from the first pixel's centre to the last one's
        grid = torch.empty((n * fields, h, w, 2), dtype=dtype, device=features.device)
        pixels = displacements.contiguous().view(n * fields, 2, h, w)
        for i, size in enumerate((w, h)):
            ends = (-1, 1 if size > 1 else -1)
            centres = torch.linspace(*ends, size, dtype=dtype, device=features.device)
            centres = centres.view((1, 1, w) if i == 0 else (1, h, 1))
            torch.add(centres, pixels[:, 1 - i], alpha=2 / max(size - 1, 1), out=grid[..., i])
        values = features.to(dtype, memory_format=torch.contiguous_format).view(n * fields, c // fields, h, w)
        ctx.save_for_backward(values, grid)
        ctx.types, ctx.layouts = (features.dtype, displacements.dtype), (_layout(features), _layout(displacements))
        moved = torch.ops.aten.grid_sampler_2d(values, grid, *BILINEAR_CLAMPED).view(n, c, h, w)
        planes = _planes(moved, features.dtype, ctx.layouts[0])
        return planes.copy_(moved).contiguous(memory_format=ctx.layouts[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        values, grid = ctx.saved_tensors
        n, _, h, w = shape = gradient.shape
        gradient = gradient.to(values.dtype, memory_format=torch.contiguous_format).view(values.shape)
        wanted = [ctx.needs_input_grad[0], True]
        of_values, of_grid = torch.ops.aten.grid_sampler_2d_backward(gradient, values, grid, *BILINEAR_CLAMPED, wanted)
        if of_values is not None:
            of_values = of_values.view(shape)
            planes = _planes(of_values, ctx.types[0], ctx.layouts[0])
            of_values = planes.copy_(of_values).contiguous(memory_format=ctx.layouts[0])
        of_grid = of_grid.view(n, -1, h, w, 2)
        of_pixels = _planes(grid.view(n, -1, h, w), ctx.types[1], ctx.layouts[1])
        for i, size in enumerate((w, h)):
            of_pixels[:, 1 - i :: 2] = of_grid[..., i].mul_(2 / max(size - 1, 1))
        return of_values, of_pixels.contiguous(memory_format=ctx.layouts[1])


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else CHANNELS_LAST


def _planes(like: Tensor, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Memory for planes (n, c, h, w): on a GPU in their final layout, on a CPU with 32 values between two of them.

    Without the gap the same pixel of all planes, powers of two apart, falls into the same few lines of a CPU's cache,
    and conversion to channels-last, which reads all planes at once, takes two to four times as long.
    """
    if like.device.type != "cpu":
        return torch.empty(like.shape, dtype=dtype, device=like.device, memory_format=layout)
    n, c, h, w = like.shape
    return torch.empty((n, c, h * w + 32), dtype=dtype)[..., : h * w].unflatten(2, (h, w))


# --- Mutual information -----------------------------------------------------------------------------------------------


def joint_histogram(a: Tensor, b: Tensor, bins: int = 32) -> Tensor:
    """`losses.joint_histogram` with four weights per value instead of one per value and bin."""
    return _JointHistogram.apply(a.flatten(1), b.flatten(1), bins)


class _JointHistogram(torch.autograd.Function):
    """W_a W_b^T / pixels of values (n, pixels) twice, where W (n, bins, pixels) has four weights per column.

    Both tables W are in memory only during a call: the gradient computes them again instead of keeping them.
    """

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, bins: int) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.bins = bins
        return _windows(a, bins) @ _windows(b, bins).transpose(1, 2) / a.shape[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = ctx.saved_tensors
        gradients: list[Tensor | None] = [None, None]
        for i, (values, others, g) in enumerate(((a, b, gradient), (b, a, gradient.transpose(1, 2)))):
            if not ctx.needs_input_grad[i]:
                continue
            first, t = _first_bin(values, ctx.bins)
            pull = g @ _windows(others, ctx.bins)  # (n, bins, pixels): the loss's gradient in the weight of each bin
            slopes = (-(1 - t).square() / 2, (1.5 * t - 2) * t, (-1.5 * t + 1) * t + 0.5, t.square() / 2)
            slope = sum(pull.gather(1, first + k) * rise for k, rise in enumerate(slopes)).squeeze(1)
            gradients[i] = slope * (values.abs() <= 1) * ((ctx.bins - 3) / 2 / a.shape[1])
        return *gradients, None


def _first_bin(values: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """For values (n, pixels): the first of the four bins that each is spread over, and its position t in [0, 1] between
    the second and the third; both (n, 1, pixels)."""
    position = (values.clamp(-1, 1) + 1)[:, None] * ((bins - 3) / 2)  # one spare bin on either side
    first = position.floor().clamp_max(bins - 4).nan_to_num(0)  # NaN stays in t, so that the loss is NaN
    return first.long(), position - first


def _windows(values: Tensor, bins: int) -> Tensor:
    """The cubic B-spline of values (n, pixels) at each bin: (n, bins, pixels), four weights per pixel, the rest 0."""
    first, t = _first_bin(values, bins)
    windows = values.new_zeros(len(values), bins, values.shape[1])
    inner = ((0.5 * t - 1) * t.square() + 4 / 6, ((-0.5 * t + 0.5) * t + 0.5) * t + 1 / 6)
    for i, weight in enumerate(((1 - t).pow(3) / 6, *inner, t.pow(3) / 6)):
        windows.scatter_(1, first + i, weight)
    return windows


# The one place where a formula or its fast form is chosen.
FORMS["cpu"] = {
    "padded_convolution": padded_convolution,
    "instance_norm": instance_norm,
    "read_displaced": read_displaced,
    "joint_histogram": joint_histogram,
}
FORMS["cuda"] = FORMS["cpu"] | {"padded_convolution": padded_convolution_gpu, "instance_norm": instance_norm_gpu}
