"""Registration of pairs as in the first paper: landmarks, rigid, then B-spline, by Mattes' mutual information."""

import numpy as np
import SimpleITK as sitk

from mr2ct_lib.files import InputError
from mr2ct_lib.volumes import Volume, one_thread, to_sitk


@one_thread()
def register(
    moving: Volume,
    fixed: Volume,
    landmarks: tuple[np.ndarray, np.ndarray] | None = None,
    mask: np.ndarray | None = None,
    spacing: float = 40.0,
    seed: int = 0,
) -> tuple[Volume, sitk.Transform]:
    """Register `moving` (CT) to `fixed` (MR) as the first paper did: landmarks, then rigid, then B-spline, by
    Mattes' mutual information.

    `landmarks`: (points in fixed, points in moving), each (n >= 3, 3) mm RAS; None starts from the geometric
    centres. `mask` (of fixed, bool) restricts where the metric looks; `spacing` of the B-spline's control points in
    mm. Deterministic: seeded samples, one thread. Returns `moving` on the grid of `fixed`, and the transform from
    fixed to moving points (LPS mm, as SimpleITK has it).
    """
    still, move = (sitk.Cast(to_sitk(volume), sitk.sitkFloat32) for volume in (fixed, moving))
    rigid = sitk.VersorRigid3DTransform()
    if landmarks is None:
        kind = sitk.CenteredTransformInitializerFilter.GEOMETRY
        start = sitk.CenteredTransformInitializer(still, move, rigid, kind)
    else:
        pairs = [np.asarray(points, dtype=float) * [-1, -1, 1] for points in landmarks]
        if pairs[0].shape != pairs[1].shape or pairs[0].ndim != 2 or len(pairs[0]) < 3:
            raise InputError(f"landmarks: shapes {pairs[0].shape} and {pairs[1].shape}; expected (n, 3) twice with n >= 3. Give pairs")
        start = sitk.LandmarkBasedTransformInitializer(rigid, pairs[0].ravel().tolist(), pairs[1].ravel().tolist())
        start = sitk.VersorRigid3DTransform(start)
        centre = still.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in still.GetSize()])
        moved = start.TransformPoint(centre)  # turn about the centre of the scan, not about the origin of the scanner
        start.SetCenter(centre)
        start.SetTranslation([b - a for a, b in zip(centre, moved, strict=True)])

    def method(levels: list[int], fraction: float) -> sitk.ImageRegistrationMethod:
        search = sitk.ImageRegistrationMethod()
        search.SetMetricAsMattesMutualInformation(32)
        search.SetMetricSamplingStrategy(search.RANDOM)
        search.SetMetricSamplingPercentage(fraction, seed + 1)  # 0 would mean the clock
        search.SetInterpolator(sitk.sitkLinear)
        search.SetShrinkFactorsPerLevel(levels)
        search.SetSmoothingSigmasPerLevel([level / 2 if level > 1 else 0 for level in levels])
        search.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
        if mask is not None:
            search.SetMetricFixedMask(to_sitk(fixed.replace(array=mask.astype(np.uint8))))
        return search

    fraction = float(np.clip(20_000 / fixed.array.size, 0.02, 1.0))
    levels = [level for level in (4, 2, 1) if min(fixed.array.shape) // level >= 8] or [1]
    search = method(levels, fraction)
    search.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 100)
    search.SetOptimizerScalesFromPhysicalShift()
    search.SetInitialTransform(start, inPlace=False)
    start = search.Execute(still, move)

    extent = np.array(fixed.array.shape) * fixed.spacing
    mesh = np.maximum(np.round(extent / spacing), 1).astype(int).tolist()
    bend = sitk.BSplineTransformInitializer(still, mesh)
    search = method(levels[-2:], fraction)
    search.SetMovingInitialTransform(start)
    search.SetInitialTransform(bend, inPlace=False)
    search.SetOptimizerAsLBFGSB(gradientConvergenceTolerance=1e-5, numberOfIterations=20)
    bend = search.Execute(still, move)
    whole = sitk.CompositeTransform([start, bend])
    fill = -1000.0 if moving.unit == "HU" else 0.0
    result = sitk.Resample(move, still, whole, sitk.sitkLinear, fill)
    array = sitk.GetArrayFromImage(result).transpose(2, 1, 0)
    return fixed.replace(array=np.ascontiguousarray(array), unit=moving.unit), whole
