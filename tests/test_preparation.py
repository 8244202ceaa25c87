"""Preparation: windows, bias field, MR units, registration, and cohorts that become slices."""

import errno

import numpy as np
import pytest
from scipy import ndimage

from mr2ct_lib.files import InputError, write_json
from mr2ct_lib.images import preparation
from mr2ct_lib.images.preparation import (
    CT_WINDOW,
    MR_WINDOW,
    WHOLE_BODY_WINDOW,
    ZSCORE_WINDOW,
    Window,
    body_mask,
    n4,
    normalise_mr,
    prepare,
)
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import Volume, read_volume, slices_of, write_volume
from mr2ct_lib.patients import acquisition, faults, physics
from mr2ct_lib.patients.abdomen import abdomen_patient
from mr2ct_lib.patients.hip import hip_patient
from mr2ct_lib.patients.scanner import PROFILES


@pytest.mark.parametrize("window", [CT_WINDOW, MR_WINDOW, WHOLE_BODY_WINDOW, ZSCORE_WINDOW])
def test_a_window_is_exact_inside_and_cuts_outside(window):
    inside = np.linspace(window.low, window.high, 1001)
    np.testing.assert_allclose(window.from_network(window.to_network(inside)), inside, atol=1e-9)
    assert window.to_network(np.array([window.low - 1, window.high + 1])).tolist() == [-1, 1]
    assert Window.from_dict(window.as_dict()) == window


def test_every_whole_hu_survives_float32():
    hu = np.arange(-150, 351, dtype=np.float32)
    np.testing.assert_array_equal(np.round(CT_WINDOW.from_network(CT_WINDOW.to_network(hu).astype(np.float32))), hu)


def test_grey_levels_by_hand():
    assert CT_WINDOW.to_grey(np.array([-150.0, 100, 350])).tolist() == [0, 127.5, 255]
    assert np.isclose(np.diff(CT_WINDOW.to_grey(np.array([0.0, 500 / 255])))[0], 1)  # the paper: a level is 1.96 HU


def test_a_window_upside_down_is_refused():
    with pytest.raises(InputError, match="low < high"):
        Window(350, -150, "HU")


def phantom(shape=(40, 32, 24), gain=1.0, bias=0.0) -> tuple[Volume, np.ndarray, np.ndarray]:
    """An MR of a body with three tissues in noise, its field, and where the body is."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = x**2 + y**2 < 0.8
    array = 300.0 * body
    array[(x / 0.7) ** 2 + (y / 0.6) ** 2 < 1] = 120
    array[(x - 0.3) ** 2 + y**2 + (z / 2) ** 2 < 0.06] = 200
    field = np.exp(bias * (np.sin(1.5 * x + 0.5) + 0.8 * np.cos(1.7 * y) + 0.4 * z))
    array = np.abs(array * field + np.random.default_rng(0).normal(0, 4, shape))
    return Volume((gain * array).astype(np.float32), np.diag([6.0, 6, 6, 1])), field, body


def test_the_body_is_found_in_mr_and_ct():
    scan, _, body = phantom()
    assert (body_mask(scan) == body).mean() > 0.97
    hu = np.where(body, 40.0, -1000.0).astype(np.float32)
    hu[4:-4, 1:2] = 20  # a table's shell
    assert (body_mask(Volume(hu, scan.affine, "HU")) == body).mean() > 0.97
    assert not body_mask(Volume(np.zeros((4, 4, 4)), np.eye(4))).any()


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_n4_takes_a_known_bias_away(profile):
    clean, _, body = phantom()
    biased, field, _ = phantom(bias=0.25)
    corrected = n4(biased, profile=profile)
    inner = ndimage.binary_erosion(body)

    def rms(scan: Volume) -> float:
        ratio = (ndimage.gaussian_filter(scan.array, 1) / ndimage.gaussian_filter(clean.array, 1))[inner]
        return float(np.std(ratio / ratio.mean()))  # the global scale means nothing in MR

    assert rms(biased) > 0.13
    assert rms(corrected) < 0.05


@pytest.mark.parametrize("anatomy, strength", [("hip", 0.15), ("hip", 0.3), ("abdomen", 0.15)])
def test_n4_leaves_less_than_5_percent_of_a_virtual_patients_bias(anatomy, strength):
    """The field that N4 finds against the one that the scan was made with, RMS of the logarithm inside the body."""
    person, sequence = {"hip": (hip_patient(2), "hip_spgr"), "abdomen": (abdomen_patient(2), "abdomen_t2star")}[anatomy]
    grid = PROFILES["quick"].grids[anatomy]["source"]
    affine = grid.affine(person.landmarks["centre"])
    options = {"noise": 0.015, "bias": strength, "supersample": (1, 1, 1)}
    scan, _ = acquisition.acquire_mr(person, grid.shape, affine, physics.SEQUENCES[sequence], 3, **options)
    body = body_mask(scan)
    true = np.log(faults.bias_field(grid.shape, affine, strength, [3, 12]))[body]
    corrected = n4(scan, profile="quick")
    found = np.log(np.maximum(scan.array, 1e-6) / np.maximum(corrected.array, 1e-6))[body]
    assert np.std(true) > 0.06
    assert np.std(found - true) < 0.05


def test_n4_leaves_a_scan_without_bias_alone():
    clean, _, body = phantom()
    ratio = (n4(clean, profile="quick").array / np.maximum(clean.array, 1e-6))[body & (clean.array > 20)]
    assert np.std(np.log(ratio)) < 0.02


def test_n4_is_deterministic_and_leaves_blank_volumes_alone():
    scan, _, _ = phantom(bias=0.2)
    np.testing.assert_array_equal(n4(scan, profile="quick").array, n4(scan, profile="quick").array)
    blank = Volume(np.zeros((8, 8, 8), np.float32), np.eye(4))
    assert n4(blank) is blank


@pytest.mark.parametrize("method", ["percentile", "zscore"])
def test_the_gain_of_an_mr_does_not_matter(method):
    first, second = (normalise_mr(phantom(gain=gain)[0], method) for gain in (1.0, 37.0))
    np.testing.assert_allclose(first.array, second.array, rtol=1e-4, atol=1e-4)


def test_mr_units_by_hand():
    scan, _, body = phantom()
    percent, sd = normalise_mr(scan, "percentile"), normalise_mr(scan, "zscore")
    assert (percent.unit, sd.unit) == ("%", "SD")
    assert np.isclose(np.percentile(percent.array[body_mask(scan)], 99.5), 100, rtol=1e-4)
    assert abs(sd.array.mean()) < 1e-4
    assert np.isclose(sd.array.std(), 1, rtol=1e-4)


def make_cohort(folder, anatomy="hip", paired=False, patients=2, landmark=True):
    """A small cohort on disk: coronal MR slab of 16 x 6 x 16 voxels of 5 x 8 x 5 mm; CT 24 x 24 x 24 of 5 mm, or MR
    like the source."""
    rng = np.random.default_rng(0)
    entries = {}
    for number in range(patients):
        for role, domain in (("s", "source"), ("t", "target")):
            id_ = f"{'p' if paired else role}{number + 1:04d}"
            ct = domain == "target" and anatomy != "head"
            shape, spacing = ((24, 24, 24), (5, 5, 5)) if ct else ((16, 6, 16), (5, 8, 5))
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
            array = rng.normal(100, 5, shape).astype(np.float32)
            array[2:-2, 1:-1, 2:-2] += 400
            if ct:
                x = (np.indices(shape).T @ np.diag(spacing) + affine[:3, 3]).T
                array = np.where((np.abs(x) < 50).all(axis=0), 40 + x[2], -1000)  # HU tell the height in mm
            write_volume(Volume(array, affine, "HU" if ct else "a.u."), folder / domain / f"{id_}.nii.gz")
            labels = (array > 300 if not ct else array > -500) * np.uint8(number + 1)
            if not paired or domain == "source":
                write_volume(Volume(labels, affine, "label"), folder / "labels" / f"{id_}.nii.gz")
            entry = entries.setdefault(id_, {"seed": number, "domains": [], "landmarks": {}})
            entry["domains"].append(domain)
            if landmark:
                entry["landmarks"] = {"centre": [0.0, 0.0, 0.0]}
    mr = {"modality": "MR", "name": "MR", "unit": "a.u."}
    target = mr if anatomy == "head" else {"modality": "CT", "name": "CT", "unit": "HU"}
    meta = {
        "format": 1, "anatomy": anatomy, "profile": "quick", "seed": 0, "domains": {"source": mr, "target": target}, "physics": {},
        "label_names": {"0": "background"}, "paired": paired, "distort_target": False, "patients": entries, "versions": {},
    }  # fmt: skip
    write_json(meta, folder / "cohort.json")
    return folder


def test_a_hip_cohort_becomes_coronal_slices_of_the_mr(tmp_path):
    slices = PreparedSlices(prepare(make_cohort(tmp_path / "c"), tmp_path / "p", progress=False))
    assert slices.meta["plane"] == "coronal"
    assert slices.meta["n4"] == {"source": True, "target": False}
    assert slices.source.shape == slices.target.shape == (12, 16, 16)
    assert slices.source.dtype == np.float32
    assert slices.labels_target.dtype == np.uint8
    assert slices.labels_source.shape == slices.labels_target.shape == (12, 16, 16)
    assert slices.valid is None
    assert slices.meta["slice_spacing"] == 8
    assert (slices.windows["source"], slices.windows["target"]) == (MR_WINDOW, CT_WINDOW)
    assert [id_ for id_, _ in slices.patients("target")] == ["t0001", "t0002"]
    # the CT's HU were 40 + height in mm: rows run from superior to inferior, 5 mm a row, on the MR's own grid
    hu = slices.windows["target"].from_network(slices.target[3, :, 8])
    np.testing.assert_allclose(hu, 40 + 37.5 - 5 * np.arange(16), atol=2.6)
    np.testing.assert_allclose(np.diff(hu), -5, atol=1.01)  # files hold whole HU


def test_a_head_cohort_is_axial_in_standard_deviations(tmp_path):
    cohort = make_cohort(tmp_path / "c", "head")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", plane="coronal", progress=False))
    assert slices.windows == {"source": ZSCORE_WINDOW, "target": ZSCORE_WINDOW}
    assert slices.meta["n4"] == {"source": False, "target": False}
    # nothing is resliced where the grids agree: the very values of the file
    scan = read_volume(cohort / "target" / "t0002.nii.gz")
    values = ZSCORE_WINDOW.to_network((scan.array - scan.array.mean()) / scan.array.std())
    np.testing.assert_allclose(slices.target[6:], slices_of(values, "coronal"), atol=1e-5)


def test_pairs_correspond_and_valid_marks_what_the_target_covers(tmp_path):
    cohort = make_cohort(tmp_path / "c", paired=True)
    scan = read_volume(cohort / "target" / "p0001.nii.gz")
    affine = scan.affine.copy()
    affine[2, 3] += 12 * 5
    upper = scan.replace(array=scan.array[:, :, 12:], affine=affine)  # the lower half was not scanned
    write_volume(upper, cohort / "target" / "p0001.nii.gz")
    write_volume(scan, cohort / "truth_source_to_target" / "p0001.nii.gz")
    write_volume(scan, cohort / "truth_source_to_target" / "p0002.nii.gz")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", progress=False))
    assert slices.valid.dtype == bool
    assert slices.valid[:6, :8].all()
    assert not slices.valid[:6, 8:].any()
    assert slices.valid[6:].all()
    assert slices.truth_source_to_target.shape == slices.source.shape
    assert slices.truth_target_to_source is None
    np.testing.assert_allclose(slices.target[:6, :8], slices.truth_source_to_target[:6, :8], atol=1e-5)
    np.testing.assert_array_equal(slices.labels_source, slices.labels_target)
    assert slices.meta["paired"] is True


def test_truth_of_some_patients_only_is_left_out(tmp_path, capsys):
    cohort = make_cohort(tmp_path / "c", paired=True)
    write_volume(read_volume(cohort / "target" / "p0001.nii.gz"), cohort / "truth_source_to_target" / "p0001.nii.gz")
    assert PreparedSlices(prepare(cohort, tmp_path / "p", progress=False)).truth_source_to_target is None
    assert "some patients" in capsys.readouterr().out


def test_processes_give_the_same_arrays_as_one(tmp_path):
    cohort = make_cohort(tmp_path / "c", patients=8)
    one, two = (prepare(cohort, tmp_path / f"p{n}", workers=n, progress=False) for n in (1, 2))
    for name in ("source", "target", "labels_source"):
        assert (one / f"{name}.npy").read_bytes() == (two / f"{name}.npy").read_bytes()
    assert (one / "prepared.json").read_text() == (two / "prepared.json").read_text()


def test_size_keeps_the_field_of_view(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", size=32, progress=False))
    assert slices.source.shape == (12, 32, 32)
    assert slices.meta["spacing"] == [2.5, 2.5]


def test_windows_can_be_given_in_the_right_unit_only(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    wide = Window(-1000, 1000, "HU")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", target_window=wide, progress=False))
    assert slices.windows["target"] == wide
    with pytest.raises(InputError, match="source_window: is in HU"):
        prepare(cohort, tmp_path / "q", source_window=wide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"profile": "fast"}, "profile"), ({"plane": "oblique"}, "plane"), ({"size": 8}, "size")],
)
def test_bad_arguments_are_named_and_leave_nothing(tmp_path, arguments, message):
    cohort = make_cohort(tmp_path / "c")
    with pytest.raises(InputError, match=message):
        prepare(cohort, tmp_path / "p", **arguments)
    assert not (tmp_path / "p").exists()


def test_a_bad_scan_is_named_and_leaves_nothing(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    (cohort / "source" / "s0002.nii.gz").write_text("no image")
    with pytest.raises(InputError, match=r"s0002\.nii\.gz"):
        prepare(cohort, tmp_path / "p", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_full_disk_leaves_the_old_folder(tmp_path, monkeypatch):
    cohort = make_cohort(tmp_path / "c")
    prepare(cohort, tmp_path / "p", progress=False)
    before = (tmp_path / "p" / "source.npy").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(preparation, "_join", full)
    with pytest.raises(InputError, match="No space left"):
        prepare(cohort, tmp_path / "p", size=32, progress=False)
    assert (tmp_path / "p" / "source.npy").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "p"]


def test_a_folder_with_other_things_is_not_overwritten(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="thesis"):
        prepare(cohort, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_a_patient_outside_the_field_of_view_is_left_out_and_named(tmp_path, capsys):
    cohort = make_cohort(tmp_path / "c")
    scan = read_volume(cohort / "target" / "t0001.nii.gz")
    away = scan.affine.copy()
    away[0, 3] += 5000
    write_volume(scan.replace(affine=away), cohort / "target" / "t0001.nii.gz")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", progress=False))
    assert [id_ for id_, _ in slices.patients("target")] == ["t0002"]
    assert slices.target.shape[0] == 6
    assert "t0001" in capsys.readouterr().out


def test_blank_slices_are_kept(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    scan = read_volume(cohort / "source" / "s0001.nii.gz")
    scan.array[:, 0] = 0
    write_volume(scan, cohort / "source" / "s0001.nii.gz")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", progress=False))
    assert np.ptp(slices.source[0]) == 0
    assert len(slices.source) == 12


def test_real_unpaired_folders_of_unlike_grids(real_data, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "source").symlink_to(real_data / "mr")  # their label maps lie among the scans
    (tmp_path / "own" / "target").symlink_to(real_data / "ct")
    slices = PreparedSlices(prepare(tmp_path / "own", tmp_path / "p", progress=False))
    assert slices.meta["plane"] == "axial"
    assert slices.source.shape == (20, 92, 120)
    assert slices.target.shape == (30 + 112, 92, 120)
    assert slices.windows["target"] == WHOLE_BODY_WINDOW
    hu = WHOLE_BODY_WINDOW.from_network(slices.target[:30])
    scan = read_volume(real_data / "ct" / "abdomen_ct_small.nii.gz")
    assert abs(np.median(hu[hu > -200]) - np.median(scan.array[scan.array > -200])) < 5
    middle = np.argwhere(hu > -200)[:, 1:].mean(axis=0)
    np.testing.assert_allclose(middle, [45.5, 59.5], atol=4)  # the body lies in the middle of the slices
