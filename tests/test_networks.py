"""Shapes, sizes and laws of the networks."""

import pytest
import torch
from torch import nn

from mr2ct_lib.methods.networks import Discriminator, Generator, InstanceNorm, initialise, start_upright


def small(**options):
    return initialise(Generator(filters=4, blocks=1, **options), seed=0)


def test_paper_size():
    """Parameters of the reference architecture without the biases that its instance normalisation makes idle."""
    generator, discriminator = Generator(), Discriminator()
    count = sum(p.numel() for p in generator.parameters() if p.dim() > 1)
    f = 64
    blocks = 9 * 2 * (4 * f) ** 2 * 9
    expected = 49 * f + 9 * f * 2 * f + 9 * 2 * f * 4 * f + blocks + 9 * 4 * f * 2 * f + 9 * 2 * f * f + 49 * f
    assert count == expected
    assert discriminator.receptive_field == 70
    assert discriminator(torch.zeros(1, 1, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize("layers, field", [(1, 16), (2, 34), (3, 70)])
def test_receptive_field_is_what_a_gradient_sees(layers, field):
    discriminator = initialise(Discriminator(filters=2, layers=layers), seed=0).double()
    for name, module in list(discriminator.body.named_children()):
        if isinstance(module, InstanceNorm):  # it looks at the whole slice; the convolutions decide the patch
            setattr(discriminator.body, name, nn.Identity())
    x = torch.randn(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    scores = discriminator(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = x.grad[0, 0].nonzero()
    assert (
        (seen.max(0).values - seen.min(0).values + 1).tolist() == [field, field] == [discriminator.receptive_field] * 2
    )


def test_the_discriminator_is_the_reference_architecture():
    def layer(a, b, stride, last=False):
        return [nn.Conv2d(a, b, 4, stride, 1), *([] if last else [nn.InstanceNorm2d(b), nn.LeakyReLU(0.2)])]

    ours = initialise(Discriminator(4), 0)
    first = [nn.Conv2d(1, 4, 4, 2, 1), nn.LeakyReLU(0.2)]
    reference = nn.Sequential(*first, *layer(4, 8, 2), *layer(8, 16, 2), *layer(16, 32, 1), *layer(32, 1, 1, last=True))
    reference.load_state_dict(dict(zip(reference.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 1, 64, 48, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), reference(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64), (61, 50), (16, 17)])
def test_any_height_and_width_comes_back(shape):
    out = small()(torch.zeros(2, 1, *shape))
    assert out.shape == (2, 1, *shape) and out.abs().max() <= 1


def test_too_small_slices_are_named():
    with pytest.raises(ValueError, match="8 x 64"):
        small()(torch.zeros(1, 1, 8, 64))


@pytest.mark.parametrize("kind", ["per_channel", "shared", "convolution"])
def test_zero_offsets_leave_the_deformed_pass_unchanged(kind):
    generator, x = small(offset_layers=kind), torch.randn(2, 1, 32, 32)
    undeformed, deformed = generator.both(x)
    torch.testing.assert_close(deformed, undeformed)
    nn.init.constant_(generator.offsets[0].predict.bias, 1.5)
    assert (generator(x, deform=True) - undeformed).abs().max() > 1e-3
    torch.testing.assert_close(generator(x), undeformed)


def test_a_field_warps_the_output_so_that_both_passes_have_one_contrast():
    generator = initialise(small(offset_layers="field"), 0)
    x, other = torch.randn(2, 1, 32, 32), torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(generator(x, deform=True), generator(x))
    nn.init.constant_(generator.offsets[0].control, 2 / 32)  # two pixels down and to the right
    undeformed, deformed = generator.both(x)
    torch.testing.assert_close(undeformed, generator(x))
    torch.testing.assert_close(deformed[..., :-2, :-2], undeformed[..., 2:, 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(deformed, generator(x, deform=True))
    for found, expected in zip(generator.both(x, other), (generator(x), generator(other, True)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bright", [True, False])
def test_an_untrained_generator_starts_with_patients_as_bright_or_dark_as_real_ones(bright):
    patient = torch.zeros(2, 32, 32, dtype=torch.bool)
    patient[:, 8:24, 8:24] = True
    slices = torch.where(patient, 0.3 + 0.2 * torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0)), -1.0)
    turned = []
    for seed in range(8):
        generator = initialise(small(offset_layers="field"), seed)
        before = generator(slices[:, None])[:, 0]
        start_upright(generator, (slices, patient), (slices if bright else -slices, patient))
        after = generator(slices[:, None])[:, 0]
        assert (after[patient].mean() > after[~patient].mean()) == bright
        torch.testing.assert_close(after.abs(), before.abs())  # tanh is odd: the sign changes, nothing else
        turned.append(not torch.allclose(after, before))
    assert 0 < sum(turned) < 8


def test_without_offsets_both_passes_agree():
    generator, x = initialise(small(offset_layers="none"), 0), torch.randn(2, 1, 32, 32)
    undeformed, deformed = generator.both(x)
    torch.testing.assert_close(deformed, undeformed)
    torch.testing.assert_close(generator(x, deform=True), undeformed)


def test_offset_layers_stand_where_the_paper_puts_them():
    assert [layer.predict.in_channels for layer in Generator(filters=4, blocks=2, offset_layers="shared").offsets] == [
        1,
        4,
        8,
        16,
    ]


def test_a_deformed_pass_without_offset_layers_is_refused():
    with pytest.raises(ValueError, match="offset_layers"):
        small()(torch.zeros(1, 1, 16, 16), deform=True)


def test_same_seed_same_weights_other_seed_others():
    first, again, other = (initialise(Generator(4, 1), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.encoder[0][0].weight, other.encoder[0][0].weight)
