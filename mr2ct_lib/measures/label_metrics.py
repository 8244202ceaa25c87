"""How well two label images agree: overlap, distance between surfaces, and volume of each structure.

Labels are integer arrays; `names` maps a label's value to its structure. Value 0 is background and is never measured.
"""

import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from mr2ct_lib.files import InputError


def dice(prediction: np.ndarray, truth: np.ndarray, names: Mapping[int, str]) -> dict[str, float]:
    """Return the Dice overlap 2 |P and T| / (|P| + |T|) of each named structure; NaN where neither image has it.

    prediction, truth: integer labels of one shape. Raises InputError for other shapes or types.

    >>> dice(np.array([0, 1, 1, 2]), np.array([1, 1, 1, 0]), {1: "femur", 2: "sacrum", 3: "psoas_major"})
    {'femur': 0.8, 'sacrum': 0.0, 'psoas_major': nan}
    """
    prediction, truth = _labels(prediction, truth)
    result = {}
    for value, name in structures_of(names).items():
        one, other = prediction == value, truth == value
        total = int(one.sum()) + int(other.sum())
        result[name] = 2 * int((one & other).sum()) / total if total else float("nan")
    return result


def dice_table(
    prediction: np.ndarray, truth: np.ndarray, names: Mapping[int, str], patients: Iterable[str]
) -> pd.DataFrame:
    """Return the Dice of every structure (columns) for every patient (rows), each over the patient's whole volume.

    prediction, truth: labels (N, H, W); patients: the patient of each of the N slices, in any order.
    Raises InputError when there is not one patient per slice.
    """
    prediction, truth = _labels(prediction, truth)
    patients = np.asarray(list(patients))
    if len(patients) != len(truth):
        raise InputError(f"patients: {len(patients)} names; expected one for each of the {len(truth)} slices")
    rows = {p: dice(prediction[patients == p], truth[patients == p], names) for p in dict.fromkeys(patients.tolist())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="patient", columns="structure")


def hausdorff_95(
    prediction: np.ndarray, truth: np.ndarray, names: Mapping[int, str], spacing: tuple[float, ...]
) -> dict[str, float]:
    """Return the 95th percentile of the surface distances in mm of each structure, the larger of both directions.

    NaN where either image lacks the structure. Computed by MONAI.

    prediction, truth: labels (H, W) or (I, J, K); spacing: mm along each axis. Raises InputError for other shapes.
    """
    import torch
    from monai.metrics import compute_hausdorff_distance

    prediction, truth = _labels(prediction, truth)
    spacing = _spacing(spacing, truth.ndim)
    result = {}
    for value, name in structures_of(names).items():
        one, other = prediction == value, truth == value
        if not (one.any() and other.any()):
            result[name] = float("nan")
            continue
        first, second = (torch.from_numpy(image[None, None].astype(np.float32)) for image in (one, other))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns about its own arguments
            distance = compute_hausdorff_distance(
                first, second, include_background=True, percentile=95, spacing=list(spacing)
            )
        result[name] = float(distance)
    return result


def volumes(labels: np.ndarray, names: Mapping[int, str], spacing: tuple[float, ...]) -> dict[str, float]:
    """Return the volume of each structure in mL; 0 where it is absent.

    labels: integers (I, J, K); spacing: mm along each axis. Raises InputError for other shapes or types.

    >>> volumes(np.ones((2, 2, 5), dtype=np.uint8), {1: "femur", 2: "sacrum"}, (10.0, 10.0, 5.0))
    {'femur': 10.0, 'sacrum': 0.0}
    """
    labels, _ = _labels(labels, labels)
    voxel = float(np.prod(_spacing(spacing, 3))) / 1000
    if labels.ndim != 3:
        raise InputError(f"labels: shape {labels.shape}; expected a volume (I, J, K)")
    return {name: int((labels == value).sum()) * voxel for value, name in structures_of(names).items()}


def structures_of(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names without the background, their keys as integers. Raises InputError where two values share one."""
    structures = {int(value): name for value, name in names.items() if int(value) != 0}
    if len(set(structures.values())) < len(structures):
        raise InputError("names: several values share a name; expected one for each. Tell them apart")
    return structures


def _spacing(spacing: tuple[float, ...], axes: int) -> tuple[float, ...]:
    """Return the spacing as floats; InputError unless there is one positive distance per axis."""
    if len(spacing) != axes or not all(step > 0 for step in spacing):
        raise InputError(f"spacing: {tuple(spacing)}; expected {axes} positive distances in mm")
    return tuple(float(step) for step in spacing)


def _labels(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both label images; InputError when the shapes differ or the values are not integers."""
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise InputError(
            f"prediction: shape {prediction.shape}; expected the truth's {truth.shape}. Reslice one onto the other"
        )
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.dtype.kind not in "iub":
            raise InputError(
                f"{name}: values of type {labels.dtype}; expected integer labels. Round them if they are labels"
            )
    return prediction, truth
