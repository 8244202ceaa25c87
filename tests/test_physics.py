"""Laws of the simulated scanners."""

import numpy as np
import pytest
from scipy import ndimage, stats

from mr2ct_lib.files import InputError
from mr2ct_lib.patients import acquisition, faults, physics
from mr2ct_lib.patients.acquisition import acquire_ct, acquire_mr
from mr2ct_lib.patients.physics import SEQUENCES, Sequence
from mr2ct_lib.patients.tissues import TISSUES

SHAPE, AFFINE = (20, 22, 9), np.diag([6.0, 6.0, 6.0, 1.0])
AFFINE[:3, 3] = -(np.array(SHAPE) - 1) / 2 * 6.0


class Spheres:
    """A patient of muscle with a ball of fat in it."""

    names = {0: "background", 1: "muscle", 2: "subcutaneous_fat"}
    landmarks = {"centre": (0.0, 0.0, 0.0)}

    def __init__(self, seed=3):
        self.seed = seed

    def paint(self, shape, affine):
        x, y, z = (affine[a, 3] + affine[a, a] * np.arange(shape[a]) for a in range(3))
        distance = np.sqrt(x[:, None, None] ** 2 + y[None, :, None] ** 2 + (z[None, None] * 0.2) ** 2)
        return ((distance < 45).astype(np.uint8) + (distance < 20)).astype(np.uint8)


CLEAN = {"noise": 0.0, "bias": 0.0, "texture": 0.0, "supersample": (1, 1, 1)}


def by_hand(sequence, tissue):
    t = TISSUES[tissue]
    t1 = t.t1_10 if sequence.field == 1.0 else t.t1_15
    if sequence.kind == "spin_echo":
        return t.pd * (1 - np.exp(-sequence.tr / t1)) * np.exp(-sequence.te / t.t2)
    e1, a = np.exp(-sequence.tr / t1), np.pi * sequence.flip / 180
    return t.pd * np.sin(a) * (1 - e1) / (1 - e1 * np.cos(a)) * np.exp(-sequence.te / t.t2star)


@pytest.mark.parametrize("name", SEQUENCES)
def test_noise_free_scan_equals_closed_form(name):
    scan, labels = acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES[name], seed=1, gain=1.0, **CLEAN)
    expected = np.array([0, by_hand(SEQUENCES[name], "muscle"), by_hand(SEQUENCES[name], "fat")])[labels.array]
    np.testing.assert_allclose(scan.array, expected, rtol=1e-6, atol=0)
    assert scan.unit == "a.u." and labels.unit == "label"


def mr(**changes):
    return acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES["hip_spgr"], 7, **(CLEAN | {"gain": 1.0} | changes))[0].array


def test_noise_bias_and_texture_of_an_mr_are_as_large_as_they_are_said_to_be():
    clean = mr()
    body = clean > 0
    sd = 0.05 * clean[body].mean()
    assert mr(noise=0.05)[~body].mean() == pytest.approx(sd * np.sqrt(np.pi / 2), rel=0.05)  # Rice without a signal
    coil, grain = (
        faults.smooth_field(SHAPE, AFFINE, mm, seed)[body]
        for mm, seed in ((faults.BIAS_MM, [7, 12]), (acquisition.TEXTURE_MM, [Spheres().seed, 11]))
    )
    np.testing.assert_allclose(np.log(mr(bias=0.3)[body] / clean[body]), 0.3 * coil, atol=1e-5)
    np.testing.assert_allclose(mr(texture=0.1)[body] / clean[body] - 1, 0.1 * grain, atol=1e-5)
    small = (Spheres(), (9, 9, 1), AFFINE @ np.diag([2, 2, 1, 1.0]), SEQUENCES["hip_spgr"])
    gains = [np.log(acquire_mr(*small, n, **CLEAN)[0].array.max() / clean.max()) for n in range(200)]
    assert np.exp(np.median(gains)) == pytest.approx(3000, rel=0.1) and np.std(gains) == pytest.approx(0.35, rel=0.2)


def test_noise_and_texture_of_a_ct_are_as_large_as_they_are_said_to_be():
    options = {"noise": 0, "texture": 0, "table": None, "supersample": (1, 1, 1)}

    def scan(**changes):
        return acquire_ct(Spheres(), SHAPE, AFFINE, 7, **(options | changes))

    clean, labels = (volume.array.astype(float) for volume in scan())
    assert (scan(noise=20.0)[0].array - clean)[2:-2, 2:-2].std() == pytest.approx(20, rel=0.1)
    grain = faults.smooth_field(SHAPE, AFFINE, acquisition.TEXTURE_MM, [Spheres().seed, 11])
    spread = np.array([0, TISSUES["muscle"].hu_sd, TISSUES["fat"].hu_sd])[labels.astype(int)]
    np.testing.assert_allclose(scan(texture=0.5)[0].array - clean, 0.5 * spread * grain, atol=0.51)  # whole HU


def test_spgr_limits():
    assert physics.spgr(500, 50, 1.0, tr=1e9, te=0, flip_degrees=90) == pytest.approx(1)
    assert physics.spgr(500, 50, 1.0, tr=8, te=0, flip_degrees=0) == 0
    ernst = np.rad2deg(np.arccos(np.exp(-8 / 500)))  # the flip angle of the largest signal
    around = [physics.spgr(500, 50, 1.0, 8, 3, ernst + d) for d in (-0.5, 0, 0.5)]
    assert np.argmax(around) == 1


def test_order_of_tissues_as_in_life():
    structures = dict(enumerate(["background", "muscle", "subcutaneous_fat", "femur_marrow", "femur_cortex", "pelvis"]))
    _, muscle, fat, marrow, cortex, trabecular = physics.tissue_signals(structures, SEQUENCES["hip_spgr"])
    assert fat > marrow > trabecular > muscle > 3 * cortex
    heads = dict(enumerate(["background", "grey_matter", "white_matter", "csf"]))
    _, grey, white, csf = physics.tissue_signals(heads, SEQUENCES["head_t2"])
    assert csf > 2 * grey and grey > white
    _, grey, white, csf = physics.tissue_signals(heads, SEQUENCES["head_pd"])
    assert csf > grey > white  # as in turbo spin echoes in life, where magnetisation transfer dims the tissues
    assert csf == pytest.approx(9 / 8 * grey, rel=0.01)
    _, grey, white, csf = physics.tissue_signals(heads, SEQUENCES["head_t1"])
    assert white > 1.3 * grey and grey > 2 * csf  # the reverse of T2


def test_magnetisation_transfer_dims_tissue_and_not_fluid():
    """By hand: white matter loses 20 %, grey 14 %, fluid nothing, whatever the times."""
    heads = dict(enumerate(["background", "grey_matter", "white_matter", "csf"]))
    tissues = [TISSUES[name] for name in ("grey_matter", "white_matter", "fluid")]
    for name in ("head_pd", "head_t2"):
        s = SEQUENCES[name]
        without = [physics.spin_echo(t.t1_15, t.t2, t.pd, s.tr, s.te) for t in tissues]
        kept = physics.tissue_signals(heads, s)[1:] / without
        np.testing.assert_allclose(kept, [0.86, 0.80, 1.0], rtol=1e-6)


def test_partial_volume_is_the_mean_signal():
    clean = CLEAN | {"supersample": (2, 3, 2)}
    fine_shape, fine_affine = acquisition.finer_grid(SHAPE, AFFINE, (2, 3, 2))
    fine, _ = acquire_mr(Spheres(), fine_shape, fine_affine, SEQUENCES["hip_spgr"], 1, gain=1.0, **CLEAN)
    scan, _ = acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES["hip_spgr"], 1, gain=1.0, **clean)
    nx, ny, nz = SHAPE
    expected = fine.array.reshape(nx, 2, ny, 3, nz, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(scan.array, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("factors", [(3, 3, 1), (2, 2, 1)])
def test_labels_are_those_at_the_voxel_centres(factors):
    _, labels = acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES["hip_spgr"], 1, **(CLEAN | {"supersample": factors}))
    np.testing.assert_array_equal(labels.array, Spheres().paint(SHAPE, AFFINE))


def test_slabs_change_nothing(monkeypatch):
    whole = acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES["hip_spgr"], 1)[0].array
    monkeypatch.setattr(acquisition, "FINE_VOXELS", SHAPE[0] * SHAPE[1] * 8 * 2)
    slabs = acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES["hip_spgr"], 1)[0].array
    np.testing.assert_allclose(slabs, whole, rtol=1e-5)  # positions are rounded otherwise


@pytest.mark.parametrize("signal", [0.0, 1.5, 20.0])
def test_rician_mean_and_variance(signal):
    noisy = faults.rician(np.full(400_000, signal, dtype=np.float32), 2.0, np.random.default_rng(5))
    truth = stats.rice(signal / 2.0, scale=2.0)
    assert noisy.mean() == pytest.approx(truth.mean(), rel=5e-3)
    assert noisy.var() == pytest.approx(truth.var(), rel=1e-2)


def test_smooth_field_law():
    shape, affine = (40, 40, 40), np.diag([20.0, 20.0, 20.0, 1.0])
    affine[:3, 3] = -400
    draws = np.stack([faults.smooth_field(shape, affine, 30.0, seed) for seed in range(3)])
    assert abs(draws.mean()) < 0.02 and draws.std() == pytest.approx(1, abs=0.03)
    coarse = faults.smooth_field((20,) * 3, affine @ np.diag([2, 2, 2, 1]), 30.0, 0)
    np.testing.assert_allclose(coarse, draws[0][::2, ::2, ::2], atol=1e-5)  # fixed in space, whatever the grid


def test_bias_is_positive_and_smooth():
    bias = faults.bias_field(SHAPE, AFFINE, 0.3, 4)
    assert bias.min() > 0 and max(np.abs(step).max() for step in np.gradient(np.log(bias))) < 0.06
    np.testing.assert_array_equal(faults.bias_field(SHAPE, AFFINE, 0.0, 4), 1)


def test_seed_decides():
    def scan(seed):
        return acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES["hip_spgr"], seed)[0].array

    np.testing.assert_array_equal(scan(1), scan(1))
    assert not np.array_equal(scan(1), scan(2))
    ct = [acquire_ct(Spheres(), SHAPE, AFFINE, seed)[0].array for seed in (1, 1, 2)]
    np.testing.assert_array_equal(ct[0], ct[1])
    assert not np.array_equal(ct[0], ct[2])


def test_two_echoes_share_coil_and_gain_but_not_noise():
    options, air = {"texture": 0.0, "supersample": (1, 1, 1)}, Spheres().paint(SHAPE, AFFINE) == 0

    def echoes(noise):
        return [
            acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES[name], 7, noise=noise, **options)[0].array
            for name in ("head_pd", "head_t2")
        ]

    pd, t2 = echoes(noise=0.0)
    muscle = Spheres().paint(SHAPE, AFFINE) == 1
    ratio = t2[muscle] / pd[muscle]
    assert np.ptp(ratio) < 1e-5 and np.ptp(pd[muscle]) > 0.05 * pd[muscle].mean()
    pd, t2 = echoes(noise=0.04)
    assert abs(np.corrcoef(pd[air], t2[air])[0, 1]) < 5 / np.sqrt(air.sum())  # one draw, scaled, would give 1


def test_stripped_background_is_zero():
    scan, labels = acquire_mr(Spheres(), SHAPE, AFFINE, SEQUENCES["head_pd"], 1, strip=True)
    assert (scan.array[labels.array == 0] == 0).all() and (scan.array[labels.array > 0] > 0).all()


def test_ct_values():
    scan, labels = acquire_ct(Spheres(), SHAPE, AFFINE, 1, noise=0, texture=0, table=None, supersample=(1, 1, 1))
    assert scan.array.dtype == np.int16 and scan.unit == "HU"
    for value, hu in enumerate((-1000, TISSUES["muscle"].hu, TISSUES["fat"].hu)):
        assert (scan.array[labels.array == value] == hu).all()


@pytest.mark.parametrize("kind", ["flat", "curved"])
def test_table_lies_under_the_patient(kind):
    shape, affine = (100, 90, 4), np.diag([4.0, 4.0, 6.0, 1.0])
    affine[:3, 3] = -200
    clean = {"noise": 0, "texture": 0, "supersample": (1, 1, 1)}
    with_table, labels = acquire_ct(Spheres(), shape, affine, 1, table=kind, **clean)
    without, _ = acquire_ct(Spheres(), shape, affine, 1, table=None, **clean)
    table = with_table.array != without.array
    assert table.any() and not table[labels.array > 0].any()
    lowest_body, highest_table = np.nonzero(labels.array[50])[0].min(), np.nonzero(table[50])[0].max()
    assert 0 < lowest_body - highest_table <= 3


@pytest.mark.parametrize("i", [slice(0, 2), slice(98, 100)])
def test_a_block_beside_the_patient_shows_air_and_the_table_alone(i):
    shape, affine = (100, 90, 4), np.diag([4.0, 4.0, 6.0, 1.0])
    affine[:3, 3] = -200
    clean = {"noise": 0, "texture": 0, "supersample": (1, 1, 1)}
    whole, labels = acquire_ct(Spheres(), shape, affine, 1, **clean)
    for j, k in ((slice(0, 90), slice(0, 4)), (slice(60, 90), slice(1, 3))):
        part, none = acquire_ct(Spheres(), shape, affine, 1, block=(i, j, k), **clean)
        np.testing.assert_array_equal(part.array, whole.array[i, j, k])
        assert not none.array.any() and not labels.array[i, j, k].any()
    assert (part.array == -1000).all()


def test_ct_noise_sd_and_texture():
    noise = faults.ct_noise((64, 64, 20), 10.0, np.random.default_rng(2))
    assert noise.std() == pytest.approx(10, rel=0.03)
    power = (np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2).mean(axis=2)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
    low, middle, high = (
        power[(frequency > a) & (frequency < b)].mean() for a, b in ((0, 0.05), (0.12, 0.2), (0.45, 0.5))
    )
    assert middle > 2 * low and middle > 20 * high  # a ramp at low frequencies, nothing at the edge of the band


def test_distortion_is_smooth_invertible_and_clearly_visible():
    fixed = faults.thin_plate_distortion()
    x, y = np.meshgrid(np.linspace(-90, 90, 181), np.linspace(-90, 90, 181), indexing="ij")
    dx, dy = fixed(x, y)
    inside = np.hypot(x, y) < 90
    assert 7 < np.sqrt((dx**2 + dy**2)[inside].mean()) < 9
    jacobian = (1 + np.gradient(dx, axis=0)) * (1 + np.gradient(dy, axis=1)) - np.gradient(dx, axis=1) * np.gradient(
        dy, axis=0
    )
    assert jacobian.min() > 0.25
    there = np.stack([x, y])
    back = there.copy()
    for _ in range(60):  # fixed point: back + d(back) = there
        back = there - np.stack(fixed(*back))
    np.testing.assert_allclose(back + np.stack(fixed(*back)), there, atol=0.05)


@pytest.mark.parametrize("axis", [0, 1])
def test_displaced_scan_shows_what_lies_12_mm_further_along_an_axis(axis):
    clean = CLEAN | {"supersample": (2, 2, 2), "gain": 1.0}
    scan = (Spheres(), SHAPE, AFFINE, SEQUENCES["head_pd"], 1)
    plain, labels = (np.moveaxis(volume.array, axis, 0) for volume in acquire_mr(*scan, **clean))
    step = [12.0 * (axis == i) for i in (0, 1)]
    moved = acquire_mr(*scan, displacement=lambda x, y: (0 * x + step[0], 0 * y + step[1]), **clean)
    image, there = (np.moveaxis(volume.array, axis, 0) for volume in moved)
    np.testing.assert_allclose(image[:-2], plain[2:], atol=1e-6)
    np.testing.assert_array_equal(there[:-2], labels[2:])
    assert ndimage.center_of_mass(there)[0] < ndimage.center_of_mass(labels)[0]


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="field"):
        acquire_mr(Spheres(), SHAPE, AFFINE, Sequence("x", "spgr", 8, 3, field=3.0), 1)
    with pytest.raises(InputError, match="kind"):
        acquire_mr(Spheres(), SHAPE, AFFINE, Sequence("x", "ir", 8, 3), 1)
    with pytest.raises(InputError, match="table"):
        acquire_ct(Spheres(), SHAPE, AFFINE, 1, table="round")
    oblique = AFFINE.copy()
    oblique[0, 1] = 1
    for affine in (oblique, AFFINE @ np.diag([-1.0, 1, 1, 1]), AFFINE @ np.diag([1.0, 1, -1, 1])):
        with pytest.raises(InputError, match="oblique or flipped"):
            acquire_mr(Spheres(), SHAPE, affine, SEQUENCES["head_pd"], 1, bias=0, texture=0)
        with pytest.raises(InputError, match="oblique or flipped"):
            acquire_ct(Spheres(), SHAPE, affine, 1, texture=0)
    nameless = Spheres()
    nameless.names = {0: "background", 1: "muscle"}
    for acquire in (
        lambda: acquire_mr(nameless, SHAPE, AFFINE, SEQUENCES["head_pd"], 1),
        lambda: acquire_ct(nameless, SHAPE, AFFINE, 1),
    ):
        with pytest.raises(InputError, match="2"):
            acquire()
