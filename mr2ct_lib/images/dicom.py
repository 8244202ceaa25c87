"""A synthetic CT as a DICOM series that opens on its MR. `dicom_reading` reads series."""

import datetime
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mr2ct_lib import __version__
from mr2ct_lib.files import InputError, atomic
from mr2ct_lib.images.dicom_geometry import LPS
from mr2ct_lib.images.dicom_reading import open_series
from mr2ct_lib.images.volumes import RAS, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

MANUFACTURER = "mr2ct"
SKEW_MM = 0.01  # by so much may rows and columns that are not perpendicular displace a voxel
# slice axis -> directions in which columns, rows and slices are numbered in a radiological series, right-handed
RADIOLOGICAL = {"S": ("L", "P", "S"), "I": ("L", "P", "S"), "A": ("L", "I", "P"), "P": ("L", "I", "P")} | {
    "R": ("P", "I", "R"), "L": ("P", "I", "R")
}  # fmt: skip
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = (
    "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip


def write_dicom_series(
    volume: Volume, folder: str | Path, reference: str | Path | None = None, keep_patient: bool = False
) -> None:
    """Write a synthetic CT as a DICOM series of derived CT images, one file per slice; the whole folder or nothing.

    Each slice states its own position, so a volume whose slices are shifted against each other (a tilted gantry) keeps
    its place. All UIDs are new. Series description and comments say that it is not for clinical use.

    Args:
        volume: in HU; written as int16.
        folder: new, empty, or a series that this function wrote before, which is replaced.
        reference: the DICOM folder of the MR that the CT was computed from. The CT then has its frame of reference,
            its patient position and its orientation of slices, so that both open as one. Without it the slices are
            those of the volume's file.
        keep_patient: put the CT into the reference's study, with the patient's data. By default the study is new and
            the patient anonymous.

    Raises InputError when the volume is not in HU, holds NaN, or is sheared within its slices; when the folder holds
    anything else; when a reference is needed or cannot be read; when the disk refuses.
    """
    from pydicom.uid import generate_uid

    folder = Path(folder)
    _check_writable(volume, folder)
    if keep_patient and reference is None:
        raise InputError(
            "keep_patient: there is no reference; expected the DICOM folder of the MR. Give it or leave out the patient"
        )
    series = None if reference is None else open_series(reference)
    array, affine = _in_slices(volume, None if series is None else series.affine)
    row, column = _directions(affine, array.shape, folder)
    image = _synthetic_ct(None if series is None else series.header, keep_patient)
    image.Columns, image.Rows = array.shape[:2]
    image.PixelSpacing = _decimals(np.linalg.norm(affine[:3, [1, 0]], axis=0))
    image.ImageOrientationPatient = _decimals([*row, *column])
    (image.SliceThickness,) = _decimals([abs(affine[:3, 2] @ np.cross(row, column))])
    values = np.clip(np.round(array), -32768, 32767).astype("<i2")
    with atomic(folder) as temporary:
        temporary.mkdir()
        for k in range(array.shape[2]):
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.InstanceNumber = k + 1
            image.ImagePositionPatient = _decimals((affine @ [0, 0, k, 1])[:3])
            image.PixelData = values[:, :, k].T.tobytes()
            image.save_as(temporary / f"slice{k + 1:04d}.dcm", enforce_file_format=True)


def _check_writable(volume: Volume, folder: Path) -> None:
    """Raise InputError for a volume that is no CT, and for a folder that holds anything but a series of ours."""
    if volume.unit != "HU" or not np.isfinite(volume.array).all():
        raise InputError(
            f"{folder}: the volume's unit is {volume.unit}, or it holds NaN; expected a CT in HU. Write it as NIfTI"
        )
    check_series_folder(folder)


def check_series_folder(folder: Path) -> None:
    """Raise InputError for a folder that holds anything but a series that `write_dicom_series` wrote."""
    import pydicom

    if not (folder.exists() or folder.is_symlink()):
        return
    problem = None if folder.is_dir() and not folder.is_symlink() else "is no folder"
    for path in sorted(folder.iterdir()) if problem is None else ():
        try:
            ours = pydicom.dcmread(path, specific_tags=["Manufacturer"]).get("Manufacturer") == MANUFACTURER
        except Exception:  # not DICOM, a folder, not readable
            ours = False
        if not ours:
            problem = f"holds {path.name}"
    if problem:
        raise InputError(
            f"{folder}: {problem}; expected a new folder, or a synthetic CT that was written before. Choose another one"
        )


def _in_slices(volume: Volume, reference: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the array (columns, rows, slices) and its affine (4, 4), LPS, in the order of axes of a DICOM series.

    The order is that of the reference's affine (RAS), or a radiological one with the slices of the volume's file.
    """
    from nibabel.orientations import aff2axcodes, apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    axes = RADIOLOGICAL[volume.axcodes[2]] if reference is None else aff2axcodes(reference)
    change = ornt_transform(axcodes2ornt(RAS), axcodes2ornt(axes))
    return apply_orientation(volume.array, change), LPS @ volume.affine @ inv_ornt_aff(change, volume.array.shape)


def _directions(affine: np.ndarray, shape: tuple[int, int, int], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the perpendicular unit vectors along rows and along columns of a slice.

    Raises InputError when the volume's own directions are not perpendicular: DICOM has no such slices.
    """
    row, column = (affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)).T
    skew = float(row @ column)
    if abs(skew) * shape[1] * np.linalg.norm(affine[:3, 1]) > SKEW_MM:
        angle = np.degrees(np.arccos(skew))
        raise InputError(
            f"{folder}: the volume is sheared within its slices (rows and columns meet at {angle:.2f} degrees); DICOM "
            "slices are rectangular. Write it as NIfTI, or reslice it to a grid without shear"
        )
    return row, column


def _decimals(numbers: "np.ndarray | list[float]") -> list[str]:
    """Return numbers as DICOM's decimal strings of at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(round(float(number), 12) + 0.0) for number in numbers]


def _synthetic_ct(reference: "Dataset | None", keep_patient: bool) -> "Dataset":
    """Return what all slices of a series have in common: CT Image Storage without geometry and pixels."""
    from pydicom import Dataset
    from pydicom.config import disable_value_validation
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    now = datetime.datetime.now()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    values = {
        "SpecificCharacterSet": "ISO_IR 192", "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "SOPClassUID": CTImageStorage, "Modality": "CT", "Manufacturer": MANUFACTURER, "ManufacturerModelName": "mr2ct",
        "SoftwareVersions": __version__, "SeriesDescription": "Synthetic CT, not for clinical use",
        "ImageComments": "Synthetic CT computed from MR by a neural network. Not for clinical use.",
        "DerivationDescription": "Synthetic CT computed from MR by mr2ct, not for clinical use",
        "SeriesInstanceUID": generate_uid(), "SeriesNumber": 1, "Laterality": "", "FrameOfReferenceUID": generate_uid(),
        "PositionReferenceIndicator": "", "PatientPosition": "", "AcquisitionNumber": None, "KVP": None,
        "ContentDate": date, "ContentTime": time, "SeriesDate": date, "SeriesTime": time, "BurnedInAnnotation": "NO",
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16,
        "HighBit": 15, "PixelRepresentation": 1, "RescaleIntercept": "0", "RescaleSlope": "1", "RescaleType": "HU",
        "WindowCenter": "40", "WindowWidth": "400",
        "PatientName": "mr2ct^Anonymous", "PatientID": f"mr2ct-{uuid.uuid4().hex[:12]}", "PatientBirthDate": "",
        "PatientSex": "", "StudyInstanceUID": generate_uid(), "StudyDate": date, "StudyTime": time, "StudyID": "1",
        "AccessionNumber": "", "ReferringPhysicianName": "",
    }  # fmt: skip
    kept = ("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition") + (PATIENT + STUDY) * keep_patient
    image = Dataset()
    with disable_value_validation():  # what the scanner wrote against the standard is kept
        for keyword in kept if reference is not None else ():
            if reference.get(keyword) or (keyword in reference and not keyword.endswith("UID")):
                values[keyword] = reference[keyword].value
        for keyword, value in values.items():
            setattr(image, keyword, value)
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = CTImageStorage
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image
