"""The pictures that all notebooks share: plain arrays and tables in, a matplotlib figure out, ready for `plt.show()`.

Images are 2D (a tensor (1, 1, H, W) will do), rows from top to bottom, in the unit that is named; a `Window` sets what is black
and what is white.
Coronal and axial images carry the patient's sides, R and L; sagittal ones A(nterior) and P(osterior). No function changes global settings.
Every function raises InputError when shapes disagree. Curves, bars and histograms live in `charts` and can be taken from here too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colors, patches, patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage
from skimage.feature import canny

from mr2ct_lib.course.charts import COLOURS, WIDTH, draw_curves, label_colours, panels, styled
from mr2ct_lib.course.charts import bar_table as bar_table
from mr2ct_lib.course.charts import block_shapes as block_shapes
from mr2ct_lib.course.charts import box_comparison as box_comparison
from mr2ct_lib.course.charts import dice_bars as dice_bars
from mr2ct_lib.course.charts import dice_boxes as dice_boxes
from mr2ct_lib.course.charts import landscape as landscape
from mr2ct_lib.course.charts import palette as palette
from mr2ct_lib.course.charts import style as style
from mr2ct_lib.course.charts import tissue_histogram as tissue_histogram
from mr2ct_lib.course.charts import training_curves as training_curves
from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW, Window
from mr2ct_lib.images.volumes import PLANES, Volume, plane_axes, slices_of

SIDES = {"coronal": ("R", "L"), "axial": ("R", "L"), "sagittal": ("A", "P")}


def as_image(values: Any, name: str = "image") -> np.ndarray:
    """A 2D array from an array or tensor (H, W) or (1, ..., H, W); InputError for anything else."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.ndim < 2 or array.size == 0 or any(side != 1 for side in array.shape[:-2]):
        raise InputError(f"{name}: shape {array.shape}; expected one image (H, W). Pick a slice")
    return array.reshape(array.shape[-2:])


def _images(images: Mapping[str, Any], same: bool = True) -> dict[str, np.ndarray]:
    if not images:
        raise InputError("images: none; expected at least one. Give {title: image}")
    found = {title: as_image(image, title) for title, image in images.items()}
    shapes = {title: image.shape for title, image in found.items()}
    if same and len(set(shapes.values())) > 1:
        raise InputError(f"images: shapes {shapes}; expected one shape. Reslice them onto one grid")
    return found


def _limits(images: Sequence[np.ndarray], window: Window | None, vmin: float | None, vmax: float | None) -> tuple[float, float]:
    if window is not None:
        return window.low, window.high
    values = [image[np.isfinite(image)] for image in images]
    values = np.concatenate(values) if sum(v.size for v in values) else np.zeros(1)
    low = float(values.min()) if vmin is None else vmin
    high = float(values.max()) if vmax is None else vmax
    return low, high if high > low else low + 1.0


def _show(ax: Axes, image: np.ndarray, title: str, limits: tuple[float, float], plane: str | None = None, aspect: float = 1.0, cmap="gray"):
    shown = ax.imshow(image, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect=aspect)
    ax.set_title(title)
    ax.set_axis_off()
    if plane is not None:
        if plane not in SIDES:
            raise InputError(f"plane: {plane!r}; expected one of {', '.join(PLANES)}, or None for no marks")
        for x, align, side in ((0.02, "left", SIDES[plane][0]), (0.98, "right", SIDES[plane][1])):
            text = ax.text(x, 0.97, side, transform=ax.transAxes, ha=align, va="top", color="white", fontsize=9, fontweight="bold")
            text.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="black")])
    return shown


def _bar(fig: Figure, shown, axes, label: str, **settings) -> None:
    bar = fig.colorbar(shown, ax=axes, label=label, fraction=0.05, pad=0.015, aspect=22, **settings)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9)


def _extend(images: Sequence[np.ndarray], limits: tuple[float, float]) -> str:
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
    aspect: float = 1.0,
    cmap: str = "gray",
) -> Figure:
    """Images side by side in one grey scale with one colour bar; with {title: Window} each in its own, with a bar of its own.

    images: {title: (H, W)} in units; window: what is black and white, else vmin and vmax, else the least and the largest value of all;
    unit: on the colour bar when there is no window; plane: marks the sides; aspect: height of a pixel over its width.
    """
    several = isinstance(window, Mapping)
    found = _images(images, same=False)
    if several and set(window) != set(found):
        raise InputError(f"window: for {sorted(window)}; expected one for each of {sorted(found)}")
    fig, axes = panels(len(found), columns, max((image.shape for image in found.values()), key=lambda s: s[0] / s[1]), aspect)
    shared = _limits(list(found.values()), None if several else window, vmin, vmax)
    for ax, (title, image) in zip(axes, found.items(), strict=True):
        limits = (window[title].low, window[title].high) if several else shared
        shown = _show(ax, image, title, limits, plane, aspect, cmap)
        if several:
            _bar(fig, shown, ax, window[title].unit, extend=_extend([image], limits))
    if not several:
        _bar(fig, shown, axes, window.unit if window else unit, extend=_extend(list(found.values()), shared))
    return fig


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
    aspect: float = 1.0,
) -> Figure:
    """Source | synthetic | truth | error (synthetic - truth) in the target's unit, the error on a diverging scale around 0.

    synthetic: one image, or {title: image} to compare methods (their errors then stand below them). mask: where the error counts;
    grey elsewhere. Errors are of the values as given: a translator's output ends at its window, so clip the truth to it for the same
    error as in the paper. error_limit: the end of the error's scale, a third of the target's window unless told.
    """
    several = isinstance(synthetic, Mapping)
    made = {f"{title}": as_image(image, title) for title, image in (synthetic if several else {f"synthetic {names[1]}": synthetic}).items()}
    source_title, truth_title = names[0], f"true {names[1]}"
    if {source_title, truth_title, "mask"} & set(made):
        raise InputError(f"synthetic: titles {list(made)}; expected others than {source_title}, {truth_title} and mask")
    checked = _images({source_title: source, **made, truth_title: truth} | ({} if mask is None else {"mask": mask}))
    real, true = checked[source_title], checked[truth_title]
    inside = checked["mask"].astype(bool) if mask is not None else np.ones(real.shape, bool)
    limit = (target_window.high - target_window.low) / 3 if error_limit is None else error_limit
    errors = {title: np.where(inside, image.astype(float) - true, np.nan) for title, image in made.items()}
    columns, rows = (2 + len(made), 2) if several else (4, 1)
    cell = (WIDTH - 1.6) / columns
    height = rows * (cell * aspect * real.shape[0] / real.shape[1] + 0.42) + (0 if several else 0.85)
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(WIDTH, height))
    low_high = (target_window.low, target_window.high)
    fig.get_layout_engine().set(w_pad=0.02, wspace=0.01)
    mr = _show(axes[0, 0], real, source_title, (source_window.low, source_window.high), plane, aspect)
    order = [(truth_title, true), *made.items()] if several else [*made.items(), (truth_title, true)]
    for ax, (title, image) in zip(axes[0, 1:], order, strict=False):
        ct = _show(ax, image, title, low_high, plane, aspect)
    cmap = plt.get_cmap("RdBu_r").with_extremes(bad="#bbbbbb")
    error_axes = list(axes[1, 2:]) if several else [axes[0, 3]]
    for ax, (_, error) in zip(error_axes, errors.items(), strict=True):
        mean = f"MAE {np.nanmean(np.abs(error)):.3g} {target_window.unit}" if inside.any() else "no voxel"
        wrong = _show(ax, error, mean if len(made) > 2 else f"error ({mean})", (-limit, limit), plane, aspect, cmap)
    label = f"synthetic - true / {target_window.unit}"
    if several:
        for ax in axes[1, :2]:
            ax.remove()
        _bar(fig, ct, list(axes[0, 1:]), target_window.unit)
        _bar(fig, wrong, error_axes, label, extend="both")
    else:
        for shown, group, text, ends in (
            (mr, axes[0, 0], source_window.unit, "neither"),
            (ct, list(axes[0, 1:3]), target_window.unit, "neither"),
            (wrong, axes[0, 3], label, "both"),
        ):
            bar = fig.colorbar(shown, ax=group, location="bottom", label=text, extend=ends, pad=0.02, fraction=0.06,
                               aspect=36 if group is not axes[0, 0] and group is not axes[0, 3] else 17)  # fmt: skip
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=9)
    return fig


@styled
def label_overlay(
    image: Any,
    labels: Any | Mapping[str, Any],
    names: Mapping[int, str],
    window: Window | None = None,
    alpha: float = 0.55,
    plane: str | None = "coronal",
    aspect: float = 1.0,
) -> Figure:
    """Structures in colour over a grey image, with a legend of those that are there; labels may be {title: labels} (truth, prediction).

    names: {value: name}; 0 is background. A structure keeps its colour in every picture that has the same names; more than seven
    carry their numbers as well. A window gets a colour bar.
    """
    several = isinstance(labels, Mapping)
    given = _images({"image": image} | (dict(labels) if several else {"labels": labels}))
    grey, maps = given.pop("image"), given
    present = sorted({int(v) for image_ in maps.values() for v in np.unique(image_)} - {0})
    if missing := [v for v in present if v not in names]:
        raise InputError(f"names: none for the label values {missing}; expected a name for each. Add them")
    colour, numbered, below = label_colours(names), len(present) > 7, len(maps) > 2
    fig, axes = panels(len(maps), 3, grey.shape, aspect)
    for ax, (title, found) in zip(axes, maps.items(), strict=True):
        shown = _show(ax, grey, title if several else "", _limits([grey], window, None, None), plane, aspect)
        _paint(ax, found, colour, alpha, min(1.0, alpha + 0.35), numbered, aspect)
    if window is not None:
        _bar(fig, shown, axes, window.unit, extend=_extend([grey], (window.low, window.high)))
    handles = [patches.Patch(color=colour[v], label=f"{v} " * numbered + names[v].replace("_", " ")) for v in present]
    if handles and below:
        fig.set_figheight(fig.get_figheight() + 0.2 + 0.17 * -(-len(handles) // 4))
        fig.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8, handlelength=1.2)
    elif handles:
        fig.set_figwidth(min(WIDTH, fig.get_figwidth() + 1.6))
        fig.legend(handles=handles, loc="outside right upper", ncols=1 + (len(handles) > 22), fontsize=8, handlelength=1.2)
    return fig


def _paint(ax: Axes, labels: np.ndarray, colour: Mapping[int, Any], alpha: float, rim: float, numbered: bool, aspect: float) -> None:
    """Lay labels over an image, each piece with its rim stronger and, if asked and large enough, its value at its innermost pixel."""
    rgba = np.zeros((*labels.shape, 4))
    for value in sorted({int(v) for v in np.unique(labels)} - {0}):
        inside = labels == value
        rgba[inside] = (*colour[value], alpha)
        rgba[inside & ~ndimage.binary_erosion(inside)] = (*colour[value], rim)
        pieces, count = ndimage.label(inside)
        for piece in range(1, 1 + count * numbered):
            depth = ndimage.distance_transform_edt(np.pad(pieces == piece, 1))[1:-1, 1:-1]
            if np.count_nonzero(depth) > 0.003 * labels.size:
                row, column = np.unravel_index(depth.argmax(), depth.shape)
                text = ax.text(column, row, f"{value}", ha="center", va="center", color="white", fontsize=7)
                text.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="black")])
    ax.imshow(rgba, aspect=aspect)


@styled
def misalignment(
    reference: Any, moved: Any, positions: Sequence[float], curves: Mapping[str, Any], marker: float, xlabel: str = "shift / pixels",
    titles: tuple[str, str] = ("reference", "moved"), plane: str | None = None, limits: tuple[float, float] | None = None,
) -> Figure:  # fmt: skip
    """A reference, the moved image, and below them one curve a loss over all positions; the dotted line is where the image is now.
    limits: black and white of both images; by default each image's own least and greatest value, which hides its contrast."""
    images = _images({titles[0]: reference, titles[1]: moved})
    fig = plt.figure(figsize=(WIDTH, 5.6))
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.1, 1))
    for ax, (title, image) in zip(top.subplots(1, 2), images.items(), strict=True):
        _show(ax, image, title, limits or _limits([image], None, None, None), plane)
    for ax, (title, lines) in zip(bottom.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        draw_curves(ax, positions, lines if isinstance(lines, Mapping) else {"": lines}, title, marker)
        ax.set_xlabel(xlabel)
    return fig


@styled
def offset_field(
    dy: Any, dx: Any, background: Any = None, step: int | None = None, limit: float | None = None, title: str = "", plane: str | None = None
) -> Figure:
    """Arrows from each place to where it is read (dy down, dx right, pixels), and a map of each displacement's length.

    Small displacements are drawn several times as long, and the title says so. background: the image below the arrows; step: pixels
    between arrows; limit: end of the colour scale, the longest displacement unless told. Where a displacement is NaN nothing is drawn.
    """
    fields = _images({"dy": dy, "dx": dx} | ({} if background is None else {"background": background}))
    down, right = fields["dy"], fields["dx"]
    length = np.hypot(down, right)
    step = step or max(1, max(down.shape) // 20)
    rows, columns = (np.arange(step // 2, side, step) for side in down.shape)
    picked = np.ix_(rows, columns)
    longest = limit or float(np.nanmax(length))
    end = longest or 1.0
    times = max(1, int(1.3 * step / longest)) if longest > 0 else 1  # arrows of part of a pixel would be dots
    fig, axes = panels(2, 2, down.shape)
    grey = fields.get("background", np.zeros(down.shape))
    shown_title = (title or "where each place is read") + (f" (arrows {times} times as long)" if times > 1 else "")
    _show(axes[0], grey, shown_title, _limits([grey], None, None, None), plane)
    x, y = np.meshgrid(columns, rows)
    arrows = {
        "angles": "xy",
        "scale_units": "xy",
        "scale": 1 / times,
        "width": 0.005,
        "headwidth": 3.5,
        "headlength": 4,
        "headaxislength": 3.5,
    }
    axes[0].quiver(x, y, right[picked], down[picked], length[picked], cmap="viridis", clim=(0, end), **arrows)
    axes[0].set(xlim=(-0.5, down.shape[1] - 0.5), ylim=(down.shape[0] - 0.5, -0.5))
    shown = _show(axes[1], length, f"length, median {np.nanmedian(length):.2f} pixels", (0, end), plane, cmap="viridis")
    _bar(fig, shown, axes, "displacement / pixels", extend=_extend([length], (0, end)))
    return fig


def blend(first: Any, second: Any, share: float) -> np.ndarray:
    """(1 - share) first + share second, for two images of one shape."""
    images = _images({"first": first, "second": second})
    return (1 - share) * images["first"] + share * images["second"]


@styled
def checkerboard(
    first: Any, second: Any, tiles: int = 8, windows: tuple[Window, Window] | None = None, names: tuple[str, str] = ("first", "second"),
    plane: str | None = None,
) -> Figure:  # fmt: skip
    """Two images and the squares of both in turn: where they lie aligned, outlines run on across the squares' borders.

    windows: of the first and the second; else each from its least to its largest value.
    """
    images = _images({names[0]: first, names[1]: second})
    limits = [_limits([im], w, None, None) for im, w in zip(images.values(), windows or (None, None), strict=True)]
    one, other = (np.clip((im - low) / (high - low), 0, 1) for im, (low, high) in zip(images.values(), limits, strict=True))
    rows, columns = (np.arange(side) * tiles // max(one.shape) for side in one.shape)
    odd = (rows[:, None] + columns[None, :]) % 2 == 1
    fig, axes = panels(3, 3, one.shape)
    for ax, (title, image) in zip(axes, {names[0]: one, names[1]: other, "both in turn": np.where(odd, other, one)}.items(), strict=True):
        _show(ax, image, title, (0, 1), plane)
    return fig


@styled
def edge_overlay(
    image: Any | Mapping[str, Any],
    reference: Any,
    window: Window | None = None,
    reference_window: Window | None = None,
    share: float = 0.12,
    plane: str | None = None,
) -> Figure:
    """The strongest edges of `reference` (the ridges among that share of its pixels) in orange over one image or {title: image}.

    window: of the images; reference_window: what is cut from the reference before its edges are found (the table, the air).
    """
    given = image if isinstance(image, Mapping) else {"": image}
    base = as_image(reference, "reference").astype(float)
    images = {title: as_image(one, title) for title, one in given.items()}
    for title, one in images.items():
        _images({f"{title} (image)": one, "reference": base})
    limits = _limits([base], reference_window, None, None)
    scaled = (np.nan_to_num(np.clip(base, *limits), nan=limits[0]) - limits[0]) / (limits[1] - limits[0])
    edges = canny(scaled, 1.0, 1 - 1.5 * share, 1 - share, use_quantiles=True) if np.ptp(scaled) > 0 else np.zeros(base.shape, bool)
    fig, axes = panels(len(images), 4, edges.shape)
    rgba = np.zeros((*edges.shape, 4))
    rgba[edges] = (*colors.to_rgb(COLOURS[1]), 0.9)
    for ax, (title, one) in zip(axes, images.items(), strict=True):
        _show(ax, one, title, _limits([one], window, None, None), plane)
        ax.imshow(rgba)
    return fig


@styled
def receptive_field(
    image: Any, sizes: int | Mapping[str, int], window: Window | None = None, centre: tuple[int, int] | None = None, title: str = "",
    plane: str | None = None,
) -> Figure:  # fmt: skip
    """The square of pixels that one output of a network sees, on an image; sizes: pixels, or {name: pixels} for several networks.

    What of the square lies outside the image is padding. centre: (row, column), the middle unless told.
    """
    found = as_image(image)
    sizes = sizes if isinstance(sizes, Mapping) else {f"{sizes} x {sizes} pixels": sizes}
    row, column = centre or (found.shape[0] // 2, found.shape[1] // 2)
    fig, (ax,) = panels(1, 1, found.shape)
    fig.set_figwidth(6.4)
    _show(ax, found, title, _limits([found], window, None, None), plane)
    for (name, size), colour in zip(sizes.items(), palette(len(sizes)), strict=True):
        corner = (column - size / 2, row - size / 2)
        ax.add_patch(patches.Rectangle(corner, size, size, fill=False, edgecolor=colour, linewidth=2.5, label=name))
    reach = max(*sizes.values(), 0) / 2 + 2
    ax.set(xlim=(min(-0.5, column - reach), max(found.shape[1] - 0.5, column + reach)),
           ylim=(max(found.shape[0] - 0.5, row + reach), min(-0.5, row - reach)))  # fmt: skip
    fig.legend(loc="outside right upper")
    return fig


@styled
def three_planes(volume: Volume, centre: tuple[int, int, int] | None = None, window: Window | None = None, title: str = "") -> Figure:
    """The coronal, axial and sagittal slices of a volume through the voxel `centre`, its middle unless told, at their true proportions."""
    at = centre or tuple(side // 2 for side in volume.array.shape)
    if len(at) != 3 or any(not 0 <= index < side for index, side in zip(at, volume.array.shape, strict=True)):
        raise InputError(f"centre: {at}; expected a voxel inside {volume.array.shape}")
    planes = [(plane, *plane_axes(plane)[:3]) for plane in ("coronal", "axial", "sagittal")]
    mm = np.array(volume.array.shape) * volume.spacing
    width = [mm[column] for _, _, _, column in planes]
    tallest = max(mm[row] for _, _, row, _ in planes)
    height = min(4.4, (WIDTH - 1.2) * tallest / sum(width)) + 0.5
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, height), width_ratios=width)
    limits = _limits([volume.array], window, None, None)
    for ax, (plane, number, row, column) in zip(axes, planes, strict=True):
        image = slices_of(volume, plane)[at[number]]
        shown = _show(ax, image, f"{plane} {at[number]}", limits, plane, volume.spacing[row] / volume.spacing[column])
    _bar(fig, shown, list(axes), volume.unit, extend=_extend([volume.array], limits))
    if title:
        fig.suptitle(title)
    return fig


@styled
def montage(volume: Volume, plane: str = "coronal", count: int = 12, columns: int = 6, window: Window | None = None) -> Figure:
    """`count` slices of a volume at equal distances from the first to the last, numbered by their array index."""
    number, row, column, _ = plane_axes(plane)
    stack = slices_of(volume, plane)
    picked = np.unique(np.linspace(0, len(stack) - 1, min(count, len(stack))).round().astype(int))
    limits = _limits([volume.array], window, None, None)
    aspect = volume.spacing[row] / volume.spacing[column]
    fig, axes = panels(len(picked), columns, stack.shape[1:], aspect, extra=0.28)
    for place, (ax, index) in enumerate(zip(axes, picked, strict=True)):
        shown = _show(ax, stack[index], f"{index}", limits, plane if place == 0 else None, aspect)
    _bar(fig, shown, axes, volume.unit, extend=_extend([volume.array], limits))
    return fig


@styled
def joint_histogram(
    first: Any, second: Any, names: tuple[str, str] = ("MR / %", "CT / HU"), windows: tuple[Window, Window] | None = None, bins: int = 64,
    title: str = "",
) -> Figure:  # fmt: skip
    """How often each pair of values occurs at the same place, on a logarithmic colour scale; images or volumes of one shape.

    second: one, or {title: one} for panels side by side in one colour scale.
    """
    others = dict(second) if isinstance(second, Mapping) else {title: second}
    one, *rest = (np.asarray(v.detach().cpu() if hasattr(v, "detach") else v, float) for v in (first, *others.values()))
    if wrong := [v.shape for v in rest if v.shape != one.shape]:
        raise InputError(f"joint histogram: shapes {one.shape} and {wrong[0]}; expected one shape. Reslice them onto one grid")
    ranges = [_limits(v, w, None, None) for v, w in zip(([one], rest), windows or (None, None), strict=True)]
    tables = [np.histogram2d(*(np.clip(v.ravel(), *r) for v, r in zip((one, v), ranges, strict=True)), bins, ranges) for v in rest]
    size = (5.2, 4.2) if len(rest) == 1 else (WIDTH, 0.9 + (WIDTH - 1.2) / len(rest))
    fig, axes = plt.subplots(1, len(rest), squeeze=False, sharex=True, sharey=True, figsize=size)
    cmap = plt.get_cmap("viridis").with_extremes(bad="white")
    norm = colors.LogNorm(vmin=1, vmax=max(2, *(counts.max() for counts, _, _ in tables)))
    for ax, name, (counts, x, y) in zip(axes[0], others, tables, strict=True):
        shown = ax.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0), norm=norm, cmap=cmap, rasterized=True)
        ax.set(xlabel=names[0], title=name)
    axes[0, 0].set_ylabel(names[1])
    _bar(fig, shown, list(axes[0]), "pixels")
    return fig


@styled
def window_view(image: Any, window: Window, plane: str | None = "axial", aspect: float = 1.0) -> Figure:
    """An image through a window, and the histogram of its values with the window as a pale band: what lies outside is cut."""
    found = as_image(image)
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.9), width_ratios=(1, 1.1))
    shown = _show(left, found, f"level {(window.low + window.high) / 2:g}, width {window.high - window.low:g}", (window.low, window.high),
                  plane, aspect)  # fmt: skip
    _bar(fig, shown, left, window.unit, extend=_extend([found], (window.low, window.high)))
    values = found[np.isfinite(found)]
    right.axvspan(window.low, window.high, color="#e3e3e3")
    right.hist(values, bins=120, color=COLOURS[0], log=True)
    cut = float(np.mean((values < window.low) | (values > window.high)))
    right.set(xlabel=window.unit, ylabel="pixels", title=f"cut to black or white: {cut:.0%} of the pixels")
    return fig


@styled
def contrast_view(image: Any, signals: Mapping[str, float], title: str = "", plane: str | None = "coronal", aspect: float = 1.0) -> Figure:
    """A simulated image beside the signal of each tissue in it as bars, the brightest on top."""
    found = as_image(image)
    order = sorted(signals, key=signals.__getitem__)
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.9), width_ratios=(1.1, 1))
    shown = _show(left, found, title, (0.0, max(float(np.nanmax(found)), 1e-9)), plane, aspect)
    _bar(fig, shown, left, "signal / a.u.")
    right.barh([name.replace("_", " ") for name in order], [signals[name] for name in order], color=COLOURS[0])
    right.set_xlabel("signal / a.u.")
    right.grid(axis="x")
    return fig


@styled
def numbered_images(
    images: Mapping[str, Any], window: Window | None = None, columns: int = 4, digits: str = "g", cmap: str = "gray"
) -> Figure:
    """Tiny images with the value of each pixel written into it, to be followed by hand; one grey scale for all.

    window: what is black and what is white, else the least and the largest value of all; digits: how a value is written.
    """
    found = _images(images, same=False)
    fig, axes = panels(len(found), columns, max((image.shape for image in found.values()), key=lambda s: s[0] / s[1]))
    low, high = _limits(list(found.values()), window, None, None)
    for ax, (title, image) in zip(axes, found.items(), strict=True):
        _show(ax, image, title, (low, high), cmap=cmap)
        for (row, column), value in np.ndenumerate(image):
            colour = "black" if (value - low) / (high - low) > 0.5 else "white"
            ax.text(column, row, format(value, digits), ha="center", va="center", color=colour, fontsize=8.5)
    return fig


@styled
def channel_rows(
    rows: Mapping[str, tuple[Any, Any, Any]], synthetic: Mapping[str, str], names: Mapping[int, str], plane: str | None = "coronal",
    windows: tuple[Window, Window] = (MR_WINDOW, CT_WINDOW),
) -> Figure:  # fmt: skip
    """What a two-channel U-Net reads and what it gives: MR | CT | labels, a row for each of {title: (MR, CT, labels or None)}.

    synthetic: {title: "MR" or "CT"}, the channel that a translator made; it has an orange frame, and the labels lie on the other.
    """
    if not rows or set(synthetic) != set(rows) or set(synthetic.values()) - {"MR", "CT"}:
        raise InputError(f'synthetic: {dict(synthetic)}; expected "MR" or "CT" for each of {list(rows)}')
    colour = label_colours(names)
    fig, axes = plt.subplots(len(rows), 3, squeeze=False, figsize=(WIDTH * 0.8, 2.35 * len(rows) + 0.2))
    for line, (title, (mr, ct, labels)) in zip(axes, rows.items(), strict=True):
        images = dict(zip(("MR", "CT"), _images({"MR": mr, "CT": ct}).values(), strict=True))
        limits = {name: (window.low, window.high) for name, window in zip(images, windows, strict=True)}
        for ax, (name, image) in zip(line, images.items(), strict=False):
            made = synthetic[title] == name
            _show(ax, image, f"{'synthetic' if made else 'real'} {name}", limits[name], plane)
            if made:
                ax.add_patch(patches.Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False, edgecolor=COLOURS[1], linewidth=5))
        base = "CT" if synthetic[title] == "MR" else "MR"
        _show(line[2], images[base], "labels: none" if labels is None else f"labels on the {base}", limits[base], plane)
        if labels is not None:
            _paint(line[2], as_image(labels, "labels"), colour, 0.55, 0.9, False, 1.0)
        line[0].text(-0.06, 0.5, title, transform=line[0].transAxes, rotation=90, ha="right", va="center", fontsize=11, fontweight="bold")
    return fig
