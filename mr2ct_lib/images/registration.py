"""Registration in the first paper's order: landmarks, rigid, non-rigid (here a B-spline by mutual information)."""

import numpy as np
import SimpleITK as sitk

from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW
from mr2ct_lib.images.volumes import Volume, one_thread, to_sitk

BINS = 32  # of the histograms of mutual information
SEED = 1  # of the random voxels; 0 would mean the clock
SAMPLES = 60_000  # voxels it is measured at: with fewer a B-spline follows their noise


@one_thread()
def register(
    moving: Volume,
    fixed: Volume,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
    mask: np.ndarray | None = None,
    spacing: float = 80.0,
) -> tuple[Volume, sitk.Transform]:
    """Register `moving` (CT) to `fixed` (MR) in the first paper's order: landmarks, rigid, then non-rigid.

    Here the non-rigid transform is a B-spline, and the metric is Mattes' mutual information.

    `landmarks`: (points in fixed, points in moving), each (n >= 3, 3) mm RAS; None starts from the geometric
    centres. `mask` (of fixed, bool) restricts where the metric looks; `spacing` of the B-spline's control points in mm:
    closer ones bend more and are led astray more easily. Deterministic: seeded samples, one thread. The metric sees a
    CT through the papers' window and an MR up to its 99.5th percentile: of its bins none is spent on air, metal or a
    bright vessel.

    Returns `moving` (its own values, not the windowed ones) on the grid of `fixed`, and the transform from
    fixed to moving points (LPS mm, as SimpleITK has it). Raises InputError for scans that ITK cannot register, such as
    a moving one of fewer than four slices.
    """
    still, move = (to_sitk(volume.replace(array=_seen(volume))) for volume in (fixed, moving))
    inside = None if mask is None else to_sitk(fixed.replace(array=mask.astype(np.uint8), unit="label"))
    fraction = min(1.0, SAMPLES / fixed.array.size)
    levels = [level for level in (4, 2, 1) if min(fixed.array.shape) // level >= 8] or [1]

    search = _search(levels, fraction, inside)
    search.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 100)
    search.SetOptimizerScalesFromPhysicalShift()
    search.SetInitialTransform(_start(still, move, landmarks), inPlace=False)
    rigid = _executed(search, still, move)

    extent = np.array(fixed.array.shape) * fixed.spacing
    mesh = np.maximum(np.round(extent / spacing), 1).astype(int).tolist()
    search = _search([1], fraction, inside)
    search.SetMovingInitialTransform(rigid)
    search.SetInitialTransform(sitk.BSplineTransformInitializer(still, mesh), inPlace=False)
    search.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-5, numberOfIterations=20)
    bend = _executed(search, still, move)

    whole = sitk.CompositeTransform([rigid, bend])
    fill = -1000.0 if moving.unit == "HU" else 0.0
    whole_range = sitk.Cast(to_sitk(moving), sitk.sitkFloat32)
    result = sitk.GetArrayFromImage(sitk.Resample(whole_range, still, whole, sitk.sitkLinear, fill)).transpose(2, 1, 0)
    return fixed.replace(array=np.ascontiguousarray(result), unit=moving.unit), whole


def _executed(search: sitk.ImageRegistrationMethod, still: sitk.Image, move: sitk.Image) -> sitk.Transform:
    try:
        return search.Execute(still, move)
    except RuntimeError as error:
        reason = str(error).partition("ITK ERROR: ")[2].partition("): ")[2].partition("\n")[0] or "ITK says no more"
        raise InputError(
            f"register: the scans cannot be registered ({reason}); expected two scans of one part of one person. Look "
            "at both, or choose a larger mask"
        ) from error


def _seen(volume: Volume) -> np.ndarray:
    """The values that the metric sees, float32."""
    low, high = (
        (CT_WINDOW.low, CT_WINDOW.high)
        if volume.unit == "HU"
        else (volume.array.min(), np.percentile(volume.array, 99.5))
    )
    return np.clip(volume.array, low, max(high, low)).astype(np.float32)


def _start(
    still: sitk.Image, move: sitk.Image, landmarks: tuple[np.ndarray, np.ndarray] | None
) -> sitk.VersorRigid3DTransform:
    rigid = sitk.VersorRigid3DTransform()
    if landmarks is None:
        kind = sitk.CenteredTransformInitializerFilter.GEOMETRY
        return sitk.VersorRigid3DTransform(sitk.CenteredTransformInitializer(still, move, rigid, kind))
    pairs = [np.asarray(points, dtype=float) * [-1, -1, 1] for points in landmarks]
    if pairs[0].shape != pairs[1].shape or pairs[0].ndim != 2 or len(pairs[0]) < 3:
        raise InputError(
            f"landmarks: shapes {pairs[0].shape} and {pairs[1].shape}; expected (n, 3) twice with n >= 3. Give pairs"
        )
    start = sitk.LandmarkBasedTransformInitializer(rigid, pairs[0].ravel().tolist(), pairs[1].ravel().tolist())
    start = sitk.VersorRigid3DTransform(start)
    centre = still.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in still.GetSize()])
    moved = start.TransformPoint(centre)  # turn about the centre of the scan, not about the origin of the scanner
    start.SetCenter(centre)
    start.SetTranslation([b - a for a, b in zip(centre, moved, strict=True)])
    return start


def _search(levels: list[int], fraction: float, mask: sitk.Image | None) -> sitk.ImageRegistrationMethod:
    search = sitk.ImageRegistrationMethod()
    search.SetMetricAsMattesMutualInformation(BINS)
    search.SetMetricSamplingStrategy(search.RANDOM)
    search.SetMetricSamplingPercentage(fraction, SEED)
    search.SetInterpolator(sitk.sitkLinear)
    search.SetShrinkFactorsPerLevel(levels)
    search.SetSmoothingSigmasPerLevel([level / 2 if level > 1 else 0 for level in levels])
    search.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    if mask is not None:
        search.SetMetricFixedMask(mask)
    return search
