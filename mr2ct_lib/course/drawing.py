"""What all drawings of the course share: style, colours, panels, grey limits and colour bars."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mr2ct_lib.course.alt_text import alternative_text, describe
from mr2ct_lib.images.intensity import Window

WIDTH = 9.0  # inches; at 100 dots per inch this is the width of a notebook's column
# The colours of Okabe and Ito, which colour-blind readers can tell apart; black and grey are left for the image.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
# Colours of the 22 structures of the hip, in their order. They were found by annealing over a grid of colours: any two
# differ by 13 in CIEDE2000 and by 9 for red-blind and green-blind readers, and by 10 and 6 when they are painted over
# the grey of muscle; neighbours in the body by 18 and 10 even there.
STRUCTURE_COLOURS = (
    "#bfff99", "#e0bf00", "#ff4c00", "#2626ff", "#9973bf", "#992600", "#ff4c73", "#4c9926", "#4c9999", "#73ffff",
    "#99004c", "#bf99bf", "#7399ff", "#994c4c", "#bfbf73", "#990099", "#009973", "#e0ff00", "#73bf99", "#bfbfff",
    "#ffbfbf", "#734c73",
)  # fmt: skip


def style() -> dict[str, Any]:
    """Return the matplotlib settings of every figure; `plt.rc_context(drawing.style())` applies them to other plots."""
    show_sharp()
    return {
        "figure.dpi": 100,
        "savefig.dpi": 100,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.labelsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#666666",
        "axes.axisbelow": True,
        "axes.prop_cycle": plt.cycler(color=COLOURS),
        "xtick.color": "#444444",
        "ytick.color": "#444444",
        "grid.color": "#dddddd",
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "image.cmap": "gray",
        "image.interpolation": "nearest",
    }


def picture(fig: Figure, sharpness: int = 2) -> tuple[bytes, dict[str, Any]] | None:
    """Return a figure as PNG, and what a viewer should know of it: its width on the page and its alternative text.

    sharpness: pixels of the PNG per pixel of the page; 2 is sharp on any screen. A figure's own `sharpness` goes first.
    """
    from IPython.core.pylabtools import print_figure

    times = getattr(fig, "sharpness", sharpness)
    png = print_figure(fig, dpi=times * fig.dpi)
    if png is None:  # nothing is drawn in it
        return None
    width = int.from_bytes(png[16:20], "big") // times  # bytes 16 to 19 of a PNG; a height would distort on phones
    return png, {"width": width, "alt": alternative_text(fig)}


def show_sharp() -> None:
    """Let the notebook that runs this, if one does, show figures by `picture`: sharp, and with alternative text."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or "inline" not in plt.get_backend():
        return
    import matplotlib_inline.backend_inline  # noqa: F401  it sets its own way of showing when it is imported first

    shell.display_formatter.formatters["image/png"].for_type(Figure, picture)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a drawing function: it uses `style()`, keeps global settings, and closes its figure when it fails. A
    figure without alternative text gets that of its axes."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        before = set(plt.get_fignums())
        with plt.rc_context(style()):
            try:
                fig = draw(*args, **kwargs)
                return fig if hasattr(fig, "alt") else describe(fig)
            except Exception:
                for number in set(plt.get_fignums()) - before:  # no empty frame stays behind in the notebook
                    plt.close(number)
                raise

    return wrapper


def palette(count: int) -> list[tuple[float, float, float]]:
    """Return `count` colours: those of Okabe and Ito up to seven, else `STRUCTURE_COLOURS`, then paler versions.

    >>> len({tuple(c) for c in palette(28)})
    28
    """
    chosen = COLOURS if count <= len(COLOURS) else STRUCTURE_COLOURS
    paler = [0.6 * (number // len(chosen)) / (1 + (count - 1) // len(chosen)) for number in range(count)]
    return [
        tuple((1 - p) * v + p for v in colors.to_rgb(chosen[number % len(chosen)])) for number, p in enumerate(paler)
    ]


def label_colours(names: Mapping[int, str]) -> dict[int, tuple[float, float, float]]:
    """Return a colour for each label value except 0, the background. It depends on the names alone."""
    values = sorted(int(v) for v in names if int(v) != 0)
    return dict(zip(values, palette(len(values)), strict=True))


def panels(
    count: int, columns: int, shape: tuple[int, int], aspect: float = 1.0, extra: float = 0.35
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes in rows of `columns`, sized for images of that shape and pixel aspect."""
    columns = min(columns, count)
    rows = -(-count // columns)
    cell = min((WIDTH - 0.8) / columns, 4.2)
    height = cell * aspect * shape[0] / shape[1]
    fig, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(min(WIDTH, cell * columns + 0.9), rows * (min(height, 5.5) + extra))
    )
    for ax in axes.flat[count:]:
        ax.remove()
    return fig, list(axes.flat[:count])


def grey_limits(
    images: Sequence[np.ndarray], window: Window | None, vmin: float | None, vmax: float | None
) -> tuple[float, float]:
    """Return the values of black and white: the window's, else vmin and vmax, else the extremes of all images."""
    if window is not None:
        return window.low, window.high
    values = [image[np.isfinite(image)] for image in images]
    values = np.concatenate(values) if sum(v.size for v in values) else np.zeros(1)
    low = float(values.min()) if vmin is None else vmin
    high = float(values.max()) if vmax is None else vmax
    return low, high if high > low else low + 1.0


def colour_bar(fig: Figure, shown, axes, label: str, **settings) -> None:
    """Add a colour bar with this label to the axes."""
    bar = fig.colorbar(shown, ax=axes, label=label, **({"fraction": 0.05, "pad": 0.015, "aspect": 22} | settings))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)
