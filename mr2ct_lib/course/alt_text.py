"""Alternative text: what a figure shows, in words, for readers who do not see it.

Every drawing function of the course says what it drew with `describe`; so does a notebook that draws by hand. A figure
that nobody described is read off its axes: panels, axis labels, where each line begins, ends and is lowest.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

LONGEST = 900  # characters; a screen reader speaks for a minute
MOST = 12  # panels, lines or bars that are read out; the others are counted
COLOUR_BAR = "<colorbar>"  # matplotlib's label of such axes


def describe(fig: Figure, text: str = "") -> Figure:
    """Give a figure its alternative text and return the figure; without a text, that of `read_off`.

    >>> describe(Figure(), "A straight line from 0 to 1.").alt
    'A straight line from 0 to 1.'
    """
    text = " ".join((text or read_off(fig)).split())
    fig.alt = text if len(text) <= LONGEST else text[: LONGEST - 4].rsplit(" ", 1)[0] + " ..."
    return fig


def alternative_text(fig: Figure) -> str:
    """Return the figure's alternative text: its own, or what `read_off` says."""
    return getattr(fig, "alt", "") or describe(fig).alt


def listed(items: Sequence[str]) -> str:
    """Join items by semicolons; after the first `MOST` of them only their number is given.

    >>> listed(["MR", "CT"])
    'MR; CT'
    """
    return "; ".join([*items[:MOST]] + [f"and {len(items) - MOST} more"] * (len(items) > MOST))


def numbers(values: Mapping[str, float]) -> str:
    """Name each value to three digits.

    >>> numbers({"muscle": 56.78, "fat": float("nan")})
    'muscle 56.8; fat no value'
    """
    return listed(
        [f"{name} {value:.3g}" if np.isfinite(value) else f"{name} no value" for name, value in values.items()]
    )


def images(titles: Sequence[str], plane: str | None, scale: str) -> str:
    """Describe images side by side: how many, of which plane, their titles and what is black and white.

    >>> images(["MR", "CT"], "axial", "Black is 0, white 100 %")
    '2 axial images, the patient seen from below: MR; CT. Black is 0, white 100 %.'
    """
    views = {"coronal": "from the front", "axial": "from below", "sagittal": "from the left"}
    count = f"{len(titles)} {plane or ''} images" if len(titles) > 1 else f"{plane or 'one'} image"
    seen = f", the patient seen {views[plane]}" if plane in views else ""
    named = listed([title.replace("\n", " ") for title in titles if title])
    return f"{' '.join(count.split())}{seen}{': ' if named else ''}{named}. {scale.rstrip('.')}."


def greys(scales: Mapping[str, tuple[float, float, str]]) -> str:
    """Say what is black and what is white, of all images or of each: {title or "": (black, white, unit)}.

    >>> greys({"CT": (-150, 350, "HU")})
    'CT: black is -150, white 350 HU'
    >>> greys({"": (-1, 1, "network's scale")})
    "Black is -1, white 1 (network's scale)"
    """
    found = []
    for title, (*ends, unit) in scales.items():
        black, white = (f"{end:.0f}" if abs(end) >= 100 else f"{end:.3g}" for end in ends)
        unit = f"({unit})" if " " in unit else unit
        found.append(f"{title}{': b' if title else 'B'}lack is {black}, white {white} {unit}".strip())
    return listed(found)


def errors(mae: Mapping[str, float], unit: str, limit: float) -> str:
    """Describe maps of errors, whose colours end at `limit`, by their mean absolute errors."""
    scale = f"blue where it is too low, red where too high, up to {limit:.3g} {unit}"
    return f" Error of each synthetic image, {scale}. Mean absolute error in {unit}: {numbers(mae)}."


def grouped(groups: Mapping[str, Sequence[float]], value: str) -> str:
    """Describe boxes or bars of several values: how many, their median and their range.

    >>> grouped({"GC": [4.0, 5.0, 9.0]}, "MAE / HU")
    'MAE / HU, median and range. GC: 5 (4 to 9, n = 3).'
    """
    found = {str(name): np.asarray(points, float) for name, points in groups.items()}
    found = {name: points[np.isfinite(points)] for name, points in found.items()}
    texts = [
        f"{name}: {np.median(v):.3g} ({v.min():.3g} to {v.max():.3g}, n = {v.size})" if v.size else f"{name}: none"
        for name, v in found.items()
    ]
    return f"{value}, median and range. {listed(texts)}."


def tables(scores: Mapping[str, pd.DataFrame], value: str, paper: Mapping[str, float] | None = None) -> str:
    """Describe the mean of each column of {method: table}, and the paper's numbers.

    >>> tables({"GC": pd.DataFrame({"femur": [0.8, 0.9]})}, "Dice")
    'Mean Dice of 2 patients. GC: femur 0.85.'
    """
    patients = max(len(table) for table in scores.values())
    texts = [f"{name}: ".lstrip(": ") + numbers(table.mean(numeric_only=True)) for name, table in scores.items()]
    printed = f" Printed in the paper: {numbers(paper)}." if paper else ""
    return f"Mean {value} of {patients} patients. {'. '.join(texts)}.{printed}".replace("_", " ")


def courses(logs: Mapping[str, pd.DataFrame], terms: Sequence[str]) -> str:
    """Describe how the terms of training logs run: the mean of the first and of the last tenth of the steps.

    >>> courses({"a": pd.DataFrame({"step": [1, 2], "gc": [0.5, 0.25]})}, ["gc"])
    'Losses over 2 steps, mean of the first and of the last tenth. gc: a 0.5 to 0.25.'
    """
    texts = []
    for term in terms:
        runs = {name: table[term].dropna() for name, table in logs.items() if term in table}
        tenths = {name: max(1, len(values) // 10) for name, values in runs.items()}
        ends = [f"{n} {v[: tenths[n]].mean():.3g} to {v[-tenths[n] :].mean():.3g}".strip() for n, v in runs.items()]
        texts.append(f"{term.replace('_', ' ')}: {', '.join(ends)}")
    steps = max(int(table["step"].max()) for table in logs.values())
    return f"Losses over {steps} steps, mean of the first and of the last tenth. {listed(texts)}."


def read_off(fig: Figure) -> str:
    """Return what the axes of a figure show: each panel with its title, its images, lines and bars."""
    panels = [ax for ax in fig.axes if ax.get_label() != COLOUR_BAR]
    bars = [ax.get_ylabel() or ax.get_xlabel() for ax in fig.axes if ax.get_label() == COLOUR_BAR]
    texts = [text for text in map(_panel, panels) if text]
    lead = [fig.get_suptitle() + "."] * bool(fig.get_suptitle())
    lead += [f"{len(panels)} panels."] * (len(panels) > 1)
    scale = [f"Colour scale: {listed(list(dict.fromkeys(filter(None, bars))))}."] * any(bars)
    return " ".join([*lead, *texts, *scale]) or "An empty figure."


def _panel(ax: Axes) -> str:
    """Describe one panel in a sentence."""
    what = [_line(line) for line in ax.lines if len(line.get_xdata()) > 2]
    for bars in (c for c in ax.containers if isinstance(c, BarContainer)):
        upright = bars.orientation != "horizontal"
        names = [label.get_text() for label in (ax.get_xticklabels() if upright else ax.get_yticklabels())]
        heights = [patch.get_height() if upright else patch.get_width() for patch in bars.patches]
        if len(names) == len(heights):
            name = "" if str(bars.get_label()).startswith("_") else f"{bars.get_label()}: "
            what.append(name + numbers(dict(zip(names, heights, strict=True))))
    if ax.images:
        low, high = ax.images[0].get_clim()
        what.insert(0, f"image from {low:.3g} to {high:.3g}")
    axes = f"{ax.get_ylabel()} against {ax.get_xlabel()}" if ax.get_ylabel() and ax.get_xlabel() else ax.get_xlabel()
    parts = [part.replace("\n", " ") for part in (ax.get_title(), axes) if part]
    return (", ".join(parts) + (": " if parts and what else "") + listed(what) + ".") if parts or what else ""


def _line(line) -> str:
    """Say where a line begins, ends and is lowest and highest."""
    x, y = (np.asarray(values, float) for values in line.get_data())
    name = "a line" if str(line.get_label()).startswith("_") else str(line.get_label())
    if not np.isfinite(y).any():
        return f"{name} without values"
    here = np.flatnonzero(np.isfinite(y))
    ends = f"{name} from {y[here[0]]:.3g} at {x[here[0]]:.3g} to {y[here[-1]]:.3g} at {x[here[-1]]:.3g}"
    low, high = int(np.nanargmin(y)), int(np.nanargmax(y))
    inner = [f"{word} {y[at]:.3g} at {x[at]:.3g}" for word, at in (("lowest", low), ("highest", high))
             if at not in (here[0], here[-1])]  # fmt: skip
    return ", ".join([ends, *inner])
