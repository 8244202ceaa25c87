"""The two networks of both papers, after Zhu et al. 2017: a ResNet generator and a PatchGAN discriminator.

Their weights are channels-last in memory, the fastest layout on a CPU; shapes are the usual ones.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mr2ct_lib.methods.layers import (
    InstanceNorm,
    NormalisedConvolution,
    NormalisedTransposedConvolution,
    PaddedConvolution,
)
from mr2ct_lib.methods.offsets import SmoothField, offset_layer


def convolution(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, instance normalisation, ReLU: (n, c_in, h, w) -> (n, c_out, h / stride, w / stride)."""
    return nn.Sequential(
        PaddedConvolution(c_in, c_out, kernel, normalised=True)
        if stride == 1
        else NormalisedConvolution(c_in, c_out, kernel, stride, padding=kernel // 2),
        InstanceNorm(),
        nn.ReLU(inplace=True),
    )


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions of x: (n, c, h, w) -> (n, c, h, w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, channels, 3),
            PaddedConvolution(channels, channels, 3, normalised=True),
            InstanceNorm(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        return x + self.body(x)


def up(c_in: int, c_out: int, kind: str) -> nn.Module:
    """Double the number of pixels per side: (n, c_in, h, w) -> (n, c_out, 2h, 2w).

    kind: "transposed", a transposed 3x3 convolution as in Zhu et al. 2017, whose kernel overlaps itself unevenly and so
    leaves a checkerboard; or "resize", each pixel repeated, then a 3x3 convolution (Odena et al. 2016), which treats
    all pixels alike. An instance normalisation follows either. Raises ValueError for any other word.
    """
    if kind == "transposed":
        return NormalisedTransposedConvolution(c_in, c_out, 3, stride=2, padding=1, output_padding=1)
    if kind == "resize":
        convolution = PaddedConvolution(c_in, c_out, 3, normalised=True)
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)
    raise ValueError(f"upsampling is {kind!r}; expected 'transposed' or 'resize'")


class Generator(nn.Module):
    """ResNet generator: 7x7 convolution, two down-samplings, residual blocks, two up-samplings, 7x7 convolution, tanh.

    Args:
        filters: channels after the first convolution, 64 in both papers.
        blocks: residual blocks, 9 in both papers.
        offset_layers: None for CycleGAN; "per_channel", "shared" or "convolution" for DicycleGAN, see `offsets`. Such a
            layer stands before the input block, before each down-sampling block and before the first residual block,
            and acts in a deformed pass only. "field" puts one smooth field behind the last layer instead, so that the
            deformed pass is the undeformed one, warped; with "none" both passes are the same.
        upsampling: "transposed" (both papers) or "resize", see `up`.
    """

    def __init__(
        self, filters: int = 64, blocks: int = 9, offset_layers: str | None = None, upsampling: str = "transposed"
    ):
        super().__init__()
        f = filters
        self.encoder = nn.ModuleList(
            [
                convolution(1, f, 7),  # (n, 1, h, w) -> (n, f, h, w)
                convolution(f, 2 * f, 3, stride=2),  # -> (n, 2f, h/2, w/2)
                convolution(2 * f, 4 * f, 3, stride=2),  # -> (n, 4f, h/4, w/4)
                nn.Sequential(*[ResidualBlock(4 * f) for _ in range(blocks)]),
            ]
        )
        self.at_output = offset_layers in ("field", "none")  # the one layer stands behind the decoder
        if self.at_output:
            self.offsets = nn.ModuleList([SmoothField() if offset_layers == "field" else nn.Identity()])
        else:
            layers = [offset_layer(offset_layers, c) for c in (1, f, 2 * f, 4 * f)] if offset_layers else []
            self.offsets = nn.ModuleList(layers)
        self.decoder = nn.Sequential(
            up(4 * f, 2 * f, upsampling),
            InstanceNorm(),
            nn.ReLU(inplace=True),
            up(2 * f, f, upsampling),
            InstanceNorm(),
            nn.ReLU(inplace=True),
            PaddedConvolution(f, 1, 7),
            nn.Tanh(),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, deform: bool = False) -> Tensor:
        """Slices (n, 1, h, w) in [-1, 1] -> translated slices (n, 1, h, w) in [-1, 1], float32.

        deform: make a deformed pass, in which the offset layers act, instead of an undeformed one. Any h and w from 16:
        slices are padded to a multiple of 4 and cropped back. Raises ValueError for smaller slices, and for a deformed
        pass without offset layers.
        """
        return self._run(x, len(x) if deform else 0)

    def both(self, undeformed: Tensor, deformed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the undeformed pass of some slices (n, 1, h, w) and the deformed pass of others, by default the same.

        These are the two passes of Wang et al. 2018. They go through the network in one batch, which changes nothing,
        since nothing in it looks across a batch.
        """
        if self.at_output and deformed is None:
            out = self._run(undeformed, 0)
            return out, self.offsets[0](out)
        deformed = undeformed if deformed is None else deformed
        out = self._run(torch.cat([undeformed, deformed]), len(deformed))
        return out.split([len(undeformed), len(deformed)])

    def _run(self, x: Tensor, deformed: int) -> Tensor:
        """Translate (n, 1, h, w); offset layers act on the last `deformed` slices."""
        if deformed and not self.offsets:
            raise ValueError(
                "this generator has no offset layers; build it with offset_layers='per_channel' for a deformed pass"
            )
        h, w = x.shape[-2:]
        if min(h, w) < 16:
            raise ValueError(f"slices of {h} x {w} pixels are too small; expected at least 16 x 16")
        x = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate") if h % 4 or w % 4 else x
        first = len(x) - deformed
        for i, block in enumerate(self.encoder):
            if deformed and not self.at_output:
                kept, moved = x.split([first, deformed])
                x = torch.cat([kept, self.offsets[i](moved)]) if first else self.offsets[i](moved)
            x = block(x)
        out = self.decoder(x)[..., :h, :w].float().contiguous()
        if deformed and self.at_output:
            return torch.cat([out[:first], self.offsets[0](out[first:])])
        return out


@torch.no_grad()
def start_upright(generator: Generator, read: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """Turn the sign of an untrained generator's last convolution if it makes patients dark where real ones are bright.

    Dark and bright are meant against what surrounds a patient; likewise if real ones are dark. About half of all random
    generators make the wrong one of the two, and where no loss tells an image from its negative, some stay so for good.

    read, wanted: slices (n, h, w) in [-1, 1] of the generator's own and of the other domain, each with bool (n, h, w),
    where they show a patient.
    """
    made = generator(read[0][:, None])[:, 0], read[1]
    brighter = [slices[patient].mean() > slices[~patient].mean() for slices, patient in (made, wanted)]
    if brighter[0] != brighter[1]:
        for parameter in generator.decoder[-2].parameters():
            parameter.neg_()


class Discriminator(nn.Module):
    """PatchGAN: one score per patch of a slice. Scores are not bounded; 1 means real, 0 synthetic.

    filters: channels of the first layer, 64 in both papers; layers: strided layers, 3 for the 70x70 patch.
    """

    def __init__(self, filters: int = 64, layers: int = 3):
        super().__init__()
        f = filters
        widths = [min(2**k, 8) * f for k in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(1, f, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for k in range(1, layers + 1):
            stride = 2 if k < layers else 1
            modules += [NormalisedConvolution(widths[k - 1], widths[k], 4, stride, padding=1), InstanceNorm()]
            modules += [nn.LeakyReLU(0.2, inplace=True)]
        self.body = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Slices (n, 1, h, w) in [-1, 1] -> scores (n, 1, about h / 2^layers, about w / 2^layers), float32."""
        return self.body(x).float()

    def score(self, real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of equally many real and synthetic slices (n, 1, h, w), as `forward`, in one pass for both."""
        return self(torch.cat([real, synthetic])).chunk(2)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the patch that one score sees.

        >>> Discriminator(layers=3).receptive_field
        70
        """
        field = 1
        for layer in reversed([m for m in self.body if isinstance(m, nn.Conv2d)]):
            field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
        return field


def initialise(network: nn.Module, seed: int) -> nn.Module:
    """Draw convolution weights from N(0, 0.02), set biases to 0, as in CycleGAN; leave offset layers at 0."""
    generator = torch.Generator().manual_seed(seed)
    untouched = {id(p) for layer in getattr(network, "offsets", []) for p in layer.parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            if id(parameter) not in untouched:
                parameter.zero_() if parameter.dim() == 1 else parameter.normal_(0.0, 0.02, generator=generator)
    return network
