"""Laws and hand-computed values of the losses."""

import numpy as np
import pytest
import torch
from skimage.metrics import normalized_mutual_information as skimage_nmi

from mr2ct_lib.methods import losses


def images(seed, n=2, size=12, dtype=torch.float64):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def test_adversarial_is_zero_for_scores_that_are_right():
    assert losses.adversarial(torch.ones(2, 1, 3, 3), real=True) == 0
    assert losses.adversarial(torch.zeros(2, 1, 3, 3), real=False) == 0
    assert losses.adversarial(torch.full((4,), 3.0), real=False) == 9


def test_gradients_of_a_ramp_by_hand():
    ramp = torch.tensor([[0.0, 1.0, 4.0], [0.0, 1.0, 4.0], [0.0, 1.0, 4.0]])[None, None]
    dx, dy = losses.gradients(ramp, absolute=False)
    assert dx[0, 0, 1].tolist() == [1.0, 4.0, 3.0]  # right minus left neighbour, borders replicated
    assert dy.abs().max() == 0


@pytest.mark.parametrize("operator", losses.GRADIENT_OPERATORS)
def test_transposing_an_image_exchanges_its_gradients(operator):
    x = images(0)
    dx, dy = losses.gradients(x, operator)
    dx_t, dy_t = losses.gradients(x.transpose(-1, -2), operator)
    torch.testing.assert_close(dx_t, dy.transpose(-1, -2))
    torch.testing.assert_close(dy_t, dx.transpose(-1, -2))


def test_sobel_agrees_with_scipy():
    from scipy.ndimage import sobel

    x = images(1, n=1)
    dx, dy = losses.gradients(x, "sobel", absolute=False)
    np.testing.assert_allclose(dx[0, 0], sobel(x[0, 0].numpy(), axis=1, mode="nearest"), atol=1e-12)
    np.testing.assert_allclose(dy[0, 0], sobel(x[0, 0].numpy(), axis=0, mode="nearest"), atol=1e-12)


def test_unknown_operator_is_named():
    with pytest.raises(ValueError, match="'roberts'.*central"):
        losses.gradients(images(0), "roberts")


def test_ncc_agrees_with_numpy_per_image_not_per_batch():
    a, b = images(2, n=3), images(3, n=3)
    expected = [np.corrcoef(a[i].flatten(), b[i].flatten())[0, 1] for i in range(3)]
    np.testing.assert_allclose(losses.normalised_cross_correlation(a, b), expected, atol=1e-6)


def test_gc_of_an_image_with_itself_is_one_and_the_loss_zero():
    x = images(4)
    torch.testing.assert_close(losses.gradient_correlation(x, x), torch.ones(2, dtype=x.dtype), atol=1e-6, rtol=0)
    assert abs(losses.gradient_consistency(x, x)) < 1e-6


def test_gc_does_not_change_under_intensity_scale_and_offset():
    a, b = images(5), images(6)
    torch.testing.assert_close(
        losses.gradient_correlation(a, b), losses.gradient_correlation(a, 0.3 * b + 0.2), atol=1e-6, rtol=0
    )


def test_inverted_contrast_is_perfect_for_magnitudes_and_worst_for_signs():
    x = images(7)
    assert losses.gradient_correlation(x, -x, absolute=True).min() > 1 - 1e-6
    assert losses.gradient_correlation(x, -x, absolute=False).max() < -1 + 1e-6


def test_blank_slices_give_a_finite_loss_and_a_finite_gradient():
    x = torch.zeros(2, 1, 16, 16, requires_grad=True)
    other = images(8, size=16, dtype=torch.float32)
    loss = losses.gradient_consistency(other, x) + losses.normalised_mutual_information(other, x).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(x.grad).all()
    assert losses.gradient_consistency(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_slices_of_16_bits_give_the_loss_of_float32(dtype):
    a, b, blank = (x.to(dtype) for x in (images(22, size=16), images(23, size=16), torch.zeros(2, 1, 16, 16)))
    for loss in (
        losses.gradient_consistency,
        losses.gradient_correlation,
        losses.normalised_cross_correlation,
        losses.normalised_mutual_information,
    ):
        for one, other in ((a, b), (a, blank), (blank, blank)):
            found, expected = loss(one, other), loss(one.float(), other.float())
            assert found.dtype == torch.float32 and torch.equal(found, expected) and torch.isfinite(found).all()
    assert losses.gradient_correlation(a, b=b).dtype == torch.float32
    assert losses.gradients(images(24))[0].dtype == torch.float64  # no less either


def test_gradient_of_ncc_at_a_blank_image_is_bounded_by_eps():
    a, blank = images(21, n=1), torch.zeros(1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    losses.normalised_cross_correlation(a, blank, eps=1e-8).backward()
    torch.testing.assert_close(blank.grad, (a - a.mean()) / (a.numel() * 1e-4))
    blank.grad = None
    losses.normalised_cross_correlation(torch.ones_like(a), blank).backward()
    assert blank.grad.abs().max() < 1e-12


@pytest.mark.parametrize("absolute", [True, False])
def test_gc_gradient_against_finite_differences(absolute):
    a, b = images(9, n=1, size=5), images(10, n=1, size=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.gradient_consistency(a, x, absolute=absolute), b)


def test_nmi_gradient_against_finite_differences():
    a, b = images(11, n=1, size=5), (images(12, n=1, size=5) * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.normalised_mutual_information(a, x, bins=8).sum(), b)


def test_b_spline_windows_sum_to_one():
    t = torch.linspace(-0.5, 0.5, 11)[:, None] - torch.arange(-3.0, 4.0)
    torch.testing.assert_close(losses.cubic_b_spline(t).sum(1), torch.ones(11))


def test_joint_histogram_is_a_distribution_and_transposes_with_its_arguments():
    a, b = images(13), images(14)
    joint = losses.joint_histogram(a, b)
    torch.testing.assert_close(joint.sum((1, 2)), torch.ones(2, dtype=a.dtype))
    torch.testing.assert_close(losses.joint_histogram(b, a), joint.transpose(1, 2))


def test_nmi_is_symmetric_within_zero_and_one_and_orders_dependence():
    a, noise = images(15, n=1, size=64), images(16, n=1, size=64)
    same = losses.normalised_mutual_information(a, a)
    inverted = losses.normalised_mutual_information(a, -a)
    some = losses.normalised_mutual_information(a, (0.7 * a + 0.3 * noise))
    none = losses.normalised_mutual_information(a, noise)
    assert 0 <= none < some < same <= 1
    torch.testing.assert_close(inverted, same)
    torch.testing.assert_close(losses.normalised_mutual_information(noise, a), none)


def test_nmi_agrees_with_skimage_on_two_level_images():
    """The Parzen window blurs both entropies alike here; skimage's (Ha + Hb) / Hab becomes 2 I / (Ha + Hb)."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, (64, 64))
    b = np.where(rng.random((64, 64)) < 0.9, a, 1 - a)
    ratio = skimage_nmi(a, b, bins=2)
    expected = 2 * (1 - 1 / ratio)
    ours = [
        losses.normalised_mutual_information(*(torch.tensor(x * 2.0 - 1)[None, None] for x in (a, b)), bins=bins).item()
        for bins in (16, 64)
    ]
    # the window adds its entropy to both marginals (denominator) and not to the information
    window = -sum(p * np.log(p) for p in (1 / 6, 4 / 6, 1 / 6))
    entropy = -sum(p * np.log(p) for p in np.bincount(a.ravel()) / a.size) - sum(
        p * np.log(p) for p in np.bincount(b.ravel()) / b.size
    )
    np.testing.assert_allclose(ours, expected * entropy / (entropy + 2 * window), rtol=1e-6)


def test_alignment_is_two_minus_both_directions():
    s, t, to_t, to_s = (images(seed) for seed in (17, 18, 19, 20))
    to_s = 0.5 * t + 0.5 * to_s  # the way back says more
    nmi = [losses.normalised_mutual_information(*pair).mean() for pair in ((s, to_t), (t, to_s))]
    assert abs(nmi[0] - nmi[1]) > 0.01
    torch.testing.assert_close(losses.alignment(s, to_t, t, to_s), 2 - nmi[0] - nmi[1])


def test_gc_by_hand_and_with_every_operator():
    """d/dx agrees (NCC 1), d/dy is unrelated (0): one half; swapped axes the other half."""
    ramp = torch.tensor([0.0, 1, 3, 3, 7, 8]).double()
    a, b = ramp.expand(6, 6)[None, None], (ramp[:, None] + 0 * ramp)[None, None]
    torch.testing.assert_close(losses.gradient_correlation(a, a), torch.tensor([0.5]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.gradient_correlation(b, b), torch.tensor([0.5]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "operator, expected", [("forward", [0, 1, 2, 0, 0]), ("central", [0, 1, 3, 2, 0]), ("sobel", [0, 4, 12, 8, 0])]
)
def test_each_operator_by_hand(operator, expected):
    steps = torch.tensor([0.0, 0, 1, 3, 3]).expand(4, 5)[None, None]
    assert losses.gradients(steps, operator, absolute=False)[0][0, 0, 1].tolist() == expected
    a, b = images(5), images(6)
    of = [losses.gradients(x, operator) for x in (a, b)]
    ncc = [np.corrcoef(of[0][k][0].flatten(), of[1][k][0].flatten())[0, 1] for k in (0, 1)]
    assert losses.gradient_correlation(a, b, operator)[0].item() == pytest.approx(np.mean(ncc), abs=1e-6)
    each = losses.gradient_correlation(a, b, operator)
    torch.testing.assert_close(losses.gradient_consistency(a, b, operator), 1 - each.mean())


@pytest.mark.parametrize(
    "loss", [losses.gradient_consistency, lambda a, b: losses.normalised_mutual_information(a, b).mean()]
)
def test_losses_keep_their_precision_inside_autocast(loss):
    a, b = images(19, dtype=torch.float32), images(20, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(a, b)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(a, b))


def test_both_ends_of_the_range_are_counted():
    ends = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])[None, None]
    table = losses.joint_histogram(ends, ends, bins=8)[0]
    torch.testing.assert_close(table.sum(1)[[0, 1, 2, 5, 6, 7]] * 12, torch.tensor([1.0, 4.0, 1.0, 1.0, 4.0, 1.0]))


def test_gradient_of_nmi_in_float32_is_that_of_float64():
    gradients = []
    for dtype in (torch.float64, torch.float32):
        a, b = (images(seed, n=4, size=64).to(dtype) for seed in (24, 25))
        b = (0.5 * a + 0.5 * b).requires_grad_()
        losses.normalised_mutual_information(a, b).sum().backward()
        gradients.append(b.grad.double())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[0].abs().max()
