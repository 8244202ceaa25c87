"""Preparation: how scans become slices and slices become scans, and cohorts that become prepared slices."""

import errno
import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mr2ct_lib.files import InputError, read_json, write_json
from mr2ct_lib.images import prepare as preparing
from mr2ct_lib.images.intensity import CT_WINDOW, HEAD_WINDOWS, MR_WINDOW, WHOLE_BODY_WINDOW, Window
from mr2ct_lib.images.preparation import Preparation
from mr2ct_lib.images.prepare import prepare
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import Volume, read_volume, reslice, slices_of, write_volume
from mr2ct_lib.methods.synthesis import synthesize
from mr2ct_lib.patients.cohort import make_cohort as scan_patients


def make_cohort(folder, anatomy="hip", paired=False, patients=2, landmark=True):
    """A small cohort on disk: coronal MR slab of 16 x 6 x 16 voxels of 5 x 8 x 5 mm; CT 24 x 24 x 24 of 5 mm, or MR
    like the source."""
    rng = np.random.default_rng(0)
    entries = {}
    for number in range(patients):
        for role, domain in (("s", "source"), ("t", "target")):
            id_ = f"{'p' if paired else role}{number + 1:04d}"
            ct = domain == "target" and not anatomy.startswith("head")
            shape, spacing = ((24, 24, 24), (5, 5, 5)) if ct else ((16, 6, 16), (5, 8, 5))
            affine = np.diag([*spacing, 1.0])
            affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
            array = rng.normal(100, 5, shape).astype(np.float32)
            array[2:-2, :, 2:-2] += 400
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
    target = mr if anatomy.startswith("head") else {"modality": "CT", "name": "CT", "unit": "HU"}
    meta = {
        "format": 1, "anatomy": anatomy, "profile": "quick", "seed": 0, "domains": {"source": mr, "target": target},
        "physics": {},
        "label_names": {str(n): f"patient {n}" for n in range(9)}, "paired": paired, "distort_target": False,
        "patients": entries, "versions": {},
    }  # fmt: skip
    write_json(meta, folder / "cohort.json")
    return folder


def test_a_hip_cohort_becomes_coronal_slices_of_the_mr(tmp_path):
    slices = PreparedSlices(prepare(make_cohort(tmp_path / "c"), tmp_path / "p", progress=False))
    assert slices.preparation.plane == "coronal"
    assert slices.preparation.n4 == {"source": True, "target": False}
    assert slices.source.shape == slices.target.shape == (12, 16, 16)
    assert slices.source.dtype == np.float32
    assert slices.labels_target.dtype == np.uint8
    assert slices.labels_source.shape == slices.labels_target.shape == (12, 16, 16)
    assert slices.valid is None
    assert slices.preparation.slice_spacing == 8
    assert (slices.windows["source"], slices.windows["target"]) == (MR_WINDOW, CT_WINDOW)
    assert [id_ for id_, _ in slices.patients("target")] == ["t0001", "t0002"]
    # the CT's HU were 40 + height in mm: rows run from superior to inferior, 5 mm a row, on the MR's own grid
    hu = slices.windows["target"].from_network(slices.target[3, :, 8])
    np.testing.assert_allclose(hu, 40 + 37.5 - 5 * np.arange(16), atol=2.6)
    np.testing.assert_allclose(np.diff(hu), -5, atol=1.01)  # files hold whole HU


@pytest.mark.parametrize("anatomy", ["head", "head_t1"])
def test_a_head_cohort_is_axial_in_standard_deviations(tmp_path, anatomy):
    cohort = make_cohort(tmp_path / "c", anatomy)
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", plane="coronal", progress=False))
    assert slices.windows == HEAD_WINDOWS
    assert slices.preparation.n4 == {"source": False, "target": False}
    # nothing is resliced where the grids agree: the very values of the file
    scan = read_volume(cohort / "target" / "t0002.nii.gz")
    values = HEAD_WINDOWS["target"].to_network((scan.array - scan.array.mean()) / scan.array.std())
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
    nothing = scan.replace(array=np.zeros(scan.array.shape, np.uint8), unit="label")
    write_volume(nothing, cohort / "labels_target" / "p0002.nii")  # not packed
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", progress=False))
    assert slices.labels_source[6:].any() and not slices.labels_target[6:].any()


def smaller(scan: Volume) -> Volume:
    """The scan without its outermost voxels in the plane of the slices, of a coronal and of an axial slice."""
    return Volume(scan.array[3:-1, :, 2:-1], scan.affine @ move(3, 0, 2), scan.unit)


def larger(scan: Volume) -> Volume:
    """The scan with much air around, more on one side."""
    air = -1000 if scan.unit == "HU" else 0
    padded = np.pad(scan.array, [(30, 11), (2, 5), (9, 14)], constant_values=air)
    return Volume(padded, scan.affine @ move(-30, -2, -9), scan.unit)


def oblique(scan: Volume) -> Volume:
    """The scan in a patient who lies turned by 17 and 9 degrees."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("zx", [17, 9], degrees=True).as_matrix()
    return scan.replace(affine=turn @ scan.affine)


def finer(scan: Volume) -> Volume:
    """The scan with voxels of other sizes."""
    shape = tuple(int(n * factor) for n, factor in zip(scan.array.shape, (1.3, 1.9, 1.25), strict=True))
    step = np.array(scan.array.shape) / shape
    return reslice(scan, shape, scan.affine @ np.diag([*step, 1]))


def body_of_several_fields(scan: Volume) -> Volume:
    """The scan repeated side by side: a body far larger than the training's field of view."""
    return Volume(np.tile(scan.array, (3, 1, 2)), scan.affine, scan.unit)


def move(*voxels: float) -> np.ndarray:
    """The affine of a shift by so many voxels."""
    matrix = np.eye(4)
    matrix[:3, 3] = voxels
    return matrix


@pytest.mark.parametrize("change", [None, smaller, larger, oblique, finer, body_of_several_fields])
@pytest.mark.parametrize("anatomy", ["hip", "head", "abdomen"])
def test_prepare_writes_the_slices_that_synthesize_feeds_to_the_networks(tmp_path, anatomy, change):
    """Bit for bit, in both directions, also for a scan of another field of view, spacing and direction than the others.
    """
    cohort = make_cohort(tmp_path / "c", anatomy, patients=3)
    for path in (cohort / "source" / "s0002.nii.gz", cohort / "target" / "t0002.nii.gz"):
        scan = read_volume(path)
        if change:
            write_volume(change(scan), path)
            (cohort / "labels" / path.name).unlink()
    prepared = PreparedSlices(prepare(cohort, tmp_path / "p", plane="coronal", progress=False))
    preparation = Preparation.from_dict(json.loads(json.dumps(prepared.preparation.as_dict())))
    assert preparation == prepared.preparation
    for domain in ("source", "target"):
        fed = []
        translator = SimpleNamespace(
            preparation=preparation,
            translate=lambda slices, *_, fed=fed, **__: fed.append(slices.copy()) or slices,
            training_data=None,
        )
        for id_, where in prepared.patients(domain):
            synthesize(read_volume(cohort / domain / f"{id_}.nii.gz"), translator, reverse=domain == "target")
            written, here = np.asarray(getattr(prepared, domain)[where]), {one.tobytes() for one in fed[-1]}
            assert len(written) and {one.tobytes() for one in written} <= here
            if change is None and domain == "source":  # the toy CT holds more than the MR's field of view
                np.testing.assert_array_equal(written, fed[-1])


@pytest.mark.parametrize("anatomy", ["hip", "head", "abdomen"])
def test_virtual_scans_are_prepared_as_they_are_synthesised(tmp_path, anatomy):
    """A training CT of a hip is stored as a block around the MR's field of view: the middle of the body is the same."""
    cohort = scan_patients(anatomy, tmp_path / "c", 1, seed=5, workers=1, progress=False)
    prepared = PreparedSlices(prepare(cohort.folder, tmp_path / "p", progress=False))
    for domain, (path,) in (("source", cohort.source.values()), ("target", cohort.target.values())):
        slices, place = prepared.preparation.to_slices(read_volume(path), domain)
        np.testing.assert_array_equal(getattr(prepared, domain), slices[place.training])
        middle = cohort.meta["patients"][path.name[:5]]["landmarks"]["centre"]
        shape, affine = place.field
        away = affine @ [*((np.array(shape) - 1) / 2), 1] - [*middle, 1]
        assert np.abs(away).max() < (0.01 if anatomy == "hip" else 15)  # mm from where the radiographer aimed


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
    assert slices.preparation.pixel == 2.5


@pytest.mark.parametrize(("size", "pixels"), [(50, 52), (17, 20), (64, 64)])
def test_a_size_that_is_no_multiple_of_4_gets_smaller_pixels_and_keeps_the_field_of_view(size, pixels, tmp_path):
    cohort = make_cohort(tmp_path / "c")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", size=size, progress=False))
    assert slices.source.shape == (12, pixels, pixels)
    assert slices.preparation.pixel * pixels == pytest.approx(80)


def test_windows_can_be_given_in_the_right_unit_only(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    wide = Window(-1000, 200, "HU")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", target_window=wide, progress=False))
    assert slices.windows["target"] == wide
    with pytest.raises(InputError, match="source_window: is in HU"):
        prepare(cohort, tmp_path / "q", source_window=wide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "fast"}, "profile"), ({"plane": "oblique"}, "plane"), ({"size": 8}, "size"),
        ({"size": 0}, "size: 0; expected 16 to"), ({"size": 100_000}, "size: 100000; expected 16 to"),
        ({"size": (64, 0)}, "size"),
    ],  # fmt: skip
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

    monkeypatch.setattr(preparing, "_join", full)
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


def test_a_patient_whose_scan_shows_nothing_is_left_out_and_named(tmp_path, capsys):
    cohort = make_cohort(tmp_path / "c")
    scan = read_volume(cohort / "target" / "t0001.nii.gz")
    air = np.full_like(scan.array, -1000)
    air[12, 12, 12] = 40
    write_volume(scan.replace(array=air), cohort / "target" / "t0001.nii.gz")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", progress=False))
    assert [id_ for id_, _ in slices.patients("target")] == ["t0002"]
    assert slices.target.shape[0] == 6
    assert "t0001" in capsys.readouterr().out


def test_blank_slices_are_dropped(tmp_path, capsys):
    cohort = make_cohort(tmp_path / "c")
    scan = read_volume(cohort / "source" / "s0001.nii.gz")
    scan.array[:, 0] = 0
    write_volume(scan, cohort / "source" / "s0001.nii.gz")
    slices = PreparedSlices(prepare(cohort, tmp_path / "p", progress=False))
    assert len(slices.source) == len(slices.labels_source) == 11
    assert slices.patients("source") == [("s0001", slice(0, 5)), ("s0002", slice(5, 11))]
    row = slices.meta["patients"]["source"][0]
    places = [np.array(row["affine"]) @ [0, number, 0, 1] for number in row["slices"]]
    np.testing.assert_allclose(places, [scan.affine @ [0, number, 0, 1] for number in range(1, 6)])
    assert "source: 1 slice dropped: nothing shows there" in capsys.readouterr().out


def test_real_unpaired_folders_of_unlike_grids(real_data, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "source").symlink_to(real_data / "mr")  # their label maps lie among the scans
    (tmp_path / "own" / "target").symlink_to(real_data / "ct")
    slices = PreparedSlices(prepare(tmp_path / "own", tmp_path / "p", progress=False))
    assert slices.preparation.plane == "axial"
    assert slices.source.shape == (20, 92, 120)
    assert slices.target.shape == (30 + 112, 92, 120)
    assert slices.windows["target"] == WHOLE_BODY_WINDOW
    hu = WHOLE_BODY_WINDOW.from_network(slices.target[:30])
    scan = read_volume(real_data / "ct" / "abdomen_ct_small.nii.gz")
    assert abs(np.median(hu[hu > -200]) - np.median(scan.array[scan.array > -200])) < 5
    middle = np.argwhere(hu > -200)[:, 1:].mean(axis=0)
    np.testing.assert_allclose(middle, [45.5, 59.5], atol=4)  # the body lies in the middle of the slices


def test_prepare_says_which_modality_it_took_and_what_the_windows_cut(tmp_path, capsys):
    prepare(make_cohort(tmp_path / "c"), tmp_path / "p", progress=False)
    said = capsys.readouterr().out
    assert "source: MR, s0001.nii.gz: its values" in said and "target: CT, t0001.nii.gz: it is in HU" in said
    assert "source: 0.5% of the body lies beyond the window of 0 to 100 %" in said


def test_a_given_modality_is_believed(tmp_path, capsys):
    cohort = make_cohort(tmp_path / "c", "head")
    for path in (cohort / "source").iterdir():
        scan = read_volume(path)
        write_volume(scan.replace(array=scan.array - 400), path)  # an MR that lost its mean reaches down to -300
    with pytest.raises(InputError, match="looks like a CT .*name the modality if it is MR"):
        prepare(cohort, tmp_path / "p", plane="coronal", progress=False)
    with pytest.raises(InputError, match="source_modality: 'PET'; expected one of CT, MR"):
        prepare(cohort, tmp_path / "p", plane="coronal", source_modality="PET", progress=False)
    prepare(cohort, tmp_path / "p", plane="coronal", source_modality="MR", progress=False)
    assert "source: MR, as given" in capsys.readouterr().out


@pytest.mark.parametrize("top", [1, 255])
def test_a_ct_on_another_scale_is_no_ct_although_it_was_given_as_one(top, tmp_path):
    cohort = make_cohort(tmp_path / "c")
    for path in (cohort / "target").iterdir():
        scan = read_volume(path)
        scaled = np.clip((scan.array + 1000) / 2500, 0, 1) * top
        write_volume(scan.replace(array=scaled, unit="a.u."), path)
    with pytest.raises(InputError, match="looks like MR .*expected CT as target. Bring it to HU"):
        prepare(cohort, tmp_path / "p", target_modality="CT", progress=False)


def test_labels_of_no_scan_are_said(tmp_path, capsys):
    cohort = make_cohort(tmp_path / "c")
    (cohort / "labels/stray_labels.nii.gz").write_bytes(b"")
    prepare(cohort, tmp_path / "p", progress=False)
    assert "no scan is called like stray_labels.nii.gz" in capsys.readouterr().out


@pytest.mark.parametrize("padding", [-1500, -3024])
def test_what_was_not_measured_is_air(padding):
    rng = np.random.default_rng(0)
    hu = np.full((40, 40, 6), -1000.0, np.float32)
    hu[10:40, 8:32] = rng.normal(40, 10, (30, 24, 6))  # a body that the field of view cuts
    preparation = Preparation("axial", 2.5, (32, 32), 3.0, {"source": MR_WINDOW, "target": CT_WINDOW})
    slices = []
    for air in (-1000, padding):
        padded = np.pad(hu, ((0, 25), (0, 0), (0, 0)), constant_values=air)
        slices.append(preparation.to_slices(Volume(padded, np.diag([2.0, 2, 3, 1])), "target")[0])
    np.testing.assert_array_equal(*slices)


def test_a_window_that_cuts_nearly_everything_is_refused(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    with pytest.raises(InputError, match="target_window: 100.0% of the body lies beyond the window of 2000 to 3000 HU"):
        prepare(cohort, tmp_path / "p", target_window=Window(2000, 3000, "HU"), progress=False)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("change", [lambda x: (x - x.mean()) / x.std(), lambda x: x - 50.0])
def test_an_mr_below_zero_gives_the_slices_of_the_mr_that_it_was(tmp_path, capsys, change):
    """But for the gain, which does not matter: z-scored, or without its offset; never half of it black."""
    cohorts = make_cohort(tmp_path / "a"), make_cohort(tmp_path / "b")
    for cohort, function in zip(cohorts, (lambda x: x, change), strict=True):
        for path in (cohort / "source").iterdir():
            scan = read_volume(path)
            values = np.where(scan.array > 300, scan.array, 0)
            write_volume(scan.replace(array=function(values).astype(np.float32)), path)
    before, after = (PreparedSlices(prepare(one, one / "p", n4=False, progress=False)) for one in cohorts)
    np.testing.assert_allclose(before.source, after.source, atol=1e-3)
    assert "source: values of 2 scans reach below zero" in capsys.readouterr().out


def test_zeros_around_an_mr_that_was_z_scored_in_a_mask_are_air():
    """They would otherwise be as bright as its middle tissue."""
    rng = np.random.default_rng(0)
    mr = np.zeros((24, 24, 6), np.float32)
    mr[4:20, 4:20] = rng.uniform(50, 300, (16, 16, 6))
    inside = mr > 0
    masked = np.where(inside, (mr - mr[inside].mean()) / mr[inside].std(), 0)
    preparation = Preparation("axial", 2.0, (24, 24), 3.0, {"source": MR_WINDOW, "target": CT_WINDOW})
    slices, place = preparation.to_slices(Volume(masked, np.diag([2.0, 2, 3, 1])), "source")
    assert place.shifted
    body = np.moveaxis(inside, 2, 0)
    assert (slices[~body] == -1).all() and slices[body].mean() > -0.2


def offset_ct(cohort):
    """The cohort with HU + 1024 in its target scans: air at 24, tissue around 1064, a bit of bone."""
    for path in (cohort / "target").iterdir():
        scan = read_volume(path)
        values = scan.array + 1024
        values[12, 12, 10:14] = 1600
        write_volume(scan.replace(array=np.round(values), unit="a.u."), path)
    return cohort


def test_ct_with_an_offset_of_1024_is_recognised(tmp_path):
    cohort = offset_ct(make_cohort(tmp_path / "c"))
    for window in (None, CT_WINDOW):
        with pytest.raises(InputError, match="t0001.nii.gz: looks like CT stored with an offset of 1024"):
            prepare(cohort, tmp_path / "p", target_window=window, progress=False)


def test_virtual_scans_are_what_their_cohort_says(tmp_path):
    """The PD image of a virtual head may have the values of a CT with an offset."""
    cohort = make_cohort(tmp_path / "c", "head")
    for path in (cohort / "source").iterdir():
        scan = read_volume(path)
        values = np.where(scan.array > 300, 1060.0, 0.0)
        values[8, 3, 8] = 1400
        write_volume(scan.replace(array=values.astype(np.float32)), path)
    with pytest.raises(InputError, match="looks like CT stored with an offset of 1024"):
        prepare(cohort, tmp_path / "p", plane="coronal", progress=False)
    write_json(read_json(cohort / "cohort.json") | {"settings": {}}, cohort / "cohort.json")
    for given in ({}, {"target_modality": "MR"}, {"source_modality": "MR"}):
        slices = PreparedSlices(prepare(cohort, tmp_path / "p", plane="coronal", progress=False, **given))
        assert slices.windows["source"].unit == "SD"
    for argument in ("source_modality", "target_modality"):
        with pytest.raises(InputError, match=rf"{argument}: CT; expected MR, as .*cohort\.json says"):
            prepare(cohort, tmp_path / "p", plane="coronal", progress=False, **{argument: "CT"})


def test_label_values_without_a_name_are_refused(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    meta = read_json(cohort / "cohort.json")
    for names, known in (({}, True), ({"1": "a", "2": "b", "7": "nowhere"}, True), ({"2": "body"}, False)):
        write_json(meta | {"label_names": names}, cohort / "cohort.json")
        with nullcontext() if known else pytest.raises(
            InputError, match=r"s0001.nii.gz: holds 1 value without a name \(1\); expected those of names.json"
        ):
            prepare(cohort, tmp_path / "p", progress=False)


def test_labels_on_another_grid_are_refused(tmp_path):
    cohort = make_cohort(tmp_path / "c")
    labels = read_volume(cohort / "labels" / "t0001.nii.gz", "label")
    for affine in (np.eye(4), labels.affine @ move(3, 0, 0)):
        write_volume(labels.replace(affine=affine), cohort / "labels" / "t0001.nii.gz")
        with pytest.raises(
            InputError, match="t0001.nii.gz: lies on another grid .*24 x 24 x 24 voxels.* than its target scan"
        ):
            prepare(cohort, tmp_path / "p", progress=False)
    write_volume(labels.replace(affine=labels.affine + 1e-3), cohort / "labels" / "t0001.nii.gz")
    prepare(cohort, tmp_path / "p", progress=False)  # a header that was rounded
