"""Commands on scans: folders of scans, several translators, pictures, inspection, registration, and outputs that
destroy nothing."""

import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
from commands import TINY, files
from PIL import Image

from mr2ct_lib import cli
from mr2ct_lib.cli.inspection import values_look_like
from mr2ct_lib.cli.outputs import quoted, with_ending
from mr2ct_lib.cli.synthesizing import _fingerprint, mean_and_spread, scans_of
from mr2ct_lib.files import InputError
from mr2ct_lib.images.dicom import write_dicom_series
from mr2ct_lib.images.folders import modality_and_reason, scans_in
from mr2ct_lib.images.volumes import Volume, read_volume, write_volume
from mr2ct_lib.methods.distributed import LostProcess


@pytest.fixture
def scans(chain, tmp_path):
    """A folder of two good scans and a damaged one, between them a label map."""
    folder = tmp_path / "my scans"
    folder.mkdir()
    for name in ("anna", "bert"):
        shutil.copy(chain / "cohort/source/s0001.nii.gz", folder / f"{name}.nii.gz")
    shutil.copy(chain / "cohort/labels/t0001.nii.gz", folder / "anna_labels.nii.gz")
    (folder / "carl.nii.gz").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def other(chain):
    """A second translator of the same slices: another seed."""
    with pytest.MonkeyPatch.context() as patch:
        words = [
            "train",
            "cyclegan",
            "--data",
            chain / "prepared",
            "--out",
            chain / "other",
            *TINY,
            "--set",
            "iterations=2",
            "--seed",
            8,
        ]
        patch.setattr(sys, "argv", ["mr2ct", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    return chain / "other"


# ---- folders of scans


def test_a_folder_is_synthesized_and_failures_come_last(chain, scans, mr2ct, tmp_path):
    words = ["synthesize", chain / "run", scans, "--out", tmp_path / "ct"]
    code, out, err = mr2ct(*words)
    assert code == 1 and "2 synthesized, 0 there already, 1 failed" in out
    assert "carl: " in err and "not a readable NIfTI" in err and "anna_labels" not in out + err
    assert sorted(path.name for path in (tmp_path / "ct").iterdir()) == ["anna.nii.gz", "bert.nii.gz", "synthesis.json"]
    single = tmp_path / "one.nii.gz"
    assert mr2ct("synthesize", chain / "run", scans / "anna.nii.gz", "--out", single)[0] == 0
    np.testing.assert_array_equal(read_volume(tmp_path / "ct/anna.nii.gz").array, read_volume(single).array)
    (scans / "carl.nii.gz").unlink()
    before = files(tmp_path / "ct")
    code, out, _ = mr2ct(*words)
    assert code == 0 and "0 synthesized, 2 there already, 0 failed" in out and files(tmp_path / "ct") == before


def test_a_scan_with_other_bytes_is_done_again_whatever_its_time(chain, scans, mr2ct, tmp_path):
    (scans / "carl.nii.gz").unlink()
    words = ["synthesize", chain / "run", scans, "--out", tmp_path / "ct"]
    assert mr2ct(*words)[0] == 0
    other = read_volume(scans / "bert.nii.gz")
    write_volume(other.replace(array=other.array[::-1].copy()), scans / "bert.nii.gz")
    os.utime(scans / "bert.nii.gz", (1, 1))  # as a copy of an older file
    before = (tmp_path / "ct/bert.nii.gz").read_bytes()
    assert "1 synthesized, 1 there already" in mr2ct(*words)[1]
    assert (tmp_path / "ct/bert.nii.gz").read_bytes() != before
    for path in scans.iterdir():  # as a copied folder
        path.touch()
    assert "0 synthesized, 2 there already" in mr2ct(*words)[1]


def test_results_with_and_without_spin_never_mix(chain, scans, mr2ct, tmp_path):
    words = ["synthesize", chain / "run", scans, "--out", tmp_path / "ct"]
    mr2ct(*words)
    code, _, err = mr2ct(*words, "--spin")
    assert code == 2 and "of other options" in err


def test_results_of_two_translators_never_mix(chain, other, scans, mr2ct, tmp_path):
    (scans / "carl.nii.gz").unlink()
    assert mr2ct("synthesize", chain / "run", scans, "--out", tmp_path / "ct")[0] == 0
    before = files(tmp_path / "ct")
    code, _, err = mr2ct("synthesize", other, scans, "--out", tmp_path / "ct")
    assert code == 2 and "other translators" in err and files(tmp_path / "ct") == before
    code, out, _ = mr2ct("synthesize", other, scans, "--out", tmp_path / "ct", "--overwrite")
    assert code == 0 and "2 synthesized, 0 there already" in out


@pytest.mark.parametrize("form", [(), ("--dicom",)])
def test_no_result_of_other_translators_stays_where_a_scan_is_refused(form, chain, other, scans, mr2ct, tmp_path):
    (scans / "carl.nii.gz").unlink()
    mr = read_volume(scans / "bert.nii.gz")
    noise = np.random.default_rng(0).uniform(90, 100, mr.array.shape).astype(np.float32)
    write_volume(mr.replace(array=noise), scans / "bert.nii.gz")
    words = [scans, "--out", tmp_path / "ct", *form]
    assert mr2ct("synthesize", chain / "run", *words)[0] == 0
    places = [tmp_path / "ct" / (name if form else f"{name}.nii.gz") for name in ("anna", "bert")]
    assert all(place.exists() for place in places)
    code, _, err = mr2ct("synthesize", other, *words, "--strict", "--overwrite")
    assert code == 1 and "bert: " in err and [place.exists() for place in places] == [True, False]


def test_strict_never_takes_over_results_that_it_would_refuse(chain, scans, mr2ct, tmp_path):
    words = ["synthesize", chain / "run", scans, "--out", tmp_path / "ct"]
    mr2ct(*words)
    before = files(tmp_path / "ct")
    code, _, err = mr2ct(*words, "--strict")
    assert code == 2 and "of other options" in err and files(tmp_path / "ct") == before


def detached(kind: str, voxels: np.ndarray, folder) -> None:
    """Write scan.mhd or scan.nrrd, whose voxels lie in voxels.bin."""
    size = " ".join(map(str, voxels.shape))
    headers = {
        "mhd": f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementType = MET_SHORT\n"
        "ElementSpacing = 1 1 1\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = voxels.bin\n",
        "nrrd": f"NRRD0004\ntype: short\ndimension: 3\nsizes: {size}\nspace: left-posterior-superior\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\ndata file: voxels.bin\n",
    }
    (folder / f"scan.{kind}").write_text(headers[kind])
    (folder / "voxels.bin").write_bytes(voxels.astype("<i2").tobytes(order="F"))


@pytest.mark.parametrize("kind", ["mhd", "nrrd"])
def test_a_fingerprint_holds_voxels_in_a_file_of_any_name(kind, tmp_path):
    voxels = np.arange(24).reshape(2, 3, 4)
    detached(kind, voxels, tmp_path)
    first = _fingerprint(tmp_path / f"scan.{kind}")
    assert first is not None and _fingerprint(tmp_path / f"scan.{kind}") == first
    voxels[1, 1, 1] += 1
    detached(kind, voxels, tmp_path)
    assert _fingerprint(tmp_path / f"scan.{kind}") not in (None, first)
    (tmp_path / "voxels.bin").unlink()
    assert _fingerprint(tmp_path / f"scan.{kind}") is None


def test_scans_whose_files_would_share_a_name_are_refused_before_the_work(chain, other, scans, mr2ct, tmp_path):
    (scans / "carl.nii.gz").unlink()
    (scans / "bert.nii.gz").rename(scans / "anna_spread.nii.gz")
    two = ["synthesize", scans, "--translator", chain / "run", "--translator", other, "--out", tmp_path / "two"]
    code, _, err = mr2ct(*two)
    assert code == 2 and "anna_spread.nii.gz: would be written for" in err and not (tmp_path / "two").exists()
    one = ["synthesize", chain / "run", scans, "--out", tmp_path / "one"]
    assert mr2ct(*one)[0] == 0  # no spread is written: both names are free
    mr = read_volume(scans / "anna.nii.gz")
    write_volume(mr.replace(array=mr.array[::-1].copy()), scans / "anna.nii.gz")
    assert "1 synthesized, 1 there already" in mr2ct(*one)[1] and (tmp_path / "one/anna_spread.nii.gz").exists()


def test_results_are_not_translated_in_their_own_place(chain, scans, mr2ct, tmp_path):
    mr2ct("synthesize", chain / "run", scans, "--out", tmp_path / "ct")
    before = files(tmp_path / "ct")
    code, _, err = mr2ct("synthesize", chain / "run", tmp_path / "ct", "--out", tmp_path / "ct")
    assert code == 2 and "is the input" in err and files(tmp_path / "ct") == before


def test_results_go_into_no_folder_that_holds_other_things(chain, scans, mr2ct, tmp_path):
    for place in (scans, tmp_path):
        before = files(tmp_path)
        assert mr2ct("synthesize", chain / "run", scans, "--out", place)[0] == 2
        assert files(tmp_path) == before


def test_a_dicom_series_is_one_scan_and_folders_of_series_are_many(tmp_path):
    write_volume(Volume(np.arange(8.0).reshape(2, 2, 2), np.eye(4)), tmp_path / "many/a.nii.gz")
    assert scans_of(tmp_path / "many/a.nii.gz") is None
    assert list(scans_of(tmp_path / "many")) == ["a"]
    (tmp_path / "patients/one").mkdir(parents=True)
    assert scans_of(tmp_path / "patients") is None  # perhaps one patient's series in a folder of its own
    (tmp_path / "patients/two").mkdir()
    assert list(scans_of(tmp_path / "patients")) == ["one", "two"]
    series = tmp_path / os.fsdecode("Müller".encode("latin-1"))
    write_dicom_series(Volume(np.arange(8.0).reshape(2, 2, 2), np.eye(4), "HU"), series)
    (series / "more").mkdir()
    (series / "other").mkdir()
    assert scans_of(series) is None


def test_a_result_has_the_forms_of_its_scan(chain, mr2ct, tmp_path):
    """sform and qform differ: viewers that believe either one must see the synthetic CT on its MR."""
    image = nib.load(chain / "cohort/source/s0001.nii.gz")
    moved = image.affine.copy()
    moved[:3, 3] += [10, 20, 30]
    image.header.set_sform(moved, 2)
    image.header.set_qform(image.affine, 1)
    nib.save(nib.Nifti1Image(image.get_fdata(), moved, image.header), tmp_path / "scan.nii.gz")
    assert mr2ct("synthesize", chain / "run", tmp_path / "scan.nii.gz", "--out", tmp_path / "ct.nii.gz")[0] == 0
    scan, ct = (nib.load(tmp_path / name) for name in ("scan.nii.gz", "ct.nii.gz"))
    for form in ("get_sform", "get_qform"):
        (first, code), (second, same) = (getattr(one.header, form)(coded=True) for one in (scan, ct))
        assert code == same
        np.testing.assert_array_equal(first, second)
    assert not np.allclose(ct.get_sform(), ct.get_qform())


def test_a_dicom_scan_becomes_a_dicom_ct_on_its_place(chain, mr2ct, tmp_path):
    scan = read_volume(chain / "cohort/source/s0001.nii.gz")
    write_dicom_series(scan.replace(unit="HU"), tmp_path / "mr")
    for path in (tmp_path / "mr").iterdir():
        image = pydicom.dcmread(path)
        image.Modality, image.SOPClassUID, image.PatientID = "MR", pydicom.uid.MRImageStorage, "P7"
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.save_as(path)
    patients = []
    for out, option in (("anonymous/", ()), ("kept/", ("--keep-patient",))):
        assert mr2ct("synthesize", chain / "run", tmp_path / "mr", "--out", f"{tmp_path}/{out}", *option)[0] == 0
        ct = read_volume(tmp_path / out)
        assert ct.unit == "HU" and ct.array.shape == scan.array.shape
        np.testing.assert_allclose(ct.affine, scan.affine, atol=1e-4)
        header = pydicom.dcmread(next((tmp_path / out).iterdir()))
        assert header.FrameOfReferenceUID == image.FrameOfReferenceUID
        patients.append(header.PatientID == "P7" and header.StudyInstanceUID == image.StudyInstanceUID)
    assert patients == [False, True]
    code, _, err = mr2ct("synthesize", chain / "run", tmp_path / "kept", "--out", f"{tmp_path}/mr2/", "--reverse")
    assert code == 2 and "gives MR in %; expected CT in HU" in err and not (tmp_path / "mr2").exists()


def test_the_image_is_written_without_streams_to_speak_to(chain, tmp_path):
    """A scheduler or a desktop starts commands whose standard streams are closed."""
    words = ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "ct.nii.gz"]
    closed = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "mr2ct_lib.cli", *map(str, words)]
    assert subprocess.run(closed).returncode == 0
    assert read_volume(tmp_path / "ct.nii.gz").unit == "HU"


# ---- several translators


def test_several_translators_give_their_mean_and_spread(chain, other, mr2ct, tmp_path):
    scan = chain / "cohort/source/s0001.nii.gz"
    each = []
    for name in ("run", "other"):
        assert mr2ct("synthesize", chain / name, scan, "--out", tmp_path / f"{name}.nii.gz")[0] == 0
        each.append(nib.load(tmp_path / f"{name}.nii.gz").get_fdata())
    words = ["synthesize", chain / "run", scan, "--translator", other, "--out", tmp_path / "ct.nii.gz"]
    code, out, _ = mr2ct(*words)
    assert code == 0 and "spread of 2 translators" in out
    mean, spread = (nib.load(tmp_path / name).get_fdata() for name in ("ct.nii.gz", "ct_spread.nii.gz"))
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1.01)  # each file is rounded to whole HU
    np.testing.assert_allclose(spread, np.std(each, axis=0, ddof=1), atol=1.01)
    assert spread.max() > 10
    alone = [
        "synthesize",
        "--translator",
        chain / "run",
        "--translator",
        other,
        scan,
        "--out",
        tmp_path / "same.nii.gz",
    ]
    assert mr2ct(*alone)[0] == 0
    np.testing.assert_array_equal(nib.load(tmp_path / "same.nii.gz").get_fdata(), mean)


def test_one_translator_given_twice_has_no_spread_and_is_refused(chain, mr2ct, tmp_path):
    shutil.copytree(chain / "run/translator", tmp_path / "copy")
    words = ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--translator", tmp_path / "copy"]
    code, _, err = mr2ct(*words, "--out", tmp_path / "ct.nii.gz")
    assert code == 2 and "copy: is the same translator as" in err and not (tmp_path / "ct.nii.gz").exists()


def test_a_ct_without_a_unit_is_translated_as_one_in_hu(chain, mr2ct, tmp_path):
    scan = nib.load(chain / "cohort/target/t0001.nii.gz")
    padded = scan.get_fdata()
    padded[:3] = -1000  # what was not measured counts as air
    for name, value, unit in (("hu", -1000, b"unit=HU"), ("foreign", -3024, b"")):
        padded[:3] = value
        image = nib.Nifti1Image(padded.astype(np.int16), scan.affine)
        image.header["descrip"] = unit
        nib.save(image, tmp_path / f"{name}.nii.gz")
        words = ["synthesize", chain / "run", tmp_path / f"{name}.nii.gz", "--reverse"]
        assert mr2ct(*words, "--out", tmp_path / f"{name}_mr.nii.gz")[0] == 0
    images = [nib.load(tmp_path / f"{name}_mr.nii.gz").get_fdata() for name in ("hu", "foreign")]
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_mean_and_spread_are_those_of_numpy(count):
    arrays = np.random.default_rng(0).normal(-29, 42, (count, 3, 4, 5))
    mean, spread = mean_and_spread(Volume(array, np.eye(4), "HU") for array in arrays)
    np.testing.assert_allclose(mean.array, arrays.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(spread.array, arrays.std(axis=0, ddof=1), rtol=1e-4)


def test_translators_of_different_windows_are_refused(chain, other, mr2ct, tmp_path):
    shutil.copytree(other / "translator", tmp_path / "wide")
    record = json.loads((tmp_path / "wide/translator.json").read_text())
    record["preparation"]["windows"]["target"]["high"] = 1500.0
    (tmp_path / "wide/translator.json").write_text(json.dumps(record))
    words = ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--translator", tmp_path / "wide"]
    code, _, err = mr2ct(*words, "--out", tmp_path / "ct.nii.gz")
    assert code == 2 and "wide: gives -150 to 1500 HU, " in err and "run gives -150 to 350 HU; expected" in err
    assert not (tmp_path / "ct.nii.gz").exists()


def test_a_picture_shows_what_went_in_and_came_out(chain, mr2ct, tmp_path):
    words = ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "ct.nii.gz", "--qa"]
    assert mr2ct(*words)[0] == 0
    picture = np.asarray(Image.open(tmp_path / "ct_qa.png").convert("L"), float)
    quarters = np.array_split(picture, 4, axis=1)
    assert all(quarter.std() > 10 for quarter in quarters)  # an empty panel is white throughout


def test_a_scan_unlike_the_training_scans_is_loud_and_with_strict_refused(chain, mr2ct, tmp_path):
    mr = read_volume(chain / "cohort/source/s0001.nii.gz")
    noise = np.random.default_rng(0).uniform(90, 100, mr.array.shape).astype(np.float32)  # bright everywhere
    write_volume(mr.replace(array=noise), tmp_path / "noise.nii.gz")
    words = ["synthesize", chain / "run", tmp_path / "noise.nii.gz", "--out", tmp_path / "ct.nii.gz"]
    code, out, err = mr2ct(*words, "--strict")
    assert code == 2 and out == "" and "unlike the training scans" in err and not (tmp_path / "ct.nii.gz").exists()
    code, _, err = mr2ct(*words)
    assert code == 0 and err.count("unlike the training scans") == 1 and str(tmp_path / "noise.nii.gz") in err
    code, out, _ = mr2ct("inspect", tmp_path / "noise.nii.gz", "--translator", chain / "run")
    assert code == 0 and "doubtful: this scan is unlike" in out
    code, _, err = mr2ct(
        *words[:2], chain / "cohort/source/s0001.nii.gz", "--strict", "--out", tmp_path / "good.nii.gz"
    )
    assert code == 0 and "unlike" not in err


# ---- inspection, registration


def test_inspect_says_what_a_scan_is_and_what_it_fits(chain, mr2ct):
    words = ["inspect", chain / "cohort/source/s0001.nii.gz", "--translator", chain / "run", "--json"]
    code, out, _ = mr2ct(*words)
    facts = json.loads(out)
    assert code == 0 and facts["values look like"] == "MR" and facts["kind"] == "NIfTI file"
    assert facts[f"fits {chain / 'run'}"].startswith("yes:")
    code, out, _ = mr2ct("inspect", chain / "cohort/target/t0001.nii.gz", "--translator", chain / "run")
    assert code == 0 and "yes --reverse" in out and "cut by [-150, 350] HU" in out
    code, out, _ = mr2ct("inspect", chain / "cohort/labels/t0001.nii.gz", "--translator", chain / "run")
    assert code == 0 and "a label map" in out and "no: the values look like a label map" in out


def test_inspect_counts_what_a_window_cuts(mr2ct, tmp_path):
    array = np.full((10, 10, 10), 40.0, np.float32)
    array[:2], array[2:3] = -1000, 2000  # 20 % air, 10 % metal
    tilted = np.array([[np.cos(0.2), -np.sin(0.2), 0, 0], [np.sin(0.2), np.cos(0.2), 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    write_volume(Volume(array, tilted, "HU"), tmp_path / "ct.nii.gz")
    facts = json.loads(mr2ct("inspect", tmp_path / "ct.nii.gz", "--json")[1])
    assert facts["cut by [-150, 350] HU"] == "20.0% of the voxels below, 10.0% above"
    assert facts["cut by [-1024, 1500] HU"] == "0.0% of the voxels below, 10.0% above"
    assert facts["spacing (mm)"] == "1 x 1 x 3" and "oblique by up to 11.5 degrees" in facts["orientation"]


def test_inspect_tells_a_ct_that_was_stored_with_an_offset(mr2ct, tmp_path):
    array = np.random.default_rng(0).integers(1000, 1120, (20, 20, 20)).astype(np.float32)
    array[:8] = np.random.default_rng(1).integers(0, 60, (8, 20, 20))
    array[18:] = 2000
    write_volume(Volume(array, np.eye(4)), tmp_path / "ct.nii.gz", dtype=np.int16)
    code, out, _ = mr2ct("inspect", tmp_path / "ct.nii.gz")
    assert code == 0 and "CT stored with an offset of 1024" in out


def body_of(air: float, soft: float, around: float) -> np.ndarray:
    """A body of soft tissue with a bone in air; beyond the round field that the scanner measured lies `around`."""
    i, j, k = np.indices((40, 40, 12))
    distance = np.hypot(i - 20, j - 20)
    noise = np.random.default_rng(0).normal(0, 8, i.shape)
    values = np.where(distance < 12, soft, air) + (distance < 3) * 800 + noise
    return np.where(distance < 19, values, around).astype(np.float32)


@pytest.mark.parametrize("air, soft, around, looks", [
    (-1000, 40, -1000, "CT"), (-1000, 40, -2000, "CT"), (-1000, 40, -3024, "CT"), (-1000, 40, -32768, "CT"),
    (24, 1064, 24, "CT stored with"), (24, 1064, -976, "CT stored with"), (24, 1064, -2000, "CT stored with"),
    (5, 300, 5, "MR"),
])  # fmt: skip
def test_inspect_is_not_misled_by_padding(air, soft, around, looks, mr2ct, tmp_path):
    """Values between whole numbers, as resampled scans have them."""
    write_volume(Volume(body_of(air, soft, around), np.diag([9.0, 9, 9, 1])), tmp_path / "scan.nii.gz")
    facts = json.loads(mr2ct("inspect", tmp_path / "scan.nii.gz", "--json")[1])
    assert facts["values look like"].startswith(looks)
    if looks in ("CT", "MR"):  # pi * 12 ** 2 of 1600 columns
        assert facts["body"] in ("27% of the voxels", "28% of the voxels", "29% of the voxels")


def test_sform_and_qform_that_are_mirror_images_are_told(chain, mr2ct, tmp_path):
    image = nib.load(chain / "cohort/source/s0001.nii.gz")
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine @ np.diag([-1, 1, 1, 1]), 1)
    nib.save(image, tmp_path / "scan.nii.gz")
    code, out, _ = mr2ct("inspect", tmp_path / "scan.nii.gz")
    assert code == 0 and "sform and qform are mirror images" in out
    code, _, err = mr2ct("synthesize", chain / "run", tmp_path / "scan.nii.gz", "--out", tmp_path / "ct.nii.gz")
    assert code == 0 and err.count("mirror images of each other; the sform is believed") == 1
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(image.get_fdata(), None, image.header), tmp_path / "none.nii.gz")
    assert "neither sform nor qform" in mr2ct("inspect", tmp_path / "none.nii.gz")[1]


def test_inspect_reads_the_modality_of_dicom_files_with_any_name(chain, mr2ct, tmp_path):
    write_dicom_series(read_volume(chain / "cohort/target/t0001.nii.gz"), tmp_path / "ct")
    first = sorted((tmp_path / "ct").iterdir())[0]
    os.rename(first, os.fsencode(first.parent) + b"/p\xe8re.dcm")
    code, out, _ = mr2ct("inspect", tmp_path / "ct")
    assert code == 0 and "DICOM modality CT" in out


def test_prepare_takes_the_modality_that_it_is_told(chain, mr2ct, tmp_path):
    words = ["prepare", chain / "cohort", "--out", tmp_path / "out", "--target-modality", "PET"]
    code, _, err = mr2ct(*words)
    assert code == 2 and "PET" in err and files(tmp_path) == {}


def test_a_stripped_head_as_bright_as_soft_tissue_plus_1024_is_an_mr():
    head = body_of(0, 1000, 0)
    head[np.abs(head) < 150] = 0
    assert values_look_like(Volume(head, np.eye(4))) == "MR"


def test_inspect_tells_a_ct_on_another_scale(mr2ct, chain, tmp_path):
    ct = read_volume(chain / "cohort/target/t0001.nii.gz")
    for name, factor in {"tenth": 0.1, "inverted": -1}.items():
        path = tmp_path / f"{name}.nii.gz"
        write_volume(ct.replace(array=factor * ct.array, unit="a.u."), path)
        code, out, _ = mr2ct("inspect", path, "--translator", chain / "run")
        assert code == 0 and "values look like                      CT that is not in Hounsfield units" in out
        assert " no: the values look like CT that is not" in out
        code, _, err = mr2ct("synthesize", chain / "run", path, "--reverse", "--out", tmp_path / "mr.nii.gz")
        assert code == 2 and "the scan looks like a" in err and not (tmp_path / "mr.nii.gz").exists()


def test_an_mr_of_8_bits_is_no_label_map():
    rng = np.random.default_rng(0)
    mr = np.round(rng.uniform(0, 255, (20, 20, 5)))
    mr[:5] = 0  # air
    assert values_look_like(Volume(mr, np.eye(4))) == "MR"
    labels = np.repeat(np.repeat(mr[:5, :5], 4, 0), 4, 1) + np.repeat(np.round(mr[8:13, :5] / 40), 4, 0).repeat(4, 1)
    assert values_look_like(Volume(labels, np.eye(4))) == "a label map"


@pytest.mark.parametrize("values, kind", [([0, 1, 1], "a mask"), ([0.0, 0.4, 2.0], "MR"), ([-1000.0, 0.0, 50.0], "CT")])
def test_values_tell_what_a_file_is(values, kind):
    assert values_look_like(Volume(np.array(values, np.float32)[:, None, None], np.eye(4))) == kind


def test_register_brings_a_moved_scan_back(mr2ct, tmp_path):
    grid = np.mgrid[:40, :40, :24].astype(np.float32)
    ball = np.sqrt(((grid - np.array([20, 18, 12])[:, None, None, None]) ** 2).sum(axis=0)) < 9
    array = (100 * ball + 20 * (grid[0] > 18) * ball + np.random.default_rng(0).normal(0, 2, ball.shape)).astype(
        np.float32
    )
    moved = np.diag([3.0, 3, 3, 1])
    moved[:3, 3] = [6, -6, 3]
    write_volume(Volume(array, np.diag([3.0, 3, 3, 1])), tmp_path / "fixed.nii.gz")
    write_volume(Volume(array, moved), tmp_path / "moving.nii.gz")
    code, out, _ = mr2ct(
        "register", tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", "--out", tmp_path / "out.nii.gz"
    )
    assert code == 0 and "mutual information" in out
    result = read_volume(tmp_path / "out.nii.gz").array
    assert (
        np.abs(result - array)[ball].mean() < 0.3 * np.abs(np.roll(array, (2, -2, 1), (0, 1, 2)) - array)[ball].mean()
    )


def test_register_refuses_a_mask_of_another_grid(chain, mr2ct, tmp_path):
    mr, ct = chain / "cohort/source/s0001.nii.gz", chain / "cohort/target/t0001.nii.gz"
    words = ["register", ct, mr, "--mask", chain / "cohort/labels/t0001.nii.gz", "--out", tmp_path / "out.nii.gz"]
    code, _, err = mr2ct(*words)
    assert code == 2 and "lies on another grid" in err and files(tmp_path) == {}


# ---- evaluation


@pytest.fixture
def pair(tmp_path):
    """truth.nii.gz: blocks of 40 and 200 HU in air; made.nii.gz: 5 too low in the first, 20 too high in the second."""
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[2:7, 2:14, 2:14], labels[9:14, 2:14, 2:14] = 1, 2
    arrays = {"truth": np.array([-1000.0, 40, 200], np.float32)[labels]}
    arrays["made"] = np.array([-1000.0, 35, 220], np.float32)[labels]
    for name, array in arrays.items():
        write_volume(Volume(array, np.diag([3.0, 3, 3, 1]), "HU"), tmp_path / f"{name}.nii.gz")
    write_volume(Volume(labels, np.diag([3.0, 3, 3, 1]), "label"), tmp_path / "labels.nii.gz")
    (tmp_path / "names.json").write_text('{"1": "muscle", "2": "bone"}')
    return tmp_path


def test_evaluate_tells_the_error_of_each_structure(pair, mr2ct):
    words = ["evaluate", pair / "made.nii.gz", pair / "truth.nii.gz", "--labels", pair / "labels.nii.gz"]
    structures = json.loads(mr2ct(*words, "--names", pair / "names.json", "--json")[1])["structures"]
    assert [structures[name]["mean error"] for name in ("muscle", "bone")] == [-5, 20]
    assert structures["bone"]["median"] == 220 and structures["bone"]["true median"] == 200
    code, out, _ = mr2ct(*words)
    assert code == 0 and "label 1" in out and "SynthRAD2025" in out
    (pair / "names.json").write_text('{"1": "muscle"}')
    code, _, err = mr2ct(*words, "--names", pair / "names.json")
    assert code == 2 and "no name for the values [2]" in err


def test_no_structure_is_lost_by_its_name(pair, mr2ct):
    words = ["evaluate", pair / "made.nii.gz", pair / "truth.nii.gz", "--labels", pair / "labels.nii.gz", "--names"]
    (pair / "names.json").write_text('{"1": "thigh", "2": "thigh"}')
    structures = json.loads(mr2ct(*words, pair / "names.json", "--json")[1])["structures"]
    assert {name: row["mean error"] for name, row in structures.items()} == {"thigh (1)": -5, "thigh (2)": 20}
    (pair / "names.json").write_text('{"1": "muscle", "2": "bone", "01": "fat"}')
    code, _, err = mr2ct(*words, pair / "names.json")
    assert code == 2 and "two names for one value" in err


def test_json_of_equal_scans_is_json(pair, mr2ct):
    """Their PSNR is infinite, which JSON does not know."""
    out = mr2ct("evaluate", pair / "truth.nii.gz", pair / "truth.nii.gz", "--json")[1]
    assert "Infinity" not in out and json.loads(out)["SynthRAD"]["PSNR (dB)"] is None


def test_evaluate_reslices_only_when_asked(pair, mr2ct):
    truth = read_volume(pair / "truth.nii.gz")
    wide = np.pad(truth.array, 4, constant_values=-1000.0)  # the same patient in a larger field of view
    affine = truth.affine.copy()
    affine[:3, 3] -= 12
    write_volume(Volume(wide, affine, "HU"), pair / "wide.nii.gz")
    words = ["evaluate", pair / "wide.nii.gz", pair / "truth.nii.gz"]
    code, _, err = mr2ct(*words)
    assert code == 2 and "lies on another grid (16 x 16 x 16" in err and "(24 x 24 x 24" in err and "--reslice" in err
    # either way, what only one of the two scans covers does not count
    assert json.loads(mr2ct(*words, "--reslice", "--json")[1])["MAE (HU)"] < 1e-3
    reverse = ["evaluate", pair / "truth.nii.gz", pair / "wide.nii.gz", "--reslice", "--json"]
    assert json.loads(mr2ct(*reverse)[1])["MAE (HU)"] < 1e-3
    filled = np.where(np.pad(np.ones(truth.array.shape, bool), 4), wide, 500.0)  # HU where there is no truth
    write_volume(Volume(filled, affine, "HU"), pair / "filled.nii.gz")
    words[1] = pair / "filled.nii.gz"
    assert json.loads(mr2ct(*words, "--reslice", "--json")[1])["MAE (HU)"] < 1e-3
    affine[:3, 3] += 500
    write_volume(Volume(wide, affine, "HU"), pair / "away.nii.gz")
    code, _, err = mr2ct("evaluate", pair / "away.nii.gz", pair / "truth.nii.gz", "--reslice")
    assert code == 2 and "does not overlap" in err


@pytest.mark.parametrize("padding", [-1500.0, -2000.0, -3024.0, -32768.0])
def test_what_no_scanner_measured_is_left_out_of_the_truth(padding, pair, mr2ct):
    truth = read_volume(pair / "truth.nii.gz")
    padded = truth.array.copy()
    padded[:1] = padded[15:] = padding
    write_volume(truth.replace(array=padded), pair / "padded.nii.gz")
    words = [pair / "made.nii.gz", pair / "padded.nii.gz", "--json"]
    code, out, err = mr2ct("evaluate", *words)
    measures = json.loads(out)
    both = 12 * 12 * 5 * np.array([5, 20])  # as many voxels of each block
    assert code == 0 and "padded.nii.gz: 12.5% of its voxels are below -1200 HU" in err
    assert measures["MAE (HU)"] == pytest.approx(both.sum() / 14 / 16**2) == measures["SynthRAD"]["MAE (HU)"]
    # on a finer grid, too, no voxel is mixed with such numbers: between padding and air lies air
    fine = np.diag([1.5, 3, 3, 1])
    write_volume(Volume(np.repeat(padded, 2, axis=0), fine, "a.u."), pair / "fine.nii.gz")
    write_volume(Volume(np.repeat(np.where(padded < -1200, -1000, padded), 2, axis=0), fine), pair / "air.nii.gz")
    words[1] = pair / "fine.nii.gz"
    resliced = json.loads(mr2ct("evaluate", *words, "--reslice")[1])["MAE (HU)"]
    words[1] = pair / "air.nii.gz"
    all_air = json.loads(mr2ct("evaluate", *words, "--reslice")[1])["MAE (HU)"]
    assert resliced == pytest.approx(all_air * 16 / 14, rel=0.01)
    code, _, err = mr2ct("evaluate", pair / "padded.nii.gz", pair / "truth.nii.gz")
    assert code == 0 and "count in full" in err


def test_a_truth_that_is_not_in_hu_is_doubted(pair, mr2ct):
    truth = read_volume(pair / "truth.nii.gz")
    write_volume(truth.replace(array=truth.array / 10), pair / "tenth.nii.gz", dtype=np.float32)
    code, _, err = mr2ct("evaluate", pair / "made.nii.gz", pair / "tenth.nii.gz")
    assert code == 0 and "tenth.nii.gz: may not be in Hounsfield units (soft tissue spans less than 25)" in err
    assert "Hounsfield" not in mr2ct("evaluate", pair / "made.nii.gz", pair / "truth.nii.gz")[2]


def test_a_prediction_that_is_not_in_hu_is_doubted(pair, mr2ct):
    truth = read_volume(pair / "truth.nii.gz")
    write_volume(truth.replace(array=truth.array / 10), pair / "tenth.nii.gz", dtype=np.float32)
    code, _, err = mr2ct("evaluate", pair / "tenth.nii.gz", pair / "truth.nii.gz")
    assert code == 0 and "tenth.nii.gz: may not be in Hounsfield units (soft tissue spans less than 25)" in err


def test_a_scan_that_is_refused_is_named(chain, mr2ct, tmp_path):
    ct = read_volume(chain / "cohort/target/t0001.nii.gz")
    write_volume(ct.replace(array=ct.array + 400), tmp_path / "high.nii.gz")
    scan, out = tmp_path / "high.nii.gz", tmp_path / "out.nii.gz"
    mr = chain / "cohort/source/s0001.nii.gz"
    for words in (["synthesize", chain / "run", scan, "--reverse"], ["register", scan, mr]):
        code, _, err = mr2ct(*words, "--out", out)
        assert code == 2 and err.startswith(f"mr2ct: {scan}: ") and "air lies near -600" in err and not out.exists()


def test_a_folder_with_the_name_of_a_nifti_is_not_replaced(chain, mr2ct, tmp_path):
    (tmp_path / "out.nii.gz").mkdir()
    words = ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "out.nii.gz"]
    code, _, err = mr2ct(*words)
    assert code == 2 and "is a folder; expected the name of a NIfTI file" in err and (tmp_path / "out.nii.gz").is_dir()


def test_a_small_mask_costs_ssim_alone(pair, mr2ct):
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[2, 2, 2] = 1
    write_volume(Volume(mask, np.diag([3.0, 3, 3, 1]), "label"), pair / "mask.nii.gz")
    words = ["evaluate", pair / "made.nii.gz", pair / "truth.nii.gz", "--mask", pair / "mask.nii.gz"]
    words += ["--labels", pair / "labels.nii.gz"]
    result = json.loads(mr2ct(*words, "--json")[1])
    assert result["MAE (HU)"] == 5 and result["SynthRAD"]["MS-SSIM"] is None
    assert result["SSIM (3D, window 7, clipped to [-150, 350] HU)"] is None
    assert result["structures"].keys() == {"label 1"} and result["structures"]["label 1"]["voxels"] == 1
    assert "no window fits into the mask" in mr2ct(*words)[1]


def test_a_slightly_other_spacing_is_another_grid(pair, mr2ct):
    truth = read_volume(pair / "truth.nii.gz")
    write_volume(Volume(truth.array, np.diag([3.03, 3, 3, 1]), "HU"), pair / "wider.nii.gz")  # 0.45 mm at its end
    code, _, err = mr2ct("evaluate", pair / "made.nii.gz", pair / "wider.nii.gz")
    assert code == 2 and "lies on another grid" in err


def test_a_mask_that_is_1_everywhere_is_resliced(pair, mr2ct):
    write_volume(Volume(np.ones((9, 9, 9), np.uint8), np.diag([6.0, 6, 6, 1]), "label"), pair / "ones.nii.gz")
    words = ["evaluate", pair / "made.nii.gz", pair / "truth.nii.gz", "--reslice", "--mask", pair / "ones.nii.gz"]
    assert mr2ct(*words)[0] == 0


def test_labels_that_mark_nothing_and_names_that_are_none_are_said(pair, mr2ct):
    write_volume(Volume(np.zeros((16, 16, 16), np.uint8), np.diag([3.0, 3, 3, 1]), "label"), pair / "empty.nii.gz")
    words = ["evaluate", pair / "made.nii.gz", pair / "truth.nii.gz", "--labels"]
    code, _, err = mr2ct(*words, pair / "empty.nii.gz")
    assert code == 2 and "empty.nii.gz: marks no structure" in err
    (pair / "names.json").write_text('{"1": ["muscle"], "2": "bone"}')
    code, _, err = mr2ct(*words, pair / "labels.nii.gz", "--names", pair / "names.json")
    assert code == 2 and "expected a label value and a name" in err


# ---- nothing is destroyed


def test_an_output_never_takes_the_place_of_an_input_a_link_or_a_result(chain, mr2ct, tmp_path):
    scan, result = tmp_path / "scan.nii.gz", tmp_path / "result.nii.gz"
    shutil.copy(chain / "cohort/source/s0001.nii.gz", scan)
    shutil.copy(chain / "cohort/target/t0001.nii.gz", result)
    (tmp_path / "link.nii.gz").symlink_to(scan)
    (tmp_path / "same.nii.gz").symlink_to("scan.nii.gz")
    before = files(tmp_path)
    for out, words in ((scan, "is the input"), (tmp_path / "link.nii.gz", "is a link"), (result, "--overwrite")):
        code, _, err = mr2ct("synthesize", chain / "run", scan, "--out", out)
        assert code == 2 and words in err and files(tmp_path) == before
    assert mr2ct("synthesize", chain / "run", scan, "--out", scan, "--overwrite")[0] == 2 and files(tmp_path) == before
    assert mr2ct("synthesize", chain / "run", scan, "--out", result, "--overwrite")[0] == 0


def test_files_beside_a_result_never_take_the_place_of_an_input_or_a_result(chain, other, mr2ct, tmp_path, monkeypatch):
    for name in ("ct_spread.nii.gz", "scan.nii.gz"):
        shutil.copy(chain / "cohort/source/s0001.nii.gz", tmp_path / name)
    for name in ("ct_qa.png", "ct_names.json"):
        (tmp_path / name).write_text("mine")
    before, both = files(tmp_path), ["--translator", chain / "run", "--translator", other]
    for place in (tmp_path / "ct.nii.gz", f"{tmp_path}/ct/"):
        out = ["--out", place]
        for words, says in (
            (["synthesize", tmp_path / "ct_spread.nii.gz", *both, *out], "ct_spread.nii.gz: is the input"),
            (["synthesize", tmp_path / "ct_spread.nii.gz", *both, *out, "--overwrite"], "spread.nii.gz: is the input"),
            (["synthesize", tmp_path / "scan.nii.gz", *both, *out], "ct_spread.nii.gz: exists already"),
            (["synthesize", chain / "run", tmp_path / "scan.nii.gz", *out, "--qa"], "ct_qa.png: exists already"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr("mr2ct_lib.cli.synthesizing.load_synthesis", None)  # before any work
                code, _, err = mr2ct(*words)
            assert code == 2 and says in err and err.count("\n") == 1 and files(tmp_path) == before
    words = ["segment", "apply", tmp_path / "none", tmp_path / "scan.nii.gz", "--translator", chain / "run"]
    code, _, err = mr2ct(*words, "--out", tmp_path / "ct.nii.gz")
    assert code == 2 and "ct_names.json: exists already" in err and files(tmp_path) == before
    words = ["synthesize", tmp_path / "scan.nii.gz", *both, "--out", tmp_path / "ct.nii.gz", "--qa", "--overwrite"]
    assert mr2ct(*words)[0] == 0 and (tmp_path / "ct_qa.png").read_bytes() != b"mine"


def test_options_of_dicom_are_refused_where_nifti_is_written(chain, scans, mr2ct, tmp_path):
    scan, nifti = scans / "anna.nii.gz", tmp_path / "ct.nii.gz"
    for path, out, option in (
        (scan, nifti, "--dicom"),
        (scan, nifti, "--keep-patient"),
        (scans, tmp_path / "ct", "--keep-patient"),
    ):
        code, _, err = mr2ct("synthesize", chain / "run", path, "--out", out, option)
        assert code == 2 and f"mr2ct: {option}: " in err and err.count("\n") == 1 and not out.exists()


def test_no_result_lies_inside_a_series_that_could_then_not_be_read(chain, mr2ct, tmp_path):
    write_dicom_series(read_volume(chain / "cohort/target/t0001.nii.gz"), tmp_path / "ct")
    before = files(tmp_path)
    for out in ("ct/mr.nii.gz", "ct/below/mr.nii.gz"):
        code, _, err = mr2ct("synthesize", chain / "run", tmp_path / "ct", "--reverse", "--out", tmp_path / out)
        assert code == 2 and "lies inside the input" in err and files(tmp_path) == before


def test_results_inside_the_folder_of_scans_are_no_scans(chain, scans, mr2ct):
    (scans / "carl.nii.gz").unlink()
    words = ["synthesize", chain / "run", scans, "--out", scans / "results"]
    assert mr2ct(*words)[0] == 0
    code, out, _ = mr2ct(*words)
    assert code == 0 and "0 synthesized, 2 there already, 0 failed" in out


def test_an_output_in_a_folder_that_is_a_link_to_nothing_is_refused_before_the_work(chain, mr2ct, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to("nowhere")
    for folder in ("loop", "gone"):
        out = tmp_path / folder / "ct.nii.gz"
        code, _, err = mr2ct("synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", out)
        assert code == 2 and f"{folder} takes no files" in err


def test_a_series_with_other_files_beside_it_is_refused_before_the_work(chain, mr2ct, tmp_path, monkeypatch):
    scan = chain / "cohort/source/s0001.nii.gz"
    assert mr2ct("synthesize", chain / "run", scan, "--out", f"{tmp_path}/d/")[0] == 0
    (tmp_path / "d/mine.txt").write_text("x")
    monkeypatch.setattr("mr2ct_lib.cli.synthesizing.synthesize", None)
    code, _, err = mr2ct("synthesize", chain / "run", scan, "--out", f"{tmp_path}/d/", "--overwrite")
    assert code == 2 and "holds mine.txt" in err and (tmp_path / "d/mine.txt").exists()


def test_prepared_slices_are_replaced_only_when_that_is_meant(chain, mr2ct, tmp_path):
    shutil.copytree(chain / "prepared", tmp_path / "prepared")
    before = files(tmp_path)
    code, _, err = mr2ct("prepare", chain / "cohort", "--out", tmp_path / "prepared")
    assert code == 2 and "--overwrite" in err and files(tmp_path) == before
    assert mr2ct("prepare", chain / "cohort", "--out", tmp_path / "prepared", "--overwrite")[0] == 0
    shutil.copytree(chain / "cohort", tmp_path / "cohort")
    shutil.copy(tmp_path / "prepared/prepared.json", tmp_path / "cohort")  # a folder that is both
    before = files(tmp_path)
    code, _, err = mr2ct("prepare", tmp_path / "cohort", "--out", tmp_path / "cohort", "--overwrite")
    assert code == 2 and "is the input" in err and files(tmp_path) == before


def test_what_comes_next_can_be_pasted_into_a_shell(mr2ct, tmp_path):
    code, out, _ = mr2ct("cohort", "hip", "--patients", 1, "--paired", "--out", tmp_path / "my hips; rm -r x")
    assert code == 0 and f"Next: mr2ct prepare '{tmp_path}/my hips; rm -r x' --out 'prepared/my hips; rm -r x'" in out


def test_names_of_files_end_as_they_should():
    from pathlib import Path

    assert with_ending(Path("a/b.nii"), "_qa.png") == Path("a/b_qa.png") and with_ending(
        Path("a/b"), "_qa.png"
    ) == Path("a/b_qa.png")
    assert quoted("a b") == "'a b'" and quoted("plain/name-1.nii.gz") == "plain/name-1.nii.gz"


# ---- one sentence, before work


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 403. GiB"), RuntimeError("[enforce] not enough memory: you tried")]
)
def test_too_little_memory_is_one_sentence(error, chain, mr2ct, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("mr2ct_lib.cli.synthesizing.synthesize", fails)
    code, out, err = mr2ct(
        "synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "ct.nii.gz"
    )
    assert (
        code == 2 and out == "" and err.startswith("mr2ct: memory: ") and err.count("\n") == 1 and files(tmp_path) == {}
    )


@pytest.mark.parametrize(
    "error, rank, said",
    [
        (RuntimeError("CUDA out of memory"), "1", True),
        (OSError("a disk is gone"), "1", True),
        (LostProcess("another one ended"), "1", True),  # any of them may be the visible one
        (InputError("no such setting"), "1", False),  # the same for all: the first one says it
        (InputError("no such setting"), "0", True),
    ],
)
def test_every_process_says_what_it_alone_died_of(error, rank, said, chain, mr2ct, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("mr2ct_lib.cli.synthesizing.load_synthesis", fails)
    words = ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "ct.nii.gz"]
    code, _, err = mr2ct(*words)
    assert code == 2 and err.count("\n") == said and (str(error) in err) == said


def test_another_error_of_the_program_is_not_hidden(chain, mr2ct, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mr2ct_lib.cli.synthesizing.synthesize", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("a defect"))
    )
    with pytest.raises(RuntimeError, match="a defect"):
        mr2ct("synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / "ct.nii.gz")


def test_names_that_are_not_utf8_are_refused_before_the_work(chain, mr2ct, tmp_path):
    name = os.fsdecode(b"p\xe8re.nii.gz")  # Latin-1
    (tmp_path / "own/source").mkdir(parents=True)
    (tmp_path / "own/target").mkdir()
    for domain, path in (
        ("source", chain / "cohort/source/s0001.nii.gz"),
        ("target", chain / "cohort/target/t0001.nii.gz"),
    ):
        shutil.copy(path, tmp_path / "own" / domain / name)
    before = files(tmp_path)
    scan = tmp_path / "own/source" / name
    for words in (
        ["synthesize", chain / "run", scan, "--out", tmp_path / "ct.nii.gz"],
        ["synthesize", chain / "run", chain / "cohort/source/s0001.nii.gz", "--out", tmp_path / name],
        ["prepare", tmp_path / "own", "--out", tmp_path / "prepared"],
    ):
        code, out, err = mr2ct(*words)
        assert code == 2 and out == "" and "is not UTF-8" in err and err.count("\n") == 1
    assert files(tmp_path) == before


@pytest.mark.parametrize("names", ['{"femur": 1}', '{"1": 2}', "[]", "{}", '{"1.5": "femur"}'])
def test_names_of_labels_are_checked_before_the_work(names, chain, mr2ct, tmp_path):
    shutil.copytree(chain / "cohort", tmp_path / "own", ignore=shutil.ignore_patterns("cohort.json", "patients"))
    (tmp_path / "own/names.json").write_text(names)
    before = files(tmp_path)
    code, _, err = mr2ct("prepare", tmp_path / "own", "--out", tmp_path / "prepared")
    assert code == 2 and "names.json" in err and err.count("\n") == 1 and files(tmp_path) == before


# ---- folders that mix things, and values that are no Hounsfield units


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no scans"):
        scans_of(tmp_path)


def test_dicom_slices_beside_other_scans_are_refused(tmp_path):
    """Taken as one series, the other scans would be left out in silence; taken as a folder of scans, the series."""
    write_volume(Volume(body_of(0, 1000, 0), np.eye(4)), tmp_path / "mr.nii.gz")
    assert list(scans_of(tmp_path)) == ["mr"]
    write_dicom_series(Volume(body_of(-1000, 40, -1000), np.eye(4), "HU"), tmp_path / "ct")
    assert list(scans_of(tmp_path)) == ["ct", "mr"]
    for path in (tmp_path / "ct").iterdir():
        shutil.copy(path, tmp_path / path.name)
    with pytest.raises(InputError, match=r"holds DICOM slices and mr\.nii\.gz"):
        scans_of(tmp_path)
    with pytest.raises(InputError, match=r"slice0001\.dcm: is a DICOM slice among the scans"):
        scans_in(tmp_path)


def test_a_folder_of_scans_needs_a_folder_for_its_results(chain, scans, mr2ct, tmp_path):
    code, _, err = mr2ct("synthesize", chain / "run", scans, "--out", tmp_path / "ct.nii.gz")
    assert code == 2 and "expected a folder" in err and not (tmp_path / "ct.nii.gz").exists()


def test_an_inverted_ct_is_refused():
    ct = body_of(-1000, 40, -1000)
    assert modality_and_reason(Volume(ct, np.eye(4)))[0] == "CT"
    with pytest.raises(InputError, match="looks like an inverted CT"):
        modality_and_reason(Volume((-ct).clip(-450), np.eye(4)))


def test_metal_does_not_hide_an_offset():
    ct = np.round(body_of(24, 1064, 24))
    ct[:3, :3, :2] = 1400
    ct[0, 0, 0] = 65535
    assert values_look_like(Volume(ct, np.eye(4))).startswith("CT stored with an offset")
