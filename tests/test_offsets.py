"""Laws of the deformable offset layers."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from mr2ct_lib.methods.offsets import DeformableConvolution, OffsetLayer, offset_layer, resample

KINDS = ["per_channel", "shared", "convolution"]


def features(n=2, c=3, h=7, w=9, dtype=torch.float64):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_layer_moves_nothing(kind):
    x = features(dtype=torch.float32)
    torch.testing.assert_close(offset_layer(kind, 3)(x), x)


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
