"""DICOM series: every voxel lies and measures what its own header states, or one sentence names the file."""

import copy
import errno
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

from mr2ct_lib.files import InputError
from mr2ct_lib.images.dicom import write_dicom_series
from mr2ct_lib.images.volumes import Volume, read_grid, read_volume, reslice, slices_of, write_volume

CASES = Path(__file__).parents[2] / "shared" / "cases"
ROWS, COLUMNS, SLICES = 7, 9, 6
AXIAL, CORONAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
COS, SIN = np.cos(np.radians(20)), np.sin(np.radians(20))
OBLIQUE = (COS, SIN, 0, -SIN * COS, COS * COS, SIN)  # perpendicular unit vectors


def hu_at(points: np.ndarray) -> np.ndarray:
    """The HU of the phantom at points (..., 3) in mm RAS: tissue that changes linearly, air from 3 mm to the left."""
    tissue = 40 + points @ np.array([2.0, -3.0, 1.0])
    return np.where(points[..., 0] < -3, -1000, tissue)


def ct_slice(position, orientation=AXIAL, spacing=(2.0, 1.5)) -> Dataset:
    """One CT slice of the phantom. position (3,), orientation (6,) in LPS; spacing of rows and of columns in mm."""
    row, column = np.reshape(orientation, (2, 3))
    i, j = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    points = position + i[..., None] * spacing[1] * row + j[..., None] * spacing[0] * column
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = CTImageStorage, generate_uid(), "CT"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    image.PatientName, image.PatientID, image.PatientPosition = "Müller^Änne", "P7", "HFS"
    image.SpecificCharacterSet = "ISO_IR 100"
    image.ImagePositionPatient, image.ImageOrientationPatient = as_text(position), as_text(orientation)
    image.PixelSpacing, image.SliceThickness = list(spacing), 3
    image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = ROWS, COLUMNS, 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.PixelData = (np.round(hu_at(points * [-1, -1, 1])) + 1024).astype("<u2").tobytes()
    return image


def as_text(numbers) -> list[str]:
    return [pydicom.valuerep.format_number_as_ds(float(number)) for number in numbers]


def ct_slices(orientation=AXIAL, step=(0, 0, 3), first=(-5, -10, 30), count=SLICES) -> list[Dataset]:
    return [ct_slice(np.add(first, np.multiply(step, k)), orientation) for k in range(count)]


def save(slices: list[Dataset], folder: Path) -> Path:
    """Write slices in an order of names that is not the order of places."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(slices):
        image.save_as(folder / f"IM{(5 * k + 2) % 7}{k // 7}.dcm", enforce_file_format=True)
    return folder


def assert_phantom(volume: Volume, tolerance: float = 0.51) -> None:
    """Every voxel holds the value of the phantom at its place."""
    points = np.moveaxis(np.indices(volume.array.shape), 0, -1) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_allclose(volume.array, hu_at(points), atol=tolerance)


GEOMETRIES = {
    "axial": (AXIAL, (0, 0, 3)),
    "downwards": (AXIAL, (0, 0, -3)),
    "coronal": (CORONAL, (0, 2.5, 0)),
    "sagittal": (SAGITTAL, (4, 0, 0)),
    "oblique": (OBLIQUE, 3 * np.cross(OBLIQUE[:3], OBLIQUE[3:])),
    "tilted gantry": ((1, 0, 0, 0, COS, -SIN), (0, 0, 3)),
    "sheared to the side": (AXIAL, (1.5, 0, 3)),
}


@pytest.mark.parametrize("orientation, step", GEOMETRIES.values(), ids=GEOMETRIES)
def test_every_voxel_lies_where_its_slice_says(orientation, step, tmp_path):
    folder = save(ct_slices(orientation, step), tmp_path / "ct")
    volume = read_volume(folder)
    assert volume.unit == "HU" and volume.array.size == ROWS * COLUMNS * SLICES
    assert_phantom(volume)
    shape, affine = read_grid(folder)
    assert shape == volume.array.shape
    np.testing.assert_array_equal(affine, volume.affine)


def test_a_tilted_gantry_is_resliced_to_its_place(tmp_path):
    volume = read_volume(save(ct_slices((1, 0, 0, 0, COS, -SIN), (0, 0, 3), count=9), tmp_path / "ct"))
    middle = volume.affine @ [5, 3, 4, 1]  # inside the tissue, away from the edges
    grid = np.eye(4)
    grid[:3, 3] = middle[:3]
    assert_phantom(reslice(volume, (3, 2, 4), grid))


def test_positions_rounded_by_the_scanner_are_even(tmp_path):
    slices = ct_slices(step=(0, 0, 1.23456))
    for image in slices:
        image.ImagePositionPatient = [round(float(x), 2) for x in image.ImagePositionPatient]
    assert read_volume(save(slices, tmp_path / "ct")).spacing[2] == pytest.approx(1.23456, abs=0.003)


def put(**values):
    """Return a function that sets attributes of the fourth slice; None deletes one."""

    def change(slices):
        for keyword, value in values.items():
            if value is None:
                del slices[3][keyword]
            else:
                setattr(slices[3], keyword, value)

    return change


def everywhere(**values):
    def change(slices):
        for image in slices:
            for keyword, value in values.items():
                delattr(image, keyword) if value is None else setattr(image, keyword, value)

    return change


def cine(slices):
    for k, image in enumerate(slices):
        image.ImagePositionPatient, image.TriggerTime = [0, 0, 0], 40 * k


def two_echoes(slices):
    for k, image in enumerate(slices):
        image.ImagePositionPatient, image.EchoTime = [0, 0, 3 * (k % 3)], 2.3 + 2.3 * (k // 3)


def inverted(slices):
    for image in slices:
        image.PixelData = (4095 - np.frombuffer(image.PixelData, "<u2")).astype("<u2").tobytes()


def padded(slices):
    """Soft tissue at 1064, but the corners hold -1000."""
    for image in slices:
        values = np.frombuffer(image.PixelData, "<u2").astype("<i2").reshape(ROWS, COLUMNS).copy()
        values[[0, 0, -1, -1], [0, -1, 0, -1]] = -1000
        image.PixelData, image.PixelRepresentation, image.RescaleIntercept = values.tobytes(), 1, 0


def an_mr(slices):
    """An MR that calls itself a CT: nothing lies below zero."""
    for k, image in enumerate(slices):
        values = np.random.default_rng(k).integers(0, 280, (ROWS, COLUMNS))
        image.PixelData, image.RescaleIntercept = values.astype("<u2").tobytes(), 0


def as_mr(change):
    """The same change in a series of MR."""

    def changed(slices):
        everywhere(Modality="MR", SOPClassUID=MRImageStorage)(slices)
        change(slices)

    return changed


def twice(slices):
    slices[3] = slices[2]


def twice_anew(slices):
    slices[3] = copy.deepcopy(slices[2])
    slices[3].SOPInstanceUID = generate_uid()


def padding_without_a_word(slices):
    """What the scanner did not measure holds 65535, and no header says so."""
    for image in slices:
        values = np.frombuffer(image.PixelData, "<u2").copy()
        values[:COLUMNS] = 65535
        image.PixelData = values.tobytes()


def far_localizer(slices):
    """Parallel to the others, at the next place."""
    slices.append(ct_slice((-5, -10, 30 + 3 * SLICES)))
    everywhere(ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])(slices)
    slices[-1].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def two_echoes_side_by_side(slices):
    for k, image in enumerate(slices):
        image.EchoTime = 2.3 + 2.3 * (k % 2)


def real_world_scales(slices):
    everywhere(Modality="MR", RescaleIntercept=None, RescaleSlope=None)(slices)
    for k, image in enumerate(slices):
        mapping = Dataset()
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 1.0 + k, 0.0
        image.RealWorldValueMappingSequence = [mapping]


BAD_SERIES = {
    "no position": (put(ImagePositionPatient=None), r"IM30\.dcm: its Image Position \(Patient\) is absent"),
    "empty position": (put(ImagePositionPatient=""), r"IM30\.dcm: its Image Position \(Patient\) is absent"),
    "two coordinates": (put(ImagePositionPatient=[1, 2]), r"IM30\.dcm: .*\[1\.0, 2\.0\]; expected 3 numbers"),
    "no orientation": (put(ImageOrientationPatient=None), r"IM30\.dcm: its Image Orientation"),
    "no pixel size": (everywhere(PixelSpacing=None), "Pixel Spacing is absent"),
    "pixel size 0": (put(PixelSpacing=[0, 2]), r"IM30\.dcm: its pixels have no size"),
    "another orientation": (put(ImageOrientationPatient=list(CORONAL)), r"IM30\.dcm: has another orientation"),
    "not perpendicular": (put(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]), r"IM30\.dcm: .* not perpendicular"),
    "other pixels": (put(PixelSpacing=[2.2, 1.5]), r"IM30\.dcm: has pixels of another size"),
    "other size": (put(Rows=ROWS - 1), r"IM30\.dcm: has another number of pixels"),
    "other frame": (put(FrameOfReferenceUID="1.9"), r"IM30\.dcm: has another frame of reference"),
    "missing slice": (lambda slices: slices.pop(2), r"IM50\.dcm: lies 6 mm from the slice before it; all lie 3 to 6"),
    "shifted slice": (put(ImagePositionPatient=[-5, -8, 39]), r"mm apart; expected even distances"),
    "copied slice": (twice, r"IM\d0\.dcm: is a copy of IM\d0\.dcm"),
    "copied slice of another name": (twice_anew, r"IM\d0\.dcm: lies at the same place as IM\d0\.dcm \(their headers"),
    "cine": (cine, r"trigger times \S+ and \S+\); 6 slices share 1 place;"),
    "two echoes": (two_echoes, r"echo times 2\.3 and 4\.6\); 6 slices share 3 places;"),
    "two series": (put(SeriesInstanceUID="1.8"), "holds 2 DICOM series"),
    "colours": (put(PhotometricInterpretation="RGB"), r"IM30\.dcm: holds colours"),
    "no rescale": (everywhere(RescaleSlope=None, RescaleIntercept=None), r"\(it has no rescale\).*near -1000"),
    "intercept 0": (everywhere(RescaleIntercept=0), r"values \d+ to \d+ are not Hounsfield units \(its resc"),
    "intercept twice": (everywhere(RescaleIntercept=-2048), "not Hounsfield units"),
    "inverted": (inverted, "not Hounsfield units"),
    "intercept 0, air around": (padded, "not Hounsfield units"),
    "an MR": (an_mr, r"is a CT, but its values \d+ to \d+ are not Hounsfield units"),
    "one without rescale": (put(RescaleIntercept=None, RescaleSlope=None), r"IM30\.dcm: has no Rescale Intercept"),
    "slope 0": (put(RescaleSlope=0), r"IM30\.dcm: its Rescale Slope is 0"),
    "no slope": (put(RescaleSlope=None), r"IM30\.dcm: its Rescale Slope is absent"),
    "empty intercept": (put(RescaleIntercept=""), r"IM30\.dcm: its Rescale Intercept is absent"),
    "intercept 0 of one": (put(RescaleIntercept=0), r"IM30\.dcm: its values are not Hounsfield units, unlike"),
    "MR, one slope 0": (as_mr(put(RescaleSlope=0)), r"IM30\.dcm: its Rescale Slope is 0"),
    "MR, one without rescale": (as_mr(put(RescaleIntercept=None, RescaleSlope=None)), r"IM30\.dcm: has no Rescale"),
    "padding without a word": (padding_without_a_word, r"values -1000 to 64511 are not Hounsfield units"),
    "cut pixels": (put(PixelData=b"\0\0"), r"IM30\.dcm: its pixels cannot be decoded"),
    "no pixels": (put(PixelData=None), r"IM30\.dcm: its pixels cannot be decoded"),
    "mosaic": (put(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), r"IM30\.dcm: is a mosaic of slices"),
    "localizer in line": (far_localizer, r"another kind of image \((AXIAL|LOCALIZER)\) than .*without localizers"),
    "phase image in line": (put(ImageType=["O", "P", "P", "PHASE"]), r"another kind of image \(P PHASE\) than"),
    "two echoes in line": (as_mr(two_echoes_side_by_side), r"another echo time \(\d\.\d\) than"),
    "two patients": (put(PatientID="P8"), r"another patient \(P8\) than .*\(P7\)"),
    "one MR slice": (put(Modality="MR"), r"another modality \(MR\) than"),
    "slope 2 of one": (put(RescaleSlope=2), r"IM30\.dcm: its values are not Hounsfield units, unlike those of other"),
    "a tenth": (everywhere(RescaleSlope=0.1, RescaleIntercept=-102.4), "soft tissue spans less than 25"),
    "tenfold": (everywhere(RescaleSlope=10, RescaleIntercept=-10240), "not Hounsfield units"),
    "three samples": (everywhere(SamplesPerPixel=3, PlanarConfiguration=0), "holds colours"),
    "pixels of 32 bits": (put(PixelData=bytes(4 * ROWS * COLUMNS)), r"IM30\.dcm: holds 252 bytes of pixels"),
    "a row more than said": (everywhere(Rows=ROWS - 1), "holds 126 bytes of pixels, .* which are 108;"),
    "a column more than said": (everywhere(Columns=COLUMNS - 1), "holds 126 bytes of pixels, .* which are 112;"),
    "real world scales": (real_world_scales, "each slice has a Real World Value Slope of its own"),
    "two padding values": (put(PixelPaddingValue=[0, 1]), r"IM30\.dcm: its Pixel Padding Value is .*expected 1 number"),
    "film": (put(NumberOfFrames=3), r"IM30\.dcm: holds 3 frames, of which 0 have a place"),
}


@pytest.mark.parametrize("change, message", BAD_SERIES.values(), ids=BAD_SERIES)
def test_a_slice_that_does_not_fit_is_named(change, message, tmp_path):
    slices = ct_slices()
    change(slices)
    with pytest.raises(InputError, match=message) as error:
        read_volume(save(slices, tmp_path / "ct"))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_lone_slice_has_its_thickness_or_is_refused(tmp_path):
    (image,) = ct_slices(count=1)
    volume = read_volume(save([image], tmp_path / "ct"))
    assert volume.array.shape == (COLUMNS, ROWS, 1) and volume.spacing[2] == 3
    assert_phantom(volume)
    del image.SliceThickness
    with pytest.raises(InputError, match="single slice without Slice Thickness"):
        read_volume(save([image], tmp_path / "ct"))


def test_pixels_at_the_upper_bits_are_shifted_down(tmp_path):
    slices = ct_slices()
    for image in slices:
        image.PixelData = (np.frombuffer(image.PixelData, "<u2") << 4).astype("<u2").tobytes()
        image.BitsStored, image.HighBit = 12, 15
    assert_phantom(read_volume(save(slices, tmp_path / "unsigned")))
    for image in slices:
        values = (np.frombuffer(image.PixelData, "<u2") >> 4).astype("<i2") - 1024
        image.PixelData, image.PixelRepresentation, image.RescaleIntercept = (values << 4).tobytes(), 1, 0
    assert_phantom(read_volume(save(slices, tmp_path / "signed")))


def test_bits_that_are_not_stored_mean_nothing(tmp_path):
    """Old overlays lie there; a negative number of 12 bits has zeros there."""
    slices = ct_slices()
    for image in slices:
        image.PixelData = (np.frombuffer(image.PixelData, "<u2") | 0x1000).astype("<u2").tobytes()
        image.BitsStored, image.HighBit = 12, 11
    assert_phantom(read_volume(save(slices, tmp_path / "overlay")))
    for image in slices:
        values = ((np.frombuffer(image.PixelData, "<u2") & 0xFFF).astype(int) - 1024) & 0xFFF
        image.PixelData, image.PixelRepresentation, image.RescaleIntercept = values.astype("<u2").tobytes(), 1, 0
    assert_phantom(read_volume(save(slices, tmp_path / "signed")))


def test_echo_times_may_be_rounded_otherwise(tmp_path):
    slices = ct_slices()
    for k, image in enumerate(slices):
        image.EchoTime = 2.34 + 0.01 * (k % 2)
    assert_phantom(read_volume(save(slices, tmp_path / "ct")))


def test_monochrome1_concerns_the_display_only(tmp_path):
    slices = ct_slices()
    everywhere(PhotometricInterpretation="MONOCHROME1")(slices)
    assert_phantom(read_volume(save(slices, tmp_path / "ct")))


def test_each_slice_is_rescaled_as_it_states(tmp_path):
    slices = ct_slices()
    for k, image in enumerate(slices):
        stored = np.frombuffer(image.PixelData, "<u2") - 1024.0
        image.RescaleSlope, image.RescaleIntercept = 0.5 + k / 10, -1100 - k
        image.PixelData = np.round((stored - image.RescaleIntercept) / image.RescaleSlope).astype("<u2").tobytes()
    assert_phantom(read_volume(save(slices, tmp_path / "ct")), tolerance=1.05)


PADDING = {  # Pixel Padding Value, Range Limit, what is stored around, signed or not
    "signed": (-2000, None, -2000, 1),
    "signed, written as unsigned": (63536, None, -2000, 1),
    "above everything": (65535, None, 65535, 0),
    "a range": (64000, 65000, 64500, 0),
    "an ordinary value is no padding": (1064, None, None, 0),
}


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("value, limit, stored, signed", PADDING.values(), ids=PADDING)
def test_what_the_scanner_did_not_measure_is_air(value, limit, stored, signed, modality, tmp_path):
    slices, dtype = ct_slices(), "<i2" if signed else "<u2"
    for image in slices:
        pixels = np.frombuffer(image.PixelData, "<u2").astype(dtype).reshape(ROWS, COLUMNS).copy()
        if stored is not None:
            pixels[0] = stored
        image.PixelData, image.PixelRepresentation = pixels.tobytes(), signed
        image.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        if limit is not None:
            image.add_new("PixelPaddingRangeLimit", "US", limit)
        if modality == "MR":
            image.Modality, image.SOPClassUID, image.RescaleIntercept = "MR", MRImageStorage, 0
    volume = read_volume(save(slices, tmp_path / "ct"))
    air = -1000 if modality == "CT" else 0
    outside = volume.array[:, -1]  # rows are numbered from anterior to posterior
    if stored is None:
        assert not (outside == air).all()
    else:
        assert (outside == air).all()
        offset = 0 if modality == "CT" else 1024
        inside = volume.replace(array=volume.array[:, :-1] - offset)
        assert_phantom(inside)


@pytest.mark.parametrize("modality, low", [("MR", -2000), ("PT", 0)])
def test_a_header_that_does_not_fit_its_values_is_doubted(modality, low, tmp_path):
    slices = ct_slices()
    everywhere(Modality=modality, RescaleIntercept=low)(slices)
    with pytest.warns(UserWarning, match=f"its header says {modality}"):
        read_volume(save(slices, tmp_path / "a"))


@pytest.mark.parametrize("word", ["P", "PHASE MAP", "R", "IMAGINARY"])
def test_an_mr_that_is_no_magnitude_is_doubted(word, tmp_path):
    slices = ct_slices()
    everywhere(Modality="MR", RescaleIntercept=0, ImageType=["ORIGINAL", "PRIMARY", word, "ND"])(slices)
    with pytest.warns(UserWarning, match=f"its Image Type says {word}: a phase, real or imaginary image"):
        read_volume(save(slices, tmp_path / "a"))


def test_words_of_the_image_type_that_say_nothing_distinguish_no_slices(tmp_path):
    """Their order and number, idle words, and how an image was made differ within series of some scanners."""
    types = [
        ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"], ["DERIVED", "SECONDARY", "AXIAL", "HELIX"],
        ["ORIGINAL", "PRIMARY", "HELIX", "AXIAL"], ["ORIGINAL", "PRIMARY", "AXIAL", "OTHER", "HELIX", ""],
        ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX", "AXIAL"], ["ORIGINAL", "PRIMARY", "Axial", "HELIX", "MIXED"],
    ]  # fmt: skip
    slices = ct_slices()
    for image, words in zip(slices, types, strict=True):
        image.ImageType = words
    assert_phantom(read_volume(save(slices, tmp_path / "ct")))


def test_a_ct_in_hu_without_rescale_is_taken_as_it_is(tmp_path):
    slices = ct_slices()
    for image in slices:
        image.PixelData = (np.frombuffer(image.PixelData, "<u2").astype("<i2") - 1024).tobytes()
        image.PixelRepresentation = 1
        del image.RescaleSlope, image.RescaleIntercept
    assert_phantom(read_volume(save(slices, tmp_path / "ct")))


def test_a_ct_map_in_another_unit_is_not_called_hu(tmp_path):
    slices = ct_slices()
    everywhere(RescaleType="Z_EFF", RescaleIntercept=0)(slices)
    assert read_volume(save(slices, tmp_path / "ct")).unit == "a.u."


def test_an_mr_keeps_its_values(tmp_path):
    slices = ct_slices()
    everywhere(Modality="MR", SOPClassUID=MRImageStorage, RescaleIntercept=None, RescaleSlope=None)(slices)
    volume = read_volume(save(slices, tmp_path / "mr"))
    assert volume.unit == "a.u." and volume.array.min() == 24


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000", "RLE"])
def test_compressed_series_are_read(compressor, tmp_path):
    plain = save(ct_slices(), tmp_path / "plain")
    (tmp_path / "small").mkdir()
    for path in plain.iterdir():
        if compressor == "RLE":
            image = pydicom.dcmread(path)
            image.compress(RLELossless)
            image.save_as(tmp_path / "small" / path.name)
            continue
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.SetFileName(str(tmp_path / "small" / path.name))
        writer.Execute(sitk.ReadImage(str(path), sitk.sitkInt16))
    assert pydicom.dcmread(next((tmp_path / "small").iterdir())).file_meta.TransferSyntaxUID.is_compressed
    assert_phantom(read_volume(tmp_path / "small"))


def test_compressed_frames_and_monochrome1_keep_their_values(tmp_path):
    """The decoder sees neither the rescale of a frame nor that dark and bright are exchanged on the display."""
    slices = ct_slices()
    for image in slices:
        path = save([image], tmp_path / "plain") / "IM20.dcm"
        writer = sitk.ImageFileWriter()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.SetFileName(str(tmp_path / "small.dcm"))
        writer.Execute(sitk.Cast(sitk.ReadImage(str(path), sitk.sitkInt16) + 1024, sitk.sitkUInt16))
        small = pydicom.dcmread(tmp_path / "small.dcm")
        image.PixelData = pydicom.encaps.get_frame(small.PixelData, 0, number_of_frames=1)
        image.file_meta.TransferSyntaxUID, image.PhotometricInterpretation = JPEG2000Lossless, "MONOCHROME1"
    frames = enhanced(slices)
    frames.PixelData = pydicom.encaps.encapsulate([image.PixelData for image in slices])
    frames["PixelData"].is_undefined_length = True
    assert_phantom(read_volume(save([frames], tmp_path / "frames")))
    for image in slices:
        image.PixelData = pydicom.encaps.encapsulate([image.PixelData])
        image["PixelData"].is_undefined_length = True
    assert_phantom(read_volume(save(slices, tmp_path / "files")))


def test_files_without_a_preamble_are_read(tmp_path):
    folder = save(ct_slices(), tmp_path / "ct")
    for path in folder.iterdir():
        image = pydicom.dcmread(path)
        image.file_meta, image.preamble = FileMetaDataset(), None
        path.unlink()
        pydicom.dcmwrite(path.with_suffix(""), image, implicit_vr=True, little_endian=True)
    assert_phantom(read_volume(folder))


def enhanced(slices: list[Dataset], modality: str = "CT") -> Dataset:
    """One multi-frame file of slices."""
    image = Dataset()
    image.update({item.tag: item for item in slices[0] if item.keyword not in GROUPS})
    image.file_meta = slices[0].file_meta
    image.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    image.Modality, image.NumberOfFrames = modality, len(slices)
    image.PixelData = b"".join(one.PixelData for one in slices)
    image.SharedFunctionalGroupsSequence = [Dataset()]
    image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [part(slices[0], "PixelSpacing", "SliceThickness")]
    image.PerFrameFunctionalGroupsSequence = []
    for one in slices:
        group = Dataset()
        group.PlanePositionSequence = [part(one, "ImagePositionPatient")]
        group.PlaneOrientationSequence = [part(one, "ImageOrientationPatient")]
        group.PixelValueTransformationSequence = [part(one, "RescaleSlope", "RescaleIntercept")]
        if "EffectiveEchoTime" in one:
            group.MREchoSequence = [part(one, "EffectiveEchoTime")]
        image.PerFrameFunctionalGroupsSequence.append(group)
    return image


GROUPS = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "PixelData",
)  # fmt: skip


def part(image: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        item[keyword] = image[keyword]
    return item


def test_frames_of_one_volume_are_read_in_the_order_of_their_places(tmp_path):
    slices = ct_slices((1, 0, 0, 0, COS, -SIN))
    for k, image in enumerate(slices):  # each frame has its own rescale
        image.RescaleIntercept = -1000 - k
        image.PixelData = (np.frombuffer(image.PixelData, "<u2") - 24 + k).astype("<u2").tobytes()
    folder = save([enhanced([slices[k] for k in (3, 0, 5, 1, 4, 2)])], tmp_path / "ct")
    volume = read_volume(folder)
    assert volume.unit == "HU"
    assert_phantom(volume)
    np.testing.assert_array_equal(read_grid(folder)[1], volume.affine)


def test_frames_of_two_echoes_are_named(tmp_path):
    slices = ct_slices()
    for k, image in enumerate(slices):
        image.ImagePositionPatient, image.EffectiveEchoTime = [0, 0, 3 * (k % 3)], 2.3 + 2.3 * (k // 3)
    with pytest.raises(InputError, match=r"frame 4: lies at the same place as frame 1 \(echo times 2\.3 and 4\.6\)"):
        read_volume(save([enhanced(slices, "MR")], tmp_path / "mr"))


def test_what_is_no_image_is_left_alone_and_a_damaged_file_is_named(tmp_path):
    folder = save(ct_slices(), tmp_path / "ct")
    plan = ct_slice((0, 0, 0))
    plan.SeriesInstanceUID = "1.7"
    del plan.Rows, plan.Columns, plan.PixelData
    plan.save_as(folder / "plan.dcm", enforce_file_format=True)
    (folder / "README.txt").write_text("a note")
    (folder / "._IM00.dcm").write_bytes(b"left by a Mac")
    assert_phantom(read_volume(folder))
    (folder / "IM99.dcm").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"IM99\.dcm: is not a readable DICOM file"):
        read_volume(folder)


@pytest.mark.parametrize("left", [0, 140, 400])
def test_a_slice_cut_short_is_missed_although_its_name_has_no_ending(left, tmp_path):
    """Without its last slice a series looks whole."""
    slices = ct_slices()
    save(slices, tmp_path / "ct")
    for path in (tmp_path / "ct").iterdir():
        path.rename(path.with_suffix(""))
    path = max((tmp_path / "ct").iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=f"{path.name}: is not a readable DICOM file"):
        read_volume(tmp_path / "ct")


def test_a_header_that_makes_no_sense_gets_one_sentence(tmp_path):
    slices = ct_slices()
    put(NumberOfFrames=1)(slices)
    path = save(slices, tmp_path / "ct") / "IM30.dcm"
    number = b"\x28\0\x08\0IS\x02\x00"
    path.write_bytes(path.read_bytes().replace(number + b"1 ", number + b"x "))
    with warnings.catch_warnings(record=True) as caught, pytest.raises(InputError, match="ct: a header .* is damaged"):
        read_volume(tmp_path / "ct")
    assert not caught


def test_dicom_is_found_in_folders_below_and_several_series_are_listed(tmp_path):
    folder = tmp_path / "patient"
    save(ct_slices(), folder / "study" / "series")
    assert_phantom(read_volume(folder))
    localizer = ct_slices(count=2)
    everywhere(SeriesInstanceUID="1.2.3.6")(localizer)
    save(localizer, folder / "study" / "localizer")
    with pytest.raises(InputError, match=r"2 DICOM series .*2 files, study/localizer/\S+ the first, one of 6 "):
        read_volume(folder)


def test_a_series_too_large_for_the_memory_gets_a_sentence(tmp_path, monkeypatch):
    folder = save(ct_slices(), tmp_path / "ct")

    def refuse(self):
        raise MemoryError

    monkeypatch.setattr("mr2ct_lib.images.dicom_reading.Series.read", refuse)
    with pytest.raises(InputError, match=r"9 x 7 x 6 voxels do not fit into memory"):
        read_volume(folder)


# ---- writing


def synthetic(affine=None, shape=(8, 9, 5), axcodes=("R", "A", "S")) -> Volume:
    """A CT of random HU."""
    values = np.random.default_rng(3).integers(-1024, 2000, shape).astype(np.float32)
    return Volume(values, np.diag([1.25, 1.5, 2.5, 1]) if affine is None else affine, "HU", axcodes)


def turned(*degrees: float) -> np.ndarray:
    """An affine turned about x, y and z, with anisotropic voxels far from the origin."""
    affine = np.diag([0.9765625, 1.2, 3.3, 1.0])
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(4)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        affine = turn @ affine
    affine[:3, 3] = [-123.456789, 87.654321, -1234.56789]
    return affine


GRIDS = {
    "plain": (None, ("R", "A", "S")),
    "turned": (turned(11, -7, 23), ("L", "P", "S")),
    "turned coronal": (turned(11, -7, 23), ("R", "S", "A")),
    "turned sagittal": (turned(-5, 4, 9), ("P", "I", "L")),
}


@pytest.mark.parametrize("affine, axcodes", GRIDS.values(), ids=GRIDS)
def test_nifti_to_dicom_and_back_keeps_places_and_values(affine, axcodes, tmp_path):
    write_volume(synthetic(affine, axcodes=axcodes), tmp_path / "a.nii.gz")
    ct = read_volume(tmp_path / "a.nii.gz")
    write_dicom_series(ct, tmp_path / "ct")
    again = read_volume(tmp_path / "ct")
    assert again.unit == "HU"
    write_volume(again, tmp_path / "b.nii.gz")
    again = read_volume(tmp_path / "b.nii.gz")
    corners = np.array([[i, j, k, 1] for i in (0, 7) for j in (0, 8) for k in (0, 4)]).T
    np.testing.assert_allclose(again.affine @ corners, ct.affine @ corners, atol=1e-4)
    np.testing.assert_array_equal(again.array, ct.array)


@pytest.mark.parametrize("affine, axcodes", GRIDS.values(), ids=GRIDS)
def test_gdcm_reads_our_series_at_the_same_place(affine, axcodes, tmp_path):
    ct = synthetic(affine, axcodes=axcodes)
    write_dicom_series(ct, tmp_path / "ct")
    (series,) = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path / "ct"))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"), series)
    assert [Path(name).name for name in names] == sorted(path.name for path in (tmp_path / "ct").iterdir())
    sitk.WriteImage(sitk.ReadImage(names), str(tmp_path / "theirs.mha"))
    theirs = read_volume(tmp_path / "theirs.mha")
    np.testing.assert_allclose(theirs.affine, ct.affine, atol=1e-6)
    np.testing.assert_array_equal(theirs.array, ct.array)
    assert len(names) == ct.array.shape[{"S": 2, "A": 1, "L": 0}[axcodes[2]]]  # the slices are those of the file


def test_a_tilted_ct_keeps_its_places(tmp_path):
    tilted = read_volume(save(ct_slices((1, 0, 0, 0, COS, -SIN), (0, 0, 3)), tmp_path / "tilt"))
    write_dicom_series(tilted, tmp_path / "ct")
    again = read_volume(tmp_path / "ct")
    assert_phantom(again)
    np.testing.assert_allclose(again.affine, tilted.affine, atol=1e-9)


def test_slices_that_are_no_rectangles_are_refused(tmp_path):
    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    with pytest.raises(InputError, match=r"sheared within its slices \(rows and columns meet at 73\.30 degrees\)"):
        write_dicom_series(synthetic(sheared), tmp_path / "ct")
    assert list(tmp_path.iterdir()) == []


def test_one_slice_is_written_and_read(tmp_path):
    ct = synthetic(turned(5, 0, 0), shape=(8, 9, 1))
    write_dicom_series(ct, tmp_path / "ct")
    again = read_volume(tmp_path / "ct")
    np.testing.assert_allclose(again.affine, ct.affine, atol=1e-6)
    np.testing.assert_array_equal(again.array, ct.array)


def test_values_are_rounded_and_clipped_to_int16(tmp_path):
    ct = synthetic()
    ct.array[0, 0, :3] = [-40000, 1.6, 40000]
    write_dicom_series(ct, tmp_path / "ct")
    assert read_volume(tmp_path / "ct").array[0, 0, :3].tolist() == [-32768, 2, 32767]


def headers(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def mr_folder(folder: Path) -> Path:
    slices = ct_slices(CORONAL, (0, 3, 0))
    everywhere(Modality="MR", SOPClassUID=MRImageStorage, StudyID="S9", StudyDate="20240102")(slices)
    return save(slices, folder)


def test_a_series_is_derived_new_anonymous_and_not_for_clinical_use(tmp_path):
    mr = mr_folder(tmp_path / "mr")
    write_dicom_series(read_volume(mr).replace(unit="HU"), tmp_path / "ct", reference=mr)
    images = headers(tmp_path / "ct")
    for image in images:
        assert image.Modality == "CT" and image.SOPClassUID == CTImageStorage
        assert list(image.ImageType) == ["DERIVED", "SECONDARY", "AXIAL"]
        assert "not for clinical use" in image.SeriesDescription and "ot for clinical use" in image.ImageComments
        assert image.FrameOfReferenceUID == "1.2.3.5" and image.PatientPosition == "HFS"
        assert image.StudyInstanceUID != "1.2.3" and image.SeriesInstanceUID != "1.2.3.4"
        assert "ller" not in str(image) and "P7" not in str(image) and "S9" not in str(image)
        assert image.RescaleType == "HU" and image.RescaleSlope == 1
    assert len({image.SOPInstanceUID for image in images}) == len(images)
    assert len({(image.StudyInstanceUID, image.SeriesInstanceUID, image.PatientID) for image in images}) == 1


def test_patient_and_study_are_kept_on_demand(tmp_path):
    mr = mr_folder(tmp_path / "mr")
    write_dicom_series(read_volume(mr).replace(unit="HU"), tmp_path / "ct", reference=mr, keep_patient=True)
    for image in headers(tmp_path / "ct"):
        assert (image.PatientName, image.PatientID, image.StudyID) == ("Müller^Änne", "P7", "S9")
        assert image.StudyInstanceUID == "1.2.3" and image.SeriesInstanceUID != "1.2.3.4"
    with pytest.raises(InputError, match="no reference"):
        write_dicom_series(synthetic(), tmp_path / "other", keep_patient=True)


def test_what_the_scanner_wrote_against_the_standard_is_kept(tmp_path):
    mr = mr_folder(tmp_path / "mr")
    with pydicom.config.disable_value_validation():
        for path in mr.iterdir():
            image = pydicom.dcmread(path)
            image.StudyDate, image.FrameOfReferenceUID, image.PatientID = "2024-1-2", "1.2.03", "P" * 70
            image.save_as(path)
    write_dicom_series(read_volume(mr).replace(unit="HU"), tmp_path / "ct", mr, keep_patient=True)
    with pydicom.config.disable_value_validation():
        for image in headers(tmp_path / "ct"):
            assert (image.StudyDate, image.FrameOfReferenceUID, image.PatientID) == ("2024-1-2", "1.2.03", "P" * 70)


def test_an_enhanced_file_serves_as_reference(tmp_path):
    mr = save([enhanced(ct_slices(CORONAL, (0, 3, 0)), "MR")], tmp_path / "mr")
    write_dicom_series(read_volume(mr).replace(unit="HU"), tmp_path / "ct", mr, keep_patient=True)
    images = headers(tmp_path / "ct")
    assert len(images) == SLICES
    assert {(str(image.PatientName), image.FrameOfReferenceUID) for image in images} == {("Müller^Änne", "1.2.3.5")}
    np.testing.assert_allclose(read_volume(tmp_path / "ct").affine, read_volume(mr).affine, atol=1e-9)


def test_slices_are_those_of_the_reference(tmp_path):
    mr = mr_folder(tmp_path / "mr")
    write_dicom_series(read_volume(mr).replace(unit="HU"), tmp_path / "ct", reference=mr)
    places = {tuple(map(float, image.ImagePositionPatient)) for image in headers(mr)}
    for image in headers(tmp_path / "ct"):
        assert tuple(map(float, image.ImagePositionPatient)) in places
        assert list(map(float, image.ImageOrientationPatient)) == list(CORONAL)


def test_only_a_ct_is_written(tmp_path):
    with pytest.raises(InputError, match=r"unit is a\.u\."):
        write_dicom_series(synthetic().replace(unit="a.u."), tmp_path / "ct")
    ct = synthetic()
    ct.array[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        write_dicom_series(ct, tmp_path / "ct")


def test_a_folder_of_other_things_is_never_replaced(tmp_path):
    mr = mr_folder(tmp_path / "mr")
    before = sorted(path.name for path in mr.iterdir())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "deep" / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mr")
    for name in ("mr", "notes", "deep", "file", "link"):
        with pytest.raises(InputError, match=f"{name}: .* expected a new folder"):
            write_dicom_series(synthetic(), tmp_path / name)
    assert sorted(path.name for path in mr.iterdir()) == before
    (tmp_path / "empty").mkdir()
    write_dicom_series(synthetic(), tmp_path / "empty")
    write_dicom_series(synthetic(shape=(8, 9, 3)), tmp_path / "empty")  # an earlier result gives way as a whole
    assert len(list((tmp_path / "empty").iterdir())) == 3


def test_a_full_disk_leaves_the_old_series_and_nothing_half_written(tmp_path, monkeypatch):
    write_dicom_series(synthetic(), tmp_path / "ct")
    before = [path.read_bytes() for path in sorted((tmp_path / "ct").iterdir())]
    save_as = Dataset.save_as

    def full(self, path, **options):
        if path.name == "slice0003.dcm":
            raise OSError(errno.ENOSPC, "No space left on device")
        save_as(self, path, **options)

    monkeypatch.setattr(Dataset, "save_as", full)
    with pytest.raises(InputError, match="ct: writing failed .*No space left"):
        write_dicom_series(synthetic(), tmp_path / "ct")
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]
    assert [path.read_bytes() for path in sorted((tmp_path / "ct").iterdir())] == before


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (Debian's dicom3tools) is not installed")
@pytest.mark.parametrize("how", ["alone", "reference", "patient", "tilted"])
def test_dciodvfy_finds_no_errors(how, tmp_path):
    mr = mr_folder(tmp_path / "mr") if how != "tilted" else save(ct_slices((1, 0, 0, 0, COS, -SIN)), tmp_path / "mr")
    ct = synthetic() if how == "alone" else read_volume(mr).replace(unit="HU")
    write_dicom_series(ct, tmp_path / "ct", None if how == "alone" else mr, keep_patient=how == "patient")
    for path in sorted((tmp_path / "ct").iterdir())[:2]:
        result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        assert result.returncode == 0 and "Error" not in result.stderr, result.stderr
    paths = [str(path) for path in (tmp_path / "ct").iterdir()]
    result = subprocess.run(["dcentvfy", *paths], capture_output=True, text=True, check=False)
    assert result.stderr == ""


# ---- real scans, and cases that went wrong


def test_dicom_slices_lie_in_order_with_their_spacing_and_hu(real_data):
    """Against each file read alone and sorted by its position: another way than the series reader."""
    folder = real_data / "dicom_ct"
    volume = read_volume(folder)
    slices = sorted(map(sitk.ReadImage, map(str, folder.glob("*.dcm"))), key=lambda image: image.GetOrigin()[2])
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


def test_a_real_series_with_a_missing_slice_is_refused(real_data, tmp_path):
    files = sorted((real_data / "dicom_ct").glob("*.dcm"))
    for number, path in enumerate(files[:6]):
        if number != 3:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="mm apart"):
        read_volume(tmp_path)


def test_a_real_ct_survives_our_series(real_data, tmp_path):
    ct = read_volume(real_data / "dicom_ct")
    write_dicom_series(ct, tmp_path / "ct", real_data / "dicom_ct")
    again = read_volume(tmp_path / "ct")
    np.testing.assert_allclose(again.affine, ct.affine, atol=1e-9)
    np.testing.assert_array_equal(again.array, ct.array)
    frames = {image.FrameOfReferenceUID for image in headers(tmp_path / "ct")}
    (first,) = (pydicom.dcmread(path) for path in sorted((real_data / "dicom_ct").glob("*.dcm"))[:1])
    assert frames == {first.FrameOfReferenceUID} or not first.get("FrameOfReferenceUID")


CASE_MESSAGES = {
    "dicom_gantry_tilt/tilt": None,
    "dicom_mixed_orientation/mixed_one": "another orientation",
    "dicom_no_position/no_position": "Position .* is absent",
    "dicom_no_position/empty_position": "Position .* is absent",
    "dicom_no_position/cine_one_position": "12 slices share 1 place",
    "dicom_ct_no_rescale/no_rescale": "no rescale",
    "dicom_ct_no_rescale/inter0": "rescale is wrong",
    "dicom_monochrome1/mono1": None,
    "dicom_enhanced_refused/enh_ct": None,
    "dicom_enhanced_refused/enh_two_echoes": "stacks 1 and 2",
}


@pytest.mark.parametrize("name, message", CASE_MESSAGES.items(), ids=CASE_MESSAGES)
def test_what_once_went_wrong_is_read_rightly_or_refused(name, message):
    if not (CASES / name).is_dir():
        pytest.skip("this case is not here")
    if message is not None:
        with pytest.raises(InputError, match=message):
            read_volume(CASES / name)
        return
    volume = read_volume(CASES / name)
    assert volume.unit == "HU" and volume.array.min() == -1000 and 0 < np.median(volume.array[volume.array > -200]) < 80
    if "tilt" in name:  # slice k is displaced by its tilt: 3 mm along z, and rows lean by 20 degrees
        np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 3], atol=1e-6)
        np.testing.assert_allclose(volume.affine[:3, 1], [0, 2 * COS, 2 * SIN], atol=1e-6)
