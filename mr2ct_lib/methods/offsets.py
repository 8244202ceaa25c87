"""The deformable offset layer of DicycleGAN: it only moves a feature map (Wang et al. 2018, after Dai et al. 2017).

A 3x3 convolution reads the feature map and gives every position a displacement (dy, dx) in pixels. The output at (y, x)
is the input at (y + dy, x + dx), read by bilinear interpolation; positions outside are clamped to the border. The
convolution starts at zero, so an untrained layer moves nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mr2ct_lib.methods.fast import has_fast_form
from mr2ct_lib.methods.layers import PaddedConvolution
from mr2ct_lib.methods.losses import cubic_b_spline, normalised_mutual_information


def resample(features: Tensor, offsets: Tensor) -> Tensor:
    """Read a feature map at every position displaced by `offsets`, bilinearly, clamped at the border.

    Args:
        features: (n, c, h, w).
        offsets: (n, c or 1, 2, h, w) in pixels. offsets[:, :, 0] is dy (down is positive), offsets[:, :, 1] is dx
            (right is positive). With one field (size 1) all channels move alike.

    Returns (n, c, h, w), differentiable in both arguments. Raises ValueError for offsets of another shape.

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
    return read_displaced(features, offsets)


@has_fast_form
def read_displaced(features: Tensor, offsets: Tensor) -> Tensor:
    """`resample` as a formula, by PyTorch's bilinear sampler."""
    return _read(features, offsets, "bilinear")


def _read(features: Tensor, offsets: Tensor, mode: str) -> Tensor:
    """`resample` by PyTorch's sampler; mode: "bilinear" or "bicubic"."""
    n, c, h, w = features.shape
    exact = torch.float64 if torch.float64 in (features.dtype, offsets.dtype) else torch.float32
    # the sampler wants (x, y) in [-1, 1], from the centre of the first pixel to the centre of the last
    rows, columns = (torch.linspace(-1, 1, size, dtype=exact, device=features.device) for size in (h, w))
    y = rows[:, None] + offsets[:, :, 0] * (2 / max(h - 1, 1))  # (n, fields, h, w)
    x = columns + offsets[:, :, 1] * (2 / max(w - 1, 1))
    grid = torch.stack([x, y], dim=-1).flatten(0, 1)  # (n fields, h, w, 2)
    fields = features.to(exact).reshape(len(grid), -1, h, w)
    moved = F.grid_sample(fields, grid, mode=mode, padding_mode="border", align_corners=True)
    return moved.view(n, c, h, w).to(features.dtype)


class OffsetLayer(nn.Module):
    """Moves a feature map (n, channels, h, w) by displacements that a 3x3 convolution reads off the map itself.

    fields: "per_channel" (one displacement field per channel, as in the paper) or "shared" (one for all channels).
    Raises ValueError for any other word.
    """

    def __init__(self, channels: int, fields: str = "per_channel"):
        super().__init__()
        if fields not in ("per_channel", "shared"):
            raise ValueError(f"fields is {fields!r}; expected 'per_channel' or 'shared'")
        self.fields = channels if fields == "per_channel" else 1
        self.predict = PaddedConvolution(channels, 2 * self.fields, 3, borders="replicate")
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)

    def offsets(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels or 1, 2, h, w): channels 2k and 2k + 1 are dy and dx of field k."""
        return self.predict(features).unflatten(1, (self.fields, 2))

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, h, w)."""
        return resample(features, self.offsets(features))


class DeformableConvolution(nn.Module):
    """A k x k convolution in which each tap reads at its own displaced position (Dai et al. 2017).

    This is the other reading of "deformable offsets": here the layer also mixes. Weights start as the identity,
    displacements at zero, so an untrained layer changes nothing. (n, channels, h, w) -> (n, channels, h, w).
    """

    def __init__(self, channels: int, kernel_size: int = 3):
        super().__init__()
        self.kernel_size = kernel_size
        self.predict = PaddedConvolution(channels, 2 * kernel_size**2, 3, borders="replicate")
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)
        self.mix = nn.Conv2d(channels * kernel_size**2, channels, kernel_size=1, bias=False)
        centre = kernel_size**2 // 2 * channels
        nn.init.zeros_(self.mix.weight)
        self.mix.weight.data[:, centre : centre + channels, 0, 0] = torch.eye(channels)
        places = [(y, x) for y in range(kernel_size) for x in range(kernel_size)]
        places = torch.tensor(places, dtype=torch.float32) - kernel_size // 2  # (k * k, 2): each tap's own (dy, dx)
        self.register_buffer("places", places, persistent=False)

    def offsets(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, k * k, 2, h, w): the displacement (dy, dx) of every tap from its own place."""
        return self.predict(features).unflatten(1, (self.kernel_size**2, 2))

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, h, w)."""
        offsets = self.offsets(features).float() + self.places.view(1, -1, 2, 1, 1)
        return self.mix(torch.cat([resample(features, tap) for tap in offsets.split(1, dim=1)], dim=1))


def inverse(field: Tensor, steps: int = 8) -> Tensor:
    """Return the field that undoes `field`, both (1, 2, h, w) in pixels: the fixed point of v(p) = -u(p + v(p)).

    Right for fields whose derivatives are below 1; differentiable.
    """
    found = torch.zeros_like(field)
    for _ in range(steps):
        found = -resample(field, found[:, None])
    return found


class SmoothField(nn.Module):
    """Moves slices (n, channels, h, w) by one smooth field, the same for every slice and channel; see `register`.

    The field is a cubic B-spline of `control` (2, points, points): dy and dx of each control point, as a share of the
    slice's height and width. The outer control points lie one knot outside the slice. It starts at zero. `undo` makes a
    layer that moves slices back: it shares the control points, and its field is the inverse.

    Slices are read by cubic interpolation. Bilinear reading blurs them, and a generator whose blurred slices are
    compared with sharp ones learns to sharpen too much.
    """

    def __init__(self, points: int = 7):
        super().__init__()
        self.control, self.inverted = nn.Parameter(torch.zeros(2, points, points)), False

    def undo(self) -> "SmoothField":
        """Return the layer that undoes this one, with the same control points."""
        layer = SmoothField(self.control.shape[-1])
        layer.control, layer.inverted = self.control, not self.inverted
        return layer

    def offsets(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, 1, 2, h, w): the field in pixels."""
        control = self.control
        with torch.autocast(control.device.type, enabled=False):  # in bf16 a field has steps of an eighth of a pixel
            rows, columns = (self._weights(size) for size in features.shape[-2:])
            dy, dx = (rows @ control @ columns.T).unbind()
            field = torch.stack([dy * features.shape[-2], dx * features.shape[-1]])[None]  # (1, 2, h, w)
            field = inverse(field) if self.inverted else field
        return field.expand(len(features), 1, -1, -1, -1)

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, channels, h, w)."""
        return _read(features, self.offsets(features), "bicubic")

    def _weights(self, size: int) -> Tensor:
        """(size, points): what each control point adds to each row or column of pixels; rows sum to 1."""
        points = self.control.shape[-1]
        place = torch.linspace(1, points - 2, size, device=self.control.device, dtype=self.control.dtype)
        return cubic_b_spline(place[:, None] - torch.arange(points, device=place.device))


def register(
    layer: SmoothField, images: tuple[Tensor, Tensor], outlines: tuple[Tensor, Tensor], steps: int = 150
) -> None:
    """Fit a field, so that images of the source domain, moved by it, have the shapes of the target domain; keep it.

    Outlines are the same kind of image in both domains and are subtracted; contrasts differ, so images are compared by
    NMI, which finds what lies inside the outlines. A field that a discriminator may change drifts: it and the generator
    share the warp in ever new ways. So the layer learns nothing after this.

    images, outlines: of the source and of the target domain, (n, h, w) each, as of `slices.mean_slices`.
    """
    adam = torch.optim.Adam([layer.control], 2e-3)
    for _ in range(steps):
        error = (layer(outlines[0][None])[0] - outlines[1]).square().mean()
        error = error - normalised_mutual_information(layer(images[0][:, None]), images[1][:, None]).mean() / 10
        bends = sum(layer.control.diff(n=2, dim=axis).square().mean() for axis in (1, 2))
        adam.zero_grad()
        (error + bends / 3).backward()
        adam.step()
    layer.control.grad = None
    layer.control.requires_grad_(False)


def offset_layer(kind: str, channels: int) -> nn.Module:
    """The layer for `kind`: "per_channel", "shared" or "convolution". Raises ValueError for any other word."""
    if kind == "convolution":
        return DeformableConvolution(channels)
    return OffsetLayer(channels, fields=kind)
