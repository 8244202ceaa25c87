"""Whether two volumes that must correspond lie on one grid."""

from pathlib import Path

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images.volumes import Volume


def check_same_grid(one: Volume, name: str | Path, other: Volume, other_name: str | Path) -> None:
    """Raise InputError, naming both grids, unless two volumes have one shape and their corners lie in the same places.

    A tenth of a voxel is allowed: headers hold rounded numbers.
    """
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(one.array.shape)[:, None] - 1)
    apart = (one.affine - other.affine) @ np.vstack([corners, np.ones(8)])
    if one.array.shape != other.array.shape or np.linalg.norm(apart[:3], axis=0).max() > 0.1 * other.spacing.min():
        raise InputError(
            f"{name}: lies on another grid ({_describe_grid(one)}) than {other_name} ({_describe_grid(other)}); "
            "expected the same shape and affine. Export it on that grid, or reslice it"
        )


def _describe_grid(volume: Volume) -> str:
    """The grid in words: voxels, their size and where the middle one lies."""
    middle = volume.affine @ [*((np.array(volume.array.shape) - 1) / 2), 1]
    shape, spacing, place = (" x ".join(map(str, volume.array.shape)), *(
        ", ".join(f"{value:.4g}" for value in values) for values in (volume.spacing, middle[:3])
    ))  # fmt: skip
    return f"{shape} voxels of {spacing} mm around {place} mm"
