"""Volumes that know their place in the patient: files in and out, orientation, reslicing, slices.

Inside the library every array is in RAS+ order: in `array[i, j, k]`, i grows towards the patient's right, j towards
anterior, k towards superior, and `affine @ (i, j, k, 1)` is the centre of the voxel in mm. Oblique scans stay oblique:
axes are only permuted and flipped.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mr2ct_lib.files import InputError, atomic
from mr2ct_lib.images.dicom_geometry import LPS
from mr2ct_lib.images.scan_files import NIFTI, UNIT_MARK, UNITS, ScanFile, open_scan

if TYPE_CHECKING:  # SimpleITK and nibabel are imported where they are used: inference starts without them
    import SimpleITK as sitk

RAS = ("R", "A", "S")
# plane -> (axis that numbers the slices, axis of rows, axis of columns, reversed axes): radiological images
_PLANES = {
    "coronal": (1, 2, 0, (0, 2)),
    "axial": (2, 1, 0, (0, 1)),
    "sagittal": (0, 2, 1, (1, 2)),
}
PLANES = tuple(_PLANES)


@dataclass(frozen=True)
class NiftiForms:
    """The fields of a NIfTI header that place its voxels (sform, qform, codes, unit), as stored.

    They hold for one grid: `shape` (I, J, K) and `affine` (4, 4) of the volume in RAS+ order.
    """

    fields: dict[str, np.ndarray]
    shape: tuple[int, ...]
    affine: np.ndarray

    def hold_for(self, volume: "Volume") -> bool:
        """Return whether `volume` still lies on the grid of the file."""
        return self.shape == volume.array.shape and np.allclose(self.affine, volume.affine, rtol=0, atol=1e-6)


@dataclass(frozen=True)
class Volume:
    """A scan or label map.

    `array` (I, J, K) in RAS+ order; `affine` (4, 4), voxel to mm; `unit` "HU", "a.u.", "%", "SD" or "label".
    `axcodes` is the orientation of the file that the volume came from, and `forms` its NIfTI forms, if any;
    `write_volume` restores both. A result on the same grid keeps them: `scan.replace(array=..., unit=...)`.
    """

    array: np.ndarray
    affine: np.ndarray
    unit: str = "a.u."
    axcodes: tuple[str, str, str] = RAS
    forms: NiftiForms | None = None

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

    def sample(self) -> np.ndarray:
        """Return at most about a million of the voxels, of all planes alike."""
        step = max(1, self.array.size // 1_000_000)
        while math.gcd(step, self.array.size) > 1:  # such a step would meet some planes only
            step += 1
        return self.array.ravel()[::step]

    def replace(self, **changes: Any) -> "Volume":
        """Return a copy with some fields changed.

        >>> Volume(np.zeros((2, 2, 2)), np.eye(4)).replace(unit="HU").unit
        'HU'
        """
        return replace(self, **changes)


def read_volume(path: str | Path, unit: str | None = None) -> Volume:
    """Read a NIfTI, MetaImage or NRRD file or a DICOM folder into RAS+ order.

    Args:
        path: the file, or a folder with one DICOM series in it or below it (see `images.dicom_reading`).
        unit: of the values. Without it: HU for a CT series, what `write_volume` noted in a NIfTI, else "a.u.".

    Returns:
        A volume with float32 values; int16 when the unit is "label".

    Raises InputError, naming the file, when it is missing, not an image, not 3D (2D, 4D, RGB), too large for the
    memory, holds NaN or infinite voxels, has a singular affine or impossible voxel sizes, is constant (labels may be),
    or when a label map holds anything but whole numbers from 0 to 32767.
    """
    path = Path(path)
    file = open_scan(path)
    try:
        return _checked_volume(file, file.read(), path, unit or file.unit or "a.u.")
    except MemoryError as error:
        raise InputError(
            f"{path}: its {' x '.join(map(str, file.shape))} voxels do not fit into memory; expected a smaller volume. "
            "Crop or downsample it, or close other programs"
        ) from error


def read_grid(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the shape (I, J, K) and affine (4, 4) that `read_volume` gives, from the header alone.

    Raises InputError as `read_volume` does, except for what only the voxels show.
    """
    file = open_scan(Path(path))
    orientation, affine, _ = _ras(file.shape, file.affine)
    order = np.argsort(orientation[:, 0])
    return tuple(int(file.shape[axis]) for axis in order), affine


def write_volume(volume: Volume, path: str | Path, dtype: type | str | None = None) -> None:
    """Write a NIfTI atomically, in the orientation of the file that the volume came from.

    A volume on the grid of a NIfTI keeps that file's sform and qform with their codes, so that every viewer puts both
    at one place. Otherwise both forms hold the affine with code 1 (scanner); a sheared one goes into the sform alone,
    since a qform cannot hold it.

    Args:
        volume: any.
        path: ends with .nii or .nii.gz.
        dtype: of the file. By default int16 for HU, uint8 for labels (int16 above 255), float32 for anything else.
            Values are rounded and clipped to the range of a whole-number type.

    Raises InputError when the name is not that of a NIfTI, a whole-number type meets NaN, or the disk refuses.
    """
    import nibabel as nib
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    path = Path(path)
    if not path.name.lower().endswith(NIFTI):
        raise InputError(
            f"{path}: the name ends with {path.suffix or 'nothing'!r}; expected .nii or .nii.gz. Rename the output"
        )
    array = volume.array
    if dtype is None:
        labels = np.uint8 if array.max(initial=0) <= 255 else np.int16
        dtype = {"HU": np.int16, "label": labels}.get(volume.unit, np.float32)
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        array = _whole_numbers(array, dtype, path)
    change = ornt_transform(axcodes2ornt(RAS), axcodes2ornt(volume.axcodes))
    affine = volume.affine @ inv_ornt_aff(change, array.shape)
    array = np.ascontiguousarray(apply_orientation(array, change)).astype(dtype)
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(array.shape)
    if volume.forms is not None and volume.forms.hold_for(volume):
        for name, value in volume.forms.fields.items():
            header[name] = value
    else:
        header.set_xyzt_units("mm")
        header.set_sform(affine, 1)
        header.set_qform(affine, 1)
        if not np.allclose(header.get_qform(), affine, rtol=0, atol=1e-3):
            header["qform_code"] = 0
    header["descrip"] = f"mr2ct {UNIT_MARK}{volume.unit}"
    with atomic(path) as temporary:
        nib.save(nib.Nifti1Image(array, header.get_best_affine(), header), temporary)


def _whole_numbers(array: np.ndarray, dtype: np.dtype, path: Path) -> np.ndarray:
    """Round and clip to the range of `dtype`. Raises InputError for voxels that are NaN or infinite."""
    if count := int((~np.isfinite(array)).sum()):
        raise InputError(
            f"{path}: {count} voxels to be written are NaN or infinite; expected finite values, which whole numbers "
            "can hold. Repair them, or write floats"
        )
    wide = array.astype(np.float64) if dtype.itemsize > 2 else array  # float32 does not hold the limits of int32
    return np.clip(np.round(wide), np.iinfo(dtype).min, np.iinfo(dtype).max)


def reslice(volume: Volume, shape: tuple[int, int, int], affine: np.ndarray, fill: float | None = None) -> Volume:
    """Return `volume` on another grid, of any orientation: interpolated linearly, labels from the nearest voxel.

    A coarser grid is smoothed first (Gaussian of (ratio - 1) / 2 voxels), as a scanner with larger voxels would have
    seen it. A voxel reaches half its size from its centre.

    Args:
        volume: any number of slices.
        shape: (I, J, K) of the new grid.
        affine: (4, 4) of the new grid, voxel to mm.
        fill: the value outside of the volume; by default -1000 for HU, 0 otherwise.
    """
    import SimpleITK as sitk

    if fill is None:
        fill = -1000.0 if volume.unit == "HU" else 0.0
    linear = volume.unit != "label"
    affine = np.asarray(affine, dtype=np.float64)
    dtype = np.float32 if linear else volume.array.dtype
    image = to_sitk(volume.replace(array=volume.array.astype(dtype, copy=False)))
    if linear:
        # size of a new voxel along each old axis, in old voxels
        ratio = np.abs(np.linalg.solve(volume.affine[:3, :3], affine[:3, :3])).max(axis=1)
        sigma = np.maximum(ratio - 1, 0) / 2
        for axis in np.flatnonzero(sigma > 0.05):
            image = _smoothed(image, int(axis), float(sigma[axis] * volume.spacing[axis]))
    grid = sitk.ResampleImageFilter()
    grid.SetSize([int(n) for n in shape])
    spacing, direction, origin = _sitk_geometry(affine)
    grid.SetOutputSpacing(spacing)
    grid.SetOutputDirection(direction)
    grid.SetOutputOrigin(origin)
    grid.SetInterpolator(sitk.sitkLinear if linear else sitk.sitkNearestNeighbor)
    grid.SetDefaultPixelValue(float(fill))
    array = sitk.GetArrayFromImage(grid.Execute(image)).transpose(2, 1, 0)
    return Volume(np.ascontiguousarray(array).astype(dtype, copy=False), affine, volume.unit)


def _smoothed(image: "sitk.Image", axis: int, sigma: float) -> "sitk.Image":
    """Return the image smoothed along one axis by a Gaussian of `sigma` mm, its edges continued."""
    import SimpleITK as sitk

    missing = [0, 0, 0]
    missing[axis] = max(0, 4 - image.GetSize()[axis])  # ITK's recursive filter needs four voxels
    padded = sitk.ZeroFluxNeumannPad(image, [0, 0, 0], missing) if missing[axis] else image
    smooth = sitk.RecursiveGaussian(padded, sigma, False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    return sitk.Crop(smooth, [0, 0, 0], missing) if missing[axis] else smooth


def slices_of(volume: Volume | np.ndarray, plane: str) -> np.ndarray:
    """Return the radiological images (N, H, W) of a volume, ordered by increasing array index.

    Coronal: rows from superior to inferior, columns from the patient's right to left; axial: rows from anterior to
    posterior, columns from right to left; sagittal: rows from superior to inferior, columns from anterior to
    posterior. A view where possible, not a copy.

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
    """Return the axis of slices, of rows and of columns, and the reversed axes of a plane.

    Raises InputError for an unknown plane.
    """
    if plane not in _PLANES:
        raise InputError(f"plane: {plane!r}; expected one of {', '.join(PLANES)}. Choose one of them")
    return _PLANES[plane]


def to_sitk(volume: Volume) -> "sitk.Image":
    """Return the volume as a SimpleITK image at the same place (SimpleITK works in LPS)."""
    import SimpleITK as sitk

    array = volume.array
    array = array.astype({"b": np.uint8, "f": np.float32}.get(array.dtype.kind, array.dtype), copy=False)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    spacing, direction, origin = _sitk_geometry(volume.affine)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    image.SetOrigin(origin)
    return image


@contextmanager
def one_thread() -> Iterator[None]:
    """Let SimpleITK work on one thread inside the block, for the same bits on every machine.

    The number of threads that a filter offers does not reach its inner filters.
    """
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _sitk_geometry(affine: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """Return spacing, direction and origin (LPS) of an affine (RAS)."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return spacing.tolist(), (lps[:3, :3] / spacing).ravel().tolist(), lps[:3, 3].tolist()


def _ras(shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, str, str]]:
    """Return the orientation of a grid, its affine after its axes are in RAS+ order, and its axis codes."""
    from nibabel.orientations import inv_ornt_aff, io_orientation, ornt2axcodes

    orientation = io_orientation(affine)
    return orientation, affine @ inv_ornt_aff(orientation, shape), ornt2axcodes(orientation)


def _checked_volume(file: ScanFile, array: np.ndarray, path: Path, unit: str) -> Volume:
    """Return what a file holds as a Volume. Raises InputError for values that no scan or label map has."""
    from nibabel.orientations import apply_orientation

    orientation, affine, axcodes = _ras(array.shape, file.affine)
    array = np.ascontiguousarray(apply_orientation(array, orientation))  # every voxel keeps its place in mm
    forms = None if file.forms is None else NiftiForms(file.forms, array.shape, affine)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise InputError(
            f"{path}: {count} voxels are NaN or infinite; expected finite values. Repair or leave out this scan"
        )
    if unit == "label":
        if (array != np.round(array)).any() or array.min() < 0 or array.max() > np.iinfo(np.int16).max:
            raise InputError(
                f"{path}: is no label map (values {array.min():g} to {array.max():g}); expected whole numbers >= 0. "
                "Choose the label file"
            )
        return Volume(array.astype(np.int16), affine, unit, axcodes, forms)
    if array.min() == array.max():
        raise InputError(f"{path}: every voxel is {array.min():g}; expected a scan of something. Choose another file")
    return Volume(array, affine, unit, axcodes, forms)
