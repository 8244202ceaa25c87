"""Synthetic scans against the truth: whole volumes of a user, and prepared slices patient by patient.

`compare_volumes` is behind `mr2ct evaluate`. `measure`, `measure_labels` and `baselines` work on prepared slices; any
prepared cohort will do, the tutorial's or a user's own.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.ndimage import binary_erosion

from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW, Window
from mr2ct_lib.images.slices import PreparedSlices
from mr2ct_lib.images.volumes import Volume, plane_axes
from mr2ct_lib.measures import metrics
from mr2ct_lib.measures.baselines import histogram_matching, mean_target
from mr2ct_lib.measures.displacement import displacement
from mr2ct_lib.measures.label_metrics import dice, hausdorff_95, structures_of, volumes

SYNTHRAD_RANGE = (-1024.0, 3000.0)  # HU


def compare_volumes(prediction: Volume, truth: Volume, mask: np.ndarray | None = None) -> dict[str, float]:
    """Compare a synthetic scan with the true one on the same grid.

    CT is measured twice: with all HU as they are ("MAE (HU)", "MSE (HU squared)"), and clipped to the window in which
    networks see it, since values beyond it can neither be right nor wrong there. The names of the clipped measures say
    so. MR is measured as it is; its data range is that of the truth.

    Args:
        prediction, truth: volumes on one grid; unit "HU" for CT, else MR in one common unit.
        mask: where to measure, (I, J, K); None for the whole scan. SSIM takes neighbours from outside the mask.

    Returns the measures by name, in the order in which they are to be read. Volumes with fewer than 7 voxels along an
    axis get SSIM slice by slice, over the axis with the fewest voxels, and the name says so. SSIM is NaN where the mask
    has no voxel around which a window fits into the scan.

    Raises InputError for other shapes, NaN, an empty mask.
    """
    for name, volume in (("prediction", prediction), ("truth", truth)):
        if not np.isfinite(volume.array).all():
            raise InputError(f"{name}: NaN or infinite voxels; expected numbers. Repair the scan")
    if truth.unit != "HU":
        span = float(np.ptp(truth.array))
        if not span > 0:
            raise InputError("truth: has one value everywhere; expected an image. Choose another scan")
        return _measures(prediction.array, truth.array, mask, truth.unit, span, "")
    values = {
        "MAE (HU)": metrics.mae(prediction.array, truth.array, mask),
        "MSE (HU squared)": metrics.mse(prediction.array, truth.array, mask),
    }
    low, high = CT_WINDOW.low, CT_WINDOW.high
    where, span = f", clipped to [{low:g}, {high:g}] HU", high - low
    clipped = [np.clip(volume.array, low, high) for volume in (prediction, truth)]
    values |= _measures(*clipped, mask, "HU", span, where)
    values[f"MAE (grey levels of 255{where})"] = values[f"MAE (HU{where})"] * 255 / span
    return values


def _measures(
    prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None, unit: str, span: float, where: str
) -> dict[str, float]:
    """Return the measures of both papers; `where` says in their names what was done to the images."""
    mae = metrics.mae(prediction, truth, mask)
    thin = min(truth.shape) < metrics.SSIM_WINDOW
    if thin:  # slice by slice along the axis with the fewest voxels
        axis = int(np.argmin(truth.shape))
        stacks = [None if x is None else np.moveaxis(x, axis, 0) for x in (prediction, truth, mask)]
        each = metrics.slicewise(_or_nan(metrics.ssim), *stacks, data_range=span)
        ssim = float(each[~np.isnan(each)].mean()) if not np.isnan(each).all() else np.nan
    else:
        ssim = _or_nan(metrics.ssim)(prediction, truth, mask, data_range=span)
    return {
        f"MAE ({unit}{where})": mae,
        f"MSE ({unit} squared{where})": metrics.mse(prediction, truth, mask),
        f"PSNR (dB, range {span:.4g}{where})": metrics.psnr(prediction, truth, mask, data_range=span),
        f"SSIM ({'mean over slices' if thin else '3D'}, window {metrics.SSIM_WINDOW}{where})": ssim,
        f"SSIM (moments of the whole volume{where})": metrics.ssim_whole(prediction, truth, mask, data_range=span),
        f"mutual information (nats{where})": metrics.mutual_information(prediction, truth, mask),
        f"NMI ([0, 1]{where})": metrics.normalised_mutual_information(prediction, truth, mask),
    }


def _or_nan(measure: Callable[..., float]) -> Callable[..., float]:
    """The measure, NaN where it is not defined: no window of SSIM fits into a small mask, or one at the border."""

    def measured(*images: np.ndarray, **settings: float) -> float:
        try:
            return measure(*images, **settings)
        except InputError:
            return float("nan")

    return measured


def synthrad(prediction: np.ndarray, truth: np.ndarray, mask: np.ndarray | None = None) -> dict[str, float]:
    """Return MAE (HU), PSNR (dB) and MS-SSIM as the SynthRAD2025 challenge defines them.

    MAE inside the mask, of all HU as they are. PSNR inside the mask, of HU clipped to [-1024, 3000], range 4024.
    MS-SSIM of `metrics.ms_ssim`, of HU clipped in the same way, both images -1024 HU outside the mask. The challenge's
    mask is the body; without a mask, the whole scan counts.

    prediction, truth: HU (I, J, K); mask (I, J, K). MS-SSIM is NaN where the mask is too small for its scales. Raises
    InputError for other shapes, NaN, an empty mask.
    """
    low, high = SYNTHRAD_RANGE
    values = {"MAE (HU)": metrics.mae(prediction, truth, mask)}
    clipped = [np.clip(np.asarray(image, dtype=np.float64), low, high) for image in (prediction, truth)]
    values["PSNR (dB)"] = metrics.psnr(*clipped, mask, data_range=high - low)
    if mask is not None:
        clipped = [np.where(np.asarray(mask, dtype=bool), image, low) for image in clipped]
    values["MS-SSIM"] = _or_nan(metrics.ms_ssim)(*(image - low for image in clipped), mask, data_range=high - low)
    return values


def errors_by_label(
    prediction: np.ndarray, truth: np.ndarray, labels: np.ndarray, names: Mapping[int, str]
) -> pd.DataFrame:
    """Return what a synthetic scan does to each structure: a row per structure that occurs.

    Columns: voxels; mean error (prediction - truth) and MAE; median and SD of both scans. The images' unit throughout.

    prediction, truth: (I, J, K) in one unit; labels: integers on the same grid; names: label value -> structure.
    Raises InputError for other shapes, and when no structure occurs.
    """
    for name, other in (("labels", labels), ("prediction", prediction)):
        if np.shape(other) != np.shape(truth):
            raise InputError(f"{name}: shape {np.shape(other)}; expected the truth's {np.shape(truth)}. Reslice")
    rows = {}
    for value, name in structures_of(names).items():
        inside = np.asarray(labels) == value
        if not inside.any():
            continue
        rows[name] = _errors(*(np.asarray(image, dtype=np.float64)[inside] for image in (prediction, truth)))
    if not rows:
        raise InputError(
            f"labels: none of the structures {', '.join(map(str, names.values()))} occurs; check the names"
        )
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("structure")


def measure(
    synthetic: np.ndarray,
    test: PreparedSlices,
    direction: str = "source_to_target",
    inside: np.ndarray | None = None,
) -> pd.DataFrame:
    """Measure the errors of a test set's synthetic slices against the truth, a row per patient.

    Columns: patient; MAE and PSNR on the [0, 255] scale of Hiasa et al.; MSE, PSNR and SSIM in the window's unit as in
    Wang et al. ("MSE unit", "PSNR unit", SSIM: windowed, mean over slices; "SSIM whole": from the moments of the
    patient's whole volume, their definition). The data range is the window's width.

    Args:
        synthetic: all slices of the test set, (N, H, W) in [-1, 1].
        test: prepared slices of paired patients.
        direction: "source_to_target" or "target_to_source".
        inside: mask (N, H, W), such as the aorta's. Pixels outside it, and pixels that the truth's scan does not
            cover, are left out.

    Raises InputError when the slices are not those of the test set.
    """
    truth, window = _truth(synthetic, test, direction)
    masks = [np.asarray(m, bool) for m in (test.valid, inside) if m is not None]
    counted = np.logical_and.reduce(masks) if masks else None
    span = window.high - window.low
    rows = []
    for patient, where in test.patients("source"):
        mask = None if counted is None else counted[where]
        grey = [(x[where] + 1) * 127.5 for x in (synthetic, truth)]
        unit = [window.from_network(x[where]) for x in (synthetic, truth)]
        rows.append(
            {
                "patient": patient,
                "MAE": metrics.mae(*grey, mask),
                "PSNR": metrics.psnr(*grey, mask, data_range=255),
                "MSE unit": metrics.mse(*unit, mask),
                "PSNR unit": metrics.psnr(*unit, mask, data_range=span),
                "SSIM": float(np.nanmean(metrics.slicewise(_or_nan(metrics.ssim), *unit, mask, data_range=span))),
                "SSIM whole": metrics.ssim_whole(*unit, mask, data_range=span),
            }
        )
    return pd.DataFrame(rows)


def measure_contrast(synthetic: np.ndarray, test: PreparedSlices, direction: str = "source_to_target") -> pd.DataFrame:
    """Measure the contrast and the place of synthetic slices, a row per patient.

    Columns: patient; "q98.5" and "q99.5", quantiles of the synthetic slices in [-1, 1], with "true q98.5" and
    "true q99.5" beside them; "displacement" in mm, the median over blocks and over 4 slices spread through the patient
    of how far the synthesis has moved against its own source; "shift rows" and "shift columns", the signed medians.
    NaN where no block of any of these slices has edges, or slices are too small for `displacement`.

    synthetic: all slices (N, H, W) in [-1, 1]; direction: as for `measure`. Raises InputError for other shapes.
    """
    source = np.asarray(getattr(test, direction.split("_to_")[0]))
    truth, _ = _truth(synthetic, test, direction)
    rows = []
    for patient, where in test.patients("source"):
        row = {"patient": patient}
        for share in (98.5, 99.5):
            row[f"q{share}"] = float(np.percentile(synthetic[where], share))
            row[f"true q{share}"] = float(np.percentile(truth[where], share))
        slices = np.arange(where.start, where.stop)
        spread = slices[np.unique(np.linspace(0, len(slices) - 1, 6).round().astype(int)[1:-1])]
        moved = []
        for i in spread:
            try:
                moved.append(displacement(synthetic[i], source[i], tuple(test.preparation.spacing)))
            except InputError:  # a slice without edges, or too small
                continue
        names = ("displacement", "shift rows", "shift columns")
        values = [(one.magnitude, *one.mean_shift) for one in moved] or [(np.nan,) * 3]
        rows.append(row | dict(zip(names, np.median(values, axis=0).tolist(), strict=True)))
    return pd.DataFrame(rows)


def measure_tissues(
    synthetic: np.ndarray,
    test: PreparedSlices,
    tissues: Mapping[str, Sequence[int]],
    direction: str = "source_to_target",
) -> pd.DataFrame:
    """Measure what happens to each tissue, in the window's unit, a row per patient and tissue that occurs.

    Columns: patient, tissue, voxels; "mean error" (synthetic - truth) and MAE over the whole tissue; median and SD of
    both over its core, pixels whose eight neighbours in the slice are of the same tissue, so that partial volume does
    not count: inside muscle the SD is grain. Thin tissues, such as cortex, have no core: NaN.

    Args:
        synthetic: all slices of the test set, (N, H, W) in [-1, 1].
        test: prepared slices with labels of the shape that the synthesis should have.
        tissues: label values of each tissue, {"muscle": [4, 5], "cortical_bone": [30]}.
        direction: as for `measure`.

    Raises InputError for other shapes and for a test set without labels.
    """
    truth, window = _truth(synthetic, test, direction)
    labels = getattr(test, f"labels_{direction.split('_to_')[0]}")
    if labels is None:
        raise InputError(f"{test.folder}: has no labels; expected a cohort with labels/. Prepare one")
    rows = []
    for patient, where in test.patients("source"):
        covered = np.ones(truth[where].shape, bool) if test.valid is None else np.asarray(test.valid[where], bool)
        predicted, actual = (window.from_network(x[where]) for x in (synthetic, truth))
        for tissue, values in tissues.items():
            inside = np.isin(labels[where], list(values)) & covered
            if not inside.any():
                continue
            core = binary_erosion(inside, np.ones((1, 3, 3), bool))
            errors = _errors(predicted[inside], actual[inside], core[inside])
            rows.append({"patient": patient, "tissue": tissue} | errors)
    return pd.DataFrame(rows)


def _errors(predicted: np.ndarray, actual: np.ndarray, core: np.ndarray | None = None) -> dict[str, float]:
    """Errors of one structure, values (n,); core (n,) bool: where medians and SDs count, None for everywhere."""
    a, b = (x if core is None else x[core] if core.any() else np.array([np.nan]) for x in (predicted, actual))
    return {
        "voxels": len(actual),
        "mean error": float((predicted - actual).mean()),
        "MAE": metrics.mae(predicted, actual),
        "median": float(np.median(a)),
        "true median": float(np.median(b)),
        "SD": float(a.std()),
        "true SD": float(b.std()),
    }


def measure_labels(
    prediction: np.ndarray, truth: np.ndarray, names: Mapping[int, str], test: PreparedSlices
) -> pd.DataFrame:
    """Measure Dice and HD95 (mm) of every structure, a row per patient and structure, over the patient's whole volume.

    prediction, truth: labels (N, H, W) of all source slices of the test set; names: label value -> structure.
    Columns: patient, structure, Dice, HD95 (NaN where a structure is absent), its volume "mL" and "true mL".
    Raises InputError for other shapes.
    """
    if prediction.shape != truth.shape:
        raise InputError(
            f"prediction: shape {prediction.shape} against {truth.shape} of {test.folder}; segment the whole test set"
        )
    across, rows = plane_axes(test.preparation.plane)[0], []
    affines = {row["id"]: row["affine"] for row in test.meta["patients"]["source"] if "affine" in row}
    for patient, where in test.patients("source"):
        apart = test.preparation.slice_spacing  # thick slices of a user's own scan stay as they are
        if patient in affines:
            apart = float(np.linalg.norm(np.asarray(affines[patient])[:3, across]))
        spacing = (apart, *test.preparation.spacing)
        overlap = dice(prediction[where], truth[where], names)
        distance = hausdorff_95(prediction[where], truth[where], names, spacing)
        size, true_size = (volumes(image[where], names, spacing) for image in (prediction, truth))
        rows += [
            {"patient": patient, "structure": name, "Dice": overlap[name], "HD95": distance[name]}
            | {"mL": size[name], "true mL": true_size[name]}
            for name in overlap
        ]
    return pd.DataFrame(rows)


def truth_of(data: PreparedSlices, direction: str) -> np.ndarray:
    """Return the true slices (N, H, W) of a direction, in the source's shape where the scanners see different ones."""
    truth = getattr(data, f"truth_{direction}")
    return np.asarray(getattr(data, direction.split("_to_")[1]) if truth is None else truth)


def _truth(synthetic: np.ndarray, test: PreparedSlices, direction: str) -> tuple[np.ndarray, Window]:
    """Return the truth (N, H, W) in [-1, 1] of a direction and its window; InputError for other shapes."""
    truth = truth_of(test, direction)
    if truth.shape != synthetic.shape:
        raise InputError(
            f"synthetic: shape {synthetic.shape} against {truth.shape} of {test.folder}; translate the whole test set"
        )
    return truth, test.windows[direction.split("_to_")[1]]


def baselines(
    training: PreparedSlices, test: PreparedSlices, direction: str = "source_to_target"
) -> dict[str, np.ndarray]:
    """Return what a translator must beat, as slices (N, H, W) in [-1, 1] like those of the test set.

    "histogram matching" to the training targets; "mean training slice" of each position in the slab where all slabs
    have one size, else of all slices.
    """
    source, target = direction.split("_to_")
    seen, real = getattr(training, target), np.asarray(getattr(test, source))
    counts = {where.stop - where.start for _, where in (*training.patients(target), *test.patients(source))}
    stack = (counts.pop(),) if len(counts) == 1 else (1,)
    shape = (len(real) // stack[0], *stack, *real.shape[1:])
    mean = mean_target(np.asarray(seen).reshape(-1, *stack, *real.shape[1:]), shape)
    return {
        "histogram matching": histogram_matching(real, np.asarray(seen[:: max(1, len(seen) // 200)])),
        "mean training slice": mean.reshape(real.shape),
    }
