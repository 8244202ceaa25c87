"""The losses of both papers as functions of slices (n, 1, h, w).

They are computed in float32, or in float64 for such slices, also where the networks run in a lower precision.
"""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor
from torch.nn import functional as F

from mr2ct_lib.methods.fast import has_fast_form

# Name: weights of the pixel before, the pixel and the one after it, along the derivative and across it
GRADIENT_OPERATORS = {
    "central": ((-1, 0, 1), (0, 1, 0)),
    "sobel": ((-1, 0, 1), (1, 2, 1)),
    "forward": ((0, -1, 1), (0, 1, 0)),
}


def without_autocast(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compute a loss in the precision of its arguments, also within autocast, and those of 16 bits in float32:
    histograms and derivatives need it."""

    def widened(x):
        return x.float() if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16) else x

    @wraps(function)
    def exact(images: Tensor, *arguments, **options):
        with torch.autocast(images.device.type, enabled=False):
            options = {name: widened(x) for name, x in options.items()}
            return function(widened(images), *map(widened, arguments), **options)

    return exact


def adversarial(scores: Tensor, real: bool) -> Tensor:
    """Least-squares GAN loss (Mao et al. 2017): mean (score - 1)^2 if the scores should say real, else mean score^2.

    scores: of any shape. A discriminator minimises adversarial(real, True) + adversarial(synthetic, False), a generator
    adversarial(synthetic, True). Returns a scalar.

    >>> adversarial(torch.tensor([0.0, 1.0, 3.0]), real=True).item()   # (1 + 0 + 4) / 3
    1.6666666269302368
    """
    return (scores - float(real)).square().mean()


def cycle(real: Tensor, reconstructed: Tensor) -> Tensor:
    """L1 between slices (n, 1, h, w) and their reconstructions, a mean over pixels (Hiasa et al. 2018, Eq. 3)."""
    return F.l1_loss(reconstructed.to(real.dtype), real)


@without_autocast
def gradients(images: Tensor, operator: str = "central", absolute: bool = True) -> tuple[Tensor, Tensor]:
    """d/dx (along columns) and d/dy (along rows) of images (n, 1, h, w), each (n, 1, h, w); borders replicated.

    Args:
        images: (n, 1, h, w).
        operator: "central" [-1, 0, +1], "sobel" or "forward".
        absolute: return magnitudes, without sign.

    Raises ValueError for an unknown operator.
    """
    if operator not in GRADIENT_OPERATORS:
        raise ValueError(f"gradient operator {operator!r}; expected one of {', '.join(GRADIENT_OPERATORS)}")
    difference, smoothing = GRADIENT_OPERATORS[operator]
    dx, dy = (
        _weighted(_weighted(images, difference, along), smoothing, across) for along, across in ((-1, -2), (-2, -1))
    )
    return (dx.abs(), dy.abs()) if absolute else (dx, dy)


def _weighted(images: Tensor, weights: tuple[int, int, int], dim: int) -> Tensor:
    """Weighted sum of the pixel before, the pixel and the one after it along `dim` (-1 or -2); borders replicated."""
    if weights == (0, 1, 0):
        return images
    size = images.shape[dim]
    padded = F.pad(images, (1, 1, 0, 0) if dim == -1 else (0, 0, 1, 1), mode="replicate")
    return sum(weight * padded.narrow(dim, i, size) for i, weight in enumerate(weights) if weight)


@without_autocast
def normalised_cross_correlation(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """NCC of each image pair: (n, 1, h, w) twice -> (n,) in [-1, 1]; 0 where either is constant.

    Computed per image, never over a whole batch: a batch must not change the loss of an image. eps is added to the
    product of the variances, so a blank slice gives 0 / sqrt(eps) and not 0 / 0. NCC does not depend on contrast, so
    its gradient grows as an image fades. eps bounds it: at a blank b it is (a - mean) / (pixels sqrt(eps)).
    """
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return (a * b).mean(1) / (a.square().mean(1) * b.square().mean(1) + eps).sqrt()


def gradient_correlation(a: Tensor, b: Tensor, operator: str = "central", absolute: bool = True) -> Tensor:
    """GC(a, b) = 1/2 {NCC(dx a, dx b) + NCC(dy a, dy b)} (Hiasa et al. 2018, Eq. 4): (n, 1, h, w) twice -> (n,).

    Values in [-1, 1]. In the printed equation derivatives have their sign (absolute=False). Between MR and CT many
    edges change sign, so by default their magnitudes are compared. operator: as in `gradients`.
    """
    (a_dx, a_dy), (b_dx, b_dy) = gradients(a, operator, absolute), gradients(b, operator, absolute)
    return (normalised_cross_correlation(a_dx, b_dx) + normalised_cross_correlation(a_dy, b_dy)) / 2


def gradient_consistency(a: Tensor, b: Tensor, operator: str = "central", absolute: bool = True) -> Tensor:
    """Mean over the batch of 1 - GC(a, b), a scalar in [0, 2]; L_GC of Eq. 5 is the mean of it over both directions."""
    return (1 - gradient_correlation(a, b, operator, absolute)).mean()


def cubic_b_spline(t: Tensor) -> Tensor:
    """The cubic B-spline at t, the window of Mattes et al. 2003: 2/3 at 0, 1/6 at +-1, 0 from +-2; shifts sum to 1.

    >>> cubic_b_spline(torch.tensor([-1.0, 0.0, 1.0, 2.0])).mul(6).round().tolist()
    [1.0, 4.0, 1.0, 0.0]
    """
    t = t.abs()
    return F.relu(2 - t).pow(3) / 6 - F.relu(1 - t).pow(3) * (4 / 6)


@without_autocast
@has_fast_form
def joint_histogram(a: Tensor, b: Tensor, bins: int = 32) -> Tensor:
    """Parzen-windowed joint distribution of the grey values of each image pair.

    Args:
        a, b: images (n, 1, h, w) in [-1, 1]; values outside are clamped.
        bins: at least 4; the outer bin on either side is spare room for the window.

    Returns tables (n, bins, bins), each with sum 1; rows belong to a, columns to b. A cubic B-spline spreads each value
    over four bins, which makes the table differentiable.
    """

    def windows(values: Tensor) -> Tensor:  # (n, pixels) -> (n, bins, pixels)
        position = 1 + (values.clamp(-1, 1) + 1) * ((bins - 3) / 2)
        centres = torch.arange(bins, dtype=values.dtype, device=values.device)
        return cubic_b_spline(position[:, None] - centres[:, None])

    a, b = a.flatten(1), b.flatten(1)
    return windows(a) @ windows(b).transpose(1, 2) / a.shape[1]


def normalised_mutual_information(a: Tensor, b: Tensor, bins: int = 32) -> Tensor:
    """NMI = 2 I(a; b) / (H(a) + H(b)) of each image pair: (n, 1, h, w) in [-1, 1] twice -> (n,) in [0, 1].

    0 where the images say nothing about each other. The Parzen window keeps it well below 1 even for an image with
    itself: with 32 bins 0.65 for a histogram that is flat over the whole range, 0.22 for one over a tenth of it. For a
    blank slice both terms are the window's own small entropy, never 0 / 0. Differentiable in both arguments.
    """
    joint = joint_histogram(a, b.to(a.dtype), bins)
    h_a, h_b = _entropy(joint.sum(2)), _entropy(joint.sum(1))
    information = h_a + h_b - _entropy(joint.flatten(1))
    return 2 * information / (h_a + h_b)


def _entropy(p: Tensor) -> Tensor:
    """Shannon entropy in nats of distributions (n, bins) -> (n,); empty bins count 0, with gradient finite."""
    return -(p * p.clamp_min(1e-12).log()).sum(1)


def alignment(source: Tensor, synthetic_target: Tensor, target: Tensor, synthetic_source: Tensor) -> Tensor:
    """L_align = 2 - NMI(x_S, G_ST(x_S)) - NMI(x_T, G_TS(x_T)) of Wang et al. 2018, a scalar in [0, 2].

    All slices (n, 1, h, w) in [-1, 1]; the synthetic ones come from undeformed passes.
    """
    there = normalised_mutual_information(source, synthetic_target).mean()
    back = normalised_mutual_information(target, synthetic_source).mean()
    return 2 - there - back
