"""Trained networks over a whole volume: prepared as the training slices were, seen slice by slice, put back on its own grid."""

from collections.abc import Callable

import numpy as np

from mr2ct_lib.files import InputError
from mr2ct_lib.images.folders import guess_modality
from mr2ct_lib.images.intensity import Window, mr_scale, n4
from mr2ct_lib.images.volumes import Volume, plane_axes, reslice, slices_of, volume_from_slices
from mr2ct_lib.methods.segmentation import Segmenter, predict
from mr2ct_lib.methods.translator import Translator

SAME_SPACING = 0.02  # pixels that differ less than so much from the training's are taken as they are


def synthesize(
    volume: Volume, translator: Translator, reverse: bool = False, deform: bool = False, progress: bool = False, precision: str = "auto"
) -> Volume:
    """The other domain's scan of the patient in `volume`, on the volume's own grid: shape and affine identical.

    volume: a scan of the translator's source domain (of its target domain with `reverse`), of any spacing and field of view. It is
    freed of its bias field, normalised and windowed as the training slices were, brought to their pixel size and at least their field of
    view, translated, and brought back. CT comes out in HU, cut to the training's window; MR in the unit of the training ("%" or "SD").
    deform: the deformed pass of a DicycleGAN, for looking at; the undeformed one is the aligned result.
    progress: a bar at a terminal. precision: "auto" translates in bf16 where this machine gains by it, less than 2 HU from "float32".

    Raises InputError when the volume is of the wrong kind (CT for MR or the reverse).
    """
    here, there = ("target", "source") if reverse else ("source", "target")
    stack, put_back = network_slices(volume, translator, here)
    translated = translator.translate(stack, f"{here}_to_{there}", deform, progress=progress, precision=precision)
    window = Window.from_dict(translator.preparation["windows"][there])
    result = put_back(window.from_network(translated).astype(np.float32), window.unit, window.low)
    return result.replace(array=np.clip(result.array, window.low, window.high))  # interpolation may round past the window


def segment(volume: Volume, translator: Translator, segmenter: Segmenter) -> Volume:
    """The structures in an MR, by its two channels MR and synthetic CT (Hiasa et al. 2018): labels on the volume's own grid.

    volume: a scan of the translator's source domain; segmenter: trained on the channels (MR, CT), in this order. Raises InputError for a
    network of other channels, and as `synthesize`.
    """
    if tuple(segmenter.channels) != ("MR", "CT"):
        found = ", ".join(segmenter.channels)
        raise InputError(f"segmenter: its channels are {found}; expected MR, CT. Give a network that `mr2ct segment train` made")
    stack, put_back = network_slices(volume, translator, "source")
    channels = np.stack([stack, translator.translate(stack)], axis=1)  # (n, 2, h, w)
    return put_back(predict(segmenter, channels), "label", 0)


def network_slices(volume: Volume, translator: Translator, domain: str) -> tuple[np.ndarray, Callable[..., Volume]]:
    """The volume as the slices (n, h, w) in [-1, 1] that the translator knows of `domain`, and the way back.

    The way back, put_back(slices, unit, fill), returns slices as a Volume on the volume's own grid, labels by the nearest voxel.
    """
    known = translator.preparation
    window, plane = Window.from_dict(known["windows"][domain]), known["plane"]
    _check_kind(volume, window, domain)
    scan = n4(volume, profile=known["profile"]) if known["n4"][domain] else volume
    method = known["normalisation"][domain]
    offset, scale = mr_scale(scan, method) if method else (0.0, 1.0)
    scan = scan.replace(array=((scan.array - offset) / scale).astype(np.float32), unit=window.unit)
    resized = _at_training_pixels(scan, plane, known["spacing"], window.low)
    stack, where = _padded(slices_of(resized, plane), known["shape"], window.low)

    def put_back(slices: np.ndarray, unit: str, fill: float) -> Volume:
        result = Volume(volume_from_slices(slices[:, *where], plane), resized.affine, unit)
        if resized is not scan:
            result = reslice(result, volume.array.shape, volume.affine, order=0 if unit == "label" else 1, fill=fill)
        return volume.replace(array=result.array, unit=unit)

    return window.to_network(stack).astype(np.float32), put_back


def _check_kind(volume: Volume, window: Window, domain: str) -> None:
    """InputError for a CT where MR is due, and the reverse."""
    looks_like_ct = guess_modality(volume) == "CT"
    if looks_like_ct != (window.unit == "HU"):
        found, expected = ("CT", "MR") if looks_like_ct else ("MR", "CT")
        raise InputError(
            f"the scan looks like {found} (values {volume.array.min():g} to {volume.array.max():g}); expected {expected}, the translator's "
            f"{domain} domain. Give the other scan, or turn the direction with --reverse"
        )


def _at_training_pixels(scan: Volume, plane: str, spacing: list[float], low: float) -> Volume:
    """The scan with pixels of `spacing` (row, column) mm in the plane and its own slices; the very same object where they agree."""
    number, row, column, _ = plane_axes(plane)
    wanted = scan.spacing.copy()
    wanted[row], wanted[column] = spacing
    if np.abs(wanted / scan.spacing - 1).max() < SAME_SPACING:
        return scan
    extent = np.array(scan.array.shape) * scan.spacing
    shape = np.maximum(np.round(extent / wanted), 1).astype(int)
    shape[number] = scan.array.shape[number]
    direction = scan.affine[:3, :3] / scan.spacing
    affine = np.eye(4)
    affine[:3, :3] = direction * wanted
    middle = scan.affine[:3, 3] + scan.affine[:3, :3] @ ((np.array(scan.array.shape) - 1) / 2)
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return reslice(scan, tuple(int(n) for n in shape), affine, order=1, fill=low)


def _padded(stack: np.ndarray, shape: list[int], low: float) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The slices (n, h, w), padded with the window's low end to at least the training's shape, and where they lie in it."""
    margins = [max(0, wanted - n) for wanted, n in zip(shape, stack.shape[1:], strict=True)]
    before = [margin // 2 for margin in margins]
    padded = np.pad(stack, [(0, 0), *((b, m - b) for b, m in zip(before, margins, strict=True))], constant_values=low)
    return padded, tuple(slice(b, b + n) for b, n in zip(before, stack.shape[1:], strict=True))
