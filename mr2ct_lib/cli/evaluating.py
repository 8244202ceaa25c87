"""What `mr2ct evaluate` does: files in, both scans on one grid and in one unit, measures out."""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import read_names
from mr2ct_lib.images.hounsfield import UNMEASURED_HU, wrong_scale
from mr2ct_lib.images.intensity import normalise_mr, without_negative, without_unmeasured
from mr2ct_lib.images.preparation import NORMALISATION
from mr2ct_lib.images.same_grid import check_same_grid
from mr2ct_lib.images.volumes import Volume, read_volume, reslice
from mr2ct_lib.measures.evaluation import compare_volumes, errors_by_label, synthrad


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

    What the scanner of a true CT did not measure (below -1200 HU) is left out, with a warning; warnings also say where
    the prediction holds such values, and whether a CT looks as if it were not in HU. Returns "unit"; "measures",
    name -> value; for CT "SynthRAD", the challenge's measures; with labels "structures", name -> measures. Raises
    InputError for scans that cannot be read or compared, and for a mask or a label map that marks nothing.
    """
    made = read_volume(prediction)
    real = _as_kind_of(made, read_volume(truth), prediction, truth)
    measured = np.ones(real.array.shape, np.uint8)
    if real.unit == "HU":
        for path, volume in ((prediction, made), (truth, real)):
            if problem := wrong_scale(volume.sample()):
                warnings.warn(f"{path}: may not be in Hounsfield units ({problem}); look at its values", stacklevel=2)
        measured = (real.array >= UNMEASURED_HU).astype(np.uint8)
        real = without_unmeasured(real)
        _say_share(truth, measured == 0, "were not measured by the scanner, and are left out")
        _say_share(prediction, made.array < UNMEASURED_HU, "hold what no tissue has; their errors count in full")
    inside = on_grid_of(made, prediction, real.replace(array=measured, unit="label"), truth, resliced).array > 0
    real = _in_unit_of(made, on_grid_of(made, prediction, real, truth, resliced))
    if mask is not None:
        inside &= read_mask(made, prediction, mask, resliced)
    if not inside.any():
        raise InputError(f"{mask or truth}: no voxel is left to compare; expected some inside both scans")
    if labels is not None:
        label_map = np.where(inside, _read_on_grid_of(made, prediction, labels, resliced).array, 0)
        if not label_map.any():
            raise InputError(f"{labels}: marks no structure where to compare; expected values above 0. Choose another")
        known = _names(names, np.unique(label_map))
    where = None if inside.all() else inside
    result: dict[str, Any] = {"unit": real.unit, "measures": compare_volumes(made, real, where)}
    if real.unit == "HU":
        result["SynthRAD"] = synthrad(made.array, real.array, where)
    if labels is not None:
        result["structures"] = errors_by_label(made.array, real.array, label_map, known).to_dict(orient="index")
    return result


def _say_share(path: Path, voxels: np.ndarray, what: str) -> None:
    """Warn of such voxels of a CT, if there are any."""
    if voxels.any():
        warnings.warn(
            f"{path}: {voxels.mean():.1%} of its voxels are below {UNMEASURED_HU:g} HU: they {what}", stacklevel=3
        )


def without_nan(result: Any) -> Any:
    """`result` with None, which JSON knows, in place of NaN and infinity: measures that are not defined."""
    if isinstance(result, dict):
        return {name: without_nan(value) for name, value in result.items()}
    return None if isinstance(result, float) and not math.isfinite(result) else result


def lines(result: dict[str, Any]) -> Iterable[str]:
    """What `evaluate_files` returned, as lines of text."""
    for title in ("measures", "SynthRAD"):
        if title in result:
            yield f" {title if title == 'measures' else 'measures of the SynthRAD2025 challenge'}"
            for name, value in result[title].items():
                yield f"  {name:<58}{value:10.4g}" + " (no window fits into the mask)" * (value != value)
    for number, (name, row) in enumerate(result.get("structures", {}).items()):
        if number == 0:
            yield f" {'structure (' + result['unit'] + ')':<30}" + "".join(f"{column:>13}" for column in row)
        yield f"  {name:<29}" + "".join(f"{value:13.4g}" for value in row.values())


def on_grid_of(fixed: Volume, fixed_path: Path, volume: Volume, path: Path, resliced: bool = False) -> Volume:
    """The scan or label map of the file `path`, which must lie on the grid of `fixed`, or is resliced to it.

    Raises InputError, with both grids, for another grid, and for scans that do not overlap.
    """
    try:
        check_same_grid(volume, path, fixed, fixed_path)
    except InputError as error:
        if not resliced:
            raise InputError(
                f"{error} (--reslice) if both lie rightly in the patient, else register one to the other "
                "(mr2ct register)"
            ) from None
    else:
        return volume
    everywhere = volume.replace(array=np.ones(volume.array.shape, np.uint8), unit="label")
    if not reslice(everywhere, fixed.array.shape, fixed.affine).array.any():
        raise InputError(f"{path}: does not overlap {fixed_path}; expected one patient in one place. Register it first")
    return reslice(volume, fixed.array.shape, fixed.affine)


def _read_on_grid_of(fixed: Volume, fixed_path: Path, path: Path, resliced: bool) -> Volume:
    """The label map at `path` on the grid of `fixed`."""
    return on_grid_of(fixed, fixed_path, read_volume(path, "label"), path, resliced)


def read_mask(fixed: Volume, fixed_path: Path, path: Path, resliced: bool = False) -> np.ndarray:
    """The mask at `path` on the grid of `fixed`, bool (I, J, K). Raises InputError when it marks nothing."""
    inside = _read_on_grid_of(fixed, fixed_path, path, resliced).array > 0
    if not inside.any():
        raise InputError(f"{path}: marks no voxel; expected values above 0 where to compare. Choose another mask")
    return inside


def _kind(volume: Volume) -> str:
    low = volume.array.min()  # a synthetic CT that lost its unit still reaches -150 HU
    return "CT" if volume.unit == "HU" or (volume.unit == "a.u." and low <= -100) else "MR"


def _as_kind_of(made: Volume, real: Volume, prediction: Path, truth: Path) -> Volume:
    """The truth, in HU if both are CT. Raises InputError when one is CT and the other is not."""
    kinds = _kind(made), _kind(real)
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{truth}: looks like {kinds[1]}, {prediction} like {kinds[0]}; expected two scans of one kind. "
            "Exchange one"
        )
    return real.replace(unit="HU") if kinds[0] == "CT" else real


def _in_unit_of(made: Volume, real: Volume) -> Volume:
    """An MR in the unit of the prediction; a CT as it is."""
    method = NORMALISATION.get(made.unit)
    return normalise_mr(without_negative(real), method) if method and real.unit == "a.u." else real


def _names(path: Path | None, values: np.ndarray) -> dict[int, str]:
    """Label value -> name of the structures in a label map; a name that several values share ends with the value.

    Raises InputError for a value without a name, and for a file that `read_names` refuses.
    """
    present = [int(value) for value in values if value]
    if path is None:
        return {value: f"label {value}" for value in present}
    known = read_names(path)
    if missing := [value for value in present if value not in known]:
        raise InputError(f"{path}: has no name for the values {missing}; expected one for each. Correct it")
    shared = {name for value, name in known.items() if list(known.values()).count(name) > 1}
    return {value: f"{name} ({value})" if name in shared else name for value, name in known.items()}
