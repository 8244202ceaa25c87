"""What `mr2ct register` does: files in, the moving scan on the fixed one's grid out, and how alike they have become."""

from pathlib import Path

from mr2ct_lib.cli.evaluating import read_mask
from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import guess_modality
from mr2ct_lib.images.intensity import body_mask, without_unmeasured
from mr2ct_lib.images.registration import register
from mr2ct_lib.images.volumes import Volume, read_volume, reslice, write_volume
from mr2ct_lib.measures.metrics import normalised_mutual_information


def register_files(moving: Path, fixed: Path, out: Path, mask: Path | None, spacing: float) -> tuple[float, float]:
    """Register the scan `moving` to `fixed` and write it to `out`, with its own values on the grid of `fixed`.

    mask: where to compare, on the grid of `fixed`. spacing: of the B-spline's control points in mm. Returns the
    normalised mutual information [0, 1] inside the body of `fixed`, before and after. Raises InputError for a scan that
    cannot be read, and for a mask of another grid or without voxels.
    """
    move, still = (_read_in_unit(path) for path in (moving, fixed))
    inside = None if mask is None else read_mask(still, fixed, mask)
    result, _ = register(move, still, mask=inside, spacing=spacing)
    where = body_mask(still) if inside is None else inside
    unmoved = reslice(move, still.array.shape, still.affine)
    before, after = (normalised_mutual_information(volume.array, still.array, where) for volume in (unmoved, result))
    write_volume(result, out)
    return before, after


def _read_in_unit(path: Path) -> Volume:
    volume = read_volume(path)
    try:
        is_ct = guess_modality(volume) == "CT"
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return without_unmeasured(volume.replace(unit="HU")) if is_ct else volume
