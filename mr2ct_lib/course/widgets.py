"""Explorables: a drawing with sliders, and the same drawing called with fixed values as its static twin.

A drawing is any function of a few numbers that returns a figure. In a notebook:

    view = widgets.window_explorer(hu)
    widgets.explore(view)                  # sliders, where there is a kernel
    view(level=40, width=400); plt.show()  # the twin: what the text below speaks of

`follow` draws the curves of a run that trains elsewhere.
"""

import functools
import inspect
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
from IPython import get_ipython
from IPython.display import display
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from scipy import ndimage

from mr2ct_lib.course import charts, drawing, figures, overlays, redrawing
from mr2ct_lib.files import InputError
from mr2ct_lib.images.intensity import Window
from mr2ct_lib.images.volumes import Volume, slices_of
from mr2ct_lib.methods.runs import read_log
from mr2ct_lib.patients import faults, physics, tissues

LABELS = {  # of sliders whose argument's name does not say it all
    "shift": "shift (pixels)", "rotation": "rotation (degrees)", "flexion": "flexion (degrees)",
    "abduction": "abduction (degrees)", "flip": "flip angle (degrees)", "level": "level (HU)", "width": "width (HU)",
    "tr": "TR (ms)", "te": "TE (ms)", "field": "field strength (T)", "fat": "fat (mm)", "muscle": "muscle (times)",
    "strength": "strength (times)", "contrast": "contrast (times)", "noise": "noise (share of the mean signal)",
    "bias": "bias (SD of its logarithm)",
}  # fmt: skip


@dataclass(frozen=True)
class Explorable:
    """A drawing with the ranges of its sliders. Called with values, it draws: `view(slice=30)` returns a Figure.

    `change(figure, **values)` does the same in a drawn figure and returns the changed artists: the rest stays.
    """

    draw: Callable[..., Figure]
    sliders: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[..., list[Artist]] | None = None

    def __call__(self, **values: Any) -> Figure:
        return self.draw(**values)


def explore(draw: Callable[..., Figure] | Explorable, **sliders: Any) -> ipywidgets.VBox:
    """Return sliders above the figure that `draw` returns for their values. It is drawn at once and after each move.

    A slider starts at the default of its argument. Raises InputError for a name that `draw` does not have.

    Args:
        draw: a function or an Explorable, which brings its own sliders.
        sliders: {argument of draw: (low, high), (low, high, step), a list of choices, or a bool}; they replace the
            Explorable's own.
    """
    known = dict(draw.sliders) if isinstance(draw, Explorable) else {}
    function, change = (draw.draw, draw.change) if isinstance(draw, Explorable) else (draw, None)
    arguments = inspect.signature(function).parameters
    controls = {}
    for name, choice in {**known, **sliders}.items():
        if name not in arguments:
            raise InputError(f"slider {name}: the drawing has no such argument; expected one of {', '.join(arguments)}")
        control = ipywidgets.interactive.widget_from_abbrev(choice, arguments[name].default)
        if control is None:
            raise InputError(f"slider {name}: {choice!r}; expected (low, high), (low, high, step), a list or a bool")
        control.description = LABELS.get(name, name.replace("_", " "))
        control.style.description_width = "initial"
        if isinstance(control, ipywidgets.FloatSlider):
            digits = max(0, -math.floor(math.log10(control.step)))
            control.readout_format = f".{digits + (round(control.step * 10**digits, 9) % 1 > 0)}f"
        if hasattr(control, "continuous_update"):
            control.continuous_update = False  # redraw when the slider is let go, not at each pixel of the way
        controls[name] = control

    kept: list[Any] = []  # the last figure and, where `change` serves, its picture without what changes

    def show(**values: Any) -> None:
        if kept and change:
            kept[1] = redrawing.redraw(kept[0], change(kept[0], **values), kept[1])
            return display(kept[0])
        last = kept.pop(0) if kept else None  # a drawing that fails leaves none
        with redrawing.onto(last):
            fig = function(**values)
        if not isinstance(fig, Figure):
            return plt.show()
        kept[:] = (fig, None)
        if fig is last:
            redrawing.draw_again(fig, drawing.style())
            return display(fig)
        fig.laid_out = True
        fig.canvas.draw()
        plt.show()

    output = ipywidgets.interactive_output(show, controls)
    rows = ipywidgets.HBox(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
    return ipywidgets.VBox([rows, output])


def moved(image: np.ndarray, shift: float = 0.0, rotation: float = 0.0, contrast: float = 1.0) -> np.ndarray:
    """Return an image (H, W) rotated about its middle, shifted to the right and multiplied by `contrast`.

    Interpolation is bilinear; the border is repeated. A contrast of -1 inverts an image in [-1, 1].

    Args:
        shift: pixels.
        rotation: degrees.

    >>> moved(np.array([[1.0, 2.0, 3.0]] * 3), shift=1)[1].tolist()
    [1.0, 1.0, 2.0]
    """
    angle = np.deg2rad(rotation)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ (centre + (0.0, shift))
    return contrast * ndimage.affine_transform(np.asarray(image, float), matrix, offset, order=1, mode="nearest")


def transform_explorer(
    reference: np.ndarray,
    image: np.ndarray,
    losses: Mapping[str, Callable[[np.ndarray, np.ndarray], float]],
    reach: int = 8,
    steps: int = 17,
) -> Explorable:
    """How losses respond when a coronal image is moved against a reference.

    Arguments: shift (pixels), rotation (degrees), contrast.

    Each curve runs over shifts from -reach to reach at that rotation and contrast.

    losses: {name: f(reference, moved) -> float} on arrays (H, W).
    """
    positions = np.linspace(-reach, reach, steps)
    brightest = float(max(np.abs(reference).max(), np.abs(image).max()))  # one scale, or contrast would not show

    @functools.cache
    def curves_at(rotation: float, contrast: float) -> dict[str, list[float]]:
        seen = [moved(image, place, rotation, contrast) for place in positions]
        return {name: [float(loss(reference, one)) for one in seen] for name, loss in losses.items()}

    @functools.cache
    def ends() -> dict[str, tuple[float, float]]:
        """The axis of each loss, for all settings alike: that of the extremes and of no contrast, with a margin."""
        seen = [curves_at(*place) for place in ((0.0, 1.0), (20.0, 1.0), (0.0, -1.0), (20.0, -1.0), (0.0, 0.0))]
        found = {name: np.concatenate([curves[name] for curves in seen]) for name in losses}
        margins = {name: 0.05 * float(np.ptp(values)) or 1.0 for name, values in found.items()}
        return {name: (values.min() - margins[name], values.max() + margins[name]) for name, values in found.items()}

    def at(shift: float, rotation: float, contrast: float) -> tuple[np.ndarray, dict[str, list[float]], str]:
        title = f"shift {shift:g} px, rotation {rotation:g}°, contrast {contrast:g}"
        return moved(image, shift, rotation, contrast), curves_at(rotation, contrast), title

    def change(fig: Figure, shift: float, rotation: float, contrast: float) -> list[Artist]:
        return overlays.change_misalignment(fig, *at(shift, rotation, contrast), shift)

    def draw(shift: float = 0.0, rotation: float = 0.0, contrast: float = 1.0) -> Figure:
        here, curves, title = at(shift, rotation, contrast)
        titles, limits = ("reference", title), (-brightest, brightest)
        fig = overlays.misalignment(reference, here, positions, curves, shift, titles, limits)
        for ax in fig.axes:
            if ax.get_title() in losses:
                ax.set_ylim(*ends()[ax.get_title()])
        return fig

    return Explorable(
        draw,
        {"shift": (-float(reach), float(reach), 0.5), "rotation": (-20.0, 20.0, 1.0), "contrast": (-1.0, 1.0, 0.25)},
        change,
    )


def offset_explorer(image: np.ndarray, dy: np.ndarray, dx: np.ndarray, pixel: float | None = None) -> Explorable:
    """Displacement fields (H, W) or (channels, H, W) on the axial image that they move.

    Arguments: strength (1: as learned), channel.

    dy, dx: pixels of the image. Place (y, x) shows the image at (y + dy, x + dx), read bilinearly, the border repeated.
    """
    image = figures.as_image(image)
    fields = [
        np.asarray(f.detach().cpu() if hasattr(f, "detach") else f, float).reshape(-1, *np.shape(f)[-2:])
        for f in (dy, dx)
    ]
    if fields[0].shape != fields[1].shape or fields[0].shape[1:] != image.shape:
        raise InputError(
            f"offsets: dy {fields[0].shape}, dx {fields[1].shape} on {image.shape}; expected fields of that shape"
        )
    longest = float(np.hypot(*fields).max()) or 1.0

    def draw(strength: float = 1.0, channel: int = 0) -> Figure:
        down, right = (strength * f[channel] for f in fields)
        rows, columns = np.indices(image.shape)
        warped = ndimage.map_coordinates(image.astype(float), [rows + down, columns + right], order=1, mode="nearest")
        title = f"moved, strength {strength:g}"
        return overlays.offset_field(down, right, warped, limit=longest, title=title, plane="axial", pixel=pixel)

    several = {"channel": (0, len(fields[0]) - 1, 1)} if len(fields[0]) > 1 else {}
    return Explorable(draw, {"strength": (-2.0, 2.0, 0.25)} | several)


def window_explorer(image: np.ndarray, pixel: float | None = None) -> Explorable:
    """An axial CT in any window. Arguments: level and width in HU; they start at the papers' [-150, 350] HU.

    pixel: the width of a pixel in mm; it draws a scale bar.
    """

    def draw(level: float = 100.0, width: float = 500.0) -> Figure:
        return figures.window_view(image, Window(level - width / 2, level + width / 2, "HU"), pixel)

    return Explorable(draw, {"level": (-1000.0, 1000.0, 25.0), "width": (50.0, 3000.0, 50.0)})


def sequence_explorer(labels: np.ndarray, names: Mapping[int, str], pixel: float | None = None) -> Explorable:
    """One anatomy under other settings of the spoiled gradient echo: tr, te (ms), flip (degrees), field (1.0 or 1.5 T).

    labels: label values (H, W) of a coronal slice, each with a name. pixel: mm. The settings start as those of the hip.
    """
    labels = figures.as_image(labels, "labels").astype(int)
    tables = {name: tissues.lookup(dict(names), name) for name in ("t1_10", "t1_15", "t2star", "pd")}
    present = [value for value in np.unique(labels) if value]

    def draw(tr: float = 7.9, te: float = 3.08, flip: float = 30.0, field: float = 1.0) -> Figure:
        t1 = tables["t1_10" if field == 1.0 else "t1_15"]
        with np.errstate(divide="ignore", invalid="ignore"):  # tissues without signal have no relaxation time
            signal = np.nan_to_num(physics.spgr(t1, tables["t2star"], tables["pd"], tr, te, flip))
        kinds = {tissues.tissue_of(names[value]).name: float(signal[value]) for value in present}
        title = f"TR {tr:g} ms, TE {te:g} ms, flip {flip:g}°, {field:g} T" + " (impossible: TE > TR)" * (te >= tr)
        return figures.contrast_view(signal[labels], kinds, title, pixel)

    return Explorable(
        draw, {"tr": (4.0, 100.0, 0.1), "te": (1.0, 30.0, 0.02), "flip": (2.0, 90.0, 1.0), "field": [1.0, 1.5]}
    )


def scanner_explorer(signal: Volume, seed: int = 0) -> Explorable:
    """What coil and electronics do to a clean signal (one coronal slice).

    Arguments: noise (SD as a share of the body's mean signal) and bias (SD of the logarithm of the coil's sensitivity).
    """
    body = signal.array > 0
    mean = float(signal.array[body].mean()) if body.any() else 1.0
    window = Window(0.0, max(1.6 * float(signal.array.max()), 1e-9), signal.unit)

    def draw(noise: float = 0.04, bias: float = 0.15) -> Figure:
        coil = faults.bias_field(signal.array.shape, signal.affine, bias, seed)
        scan = faults.rician(signal.array * coil, noise * mean, np.random.default_rng(seed))
        images = {"clean": signal.array, f"bias {bias:g}, noise {noise:g}": scan}
        shown = {title: slices_of(image, "coronal")[0] for title, image in images.items()}
        return figures.show_images(shown, window, plane="coronal", pixel=signal.spacing[0])

    return Explorable(draw, {"noise": (0.0, 0.3, 0.02), "bias": (0.0, 0.6, 0.05)})


def follow(
    run: str | Path,
    until: int | None = None,
    process: Popen | None = None,
    terms: Sequence[str] | None = None,
    every: float = 2.0,
    timeout: float = 600.0,
) -> list[dict[str, float]]:
    """Draw the curves of a run that trains elsewhere whenever its log has grown, until it ends. Return the log's lines.

    In unattended runs (`make tutorial`, a script) the curves are drawn once, at the end.

    Args:
        run: the run's folder, on this machine or on a shared disk; it may not exist yet.
        until: stop at this step while the run goes on.
        process: the process that trains; when it ends, so does this function.
        terms: as in `charts.training_curves`.
        every, timeout: seconds.

    Raises InputError when there was no step to draw.
    """
    watched = get_ipython() is not None and "TQDM_DISABLE" not in os.environ
    handle, drawn, end = None, 0, time.monotonic() + timeout
    while True:
        ended = process is not None and process.poll() is not None  # asked before the log is read
        over = time.monotonic() > end or ended or (Path(run) / "translator" / "translator.json").is_file()
        lines = read_log(run)
        over = over or bool(lines and until is not None and lines[-1]["step"] >= until)
        if len(lines) > drawn and (watched or over):
            figure, drawn = charts.training_curves(lines, terms, smooth=0.1), len(lines)
            if handle is not None:
                handle.update(figure)
            else:
                handle = display(figure, display_id=True)
            plt.close(figure)
        if over and not lines:
            raise InputError(
                f"{run}: no step is logged yet; expected the folder of a running training. Check what started it"
            )
        if over:
            return lines
        time.sleep(every if watched else min(every, 0.2))
