"""What a translator has seen in training, and whether a scan is like it.

A network gives an image for any input. Five signs tell a scan that is unlike the training scans: its values are
distributed otherwise, it does not come back when it is translated there and back, it is more like the training scans
when it is turned, or when it is made larger or smaller, as where a header gives voxels of the wrong size, and it is far
too wide. A sixth, of mirrored scans, exists only where the anatomy itself is lopsided, as liver and spleen are: a
mirrored hip is a hip.
"""

import warnings
from typing import Any

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images.preparation import Place, Preparation
from mr2ct_lib.images.slices import DOMAINS, PreparedSlices
from mr2ct_lib.images.volumes import plane_axes
from mr2ct_lib.methods.translator import DIRECTIONS, Translator

BINS = np.linspace(-1, 1, 65)  # of histograms of network values
PIXELS_ALIKE = 0.1  # pixels whose size differs by a larger share show structures of another size
SLICES = 32  # of which cycles are computed, evenly spread
# Measured with a translator of hips. Unseen hips: Wasserstein distance 0.01 to 0.03, cycle L1 1.05 to 1.27 times that
# of training. Heads, abdomens, masks: 0.48 to 0.89, 2.3 to 5.5 times. Label map: 0.28, 2.1 times. Hip upside down:
# 0.02, 1.2 to 1.8 times. Correlation with the mean training slice: hips 0.55 to 0.94, turned by half or a quarter of a
# turn 0.2 to 1 less.
VALUES_APART = 0.2
CYCLE_TIMES = 1.6
TOO_WIDE = 1.6  # width over that of the field of view, which is that of the source scans; a real, wide hip: 1.3
TURNED_BETTER, ALIKE = 0.1, 0.2  # a turn counts when the turned slices are like those of training at all
# The same for sizes. Unseen virtual hips, heads and abdomens, and a real hip: at most -0.03 better where the size is
# right; at least 0.12, and a correlation of 0.55, where voxels are said to be 1.3 times too large or too small.
SIZES, SIZED_BETTER, SIZED_ALIKE = (1.3, 1.45, 1.6), 0.1, 0.5
COARSE = 16  # pixels per side of mean slices
# Lopsidedness of unseen patients against that of training: virtual abdomens 0.4 to 0.8 (MR), 0.8 to 0.9 (CT), hips -0.7
# to 0.6.
LOPSIDED_PATIENTS, MIRRORED = 5, -0.1  # so many patients must agree before a scan below the second counts as mirrored
TURNS = {
    "upside down": lambda mean: mean[::-1],
    "by 90 degrees": lambda mean: mean.T[::-1],
    "by -90 degrees": lambda mean: mean.T[:, ::-1],
}


def describe_training_data(translator: Translator, prepared: PreparedSlices) -> dict[str, Any]:
    """What is stored in a translator at the end of training, ready for JSON.

    By domain: "histogram" of the values of its slices (64 shares from -1 to 1), "coverage", the mean share of their
    pixels that show more than air, "cycle", the mean absolute difference in [-1, 1] between some of them and what
    comes back from both generators, "mean", their mean slice on 16 x 16 pixels, and "lopsided", how alike the patients
    are in what differs between left and right. Plane and pixel size are in `translator.preparation`.
    """
    record = {}
    for domain in DOMAINS:
        slices = _some(getattr(prepared, domain), 4 * SLICES)
        record[domain] = {
            "histogram": histogram(slices).round(6).tolist(),
            "coverage": round(float((slices > -0.9).mean()), 4),
            "cycle": round(cycle_error(translator, slices, domain), 5),
            "mean": coarse_mean(slices).round(4).tolist(),
            "lopsided": _alike_sides(prepared, domain, coarse_mean(slices)),
        }
    return record


def check_scan(
    slices: np.ndarray, translator: Translator, domain: str, strict: bool = False, place: Place | None = None
) -> None:
    """Warn, in one sentence that names the signs, when a scan is unlike the training scans.

    Args:
        slices: the scan's slices (n, H, W) in [-1, 1], of the field of view of training.
        translator: a warning says so where it has no record of its training data.
        domain: "source" or "target".
        strict: raise InputError in place of the warning.
        place: of the scan's slices; tells how wide the body is.

    Raises InputError when there are no slices.
    """
    if not len(slices):
        raise InputError(
            "the scan: shows nothing in the window within the field of view of training; expected a patient in its "
            "middle. Choose another scan"
        )
    if not translator.training_data:
        warnings.warn("the translator has no record of its training data, so the scan is not compared", stacklevel=3)
        return
    known, signs = _known(translator.training_data, domain), []
    distance = wasserstein(histogram(slices), known["histogram"])
    cycle = cycle_error(translator, slices, domain)
    if distance > VALUES_APART:
        signs.append(f"its values are others (Wasserstein distance {distance:.2f}, expected below {VALUES_APART})")
    if cycle > CYCLE_TIMES * known["cycle"]:
        signs.append(
            f"it does not come back from both generators (cycle L1 {cycle:.2f}, in training {known['cycle']:.2f})"
        )
    if "mean" in known and (turn := better_turned(slices, known["mean"])):
        signs.append(f"its slices are more like those of training when they are turned {turn}")
    if "mean" in known and (times := better_sized(slices, known["mean"])):
        signs.append(f"what it shows is {times:.1f} times as large as in training (voxels of the wrong size?)")
    if known.get("lopsided", 0) > 0 and lopsidedness(coarse_mean(slices), known["mean"]) < MIRRORED:
        signs.append("its left and right are exchanged")
    wide = 0.0 if place is None else _width(place, translator.preparation.plane)
    if wide > TOO_WIDE and domain == "source":  # CT of training may be wider than their field of view
        signs.append(f"its body is {wide:.1f} times as wide as the field of view of training (voxels too large?)")
    if signs:
        sentence = f"this scan is unlike the training scans: {' and '.join(signs)}; do not trust the result"
        if strict:
            raise InputError(f"{sentence}. Give a scan like those, train with such scans, or leave --strict out")
        warnings.warn(sentence, stacklevel=3)


def check_alike(one: Preparation, what: str, translators: Preparation) -> None:
    """Raise InputError unless slices, those of `what`, show what a translator's slices show: same plane and windows.

    Warns where their pixels differ by more than PIXELS_ALIKE.
    """
    mine, theirs = (
        {"plane": shown.plane} | {f"{domain} window": window for domain, window in shown.windows.items()}
        for shown in (one, translators)
    )
    for name, here in mine.items():
        trained = theirs[name]
        if here != trained:
            raise InputError(
                f"{what}: its {name} is {here}, the translator's {trained}; expected slices like those that "
                "the translator was trained on. Prepare them in the same way"
            )
    if abs(one.pixel / translators.pixel - 1) > PIXELS_ALIKE:
        warnings.warn(
            f"{what}: its pixels measure {one.pixel:.3g} mm, the translator's {translators.pixel:.3g} mm; structures "
            "look larger or smaller than in training",
            stacklevel=3,
        )


def _known(record: Any, domain: str) -> dict[str, Any]:
    """What is compared of a translator's record, as numbers. Raises InputError when the record is damaged."""
    try:
        known = {name: np.array(record[domain][name], float) for name in ("histogram", "cycle")}
        if "mean" in record[domain]:  # of older translators it is not known
            known["mean"] = np.array(record[domain]["mean"], float)
        if record[domain].get("lopsided") is not None:
            known["lopsided"] = np.array(record[domain]["lopsided"], float)
        shapes = {name: value.shape for name, value in known.items()}
        lone = shapes["cycle"] == shapes.get("lopsided", ()) == ()
        if shapes["histogram"] != (len(BINS) - 1,) or not lone or len(shapes.get("mean", (0, 0))) != 2:
            raise ValueError(f"shapes {shapes}")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"translator: its record of the training data cannot be used ({error}); expected what `mr2ct train` "
            "wrote. Copy the translator again"
        ) from error
    return known


def _width(place: Place, plane: str) -> float:
    """How many fields of view of training a body is wide: across the patient, as a scan may be of any length."""
    _, *in_plane, _ = plane_axes(plane)
    return max(place.grid[0][axis] / place.field[0][axis] for axis in in_plane if axis != 2)


def cycle_error(translator: Translator, slices: np.ndarray, domain: str) -> float:
    """The mean absolute difference between some slices of `domain` and what comes back from both generators."""
    there, back = DIRECTIONS if domain == "source" else DIRECTIONS[::-1]
    some = _some(slices, SLICES)
    returned = translator.translate(translator.translate(some, there), back)
    return float(np.abs(returned - some).mean())


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """The Wasserstein distance of two histograms over BINS: the area between their cumulative sums.

    >>> low, high = np.eye(64)[0], np.eye(64)[32]
    >>> wasserstein(low, high)
    1.0
    """
    return float(np.abs(np.cumsum(one - other)).sum() * (BINS[1] - BINS[0]))


def coarse_mean(slices: np.ndarray) -> np.ndarray:
    """The mean of slices (n, H, W) on at most 16 x 16 pixels."""
    mean = np.asarray(slices, dtype=np.float64).mean(axis=0)
    for axis, pixels in enumerate(mean.shape):
        count = min(COARSE, pixels)
        starts = np.arange(count) * pixels // count
        widths = np.diff([*starts, pixels])
        mean = np.add.reduceat(mean, starts, axis) / (widths[:, None] if axis == 0 else widths)
    return mean


def better_turned(slices: np.ndarray, mean: np.ndarray) -> str | None:
    """Which turn, of TURNS, makes slices (n, H, W) clearly more like the mean slice of training; None where none does.
    """
    seen = coarse_mean(slices)
    alike = {name: _alike(turn(seen), mean) for name, turn in TURNS.items()}
    best = max(alike, key=alike.get)
    return best if alike[best] > max(_alike(seen, mean) + TURNED_BETTER, ALIKE) else None


def better_sized(slices: np.ndarray, mean: np.ndarray) -> float | None:
    """How many times too large slices (n, H, W) are where they are clearly more like the mean slice of training when
    they are made smaller or larger, by one of SIZES; None where they are not."""
    seen = coarse_mean(slices)
    alike = {times: _alike(seen, _magnified(mean, times)) for times in SIZES}
    alike |= {1 / times: _alike(_magnified(seen, times), mean) for times in SIZES}
    best = max(alike, key=alike.get)
    return best if alike[best] > max(_alike(seen, mean) + SIZED_BETTER, SIZED_ALIKE) else None


def _magnified(mean: np.ndarray, times: float) -> np.ndarray:
    """The middle of an image (h, w), so many times larger, on as many pixels."""
    from scipy import ndimage

    middle = (np.array(mean.shape) - 1) / 2
    return ndimage.affine_transform(mean, [1 / times] * 2, offset=middle * (1 - 1 / times), order=1)


def _alike(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two images of one shape; 0 where one of them is constant."""
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def lopsidedness(mean: np.ndarray, other: np.ndarray) -> float:
    """The cosine, -1 to 1, between what differs from left to right in two mean slices; mirroring one turns its sign.

    >>> heavy = np.array([[1.0, 0.0, 0.0]])
    >>> round(lopsidedness(heavy, heavy), 6), round(lopsidedness(heavy[:, ::-1], heavy), 6)
    (1.0, -1.0)
    """
    if mean.shape != other.shape:
        return 0.0
    here, there = mean - mean[:, ::-1], other - other[:, ::-1]
    length = np.linalg.norm(here) * np.linalg.norm(there)
    return float((here * there).sum() / length) if length else 0.0


def _alike_sides(prepared: PreparedSlices, domain: str, mean: np.ndarray) -> float | None:
    """The 5th percentile of the patients' lopsidedness against `mean`; None for few patients and for sagittal slices.
    """
    patients = prepared.patients(domain)
    if len(patients) < LOPSIDED_PATIENTS or prepared.preparation.plane == "sagittal":
        return None
    stacks = (getattr(prepared, domain)[where] for _, where in patients)
    return round(float(np.percentile([lopsidedness(coarse_mean(stack), mean) for stack in stacks], 5)), 4)


def histogram(slices: np.ndarray) -> np.ndarray:
    """Shares of the values of `slices` in BINS."""
    return np.histogram(np.clip(slices, -1, 1), BINS)[0] / slices.size


def _some(slices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` slices, evenly spread."""
    return np.array(slices[np.unique(np.linspace(0, len(slices) - 1, min(count, len(slices))).round().astype(int))])
