"""Volumes: every voxel keeps its place in mm, whatever the file's orientation; bad files get one sentence that names
them."""

import errno

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mr2ct_lib.files import InputError
from mr2ct_lib.images.volumes import (
    PLANES,
    Volume,
    from_sitk,
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


AFFINES = pytest.mark.parametrize("affine", [np.eye(4), oblique(), flipped(), permuted()], ids=["plain", "oblique", "flipped", "permuted"])


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
    found = np.unravel_index(volume.array.argmax(), volume.array.shape)
    np.testing.assert_allclose(volume.affine @ [*found, 1], place, atol=1e-4)
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
    back = from_sitk(image, volume.unit)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-6)


@AFFINES
def test_our_file_lies_where_simpleitk_reads_it(affine, scan, tmp_path):
    volume = read_volume(save(scan, tmp_path / "a.nii.gz", affine))
    write_volume(volume, tmp_path / "b.nii.gz")
    theirs = from_sitk(sitk.ReadImage(str(tmp_path / "b.nii.gz")))
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
    [("HU", [-1024, 3000], "int16"), ("label", [0, 255], "uint8"), ("label", [0, 300], "int16"), ("%", [0.0, 99.5], "float32")],
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


def save_series(array, folder, uid):
    """Axial slices (k, h, w) as a DICOM series, a file each."""
    folder.mkdir(parents=True)
    for k, plane in enumerate(array.astype(np.int16)):
        image = sitk.GetImageFromArray(plane[None])
        tags = {"0008|0060": "CT", "0020|000d": "1.2.3", "0020|000e": uid, "0020|0013": str(k), "0020|0037": r"1\0\0\0\1\0"}
        for tag, value in (tags | {"0020|0032": rf"0\0\{3 * k}", "0008|0018": f"{uid}.{k}"}).items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(image)


def test_dicom_is_found_in_folders_below_and_several_series_are_listed(tmp_path):
    array = np.random.default_rng(0).integers(-1000, 2000, (4, 6, 5))
    save_series(array, tmp_path / "patient" / "study" / "series", "1.2.3.4")
    volume = read_volume(tmp_path / "patient")
    assert volume.unit == "HU" and volume.spacing[2] == pytest.approx(3)
    np.testing.assert_array_equal(slices_of(volume, "axial"), array)
    save_series(array[:2], tmp_path / "patient" / "study" / "localiser", "1.2.3.5")
    with pytest.raises(InputError, match="holds 2 DICOM series .*2 files in study/localiser, one of 4 files in study/series"):
        read_volume(tmp_path / "patient")


def test_dicom_slices_lie_in_order_with_their_spacing_and_hu(real_data):
    """Against each file read on its own and sorted by its position: another way than the series reader."""
    folder = real_data / "dicom_ct"
    volume = read_volume(folder)
    slices = sorted((sitk.ReadImage(str(path)) for path in folder.glob("*.dcm")), key=lambda image: image.GetOrigin()[2])
    assert volume.unit == "HU"
    assert volume.array.shape == (512, 512, len(slices))
    gap = slices[1].GetOrigin()[2] - slices[0].GetOrigin()[2]
    np.testing.assert_allclose(volume.spacing, [*slices[0].GetSpacing()[:2], gap], rtol=1e-4)
    for k in (0, 7, len(slices) - 1):
        image = sitk.GetArrayFromImage(slices[k])[0]  # rows to posterior, columns to the patient's left
        np.testing.assert_array_equal(slices_of(volume, "axial")[k], image)
        corner = np.array(slices[k].GetOrigin()) * [-1, -1, 1]
        np.testing.assert_allclose((volume.affine @ [511, 511, k, 1])[:3], corner, atol=1e-3)
    assert volume.array.min() >= -1100
    assert 0 < np.median(volume.array[(volume.array > -20) & (volume.array < 100)]) < 80  # soft tissue


def test_dicom_with_a_missing_slice_or_two_series_is_refused(real_data, tmp_path):
    files = sorted((real_data / "dicom_ct").glob("*.dcm"))
    for number, path in enumerate(files[:6]):
        if number != 3:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="mm apart"):
        read_volume(tmp_path)
