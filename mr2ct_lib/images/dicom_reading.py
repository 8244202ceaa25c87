"""Series of DICOM files: one volume, with the place and the values that each file states."""

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mr2ct_lib.files import InputError, counted
from mr2ct_lib.images.dicom_geometry import Slice, frames, image_type, ordered
from mr2ct_lib.images.hounsfield import looks_shifted, share, wrong_scale

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".ima", ".dicom")
PIXEL_ATTRIBUTES = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "NumberOfFrames", "PixelData",
)  # fmt: skip
RESCALE = ("RescaleSlope", "RescaleIntercept")
DAMAGED = "is not a readable DICOM file; expected a whole one. Copy or export the series again"
COMPONENTS = {"P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY"}  # in the Image Type of an MR: no magnitude
HU_TYPES = (None, "", "HU", "US", "HU_MOD")  # Rescale Type of a CT in Hounsfield units; US (unspecified) is common


@dataclass(frozen=True)
class Series:
    """One volume in DICOM files: where its voxels lie, known from the headers alone, and how to read them.

    slices: in the order of the array's third axis. affine (4, 4): array index (column, row, slice) to mm in RAS.
    """

    folder: Path
    slices: list[Slice]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.slices[0].size
        return columns, rows, len(self.slices)

    @property
    def header(self) -> "Dataset":
        """The attributes of the first slice."""
        return self.slices[0].header

    @property
    def unit(self) -> str | None:
        """ "HU" for a CT, None otherwise."""
        return "HU" if self.header.get("Modality") == "CT" and self.header.get("RescaleType") in HU_TYPES else None

    def read(self) -> np.ndarray:
        """Return the values, float32 (columns, rows, slices), rescaled as each file states.

        Photometric Interpretation concerns the display only, so MONOCHROME1 is not inverted. Pixels that were not
        measured (Pixel Padding Value) become air. Raises InputError when pixels cannot be decoded, and when the values
        of a CT are not Hounsfield units. Warns when the header says MR and the values say CT, or when it is neither.
        """
        files: dict[Path, list[int]] = {}
        for k, image in enumerate(self.slices):
            files.setdefault(image.path, []).append(k)
        array = np.empty(self.shape[::-1], np.float32)
        with warnings.catch_warnings(action="ignore"):
            for path, numbers in files.items():
                array[numbers] = _pixels(path, [self.slices[k] for k in numbers])
        if self.unit == "HU":
            _check_hounsfield(array, self)
        else:
            _doubt_modality(array, self)
        return array.transpose(2, 1, 0)


def open_series(folder: str | Path) -> Series:
    """Find the one series in a folder or below it, and where its voxels lie; `Series.read` returns its values.

    The slices lie where their Image Position and Orientation (Patient) say. A tilted gantry gives a sheared affine.

    Args:
        folder: holds one series of single-frame files, or a multi-frame file whose frames form one volume.

    Raises InputError, naming the file, when there is not exactly one series of grey images; when a slice has no
    position, another orientation, size or frame of reference, or the place of another slice; when slices are of several
    kinds or patients, or missing; when the rescale of a slice is incomplete.
    """
    folder = Path(folder)
    try:
        with warnings.catch_warnings(action="ignore"):  # pydicom's, of values that do not keep to the standard
            slices, affine = ordered(_slices(folder))
            _check_rescale(slices)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pydicom interprets a value when it is asked for, and raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{folder}: a header of its DICOM files is damaged ({reason}); expected a whole series. "
            "Copy or export it again"
        ) from error
    return Series(folder, slices, affine)


def holds_images(folder: Path) -> bool:
    """Return whether DICOM images lie right in a folder, not only in folders below it."""
    return any(True for _ in images_of(folder.iterdir()))


def images_of(paths: Iterable[Path]) -> "Iterator[tuple[Path, Dataset]]":
    """Yield the DICOM images among files, in the order of their names, with their headers."""
    for path in sorted(path for path in paths if path.is_file() and not path.name.startswith((".", "DICOMDIR"))):
        header = _header(path)
        if header is None:
            continue
        if header.get("Rows") and header.get("Columns"):  # plans and reports have no pixels
            yield path, header
        elif _is_cut(header):
            raise InputError(f"{path}: {DAMAGED}")


def _is_cut(header: "Dataset") -> bool:
    """Whether a header without rows and columns ends too early: before it says what it is, or where an image has them.
    """
    kind = header.file_meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID")
    if kind is None:
        return header.preamble is not None
    return "Image Storage" in kind.name and not any(item.tag.group >= 0x28 for item in header)


def _slices(folder: Path) -> list[Slice]:
    """Return the images of the one series in a folder or below it, in the order of their file names."""
    series: dict[str, list[tuple[Path, Dataset]]] = {}
    for path, header in images_of(folder.rglob("*")):
        series.setdefault(str(header.get("SeriesInstanceUID")), []).append((path, header))
    if len(series) != 1:
        parts = (f"one of {counted(len(f), 'file')}, {f[0][0].relative_to(folder)} the first" for f in series.values())
        listed = f" ({', '.join(parts)})" if series else ""
        raise InputError(
            f"{folder}: holds {len(series)} DICOM series{listed}; expected one, here or in a folder below. Put the "
            "scan's own series into a folder of its own"
        )
    (files,) = series.values()
    slices = [image for path, header in files for image in frames(path, header)]
    for image in slices:
        grey = image.header.get("PhotometricInterpretation", "MONOCHROME2").startswith("MONOCHROME")
        if not grey or int(image.header.get("SamplesPerPixel") or 1) != 1:
            raise InputError(f"{image.name}: holds colours; expected grey values. Choose the original series")
        if "MOSAIC" in image.header.get("ImageType", ()):
            raise InputError(f"{image.name}: is a mosaic of slices; expected one slice. Convert it to NIfTI (dcm2niix)")
    return slices


def _header(path: Path) -> "Dataset | None":
    """Return a file's header, None when it is no DICOM file. Raises InputError when its name says that it is one."""
    import pydicom

    try:
        with open(path, "rb") as file:
            start = file.read(132)
        bare = start[:2] == b"\x08\x00"  # a data set without the preamble of a DICOM file, as old archives hold
        with warnings.catch_warnings(action="ignore"):  # pydicom's, of values that do not keep to the standard
            return pydicom.dcmread(path, stop_before_pixels=True, force=bare)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}). Check the file") from error
    except Exception as error:  # pydicom raises many kinds for a damaged file
        nameless = path.suffix[1:].isdecimal() or not path.suffix  # a UID, or a name as scanners give
        if path.suffix.lower() in SUFFIXES or start[128:] == b"DICM" or (nameless and not start):
            raise InputError(f"{path}: {DAMAGED}") from error
        return None


def _pixels(path: Path, images: list[Slice]) -> list[np.ndarray]:
    """Return the rescaled pixels (rows, columns) of the images of one file."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    try:
        stored = _stored(dataset).reshape(-1, *images[0].size)
        return [_measured(stored[image.frame], image) for image in images]
    except (MemoryError, InputError):
        raise
    except Exception as error:  # decoders raise many kinds
        raise InputError(
            f"{path}: its pixels cannot be decoded ({dataset.file_meta.TransferSyntaxUID.name}); expected a whole "
            "file. Copy it again, or decompress it (gdcmconv --raw)"
        ) from error


def _measured(stored: np.ndarray, image: Slice) -> np.ndarray:
    """Return the rescaled values of an image; pixels outside of what the scanner measured become air.

    They hold the Pixel Padding Value, or one up to its Range Limit. A padding value among those of tissue is not
    believed. Air is -1000 in a CT; elsewhere 0, or the lowest value where values are negative.
    """
    from pydicom.pixels import apply_modality_lut

    header = image.header
    values = np.array(apply_modality_lut(stored, header), dtype=np.float32)
    if header.get("PixelPaddingValue") is None:
        return values
    ends = [image.numbers("PixelPaddingValue", 1)[0]] * 2
    if header.get("PixelPaddingRangeLimit") is not None:
        ends[1] = image.numbers("PixelPaddingRangeLimit", 1)[0]
    low, high = sorted(np.array([int(end) for end in ends]).astype(stored.dtype))  # some write 63536 for -2000
    padding = (stored >= low) & (stored <= high)
    if not padding.any() or padding.all():
        return values
    lowest, highest = values[~padding].min(), values[~padding].max()
    if values[padding].min() > highest or values[padding].max() < lowest:
        values[padding] = -1000 if header.get("Modality") == "CT" else min(0, lowest)
    return values


def _stored(dataset: "Dataset") -> np.ndarray:
    """Return the stored values of a file, (rows, columns) or (frames, rows, columns).

    SimpleITK brings a decoder for every JPEG. It would also rescale, invert MONOCHROME1 and overlook the rescale of a
    frame, so it is given the pixels without the rest of the header.
    """
    import SimpleITK as sitk
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage, RLELossless, generate_uid

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == RLELossless:
        _check_length(dataset)
        unused = int(dataset.get("HighBit") or 0) + 1 - int(dataset.get("BitsStored") or 64)  # of the low bits
        if unused <= 0:
            return dataset.pixel_array
        dataset.BitsStored += unused
        return dataset.pixel_array >> unused
    bare = Dataset()
    for keyword in PIXEL_ATTRIBUTES:
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    bare.PhotometricInterpretation = "MONOCHROME2"
    bare.SOPClassUID, bare.SOPInstanceUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage, generate_uid()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    with tempfile.TemporaryDirectory() as folder:
        bare.save_as(f"{folder}/pixels.dcm", enforce_file_format=True)
        return sitk.GetArrayFromImage(sitk.ReadImage(f"{folder}/pixels.dcm"))


def _check_length(dataset: "Dataset") -> None:
    """Raise InputError when a file holds a row or a column of pixels more than its header states, or still more."""
    keys = ("Rows", "Columns", "NumberOfFrames", "BitsAllocated")
    rows, columns, count, bits = (int(dataset.get(key) or 1) for key in keys)
    found, stated = 8 * len(dataset.get("PixelData") or b""), rows * columns * count * bits
    if not dataset.file_meta.TransferSyntaxUID.is_compressed and found >= stated + min(rows, columns) * bits:
        raise InputError(
            f"{dataset.filename}: holds {found // 8} bytes of pixels, and its header states {rows} rows of {columns}, "
            f"which are {stated // 8}; expected as many. Export it again"
        )


def _check_rescale(slices: list[Slice]) -> None:
    """Raise InputError unless all slices have a whole rescale, slope and intercept or a table, or none has one.

    Without one, values of slices whose real world values differ cannot be compared.
    """
    rescaled = [_is_rescaled(image) for image in slices]
    if not any(rescaled) and len({_real_world(image) for image in slices}) > 1:
        raise InputError(
            f"{slices[0].path.parent}: each slice has a Real World Value Slope of its own, and no Rescale Slope, so "
            "values of different slices cannot be compared; expected one scale. Export it as the scanner shows it"
        )
    if any(rescaled) and not all(rescaled):
        raise InputError(
            f"{slices[rescaled.index(False)].name}: has no Rescale Intercept, unlike other slices of its series; "
            "expected one in each slice. Export the series again"
        )


def _real_world(image: Slice) -> str:
    """The scale from stored to real world values that a slice states, as text; empty where there is none."""
    first = (image.header.get("RealWorldValueMappingSequence") or [image.header])[0]
    return f"{first.get('RealWorldValueSlope', '')} {first.get('RealWorldValueIntercept', '')}"


def _is_rescaled(image: Slice) -> bool:
    """Whether a slice has a rescale. Raises InputError when slope or intercept are missing, or the slope is 0."""
    if "ModalityLUTSequence" in image.header:
        return True
    if not any(keyword in image.header for keyword in RESCALE):
        return False
    slope, _ = (image.numbers(keyword, 1)[0] for keyword in RESCALE)
    if slope == 0:
        raise InputError(
            f"{image.name}: its Rescale Slope is 0, which makes all values equal; expected another number. "
            "Export the series again"
        )
    return True


def _check_hounsfield(array: np.ndarray, series: Series) -> None:
    """Raise InputError when the values (slices, rows, columns) of a CT cannot be HU.

    Where slices have a rescale of their own, each slice is looked at by itself.
    """
    slices, sample = series.slices, array[:, ::2, ::2]
    rescaled = _is_rescaled(slices[0])  # as all are
    if len({tuple(str(image.header.get(key)) for key in RESCALE) for image in slices}) > 1:
        for image, values in zip(slices, sample, strict=True):
            if looks_shifted(values):
                raise InputError(
                    f"{image.name}: its values are not Hounsfield units, unlike those of other slices (Rescale Slope "
                    f"and Intercept {' and '.join(str(image.header.get(key)) for key in RESCALE)}); expected soft "
                    "tissue near 40. Export the series again"
                )
    has_air, has_soft_tissue = share(sample, -1100, -200) > 0.001, share(sample, -200, 300) > 0.005
    has_fat = share(sample, -200, -20) > 0.001  # also where all of the field of view is body
    unsigned = share(sample, 31000, np.inf) > 0.001  # more than metal on the widest scale of scanners
    reason = wrong_scale(sample)
    if unsigned or looks_shifted(sample) or not has_soft_tissue or not (has_air or (has_fat and rescaled)):
        reason = "its rescale is wrong" if rescaled else "it has no rescale"
    if reason:
        raise InputError(
            f"{series.folder}: is a CT, but its values {array.min():g} to {array.max():g} are not Hounsfield units "
            f"({reason}); expected air near -1000 and soft tissue near 40. Export it again with Rescale Slope and "
            "Intercept"
        )


def _doubt_modality(array: np.ndarray, series: Series) -> None:
    """Warn when the values (slices, rows, columns) of an MR look like a CT's, and about what is neither MR nor CT."""
    modality, kind = series.header.get("Modality"), COMPONENTS & image_type(series.header)
    low = np.percentile(array[:, ::2, ::2], 0.5)
    if modality == "MR" and kind:
        warnings.warn(
            f"{series.folder}: its Image Type says {' '.join(sorted(kind))}: a phase, real or imaginary image; "
            "expected magnitude (M). Choose that series",
            stacklevel=2,
        )
    if modality == "MR" and low <= -100:
        warnings.warn(
            f"{series.folder}: its header says MR, but its values reach down to {low:.4g}; it may be a phase image, or "
            "a CT",
            stacklevel=2,
        )
    elif modality not in (None, "", "MR", "CT"):
        warnings.warn(f"{series.folder}: its header says {modality}; expected MR or CT", stacklevel=2)
