"""Pictures in which something lies over a scan: labels, edges, displacements, another scan.

The conventions are those of `figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colors, patches
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from skimage.feature import canny

from mr2ct_lib.course import alt_text
from mr2ct_lib.course.alt_text import describe
from mr2ct_lib.course.charts import draw_curves
from mr2ct_lib.course.drawing import (
    COLOURS,
    WIDTH,
    draw_image,
    grey_limits,
    label_colours,
    paint_labels,
    panels,
    round_length,
    styled,
)
from mr2ct_lib.course.figures import as_image, bar_ends, checked_images
from mr2ct_lib.course.redrawing import colour_bar, legend
from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW, Window


@styled
def label_overlay(
    image: Any,
    labels: Any | Mapping[str, Any],
    names: Mapping[int, str],
    window: Window | None = None,
    alpha: float = 0.55,
    plane: str | None = "coronal",
    aspect: float = 1.0,
    pixel: float | None = None,
) -> Figure:
    """Show structures in colour over a grey image, with a legend of those that are present.

    A structure keeps its colour in every picture with the same names. More than seven structures carry their names
    where these have room, else their numbers.

    Args:
        labels: label values (H, W), or {title: labels} to compare (truth, prediction).
        names: {label value: name}; 0 is background.
        window: of the image; it adds a colour bar.
        pixel: the width of a pixel in mm; it draws a scale bar on the first image.
    """
    several = isinstance(labels, Mapping)
    given = checked_images({"image": image} | (dict(labels) if several else {"labels": labels}))
    grey, maps = given.pop("image"), given
    present = sorted({int(v) for image_ in maps.values() for v in np.unique(image_)} - {0})
    if missing := [v for v in present if v not in names]:
        raise InputError(f"names: none for the label values {missing}; expected a name for each. Add them")
    colour, numbered, below = label_colours(names), len(present) > 7, len(maps) > 2
    fig, axes = panels(len(maps), 3, grey.shape, aspect)
    for ax, (title, arrays) in zip(axes, maps.items(), strict=True):
        limits, bar = grey_limits([grey], window, None, None), pixel if ax is axes[0] else None
        drawn = draw_image(ax, grey, title if several else "", limits, plane, aspect, pixel=bar)
        paint_labels(ax, arrays, colour, alpha, min(1.0, alpha + 0.35), aspect, names if numbered else None)
    if window is not None:
        colour_bar(fig, drawn, axes, window.unit, extend=bar_ends([grey], (window.low, window.high)))
    handles = [patches.Patch(color=colour[v], label=f"{v} " * numbered + names[v].replace("_", " ")) for v in present]
    if handles and below:
        fig.set_figheight(fig.get_figheight() + 0.2 + 0.17 * -(-len(handles) // 4))
        legend(fig, handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8, handlelength=1.2)
    elif handles:
        fig.set_figwidth(min(WIDTH, fig.get_figwidth() + 1.6))
        legend(fig, handles, loc="outside right upper", ncols=1 + (len(handles) > 22), fontsize=8, handlelength=1.2)
    shares = [[f"{100 * np.mean(one == v):.2g}" for one in maps.values()] for v in present]
    told = [f"{names[v].replace('_', ' ')} {' / '.join(s)}" for v, s in zip(present, shares, strict=True)]
    what = alt_text.images(list(maps) if several else [], plane, "Structures in colour, % of the pixels")
    return describe(fig, f"{what} {alt_text.listed(told) or 'No structure'}.")


@styled
def misalignment(
    reference: Any,
    moved: Any,
    positions: Sequence[float],
    curves: Mapping[str, Any],
    marker: float,
    titles: tuple[str, str] = ("reference", "moved"),
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Show a coronal reference and a moved image, and below them the curve of each loss over all positions.

    The dotted line marks where the image is now.

    Args:
        positions: shifts in pixels.
        curves: {loss: values}, one value per position.
        limits: black and white of both images; by default the extremes of each image, which hides its contrast.
    """
    images = checked_images({titles[0]: reference, titles[1]: moved})
    fig = plt.figure(figsize=(WIDTH, 5.6))
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.1, 1))
    for ax, (title, image) in zip(top.subplots(1, 2), images.items(), strict=True):
        draw_image(ax, image, title, limits or grey_limits([image], None, None, None), "coronal")
    for ax, (title, values) in zip(bottom.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        draw_curves(ax, positions, {"": values}, title, marker)
        ax.set_xlabel("shift / pixels")
    fig.axes[2].set_ylabel("loss")
    return describe(fig, f"The image is now at {marker:.3g}. {alt_text.read_off(fig)}")


def change_misalignment(fig: Figure, moved: Any, curves: Mapping[str, Any], title: str, marker: float) -> list[Artist]:
    """Change a figure of `misalignment` in place; return the artists that have changed."""
    right, *panels_below = fig.axes[1:]
    right.images[0].set_data(as_image(moved))
    right.title.set_text(title)
    for ax, values in zip(panels_below, curves.values(), strict=True):
        line, lowest, place = ax.lines
        line.set_ydata(values)
        lowest.set_data(*([line.get_data()[axis][np.nanargmin(values)]] for axis in (0, 1)))
        place.set_xdata([marker, marker])
    describe(fig, f"The image is now at {marker:.3g}. {alt_text.read_off(fig)}")
    return [right, *(line for ax in panels_below for line in ax.lines)]


@styled
def offset_field(
    dy: Any,
    dx: Any,
    background: Any = None,
    limit: float | None = None,
    title: str = "",
    plane: str | None = None,
    pixel: float | None = None,
    own_arrows: bool = False,
) -> Figure:
    """Show arrows from each place to where it is read, and a map of the length of each displacement.

    Small displacements are drawn several times as long: the title says so, and an arrow in the corner has its length
    beside it. Nothing is drawn where one is NaN.

    Args:
        dy, dx: displacements (H, W) in pixels, down and to the right.
        background: the image below the arrows.
        limit: the end of the colour scale; by default the longest displacement.
        pixel: mm per column, for a scale bar.
        own_arrows: scale the arrows by the displacements of this field (90 % of them stay apart), not by `limit`.
    """
    fields = checked_images({"dy": dy, "dx": dx} | ({} if background is None else {"background": background}))
    down, right = fields["dy"], fields["dx"]
    length = np.hypot(down, right)
    step = max(1, max(down.shape) // 20)  # pixels between two arrows
    rows, columns = (np.arange(step // 2, side, step) for side in down.shape)
    picked = np.ix_(rows, columns)
    end = limit or float(np.nanmax(length)) or 1.0
    usual = (float(np.nanpercentile(length, 90)) or end) if own_arrows else end
    times = max(1, round(1.3 * step / usual)) if limit or np.nanmax(length) else 1  # shorter ones are dots
    fig, axes = panels(2, 2, down.shape)
    grey = fields.get("background", np.zeros(down.shape))
    full_title = (title or "where each place is read") + (f" (arrows {times} times as long)" if times > 1 else "")
    draw_image(axes[0], grey, full_title, grey_limits([grey], None, None, None), plane, pixel=pixel)
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 1 / times, "color": COLOURS[1]}
    shape = {"width": 0.005, "headwidth": 3.5, "headlength": 4, "headaxislength": 3.5}
    drawn = axes[0].quiver(*np.meshgrid(columns, rows), right[picked], down[picked], **arrows, **shape)
    key = round_length(1.7 * step / times * (pixel or 1))
    text = f"{key:g} {'mm' if pixel else 'pixels'}"
    axes[0].add_patch(patches.Rectangle((0.72, 0), 0.28, 0.13, transform=axes[0].transAxes, color="black"))
    axes[0].quiverkey(drawn, 0.86, 0.04, key / (pixel or 1), text, labelpos="N", labelcolor="white")
    axes[0].set(xlim=(-0.5, down.shape[1] - 0.5), ylim=(down.shape[0] - 0.5, -0.5))
    drawn = draw_image(
        axes[1], length, f"length, median {np.nanmedian(length):.2f} pixels", (0, end), plane, cmap="viridis"
    )
    colour_bar(fig, drawn, axes, "displacement / pixels", extend=bar_ends([length], (0, end)))
    sideways, downwards = (round(float(np.nanmean(part)), 1) + 0.0 for part in (right, down))  # + 0.0: never "-0.0"
    means = f"on average {sideways} to the right and {downwards} down, longest {np.nanmax(length):.3g}"
    shown = alt_text.images([full_title, axes[1].get_title()], plane, "Arrows and a colour scale show displacements")
    return describe(fig, f"{shown} In pixels: {means}. The arrow in the corner is {text} long.")


@styled
def checkerboard(
    first: Any,
    second: Any,
    tiles: int = 8,
    windows: tuple[Window, Window] | None = None,
    names: tuple[str, str] = ("first", "second"),
    plane: str | None = None,
    pixel: float | None = None,
) -> Figure:
    """Show two images and their alternate squares: where they are aligned, outlines cross the squares' borders.

    windows: of the first and the second image; by default from the smallest to the largest value of each.
    pixel: the width of a pixel in mm; it draws a scale bar on the first image.
    """
    images = checked_images({names[0]: first, names[1]: second})
    limits = [grey_limits([im], w, None, None) for im, w in zip(images.values(), windows or (None, None), strict=True)]
    one, other = (
        np.clip((im - low) / (high - low), 0, 1) for im, (low, high) in zip(images.values(), limits, strict=True)
    )
    rows, columns = (np.arange(side) * tiles // max(one.shape) for side in one.shape)
    odd = (rows[:, None] + columns[None, :]) % 2 == 1
    fig, axes = panels(3, 3, one.shape)
    for ax, (title, image) in zip(
        axes, {names[0]: one, names[1]: other, "alternate squares": np.where(odd, other, one)}.items(), strict=True
    ):
        draw_image(ax, image, title, (0, 1), plane, pixel=pixel if ax is axes[0] else None)
    board = f"The last one is a checkerboard of both, {tiles} tiles along the longer side"
    return describe(fig, alt_text.images([*names, "alternate squares"], plane, board))


@styled
def edge_overlay(
    image: Any | Mapping[str, Any],
    reference: Any,
    window: Window | None = None,
    reference_window: Window | None = None,
    plane: str | None = None,
    pixel: float | None = None,
) -> Figure:
    """Show the strongest edges of a reference in orange over one image or {title: image}.

    Args:
        window: of the images.
        reference_window: what is cut from the reference before its edges are detected (the table, the air).
        pixel: mm; it draws a scale bar on the first image, as everywhere.
    """
    given = image if isinstance(image, Mapping) else {"": image}
    base = as_image(reference, "reference").astype(float)
    images = {title: as_image(one, title) for title, one in given.items()}
    for title, one in images.items():
        checked_images({f"{title} (image)": one, "reference": base})
    limits = grey_limits([base], reference_window, None, None)
    scaled = (np.nan_to_num(np.clip(base, *limits), nan=limits[0]) - limits[0]) / (limits[1] - limits[0])
    edges = np.zeros(base.shape, bool)
    if np.ptp(scaled) > 0:  # ridges among the steepest 12 % of the pixels, and what continues them in the next 6 %
        edges = canny(scaled, 1.0, 0.82, 0.88, use_quantiles=True)
    fig, axes = panels(len(images), 4, edges.shape)
    rgba = np.zeros((*edges.shape, 4))
    rgba[edges] = (*colors.to_rgb(COLOURS[1]), 0.9)
    for ax, (title, one) in zip(axes, images.items(), strict=True):
        bar = pixel if ax is axes[0] else None
        draw_image(ax, one, title, grey_limits([one], window, None, None), plane, pixel=bar)
        ax.imshow(rgba)
    return describe(fig, alt_text.images(list(images), plane, "Orange lines are the edges of the reference"))


@styled
def channel_rows(
    rows: Mapping[str, tuple[Any, Any, Any]],
    synthetic: Mapping[str, str],
    names: Mapping[int, str],
    pixel: float | None = None,
) -> Figure:
    """Show what a two-channel U-Net reads and returns: MR | CT | labels, one row per {title: (MR, CT, labels or None)}.

    The images are coronal, in % and HU.

    synthetic: {title: "MR" or "CT"}, the channel that a translator made; it has an orange frame, and the labels lie on
    the other channel. pixel: the width of a pixel in mm; it draws a scale bar on each MR.
    """
    if not rows or set(synthetic) != set(rows) or set(synthetic.values()) - {"MR", "CT"}:
        raise InputError(f'synthetic: {dict(synthetic)}; expected "MR" or "CT" for each of {list(rows)}')
    colour, windows = label_colours(names), {"MR": MR_WINDOW, "CT": CT_WINDOW}
    limits = {name: (window.low, window.high) for name, window in windows.items()}
    fig, axes = plt.subplots(len(rows), 3, squeeze=False, figsize=(WIDTH * 0.8, 2.35 * len(rows) + 0.2))
    for line, (title, (mr, ct, labels)) in zip(axes, rows.items(), strict=True):
        images = checked_images({"MR": mr, "CT": ct})
        for ax, (name, image) in zip(line, images.items(), strict=False):
            is_synthetic = synthetic[title] == name
            bar = pixel if name == "MR" else None
            low, high = limits[name]
            shown = f"{'synthetic' if is_synthetic else 'real'} {name}\n{low:g} to {high:g} {windows[name].unit}"
            draw_image(ax, image, shown, limits[name], "coronal", pixel=bar)
            if is_synthetic:
                ax.add_patch(
                    patches.Rectangle(
                        (0, 0), 1, 1, transform=ax.transAxes, fill=False, edgecolor=COLOURS[1], linewidth=5
                    )
                )
        base = "CT" if synthetic[title] == "MR" else "MR"
        shown = "labels: none" if labels is None else f"labels on the {base}"
        draw_image(line[2], images[base], shown, limits[base], "coronal")
        if labels is not None:
            paint_labels(line[2], as_image(labels, "labels"), colour, 0.55, 0.9, 1.0)
        line[0].text(
            -0.06,
            0.5,
            title,
            transform=line[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=11,
            fontweight="bold",
        )
    told = [f"{title}: {', '.join(ax.get_title() for ax in line)}" for title, line in zip(rows, axes, strict=True)]
    return describe(fig, f"{len(rows)} rows of MR, CT and labels. {alt_text.listed(told)}.")


@styled
def joint_histogram(mr: Any, cts: Mapping[str, Any], windows: tuple[Window, Window] | None = None) -> Figure:
    """Show how often each pair of MR and CT values occurs at the same place, on a logarithmic colour scale.

    cts: {title: array of the MR's shape}, drawn side by side with one colour scale; MR in %, CT in HU.
    """
    one, *rest = (np.asarray(v.detach().cpu() if hasattr(v, "detach") else v, float) for v in (mr, *cts.values()))
    if wrong := [v.shape for v in rest if v.shape != one.shape]:
        raise InputError(
            f"joint histogram: shapes {one.shape} and {wrong[0]}; expected one shape. Reslice them onto one grid"
        )
    ranges = [grey_limits(v, w, None, None) for v, w in zip(([one], rest), windows or (None, None), strict=True)]
    tables = [
        np.histogram2d(*(np.clip(v.ravel(), *r) for v, r in zip((one, v), ranges, strict=True)), 64, ranges)
        for v in rest
    ]
    size = (5.2, 4.2) if len(rest) == 1 else (WIDTH, 0.9 + (WIDTH - 1.2) / len(rest))
    fig, axes = plt.subplots(1, len(rest), squeeze=False, sharex=True, sharey=True, figsize=size)
    cmap = plt.get_cmap("viridis").with_extremes(bad="white")
    norm = colors.LogNorm(vmin=1, vmax=max(2, *(counts.max() for counts, _, _ in tables)))
    for ax, title, (counts, x, y) in zip(axes[0], cts, tables, strict=True):
        drawn = ax.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0), norm=norm, cmap=cmap, rasterized=True)
        ax.set(xlabel="MR / %", title=title)
    axes[0, 0].set_ylabel("CT / HU")
    colour_bar(fig, drawn, list(axes[0]), "pixels")
    same = {title: float(np.corrcoef(one.ravel(), v.ravel())[0, 1]) for title, v in zip(cts, rest, strict=True)}
    what = "How often MR / % and CT / HU occur at the same place, on a logarithmic colour scale"
    return describe(fig, f"{what}. Correlation: {alt_text.numbers(same)}.")
