"""The deformable offset layer of DicycleGAN: a feature map resampled where a convolution says (Wang et al. 2018, after Dai et al. 2017).

The layer has no value of its own to add to a feature map: it only moves what is there. A 3x3 convolution looks at the map and
gives every position a displacement (dy, dx) in pixels; the output at (y, x) is the input at (y + dy, x + dx), read by bilinear
interpolation, positions outside clamped to the border. The convolution begins at zero, so an untrained layer moves nothing.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mr2ct_lib.methods.layers import Padded


def resample(features: Tensor, offsets: Tensor) -> Tensor:
    """Read `features` (n, c, h, w) at every position displaced by `offsets` (n, c or 1, 2, h, w), in pixels.

    offsets[:, :, 0] is dy (down is positive), offsets[:, :, 1] is dx (right is positive); with one field (size 1) all channels
    move alike. Bilinear, clamped at the border. Returns (n, c, h, w). Differentiable in both arguments.

    >>> image = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> down = torch.zeros(1, 1, 2, 3, 3)
    >>> down[:, :, 0] = 1.0                      # every output pixel reads the one below it; the last row reads itself
    >>> resample(image, down)[0, 0].tolist()
    [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0], [6.0, 7.0, 8.0]]
    """
    n, c, h, w = features.shape
    fields = offsets.shape[1]
    if offsets.shape != (n, fields, 2, h, w) or fields not in (1, c):
        raise ValueError(f"offsets have shape {tuple(offsets.shape)}; expected ({n}, 1 or {c}, 2, {h}, {w})")
    return _Resampling.apply(features, offsets.flatten(1, 2))


class _Resampling(torch.autograd.Function):
    """PyTorch's bilinear sampler, and one pass over memory each for the ways into its form and back.

    features (n, c, h, w), displacements (n, 2 fields, h, w), each dy before its dx -> (n, c, h, w) in the layout and type of features.
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
            centres = torch.linspace(-1, 1, size, dtype=dtype, device=features.device) if size > 1 else grid.new_zeros(1) - 1
            centres = centres.view((1, 1, w) if i == 0 else (1, h, 1))
            torch.add(centres, pixels[:, 1 - i], alpha=2 / max(size - 1, 1), out=grid[..., i])
        values = features.to(dtype, memory_format=torch.contiguous_format).view(n * fields, c // fields, h, w)
        ctx.save_for_backward(values, grid)
        ctx.types, ctx.layouts = (features.dtype, displacements.dtype), (_layout(features), _layout(displacements))
        moved = torch.ops.aten.grid_sampler_2d(values, grid, *BILINEAR_CLAMPED).view(n, c, h, w)
        return _spaced(moved, features.dtype).copy_(moved).contiguous(memory_format=ctx.layouts[0])

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
            of_values = _spaced(of_values, ctx.types[0]).copy_(of_values).contiguous(memory_format=ctx.layouts[0])
        of_grid = of_grid.view(n, -1, h, w, 2)
        of_pixels = _spaced(grid.view(n, -1, h, w), ctx.types[1])
        for i, size in enumerate((w, h)):
            of_pixels[:, 1 - i :: 2] = of_grid[..., i].mul_(2 / max(size - 1, 1))
        return of_values, of_pixels.contiguous(memory_format=ctx.layouts[1])


BILINEAR_CLAMPED = (0, 1, True)  # PyTorch's numbers for mode="bilinear", padding_mode="border", align_corners=True


def _layout(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _spaced(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for planes (n, c, h, w), 32 values between two of them.

    Without the gap the same pixel of all planes, powers of two apart, falls into the same few lines of a processor's cache, and the
    way to channels-last, which reads all planes at once, takes two to four times as long.
    """
    n, c, h, w = like.shape
    return torch.empty((n, c, h * w + 32), dtype=dtype, device=like.device)[..., : h * w].unflatten(2, (h, w))


class OffsetLayer(nn.Module):
    """Moves a feature map (n, channels, h, w) by displacements that a 3x3 convolution reads off the map itself.

    fields: "per_channel" (the paper's: a displacement for each channel) or "shared" (one field for all channels).
    `offsets(features)` gives the displacements (n, channels or 1, 2, h, w) in pixels, (dy, dx).
    """

    def __init__(self, channels: int, fields: str = "per_channel"):
        super().__init__()
        if fields not in ("per_channel", "shared"):
            raise ValueError(f"fields is {fields!r}; expected 'per_channel' or 'shared'")
        self.fields = channels if fields == "per_channel" else 1
        self.predict = Padded(channels, 2 * self.fields, 3, borders="replicate")
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def offsets(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels or 1, 2, h, w): output channels 2k and 2k + 1 are dy and dx of field k."""
        return self.predict(features).unflatten(1, (self.fields, 2))

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, h, w)."""
        return resample(features, self.offsets(features))


class DeformableConvolution(nn.Module):
    """A k x k convolution each of whose taps reads at its own displaced position (Dai et al. 2017), starting as no change at all.

    It is the other reading of "deformable offsets": here the layer also mixes. Weights start as the identity, displacements at zero.
    (n, channels, h, w) -> (n, channels, h, w).
    """

    def __init__(self, channels: int, kernel_size: int = 3):
        super().__init__()
        self.kernel_size = kernel_size
        self.predict = Padded(channels, 2 * kernel_size**2, 3, borders="replicate")
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)
        self.mix = nn.Conv2d(channels * kernel_size**2, channels, kernel_size=1, bias=False)
        centre = kernel_size**2 // 2 * channels
        nn.init.zeros_(self.mix.weight)
        self.mix.weight.data[:, centre : centre + channels, 0, 0] = torch.eye(channels)

    def offsets(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, k * k, 2, h, w): the displacement (dy, dx) of every tap, without the tap's own place."""
        return self.predict(features).unflatten(1, (self.kernel_size**2, 2))

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, h, w)."""
        offsets = self.offsets(features)
        radius = self.kernel_size // 2
        taps = []
        for tap in range(self.kernel_size**2):
            place = offsets.new_tensor([tap // self.kernel_size - radius, tap % self.kernel_size - radius])
            taps.append(resample(features, offsets[:, tap : tap + 1].float() + place.view(1, 1, 2, 1, 1)))
        return self.mix(torch.cat(taps, dim=1))


def offset_layer(kind: str, channels: int) -> nn.Module:
    """The layer for `kind`: "per_channel", "shared" or "convolution". Raises ValueError for any other word."""
    if kind == "convolution":
        return DeformableConvolution(channels)
    return OffsetLayer(channels, fields=kind)
