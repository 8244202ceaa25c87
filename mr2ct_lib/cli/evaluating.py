"""What `mr2ct evaluate` does: files in, both scans on one grid and in one unit, measures out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mr2ct_lib.files import InputError, read_json
from mr2ct_lib.images.folders import guess_modality
from mr2ct_lib.images.intensity import normalise_mr
from mr2ct_lib.images.volumes import Volume, read_volume, reslice
from mr2ct_lib.measures.evaluation import compare_volumes, errors_by_label, synthrad

MM = 0.01  # grids whose voxels lie closer than this are the same


def evaluate_files(
    prediction: Path, truth: Path, mask: Path | None, labels: Path | None, names: Path | None, resliced: bool
) -> dict[str, Any]:
    """Compare the scan `prediction` with the scan `truth`.

    Args:
        prediction, truth: a synthetic and a true scan, both CT or both MR.
        mask: where to measure, values above 0.
        labels, names: a label map with, as JSON, the names of its values; adds the error of each structure.
        resliced: bring what lies on another grid to the prediction's, and leave out voxels that the truth does not
            cover; else another grid is refused.

    Returns "unit"; "measures", name -> value; for CT "SynthRAD", the challenge's measures; with labels "structures",
    name -> measures. Raises InputError for scans that cannot be read or compared, and for a mask that marks nothing.
    """
    made = read_volume(prediction)
    real = on_grid_of(made, prediction, truth, None, resliced)
    covered = on_grid_of(made, prediction, truth, "covered", resliced).array > 0
    real = _in_unit_of(made, real, prediction, truth)
    inside = covered if mask is None else covered & read_mask(made, prediction, mask, resliced)
    inside = None if inside.all() else inside
    result: dict[str, Any] = {"unit": real.unit, "measures": compare_volumes(made, real, inside)}
    if real.unit == "HU":
        result["SynthRAD"] = synthrad(made.array, real.array, inside)
    if labels is not None:
        label_map = np.where(covered, on_grid_of(made, prediction, labels, "label", resliced).array, 0)
        known = _names(names, np.unique(label_map))
        table = errors_by_label(made.array, real.array, label_map, known)
        result["structures"] = table.to_dict(orient="index")
    return result


def lines(result: dict[str, Any]) -> Iterable[str]:
    """What `evaluate_files` returned, as lines of text."""
    for title in ("measures", "SynthRAD"):
        if title in result:
            yield f" {title if title == 'measures' else 'measures of the SynthRAD2025 challenge'}"
            yield from (f"  {name:<58}{value:10.4g}" for name, value in result[title].items())
    for number, (name, row) in enumerate(result.get("structures", {}).items()):
        if number == 0:
            yield f" {'structure (' + result['unit'] + ')':<30}" + "".join(f"{column:>13}" for column in row)
        yield f"  {name:<29}" + "".join(f"{value:13.4g}" for value in row.values())


def on_grid_of(fixed: Volume, fixed_path: Path, path: Path, unit: str | None, resliced: bool = False) -> Volume:
    """Read the scan or label map at `path`, which must lie on the grid of `fixed`, or is resliced to it.

    unit: as in `read_volume`; "covered" gives a label map that is 1 where there is a voxel of the scan. Raises
    InputError, with both grids, for another grid.
    """
    if unit == "covered":
        scan = read_volume(path)
        volume = scan.replace(array=np.ones(scan.array.shape, np.uint8), unit="label")
    else:
        volume = read_volume(path, unit)
    if volume.array.shape == fixed.array.shape and np.abs(volume.affine - fixed.affine).max() <= MM:
        return volume
    if resliced:
        if unit is None and guess_modality(volume) == "CT":
            volume = volume.replace(unit="HU")  # outside lies air
        moved = reslice(volume, fixed.array.shape, fixed.affine)
        if np.ptp(moved.array) == 0 and not (unit == "covered" and moved.array.any()):
            raise InputError(
                f"{path}: does not overlap {fixed_path}; expected one patient in one place. Register it first"
            )
        return moved
    raise InputError(
        f"{path}: lies on another grid ({_grid(volume)}) than {fixed_path} ({_grid(fixed)}); expected the same. "
        "Add --reslice if both lie rightly in the patient, else register one to the other (mr2ct register)"
    )


def read_mask(fixed: Volume, fixed_path: Path, path: Path, resliced: bool = False) -> np.ndarray:
    """The mask at `path` on the grid of `fixed`, bool (I, J, K). Raises InputError when it marks nothing."""
    inside = on_grid_of(fixed, fixed_path, path, "label", resliced).array > 0
    if not inside.any():
        raise InputError(f"{path}: marks no voxel; expected values above 0 where to compare. Choose another mask")
    return inside


def _grid(volume: Volume) -> str:
    spacing, first = (np.round(values, 2).tolist() for values in (volume.spacing, volume.affine[:3, 3]))
    return f"{' x '.join(map(str, volume.array.shape))} voxels of {spacing} mm from {first} mm"


def _kind(volume: Volume) -> str:
    low = volume.array.min()  # a synthetic CT that lost its unit still reaches -150 HU
    return "CT" if volume.unit == "HU" or (volume.unit == "a.u." and low <= -100) else "MR"


def _in_unit_of(made: Volume, real: Volume, prediction: Path, truth: Path) -> Volume:
    """The truth in the unit of the prediction. Raises InputError when one is CT and the other is not."""
    kinds = _kind(made), _kind(real)
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{truth}: looks like {kinds[1]}, {prediction} like {kinds[0]}; expected two scans of one kind. "
            "Exchange one"
        )
    if kinds[0] == "CT":
        return real.replace(unit="HU")
    method = {"%": "percentile", "SD": "zscore"}.get(made.unit)
    return normalise_mr(real, method) if method and real.unit == "a.u." else real


def _names(path: Path | None, values: np.ndarray) -> dict[int, str]:
    """Label value -> name of the structures in a label map. Raises InputError for a value without a name."""
    present = [int(value) for value in values if value]
    if path is None:
        return {value: f"label {value}" for value in present}
    content = read_json(path)
    if not isinstance(content, dict) or not all(str(key).isdecimal() for key in content):
        raise InputError(f'{path}: is no table of label values and names; expected {{"1": "pelvis"}}. Correct it')
    known = {int(value): str(name) for value, name in content.items()}
    missing = [value for value in present if value not in known]
    if missing:
        raise InputError(f"{path}: has no name for the values {missing}; expected one for each. Add them")
    return known
