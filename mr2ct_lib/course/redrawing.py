"""Figures that a slider draws again and again: what has not changed is used a second time.

Making axes, colour bars and legends takes most of the time of a small figure. A drawing function that asks this module
for them gets new ones, or below a slider (`onto`) those of its last figure, emptied.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def redraw(fig: Figure, changed: Sequence[Artist], rest: Any = None) -> Any:
    """Draw the changed artists of a figure over the picture of the `rest`, which is made where it is not given, and
    return that picture. The figure keeps its layout."""
    if rest is None:
        FigureCanvasAgg(fig)  # a figure that pyplot has closed has lost its own
        fig.set_layout_engine("none")
        for artist in changed:
            artist.set_animated(True)
        fig.canvas.draw()
        rest = fig.canvas.copy_from_bbox(fig.bbox)
    fig.canvas.restore_region(rest)
    for artist in changed:
        fig.draw_artist(artist)
    return rest


_LAST: list[Figure | None] = []  # below a slider: the figure whose axes the next `subplots` may take


@contextmanager
def onto(fig: Figure | None) -> Iterator[None]:
    """Within, the first figure of the same panels and size is drawn into the emptied axes of `fig`: with a slider, most
    of the time goes into new axes and colour bars. The ends of all colour bars are pointed, whatever the values are."""
    _LAST[:] = [fig]
    try:
        yield
    finally:
        _LAST.clear()


def subplots(rows: int, columns: int, **settings: Any) -> tuple[Figure, np.ndarray]:
    """Return `plt.subplots`, always with axes (rows, columns), or within `onto` those of the last figure."""
    made = rows, columns, settings
    last = [fig for fig in _LAST if getattr(fig, "made", None) == made]
    _LAST[:] = [None] * len(_LAST)
    if not last:
        fig, axes = plt.subplots(rows, columns, squeeze=False, **settings)
        fig.made, fig.panels, fig.bars = made, axes, []
        return fig, axes
    fig = last[0]
    for ax in fig.panels.flat:
        for artist in [*ax.images, *ax.lines, *ax.texts, *ax.patches, *ax.collections, *ax.artists]:
            artist.remove()
        ax.relim()
        ax.autoscale(True)
    fig.last_legends = list(fig.legends)
    fig.legends.clear()
    fig.set_size_inches(settings["figsize"])
    fig.unused = list(fig.bars)  # colour bars that are not asked for yet, in their order
    return fig, fig.panels


def legend(fig: Figure, handles: Sequence[Artist], **settings: Any) -> None:
    """Add a legend to a figure, or within `onto` that of the last figure if it says the same."""
    told = [(handle.get_label(), handle.get_facecolor()) for handle in handles], settings
    same = [one for one in getattr(fig, "last_legends", ()) if one.told == told]
    fig.legends += same
    if not same:
        made = fig.legend(handles=handles, **settings)
        made.told, made.drawn = told, None


def draw_again(fig: Figure, style: Mapping[str, Any]) -> None:
    """Draw a figure that `subplots` gave a second time; colour bars and legends that are the same are copied."""
    FigureCanvasAgg(fig)  # a figure that pyplot has closed has lost its own
    fig.set_layout_engine("none")
    often = [(bar, bar.ax) for bar in fig.bars] + [(one, one) for one in fig.legends if hasattr(one, "told")]
    for _, artist in often:
        artist.set_animated(True)
    with plt.rc_context(style):  # ticks are made when they are drawn
        fig.canvas.draw()
        for owner, artist in often:
            if owner.drawn is None:
                fig.draw_artist(artist)
                owner.drawn = fig.canvas.copy_from_bbox(artist.get_tightbbox().padded(2))
            else:
                fig.canvas.restore_region(owner.drawn)


def colour_bar(fig: Figure, shown, axes, label: str, **settings) -> None:
    """Add a colour bar with this label to the axes."""
    told = label, shown.get_cmap().name, shown.get_clim()
    if _LAST and "extend" in settings:
        settings["extend"] = "both"
    if getattr(fig, "unused", None):  # of the last figure, see `subplots`
        bar = fig.unused.pop(0)
        if bar.told != told:
            bar.update_normal(shown)
            bar.set_label(label)
            bar.told, bar.drawn = told, None
        return
    bar = fig.colorbar(shown, ax=axes, label=label, **({"fraction": 0.05, "pad": 0.015, "aspect": 22} | settings))
    bar.outline.set_visible(False)  # its blends with the colours would not fit the palette of a stored picture
    bar.ax.tick_params(labelsize=9)
    bar.told, bar.drawn = told, None
    fig.__dict__.setdefault("bars", []).append(bar)
