"""Pictures of scans: plain arrays in, a matplotlib figure out, ready for `plt.show()`.

Images are 2D (a tensor (1, 1, H, W) also works), with rows from top to bottom, in the unit that is named; a `Window`
sets what is black and what is white. Coronal and axial images are marked with the patient's sides, R and L; sagittal
ones with A(nterior) and P(osterior). No function changes global settings. Every function raises InputError when shapes
disagree. Pictures in which one image lies over another are in `overlays`; curves and bars are in `charts`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patches
from matplotlib.figure import Figure

from mr2ct_lib.course import alt_text
from mr2ct_lib.course.alt_text import describe
from mr2ct_lib.course.drawing import COLOURS, WIDTH, draw_image, grey_limits, palette, panels, styled
from mr2ct_lib.course.redrawing import colour_bar, subplots
from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW, Window
from mr2ct_lib.images.volumes import Volume, plane_axes, slices_of


def as_image(values: Any, name: str = "image") -> np.ndarray:
    """Return a 2D array from an array or tensor (H, W) or (1, ..., H, W). Raises InputError for anything else."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.ndim < 2 or array.size == 0 or any(side != 1 for side in array.shape[:-2]):
        raise InputError(f"{name}: shape {array.shape}; expected one image (H, W). Pick a slice")
    return array.reshape(array.shape[-2:])


def checked_images(images: Mapping[str, Any], same: bool = True) -> dict[str, np.ndarray]:
    """Return the images as 2D arrays. Raises InputError when there are none, or (`same`) when their shapes differ."""
    if not images:
        raise InputError("images: none; expected at least one. Give {title: image}")
    arrays = {title: as_image(image, title) for title, image in images.items()}
    shapes = {title: image.shape for title, image in arrays.items()}
    if same and len(set(shapes.values())) > 1:
        raise InputError(f"images: shapes {shapes}; expected one shape. Reslice them onto one grid")
    return arrays


def bar_ends(images: Sequence[np.ndarray], limits: tuple[float, float]) -> str:
    """Return matplotlib's `extend` for a colour bar: which ends of the limits the images exceed."""
    below = any(np.nanmin(image) < limits[0] for image in images if np.isfinite(image).any())
    above = any(np.nanmax(image) > limits[1] for image in images if np.isfinite(image).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


@styled
def show_images(
    images: Mapping[str, Any],
    window: Window | Mapping[str, Window] | None = None,
    unit: str = "",
    vmin: float | None = None,
    vmax: float | None = None,
    columns: int = 4,
    plane: str | None = None,
    cmap: str = "gray",
    pixel: float | None = None,
) -> Figure:
    """Show images side by side with one grey scale and one colour bar, or each in its own window with its own bar.

    Args:
        images: {title: image (H, W)}, in units.
        window: what is black and what is white; {title: Window} gives each image its own. Without a window, vmin and
            vmax apply, and without these the smallest and largest value of all images.
        unit: the label of the colour bar when there is no window.
        plane: marks the patient's sides.
        pixel: the width of a pixel in mm; it draws a scale bar on the first image.
    """
    several = isinstance(window, Mapping)
    arrays = checked_images(images, same=False)
    if several and set(window) != set(arrays):
        raise InputError(f"window: for {sorted(window)}; expected one for each of {sorted(arrays)}")
    fig, axes = panels(len(arrays), columns, max((image.shape for image in arrays.values()), key=lambda s: s[0] / s[1]))
    shared = grey_limits(list(arrays.values()), None if several else window, vmin, vmax)
    for ax, (title, image) in zip(axes, arrays.items(), strict=True):
        limits = (window[title].low, window[title].high) if several else shared
        drawn = draw_image(ax, image, title, limits, plane, cmap=cmap, pixel=pixel if ax is axes[0] else None)
        if several:
            colour_bar(fig, drawn, ax, window[title].unit, extend=bar_ends([image], limits))
    if not several:
        unit = window.unit if window else unit
        colour_bar(fig, drawn, axes, unit, extend=bar_ends(list(arrays.values()), shared))
    scales = {t: (w.low, w.high, w.unit) for t, w in window.items()} if several else {"": (*shared, unit)}
    return describe(fig, alt_text.images(list(arrays), plane, alt_text.greys(scales)))


@styled
def synthesis_row(
    source: Any,
    synthetic: Any | Mapping[str, Any],
    truth: Any,
    source_window: Window = MR_WINDOW,
    target_window: Window = CT_WINDOW,
    error_limit: float | None = None,
    mask: Any = None,
    names: tuple[str, str] = ("MR", "CT"),
    plane: str | None = "coronal",
    pixel: float | None = None,
) -> Figure:
    """Show source | synthetic | truth | error (synthetic - truth) in the target's unit, the error on a diverging scale.

    Errors are those of the values as given. A translator's output ends at its window, so clip the truth to the window
    to get the paper's error.

    Args:
        synthetic: one image, or {title: image} to compare methods; their errors then stand below them.
        error_limit: the end of the error's scale; by default a third of the target's window.
        mask: where the error counts; it is grey elsewhere.
        pixel: the width of a pixel in mm; it draws a scale bar on the source.
    """
    several = isinstance(synthetic, Mapping)
    synthetics = (
        {str(title): image for title, image in synthetic.items()} if several else {f"synthetic {names[1]}": synthetic}
    )
    source_title, truth_title = names[0], f"true {names[1]}"
    if {source_title, truth_title, "mask"} & set(synthetics):
        raise InputError(
            f"synthetic: titles {list(synthetics)}; expected others than {source_title}, {truth_title} and mask"
        )
    images = {source_title: source, **synthetics, truth_title: truth}
    checked = checked_images(images | {"mask": np.ones(as_image(truth).shape) if mask is None else mask})
    real, true, inside = checked[source_title], checked[truth_title], checked["mask"].astype(bool)
    synthetics = {title: checked[title] for title in synthetics}
    limit = (target_window.high - target_window.low) / 3 if error_limit is None else error_limit
    errors = [np.where(inside, image.astype(float) - true, np.nan) for image in synthetics.values()]
    cmap = plt.get_cmap("RdBu_r", 65).with_extremes(bad="#bbbbbb")
    columns, rows = (2 + len(synthetics), 2) if several else (4, 1)
    height = rows * ((WIDTH - 1.6) / columns * real.shape[0] / real.shape[1] + 0.42) + 0.85 * (not several)
    with plt.rc_context({"figure.constrained_layout.w_pad": 0.02, "figure.constrained_layout.wspace": 0.01}):
        fig, axes = subplots(rows, columns, figsize=(WIDTH, height))
    shown = f"{source_title} ({source_window})" if several else source_title  # there its colour bar has no room
    mr = draw_image(axes[0, 0], real, shown, (source_window.low, source_window.high), plane, pixel=pixel)
    order = [(truth_title, true), *synthetics.items()] if several else [*synthetics.items(), (truth_title, true)]
    for ax, (title, image) in zip(axes[0, 1:], order, strict=False):
        ct = draw_image(ax, image, title, (target_window.low, target_window.high), plane)
    error_axes, unit = list(axes[1, 2:]) if several else [axes[0, 3]], target_window.unit
    mae = {t: float(np.nanmean(np.abs(e))) for t, e in zip(synthetics, errors, strict=True) if inside.any()}
    for ax, name, error in zip(error_axes, synthetics, errors, strict=True):
        mean = f"MAE {mae[name]:{'.1f' if unit == 'HU' else '.3g'}} {unit}" if mae else "no voxel"
        title = mean if len(synthetics) > 2 else f"error ({mean})"
        wrong = draw_image(ax, error, title, (-limit, limit), plane, cmap=cmap)
    label = f"synthetic - true / {unit}"
    ends = bar_ends([true, *synthetics.values()], ct.get_clim())
    if several:
        for ax in set(axes[1, :2]) & set(fig.axes):
            ax.remove()
        colour_bar(fig, ct, list(axes[0, 1:]), unit, extend=ends)
        colour_bar(fig, wrong, error_axes, label, extend="both")
    else:
        below = {"location": "bottom", "pad": 0.02, "fraction": 0.06}
        colour_bar(fig, mr, axes[0, 0], source_window.unit, aspect=17, extend=bar_ends([real], mr.get_clim()), **below)
        colour_bar(fig, ct, list(axes[0, 1:3]), unit, aspect=36, extend=ends, **below)
        colour_bar(fig, wrong, axes[0, 3], label, aspect=17, extend="both", **below)
    titles = [shown, *(title for title, _ in order)]
    windows = dict(zip(names, (source_window, target_window), strict=True))
    greys = alt_text.greys({title: (w.low, w.high, w.unit) for title, w in windows.items()})
    return describe(fig, alt_text.images(titles, plane, greys) + alt_text.errors(mae, unit, limit))


@styled
def receptive_field(
    image: Any, sizes: Mapping[str, int], window: Window | None = None, plane: str | None = None
) -> Figure:
    """Show the square of pixels that one output of a network sees, drawn around the middle of an image.

    The part outside the image is padding.

    sizes: {name of a network: the square's side in pixels}.
    """
    image = as_image(image)
    row, column = image.shape[0] // 2, image.shape[1] // 2
    fig, (ax,) = panels(1, 1, image.shape)
    fig.set_figwidth(6.4)
    draw_image(ax, image, "", grey_limits([image], window, None, None), plane)
    for (name, size), colour in zip(sizes.items(), palette(len(sizes)), strict=True):
        corner = (column - size / 2, row - size / 2)
        ax.add_patch(patches.Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=2.5, label=name))
    reach = max(*sizes.values(), 0) / 2 + 2
    ax.set(
        xlim=(min(-0.5, column - reach), max(image.shape[1] - 0.5, column + reach)),
        ylim=(max(image.shape[0] - 0.5, row + reach), min(-0.5, row - reach)),
    )
    fig.legend(loc="outside right upper")
    drawn = f"An image of {image.shape[0]} by {image.shape[1]} pixels with a square for what one output sees: "
    return describe(fig, drawn + alt_text.numbers({f"{name}, side in pixels:": s for name, s in sizes.items()}) + ".")


@styled
def three_planes(volume: Volume, window: Window | None = None, title: str = "") -> Figure:
    """Show the coronal, axial and sagittal slices of a volume through its middle voxel, at their true proportions."""
    at = tuple(side // 2 for side in volume.array.shape)
    planes = [(plane, *plane_axes(plane)[:3]) for plane in ("coronal", "axial", "sagittal")]
    mm = np.array(volume.array.shape) * volume.spacing
    width = [mm[column] for _, _, _, column in planes]
    tallest = max(mm[row] for _, _, row, _ in planes)
    height = min(4.4, (WIDTH - 1.2) * tallest / sum(width)) + 0.5
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, height), width_ratios=width)
    limits = grey_limits([volume.array], window, None, None)
    for ax, (plane, number, row, column) in zip(axes, planes, strict=True):
        image = slices_of(volume, plane)[at[number]]
        aspect = volume.spacing[row] / volume.spacing[column]
        drawn = draw_image(ax, image, f"{plane} {at[number]}", limits, plane, aspect, pixel=volume.spacing[column])
    colour_bar(fig, drawn, list(axes), volume.unit, extend=bar_ends([volume.array], limits))
    if title:
        fig.suptitle(title)
    shown = alt_text.images([ax.get_title() for ax in axes], None, alt_text.greys({"": (*limits, volume.unit)}))
    return describe(fig, f"{title}{'. ' if title else ''}{shown}")


@styled
def window_view(image: Any, window: Window, pixel: float | None = None) -> Figure:
    """Show an axial image in a window beside the histogram of its values; values outside the pale band are cut.

    pixel: the width of a pixel in mm; it draws a scale bar.
    """
    image = as_image(image)
    fig, ((left, right),) = subplots(1, 2, figsize=(WIDTH, 3.9), width_ratios=(1, 1.1))
    drawn = draw_image(
        left,
        image,
        f"level {(window.low + window.high) / 2:g}, width {window.high - window.low:g}",
        (window.low, window.high),
        "axial",
        pixel=pixel,
    )
    colour_bar(fig, drawn, left, window.unit, extend=bar_ends([image], (window.low, window.high)))
    values = image[np.isfinite(image)]
    right.axvspan(window.low, window.high, color="#e3e3e3")
    right.hist(values, bins=120, color=COLOURS[0], log=True, histtype="stepfilled")
    right.minorticks_off()  # they, a patch per bin and powers of ten as formulas take most of the time
    right.yaxis.set_major_formatter("{x:g}")
    cut = float(np.mean((values < window.low) | (values > window.high)))
    right.set(xlabel=window.unit, ylabel="pixels", title=f"cut to black or white: {cut:.0%} of the pixels")
    shown = alt_text.images([left.get_title()], "axial", alt_text.greys({"": (window.low, window.high, window.unit)}))
    return describe(fig, f"{shown} Beside it the histogram of its values; {right.get_title()}.")


@styled
def contrast_view(image: Any, signals: Mapping[str, float], title: str = "", pixel: float | None = None) -> Figure:
    """Show a simulated coronal image beside a bar for the signal of each tissue in it, the brightest on top.

    pixel: the width of a pixel in mm; it draws a scale bar.
    """
    image = as_image(image)
    order = sorted(signals, key=signals.__getitem__)
    fig, ((left, right),) = subplots(1, 2, figsize=(WIDTH, 3.9), width_ratios=(1.1, 1))
    drawn = draw_image(left, image, title, (0.0, max(float(np.nanmax(image)), 1e-9)), "coronal", pixel=pixel)
    colour_bar(fig, drawn, left, "signal / a.u.")
    bars = right.barh(range(len(order)), [signals[name] for name in order], color=COLOURS[0])
    right.bar_label(bars, fmt="%.4f", padding=3, fontsize=8)
    right.margins(x=0.2)
    right.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    right.set_xlabel("signal / a.u.")
    right.grid(True, axis="x")
    shown = alt_text.images([title], "coronal", "White is the strongest signal")
    return describe(fig, f"{shown} Bars of the signal: {alt_text.numbers({n: signals[n] for n in order[::-1]})}.")


@styled
def numbered_images(images: Mapping[str, Any], window: Window | None = None, columns: int = 4) -> Figure:
    """Show tiny images with the value of each pixel written into it, in one grey scale, to be followed by hand.

    window: what is black and what is white; by default the smallest and largest value of all images.
    """
    arrays = checked_images(images, same=False)
    fig, axes = panels(len(arrays), columns, max((image.shape for image in arrays.values()), key=lambda s: s[0] / s[1]))
    low, high = grey_limits(list(arrays.values()), window, None, None)
    for ax, (title, image) in zip(axes, arrays.items(), strict=True):
        draw_image(ax, image, title, (low, high))
        for (row, column), value in np.ndenumerate(image):
            colour = "black" if (value - low) / (high - low) > 0.5 else "white"
            ax.text(column, row, f"{value:g}", ha="center", va="center", color=colour, fontsize=8.5)
    rows = {t: " / ".join(", ".join(f"{v:g}" for v in row) for row in image) for t, image in arrays.items()}
    return describe(fig, "Tiny images, row by row. " + " ".join(f"{title}: {text}." for title, text in rows.items()))


@styled
def block_shapes(shapes: Mapping[str, tuple[int, int, int]], title: str = "") -> Figure:
    """Show a network as a row of boxes, {block: (channels, h, w)}: their height is h, their width the channels."""
    if not shapes:
        raise InputError("shapes: none; expected at least one. Give {block: (channels, height, width)}")
    fig, ax = plt.subplots(figsize=(WIDTH, 3.4))
    tallest, widest = max(h for _, h, _ in shapes.values()), max(c for c, _, _ in shapes.values())
    for place, (name, (channels, height, width)) in enumerate(shapes.items()):
        box = (0.12 + 0.68 * channels / widest, height / tallest)
        ax.add_patch(
            patches.Rectangle(
                (place - box[0] / 2, -box[1] / 2), *box, facecolor=COLOURS[0], alpha=0.35, edgecolor=COLOURS[0]
            )
        )
        ax.text(place, 0, f"{channels}", ha="center", va="center", fontweight="bold")
        ax.text(place, 0.53, f"{height} x {width}", ha="center", va="bottom", fontsize=9)
        ax.text(place, -0.55, textwrap.fill(name, 12), ha="center", va="top", fontsize=9)
    ax.set(xlim=(-0.6, len(shapes) - 0.4), ylim=(-0.85, 0.65), title=title)
    ax.set_axis_off()
    boxes = [f"{name}: {channels} channels of {h} x {w}" for name, (channels, h, w) in shapes.items()]
    return describe(fig, f"{title or 'A network'} as a row of boxes. {alt_text.listed(boxes)}.")
