"""The picture that `mr2ct synthesize --qa` draws of a scan: what went in, what came out, both together, and what does
not come back."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mr2ct_lib.files import atomic
from mr2ct_lib.images.volumes import Volume
from mr2ct_lib.methods.translator import Translator

ROWS = 3  # slices per picture, spread evenly over the scan


def write_qa(scan: Volume, translator: Translator, reverse: bool, path: Path) -> float:
    """Draw slices of `scan` as the network sees them, their translation, an overlay and the cycle error; write a PNG to
    `path`.

    The cycle error is the difference between a slice and what comes back from both generators, in percent of the
    window; it is large where the scan is unlike the training scans. Returns its mean over the whole scan.
    """
    domain, direction, back = ("target", "target_to_source", "source_to_target") if reverse else (
        "source", "source_to_target", "target_to_source")  # fmt: skip
    slices, place = translator.preparation.to_slices(scan, domain)  # (n, h, w) in [-1, 1]
    slices = slices[place.training]  # one field of view of the body
    synthetic = translator.translate(slices, direction)
    error = np.abs(slices - translator.translate(synthetic, back)) * 50
    numbers = np.unique(np.linspace(0, len(slices) - 1, ROWS + 2).round().astype(int)[1:-1])
    units = [translator.preparation.windows[name] for name in ((domain, "source" if reverse else "target"))]
    titles = [f"scan, {units[0]}", f"synthetic, {units[1]}", "overlay", "cycle error, % of the window"]
    fig = Figure(figsize=(14, 3.6 * len(numbers)), layout="constrained")
    axes = fig.subplots(len(numbers), 4, squeeze=False)
    for row, number in zip(axes, numbers, strict=True):
        row[0].imshow(slices[number], cmap="gray", vmin=-1, vmax=1)
        row[1].imshow(synthetic[number], cmap="gray", vmin=-1, vmax=1)
        row[2].imshow(slices[number], cmap="gray", vmin=-1, vmax=1)
        row[2].imshow(synthetic[number], cmap="inferno", vmin=-1, vmax=1, alpha=0.4)
        shown = row[3].imshow(error[number], cmap="magma", vmin=0, vmax=25)
        row[0].set_ylabel(f"slice {number + 1} of {len(slices)}")
        _bare(row)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    fig.colorbar(shown, ax=axes[:, 3], shrink=0.6, extend="max")
    fig.suptitle(f"mean cycle error {error.mean():.1f} % of the window. Not for clinical use", fontsize="medium")
    with atomic(path) as temporary:
        fig.savefig(temporary, dpi=100)
    return float(error.mean())


def _bare(axes: list[Axes]) -> None:
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
