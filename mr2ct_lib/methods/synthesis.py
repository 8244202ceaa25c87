"""Trained networks over a whole scan: prepared as the training slices were, translated, and put back on the scan's own
grid."""

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import guess_modality
from mr2ct_lib.images.intensity import Window
from mr2ct_lib.images.preparation import check_window
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.methods.training_data import check_scan
from mr2ct_lib.methods.translator import Translator


def synthesize(
    volume: Volume,
    translator: Translator,
    reverse: bool = False,
    progress: bool = False,
    precision: str = "auto",
    strict: bool = False,
    spin: bool = False,
) -> Volume:
    """The other domain's scan of the patient in `volume`, on the volume's own grid: same shape and affine.

    Args:
        volume: a scan of the translator's source domain (of its target domain with `reverse`), of any spacing and field
            of view. `Preparation.to_slices` makes slices of it, just as it did of the training scans.
        translator: of a finished run.
        reverse: from the target domain to the source domain.
        progress: a bar, shown at a terminal only.
        strict: refuse a scan that is unlike the training scans, in place of a warning.
        precision: "auto" translates in bf16 where this machine gains by it, less than 2 HU from "float32".
        spin: the mean over four places on the pixel grid, see `Translator.translate`: less grain, four times the time.

    Returns CT in HU, cut to the window of the training; MR in the unit of the training ("%" or "SD").
    Raises InputError when the volume is of the wrong kind (CT in place of MR, or the reverse), or shows nothing.
    """
    here, there = ("target", "source") if reverse else ("source", "target")
    preparation = translator.preparation
    check_kind(volume, preparation.windows[here], here)
    slices, place = preparation.to_slices(volume, here)
    check_window(place.cut, preparation.windows[here], "the scan")
    check_scan(slices[place.training], translator, here, strict, place)
    options = {"progress": progress, "precision": precision, "spin": spin}
    translated = translator.translate(slices, f"{here}_to_{there}", **options)
    window = preparation.windows[there]
    units = window.from_network(translated).astype(np.float32)
    result = preparation.to_volume(units, place, volume, window.unit, fill=window.low)
    return result.replace(array=np.clip(result.array, window.low, window.high))  # interpolation may round past it


def check_kind(volume: Volume, window: Window, domain: str) -> None:
    """Raise InputError for a CT in place of an MR, and the reverse, and for a CT that is not in HU.

    window: of the domain that the scan should be of.
    """
    try:
        looks_like_ct = guess_modality(volume) == "CT"
    except InputError as error:
        raise InputError(f"the scan {error}") from error
    if looks_like_ct != (window.unit == "HU"):
        kind, expected = ("CT", "MR") if looks_like_ct else ("MR", "CT")
        raise InputError(
            f"the scan looks like {kind} (values {volume.array.min():g} to {volume.array.max():g}); expected "
            f"{expected}, the translator's {domain} domain. Give the other scan, or turn the direction with --reverse"
            + (", or, if it is an MR whose mean was taken away, add a number so that its air is 0" * looks_like_ct)
        )
