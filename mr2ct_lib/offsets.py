"""The deformable offset layer of DicycleGAN: a feature map resampled where a convolution says (Wang et al. 2018, after Dai et al. 2017).

The layer has no value of its own to add to a feature map: it only moves what is there. A 3x3 convolution looks at the map and
gives every position a displacement (dy, dx) in pixels; the output at (y, x) is the input at (y + dy, x + dx), read by bilinear
interpolation, positions outside clamped to the border. The convolution begins at zero, so an untrained layer moves nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
    rows = torch.arange(h, device=features.device, dtype=offsets.dtype).view(1, 1, h, 1)
    columns = torch.arange(w, device=features.device, dtype=offsets.dtype).view(1, 1, 1, w)
    y, x = rows + offsets[:, :, 0], columns + offsets[:, :, 1]  # (n, fields, h, w)
    # grid_sample wants (x, y) in [-1, 1] from the first pixel's centre to the last one's
    grid = torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], dim=-1).flatten(0, 1)  # (n * fields, h, w, 2)
    moved = features.to(grid.dtype).reshape(n * fields, c // fields, h, w)
    moved = F.grid_sample(moved, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return moved.reshape(n, c, h, w).to(features.dtype)


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
        self.predict = nn.Conv2d(channels, 2 * self.fields, kernel_size=3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def offsets(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels or 1, 2, h, w): output channels 2k and 2k + 1 are dy and dx of field k."""
        return self.predict(features).float().unflatten(1, (self.fields, 2))

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
        self.predict = nn.Conv2d(channels, 2 * kernel_size**2, kernel_size=3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)
        self.mix = nn.Conv2d(channels * kernel_size**2, channels, kernel_size=1, bias=False)
        centre = kernel_size**2 // 2 * channels
        nn.init.zeros_(self.mix.weight)
        self.mix.weight.data[:, centre : centre + channels, 0, 0] = torch.eye(channels)

    def offsets(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, k * k, 2, h, w): the displacement (dy, dx) of every tap, without the tap's own place."""
        return self.predict(features).float().unflatten(1, (self.kernel_size**2, 2))

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, h, w)."""
        offsets = self.offsets(features)
        radius = self.kernel_size // 2
        taps = []
        for tap in range(self.kernel_size**2):
            place = offsets.new_tensor([tap // self.kernel_size - radius, tap % self.kernel_size - radius])
            taps.append(resample(features, offsets[:, tap : tap + 1] + place.view(1, 1, 2, 1, 1)))
        return self.mix(torch.cat(taps, dim=1))


def offset_layer(kind: str, channels: int) -> nn.Module:
    """The layer for `kind`: "per_channel", "shared" or "convolution". Raises ValueError for any other word."""
    if kind == "convolution":
        return DeformableConvolution(channels)
    return OffsetLayer(channels, fields=kind)
