"""Volumes that carry their place in the patient: NIfTI and DICOM in and out, orientation, reslicing, slices.

Inside the library every array lies in RAS+ order: `array[i, j, k]` with i towards the patient's right, j towards
anterior, k towards superior, and `affine @ (i, j, k, 1)` is the voxel's centre in mm. Oblique scans stay oblique:
only axes are permuted and flipped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from mr2ct_lib.files import InputError, atomic

NIFTI = (".nii", ".nii.gz")
META = (".mha", ".mhd", ".nrrd")
RAS = ("R", "A", "S")
UNITS = ("HU", "a.u.", "%", "SD", "label")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNIT_MARK = "unit="  # in the NIfTI field `descrip`, so that a volume written here is read with its unit
# plane -> (axis that numbers the slices, axis of rows, axis of columns, reversed axes): radiological images
_PLANES = {
    "coronal": (1, 2, 0, (0, 2)),
    "axial": (2, 1, 0, (0, 1)),
    "sagittal": (0, 2, 1, (1, 2)),
}
PLANES = tuple(_PLANES)


@dataclass(frozen=True)
class Volume:
    """A scan or label map.

    `array` (I, J, K) in RAS+ order; `affine` (4, 4) voxel -> mm; `unit` "HU", "a.u.", "%", "SD" or "label";
    `axcodes` is the orientation of the file that it came from, which `write_volume` restores.
    """

    array: np.ndarray
    affine: np.ndarray
    unit: str = "a.u."
    axcodes: tuple[str, str, str] = RAS

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise InputError(f"volume: has shape {self.array.shape}; expected three axes. Choose one 3D volume")
        if self.unit not in UNITS:
            raise InputError(f"volume: unit {self.unit!r}; expected one of {', '.join(UNITS)}. Name the unit")
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))

    @property
    def spacing(self) -> np.ndarray:
        """Distance between voxel centres along i, j, k in mm, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def replace(self, **changes: object) -> "Volume":
        """Return a copy with some fields changed.

        >>> Volume(np.zeros((2, 2, 2)), np.eye(4)).replace(unit="HU").unit
        'HU'
        """
        return replace(self, **changes)


def read_volume(path: str | Path, unit: str | None = None) -> Volume:
    """Read a NIfTI, MetaImage or NRRD file or a DICOM folder (one series in it or below, rescaled to its unit) into RAS+ order.

    Scans come as float32, `unit="label"` as int16. Without `unit`: HU for a CT series, what `write_volume` noted,
    else "a.u.".

    Raises InputError, naming the file, when it is missing, not an image, not 3D (2D, 4D, RGB), holds NaN or infinite
    voxels, has a singular affine, is constant (labels may be), or when a label map holds other than whole numbers
    from 0 to 32767.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: does not exist; expected a NIfTI file or a DICOM folder. Check the path")
    if path.is_dir():
        array, affine, axcodes, found = _read_dicom(path)
    elif path.name.lower().endswith(NIFTI):
        array, affine, axcodes, found = _read_nifti(path)
    elif path.name.lower().endswith(META):
        array, affine, axcodes, found = _read_meta(path)
    else:
        raise InputError(
            f"{path}: the name ends with {path.suffix or 'nothing'!r}; expected .nii, .nii.gz, .mha, .mhd, .nrrd or "
            f"a DICOM "
            "folder. Convert it (dcm2niix) or give the folder"
        )
    unit = unit or found or "a.u."
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise InputError(f"{path}: {count} voxels are NaN or infinite; expected finite values. Repair or leave out this scan")
    if unit == "label":
        if (array != np.round(array)).any() or array.min() < 0 or array.max() > np.iinfo(np.int16).max:
            raise InputError(
                f"{path}: is no label map (values {array.min():g} to {array.max():g}); expected whole numbers >= 0. Choose the label file"
            )
        return Volume(array.astype(np.int16), affine, unit, axcodes)
    if array.min() == array.max():
        raise InputError(f"{path}: every voxel is {array.min():g}; expected a scan of something. Choose another file")
    return Volume(array.astype(np.float32), affine, unit, axcodes)


def write_volume(volume: Volume, path: str | Path, dtype: type | str | None = None) -> None:
    """Write a NIfTI atomically, in the orientation that the volume came from.

    Without `dtype`: HU as int16, labels as uint8 (int16 above 255), anything else as float32. Whole-number types are
    rounded and clipped to their range. Raises InputError when the name is no NIfTI name or the disk refuses.
    """
    path = Path(path)
    if not path.name.lower().endswith(NIFTI):
        raise InputError(f"{path}: the name ends with {path.suffix or 'nothing'!r}; expected .nii or .nii.gz. Rename the output")
    array = volume.array
    if dtype is None:
        labels = np.uint8 if array.max(initial=0) <= 255 else np.int16
        dtype = {"HU": np.int16, "label": labels}.get(volume.unit, np.float32)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = np.clip(np.round(array), limits.min, limits.max)
    change = ornt_transform(axcodes2ornt(RAS), axcodes2ornt(volume.axcodes))
    affine = volume.affine @ inv_ornt_aff(change, array.shape)
    image = nib.Nifti1Image(np.ascontiguousarray(apply_orientation(array, change)).astype(dtype), affine)
    image.set_sform(affine, 1)  # 1: scanner coordinates
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"mr2ct {_UNIT_MARK}{volume.unit}"
    with atomic(path) as temporary:
        nib.save(image, temporary)


def reslice(volume: Volume, shape: tuple[int, int, int], affine: np.ndarray, order: int = 1, fill: float | None = None) -> Volume:
    """Return `volume` on another grid (`shape`, `affine`), any orientation.

    `order` 0 takes the nearest voxel (always for labels), 1 interpolates linearly, 3 by cubic B-splines. A coarser
    grid is smoothed first (Gaussian of (ratio - 1) / 2 voxels), as a scanner with larger voxels would have seen it.
    A voxel reaches half its size from its centre; beyond, `fill` holds: -1000 for HU and 0 otherwise.
    """
    if fill is None:
        fill = -1000.0 if volume.unit == "HU" else 0.0
    order = 0 if volume.unit == "label" else order
    affine = np.asarray(affine, dtype=np.float64)
    dtype = np.float32 if order else volume.array.dtype
    image = to_sitk(volume.replace(array=volume.array.astype(dtype, copy=False)))
    if order:
        # size of a new voxel along each old axis, in old voxels
        ratio = np.abs(np.linalg.solve(volume.affine[:3, :3], affine[:3, :3])).max(axis=1)
        sigma = np.maximum(ratio - 1, 0) / 2
        for axis in np.flatnonzero(sigma > 0.05):
            image = sitk.RecursiveGaussian(
                image,
                float(sigma[axis] * volume.spacing[axis]),
                False,
                sitk.RecursiveGaussianImageFilter.ZeroOrder,
                int(axis),
            )
    grid = sitk.ResampleImageFilter()
    grid.SetSize([int(n) for n in shape])
    spacing, direction, origin = _sitk_geometry(affine)
    grid.SetOutputSpacing(spacing)
    grid.SetOutputDirection(direction)
    grid.SetOutputOrigin(origin)
    grid.SetInterpolator({0: sitk.sitkNearestNeighbor, 1: sitk.sitkLinear, 3: sitk.sitkBSpline}[order])
    grid.SetDefaultPixelValue(float(fill))
    array = sitk.GetArrayFromImage(grid.Execute(image)).transpose(2, 1, 0)
    return Volume(np.ascontiguousarray(array).astype(dtype, copy=False), affine, volume.unit)


def slices_of(volume: Volume | np.ndarray, plane: str) -> np.ndarray:
    """Return the radiological images (N, H, W) of a volume, ordered by increasing array index.

    Coronal: rows superior -> inferior, columns the patient's right -> left; axial: rows anterior -> posterior,
    columns right -> left; sagittal: rows superior -> inferior, columns anterior -> posterior. A view where possible,
    not a copy.

    >>> slices_of(np.zeros((4, 5, 6)), "coronal").shape
    (5, 6, 4)
    """
    array = volume.array if isinstance(volume, Volume) else volume
    number, row, column, reverse = plane_axes(plane)
    return np.flip(array, reverse).transpose(number, row, column)


def volume_from_slices(stack: np.ndarray, plane: str) -> np.ndarray:
    """Return the array (I, J, K) whose `slices_of` is `stack` (N, H, W): the exact inverse."""
    number, row, column, reverse = plane_axes(plane)
    return np.flip(stack.transpose(np.argsort((number, row, column))), reverse)


def plane_axes(plane: str) -> tuple[int, int, int, tuple[int, int]]:
    """Return (axis of slices, axis of rows, axis of columns, reversed axes) of a plane. Raises InputError for an
    unknown one."""
    if plane not in _PLANES:
        raise InputError(f"plane: {plane!r}; expected one of {', '.join(PLANES)}. Choose one of them")
    return _PLANES[plane]


def to_sitk(volume: Volume) -> sitk.Image:
    """Return the volume as a SimpleITK image at the same place (SimpleITK speaks LPS)."""
    array = volume.array
    array = array.astype({"b": np.uint8, "f": np.float32}.get(array.dtype.kind, array.dtype), copy=False)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    spacing, direction, origin = _sitk_geometry(volume.affine)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin(origin)
    return image


def from_sitk(image: sitk.Image, unit: str = "a.u.") -> Volume:
    """Return a 3D SimpleITK image as a Volume in RAS+ order."""
    array, affine, axcodes = _canonical(sitk.GetArrayFromImage(image).transpose(2, 1, 0), _sitk_affine(image))
    return Volume(array, affine, unit, axcodes)


@contextmanager
def one_thread() -> Iterator[None]:
    """SimpleITK works on one thread inside: same bits whatever the machine (a filter's own setting misses its inner filters)."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _sitk_geometry(affine: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """Return spacing, direction and origin (LPS) of an affine (RAS)."""
    lps = _LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return spacing.tolist(), (lps[:3, :3] / spacing).ravel().tolist(), lps[:3, 3].tolist()


def _sitk_affine(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return _LPS @ affine


def _canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, str, str]]:
    """Permute and flip axes to the nearest RAS+ order; every voxel keeps its place in mm."""
    stored = io_orientation(affine)
    axcodes = nib.orientations.ornt2axcodes(stored)
    moved = np.ascontiguousarray(apply_orientation(array, stored))
    return moved, affine @ inv_ornt_aff(stored, array.shape), axcodes


def _checked_affine(affine: np.ndarray, path: Path) -> np.ndarray:
    affine = np.asarray(affine, dtype=np.float64)
    matrix = affine[:3, :3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(matrix)) <= 1e-6 * max(np.linalg.norm(matrix, axis=0).prod(), 1e-9):
        raise InputError(
            f"{path}: its affine is singular or not finite, so its voxels have no place in mm; expected an invertible "
            "affine. Repair the header or export the scan again"
        )
    return affine


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, str, str], str | None]:
    try:
        image = nib.load(path)
        array = np.asanyarray(image.dataobj)
        affine = image.affine
        description = image.header["descrip"].item().decode("latin-1")
    except Exception as error:  # nibabel, gzip and zlib raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: is not a readable NIfTI image ({reason}); expected a whole .nii or .nii.gz file. Copy or export it again"
        ) from error
    if array.dtype.names or array.dtype.kind == "c":
        raise InputError(f"{path}: holds colours or complex numbers; expected one number a voxel. Export the scan as grey values")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or min(array.shape) < 1:
        raise InputError(f"{path}: has shape {array.shape}; expected a 3D volume. Split it into 3D files, one a scan")
    array, affine, axcodes = _canonical(array, _checked_affine(affine, path))
    unit = description.partition(_UNIT_MARK)[2].strip("\0 ")
    return array, affine, axcodes, unit if unit in UNITS else None


def _read_meta(path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, str, str], str | None]:
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: is not a readable image; expected a whole MetaImage or NRRD file. Copy or export it again") from error
    return *_from_sitk_checked(image, path), None


def _from_sitk_checked(image: sitk.Image, path: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, str, str]]:
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() != 3:
        shape = (*image.GetSize(), image.GetNumberOfComponentsPerPixel())
        raise InputError(f"{path}: has size and channels {shape}; expected a 3D volume of one channel. Split it or export grey values")
    return _canonical(sitk.GetArrayFromImage(image).transpose(2, 1, 0), _checked_affine(_sitk_affine(image), path))


def _read_dicom(folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, str, str], str | None]:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader, inside = sitk.ImageSeriesReader, [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    series = [reader.GetGDCMSeriesFileNames(str(f), one) for f in inside for one in reader.GetGDCMSeriesIDs(str(f))]
    if len(series) != 1:
        listed = ", ".join(f"one of {len(names)} files in {Path(names[0]).parent.relative_to(folder)}" for names in series)
        raise InputError(
            f"{folder}: holds {len(series)} DICOM series{f' ({listed})' if series else ''}; expected one, here or in a folder below. "
            "Put the scan's own series into a folder of its own"
        )
    (names,) = series
    modality, positions = "", []
    header = sitk.ImageFileReader()
    try:
        for name in names:
            header.SetFileName(name)
            header.ReadImageInformation()
            positions.append(header.GetOrigin())
        modality = header.GetMetaData("0008|0060").strip() if header.HasMetaDataKey("0008|0060") else ""
        image = sitk.ReadImage(names)  # applies each slice's rescale slope and intercept
    except RuntimeError as error:
        raise InputError(
            f"{folder}: its DICOM files cannot be read as one volume; expected slices of one size and kind. Export the series again"
        ) from error
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1) if len(names) > 1 else np.ones(1)
    if gaps.max() > 1.01 * gaps.min() + 0.01:
        raise InputError(
            f"{folder}: its slices lie {gaps.min():.3g} to {gaps.max():.3g} mm apart; expected even distances. "
            f"Slices are "
            "missing or doubled: copy the series again"
        )
    array, affine, axcodes = _from_sitk_checked(image, folder)
    return array, affine, axcodes, "HU" if modality == "CT" else None


def read_grid(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return (shape, affine) in RAS+ order of a NIfTI without reading its voxels; of anything else by reading it."""
    path = Path(path)
    try:
        image = nib.load(path)
        shape, affine = image.shape, image.affine
        if len(shape) != 3 or image.get_data_dtype().names:
            raise ValueError("not a plain 3D volume")
        stored = io_orientation(_checked_affine(affine, path))
    except InputError:
        raise
    except Exception:  # let the reader say what is wrong
        volume = read_volume(path)
        return volume.array.shape, volume.affine
    order = np.argsort(stored[:, 0])
    return tuple(int(shape[axis]) for axis in order), affine @ inv_ornt_aff(stored, shape)
