"""Laws of whole-volume synthesis: same grid, right place, right unit, refusals."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW, body_mask
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.volumes import Volume, read_volume, write_volume
from mr2ct_lib.methods.networks import initialise
from mr2ct_lib.methods.segmentation import Segmenter, build_network, segment
from mr2ct_lib.methods.synthesis import synthesize
from mr2ct_lib.methods.translator import Architecture, Translator
from tools import ROOT


class Identity(nn.Module):
    def forward(self, x, deform=False):
        return x


def translator(pixel=5.0, shape=(16, 16), n4=False):
    preparation = Preparation(
        plane="coronal",
        pixel=pixel,
        shape=shape,
        slice_spacing=6.0,
        windows={"source": MR_WINDOW, "target": CT_WINDOW},
        n4={"source": n4, "target": False},
    )
    result = Translator(Architecture(4, 1, None, "transposed"), preparation, {})
    result.source_to_target = result.target_to_source = Identity()
    result.register_parameter("anchor", nn.Parameter(torch.zeros(1)))
    return result


def mr(shape=(18, 6, 20), spacing=(5.0, 6.0, 5.0), axcodes=("R", "A", "S")):
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = (i**2 + k**2 < 0.7).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-40.0, 7.0, 11.0]
    return Volume((body * (400 + 300 * i + 100 * k)).astype(np.float32), affine, "a.u.", axcodes)


@pytest.mark.parametrize("pixel", [5.0, 4.0, 7.5])
def test_the_result_lies_on_the_inputs_own_grid_in_hu(pixel):
    volume = mr()
    out = synthesize(volume, translator(pixel))
    assert out.array.shape == volume.array.shape and out.unit == "HU"
    np.testing.assert_array_equal(out.affine, volume.affine)
    assert out.array.min() >= -150 and out.array.max() <= 350


def test_an_identity_translator_returns_the_windowed_scan():
    """Bright end of the MR window comes out as the bright end of the CT window, at the very same voxels."""
    volume = mr()
    out = synthesize(volume, translator()).array
    scale = np.percentile(volume.array[volume.array > 0], 99.5)
    expected = np.clip(volume.array / scale, 0, 1) * 500 - 150
    np.testing.assert_allclose(out, expected, atol=8)  # the percentile is of the body mask, which is not exactly > 0


def test_an_oblique_flipped_file_keeps_its_affine_and_place(tmp_path):
    volume = mr(axcodes=("L", "S", "A"))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    write_volume(volume.replace(affine=turn @ volume.affine), tmp_path / "mr.nii.gz")
    import nibabel as nib

    before = nib.load(tmp_path / "mr.nii.gz")
    write_volume(synthesize(read_volume(tmp_path / "mr.nii.gz"), translator(4.0)), tmp_path / "sct.nii.gz")
    after = nib.load(tmp_path / "sct.nii.gz")
    assert after.shape == before.shape and after.get_data_dtype() == np.int16
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    bright = before.get_fdata() > 300  # identity translator: the body stays where it is
    assert after.get_fdata()[bright].mean() > after.get_fdata()[~bright].mean() + 100


@pytest.mark.parametrize("recorded", [True, False])
def test_two_bodies_with_nothing_in_the_field_of_view_between_them_are_refused(recorded):
    """Its signs would be those of no slice at all, and pass even `strict`."""
    array = np.zeros((18, 6, 60), np.float32)
    array[1:-1, :, 2:14] = array[1:-1, :, 46:58] = np.random.default_rng(0).uniform(300, 700, (16, 6, 12))
    apart, tr = mr().replace(array=array), translator()  # 160 mm apart, the field of view is 80 mm
    slices, place = tr.preparation.to_slices(apart, "source")
    assert len(slices) and not place.training.any()
    segmenter = Segmenter(build_network(2, 2, (4, 8)).eval(), {1: "femur"}, ("MR", "CT"), (4, 8), {})
    flat = {"histogram": [1 / 64] * 64, "cycle": 1.0, "mean": [[0.0] * 16] * 16, "lopsided": None}
    tr.training_data = dict.fromkeys(("source", "target"), flat) if recorded else None
    for translate in (synthesize, lambda *given, **options: segment(*given, segmenter, **options)):
        with pytest.raises(InputError, match="shows nothing in the window within the field of view of training"):
            translate(apart, tr, strict=True)


def test_slices_are_independent_of_their_neighbours():
    """Without N4, mirroring one slice, which leaves the scan's percentiles as they are, changes that slice of the
    result alone."""
    volume = mr()
    tr = translator()
    one = synthesize(volume, tr).array
    array = volume.array.copy()
    array[:, 2] = array[::-1, 2]
    other = synthesize(volume.replace(array=array), tr).array
    changed = np.abs(one - other).max(axis=(0, 2))
    assert changed[2] > 20 and np.delete(changed, 2).max() == 0


def test_reverse_takes_ct_and_gives_mr_units():
    ct = mr().replace(array=np.where(mr().array > 0, 40, -1000).astype(np.float32), unit="HU")
    assert synthesize(ct, translator(), reverse=True).unit == "%"


def test_the_wrong_kind_of_scan_is_refused():
    with pytest.raises(InputError, match="looks like CT.*expected MR"):
        synthesize(mr().replace(array=mr().array - 1000, unit="HU"), translator())
    with pytest.raises(InputError, match="looks like MR.*expected CT"):
        synthesize(mr(), translator(), reverse=True)


def test_only_a_network_of_mr_and_ct_in_this_order_segments():
    def trained_on(*channels):
        return Segmenter(build_network(len(channels), 2, (4, 8)).eval(), {1: "femur"}, channels, (4, 8), {})

    for channels in (("CT", "MR"), ("CT",)):
        with pytest.raises(InputError, match=f"channels are {', '.join(channels)}; expected MR, CT"):
            segment(mr(), translator(), trained_on(*channels))
    assert segment(mr(), translator(), trained_on("MR", "CT")).array.shape == mr().array.shape


def test_n4_is_applied_where_training_had_it():
    volume = mr(shape=(24, 8, 24))
    biased = volume.replace(array=volume.array * np.exp(np.linspace(-0.4, 0.4, 24))[:, None, None].astype(np.float32))
    plain, corrected = (synthesize(biased, translator(n4=use)).array for use in (False, True))
    assert np.abs(plain - corrected).max() > 5


def test_bf16_in_batches_is_within_two_hu_of_float32_slice_by_slice():
    real = Translator(Architecture(8, 2, None, "transposed"), translator().preparation, {})
    initialise(real.source_to_target, 0)
    with torch.no_grad():
        real.source_to_target.decoder[-2].weight.mul_(20)  # or an untrained network's answer is all but one grey
    slices = np.random.default_rng(0).uniform(-1, 1, (7, 48, 40)).astype(np.float32)
    single = np.concatenate([real.translate(one[None]) for one in slices])
    batched = real.translate(slices, batch_size=4, precision="bf16")
    assert single.std() > 0.1
    assert np.abs(real.translate(slices, batch_size=4) - single).max() < 1e-4  # float32 in another order
    assert 0 < np.abs(batched - single).mean() * 250 < 2  # the CT window is 500 HU wide


def untrained() -> Translator:
    """Fixed random generators, whose instance normalisation sees the whole slice."""
    random = Translator(
        Architecture(4, 1, None, "resize"), translator(pixel=5.0, shape=(32, 32), n4=True).preparation, {}
    )
    initialise(random.source_to_target, 0)
    return random.eval()


def noisy_patient(shape=(26, 8, 28), spacing=(5.0, 6.0, 5.0)) -> Volume:
    """A body with inner structure and a bias field in noisy air, not in the middle of the scan."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = ((i - 0.1) / 0.75) ** 2 + ((k + 0.08) / 0.8) ** 2 < 1
    array = body * (300 + 150 * np.sin(5 * i) + 100 * np.cos(7 * k)) * np.exp(0.2 * i + 0.1 * j)
    noise = np.random.default_rng(0).normal(0, 4, (2, *shape))
    return Volume(np.hypot(array + noise[0], noise[1]).astype(np.float32), np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(
    "millimetres", [((20, 20),) * 3, ((200, 200),) * 3, ((0, 200), (0, 0), (110, 0)), ((-10, 35),) * 3]
)
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_air_around_the_patient_does_not_change_the_synthetic_ct(millimetres, noise):
    """Up to 200 mm of it, on both sides or one, with and without noise; and air that is cropped away."""
    scan, random = noisy_patient(), untrained()
    margins = [[round(mm / step) for mm in pair] for pair, step in zip(millimetres, scan.spacing, strict=True)]
    margins[1] = [max(0, n) for n in margins[1]]  # in this direction the body fills the scan
    cut = tuple(
        slice(max(0, -before), n - max(0, -after)) for (before, after), n in zip(margins, scan.array.shape, strict=True)
    )
    added = [tuple(max(0, n) for n in pair) for pair in margins]
    array = np.pad(scan.array[cut], added, constant_values=np.nan)
    air = np.hypot(*np.random.default_rng(1).normal(0, max(noise, 1e-9), (2, *array.shape)))
    affine = scan.affine.copy()
    affine[:3, 3] = [-before * step for (before, _), step in zip(margins, scan.spacing, strict=True)]
    other = Volume(np.where(np.isnan(array), air, array).astype(np.float32), affine)
    inside = tuple(slice(a, n - b) for (a, b), n in zip(added, array.shape, strict=True))
    one, two = synthesize(scan, random).array[cut], synthesize(other, random).array[inside]
    body = body_mask(scan)[cut]
    assert one[body].std() > 30  # of 500 HU
    assert np.abs(one - two)[body].mean() < 2


def test_zeros_around_a_body_that_the_field_of_view_cuts_change_nothing():
    """With pixels finer than the scan's, interpolation must not mix tissue at the edge of the scan with them."""
    random = Translator(
        Architecture(4, 1, None, "resize"), translator(pixel=2.5, shape=(64, 64), n4=True).preparation, {}
    )
    initialise(random.source_to_target, 0)
    scan = noisy_patient()
    cut = Volume(scan.array[6:-6, :, 6:-6], scan.affine, scan.unit)
    affine = cut.affine.copy()
    affine[:3, 3] = -4 * scan.spacing
    padded = Volume(np.pad(cut.array, 4), affine, cut.unit)
    one, two = (synthesize(volume, random.eval(), precision="float32").array for volume in (cut, padded))
    assert one.std() > 30  # of 500 HU
    assert np.abs(one - two[4:-4, 4:-4, 4:-4]).max() < 0.1


def test_a_body_larger_than_the_field_of_view_gets_several_without_seams():
    """Fields that overlap are blended: an identity translator returns the scan, also where one field ends."""
    volume = mr(shape=(50, 6, 60))
    out = synthesize(volume, translator()).array
    scale = np.percentile(volume.array[volume.array > 0], 99.5)
    expected = np.clip(volume.array / scale, 0, 1) * 500 - 150
    np.testing.assert_allclose(out, expected, atol=8)
    preparation = translator().preparation
    slices, place = preparation.to_slices(volume, "source")
    assert len(slices) == len(place.origins) > 9 * 6 and slices.shape[1:] == (16, 16)
    labels = preparation.to_volume((slices > 0).astype(np.uint8), place, volume, "label", fill=0)
    np.testing.assert_array_equal(labels.array, volume.array / place.scale > 50)


HEAVY = (
    "mr2ct_lib.patients",
    "mr2ct_lib.course",
    "matplotlib",
    "SimpleITK",
    "scipy",
    "pandas",
    "nibabel",
    "lightning_fabric",
    "monai",
)


def test_inference_loads_no_anatomy_and_nothing_heavy_but_torch():
    code = "import torch, sys; import mr2ct_lib.methods.synthesis as s; print(*sys.modules)"
    modules = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()
    )
    assert "mr2ct_lib.methods.translator" in modules
    assert not modules & set(HEAVY)


# --- the mean over places on the pixel grid ---


class GridPattern(nn.Module):
    """An identity that invents a pattern, which hangs on rows and columns of the grid of 4, not on the image."""

    def forward(self, x, deform=False):
        pattern = torch.tensor([0.3, -0.1, 0.05, -0.25])  # sums to 0
        rows, columns = (pattern.repeat(n // 4 + 1)[:n] for n in x.shape[-2:])
        return x + rows[:, None] + 2 * columns


def test_spinning_takes_away_what_hangs_on_the_grid_and_keeps_the_rest():
    inventing, images = translator(), np.random.default_rng(0).uniform(-0.5, 0.5, (3, 17, 22)).astype(np.float32)
    inventing.source_to_target = GridPattern()
    assert np.abs(inventing.translate(images) - images).max() > 0.5
    np.testing.assert_allclose(inventing.translate(images, spin=True), images, atol=1e-6)


def test_spinning_leaves_what_a_network_does_at_every_place_alike():
    scan, plain = mr(), translator()
    np.testing.assert_allclose(synthesize(scan, plain, spin=True).array, synthesize(scan, plain).array, atol=1e-3)
    assert plain.translate(np.zeros((0, 16, 16), np.float32), spin=True).shape == (0, 16, 16)
