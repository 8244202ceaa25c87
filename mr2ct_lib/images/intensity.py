"""Intensities: windows between units and what networks see, the body, the bias field, and a unit for MR.

An MR has no unit: the same tissue is bright or dark with the coil, the sequence and the receiver's gain. So MR is first
given one: percent of its own bright tissue ("%"), or standard deviations from its own mean ("SD").
A window then maps units to [-1, 1] and back.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images.hounsfield import UNMEASURED_HU
from mr2ct_lib.images.volumes import Volume, one_thread, to_sitk


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
        if not (self.low < self.high and math.isfinite(self.low) and math.isfinite(self.high)):
            raise InputError(
                f"window: [{self.low}, {self.high}]; expected finite numbers, low < high. Exchange or change them"
            )

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g} {self.unit}"

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
ABDOMEN_CT_WINDOW = Window(-800.0, 350.0, "HU")  # second paper: its images show the table, whose shell has -680 HU
WHOLE_BODY_WINDOW = Window(-1024.0, 1500.0, "HU")  # air to cortical bone
# Stripped heads: the background lies at about -0.5, the 99.99 % quantile of the brain at 3.2 (PD), 3.6 (T1) and 5.9
# (T2). In one window for both, PD's whole brain would fill a third of the networks' range.
HEAD_WINDOWS = {"source": Window(-0.6, 3.6, "SD"), "target": Window(-1.0, 6.0, "SD")}
ZEROS_AROUND = 0.05  # share of exact zeros that no scanner gives in an MR that also has values below
MASK_MM = 3.0  # of voxels on which the body is found: finer ones take minutes and show the same outline
BOX_MM2 = 100.0  # of the body in the first and last plane of its box: less is noise
COIL_MM = 110.0  # over which a coil's sensitivity may bend: shorter, and N4 takes muscles for it
# N4's longest side in voxels, iterations, and full width of the histogram's blur: a wider one gets there in fewer
# iterations
N4_PROFILES = {"coarse": (16, 14, 0.4), "full": (24, 30, 0.3), "paper": (48, 50, 0.2)}


@dataclass(frozen=True)
class Body:
    """Where the patient is in a scan. `mask` bool (I, J, K); all False in a blank scan. `box`: its ends to the voxel.
    """

    mask: np.ndarray
    box: tuple[slice, slice, slice]


def without_negative(volume: Volume) -> Volume:
    """Return an MR whose air is 0: one that was z-scored, or lost its mean, is shifted by its 0.5th percentile.

    A few values below zero, as of interpolation, stay. Where exact zeros fill a part of such a scan, its mean was taken
    inside a mask and the zeros lie around it: they are air too.
    """
    values = volume.sample()
    low, high = np.percentile(values, (0.5, 99.5))
    if low >= -0.02 * high:
        return volume
    array = volume.array
    if (values == 0).mean() > ZEROS_AROUND:
        array = np.where(array == 0, np.float32(low), array)
    return volume.replace(array=array - np.float32(low))


def without_unmeasured(volume: Volume) -> Volume:
    """Return a CT in HU with air, -1000 HU, where nothing was measured: in voxels below UNMEASURED_HU.

    Interpolation would mix such numbers with tissue.
    """
    lost = volume.array < UNMEASURED_HU
    return volume.replace(array=np.where(lost, np.float32(-1000), volume.array)) if lost.any() else volume


def find_body(volume: Volume) -> Body:
    """Find the patient, however much air was scanned around.

    CT above -300 HU; MR above a tenth of its bright tissue. Opened, so that the table's shell goes; the largest piece
    and those at least a quarter as large, such as a second leg; holes filled in each axial slice. The mask is found on
    voxels of about MASK_MM, means of the scan's own. The box, which decides where fields of view lie, is found on the
    scan's own voxels near the mask: planes where at least BOX_MM2 are above the threshold. Its ends are those of the
    scan where there is no body.
    """
    from scipy import ndimage

    shape, block = volume.array.shape, np.maximum(MASK_MM // volume.spacing, 1).astype(int)
    whole = tuple(slice(0, n) for n in shape)
    array = _block_means(volume.array, block)
    if array.min() == array.max():
        return Body(np.zeros(shape, bool), whole)
    if volume.unit == "HU":
        level, radius = -300.0, 6.0  # mm: of the opening, thicker than a table's shell
        mask = array > level
    else:
        width = [3 if n > 4 else 1 for n in array.shape]
        smooth = ndimage.median_filter(np.clip(array, 0, None), width, mode="constant")  # beyond the scan lies air
        level, radius = 0.1 * _bright_tissue(smooth), 3.0
        mask = smooth > level
    mask = _solid(mask, np.maximum(np.round(radius / (volume.spacing * block)), 0).astype(int))
    near = _enlarged(ndimage.binary_dilation(mask, np.ones((3, 3, 3))), block, shape) & (volume.array > level)
    least, box = BOX_MM2 / np.prod(volume.spacing) * volume.spacing, list(whole)  # voxels in a plane across each axis
    for axis in range(3):
        planes = np.flatnonzero(near.sum(axis=tuple({0, 1, 2} - {axis})) >= least[axis])
        if len(planes):
            box[axis] = slice(int(planes[0]), int(planes[-1]) + 1)
    return Body(_enlarged(mask, block, shape), tuple(box))


def body_mask(volume: Volume) -> np.ndarray:
    """Return where the patient is, bool (I, J, K), as `find_body` does; all False for a blank volume."""
    return find_body(volume).mask


def _solid(mask: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """The mask opened by an ellipsoid of `reach` voxels (3,), without its small pieces, its axial holes filled."""
    from scipy import ndimage

    offsets = np.indices(2 * reach + 1).reshape(3, -1).T - reach
    ball = ((offsets / np.maximum(reach, 1)) ** 2).sum(axis=1) <= 1.0
    opened = ndimage.binary_opening(mask, ball.reshape(2 * reach + 1))
    mask = opened if opened.any() else mask
    pieces, count = ndimage.label(mask)
    if count > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        mask = np.isin(pieces, np.flatnonzero(sizes >= sizes.max() / 4) + 1)
    for k in range(mask.shape[2]):
        mask[:, :, k] = ndimage.binary_fill_holes(mask[:, :, k])
    return mask


def _enlarged(mask: np.ndarray, block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Each voxel of the mask as a block of voxels, cut to `shape`: the way back from `_block_means`."""
    for axis, n in enumerate(block):
        mask = mask.repeat(n, axis)
    return mask[tuple(slice(n) for n in shape)]


def _block_means(array: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The means of blocks of so many voxels (3,), float32; the last of each row may reach beyond the array's border."""
    if (block == 1).all():
        return array.astype(np.float32)
    for axis, n in enumerate(block):
        starts = np.arange(0, array.shape[axis], n)
        counts = np.diff(np.append(starts, array.shape[axis])).astype(np.float32)
        sums = np.add.reduceat(array, starts, axis, dtype=np.float32)
        array = sums / counts.reshape([-1 if a == axis else 1 for a in range(3)])
    return array


def _bright_tissue(smooth: np.ndarray) -> float:
    """The 99th percentile of what is brighter than a tenth of it: not of all voxels, or air would lower it.

    Not Otsu's threshold: in a field of view full of patient it parts muscle from fat, not patient from air.
    """
    bright = float(smooth.max())
    for _ in range(10):
        before, bright = bright, float(np.percentile(smooth[smooth >= 0.1 * bright], 99))
        if bright == before:
            break
    return bright


def n4(volume: Volume, body: Body | None = None, profile: str = "full") -> Volume:
    """Return an MR without its bias field (N4, Tustison 2010, by SimpleITK); the mean log field inside the body is 0.

    The field is a cubic B-spline with a knot each COIL_MM or less over the box around the body; beyond it, the field of
    its border holds. It is fitted to a shrunk copy with about equal voxels, the longest side about 16 of them in
    coarse, 24 in full, 48 in paper, and divided out at full resolution. `body`: as `find_body` finds it, which None
    does here. A volume without a body is returned as it is.
    """
    body = find_body(volume) if body is None else body
    mask, box = body.mask, body.box
    if not mask[box].any():
        return volume
    import SimpleITK as sitk

    size, iterations, blur = N4_PROFILES[profile]
    lift = max(0.0, -float(volume.array.min()))  # N4 takes logarithms
    image = to_sitk(volume.replace(array=volume.array[box].astype(np.float32) + lift))
    inside = to_sitk(volume.replace(array=mask[box].astype(np.uint8)))
    shape = mask[box].shape
    short = [max(0, 2 - n) for n in shape]  # the field's spline needs two voxels along each axis
    image, inside = (sitk.ZeroFluxNeumannPad(scan, [0, 0, 0], short) for scan in (image, inside))
    extent = np.array(shape) * volume.spacing
    voxel = extent.max() / size
    shrink = [int(np.clip(round(voxel / mm), 1, max(1, n // 4))) for n, mm in zip(shape, volume.spacing, strict=True)]
    correct = sitk.N4BiasFieldCorrectionImageFilter()
    # one level: a coarser one first would explain away as coil what is anatomy, and the finer one does not mend that
    correct.SetMaximumNumberOfIterations([iterations])
    correct.SetBiasFieldFullWidthAtHalfMaximum(blur)
    correct.SetConvergenceThreshold(1e-4)
    correct.SetNumberOfControlPoints([3 + math.ceil(mm / COIL_MM) for mm in extent])
    with one_thread():
        correct.Execute(sitk.Shrink(image, shrink), sitk.Shrink(inside, shrink))
        log_field = sitk.GetArrayFromImage(correct.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    log_field = log_field[tuple(slice(n) for n in shape)]
    log_field -= log_field[mask[box]].mean()
    beyond = [(part.start, n - part.stop) for part, n in zip(box, mask.shape, strict=True)]
    return volume.replace(array=(volume.array / np.exp(np.pad(log_field, beyond, mode="edge"))).astype(np.float32))


def mr_scale(values: np.ndarray, method: str) -> tuple[float, float]:
    """Return (offset, scale) such that (array - offset) / scale is in "%" ("percentile") or "SD" ("zscore").

    "percentile": the 99.5th percentile of `values`, those of the body, becomes 100 %; 0 stays 0. "zscore": mean and SD
    of `values`, those of the whole image, as in the second paper (background included). Raises InputError for another
    method.
    """
    if method == "zscore":
        offset, scale = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    elif method == "percentile":
        offset, scale = 0.0, float(np.percentile(values, 99.5)) / 100.0
    else:
        raise InputError(f"normalisation: {method!r}; expected percentile or zscore. Choose one of them")
    return offset, scale if scale > 0 else 1.0


def normalise_mr(volume: Volume, method: str = "percentile") -> Volume:
    """Return an MR in "%" of its bright tissue or in "SD" from its mean (see `mr_scale`): its gain no longer matters.
    """
    body = body_mask(volume) if method == "percentile" else np.zeros(0, bool)
    offset, scale = mr_scale(volume.array[body] if body.any() else volume.array, method)
    array = ((volume.array - offset) / scale).astype(np.float32)
    return volume.replace(array=array, unit="SD" if method == "zscore" else "%")
