"""Kernels for a GPU, in Triton: instance normalisation and reflection padding of channels-last feature maps.

PyTorch's kernels need several launches each and, for a few channels, leave most of the GPU idle; at paper size they
take a third of a training step. Here a tile of P pixels and C channels is the unit of work. Sums over pixels are taken
in two stages, each program's own and then those of all programs, always in the same order, so that the same input gives
the same bits. Only `fast` calls this module, and tests hold it to the formulas in `layers`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 4096  # values per tile
MOST_CHANNELS = 64  # of a tile
MOST_BLOCKS = 128  # programs that share the pixels of one image and one tile of channels
RUNTIME = ["pixels", "span", "blocks", "height", "width"]  # numbers for which no kernel of their own is compiled


@triton.jit
def _load(x, p, c, pixels, channels):
    """Values (P, C) of pixels p and channels c as float32, and whether they exist; the others are 0."""
    there = (p < pixels)[:, None] & (c < channels)[None, :]
    return tl.load(x + p[:, None] * channels + c[None, :], mask=there, other=0.0).to(tl.float32), there


@triton.jit
def _keep_sums(sums, one, two, image, c, channels, blocks):
    """Write this program's two sums (C,) to its place in `sums` (images, blocks, 2, channels)."""
    place = sums + (image * blocks + tl.program_id(0)) * 2 * channels + c
    tl.store(place, one, mask=c < channels)
    tl.store(place + channels, two, mask=c < channels)


@triton.jit
def _all_sums(sums, image, c, channels, blocks, BLOCKS: tl.constexpr):
    """The two sums (C,) over the programs of an image."""
    block = tl.arange(0, BLOCKS)
    place = sums + (image * blocks + block)[:, None] * 2 * channels + c[None, :]
    there = (block < blocks)[:, None] & (c < channels)[None, :]
    one = tl.sum(tl.load(place, mask=there, other=0.0), 0)
    return one, tl.sum(tl.load(place + channels, mask=there, other=0.0), 0)


@triton.jit(do_not_specialize=RUNTIME)
def _forward_sums(x, sums, pixels, channels, span, blocks, P: tl.constexpr, C: tl.constexpr):
    """Sums of x - x0 and of its square, x0 the first pixel of the channel: exactly 0 for a flat channel."""
    image, c = tl.program_id(2).to(tl.int64), tl.program_id(1) * C + tl.arange(0, C)
    x += image * pixels * channels
    first = tl.load(x + c, mask=c < channels, other=0.0).to(tl.float32)
    one, two = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    start = tl.program_id(0) * span
    for tile in range(0, span, P):
        values, there = _load(x, start + tile + tl.arange(0, P), c, pixels, channels)
        values = tl.where(there, values - first[None, :], 0.0)
        one += tl.sum(values, 0)
        two += tl.sum(values * values, 0)
    _keep_sums(sums, one, two, image, c, channels, blocks)


@triton.jit(do_not_specialize=RUNTIME)
def _forward(x, sums, out, statistics, pixels, channels, span, blocks, eps, flat, P: tl.constexpr, C: tl.constexpr,
             BLOCKS: tl.constexpr):  # fmt: skip
    """out = (x - mean) scale, scale = 1 / sqrt(variance + eps) or 0 for a flat channel; statistics (images, 2, c)."""
    image, c = tl.program_id(2).to(tl.int64), tl.program_id(1) * C + tl.arange(0, C)
    one, two = _all_sums(sums, image, c, channels, blocks, BLOCKS)
    x += image * pixels * channels
    out += image * pixels * channels
    shift = one / pixels
    variance = two / pixels - shift * shift
    mean = tl.load(x + c, mask=c < channels, other=0.0).to(tl.float32) + shift
    scale = tl.where(variance > flat, 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps), 0.0)
    start = tl.program_id(0) * span
    for tile in range(0, span, P):
        p = start + tile + tl.arange(0, P)
        values, there = _load(x, p, c, pixels, channels)
        result = (values - mean[None, :]) * scale[None, :]
        tl.store(out + p[:, None] * channels + c[None, :], result.to(out.dtype.element_ty), mask=there)
    if tl.program_id(0) == 0:
        tl.store(statistics + image * 2 * channels + c, mean, mask=c < channels)
        tl.store(statistics + image * 2 * channels + channels + c, scale, mask=c < channels)


@triton.jit(do_not_specialize=RUNTIME)
def _backward_sums(x, g, statistics, sums, pixels, channels, span, blocks, P: tl.constexpr, C: tl.constexpr):
    """Sums of the gradient g and of g times the normalised x."""
    image, c = tl.program_id(2).to(tl.int64), tl.program_id(1) * C + tl.arange(0, C)
    x += image * pixels * channels
    g += image * pixels * channels
    mean = tl.load(statistics + image * 2 * channels + c, mask=c < channels, other=0.0)
    scale = tl.load(statistics + image * 2 * channels + channels + c, mask=c < channels, other=0.0)
    one, two = tl.zeros((C,), tl.float32), tl.zeros((C,), tl.float32)
    start = tl.program_id(0) * span
    for tile in range(0, span, P):
        p = start + tile + tl.arange(0, P)
        values, _ = _load(x, p, c, pixels, channels)
        gradient, _ = _load(g, p, c, pixels, channels)
        one += tl.sum(gradient, 0)
        two += tl.sum(gradient * (values - mean[None, :]) * scale[None, :], 0)
    _keep_sums(sums, one, two, image, c, channels, blocks)


@triton.jit(do_not_specialize=RUNTIME)
def _backward(x, g, statistics, sums, out, pixels, channels, span, blocks, P: tl.constexpr, C: tl.constexpr,
              BLOCKS: tl.constexpr):  # fmt: skip
    """out = scale (g - mean of g - normalised x times mean of g times normalised x)."""
    image, c = tl.program_id(2).to(tl.int64), tl.program_id(1) * C + tl.arange(0, C)
    one, two = _all_sums(sums, image, c, channels, blocks, BLOCKS)
    x += image * pixels * channels
    g += image * pixels * channels
    out += image * pixels * channels
    mean = tl.load(statistics + image * 2 * channels + c, mask=c < channels, other=0.0)
    scale = tl.load(statistics + image * 2 * channels + channels + c, mask=c < channels, other=0.0)
    start = tl.program_id(0) * span
    for tile in range(0, span, P):
        p = start + tile + tl.arange(0, P)
        values, there = _load(x, p, c, pixels, channels)
        gradient, _ = _load(g, p, c, pixels, channels)
        normal = (values - mean[None, :]) * scale[None, :]
        result = (gradient - (one / pixels)[None, :] - normal * (two / pixels)[None, :]) * scale[None, :]
        tl.store(out + p[:, None] * channels + c[None, :], result.to(out.dtype.element_ty), mask=there)


class InstanceNorm(torch.autograd.Function):
    """`layers.instance_norm` of channels-last x (n, c, h, w), float32 or 16 bits, in its own type and layout."""

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, flat: float) -> Tensor:
        """See the class."""
        grid, sizes, tile = _shares(x)
        sums = x.new_empty((len(x), sizes[-1], 2, x.shape[1]), dtype=torch.float32)
        statistics, out = x.new_empty((len(x), 2, x.shape[1]), dtype=torch.float32), torch.empty_like(x)
        with torch.cuda.device_of(x):  # Triton launches on the current GPU
            _forward_sums[grid](x, sums, *sizes, **tile)
            _forward[grid](x, sums, out, statistics, *sizes, eps, flat, **tile, BLOCKS=MOST_BLOCKS)
        ctx.save_for_backward(x, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """See the class."""
        x, statistics = ctx.saved_tensors
        grid, sizes, tile = _shares(x)
        gradient, out = gradient.contiguous(memory_format=torch.channels_last), torch.empty_like(x)
        sums = x.new_empty((len(x), sizes[-1], 2, x.shape[1]), dtype=torch.float32)
        with torch.cuda.device_of(x):
            _backward_sums[grid](x, gradient, statistics, sums, *sizes, **tile)
            _backward[grid](x, gradient, statistics, sums, out, *sizes, **tile, BLOCKS=MOST_BLOCKS)
        return out, None, None


def _shares(x: Tensor) -> tuple[tuple[int, int, int], tuple[int, int, int, int], dict[str, int]]:
    """How x (n, c, h, w) is shared out: the grid of programs, (pixels, channels, span, blocks), the tile."""
    n, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    c = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    p, columns = TILE // c, triton.cdiv(channels, c)
    tiles = triton.cdiv(pixels, p)
    span = p * triton.cdiv(tiles, max(1, min(MOST_BLOCKS, 256 // (columns * n))))  # pixels of one program
    blocks = triton.cdiv(pixels, span)
    return (blocks, columns, n), (pixels, channels, span, blocks), {"P": p, "C": c}


# --- reflection ---


@triton.jit
def _places(p, c, channels):
    """Where channels c of pixels p lie (P, C): in 64 bits, since all images together may hold more than 2^31 values.

    Pixels are counted in 32 bits; divisions take a GPU several times as long in 64.
    """
    return p.to(tl.int64)[:, None] * channels + c[None, :]


@triton.jit(do_not_specialize=RUNTIME)
def _reflect(x, out, pixels, channels, height, width, K: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    """Copy x (n, height, width, c) to out, larger by K pixels on each side; `pixels`: of all images of out."""
    p, c = tl.program_id(0) * P + tl.arange(0, P), tl.program_id(1) * C + tl.arange(0, C)
    rows, columns = height + 2 * K, width + 2 * K
    image, row, column = p // (rows * columns), p // columns % rows - K, p % columns - K
    row = tl.where(row < 0, -row, tl.where(row >= height, 2 * height - 2 - row, row))
    column = tl.where(column < 0, -column, tl.where(column >= width, 2 * width - 2 - column, column))
    there = (p < pixels)[:, None] & (c < channels)[None, :]
    x += _places((image * height + row) * width + column, c, channels)
    tl.store(out + _places(p, c, channels), tl.load(x, mask=there), mask=there)


@triton.jit(do_not_specialize=RUNTIME)
def _fold(g, out, pixels, channels, height, width, K: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    """Add up the gradient g of `_reflect` over all pixels that show the same one; `pixels`: of all images of out."""
    p, c = tl.program_id(0) * P + tl.arange(0, P), tl.program_id(1) * C + tl.arange(0, C)
    image, y, x = p // (height * width), p // width % height, p % width
    there, total = (p < pixels)[:, None] & (c < channels)[None, :], tl.zeros((P, C), tl.float32)
    for i in tl.static_range(3):  # itself, its reflection at the first and at the last row
        row = y if i == 0 else (-y if i == 1 else 2 * height - 2 - y)
        has_row = (y >= 0) if i == 0 else ((y >= 1) & (y <= K) if i == 1 else (y >= height - 1 - K) & (y < height - 1))
        for j in tl.static_range(3):
            column = x if j == 0 else (-x if j == 1 else 2 * width - 2 - x)
            has = (x >= 0) if j == 0 else ((x >= 1) & (x <= K) if j == 1 else (x >= width - 1 - K) & (x < width - 1))
            place = (image * (height + 2 * K) + row + K) * (width + 2 * K) + column + K
            mask = there & (has_row & has)[:, None]
            total += tl.load(g + _places(place, c, channels), mask=mask, other=0.0).to(tl.float32)
    tl.store(out + _places(p, c, channels), total.to(out.dtype.element_ty), mask=there)


class Reflect(torch.autograd.Function):
    """Reflection by k pixels on each side, as by F.pad, of channels-last x (n, c, h, w), k < h, w, in its own type."""

    @staticmethod
    def forward(ctx, x: Tensor, k: int) -> Tensor:
        """See the class."""
        n, c, h, w = x.shape
        out = x.new_empty((n, h + 2 * k, w + 2 * k, c)).permute(0, 3, 1, 2)
        ctx.k, ctx.shape = k, x.shape
        _launch(_reflect, x, out, h, w, k)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """See the class."""
        n, c, h, w = ctx.shape
        out = gradient.new_empty((n, h, w, c)).permute(0, 3, 1, 2)
        _launch(_fold, gradient.contiguous(memory_format=torch.channels_last), out, h, w, ctx.k)
        return out, None


def _launch(kernel, x: Tensor, out: Tensor, height: int, width: int, k: int) -> None:
    """Start a kernel of the reflection with one program per tile of `out`."""
    channels, pixels = out.shape[1], out.numel() // out.shape[1]
    c = min(MOST_CHANNELS, triton.next_power_of_2(channels))
    p = TILE // 4 // c
    grid = (triton.cdiv(pixels, p), triton.cdiv(channels, c))
    with torch.cuda.device_of(x):
        kernel[grid](x, out, pixels, channels, height, width, K=k, P=p, C=c)
