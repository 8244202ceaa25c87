"""The losses of both papers with functions in place of networks: which slice goes through which, and its weight."""

from types import SimpleNamespace

import pytest
import torch

from mr2ct_lib.methods import cyclegan, dicyclegan, losses
from mr2ct_lib.methods.settings import make_settings


class Passes:
    """A generator: a function for its undeformed pass and one for its deformed pass."""

    def __init__(self, undeformed, deformed):
        self.passes = undeformed, deformed

    def __call__(self, x, deform=False):
        return self.passes[deform](x)

    def both(self, x, other=None):
        return self(x), self(x if other is None else other, deform=True)


G = Passes(lambda x: 0.5 * x, lambda x: 0.4 * x.flip(-1))  # source to target
F = Passes(lambda y: y.transpose(-1, -2) ** 3, lambda y: 0.7 * y + 0.1)  # target to source


def D_S(z):  # scores of source slices
    return z + 0.3


def D_T(z):  # and of target slices
    return 2 * z - 0.1


X, Y = (torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(n), dtype=torch.float64) - 0.3 for n in (0, 1))


class Scores:
    """A discriminator: a function of the slice."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)

    def score(self, real, synthetic):
        return self(real), self(synthetic)


def networks():
    generators = SimpleNamespace(source_to_target=G, target_to_source=F)
    return SimpleNamespace(translator=generators, discriminator_source=Scores(D_S), discriminator_target=Scores(D_T))


def l1(a, b):
    return (a - b).abs().mean()


def gc(a, b):
    return 1 - losses.gradient_correlation(a, b, "sobel", False).mean()


def nmi(a, b):
    return losses.normalised_mutual_information(a, b).mean()


def test_cyclegan_is_equation_6():
    s = make_settings("cyclegan", lambda_cycle=7.0, lambda_gc=0.2, gc_operator="sobel", gc_absolute=False)
    terms, synthetic_x, synthetic_y = cyclegan.generator_losses(networks(), X, Y, s)
    assert torch.equal(synthetic_x, F(Y)) and torch.equal(synthetic_y, G(X))
    expected = {
        "adversarial": (D_T(G(X)) - 1).square().mean() + (D_S(F(Y)) - 1).square().mean(),
        "cycle": 7 * (l1(F(G(X)), X) + l1(G(F(Y)), Y)),
        "gc": 0.2 * (gc(X, G(X)) + gc(Y, F(Y))) / 2,
    }
    torch.testing.assert_close(terms, expected)


def test_dicyclegan_deforms_what_is_scored_and_aligns_what_is_kept():
    s = make_settings("dicyclegan", lambda_cycle=7.0, lambda_dicycle=5.0, lambda_align=0.6)
    terms, deformed_x, deformed_y = dicyclegan.generator_losses(networks(), X, Y, s)
    assert torch.equal(deformed_x, F(Y, True)) and torch.equal(deformed_y, G(X, True))
    expected = {
        "adversarial": (D_T(G(X, True)) - 1).square().mean() + (D_S(F(Y, True)) - 1).square().mean(),
        "cycle": 7 * (l1(F(G(X)), X) + l1(G(F(Y)), Y)),
        "dicycle": 5 * (l1(F(G(X, True), True), X) + l1(G(F(Y, True), True), Y)),
        "align": 0.6 * (2 - nmi(X, G(X)) - nmi(Y, F(Y))),
    }
    torch.testing.assert_close(terms, expected)


def test_discriminators_by_hand():
    """Scores 1.3 and 0.5 of real and synthetic source slices: (0.3^2 + 0.5^2) / 2; of the target's 1.9, -0.1: 0.41."""
    one = torch.ones(1, 1, 2, 2)
    found = cyclegan.discriminator_losses(
        networks(), {"source": one, "target": one}, {"source": 0.2 * one, "target": 0 * one}
    )
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"discriminator_source": 0.17, "discriminator_target": 0.41}
    )
