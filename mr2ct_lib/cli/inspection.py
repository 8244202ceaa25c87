"""What `mr2ct inspect` tells about a scan: where it lies, what its header and its values say, and which translator it
fits."""

from pathlib import Path

import nibabel as nib
import numpy as np

from mr2ct_lib.cli.entry import kept_warnings
from mr2ct_lib.course.recorded import find_translator
from mr2ct_lib.files import InputError
from mr2ct_lib.images.dicom_reading import open_series
from mr2ct_lib.images.folders import guess_modality, is_offset_ct
from mr2ct_lib.images.intensity import (
    CT_WINDOW,
    MR_WINDOW,
    WHOLE_BODY_WINDOW,
    Window,
    body_mask,
    mr_scale,
    without_negative,
)
from mr2ct_lib.images.scan_files import NIFTI, forms_are_mirrored
from mr2ct_lib.images.volumes import Volume, read_volume
from mr2ct_lib.methods.training_data import check_scan
from mr2ct_lib.methods.translator import load_translator

NO_HU = "CT that is not in Hounsfield units; convert it again"
OFFSET_CT = "CT stored with an offset of 1024; subtract it first"
LABELS_AT_MOST = 256  # different whole numbers; a scan has more


def describe(path: Path) -> dict[str, str]:
    """Facts about a scan, name -> text. Raises InputError as `read_volume`."""
    volume = read_volume(path)
    low, first, middle, last, high = np.percentile(volume.array, [0, 1, 50, 99, 100])
    looks = values_look_like(volume)
    seen = {"CT": volume.replace(unit="HU"), "MR": without_negative(volume)}.get(looks, volume)  # as `prepare` takes it
    body = body_mask(seen)
    facts = {
        "kind": _kind(path),
        "grid (voxels, RAS order)": " x ".join(map(str, volume.array.shape)),
        "spacing (mm)": " x ".join(f"{mm:.4g}" for mm in volume.spacing),
        "field of view (mm)": " x ".join(f"{mm:.4g}" for mm in volume.spacing * volume.array.shape),
        "orientation": f"stored as {''.join(volume.axcodes)}, {_tilt(volume.affine)}",
        "left and right": _sides(path),
        "header says": _modality_in_header(path, volume),
        "unit": volume.unit,
        "values look like": looks,
        "values": f"{low:.4g} to {high:.4g}, median {middle:.4g}, 98 % within {first:.4g} to {last:.4g}",
        "body": f"{body.mean():.0%} of the voxels",
    }
    windows = _usual_windows(seen) if looks in ("CT", "MR") else []
    for window, name in windows:
        facts[f"cut by {name}"] = _cut(seen, window)
    return facts


def values_look_like(volume: Volume) -> str:
    """ "a label map", "a mask", "CT" or "MR", by the values alone.

    An MR of 8 bits holds as few whole numbers as a label map, but its neighbouring voxels differ.

    >>> values_look_like(Volume(np.array([[[-1000.0, 40.5]]]), np.eye(4)))
    'CT'
    >>> values_look_like(Volume(np.array([[[0.0, 1.0, 1.0, 3.0]]]), np.eye(4)))
    'a label map'
    """
    if is_offset_ct(volume):
        return OFFSET_CT
    different = np.unique(volume.array)
    if len(different) <= LABELS_AT_MOST and different[0] >= 0 and (different == np.round(different)).all():
        if len(different) == 2:
            return "a mask"
        if _equal_neighbours(volume.array) > 0.4:
            return "a label map"
    try:
        return guess_modality(volume.replace(unit="a.u."))
    except InputError:  # inverted, or on another scale
        return NO_HU


def _equal_neighbours(array: np.ndarray) -> float:
    """The share of the voxels above 0 whose next voxel has the same value, over the three axes; 0 where none has one.
    """
    equal = [np.diff(array, axis=axis)[array.take(range(n - 1), axis) > 0] == 0 for axis, n in enumerate(array.shape)]
    equal = np.concatenate(equal)
    return float(equal.mean()) if len(equal) else 0.0


def fitness(path: Path, folder: Path) -> str:
    """Say whether the translator in `folder` can translate the scan, in which direction, or why it cannot."""
    volume, translator = read_volume(path), load_translator(find_translator(folder))
    kind = values_look_like(volume)
    known = translator.preparation
    units = {domain: known.windows[domain].unit for domain in ("source", "target")}
    domains = [domain for domain, unit in units.items() if ("CT" if unit == "HU" else "MR") == kind]
    if not domains:
        known_kinds = " and ".join("CT" if unit == "HU" else "MR" for unit in units.values())
        return f"no: the values look like {kind}, it knows {known_kinds}"
    direction = " --reverse" if domains[0] == "target" else ""
    slices, place = known.to_slices(volume, domains[0])
    if not place.training.any():
        return f"no{direction}: the window cuts everything, so no slice shows anything"
    with kept_warnings() as messages:
        check_scan(slices[place.training], translator, domains[0], place=place)
    if messages:
        return f"doubtful{direction}: {messages[0]}"
    scan = " x ".join(f"{mm:.4g}" for mm in volume.spacing)
    return (
        f"yes{direction}: {known.plane} slices of {known.pixel:.4g} mm pixels, made from this scan's {scan} mm voxels"
    )


def _kind(path: Path) -> str:
    if not path.is_dir():
        return {".gz": "NIfTI file", ".nii": "NIfTI file", ".nrrd": "NRRD file"}.get(
            path.suffix.lower(), "MetaImage file"
        )
    return f"DICOM series in a folder of {sum(1 for file in path.rglob('*') if file.is_file())} files"


def _modality_in_header(path: Path, volume: Volume) -> str:
    """What the header says about modality; NIfTI headers have no place for it."""
    if path.is_dir():
        return f"DICOM modality {open_series(path).header.get('Modality') or 'missing'}"
    if path.name.lower().endswith((".nii", ".nii.gz")):
        header = nib.load(path).header
        forms = f"sform code {int(header['sform_code'])}, qform code {int(header['qform_code'])}"
        return f"{'written by mr2ct in ' + volume.unit if volume.unit != 'a.u.' else 'no modality'}; {forms}"
    return "no modality"


def _sides(path: Path) -> str:
    """Where the header says that left and right are; a scan that was mirrored since then looks like any other."""
    said = "as the header says; no value shows whether the scan was mirrored"
    if path.is_dir() or not path.name.lower().endswith(NIFTI):
        return said
    header = nib.load(path).header
    if not header["sform_code"] and not header["qform_code"]:
        return "unknown: the header has neither sform nor qform"
    return "sform and qform are mirror images" if forms_are_mirrored(header) else said


def _tilt(affine: np.ndarray) -> str:
    """How far the axes lie from the patient's own."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    degrees = np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), 0, 1))).max()
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3
    return ("straight" if degrees < 0.1 else f"oblique by up to {degrees:.1f} degrees") + (
        ", sheared (gantry tilt)" if sheared else ""
    )


def _usual_windows(volume: Volume) -> list[tuple[Window, str]]:
    """The windows that this project uses for such values, in the volume's own unit."""
    if guess_modality(volume) == "CT":
        return [(CT_WINDOW, "[-150, 350] HU"), (WHOLE_BODY_WINDOW, "[-1024, 1500] HU")]
    body = body_mask(volume)
    offset, scale = mr_scale(volume.array[body] if body.any() else volume.array, "percentile")
    window = Window(MR_WINDOW.low * scale + offset, MR_WINDOW.high * scale + offset, "a.u.")
    return [(window, "[0, 100] % of bright tissue")]


def _cut(volume: Volume, window: Window) -> str:
    below, above = (volume.array < window.low).mean(), (volume.array > window.high).mean()
    return f"{below:.1%} of the voxels below, {above:.1%} above"
