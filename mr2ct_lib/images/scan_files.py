"""Files that hold scans: what a header says about the grid, and the voxels, in the file's own order of axes."""

import gzip
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images.dicom_geometry import LPS
from mr2ct_lib.images.dicom_reading import open_series

if TYPE_CHECKING:  # these are imported where they are used: inference starts without them
    import nibabel as nib
    import SimpleITK as sitk

NIFTI = (".nii", ".nii.gz")
META = (".mha", ".mhd", ".nrrd")
UNITS = ("HU", "a.u.", "%", "SD", "label")
UNIT_MARK = "unit="  # in the NIfTI field `descrip`: the unit of a volume that was written here
VOXEL_MM = (0.01, 100.0)  # sizes outside this range are a mistake in the header, mostly of its unit of length
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's xyzt_units: metre, mm, micron; unknown counts as mm
# The fields of a NIfTI header that place its voxels; viewers disagree about which of them they believe
FORM_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
SIZES_ALIKE = 0.1  # a tilted gantry makes voxels up to so much longer in the sform than in pixdim
# Fields of MetaImage and NRRD headers: sizes of voxels, directions of axes
SIZE_FIELDS = ("elementspacing", "elementsize", "space directions", "spacings")
AXES_FIELDS = {"transformmatrix", "orientation", "rotation"}
NRRD_SPACES = (
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
)  # fmt: skip
DEFLATE = 1100  # no gzip file holds more than about 1032 times its own size


@dataclass(frozen=True)
class ScanFile:
    """What a header says, in the file's own order of axes, and `read`, which returns the voxels.

    `shape` (I, J, K); `affine` (4, 4), voxel to mm in RAS; `unit` where the file names it; `forms`: the fields that
    place the voxels of a NIfTI, as stored.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    unit: str | None
    read: Callable[[], np.ndarray]
    forms: dict[str, np.ndarray] | None = None


def sitk_affine(image: "sitk.Image | sitk.ImageFileReader") -> np.ndarray:
    """Return the affine (4, 4), RAS, of a SimpleITK image or of the header that a reader has read."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def open_scan(path: Path) -> ScanFile:
    """Return what the header of a file or a DICOM folder says. Raises InputError when it is no 3D volume."""
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a NIfTI file or a DICOM folder. Check the path")
    if path.is_dir():
        series = open_series(path)
        file = ScanFile(series.shape, series.affine, series.unit, series.read)
    elif not path.is_file():  # a pipe would be waited for
        raise InputError(f"{path}: is no file; expected a NIfTI file or a DICOM folder. Copy the scan to the disk")
    elif path.name.lower().endswith(NIFTI):
        file = _open_nifti(path)
    elif path.name.lower().endswith(META):
        file = _open_meta(path)
    else:
        raise InputError(
            f"{path}: the name ends with {path.suffix or 'nothing'!r}; expected .nii, .nii.gz, .mha, .mhd, .nrrd or a "
            "DICOM folder. Convert it (dcm2niix) or give the folder"
        )
    _check_affine(file.affine, path)
    return file


def _check_affine(affine: np.ndarray, path: Path) -> None:
    matrix = affine[:3, :3]
    size = np.linalg.norm(matrix, axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(matrix)) <= 1e-6 * max(size.prod(), 1e-9):
        raise InputError(
            f"{path}: its affine is singular or not finite, so its voxels have no place in mm; expected an invertible "
            "affine. Repair the header or export the scan again"
        )
    if size.min() < VOXEL_MM[0] or size.max() > VOXEL_MM[1]:
        raise InputError(
            f"{path}: its voxels measure {' x '.join(f'{n:.3g}' for n in size)} mm; expected {VOXEL_MM[0]:g} to "
            f"{VOXEL_MM[1]:g} mm. Correct the unit of length in the header"
        )


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Turn what goes wrong inside the block into an InputError that names the file and the `kind` of file expected."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # nibabel, gzip, zlib and SimpleITK raise many kinds for a damaged file
        reason = str(error).partition("\n")[0] or type(error).__name__
        note = "" if isinstance(error, RuntimeError) else f" ({reason})"  # SimpleITK's names lines of its source
        raise InputError(
            f"{path}: is not a readable {kind}{note}; expected a whole file. Copy or export it again"
        ) from error


def _open_nifti(path: Path) -> ScanFile:
    import nibabel as nib

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)  # what is wrong is said in one sentence
    with _readable(path, "NIfTI image"):
        image = nib.load(path)
        _check_size(image, path)
        affine, forms = _nifti_grid(image)
        _check_affine(affine, path)
        if not image.header["sform_code"] and not image.header["qform_code"]:
            warnings.warn(
                f"{path}: has neither sform nor qform; it is read as if its first axis pointed to the patient's left. "
                "Find out where the patient's right side is",
                stacklevel=2,
            )
        elif difference := _forms_differ(image.header):
            warnings.warn(f"{path}: its {difference}", stacklevel=2)
        unit = image.header["descrip"].item().decode("latin-1").partition(UNIT_MARK)[2].strip("\0 ")
    dtype = image.get_data_dtype()
    if dtype.names or dtype.kind == "c":
        raise InputError(
            f"{path}: holds colours or complex numbers; expected one number per voxel. Export the scan as grey values"
        )
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"{path}: has shape {shape}; expected a 3D volume. Split it into 3D files, one per scan")

    def read() -> np.ndarray:
        with _readable(path, "NIfTI image"):
            _check_end(_length(path) - image.dataobj.offset, shape, dtype.itemsize)
            return np.asanyarray(image.dataobj).reshape(shape)

    return ScanFile(shape, affine, unit if unit in UNITS else None, read, forms)


def _check_size(image: "nib.Nifti1Image", path: Path) -> None:
    """Raise ValueError when the voxels cannot be where the header says, before memory is asked for them."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)  # as it is stored: nibabel makes sizes of 0 to 1
    if image.dataobj.offset < header.sizeof_hdr:
        raise ValueError(f"its voxels begin at byte {image.dataobj.offset}, inside the header")
    if not header["sform_code"] and not (header["pixdim"][1:4] > 0).all():
        raise ValueError(f"its voxels measure {' x '.join(f'{mm:g}' for mm in header['pixdim'][1:4])} mm")
    size = math.prod(image.shape) * image.get_data_dtype().itemsize
    if size > path.stat().st_size * (DEFLATE if path.name.lower().endswith(".gz") else 1):
        raise ValueError(f"its header asks for {size / 2**20:.1f} MiB, more than the file can hold")


def _length(path: Path) -> int:
    """Return how many bytes a file holds, those of a gzip file unpacked.

    Raises OSError or EOFError when a gzip file is not what its check sum says: nibabel stops reading before it.
    """
    if not path.name.lower().endswith(".gz"):
        return path.stat().st_size
    with gzip.open(path) as file:
        while file.read(2**20):
            pass
        return file.tell()


def _check_end(found: int, shape: tuple[int, ...], size: int) -> None:
    """Raise ValueError when so many bytes hold a plane of voxels, of `size` bytes, more than `shape`, or still more."""
    expected = math.prod(shape) * size
    if found >= expected + expected // max(shape):
        raise ValueError(f"{found - expected} bytes lie after its voxels: its header states too few")


def _nifti_grid(image: "nib.Nifti1Image") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the affine (4, 4) in mm, and the fields of the header that place the voxels."""
    header = image.header
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    pixdim = np.ones(8)
    pixdim[:4] = header["pixdim"][:4]
    return affine, {name: header[name].copy() for name in FORM_FIELDS} | {"pixdim": pixdim}


def forms_are_mirrored(header: "nib.Nifti1Header") -> bool:
    """Return whether sform and qform are both set, and one takes for left what the other takes for right."""
    if not header["sform_code"] or not header["qform_code"]:
        return False
    return bool(np.linalg.det(header.get_sform()[:3, :3]) * np.linalg.det(header.get_qform()[:3, :3]) < 0)


def _forms_differ(header: "nib.Nifti1Header") -> str | None:
    """Say how sform and qform, or sform and voxel sizes, contradict each other; another origin or a tilt is usual."""
    from nibabel.orientations import aff2axcodes

    if forms_are_mirrored(header):
        return (
            "sform and qform are mirror images of each other; the sform is believed. Find out where the patient's "
            "right side is"
        )
    if not header["sform_code"]:
        return None
    sform, sizes = header.get_sform(), np.array(header["pixdim"][1:4], float)
    if header["qform_code"]:
        codes = ["".join(map(str, aff2axcodes(form))) for form in (sform, header.get_qform())]
        if codes[0] != codes[1]:
            return (
                f"sform and qform turn the scan differently ({' and '.join(codes)}); the sform is believed. Find out "
                "which of them is right"
            )
    said = np.linalg.norm(sform[:3, :3], axis=0)
    if (sizes > 0).all() and np.abs(said / sizes - 1).max() > SIZES_ALIKE:
        texts = (" x ".join(f"{mm:.3g}" for mm in form) for form in (said, sizes))
        return (
            f"sform gives voxels of {next(texts)}, its pixdim {next(texts)}; the sform is believed. Find out which of "
            "them is right"
        )
    return None


def _check_fields(path: Path, shape: tuple[int, ...], kind: int) -> None:
    """Raise ValueError when a file states no sizes of its voxels, or when its header does not lead to its voxels.

    ITK would take 1 mm, or return whatever lies in the memory. Warns when it does not say where left and right are.
    shape: with the number of channels.
    """
    import SimpleITK as sitk

    nrrd, size = path.name.lower().endswith(".nrrd"), sitk.Image(1, 1, kind).GetSizeOfPixelComponent()
    with open(path, "rb") as file:
        start = file.read(2**16)
    end = re.search(rb"\r?\n\r?\n" if nrrd else rb"(?im)^ElementDataFile[ \t]*=.*\n?", start)
    head = start[: end.end() if end else len(start)]
    pairs = (line.partition(":" if nrrd else "=") for line in head.decode("latin-1").splitlines())
    fields = {name.strip().lower(): value.strip() for name, mark, value in pairs if mark}
    sizes = [fields[name] for name in SIZE_FIELDS if name in fields]
    if not sizes or "none" in sizes[0] or "nan" in sizes[0].lower():
        raise ValueError("it states no size of its voxels")
    if any(unit != "mm" for unit in re.findall(r'"(.*?)"', fields.get("space units", ""))):
        raise ValueError(f"its space units are {fields['space units']}, expected mm")
    known = fields.get("space", "").lower() in NRRD_SPACES if nrrd else bool(AXES_FIELDS & set(fields))
    if not known:
        warnings.warn(
            f"{path}: does not say in which directions of the patient its axes point; it is read as left, posterior, "
            "superior. Find out where the patient's right side is",
            stacklevel=4,
        )
    where = fields.get("data file", fields.get("datafile", "LOCAL")) if nrrd else fields.get("elementdatafile", "")
    if where.upper().startswith("LIST") or "%" in where:
        raise ValueError("its voxels lie in several files")
    packed = fields.get("encoding", "raw").lower() != "raw" or fields.get("compresseddata", "").lower() == "true"
    if packed or {"headersize", "byte skip", "line skip"} & set(fields):
        return
    if where.upper() == "LOCAL":
        _check_end(path.stat().st_size - len(head), shape, size)
    elif (found := (path.parent / where).stat().st_size) != (expected := math.prod(shape) * size):
        raise ValueError(f"{where} holds {found} bytes, expected {expected}")


def _open_meta(path: Path) -> ScanFile:
    import SimpleITK as sitk

    if any("\udc80" <= letter <= "\udcff" for letter in str(path)):  # SimpleITK would crash
        raise InputError(f"{path}: its name is not UTF-8; expected letters that every program reads. Rename the file")
    kind = "MetaImage or NRRD file"
    reader = sitk.ImageFileReader()
    with _readable(path, kind):
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        _check_fields(path, (*reader.GetSize(), reader.GetNumberOfComponents()), reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or reader.GetDimension() != 3:
        shape = (*reader.GetSize(), reader.GetNumberOfComponents())
        raise InputError(
            f"{path}: has size and channels {shape}; expected a 3D volume of one channel. Split it or export grey "
            "values"
        )

    def read() -> np.ndarray:
        with _readable(path, kind):
            return sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)

    return ScanFile(reader.GetSize(), sitk_affine(reader), None, read)
