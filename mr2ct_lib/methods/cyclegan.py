"""CycleGAN with gradient consistency: Hiasa et al. 2018, arXiv 1803.06629, in the order of the paper.

Two generators translate: G_target makes target slices (CT) from source slices (MR), G_source the reverse. Two
discriminators score patches of slices: D_target those of the target domain, D_source those of the source domain.
The generators minimise Eq. 6, the discriminators the least-squares loss of their own domain. `networks` below is
`training.Networks`; every term is a mean over the batch, weighted, a scalar.
"""

from typing import Any

from torch import Tensor

from mr2ct_lib.methods import losses
from mr2ct_lib.methods.settings import Settings


def generator_losses(networks: Any, x: Tensor, y: Tensor, s: Settings) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the terms of Eq. 6 that the generators minimise, and the slices that the discriminators are to score.

    Args:
        networks: the run's generators and discriminators, see `training.Networks`.
        x: source slices (n, 1, h, w) in [-1, 1].
        y: target slices (n, 1, h, w) in [-1, 1], of other patients.
        s: weights of the terms (lambda_cycle, lambda_gc) and the form of GC (gc_operator, gc_absolute).

    Returns:
        ({"adversarial", "cycle", and "gc" where lambda_gc is not 0}, synthetic source slices, synthetic target slices),
        slices like x and y.
    """
    G_target, G_source = networks.translator.source_to_target, networks.translator.target_to_source
    D_target, D_source = networks.discriminator_target, networks.discriminator_source
    synthetic_y, synthetic_x = G_target(x), G_source(y)

    # L_CT + L_MR, least-squares form: both translations should pass as real
    adversarial = losses.adversarial(D_target(synthetic_y), real=True) + losses.adversarial(
        D_source(synthetic_x), real=True
    )
    # Eq. 3: L_cycle = |G_source(G_target(x)) - x| + |G_target(G_source(y)) - y|
    cycle = losses.cycle(x, G_source(synthetic_y)) + losses.cycle(y, G_target(synthetic_x))
    # Eq. 6: L_total = L_CT + L_MR + lambda_cycle L_cycle + lambda_GC L_GC
    terms = {"adversarial": adversarial, "cycle": s.lambda_cycle * cycle}
    if s.lambda_gc:
        terms["gc"] = s.lambda_gc * gradient_consistency(x, synthetic_y, y, synthetic_x, s)
    return terms, synthetic_x, synthetic_y


def gradient_consistency(x: Tensor, synthetic_y: Tensor, y: Tensor, synthetic_x: Tensor, s: Settings) -> Tensor:
    """Return L_GC = 1/2 {(1 - GC(x, G_target(x))) + (1 - GC(y, G_source(y)))}, Eq. 5 with GC of Eq. 4, in [0, 2].

    All slices (n, 1, h, w); s gives the gradient operator and whether its magnitude is compared.
    """
    of_x = losses.gradient_consistency(x, synthetic_y, s.gc_operator, s.gc_absolute)
    of_y = losses.gradient_consistency(y, synthetic_x, s.gc_operator, s.gc_absolute)
    return (of_x + of_y) / 2


def discriminator_losses(networks: Any, real: dict[str, Tensor], synthetic: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what each discriminator minimises: 1/2 {mean (D(real) - 1)^2 + mean D(synthetic)^2}.

    Args:
        networks: see `generator_losses`.
        real: slices (n, 1, h, w) of the domains "source" and "target".
        synthetic: as many synthetic slices of each domain, without gradient; they come from the image pool.

    Returns:
        {"discriminator_source", "discriminator_target"}, scalars.
    """
    terms = {}
    for domain in ("source", "target"):
        name = f"discriminator_{domain}"
        of_real, of_synthetic = getattr(networks, name).score(real[domain], synthetic[domain])
        both = losses.adversarial(of_real, real=True) + losses.adversarial(of_synthetic, real=False)
        terms[name] = 0.5 * both
    return terms
