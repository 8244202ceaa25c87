"""Intensities: windows between units and what networks see, the body, the bias field, and a unit for MR.

An MR has no unit: the same tissue is bright or dark with the coil, the sequence and the receiver's gain. So MR is first
given one: percent of its own bright tissue ("%"), or standard deviations from its own mean ("SD").
A window then maps units to [-1, 1] and back.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from mr2ct_lib.files import InputError
from mr2ct_lib.images.volumes import Volume, from_sitk, one_thread, to_sitk


@dataclass(frozen=True)
class Window:
    """A range of units that the networks see as [-1, 1]; beyond it everything is cut.

    >>> window = Window(-150, 350, "HU")
    >>> window.to_network(np.array([-1000.0, 100.0, 350.0]))
    array([-1.,  0.,  1.])
    >>> float(window.from_network(window.to_network(40.0)))
    40.0
    """

    low: float
    high: float
    unit: str

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"window: [{self.low}, {self.high}]; expected low < high. Exchange or change them")

    def to_network(self, values: np.ndarray) -> np.ndarray:
        """Units -> [-1, 1], clipped."""
        return np.clip((values - self.low) * (2.0 / (self.high - self.low)) - 1.0, -1.0, 1.0)

    def from_network(self, values: np.ndarray) -> np.ndarray:
        """[-1, 1] -> units."""
        return (np.asarray(values) + 1.0) * ((self.high - self.low) / 2.0) + self.low

    def to_grey(self, values: np.ndarray) -> np.ndarray:
        """Units -> [0, 255] grey levels, clipped: the scale on which the first paper measures (facts: 1 level of CT
        is 1.96 HU)."""
        return (self.to_network(values) + 1.0) * 127.5

    def as_dict(self) -> dict[str, float | str]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, float | str]) -> "Window":
        """The window that `as_dict` described. Raises InputError when keys are missing or unknown."""
        try:
            return cls(**content)
        except TypeError as error:
            raise InputError(f"window: {content}; expected low, high and unit. Write these three") from error


# first paper: soft tissue; air, gas and table shell are cut to black, cortex to white
CT_WINDOW = Window(-150.0, 350.0, "HU")
MR_WINDOW = Window(0.0, 100.0, "%")  # the first paper's [0, 100], here percent of the bright tissue
WHOLE_BODY_WINDOW = Window(-1024.0, 1500.0, "HU")  # air to cortical bone
ZSCORE_WINDOW = Window(-1.0, 6.0, "SD")  # stripped heads: background about -0.7, fluid on T2 about 5
MR_WINDOWS = {"percentile": MR_WINDOW, "zscore": ZSCORE_WINDOW}
COIL_MM = 110.0  # over which a coil's sensitivity may bend: shorter, and N4 takes muscles for it
# N4's longest side in voxels, iterations, and full width of the histogram's blur: a wider one gets there in fewer iterations
N4_PROFILES = {"quick": (16, 14, 0.4), "full": (24, 30, 0.3), "paper": (48, 50, 0.2)}


def body_mask(volume: Volume) -> np.ndarray:
    """Return where the patient is, bool (I, J, K); all False for a blank volume.

    CT above -300 HU, MR above a tenth of its 99th percentile; opened, so that the table's shell goes; the largest
    piece; holes filled in each axial slice.
    """
    array = volume.array.astype(np.float32)
    if array.min() == array.max():
        return np.zeros(array.shape, bool)
    if volume.unit == "HU":
        mask = array > -300
    else:
        smooth = ndimage.median_filter(np.clip(array, 0, None), [3 if n > 4 else 1 for n in array.shape])
        # not Otsu's threshold: in a field of view full of patient it parts muscle from fat, not patient from air
        mask = smooth > 0.1 * np.percentile(smooth, 99)
    radius = 6.0 if volume.unit == "HU" else 3.0  # mm: thicker than a table's shell
    reach = np.maximum(np.round(radius / volume.spacing), 0).astype(int)
    offsets = np.indices(2 * reach + 1).reshape(3, -1).T - reach
    ball = ((offsets / np.maximum(reach, 1)) ** 2).sum(axis=1) <= 1.0
    ball = ball.reshape(2 * reach + 1)
    opened = ndimage.binary_opening(np.pad(mask, [(r, r) for r in reach], mode="edge"), ball)
    opened = opened[tuple(slice(r, r + n) for r, n in zip(reach, mask.shape, strict=True))]
    mask = opened if opened.any() else mask
    pieces, count = ndimage.label(mask)
    if count > 1:
        mask = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    for k in range(mask.shape[2]):
        mask[:, :, k] = ndimage.binary_fill_holes(mask[:, :, k])
    return mask


def n4(volume: Volume, mask: np.ndarray | None = None, profile: str = "full") -> Volume:
    """Return an MR without its bias field (N4, Tustison 2010, by SimpleITK); the mean log field inside the mask is 0.

    The field is a cubic B-spline with a knot each COIL_MM or less. It is fitted to a shrunk copy with about equal voxels, the
    longest side about 16 of them in quick, 24 in full, 48 in paper, and divided out at full resolution. `mask` (I, J, K) bool; the
    body where None. A volume without a body is returned as it is.
    """
    mask = body_mask(volume) if mask is None else mask
    if not mask.any():
        return volume
    size, iterations, blur = N4_PROFILES[profile]
    lift = max(0.0, -float(volume.array.min()))  # N4 takes logarithms
    image = to_sitk(volume.replace(array=volume.array.astype(np.float32) + lift))
    inside = to_sitk(volume.replace(array=mask.astype(np.uint8)))
    extent = np.array(volume.array.shape) * volume.spacing
    voxel = extent.max() / size
    shrink = [int(np.clip(round(voxel / mm), 1, max(1, n // 4))) for n, mm in zip(volume.array.shape, volume.spacing, strict=True)]
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    # one level: a coarser one first would explain away as coil what is anatomy, and the finer one does not mend that
    correct.SetMaximumNumberOfIterations([iterations])
    correct.SetBiasFieldFullWidthAtHalfMaximum(blur)
    correct.SetConvergenceThreshold(1e-4)
    correct.SetNumberOfControlPoints([3 + math.ceil(mm / COIL_MM) for mm in extent])
    with one_thread():
        correct.Execute(sitk.Shrink(image, shrink), sitk.Shrink(inside, shrink))
        log_field = from_sitk(correct.GetLogBiasFieldAsImage(image)).array
    return volume.replace(array=(volume.array / np.exp(log_field - log_field[mask].mean())).astype(np.float32))


def mr_scale(volume: Volume, method: str) -> tuple[float, float]:
    """Return (offset, scale) such that (array - offset) / scale is in "%" ("percentile") or "SD" ("zscore").

    "percentile": the 99.5th percentile of the body becomes 100 %, 0 stays 0. "zscore": mean and SD of the whole
    image, as in the second paper (background included).
    """
    array = volume.array
    if method == "zscore":
        offset, scale = float(array.mean(dtype=np.float64)), float(array.std(dtype=np.float64))
    elif method == "percentile":
        body = body_mask(volume)
        offset, scale = 0.0, float(np.percentile(array[body] if body.any() else array, 99.5)) / 100.0
    else:
        raise InputError(f"normalisation: {method!r}; expected percentile or zscore. Choose one of them")
    return offset, scale if scale > 0 else 1.0


def normalise_mr(volume: Volume, method: str = "percentile") -> Volume:
    """Return an MR in "%" of its bright tissue or in "SD" from its mean (see `mr_scale`): its gain no longer
    matters."""
    offset, scale = mr_scale(volume, method)
    array = ((volume.array - offset) / scale).astype(np.float32)
    return volume.replace(array=array, unit="SD" if method == "zscore" else "%")
