"""Laws of the deformable offset layers."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from mr2ct_lib.methods.offsets import (
    DeformableConvolution,
    OffsetLayer,
    SmoothField,
    inverse,
    offset_layer,
    register,
    resample,
)

KINDS = ["per_channel", "shared", "convolution"]


def features(n=2, c=3, h=7, w=9, dtype=torch.float64):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_layer_moves_nothing(kind):
    x = features(dtype=torch.float32)
    torch.testing.assert_close(offset_layer(kind, 3)(x), x)
    torch.testing.assert_close(SmoothField()(x), x)


def test_a_field_in_y_moves_only_y():
    x = features()
    field = torch.zeros(2, 1, 2, 7, 9, dtype=x.dtype)
    field[:, :, 0] = 2.0
    moved = resample(x, field)
    torch.testing.assert_close(moved[:, :, :-2], x[:, :, 2:])
    torch.testing.assert_close(moved[:, :, -2:], x[:, :, -1:].expand(-1, -1, 2, -1))


def test_a_layer_whose_convolution_says_y_moves_only_y():
    """A known mistake: reading (n, 2c, h, w) as if all dy came before all dx, or both interleaved over pixels."""
    x = features(dtype=torch.float32)
    layer = OffsetLayer(3)
    with torch.no_grad():
        layer.predict.bias[0::2] = 1.0  # dy of every field
    torch.testing.assert_close(layer(x)[:, :, :-1], x[:, :, 1:])
    with torch.no_grad():
        layer.predict.bias.zero_()
        layer.predict.bias[2 * 1 + 1] = 1.0  # dx of channel 1 alone
    moved = layer(x)
    torch.testing.assert_close(moved[:, 1, :, :-1], x[:, 1, :, 1:])
    torch.testing.assert_close(moved[:, [0, 2]], x[:, [0, 2]])


def test_resample_agrees_with_scipy():
    x, rng = features(), np.random.default_rng(1)
    field = torch.tensor(rng.normal(0, 2, (2, 3, 2, 7, 9)))
    ours = resample(x, field)
    rows, columns = np.mgrid[:7, :9]
    for n in range(2):
        for c in range(3):
            where = [rows + field[n, c, 0].numpy(), columns + field[n, c, 1].numpy()]
            expected = map_coordinates(x[n, c].numpy(), where, order=1, mode="nearest")
            np.testing.assert_allclose(ours[n, c], expected, atol=1e-9)


def test_resample_gradient_against_finite_differences():
    x = features(1, 2, 4, 5).requires_grad_()
    field = (
        torch.rand(1, 2, 2, 4, 5, generator=torch.Generator().manual_seed(2), dtype=x.dtype) * 0.8 + 0.1
    ).requires_grad_()
    # positions stay between pixels (0.1 to 0.9) and inside, where bilinear interpolation has a derivative
    assert torch.autograd.gradcheck(lambda a, b: resample(a, b)[..., :-1, :-1], (x, field))


def test_offsets_receive_a_gradient_from_the_first_step():
    layer = OffsetLayer(3)
    layer(features(dtype=torch.float32)).square().sum().backward()
    assert layer.predict.weight.grad.abs().max() > 0


def test_wrong_shape_and_wrong_word_are_named():
    with pytest.raises(ValueError, match="expected"):
        resample(features(), torch.zeros(2, 2, 2, 7, 9))
    with pytest.raises(ValueError, match="'both'"):
        offset_layer("both", 4)


def test_deformable_convolution_taps_read_their_own_places():
    """With the centre's weight moved to the tap above, the layer reads one pixel up."""
    x = features(dtype=torch.float32)
    layer = DeformableConvolution(3)
    with torch.no_grad():
        layer.mix.weight.copy_(
            layer.mix.weight.roll(-3 * 3, dims=1)
        )  # tap 4 (centre) -> tap 1 (above): three taps of three channels
    torch.testing.assert_close(layer(x)[:, :, 1:], x[:, :, :-1])


def test_taps_of_a_deformable_convolution_move_down_by_dy_and_right_by_dx():
    x = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    layer = DeformableConvolution(3)
    with torch.no_grad():
        layer.predict.bias[2 * 4] = 1.0  # dy of the centre tap
    torch.testing.assert_close(layer(x)[:, :, :-1], x[:, :, 1:])
    with torch.no_grad():
        layer.predict.bias[2 * 4 : 2 * 4 + 2] = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(layer(x)[..., :-1], x[..., 1:])


def test_shared_offsets_move_all_channels_alike():
    assert OffsetLayer(3, "shared").offsets(torch.zeros(2, 3, 7, 9)).shape == (2, 1, 2, 7, 9)
    assert OffsetLayer(3).offsets(torch.zeros(2, 3, 7, 9)).shape == (2, 3, 2, 7, 9)


def field_of(control, points=7):
    layer = SmoothField(points).double()
    with torch.no_grad():
        layer.control.copy_(control)
    return layer


def test_equal_control_points_shift_the_whole_slice():
    control = torch.zeros(2, 7, 7)
    control[0], control[1] = 2 / 8, -3 / 12  # shares of 8 rows and of 12 columns: two pixels down, three to the left
    x = features(1, 1, 8, 12)
    layer = field_of(control)
    offsets = layer.offsets(x)
    torch.testing.assert_close(offsets, torch.tensor([2.0, -3.0]).double().view(1, 1, 2, 1, 1).expand(1, 1, 2, 8, 12))
    torch.testing.assert_close(layer(x)[..., :-2, 3:], x[..., 2:, :-3])


def test_control_points_on_a_plane_give_an_affine_field():
    knots = torch.arange(7, dtype=torch.float64)[:, None].expand(7, 7) - 1  # row of a knot, in knots; 0 to 4 are inside
    field = field_of(torch.stack([knots, torch.zeros(7, 7)]) / 100).offsets(features(1, 1, 41, 20))[0, 0]
    torch.testing.assert_close(field[0], torch.linspace(0, 4, 41).double()[:, None].expand(41, 20) * 41 / 100)
    assert field[1].abs().max() == 0


def test_one_control_point_moves_its_neighbourhood_only():
    control = torch.zeros(2, 7, 7)
    control[0, 3, 3] = 1 / 65  # the middle of 65 x 65
    field = field_of(control).offsets(features(1, 1, 65, 65))[0, 0, 0]
    assert field[32, 32].item() == pytest.approx((2 / 3) ** 2)  # the cubic B-spline at its knot, in both directions
    assert field[0].abs().max() == 0 and field[:, 0].abs().max() == 0  # two knots away


def test_a_smooth_field_and_its_inverse_return_the_slice():
    rows = torch.linspace(0, 3, 64, dtype=torch.float64).sin()
    x = (rows[:, None] * rows[None]).view(1, 1, 64, 64)
    layer = field_of(0.02 * torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(3)))
    back = layer.undo()(layer(x))
    assert (layer(x) - x).abs().max() > 0.02
    torch.testing.assert_close(back[..., 8:-8, 8:-8], x[..., 8:-8, 8:-8], atol=2e-3, rtol=0)
    there, again = layer.offsets(x)[0], inverse(layer.offsets(x)[0], steps=30)
    returned = (again + resample(there, again[:, None]))[..., 8:-8, 8:-8]  # u(p + v(p)) + v(p)
    assert there.abs().max() > 1 and returned.abs().max() < 1e-6
    assert layer.undo().control is layer.control and layer.undo().undo()(x).equal(layer(x))


def test_gradient_of_a_smooth_field_against_finite_differences():
    x, layer = features(1, 1, 9, 8), field_of(torch.full((2, 5, 5), 0.05), points=5)

    def moved(control):
        return torch.func.functional_call(layer, {"control": control}, (x,))[..., :-1, :-1]

    assert torch.autograd.gradcheck(moved, (layer.control.detach().clone().requires_grad_(),))


def test_registration_finds_the_warp_of_an_outline():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    discs = torch.stack([(rows - 30).hypot(columns - 34) < radius for radius in (10, 16, 22)]).float()
    blank, truth, found = torch.zeros_like(discs), SmoothField(), SmoothField()
    with torch.no_grad():
        truth.control.copy_(0.04 * torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(5)))
        warped = truth(discs[None])[0]
    register(found, (blank, blank), (discs, warped))
    left = (found(discs[None])[0] - warped).square().mean()
    assert left < 0.15 * (discs - warped).square().mean()
    assert found.control.grad is None and not found.control.requires_grad


def test_registration_sees_what_lies_inside_an_outline_although_the_contrast_is_another():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    organs = (rows / 4).sin() * (columns / 5).cos()
    outline, truth = ((rows - 32).hypot(columns - 32) < 28).float()[None], SmoothField()
    with torch.no_grad():
        truth.control[:, 2:5, 2:5] = 0.03
        warped = truth(organs[None, None])[0]
    left = []
    for image, other in ((organs[None], warped.square() - 0.8 * warped), (0 * organs[None], 0 * warped)):
        register(found := SmoothField(), (image, other.clamp(-1, 1)), (outline, outline))
        inside = (found.offsets(organs[None, None]) - truth.offsets(organs[None, None]))[..., 20:44, 20:44]
        left.append(inside.square().mean())
    assert left[0] < 0.3 * left[1]


def test_a_smooth_field_blurs_less_than_bilinear_reading():
    """Half a pixel aside, bilinear reading keeps cos(pi / 6) = 0.87 of a wave of six pixels, cubic reading 1.03.

    Keys' weights at 1/2 with a = -3/4, as PyTorch has them: -3/32, 19/32, 19/32, -3/32.
    """
    wave = torch.cos(torch.arange(36).double() * torch.pi / 3).expand(1, 1, 8, 36)
    control = torch.zeros(2, 7, 7).double()
    control[1] = 0.5 / 36
    layer = field_of(control)
    inside = (..., slice(6, 30))
    moved = torch.cos((torch.arange(36).double() + 0.5) * torch.pi / 3).expand(1, 1, 8, 36)[inside]
    kept = 19 / 16 * np.cos(np.pi / 6) - 3 / 16 * np.cos(3 * np.pi / 6)
    torch.testing.assert_close(layer(wave)[inside], kept * moved)
    torch.testing.assert_close(resample(wave, layer.offsets(wave))[inside], np.cos(np.pi / 6) * moved)
