"""Volumes: every voxel keeps its place in mm, whatever the file says; a bad file gets one sentence that names it."""

import errno
import gzip
import os
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mr2ct_lib.files import InputError
from mr2ct_lib.images.volumes import (
    PLANES,
    Volume,
    read_grid,
    read_volume,
    reslice,
    slices_of,
    to_sitk,
    volume_from_slices,
    write_volume,
)

SHAPE = (9, 11, 7)


def oblique(angle: float = 0.3) -> np.ndarray:
    """A rotated, anisotropic, shifted affine."""
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([1.5, 2.0, 3.0])
    affine[:3, 3] = [-20, 35, 100]
    return affine


def flipped() -> np.ndarray:
    return np.array([[-1.5, 0, 0, 60], [0, -2, 0, 40], [0, 0, 3, -10], [0, 0, 0, 1.0]])


def permuted() -> np.ndarray:
    return np.array([[0, 0, -3.0, 5], [1.5, 0, 0, 6], [0, -2, 0, 7], [0, 0, 0, 1]])


AFFINES = pytest.mark.parametrize(
    "affine", [np.eye(4), oblique(), flipped(), permuted()], ids=["plain", "oblique", "flipped", "permuted"]
)


@pytest.fixture
def scan() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)


def save(array: np.ndarray, path, affine=None) -> str:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return str(path)


@AFFINES
def test_a_physical_landmark_stays_where_it_is(affine, scan, tmp_path):
    mark = (2, 8, 5)
    scan[mark] = 5000
    place = affine @ [*mark, 1]
    volume = read_volume(save(scan, tmp_path / "a.nii.gz", affine))
    brightest = np.unravel_index(volume.array.argmax(), volume.array.shape)
    np.testing.assert_allclose(volume.affine @ [*brightest, 1], place, atol=1e-4)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")


@AFFINES
def test_write_restores_the_files_own_order_and_affine(affine, scan, tmp_path):
    path = save(scan, tmp_path / "a.nii.gz", affine)
    write_volume(read_volume(path), tmp_path / "b.nii.gz")
    before, after = nib.load(path), nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(after.get_fdata(), before.get_fdata())
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)


@AFFINES
def test_simpleitk_sees_each_voxel_at_the_same_point(affine, scan, tmp_path):
    volume = read_volume(save(scan, tmp_path / "a.nii.gz", affine))
    image = to_sitk(volume)
    index = (1, 2, 3)
    point = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
    np.testing.assert_allclose(point, (volume.affine @ [*index, 1])[:3], atol=1e-6)
    assert image[index] == volume.array[index]
    sitk.WriteImage(image, str(tmp_path / "b.mha"))
    back = read_volume(tmp_path / "b.mha", volume.unit)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-6)


@AFFINES
def test_our_file_lies_where_simpleitk_reads_it(affine, scan, tmp_path):
    volume = read_volume(save(scan, tmp_path / "a.nii.gz", affine))
    write_volume(volume, tmp_path / "b.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "b.nii.gz")), str(tmp_path / "c.mha"))
    theirs = read_volume(tmp_path / "c.mha")
    np.testing.assert_allclose(theirs.affine, volume.affine, atol=1e-4)
    np.testing.assert_array_equal(theirs.array, volume.array)


@AFFINES
def test_the_grid_alone_is_that_of_the_volume(affine, scan, tmp_path):
    path = save(scan, tmp_path / "a.nii.gz", affine)
    shape, grid = read_grid(path)
    volume = read_volume(path)
    assert shape == volume.array.shape
    np.testing.assert_allclose(grid, volume.affine, atol=1e-9)


@pytest.mark.parametrize(
    ("unit", "values", "dtype"),
    [
        ("HU", [-1024, 3000], "int16"),
        ("label", [0, 255], "uint8"),
        ("label", [0, 300], "int16"),
        ("%", [0.0, 99.5], "float32"),
    ],
)
def test_units_survive_the_file_with_their_type(unit, values, dtype, tmp_path):
    array = np.resize(np.array(values, np.float32), (4, 4, 4))
    write_volume(Volume(array, np.eye(4), unit), tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.dtype(dtype)
    again = read_volume(tmp_path / "a.nii.gz")
    assert again.unit == unit
    np.testing.assert_array_equal(again.array, array)


def test_hu_are_rounded_and_clipped_to_int16(tmp_path):
    write_volume(Volume(np.array([[[-40000.0, 1.6, 40000.0]]]), np.eye(4), "HU"), tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").array.ravel().tolist() == [-32768, 2, 32767]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_values_beyond_a_whole_number_type_become_its_limits(dtype, tmp_path):
    limits = np.iinfo(dtype)
    array = np.array([[[-1e10, 7.4, 1e10]]], np.float32)
    write_volume(Volume(array, np.eye(4)), tmp_path / "a.nii.gz", dtype=dtype)
    assert np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj).ravel().tolist() == [limits.min, 7, limits.max]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_whole_numbers_cannot_hold_is_not_written(value, tmp_path):
    volume = Volume(np.array([[[-1000.0, value, 40.0]]]), np.eye(4), "HU")
    with pytest.raises(InputError, match=r"a\.nii\.gz: 1 voxel.* expected finite"):
        write_volume(volume, tmp_path / "a.nii.gz")
    assert not list(tmp_path.iterdir())
    write_volume(volume, tmp_path / "a.nii.gz", dtype=np.float32)
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii.gz").get_fdata(), volume.array)


@pytest.mark.parametrize("plane", PLANES)
def test_slices_and_back_is_exact(plane, scan):
    np.testing.assert_array_equal(volume_from_slices(slices_of(scan, plane), plane), scan)


def test_slices_are_radiological():
    array = np.zeros((4, 5, 6))
    array[3, 4, 5] = 1  # most right, anterior, superior
    assert slices_of(array, "coronal")[4, 0, 0] == 1
    assert slices_of(array, "axial")[5, 0, 0] == 1
    assert slices_of(array, "sagittal")[3, 0, 0] == 1
    assert slices_of(array, "coronal").shape == (5, 6, 4)
    assert slices_of(array, "axial").shape == (6, 5, 4)
    assert slices_of(array, "sagittal").shape == (4, 6, 5)


def test_unknown_plane_is_refused(scan):
    with pytest.raises(InputError, match="transverse"):
        slices_of(scan, "transverse")


@AFFINES
def test_reslice_onto_its_own_grid_changes_nothing(affine, scan, tmp_path):
    volume = read_volume(save(scan, tmp_path / "a.nii.gz", affine))
    np.testing.assert_allclose(reslice(volume, volume.array.shape, volume.affine).array, volume.array, rtol=1e-5)


def test_reslice_keeps_a_linear_field_on_any_finer_grid():
    """Linear interpolation is exact for linear fields: independent of how the resampling is written."""
    source = oblique()
    weights = np.array([0.7, -1.3, 0.4])

    def field(shape, affine):
        points = np.indices(shape).reshape(3, -1)
        return (weights @ (affine[:3, :3] @ points + affine[:3, 3:])).reshape(shape)

    volume = Volume(field((20, 20, 20), source), source)
    target = source @ np.array([[0.5, 0.05, 0, 6], [0.05, 0.5, 0.1, 6], [0, 0, 0.5, 6], [0, 0, 0, 1]])
    np.testing.assert_allclose(reslice(volume, (8, 9, 10), target).array, field((8, 9, 10), target), atol=1e-3)


def test_outside_is_air_for_ct_and_zero_for_the_rest():
    away = np.eye(4)
    away[0, 3] = 100
    for unit, fill in (("HU", -1000), ("a.u.", 0), ("label", 0)):
        assert (reslice(Volume(np.full((3, 3, 3), 7.0), np.eye(4), unit), (2, 2, 2), away).array == fill).all()


def test_a_coarser_grid_averages_instead_of_picking():
    stripes = np.zeros((64, 4, 4), np.float32)
    stripes[::2] = 100
    coarse = reslice(Volume(stripes, np.eye(4)), (12, 4, 4), np.diag([5.0, 1, 1, 1]))
    np.testing.assert_allclose(coarse.array[2:-2], 50, atol=8)


@pytest.mark.parametrize("spacing", [0.5, 1.0, 4.0])
def test_a_coarser_grid_is_smoothed_by_half_a_voxel_less_one_whatever_the_voxels_measure(spacing):
    """A wave of 12 voxels, read 5 times coarser: sigma is 2 voxels, so exp(-2 (2 pi / 12)^2) = 0.578 of it stays."""
    wave = np.cos(2 * np.pi * np.arange(120) / 12)
    array = np.broadcast_to(wave[:, None, None], (120, 4, 4)).astype(np.float32)
    affine = np.diag([spacing, 1, 1, 1.0])
    coarse = reslice(Volume(array, affine), (24, 4, 4), affine @ np.diag([5.0, 1, 1, 1])).array[4:-4, 1, 1]
    np.testing.assert_allclose(coarse, np.exp(-2 * (2 * np.pi / 12) ** 2) * wave[::5][4:-4], atol=0.01)


def test_labels_never_mix():
    labels = Volume(np.resize(np.array([0, 10], np.int16), (8, 8, 8)), np.eye(4), "label")
    assert set(np.unique(reslice(labels, (5, 5, 5), np.diag([1.4, 1.4, 1.4, 1])).array)) <= {0, 10}


def rgb(path):
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(np.zeros((3, 3, 3), kind), path)


def text(path):
    path.write_text("no image")


def truncated(path):
    save(np.random.default_rng(0).normal(size=(20, 20, 20)), path)
    path.write_bytes(path.read_bytes()[:3000])


def singular(path):
    image = nib.Nifti1Image(np.arange(27.0).reshape(3, 3, 3), None)
    image.header.set_sform(np.diag([1.0, 1, 0, 1]), 1)
    nib.save(image, path)


def with_value(value):
    def make(path):
        array = np.arange(27.0, dtype=np.float32).reshape(3, 3, 3)
        array[1, 1, 1] = value
        save(array, path)

    return make


BAD = {
    "missing": (lambda path: None, "does not exist"),
    "text": (text, "not a readable NIfTI"),
    "truncated": (truncated, "not a readable NIfTI"),
    "4D": (lambda path: save(np.zeros((3, 3, 3, 2)), path), r"\(3, 3, 3, 2\)"),
    "2D": (lambda path: save(np.zeros((3, 3)), path), r"\(3, 3\)"),
    "RGB": (rgb, "colours"),
    "NaN": (with_value(np.nan), "NaN"),
    "infinite": (with_value(np.inf), "infinite"),
    "singular": (singular, "singular"),
    "constant": (lambda path: save(np.full((3, 3, 3), 4.0), path), "every voxel is 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_sentence_that_names_it(case, tmp_path):
    make, message = BAD[case]
    make(tmp_path / "bad_scan.nii.gz")
    with pytest.raises(InputError, match=message) as error:
        read_volume(tmp_path / "bad_scan.nii.gz")
    assert "bad_scan.nii.gz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_trailing_axis_of_one_is_no_fourth_dimension(scan, tmp_path):
    assert read_volume(save(scan[..., None], tmp_path / "a.nii.gz")).array.shape == SHAPE


def test_other_endings_and_folders_without_dicom_are_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.jpg"):
        read_volume(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="0 DICOM series"):
        read_volume(tmp_path)
    with pytest.raises(InputError, match=r"out\.png"):
        write_volume(Volume(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "out.png")


def test_fractions_are_no_labels(tmp_path):
    with pytest.raises(InputError, match="label"):
        read_volume(save(np.linspace(0, 1, 27).reshape(3, 3, 3), tmp_path / "a.nii.gz"), unit="label")


def test_metaimage_is_read(scan, tmp_path):
    volume = Volume(scan, oblique())
    sitk.WriteImage(to_sitk(volume), str(tmp_path / "a.mha"))
    again = read_volume(tmp_path / "a.mha")
    np.testing.assert_array_equal(again.array, scan)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-6)


META = """ObjectType = Image\nNDims = 3\nBinaryData = True\nOffset = 1 2 3\nElementSpacing = 2 2 2\nDimSize = 3 3 3
ElementType = MET_SHORT\nElementDataFile = {}\n"""
NRRD = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 3 3 3\nendian: little\nencoding: raw\n{}\n"


@pytest.mark.parametrize("where, size, message", [
    ("LIST", 54, "several files"), ("a%02d.raw 1 3 1", 54, "several files"), ("a.raw", 20, "a.raw holds 20 bytes, exp"),
    ("a.raw", 108, "holds 108 bytes, expected 54"), ("b.raw", 54, "not a readable"), ("a.raw", 54, None),
])  # fmt: skip
def test_a_header_leads_to_all_its_voxels_and_to_no_others(where, size, message, tmp_path):
    """ITK reads what it finds, or returns whatever lies in the memory."""
    (tmp_path / "a.raw").write_bytes(np.arange(size // 2, dtype="<i2").tobytes())
    (tmp_path / "a.mhd").write_text(META.format(where))
    if message is None:
        np.testing.assert_array_equal(np.sort(read_volume(tmp_path / "a.mhd").array, axis=None), np.arange(27))
    else:
        with pytest.raises(InputError, match=message):
            read_volume(tmp_path / "a.mhd")


@pytest.mark.parametrize("line, known", [
    ("spacings: 2 2 2\n", True), ("", False), ("space dimension: 3\nspace directions: (2,0,0) (0,2,0) none\n", False),
])  # fmt: skip
def test_a_nrrd_file_states_the_size_of_its_voxels(line, known, tmp_path):
    (tmp_path / "a.nrrd").write_bytes(NRRD.format(line).encode() + np.arange(27, dtype="<i2").tobytes())
    if known:
        np.testing.assert_allclose(read_volume(tmp_path / "a.nrrd").spacing, 2)
    else:
        with pytest.raises(InputError, match="states no size of its voxels"):
            read_volume(tmp_path / "a.nrrd")


IN_LPS = "space: left-posterior-superior\nspace directions: (2,0,0) (0,2,0) (0,0,2)\n"


@pytest.mark.parametrize("line, known", [
    (IN_LPS, True), (IN_LPS.replace("left-posterior-superior", "RAS"), True), ("spacings: 2 2 2\n", False),
    (IN_LPS.replace("left-posterior-superior", "scanner-xyz"), False),
])  # fmt: skip
def test_a_nrrd_file_that_does_not_say_where_left_is_gets_a_warning(line, known, tmp_path):
    (tmp_path / "a.nrrd").write_bytes(NRRD.format(line).encode() + np.arange(27, dtype="<i2").tobytes())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read_volume(tmp_path / "a.nrrd")
    assert ["does not say in which directions" in str(one.message) for one in said] == [True] * (not known)


def test_a_nrrd_file_in_centimetres_is_refused(tmp_path):
    header = NRRD.format(IN_LPS + 'space units: "cm" "cm" "cm"\n')
    (tmp_path / "a.nrrd").write_bytes(header.encode() + np.arange(27, dtype="<i2").tobytes())
    with pytest.raises(InputError, match='its space units are "cm" "cm" "cm", expected mm'):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("left_out, message", [
    ("ElementSpacing = 2 2 2\n", "states no size of its voxels"), ("", None),
])  # fmt: skip
def test_a_metaimage_states_the_size_of_its_voxels_and_their_directions(left_out, message, tmp_path):
    header = META.format("LOCAL").replace(left_out, "")
    (tmp_path / "a.mha").write_bytes(header.encode() + np.arange(27, dtype="<i2").tobytes())
    with pytest.warns(UserWarning, match="does not say in which directions") if message is None else pytest.raises(
        InputError, match=message
    ):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd"])
def test_a_header_that_states_a_plane_too_few_is_refused(name, scan, tmp_path):
    """One column less, say: every row would begin one voxel later than the row before it."""
    pack, path, left = (gzip.compress if name.endswith("gz") else bytes), tmp_path / name, scan.nbytes // scan.shape[0]
    sitk.WriteImage(to_sitk(Volume(scan, np.eye(4))), str(path))
    whole = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    path.write_bytes(pack(whole + b"\0" * 16))  # as some programs fill a file up
    read_volume(path)
    path.write_bytes(pack(whole + b"\1" * left))
    with pytest.raises(InputError, match=f"{left} bytes lie after its voxels"):
        read_volume(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(scan, tmp_path, monkeypatch):
    volume = Volume(scan, np.eye(4))
    write_volume(volume, tmp_path / "a.nii.gz")

    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(InputError, match=r"a\.nii\.gz.*No space left"):
        write_volume(volume.replace(array=scan * 2), tmp_path / "a.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, scan)


def header(path) -> nib.Nifti1Header:
    return nib.load(path).header


FORM_FIELDS = "qform_code sform_code quatern_b quatern_c quatern_d qoffset_x qoffset_y qoffset_z srow_x srow_y srow_z"


def assert_same_forms(first, second):
    """Both files have the same sform, qform, codes and unit of length, so every viewer puts both at one place."""
    first, second = header(first), header(second)
    for name in [*FORM_FIELDS.split(), "xyzt_units"]:
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)
    np.testing.assert_array_equal(second["pixdim"][:4], first["pixdim"][:4])


def with_forms(path, array, sform, sform_code, qform, qform_code, units="mm"):
    image = nib.Nifti1Image(array, None)
    image.header.set_sform(sform, sform_code)
    image.header.set_qform(qform, qform_code)
    image.header.set_xyzt_units(units)
    nib.save(nib.Nifti1Image(array, image.header.get_best_affine(), image.header), path)


def moved(affine, shift) -> np.ndarray:
    affine = affine.copy()
    affine[:3, 3] += shift
    return affine


SHEARED = oblique() @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
FORMS = {
    "sform aligned, qform scanner, elsewhere": (moved(oblique(), [10, 20, 30]), 2, oblique(), 1),
    "no code": (oblique(), 0, oblique(), 0),
    "qform alone": (flipped(), 0, flipped(), 1),
    "sform alone": (permuted(), 4, np.eye(4), 0),
    "sheared sform, qform scanner": (SHEARED, 1, oblique(), 1),
}


@pytest.mark.parametrize("forms", FORMS.values(), ids=FORMS)
def test_a_result_lies_on_its_scan_in_every_viewer(forms, scan, tmp_path):
    with_forms(tmp_path / "scan.nii.gz", scan, *forms)
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_volume(volume.replace(array=-volume.array, unit="HU"), tmp_path / "ct.nii.gz")
    assert_same_forms(tmp_path / "scan.nii.gz", tmp_path / "ct.nii.gz")
    again = read_volume(tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(again.affine, volume.affine)
    np.testing.assert_array_equal(again.array, np.round(-volume.array))


LARGER = oblique() @ np.diag([2.0, 2, 2, 1])
CONTRADICTIONS = {
    "mirrored": ((oblique(), 1, oblique() @ np.diag([-1, 1, 1, 1]), 1), "mirror images"),
    "turned": ((oblique(), 1, oblique() @ np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 1),
               "sform and qform turn the scan differently .RAS and"),
    "other sizes": ((LARGER, 1, oblique(), 1), "sform gives voxels of 3 x 4 x 6, its pixdim 1.5 x 2 x 3"),
    "other sizes, no qform": ((LARGER, 1, oblique(), 0), "sform gives voxels of 3 x 4 x 6, its pixdim 1.5 x 2 x 3"),
}  # fmt: skip


@pytest.mark.parametrize("forms, message", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_forms_that_contradict_each_other_get_a_warning(forms, message, scan, tmp_path):
    with_forms(tmp_path / "scan.nii.gz", scan, *forms)
    with pytest.warns(UserWarning, match=message):
        volume = read_volume(tmp_path / "scan.nii.gz")
    corner = np.linalg.inv(volume.affine) @ forms[0] @ [0, 0, 0, 1]  # the sform is believed
    assert volume.array[tuple(np.round(corner[:3]).astype(int))] == scan[0, 0, 0]


@pytest.mark.filterwarnings("error")
def test_a_tilted_gantry_is_no_contradiction(scan, tmp_path):
    tilted = np.array([[1.5, 0, 0, 0], [0, 2, 3 * np.tan(np.radians(20)), 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    with_forms(tmp_path / "scan.nii.gz", scan, tilted, 1, np.diag([1.5, 2, 3, 1]), 1)
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii.gz").affine, tilted, atol=1e-6)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=r"scan\.nii\.gz: is no file"):
        read_volume(tmp_path / "scan.nii.gz")


def test_itk_and_nibabel_agree_about_a_scan_and_its_result(scan, tmp_path):
    """ITK believes the qform where nibabel believes the sform: both must see the result on the scan."""
    with_forms(tmp_path / "scan.nii.gz", scan, moved(oblique(), [10, 20, 30]), 2, oblique(), 1)
    write_volume(read_volume(tmp_path / "scan.nii.gz").replace(unit="HU"), tmp_path / "ct.nii.gz")
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        first, second = (getattr(sitk.ReadImage(str(tmp_path / f)), name)() for f in ("scan.nii.gz", "ct.nii.gz"))
        assert first == second


@pytest.mark.parametrize(("units", "mm"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_the_unit_of_length_is_read(units, mm, scan, tmp_path):
    stored = oblique()
    stored[:3] /= mm
    with_forms(tmp_path / "a.nii.gz", scan, stored, 1, stored, 1, units)
    volume = read_volume(tmp_path / "a.nii.gz")
    assert sorted(volume.spacing) == pytest.approx([1.5, 2, 3])
    np.testing.assert_allclose(volume.affine[:3, 3], read_grid(tmp_path / "a.nii.gz")[1][:3, 3])
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-3)
    write_volume(volume, tmp_path / "b.nii.gz")
    assert_same_forms(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")


@pytest.mark.parametrize("size", [0.002, 200.0])
def test_impossible_voxels_are_refused(size, scan, tmp_path):
    with pytest.raises(InputError, match=r"measure .* mm; expected 0\.01 to 100 mm"):
        read_volume(save(scan, tmp_path / "a.nii.gz", np.diag([size, size, size, 1])))


def patched(path, **fields):
    """Write fields of a NIfTI header without the corrections that nibabel makes."""
    content = path.read_bytes()
    fixed = np.frombuffer(content[:348], nib.nifti1.header_dtype).copy()
    for name, value in fields.items():
        fixed[name] = value
    path.write_bytes(fixed.tobytes() + content[348:])
    return path


HEADERS = {
    "voxels inside the header": ({"vox_offset": 0}, "its voxels begin at byte 0, inside the header"),
    "no voxel size": ({"sform_code": 0, "pixdim": [1, 2, 0, 2, 1, 1, 1, 1]}, "its voxels measure 2 x 0 x 2 mm"),
    "voxel size is no number": ({"sform_code": 0, "pixdim": [1, 2, np.nan, 2, 1, 1, 1, 1]}, "measure 2 x nan x 2 mm"),
}


@pytest.mark.parametrize("fields, message", HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be_meant_is_refused(fields, message, scan, tmp_path):
    path = patched(Path(save(scan, tmp_path / "a.nii", np.diag([2.0, 2, 2, 1]))), **fields)
    with pytest.raises(InputError, match=message):
        read_volume(path)


def test_sizes_beside_a_whole_sform_do_not_matter(scan, tmp_path):
    path = patched(Path(save(scan, tmp_path / "a.nii", oblique())), pixdim=[1, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(read_volume(path).affine, read_volume(save(scan, tmp_path / "b.nii", oblique())).affine)


@pytest.mark.parametrize("change", [lambda b: b[:-5], lambda b: b[:-8] + b"1234" + b[-4:], lambda b: b + b"more"])
def test_a_gzip_file_whose_check_sum_is_wrong_is_refused(change, scan, tmp_path):
    """nibabel would not read so far: damaged voxels would look like a scan."""
    path = Path(save(scan, tmp_path / "a.nii.gz", oblique()))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=r"a\.nii\.gz: is not a readable NIfTI image"):
        read_volume(path)


def test_a_header_without_forms_gets_a_warning(scan, tmp_path):
    with_forms(tmp_path / "a.nii.gz", scan, oblique(), 0, oblique(), 0)
    with pytest.warns(UserWarning, match="has neither sform nor qform"):
        read_volume(tmp_path / "a.nii.gz")


def test_forms_of_a_file_do_not_follow_onto_another_grid(scan, tmp_path):
    with_forms(tmp_path / "scan.nii.gz", scan, moved(oblique(), [10, 20, 30]), 2, oblique(), 1)
    volume = read_volume(tmp_path / "scan.nii.gz")
    for other in (volume.replace(affine=moved(volume.affine, 5)), volume.replace(array=volume.array[1:])):
        write_volume(other, tmp_path / "b.nii.gz")
        np.testing.assert_allclose(read_volume(tmp_path / "b.nii.gz").affine, other.affine, atol=1e-4)
        assert header(tmp_path / "b.nii.gz")["sform_code"] == header(tmp_path / "b.nii.gz")["qform_code"] == 1


def test_a_sheared_affine_goes_into_the_sform_alone(scan, tmp_path):
    write_volume(Volume(scan, SHEARED), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii.gz").affine, SHEARED, atol=1e-4)
    assert (header(tmp_path / "a.nii.gz")["sform_code"], header(tmp_path / "a.nii.gz")["qform_code"]) == (1, 0)


def test_the_grid_alone_needs_no_voxels(scan, tmp_path):
    """The header is enough: the voxels of this file cannot be read."""
    sitk.WriteImage(to_sitk(Volume(scan, oblique())), str(tmp_path / "a.mha"), useCompression=False)
    data = (tmp_path / "a.mha").read_bytes()
    (tmp_path / "a.mha").write_bytes(data[: len(data) - scan.nbytes // 2])
    shape, affine = read_grid(tmp_path / "a.mha")
    assert shape == SHAPE
    np.testing.assert_allclose(affine, oblique(), atol=1e-9)
    with pytest.raises(InputError, match=r"a\.mha: is not a readable MetaImage"):
        read_volume(tmp_path / "a.mha")


def test_the_grid_of_four_axes_is_that_of_the_volume(scan, tmp_path):
    assert read_grid(save(scan[..., None], tmp_path / "a.nii.gz", oblique()))[0] == SHAPE
    with pytest.raises(InputError, match=r"\(9, 11, 7, 2\)"):
        read_grid(save(np.stack([scan, scan], axis=-1), tmp_path / "b.nii.gz"))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_asks_for_more_than_the_file_can_hold_is_refused_at_once(name, scan, tmp_path):
    save(scan, tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()  # dim[1:4]: 100 TiB of float32
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for read in (read_volume, read_grid):
        with pytest.raises(InputError, match="asks for .* MiB, more than the file can hold"):
            read(tmp_path / name)


def test_too_little_memory_gets_a_sentence(scan, tmp_path, monkeypatch):
    def refuse(self, dtype=None):
        raise MemoryError

    path = save(scan, tmp_path / "a.nii.gz")
    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "__array__", refuse)
    with pytest.raises(InputError, match=r"a\.nii\.gz: its 9 x 11 x 7 voxels do not fit into memory"):
        read_volume(path)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_names_with_umlauts_are_read_and_written(encoding, scan, tmp_path):
    path = tmp_path / os.fsdecode("Müller.nii.gz".encode(encoding))
    write_volume(Volume(scan, oblique()), path)
    np.testing.assert_array_equal(read_volume(path).array, scan)


def test_a_metaimage_whose_name_is_not_utf8_gets_a_sentence(tmp_path):
    path = tmp_path / os.fsdecode("Müller.mha".encode("latin-1"))
    path.write_bytes(b"x")
    with pytest.raises(InputError, match="its name is not UTF-8"):
        read_volume(path)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("unit", ["a.u.", "label"])
def test_few_slices_are_resliced(count, axis, unit):
    """A field that does not change along the thin axis keeps its values on a finer and on a coarser grid."""
    shape = [12, 12, 12]
    shape[axis] = count
    across = (axis + 1) % 3
    array = np.moveaxis(np.broadcast_to(np.arange(12.0), (count, 12, 12)), (0, 2), (axis, across)).astype(np.float32)
    volume = Volume(array, oblique(), unit)
    np.testing.assert_allclose(reslice(volume, shape, volume.affine).array, array, atol=1e-4)
    for factor in (0.5, 3.0):  # along the thin axis, about its middle
        scale = np.eye(4)
        scale[axis, axis], scale[axis, 3] = factor, (count - 1) / 2
        shape[axis] = 1
        thin = reslice(volume, shape, volume.affine @ scale).array
        np.testing.assert_allclose(thin, array.take([0], axis), atol=1e-4)


def test_few_voxels_are_smoothed_as_if_their_edges_went_on():
    stripes = np.zeros((12, 4, 4), np.float32)
    stripes[::2] = 100
    long = Volume(np.concatenate([stripes[:3], np.repeat(stripes[2:3], 9, axis=0)]), np.eye(4))
    grid = (1, 4, 4), np.diag([3.0, 1, 1, 1])
    short = reslice(Volume(stripes[:3], np.eye(4)), *grid)
    np.testing.assert_allclose(short.array, reslice(long, *grid).array, atol=0.5)


@pytest.mark.parametrize("count", [1, 3])
def test_few_slices_are_written_and_read(count, scan, tmp_path):
    volume = Volume(scan[:, :, :count], oblique())
    write_volume(volume, tmp_path / "a.nii.gz")
    again = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)


def test_importing_volumes_loads_no_image_library():
    libraries = {"SimpleITK", "nibabel", "pydicom", "scipy"}
    code = f"import sys; import mr2ct_lib.images.volumes; print({libraries} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
