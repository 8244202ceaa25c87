"""What all drawings of the course share: style, colours, panels and grey limits."""

import functools
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colors, patheffects, transforms
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from mr2ct_lib.course.alt_text import alternative_text, describe
from mr2ct_lib.course.redrawing import subplots
from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import Window

SIDES = {"coronal": ("R", "L"), "axial": ("R", "L"), "sagittal": ("A", "P")}  # left and right edge of an image
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
        "axes.titley": 1.0,  # no figure has ticks on top; to look for them takes time
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

    A figure with the attribute `laid_out` is taken as it has been drawn, with one pixel per pixel of the page. Any
    other is drawn twice, to find its frame, which is too slow below a slider.

    sharpness: pixels of the PNG per pixel of the page; 2 is sharp on any screen. A figure's own `sharpness` goes first.
    """
    from IPython.core.pylabtools import print_figure

    if hasattr(fig, "laid_out"):
        times, stored = 1, BytesIO()
        plt.imsave(stored, np.asarray(fig.canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
        png = stored.getvalue()
    else:
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
    size = min(WIDTH, cell * columns + 0.9), rows * (min(height, 5.5) + extra)
    fig, axes = subplots(rows, columns, figsize=size)
    for ax in axes.flat[count:]:
        if ax in fig.axes:
            ax.remove()
    return fig, list(axes.flat[:count])


def written(ax: Axes, x: float, y: float, text: str, size: float = 9, **settings) -> None:
    """Write white text with a black rim, which is read on black and on white."""
    drawn = ax.text(x, y, text, color="white", fontsize=size, **settings)
    drawn.set_path_effects([patheffects.withStroke(linewidth=size / 5, foreground="black")])


def draw_image(
    ax: Axes,
    image: np.ndarray,
    title: str,
    limits: tuple[float, float],
    plane: str | None = None,
    aspect: float = 1.0,
    cmap="gray",
    pixel: float | None = None,
):
    """Draw an image (H, W) without axes between two grey limits.

    `plane` marks the patient's sides; `pixel`, the width of a pixel in mm, draws a scale bar. Raises InputError for an
    unknown plane.
    """
    drawn = ax.imshow(image, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect=aspect)
    ax.set_title(title)
    ax.set_axis_off()
    if plane is not None:
        if plane not in SIDES:
            raise InputError(f"plane: {plane!r}; expected one of {', '.join(SIDES)}, or None for no marks")
        for x, align, side in ((0.02, "left", SIDES[plane][0]), (0.98, "right", SIDES[plane][1])):
            written(ax, x, 0.97, side, transform=ax.transAxes, ha=align, va="top", fontweight="bold")
    if pixel:
        scale_bar(ax, image.shape[1], pixel)
    return drawn


def round_length(most: float) -> float:
    """Return the largest of 1, 2 or 5 times a power of ten that is at most `most`.

    >>> round_length(49), round_length(0.5)
    (20.0, 0.5)
    """
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most * 1.001))


def scale_bar(ax: Axes, columns: int, pixel: float) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten mm, at most a third of an image that is `columns` pixels wide."""
    mm = round_length(columns * pixel / 3)
    ends = 0.04, 0.04 + mm / (columns * pixel)
    for width, colour in ((4.5, "black"), (2.5, "white")):
        ax.plot(ends, (0.04, 0.04), color=colour, linewidth=width, transform=ax.transAxes, solid_capstyle="butt")
    text = f"{mm / 10:g} cm" if mm >= 10 else f"{mm:g} mm"
    above = transforms.offset_copy(ax.transAxes, ax.figure, y=2.5, units="points")  # clear of the bar in small images
    written(ax, sum(ends) / 2, 0.04, text, 8, transform=above, ha="center", va="bottom")


def paint_labels(
    ax: Axes, labels: np.ndarray, colour: Mapping[int, Any], alpha: float, rim: float, aspect: float, names: Any = None
) -> None:
    """Lay labels over an image with stronger rims. With `names`, each large piece carries its name where that has room,
    else its value."""
    rgba = np.zeros((*labels.shape, 4))
    values = sorted({int(v) for v in np.unique(labels)} - {0})
    for value in values:
        rgba[labels == value] = (*colour[value], alpha)
    cross = ndimage.generate_binary_structure(2, 1)  # a pixel and its four neighbours
    whole = np.pad(np.asarray(labels, int), 1)
    one_label = ndimage.minimum_filter(whole, footprint=cross) == ndimage.maximum_filter(whole, footprint=cross)
    rgba[~one_label[1:-1, 1:-1] & (labels > 0), 3] = rim
    for value in values if names else ():
        _write_labels(ax, labels == value, str(value), textwrap.fill(names[value].replace("_", " "), 9))
    ax.imshow(rgba, aspect=aspect)


def _write_labels(ax: Axes, inside: np.ndarray, value: str, name: str) -> None:
    """Write a structure's name, or else its value, into each of its pieces that has room for it, but not where the
    scale bar lies."""
    points = 72 * ax.get_position().width * ax.figure.get_figwidth() / inside.shape[1]  # per pixel
    bar = np.zeros_like(inside)
    bar[int(0.96 * len(inside) - 28 / points) :, : int(0.45 * inside.shape[1])] = True
    lines = name.split("\n")
    room = np.ceil([7.4 * len(lines) / points, 3.6 * max(map(len, lines)) / points]).astype(
        int
    )  # rows, columns of text
    pieces, _ = ndimage.label(inside)
    sizes = np.bincount(pieces.ravel())[1:]
    for number in 1 + np.flatnonzero(sizes > 0.004 * inside.size):
        piece = pieces == number
        held = ndimage.binary_erosion(piece, np.ones(room, bool))  # where the middle of the text may stand
        within = ndimage.distance_transform_edt(np.pad(held if held.any() else piece, 1))[1:-1, 1:-1] * ~bar
        if not within.any():
            continue
        row, column = np.unravel_index(within.argmax(), within.shape)
        settings = {"ha": "center", "va": "center", "linespacing": 0.9}
        written(ax, column, row, name if held.any() else value, 6 if held.any() else 7, **settings)


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
