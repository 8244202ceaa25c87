"""What each exercise of the course asks: one function per exercise, which raises Wrong or says what has been shown.

Each function tests laws, or values computed by hand, on small arrays. It takes well under a second and trains nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from mr2ct_lib.measures import label_metrics, statistics
from mr2ct_lib.methods import losses, offsets
from mr2ct_lib.patients.physics import spgr


class Wrong(Exception):
    """What is wrong with an answer, in one sentence."""


def _filled(value: Any, what: str = "the function returns nothing yet; replace the dots by your lines.") -> Any:
    """Return `value`; raise Wrong with `what` for the placeholders None and ... of a stub."""
    if value is None or value is ...:
        raise Wrong(what)
    return value


def _require(condition: bool, otherwise: str) -> None:
    """Raise Wrong with the sentence `otherwise` unless the condition holds."""
    if not bool(condition):
        raise Wrong(otherwise)


def _predictions(answer: Mapping[str, Any], truth: Mapping[str, tuple[Any, str]]) -> None:
    """Compare {question: value} with {question: (value, why)}; raise Wrong at the first that is missing or wrong."""
    for question, (value, why) in truth.items():
        _filled(answer.get(question), f"no answer yet for {question!r}; replace each None.")
        _require(answer[question] == value, f"{question!r}: {answer[question]} is not right; {why}.")


def _values(result: Any, expected: Any, otherwise: str) -> None:
    """Raise Wrong for another shape, or with `otherwise` unless both arrays agree to 1e-4."""
    result = np.asarray(_filled(result), dtype=float)
    shape = np.shape(expected)
    _require(result.shape == shape, f"the result has the shape {result.shape}; expected {shape}.")
    _require(np.allclose(result, expected, atol=1e-4), otherwise)


def flip_angles(answer: Mapping[str, float]) -> str:
    """01.1: {tissue: degrees} of the greatest signal at TR 7.9 ms."""
    for tissue, t1 in {"fat": 250.0, "muscle": 990.0}.items():
        angle = float(_filled(answer.get(tissue), f"no angle yet for {tissue}; replace each None by degrees."))
        best = np.rad2deg(np.arccos(np.exp(-7.9 / t1)))
        gain = spgr(t1, 58, 1, 7.9, 3.08, best) / spgr(t1, 58, 1, 7.9, 3.08, angle) - 1
        way = "smaller" if angle > best else "larger"
        _require(
            abs(angle - best) < 0.5, f"at {angle:g} degrees {tissue} could still gain {gain:.1%}; try a {way} angle."
        )
    return (
        "each tissue is brightest at its Ernst angle, cos(angle) = exp(-TR/T1); the longer T1, the smaller the angle."
    )


def gain(answer: Mapping[str, bool]) -> str:
    """01.2: which numbers a receiver gain changes."""
    truth = {
        "muscle in a.u.": (True, "the receiver multiplies every voxel"),
        "muscle in percent of the bright tissue": (False, "the bright tissue is multiplied alike"),
        "fat divided by muscle": (False, "a common factor cancels in a ratio"),
        "signal divided by the noise's SD": (False, "the receiver multiplies the noise as well"),
    }
    _predictions(answer, truth)
    return "a gain changes numbers, never ratios; that is why percent of a patient's own bright tissue is a unit."


def same_place(function: Callable) -> str:
    """01.3: function (index, affine here, affine there) -> index there."""
    mr, ct = np.diag([2.0, 3.0, 2.0, 1.0]), np.diag([1.0, 1.0, 4.0, 1.0])
    index = np.array([4.0, 1.0, 5.0])
    _values(function(index, mr, mr), index, "from a grid to the same grid the index must stay as it is.")
    _values(
        function(index, mr, ct),
        [8, 3, 2.5],
        "MR voxel (4, 1, 5) lies at (8, 3, 10) mm, so at (8, 3, 2.5) in a CT of 1 x 1 x 4 mm.",
    )
    ct[:3, 3] = (-10, 5, 4)
    hint = "the origins are lost: an index needs a fourth coordinate 1, so that the affine's last column counts."
    _values(function(index, mr, ct), [18, -2, 1.5], hint)
    return "index to mm by one affine, mm to index by the inverse of the other."


def uncorrelated(image: np.ndarray) -> str:
    """02.1: an image (3, 3) whose NCC with a bright last row is 0."""
    row = np.array([[0, 0, 0], [0, 0, 0], [3, 3, 3.0]])
    image = np.asarray(image, dtype=float)
    _require(image.shape == (3, 3), f"the image has shape {image.shape}; keep 3 x 3.")
    _require(image.std() > 0, "this image is flat: its variance is 0, and NCC would be 0/0.")
    ncc = float(np.corrcoef(row.ravel(), image.ravel())[0, 1])
    way = "less bright" if ncc > 0 else "brighter"
    _require(abs(ncc) < 1e-9, f"NCC with `row` is {ncc:.3f}, not 0; the last row must be {way} against the rest.")
    return "NCC is 0 when the last row's mean is the mean of the whole image; `row` then says nothing about it."


def signs(answer: Mapping[str, bool]) -> str:
    """02.2: which edges keep their sign from MR to CT."""
    truth = {
        "air to fat": (True, "nothing is darker than air in either scanner"),
        "fat to muscle": (False, "MR falls from fat to muscle, CT rises"),
        "muscle to spongy bone": (True, "spongy bone is brighter than muscle in both, though little"),
        "fat to cortical bone": (False, "MR falls from its brightest tissue to its darkest, CT does the reverse"),
    }
    _predictions(answer, truth)
    return "inside the body the strong edges turn; signed GC punishes the right CT for each of them."


def magnitude(correlation: Callable) -> str:
    """02.3: NCC of gradient lengths, (n, 1, h, w) twice -> (n,)."""
    ramp = torch.linspace(0, 3, 12, dtype=torch.float64).sin()
    rows = ramp[:, None].expand(1, 1, 12, 12)  # edges along y only
    image = torch.rand(2, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flat = torch.zeros(1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    result = _filled(correlation(image, image))
    _require(tuple(result.shape) == (2,), f"expected one value per image, shape (2,); found {tuple(result.shape)}.")
    _require((result > 0.999).all(), "an image with itself must give 1.")
    _require(correlation(rows, rows).item() > 0.999, "an image with edges that run one way must give 1 with itself.")
    _require(torch.allclose(correlation(image, -image), result), "inverting one image must change nothing.")
    one, two = (np.hypot(*(d.numpy().ravel() for d in losses.gradients(part))) for part in (image[:1], image[1:]))
    expected, found = np.corrcoef(one, two)[0, 1], correlation(image[:1], image[1:]).item()
    said = f"two images whose lengths have the NCC {expected:.3f} give {found:.3f}"
    _require(abs(found - expected) < 1e-4, f"{said}; a length is the root of the sum of both squares.")
    correlation(rows, flat).sum().backward()
    _require(flat.grad.isfinite().all(), "a blank image gives the slope 0/0; add a small number under the root.")
    return "one length per pixel instead of two derivatives, and no half of GC is lost where edges run one way."


def twenty(answer: Mapping[str, bool]) -> str:
    """03.1: which parts of the loss find 20 HU too many."""
    truth = {
        "cycle": (False, "the way back subtracts the 20 HU again"),
        "discriminator of one pixel": (True, "no CT of the training set has these values"),
        "GC": (False, "a constant changes no derivative"),
    }
    _predictions(answer, truth)
    return "of the three, only the discriminator knows absolute HU."


def patch_size(strides: Iterable[int]) -> str:
    """03.2: strides of 4x4 kernels that see 40 to 50 mm at 1.25 mm per pixel."""
    side, strides = 1, tuple(strides)
    for stride in reversed(strides):
        side = (side - 1) * stride + 4
    reach = side * 1.25
    way = "fewer layers with stride 2" if reach > 50 else "more layers with stride 2"
    _require(40 <= reach <= 50, f"these strides see {side} pixels, {reach:.4g} mm; expected 40 to 50 mm. Try {way}.")
    return f"{side} pixels, {reach:.4g} mm: one layer with stride 2 fewer halves what a score sees."


def exchange(function: Callable) -> str:
    """03.3: function (MR in percent, HU) -> whether fat and muscle are exchanged."""
    tissues = np.repeat([0, 1, 2, 3], [40, 16, 20, 4]).reshape(8, 10)  # air, fat, muscle, cortical bone
    mr, hu = np.array([0.0, 85.0, 26.0, 12.0])[tissues], np.array([-150.0, -94.0, 35.0, 350.0])[tissues]
    exchanged = np.array([-150.0, 35.0, -94.0, 350.0])[tissues]
    _require(
        not _filled(function(mr, hu)),
        "the right CT raises the alarm; compare bright MR with dark grey MR, without air and bone.",
    )
    _require(function(mr, exchanged), "fat and muscle are exchanged, and it raises no alarm.")
    _require(
        not function(mr, hu + 20), "20 HU too many everywhere are no exchange; compare two tissues with each other."
    )
    spoilt = hu.copy()
    spoilt[4, 0] = 3000  # a pixel of fat
    _require(not function(mr, spoilt), "a single wild pixel raises the alarm; take medians instead of means.")
    return "the MR itself tells where fat and muscle lie, so an exchange shows without any true CT."


def rows_down(rows: Iterable[float]) -> str:
    """04.2: rows of four offset layers that move the slice by 6 pixels."""
    rows = [float(value) for value in rows]
    _require(len(rows) == 4, f"{len(rows)} values; the generator has four offset layers.")
    total = rows[0] + rows[1] + 2 * rows[2] + 4 * rows[3]
    _require(rows[:2] == [0, 0], "leave the first two layers, which work on the full image, at 0.")
    _require(
        abs(total - 6) < 1e-9,
        f"it moves by {total:g} pixels, not 6; a row is 2 pixels in the third map, 4 in the last.",
    )
    return "a small offset in a deep layer is a large one in the image."


def reaches(answer: Mapping[str, bool]) -> str:
    """04.3: which terms teach the offset layers."""
    truth = {
        "adversarial": (True, "the discriminator sees the deformed pass"),
        "cycle": (False, "its passes skip the offset layers"),
        "dicycle": (True, "both its passes are deformed"),
        "align": (False, "it looks at the undeformed pass, which skips the offset layers"),
    }
    _predictions(answer, truth)
    return "what is computed from a deformed pass teaches the offset layers, and nothing else does."


def composition(function: Callable) -> str:
    """04.1: function (first, second) of fields (1, 2, h, w) -> the field of both."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    zero = torch.zeros(1, 2, 9, 9)
    stretch = torch.stack([0.25 * y, 0 * x])[None]  # reads farther down, the farther down it is
    down = torch.stack([0 * y + 2, 0 * x])[None]
    _require(
        torch.allclose(_filled(function(zero, down)), down),
        "after a scanner that moves nothing, the second field must remain.",
    )
    _require(
        torch.allclose(function(stretch, zero), stretch, atol=1e-5),
        "with a second field of zeros, the first must remain.",
    )
    expected = 2 + 0.25 * (y + 2).clamp(max=8)
    hint = "take the first field at p + second(p), where the second has led; a plain sum takes it at p."
    _require(torch.allclose(function(stretch, down)[0, 0], expected, atol=1e-4), hint)
    again = offsets.resample(y[None, None], function(stretch, down)[:, None])
    twice = offsets.resample(offsets.resample(y[None, None], stretch[:, None]), down[:, None])
    _require(
        torch.allclose(again[..., :5, :], twice[..., :5, :], atol=1e-4),
        "reading along the result must equal reading twice.",
    )
    return "displacements do not simply add up: the first field must be read where the second has led."


def witnesses(answer: int) -> str:
    """05.1: n of ten patients, twelve slices each, three seeds."""
    _filled(answer, "no number yet; replace None.")
    why = {
        120: "120 counts slices, and slices of one patient have similar errors",
        3: "3 counts networks; this question is about patients",
    }
    why |= {
        30: "30 counts patients once per seed, but they are the same ten people",
        360: "360 counts every slice of every seed",
    }
    _require(answer == 10, f"{why.get(answer, f'{answer} is neither')}; average over slices and seeds first.")
    return "ten people, ten differences; other networks of the same method are another question, with n = 3 seeds."


def patients_needed(patients: int) -> str:
    """05.2: the smallest n whose interval leaves 0 out."""
    _require(patients == int(patients) and patients >= 2, f"{patients} patients; expected a whole number, at least 2.")
    pattern = np.resize([1.0, -1.0], int(patients))
    pattern = (pattern - pattern.mean()) / pattern.std(ddof=1)
    low, high = statistics.paired_t_test(-0.452 + 0.907 * pattern, np.zeros(int(patients))).interval
    said = f"with {patients} patients the interval is {low:.3f} to {high:.3f}"
    _require(high < 0, f"{said}: it still holds 0.")
    _require(patients <= 18, f"{said}: it leaves 0 out, but fewer patients are enough.")
    return f"{said}. Six times the paper's three patients, if the effect is as large as it seemed."


def by_structure(function: Callable) -> str:
    """05.3: function (synthetic, truth, labels) -> {label: MAE}."""
    truth, labels = np.array([[0.0, 0, 40, 40], [0, 0, 300, 300]]), np.array([[0, 0, 1, 1], [0, 0, 2, 2]])
    synthetic = truth + np.array([[0.0, 0, 30, -30], [0, 0, -100, -300]])
    result = _filled(function(synthetic, truth, labels))
    _require(set(result) == {0, 1, 2}, f"the keys are {sorted(result)}; expected the labels that occur: 0, 1, 2.")
    _require(abs(result[1] - 30) < 1e-9, f"label 1 is wrong by +30 and -30 HU, so its MAE is 30, not {result[1]:g}.")
    _require(abs(result[2] - 200) < 1e-9, f"label 2 is wrong by 100 and 300 HU, so its MAE is 200, not {result[2]:g}.")
    return "the slice's MAE is 58 HU, that of one structure 200: nothing hides in a mean over its own pixels."


def invented(answer: Mapping[str, str]) -> str:
    """06.1: which channel the translator makes."""
    truth = {
        "training": ("MR", "the labels belong to real CTs, so here the MR was made by the translator"),
        "test": ("CT", "the patient was scanned by MR, so here the CT was made by the translator"),
    }
    _predictions(answer, truth)
    return "one channel is real and one is synthetic, and they change roles between training and test."


def strays(count: int) -> str:
    """06.2: the fewest stray pixels that HD95 notices."""
    square = np.zeros((60, 60), int)
    square[5:15, 5:15] = 1

    def hd95(strays: int) -> float:
        spotted = square.copy()
        spotted[40 : 40 + 2 * strays : 2, 10] = 1  # single pixels, 5 mm each, that do not touch
        return label_metrics.hausdorff_95(spotted, square, {1: "square"}, (5.0, 5.0))["square"]

    _require(1 <= count <= 10, f"{count} stray pixels; try 1 to 10.")
    _require(hd95(count) > 0, f"with stray pixels: {count}, HD95 is still 0 mm; add some.")
    _require(hd95(count - 1) == 0, f"HD95 already notices {count - 1} stray pixels; remove some.")
    return f"HD95 jumps from 0 to {hd95(count):.0f} mm when stray pixels are more than a twentieth of the surface."


def shifted_band(function: Callable) -> str:
    """06.3: function (width, shift) -> Dice of a moved band."""

    def measured(width: int, shift: int) -> float:
        bands = [np.zeros((1, 40), int) for _ in range(2)]
        for band, start in zip(bands, (10, 10 + shift), strict=True):
            band[:, start : start + width] = 1
        return label_metrics.dice(*bands, {1: "band"})["band"]

    for width, shift in ((4, 1), (3, 0), (10, 1), (2, 1), (2, 2), (3, 5)):
        value, truth = float(_filled(function(width, shift))), measured(width, shift)
        _require(
            abs(value - truth) < 1e-9,
            f"width {width}, shift {shift}: {value:.3g}, but the library measures {truth:.3g}.",
        )
    return "one pixel costs a band 1/width of its Dice: a tenth at ten pixels, half at two."


def bone_window(window: tuple[float, float]) -> str:
    """07.1: (low, high) of a window that is at most 600 HU wide and cuts less than 5 % of a body."""
    low, high = _filled(window)
    body = {-94: 40, 35: 42, 100: 10, 400: 6, 1200: 2}  # HU: percent of the voxels
    cut = sum(share for hu, share in body.items() if not low <= hu <= high)
    said = f"from {low:g} to {high:g} HU the window is {high - low:g} HU wide and cuts {cut} % of the body"
    _require(0 < high - low <= 600, f"{said}; expected at most 600 HU.")
    _require(cut < 5, f"{said}; expected less than 5 %.")
    return f"{said}: cortex alone is cut."


def without_truth(answer: Mapping[str, bool]) -> str:
    """07.2: what can be computed without a true CT."""
    truth = {
        "cycle error": (True, "it compares the MR with what comes back of it"),
        "spread of two seeds": (True, "it compares two synthetic CTs"),
        "MAE in HU": (False, "an error is a difference from the truth"),
        "distance of values": (True, "it compares the MR with the training MRs"),
    }
    _predictions(answer, truth)
    return "three signs need no true CT; they can say no, but never yes."


def signed_error(function: Callable) -> str:
    """07.3: function (synthetic, truth, body) -> mean signed error inside the body."""
    truth = np.array([[-1000.0, 40, 40, -1000], [-1000, 40, 300, -1000]])
    body = truth > -1000
    for error, expected in (((10, 10, 10, 10), 10), ((10, -10, 30, -30), 0), ((-40, 0, 0, 0), -10)):
        synthetic = truth.copy()
        synthetic[body] += error
        result = _filled(function(synthetic, truth, body))
        _require(np.ndim(result) == 0, f"the result has the shape {np.shape(result)}; expected one number.")
        _require(
            abs(result - expected) < 1e-9,
            f"errors of {error} HU inside the body have the mean {expected} HU; yours is {result:g} HU.",
        )
    return "errors of opposite sign cancel, and air does not count."
