"""DicycleGAN: Wang et al. 2018, arXiv 1808.03944, in the order of the paper.

As in CycleGAN, G_target makes target slices from source slices and G_source the reverse; D_target and D_source score
patches. Here each generator has two passes. The deformed pass, with the offset layers on, may take on the shape of the
other domain, and the discriminators see this pass only. The undeformed pass, with the offset layers off, is the aligned
result that the user keeps; the alignment loss ties it to its source. `networks` below is `training.Networks`; every
term is a mean over the batch, weighted, a scalar.
"""

from typing import Any

from torch import Tensor

from mr2ct_lib.methods import losses
from mr2ct_lib.methods.cyclegan import discriminator_losses, gradient_consistency
from mr2ct_lib.methods.settings import Settings

__all__ = ["discriminator_losses", "generator_losses"]  # the discriminators learn as in CycleGAN


def generator_losses(networks: Any, x: Tensor, y: Tensor, s: Settings) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the terms that the generators minimise, and the deformed slices that the discriminators are to score.

    Args:
        networks: the run's generators, with offset layers, and discriminators, see `training.Networks`.
        x: source slices (n, 1, h, w) in [-1, 1].
        y: target slices (n, 1, h, w) in [-1, 1], of other patients.
        s: weights of the terms: lambda_cycle, lambda_dicycle, lambda_align, lambda_gc.

    Returns:
        ({"adversarial", "cycle", "align", and "dicycle" and "gc" where their weights are not 0}, deformed synthetic
        source slices, deformed synthetic target slices), slices like x and y.
    """
    G_target, G_source = networks.translator.source_to_target, networks.translator.target_to_source
    D_target, D_source = networks.discriminator_target, networks.discriminator_source
    aligned_y, deformed_y = G_target.both(x)
    aligned_x, deformed_x = G_source.both(y)
    # the way back: the undeformed pass of an undeformed slice, the deformed pass of a deformed one
    if s.lambda_dicycle:
        cycled_x, dicycled_x = G_source.both(aligned_y, deformed_y)
        cycled_y, dicycled_y = G_target.both(aligned_x, deformed_x)
    else:
        cycled_x, cycled_y = G_source(aligned_y), G_target(aligned_x)

    # L_GAN, least-squares form, of the deformed passes
    adversarial = losses.adversarial(D_target(deformed_y), real=True) + losses.adversarial(
        D_source(deformed_x), real=True
    )
    # L_cycle: offset layers off on both ways
    cycle = losses.cycle(x, cycled_x) + losses.cycle(y, cycled_y)
    # L_align = 2 - NMI(x, G_target(x)) - NMI(y, G_source(y)), of the undeformed passes
    align = losses.alignment(x, aligned_y, y, aligned_x)
    terms = {"adversarial": adversarial, "cycle": s.lambda_cycle * cycle}
    # L_dicycle: offset layers on, on both ways
    if s.lambda_dicycle:
        terms["dicycle"] = s.lambda_dicycle * (losses.cycle(x, dicycled_x) + losses.cycle(y, dicycled_y))
    # L = L_GAN + lambda_cycle L_cycle + lambda_dicycle L_dicycle + lambda_align L_align
    terms["align"] = s.lambda_align * align
    if s.lambda_gc:  # not in the paper: the first paper's loss, of the undeformed passes
        terms["gc"] = s.lambda_gc * gradient_consistency(x, aligned_y, y, aligned_x, s)
    return terms, deformed_x, deformed_y
