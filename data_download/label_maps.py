"""Files of data sets: found whatever their case, linked into cohorts, and label maps made of masks and pictures."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from data_download import names
from mr2ct_lib.files import InputError, atomic
from mr2ct_lib.images.dicom_reading import open_series


def find(folder: Path, pattern: str) -> list[Path]:
    """The files that match a pattern in small or capital letters, in the order of their names."""
    return sorted(folder.glob(re.sub("[A-Za-z]", lambda letter: f"[{letter[0].upper()}{letter[0].lower()}]", pattern)))


def link(file: Path, place: Path) -> None:
    """Put a file at another place: a hard link where the disk allows, else a copy."""
    try:
        os.link(file.resolve(), place)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(file, place)


def copied(labels: Path | None) -> Callable[[Path], None] | None:
    """The set's own label map; None where there is none."""
    return (lambda place: link(labels, place)) if labels and labels.exists() else None


def merged_masks(case: Path) -> Callable[[Path], None] | None:
    """One label map of a case's masks. It is kept beside them, since merging takes seconds per case."""
    masks = next(iter(find(case, "segmentations")), None)
    if masks is None:
        return None

    def write(place: Path) -> None:
        kept = case / "labels.nii.gz"
        if not kept.exists():
            _merge(masks, kept)
        link(kept, place)

    return write


def _merge(folder: Path, place: Path) -> None:
    merged = first = None
    paths = {path.name.lower(): path for path in find(folder, "*.nii.gz")}
    for value, name in names.TOTALSEGMENTATOR.items():
        path = paths.get(f"{name}.nii.gz")
        if path is None:
            continue
        try:
            image = nib.load(path)
            mask = np.asanyarray(image.dataobj) > 0
        except Exception as error:  # nibabel, gzip and zlib raise many kinds for a damaged file
            raise InputError(f"{path}: is no readable mask ({error}); expected NIfTI. Download it again") from error
        if merged is None:
            merged, first = np.zeros(mask.shape, np.uint8), image
        if mask.shape != merged.shape:
            raise InputError(f"{path}: has shape {mask.shape}; expected {merged.shape} as before. Download it again")
        merged[mask] = value
    if merged is None:
        raise InputError(f"{folder}: holds no mask that is known; expected one per structure. Download the case again")
    header = first.header.copy()
    header.set_data_dtype(np.uint8)
    with atomic(place) as temporary:
        nib.save(nib.Nifti1Image(merged, first.affine, header), temporary)


def painted(series: Path, pictures: Path | None, step: int | None) -> Callable[[Path], None] | None:
    """A label map from one PNG per slice, in the order of the DICOM files' names; grey value / `step` is the label."""
    if pictures is None:
        return None

    def write(place: Path) -> None:
        grey, scan = find(pictures, "*.png"), open_series(series)
        files = sorted(image.path for image in scan.slices)
        if len(grey) != len(files):
            raise InputError(
                f"{pictures}: holds {len(grey)} pictures for {len(files)} slices; expected one each. Download it again"
            )
        try:
            painted = [sitk.ReadImage(str(grey[files.index(image.path)])) for image in scan.slices]
            stack = np.stack([sitk.GetArrayFromImage(picture) for picture in painted]).T
        except (RuntimeError, ValueError) as error:
            why = str(error).strip().splitlines()[-1]
            raise InputError(
                f"{pictures}: cannot be read ({why}); expected PNG of one size. Download it again"
            ) from error
        if stack.shape != scan.shape:
            raise InputError(f"{pictures}: shape {stack.shape}; expected {scan.shape} as {series}. Download it again")
        labels = np.rint(stack / step) if step else stack > 0
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), scan.affine), place)

    return write
