"""Curves, bars, boxes and histograms: tables in, a matplotlib figure out; and the style that they share with the pictures of `figures`.

Notebooks take all of them from `figures`. Every function raises InputError when what it is given does not fit together.
"""

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colors, patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import Window

WIDTH = 9.0  # inches: 900 pixels at 100 dots an inch, the width of a notebook's column
# Okabe and Ito's colours, told apart by colour-blind readers too; black and grey are left for the image
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
# The 22 structures of the hip in their order, found by annealing over a grid of colours: any two differ by 12 in CIEDE2000 (to green-blind
# eyes by 8), neighbours in the body by 18 even when laid over the grey of muscle, and none vanishes in that grey.
STRUCTURE_COLOURS = (
    "#0072b2", "#e69f00", "#db9292", "#00ffb6", "#49926d", "#24ffff", "#b6246d", "#ff2492", "#dbdb92", "#ffb6db", "#ff0000",
    "#00b6b6", "#246d00", "#db00b6", "#b624ff", "#009200", "#ff926d", "#ffdb24", "#00dbff", "#0049db", "#db6dff", "#006d6d",
)  # fmt: skip


def style() -> dict[str, Any]:
    """The matplotlib settings of every figure here; `with plt.rc_context(figures.style()):` gives them to a notebook's own plot."""
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


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A drawing that sees `style()`, leaves the global settings alone, and leaves no empty figure behind when it fails."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        before = set(plt.get_fignums())
        with plt.rc_context(style()):
            try:
                return draw(*args, **kwargs)
            except Exception:
                for number in set(plt.get_fignums()) - before:  # no empty frame stays behind in the notebook
                    plt.close(number)
                raise

    return wrapper


def palette(count: int) -> list[tuple[float, float, float]]:
    """`count` colours: Okabe and Ito's up to seven, else those of `STRUCTURE_COLOURS`, then the same paler.

    >>> len({tuple(c) for c in palette(28)})
    28
    """
    chosen = COLOURS if count <= len(COLOURS) else STRUCTURE_COLOURS
    paler = [0.6 * (number // len(chosen)) / (1 + (count - 1) // len(chosen)) for number in range(count)]
    return [tuple((1 - p) * v + p for v in colors.to_rgb(chosen[number % len(chosen)])) for number, p in enumerate(paler)]


def label_colours(names: Mapping[int, str]) -> dict[int, tuple[float, float, float]]:
    """A colour for each label value but 0, the background; it depends on the names alone and not on what a picture shows."""
    values = sorted(int(v) for v in names if int(v) != 0)
    return dict(zip(values, palette(len(values)), strict=True))


def panels(count: int, columns: int, shape: tuple[int, int], aspect: float = 1.0, extra: float = 0.35) -> tuple[Figure, list[Axes]]:
    """A figure of `count` axes in rows of `columns`, as large as images of that shape and pixel aspect need in a notebook's width."""
    columns = min(columns, count)
    rows = -(-count // columns)
    cell = min((WIDTH - 0.8) / columns, 4.2)
    height = cell * aspect * shape[0] / shape[1]
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(min(WIDTH, cell * columns + 0.9), rows * (min(height, 5.5) + extra)))
    for ax in axes.flat[count:]:
        ax.remove()
    return fig, list(axes.flat[:count])


@styled
def training_curves(
    logs: Sequence[Mapping[str, float]] | Mapping[str, Sequence[Mapping[str, float]]],
    terms: Sequence[str] | None = None,
    smooth: float = 0.05,
    columns: int = 3,
) -> Figure:
    """Every term of a log over steps, one panel a term, one colour a run: the raw values pale, their running mean strong.

    logs: the lines of one run (`training.read_log`) or {name: lines}. terms: which; all but step, seconds, learning rate unless told.
    smooth: width of the running mean as a share of the run.
    """
    runs = logs if isinstance(logs, Mapping) else {"": logs}
    tables = {name: pd.DataFrame(list(lines)) for name, lines in runs.items()}
    if not tables or any(table.empty or "step" not in table for table in tables.values()):
        raise InputError('logs: empty or without "step"; expected the lines of read_log. Train first')
    known = dict.fromkeys(c for table in tables.values() for c in table.select_dtypes("number").columns)
    terms = list(terms or [name for name in known if name not in ("step", "seconds", "learning_rate")])
    if unknown := [term for term in terms if term not in known]:
        raise InputError(f"terms: {unknown}; expected some of {list(known)}")
    fig, axes = panels(len(terms), columns, (78, 100), extra=0.1)
    fig.set_figwidth(WIDTH if len(terms) > 1 else 5)
    for ax, term in zip(axes, terms, strict=True):
        for number, (name, table) in enumerate(tables.items()):
            if term not in table:
                continue
            lines = table[["step", term]].dropna()
            colour = palette(len(tables))[number]
            mean = lines[term].rolling(max(1, round(smooth * len(lines))), center=True, min_periods=1).mean()
            ax.plot(lines["step"], lines[term], color=colour, alpha=0.25, linewidth=0.8)
            ax.plot(lines["step"], mean, color=colour, label=name)
        ax.set_title(term.replace("_", " "))
        ax.grid(axis="y")
        ax.set_xlabel("step")
    if len(tables) > 1:
        handles = [patches.Patch(color=c, label=n) for n, c in zip(tables, palette(len(tables)), strict=True)]
        fig.legend(handles=handles, loc="outside upper center", ncols=min(len(tables), 5))
    return fig


@styled
def box_comparison(
    records: pd.DataFrame, by: str, value: str, pair: str | None = None, paper: Mapping[str, float] | None = None,
    label: str | None = None, title: str = "",
) -> Figure:  # fmt: skip
    """A box a group with every point on it; points of one `pair` (a seed, a patient) are joined; a diamond marks the paper's printed value.

    records: long table with the columns `by`, `value` and, if asked, `pair`; groups in the order in which they appear.
    """
    _columns(records, [by, value] + ([pair] if pair else []))
    groups = list(dict.fromkeys(records[by]))
    values = [records.loc[records[by] == group, value].dropna().to_numpy(float) for group in groups]
    fig, ax = plt.subplots(figsize=(min(WIDTH, 2.2 + 1.35 * len(groups)), 3.8))
    ax.boxplot(values, widths=0.5, showfliers=False, medianprops={"color": "#222222"}, boxprops={"color": "#888888"},
               whiskerprops={"color": "#888888"}, capprops={"color": "#888888"})  # fmt: skip
    if pair:
        wide = records.pivot_table(index=pair, columns=by, values=value, aggfunc="mean", observed=True).reindex(columns=groups)
        for row in wide.to_numpy(float):
            ax.plot(range(1, len(groups) + 1), row, color="#999999", linewidth=0.8, alpha=0.7, zorder=1)
    for place, (found, colour) in enumerate(zip(values, palette(len(groups)), strict=True), start=1):
        spread = np.zeros(len(found)) if pair else np.linspace(-0.12, 0.12, len(found)) if len(found) > 1 else np.zeros(1)
        ax.scatter(place + spread, found, color=colour, s=24, edgecolor="white", linewidth=0.5, zorder=3)
    printed = [(groups.index(group) + 1.34, number) for group, number in (paper or {}).items() if group in groups]
    if printed:
        x, y = zip(*printed, strict=True)
        ax.scatter(x, y, marker="D", s=36, facecolor="white", edgecolor="#222222", zorder=4, label="printed in the paper")
        ax.legend(loc="best")
    ax.set_xticks(range(1, len(groups) + 1), [str(group) for group in groups])
    ax.set(ylabel=label or value, title=title, xlim=(0.4, len(groups) + 0.6))
    ax.grid(axis="y")
    return fig


def _columns(table: pd.DataFrame, needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in table]:
        raise InputError(f"records: no column {', '.join(missing)}; expected them among {', '.join(map(str, table.columns))}")
    if table.empty:
        raise InputError("records: no row; expected at least one")


@styled
def bar_table(
    means: pd.DataFrame, sds: pd.DataFrame | None = None, paper: pd.DataFrame | None = None, label: str = "", title: str = ""
) -> Figure:
    """A table as bars: its rows are groups, its columns the bars in each; error lines are SDs, diamonds the paper's printed values.

    sds, paper: tables with the same row and column names, or some of them.
    """
    if means.empty:
        raise InputError("means: an empty table; expected at least one number")
    fig, ax = plt.subplots(figsize=(min(WIDTH, 3.2 + 0.45 * means.size), 3.6))
    width = 0.8 / len(means.columns)
    for number, (name, colour) in enumerate(zip(means.columns, palette(len(means.columns)), strict=True)):
        places = np.arange(len(means)) + (number - (len(means.columns) - 1) / 2) * width
        sd = None if sds is None else sds.reindex(index=means.index, columns=means.columns)[name].to_numpy(float)
        ax.bar(places, means[name].to_numpy(float), width * 0.92, yerr=sd, color=colour, label=str(name), ecolor="#444444", capsize=2)
        if paper is not None:
            printed = paper.reindex(index=means.index, columns=means.columns)[name].to_numpy(float)
            ax.scatter(places, printed, marker="D", s=32, facecolor="white", edgecolor="#222222", zorder=4)
    if paper is not None:
        ax.scatter([], [], marker="D", s=32, facecolor="white", edgecolor="#222222", label="printed in the paper")
    ax.set_xticks(
        range(len(means)), ["\n".join(map(str, row)) if isinstance(row, tuple) else textwrap.fill(str(row), 14) for row in means.index]
    )
    ax.set(ylabel=label, title=title)
    ax.grid(axis="y")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


@styled
def dice_bars(
    scores: pd.DataFrame | Mapping[str, pd.DataFrame], paper: Mapping[str, tuple[float, float]] | None = None, title: str = ""
) -> Figure:
    """Dice of every structure, mean and SD over patients, as horizontal bars; a diamond with its SD for the paper's structures.

    scores: patients in rows, structures in columns (`metrics.dice_table`), or {method: table}; NaN is left out of the mean.
    """
    tables = scores if isinstance(scores, Mapping) else {"": scores}
    if not tables or any(table.empty for table in tables.values()):
        raise InputError("scores: an empty table; expected patients in rows and structures in columns")
    structures = list(dict.fromkeys(s for table in tables.values() for s in table.columns))
    fig, ax = plt.subplots(figsize=(WIDTH * 0.8, 1.0 + len(structures) * (0.12 + 0.09 * len(tables))))
    height = 0.8 / len(tables)
    for number, ((name, table), colour) in enumerate(zip(tables.items(), palette(len(tables)), strict=True)):
        table = table.reindex(columns=structures)
        places = np.arange(len(structures)) + (number - (len(tables) - 1) / 2) * height
        sd = table.std(ddof=1).fillna(0.0).to_numpy()
        ax.barh(places, table.mean().fillna(0.0), height * 0.9, xerr=sd, color=colour, label=name, ecolor="#444444", capsize=1.5)
    printed = [(structures.index(name), *value) for name, value in (paper or {}).items() if name in structures]
    for number, (place, mean, sd) in enumerate(printed):
        ax.errorbar(mean, place, xerr=sd, fmt="D", markersize=5, color="#222222", markerfacecolor="white", capsize=3, zorder=5,
                    label="printed in the paper" if number == 0 else None)  # fmt: skip
    ax.set_yticks(range(len(structures)), [str(s).replace("_", " ") for s in structures])
    ax.set(xlim=(0, 1), ylim=(len(structures) - 0.5, -0.5), xlabel="Dice", title=title)
    ax.grid(axis="x")
    if len(tables) > 1 or printed:
        fig.legend(loc="outside right upper")
    return fig


@styled
def landscape(
    positions: Sequence[float], curves: Mapping[str, Any], xlabel: str = "shift / pixels", marker: float | None = 0.0, columns: int = 4
) -> Figure:
    """Loss against misalignment, one panel each because their units differ; curves: {panel: values} or {panel: {line: values}}.

    The dotted line stands at `marker`, the right place; the dot on each curve is its least value in the plot.
    """
    if not curves:
        raise InputError("curves: none; expected at least one. Give {name: values}")
    fig, axes = panels(len(curves), columns, (85, 100), extra=0.1)
    names = {tuple(lines) if isinstance(lines, Mapping) else ("",) for lines in curves.values()}
    shared = len(curves) > 1 and len(names) == 1 and len(next(iter(names))) > 1  # the same lines everywhere: one legend above all
    for ax, (title, lines) in zip(axes, curves.items(), strict=True):
        draw_curves(ax, positions, lines if isinstance(lines, Mapping) else {"": lines}, title, marker, legend=not shared)
        ax.set_xlabel(xlabel)
    if shared:
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return fig


def draw_curves(
    ax: Axes, positions: Sequence[float], lines: Mapping[str, Any], title: str, marker: float | None, legend: bool = True
) -> None:
    """Lines over positions with a dot on the least value of each; a dotted line at `marker`. All but the first line are dashed, so that
    one can see through them where lines coincide."""
    places = np.asarray(positions, float)
    for number, ((name, values), colour) in enumerate(zip(lines.items(), palette(len(lines)), strict=True)):
        values = np.asarray(values, float)
        if values.shape != places.shape:
            raise InputError(f"{name or title}: {values.shape} values for {places.shape} positions; expected one for each")
        ax.plot(places, values, "--" if number else "-", color=colour, label=name)
        if np.isfinite(values).any():
            ax.plot(places[np.nanargmin(values)], np.nanmin(values), "o", color=colour, markersize=4 if number else 7)
    if marker is not None:
        ax.axvline(marker, color="#777777", linestyle=":", linewidth=1)
    if len(lines) > 1 and legend:
        ax.legend(loc="best")
    ax.set_title(title)
    ax.grid(axis="y")


@styled
def tissue_histogram(
    values: Mapping[str, Any], unit: str = "HU", window: Window | None = None, limits: tuple[float, float] | None = None, bins: int = 80
) -> Figure:
    """How often each value occurs, one outline a tissue on one axis, each of area 1; the window is the pale band.

    values: {tissue: values of any shape}; limits: ends of the axis, the 0.1 and 99.9 percentiles of all unless told.
    """
    found = {name: np.asarray(v, float).ravel() for name, v in values.items()}
    found = {name: v[np.isfinite(v)] for name, v in found.items() if np.isfinite(v).any()}
    if not found:
        raise InputError("values: none; expected at least one finite value of a tissue")
    low, high = limits or np.percentile(np.concatenate(list(found.values())), (0.1, 99.9))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    fig, ax = plt.subplots(figsize=(WIDTH * 0.8, 3.4))
    if window:
        ax.axvspan(window.low, window.high, color="#eeeeee", label=f"window [{window.low:g}, {window.high:g}]")
    for (name, v), colour in zip(found.items(), palette(len(found)), strict=True):
        counts = np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / v.size / np.diff(edges)
        ax.stairs(counts, edges, color=colour, linewidth=1.6, label=f"{name.replace('_', ' ')} (mean {v.mean():.3g})")
        ax.stairs(counts, edges, color=colour, alpha=0.15, fill=True)
    ax.set(xlabel=unit, ylabel="density", xlim=(edges[0], edges[-1]))
    ax.set_yticks([])
    fig.legend(loc="outside right upper")
    return fig


@styled
def block_shapes(shapes: Mapping[str, tuple[int, int, int]], title: str = "") -> Figure:
    """A network as a row of boxes: height as the images' side, width as the number of channels; shapes: {block: (channels, h, w)}."""
    if not shapes:
        raise InputError("shapes: none; expected at least one. Give {block: (channels, height, width)}")
    fig, ax = plt.subplots(figsize=(WIDTH, 3.4))
    tallest, widest = max(h for _, h, _ in shapes.values()), max(c for c, _, _ in shapes.values())
    for place, (name, (channels, height, width)) in enumerate(shapes.items()):
        box = (0.12 + 0.68 * channels / widest, height / tallest)
        ax.add_patch(patches.Rectangle((place - box[0] / 2, -box[1] / 2), *box, facecolor=COLOURS[0], alpha=0.35, edgecolor=COLOURS[0]))
        ax.text(place, 0, f"{channels}", ha="center", va="center", fontweight="bold")
        ax.text(place, 0.53, f"{height} x {width}", ha="center", va="bottom", fontsize=9)
        ax.text(place, -0.55, textwrap.fill(name, 12), ha="center", va="top", fontsize=9)
    ax.set(xlim=(-0.6, len(shapes) - 0.4), ylim=(-0.85, 0.65), title=title)
    ax.set_axis_off()
    return fig


@styled
def dice_boxes(
    scores: Mapping[str, pd.DataFrame], structures: Sequence[str], paper: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    label: str = "Dice", title: str = "",
) -> Figure:  # fmt: skip
    """A box a method for each structure, with a point a patient; a diamond with its SD is what the paper printed for that method.

    scores: {method: patients in rows, structures in columns}; paper: {method: {structure: (mean, SD)}}.
    """
    if missing := [f"{s} of {method}" for method, table in scores.items() for s in structures if s not in table]:
        raise InputError(f"scores: no {', '.join(missing)}; expected all of {', '.join(structures)}")
    fig, ax = plt.subplots(figsize=(WIDTH, 4.0))
    width, lines = 0.8 / len(scores), {"color": "#888888"}
    diamond = {"fmt": "D", "markersize": 5, "color": "#222222", "markerfacecolor": "white", "capsize": 2, "zorder": 5}
    for number, ((method, table), colour) in enumerate(zip(scores.items(), palette(len(scores)), strict=True)):
        for place, structure in enumerate(structures):
            at, values = place + (number - (len(scores) - 1) / 2) * width, table[structure].dropna().to_numpy(float)
            ax.boxplot([values], positions=[at], widths=width * 0.7, showfliers=False, medianprops={"color": "#222222"}, boxprops=lines,
                       whiskerprops=lines, capprops=lines)  # fmt: skip
            spread = at + np.linspace(-0.2, 0.2, len(values)) * width
            ax.scatter(spread, values, color=colour, s=14, edgecolor="white", linewidth=0.4, zorder=3)
            if structure in (paper or {}).get(method, {}):
                mean, sd = paper[method][structure]
                ax.errorbar(at + 0.4 * width, mean, yerr=sd, **diamond)
        ax.scatter([], [], color=colour, label=method)
    if paper:
        ax.errorbar([], [], yerr=[], **diamond, label="printed in the paper")
    ax.set_xticks(range(len(structures)), [s.replace("_", " ") for s in structures])
    ax.set(ylabel=label, title=title, xlim=(-0.5, len(structures) - 0.5))
    ax.grid(axis="y")
    fig.legend(loc="outside upper center", ncols=min(5, len(scores) + 1))
    return fig
