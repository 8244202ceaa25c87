"""Curves, bars, boxes and histograms: tables in, a matplotlib figure out, in the style of `drawing`.

Every function raises InputError when what it is given does not fit together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mr2ct_lib.course import alt_text
from mr2ct_lib.course.drawing import WIDTH, palette, panels, styled
from mr2ct_lib.files import InputError
from mr2ct_lib.measures.statistics import check_columns

GREY_BOXES = {"showfliers": False, "medianprops": {"color": "#222222"}} | dict.fromkeys(
    ("boxprops", "whiskerprops", "capprops"), {"color": "#888888"}
)


@styled
def training_curves(
    logs: Sequence[Mapping[str, float]] | Mapping[str, Sequence[Mapping[str, float]]],
    terms: Sequence[str] | None = None,
    smooth: float = 0.05,
    columns: int = 3,
) -> Figure:
    """Show the terms of a log over steps: one panel per term, one colour per run, raw values pale, running mean strong.

    Args:
        logs: the lines of one run (`runs.read_log`) or {name: lines}.
        terms: which terms; by default all but step, seconds and learning rate.
        smooth: the width of the running mean as a share of the run.
    """
    runs = logs if isinstance(logs, Mapping) else {"": logs}
    tables = {name: pd.DataFrame(list(lines)) for name, lines in runs.items()}
    if not tables or any(table.empty or "step" not in table for table in tables.values()):
        raise InputError('logs: empty or without "step"; expected the lines of read_log. Train first')
    known = dict.fromkeys(c for table in tables.values() for c in table.select_dtypes("number").columns)
    terms = list(terms or [name for name in known if name not in ("step", "seconds", "learning_rate")])
    if not terms or (unknown := [term for term in terms if term not in known]):
        raise InputError(f"terms: {unknown if terms else 'none'}; expected some of {list(known)}")
    fig, axes = panels(len(terms), columns, (78, 100), extra=0.1)
    fig.set_figwidth(WIDTH if len(terms) > 1 else 5)
    for place, (ax, term) in enumerate(zip(axes, terms, strict=True)):
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
        ax.set(xlabel="step", ylabel="" if place % columns else "loss")
    if len(tables) > 1:
        handles = [patches.Patch(color=c, label=n) for n, c in zip(tables, palette(len(tables)), strict=True)]
        fig.legend(handles=handles, loc="outside upper center", ncols=min(len(tables), 5))
    return alt_text.describe(fig, alt_text.courses(tables, terms))


@styled
def box_comparison(
    records: pd.DataFrame,
    by: str,
    value: str,
    pair: str | None = None,
    label: str | None = None,
    title: str = "",
) -> Figure:
    """Show one box per group with all its points, those of one pair joined.

    Args:
        records: a long table with the columns `by`, `value` and, on demand, `pair`; groups keep their order.
        pair: a column such as seed or patient.
    """
    check_columns(records, [by, value] + ([pair] if pair else []))
    groups = list(dict.fromkeys(records[by]))
    values = [records.loc[records[by] == group, value].dropna().to_numpy(float) for group in groups]
    fig, ax = plt.subplots(figsize=(min(WIDTH, 2.2 + 1.35 * len(groups)), 3.8))
    ax.boxplot(values, widths=0.5, **GREY_BOXES)
    if pair:
        wide = records.pivot_table(index=pair, columns=by, values=value, aggfunc="mean", observed=True)
        for row in wide.reindex(columns=groups).to_numpy(float):
            ax.plot(range(1, len(groups) + 1), row, color="#999999", linewidth=0.8, alpha=0.7, zorder=1)
    for place, (points, colour) in enumerate(zip(values, palette(len(groups)), strict=True), start=1):
        spread = np.zeros(len(points)) if pair or len(points) == 1 else np.linspace(-0.12, 0.12, len(points))
        ax.scatter(place + spread, points, color=colour, s=24, edgecolor="white", linewidth=0.5, zorder=3)
    ax.set_xticks(range(1, len(groups) + 1), [str(group) for group in groups])
    ax.set(ylabel=label or value, title=title, xlim=(0.4, len(groups) + 0.6))
    ax.grid(axis="y")
    told = alt_text.grouped(dict(zip(groups, values, strict=True)), label or value)
    return alt_text.describe(fig, f"{title} {told}")


@styled
def dice_bars(
    scores: pd.DataFrame | Mapping[str, pd.DataFrame],
    paper: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Show mean and SD of Dice over patients for every structure as horizontal bars; diamonds are the paper's values.

    Args:
        scores: patients in rows and structures in columns, or {method: table}; NaN is left out of the mean.
        paper: {structure: (mean, SD)}.
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
        sd = table.std(ddof=1).to_numpy()
        ax.barh(
            places,
            table.mean(),
            height * 0.9,
            xerr=sd,
            color=colour,
            label=name,
            ecolor="#444444",
            capsize=1.5,
        )
    printed = [(structures.index(name), *value) for name, value in (paper or {}).items() if name in structures]
    for number, (place, mean, sd) in enumerate(printed):
        ax.errorbar(
            mean,
            place,
            xerr=sd,
            fmt="D",
            markersize=5,
            color="#222222",
            markerfacecolor="white",
            capsize=3,
            zorder=5,
            label="printed in the paper" if number == 0 else None,
        )
    ax.set_yticks(range(len(structures)), [str(s).replace("_", " ") for s in structures])
    ax.set(xlim=(0, 1), ylim=(len(structures) - 0.5, -0.5), xlabel="Dice")
    ax.grid(axis="x")
    if len(tables) > 1 or printed:
        fig.legend(loc="outside right upper")
    return alt_text.describe(
        fig, alt_text.tables(tables, "Dice", {structures[place]: mean for place, mean, _ in printed})
    )


@styled
def landscape(
    positions: Sequence[float],
    curves: Mapping[str, Any],
    xlabel: str = "shift / pixels",
    marker: float | None = 0.0,
    columns: int = 4,
    ylabel: str = "loss",
) -> Figure:
    """Show losses against misalignment, one panel per loss since units differ.

    The dotted line at `marker` is the right place; the dot on each curve is its minimum.

    curves: {panel: values} or {panel: {line: values}}.
    """
    if not curves:
        raise InputError("curves: none; expected at least one. Give {name: values}")
    fig, axes = panels(len(curves), columns, (85, 100), extra=0.1)
    lines_of = {title: lines if isinstance(lines, Mapping) else {"": lines} for title, lines in curves.items()}
    names = {tuple(lines) for lines in lines_of.values()}
    shared = len(curves) > 1 and len(names) == 1 and len(*names) > 1  # the same lines everywhere: one legend above all
    for place, (ax, (title, lines)) in enumerate(zip(axes, lines_of.items(), strict=True)):
        draw_curves(ax, positions, lines, title, marker, legend=not shared)
        ax.set(xlabel=xlabel, ylabel="" if place % columns else ylabel)
    if shared:
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return fig


def draw_curves(
    ax: Axes,
    positions: Sequence[float],
    lines: Mapping[str, Any],
    title: str,
    marker: float | None,
    legend: bool = True,
) -> None:
    """Draw lines over positions, with a dot on the minimum of each and a dotted line at `marker`.

    All lines but the first are dashed, so that lines that coincide can be told apart.
    """
    places = np.asarray(positions, float)
    for number, ((name, values), colour) in enumerate(zip(lines.items(), palette(len(lines)), strict=True)):
        values = np.asarray(values, float)
        if values.shape != places.shape:
            found = f"{values.shape} values for {places.shape} positions"
            raise InputError(f"{name or title}: {found}; expected one for each")
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
def tissue_histogram(values: Mapping[str, Any], unit: str = "HU") -> Figure:
    """Show how often each value occurs: one outline per tissue on one axis, each of area 1.

    The axis runs from the 0.1 to the 99.9 percentile of all values; values beyond it count in the first or last bin.

    values: {tissue: values of any shape}.
    """
    points = {name: np.asarray(v, float).ravel() for name, v in values.items()}
    points = {name: v[np.isfinite(v)] for name, v in points.items() if np.isfinite(v).any()}
    if not points:
        raise InputError("values: none; expected at least one finite value of a tissue")
    low, high = np.percentile(np.concatenate(list(points.values())), (0.1, 99.9))
    edges = np.linspace(low, high if high > low else low + 1, 81)
    fig, ax = plt.subplots(figsize=(WIDTH * 0.8, 3.4))
    for (name, v), colour in zip(points.items(), palette(len(points)), strict=True):
        counts = np.histogram(np.clip(v, edges[0], edges[-1]), edges)[0] / v.size / np.diff(edges)
        ax.stairs(counts, edges, color=colour, linewidth=1.6, label=f"{name.replace('_', ' ')} (mean {v.mean():.3g})")
        ax.stairs(counts, edges, color=colour, alpha=0.15, fill=True)
    ax.set(xlabel=unit, ylabel="density (area 1)", xlim=(edges[0], edges[-1]))
    ax.set_yticks([])
    fig.legend(loc="outside right upper")
    return alt_text.describe(fig, f"Histograms of {len(points)} groups. {alt_text.grouped(points, unit)}")


@styled
def dice_boxes(
    scores: Mapping[str, pd.DataFrame],
    structures: Sequence[str],
    paper: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Figure:
    """Show one box per method for each structure, with one point per patient; diamonds with SD are the paper's values.

    Args:
        scores: {method: patients in rows, structures in columns}.
        paper: {method: {structure: (mean, SD)}}.
    """
    if not scores or not structures:
        raise InputError("scores: no method or no structure; expected at least one of each")
    if missing := [f"{s} of {method}" for method, table in scores.items() for s in structures if s not in table]:
        raise InputError(f"scores: no {', '.join(missing)}; expected all of {', '.join(structures)}")
    fig, ax = plt.subplots(figsize=(WIDTH, 4.0))
    width = 0.8 / len(scores)
    diamond = {"fmt": "D", "markersize": 5, "color": "#222222", "markerfacecolor": "white", "capsize": 2, "zorder": 5}
    for number, ((method, table), colour) in enumerate(zip(scores.items(), palette(len(scores)), strict=True)):
        for place, structure in enumerate(structures):
            at, values = place + (number - (len(scores) - 1) / 2) * width, table[structure].dropna().to_numpy(float)
            ax.boxplot([values], positions=[at], widths=width * 0.7, **GREY_BOXES)
            spread = at + np.linspace(-0.2, 0.2, len(values)) * width
            ax.scatter(spread, values, color=colour, s=14, edgecolor="white", linewidth=0.4, zorder=3)
            if structure in (paper or {}).get(method, {}):
                mean, sd = paper[method][structure]
                ax.errorbar(at + 0.4 * width, mean, yerr=sd, **diamond)
        ax.scatter([], [], color=colour, label=method)
    if paper:
        ax.errorbar([], [], yerr=[], **diamond, label="printed in the paper")
    ax.set_xticks(range(len(structures)), [s.replace("_", " ") for s in structures])
    ax.set(ylabel="Dice", xlim=(-0.5, len(structures) - 0.5))
    ax.grid(axis="y")
    fig.legend(loc="outside upper center", ncols=min(5, len(scores) + 1))
    drawn = {method: row for method, row in (paper or {}).items() if method in scores}
    printed = {f"{method}, {s}": v[0] for method, row in drawn.items() for s, v in row.items() if s in structures}
    tables = {method: table[list(structures)] for method, table in scores.items()}
    return alt_text.describe(fig, alt_text.tables(tables, "Dice", printed))
