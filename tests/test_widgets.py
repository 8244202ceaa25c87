"""Sliders call the drawing with their values, without a browser; the twin is the same drawing."""

import inspect

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

matplotlib.use("Agg")

from mr2ct_lib.course import drawing, figures, overlays, redrawing, widgets  # noqa: E402
from mr2ct_lib.files import InputError  # noqa: E402
from mr2ct_lib.images.intensity import CT_WINDOW  # noqa: E402
from mr2ct_lib.images.volumes import Volume  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive"),
]
IMAGE = np.random.default_rng(1).uniform(-1, 1, (24, 20))


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


def controls(box: ipywidgets.VBox) -> dict[str, ipywidgets.Widget]:
    return {control.description.split(" (")[0]: control for control in box.children[0].children}


def volume(shape=(6, 8, 10)) -> Volume:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Volume(array, np.diag([2.0, 2.0, 4.0, 1.0]), "HU")


def test_explore_draws_at_once_and_after_each_move() -> None:
    seen = []
    box = widgets.explore(lambda shift=2, turned=False: seen.append((shift, turned)), shift=(-8, 8, 1), turned=False)
    controls(box)["shift"].value = 5
    controls(box)["turned"].value = True
    assert seen == [(2, False), (5, False), (5, True)]


def test_sliders_begin_at_the_default_and_wait_until_let_go() -> None:
    slider = controls(widgets.explore(lambda blend_share=0.25: None, blend_share=(0.0, 1.0, 0.05)))["blend share"]
    assert (slider.value, slider.min, slider.max, slider.step, slider.continuous_update) == (
        0.25,
        0.0,
        1.0,
        0.05,
        False,
    )


def test_unknown_slider_and_strange_choice_are_refused() -> None:
    with pytest.raises(InputError, match="slider turn: the drawing has no such argument; expected one of shift"):
        widgets.explore(lambda shift=0: None, turn=(0, 1))
    with pytest.raises(InputError, match="slider shift"):
        widgets.explore(lambda shift=0: None, shift=object())


def explorables() -> dict[str, widgets.Explorable]:
    labels = np.zeros((20, 20), int)
    labels[3:17, 3:17] = 1
    labels[6:14, 6:14] = 2
    names = {0: "background", 1: "subcutaneous_fat", 2: "muscle"}
    return {
        "transform": widgets.transform_explorer(
            IMAGE, IMAGE, {"L1": lambda a, b: np.abs(a - b).mean()}, reach=2, steps=5
        ),
        "offset": widgets.offset_explorer(IMAGE, np.stack([IMAGE, IMAGE]), np.stack([IMAGE, IMAGE])),
        "window": widgets.window_explorer(IMAGE * 1000),
        "sequence": widgets.sequence_explorer(labels, names),
        "scanner": widgets.scanner_explorer(Volume(labels[:, None, :].astype(np.float32), np.eye(4))),
    }


@pytest.mark.parametrize("name", ["transform", "offset", "window", "sequence", "scanner"])
def test_every_explorable_builds_without_a_frontend_and_draws_its_ends(name: str) -> None:
    view = explorables()[name]
    assert set(view.sliders) == set(inspect.signature(view.draw).parameters)
    box = widgets.explore(view)
    for control in controls(box).values():
        control.value = control.max if hasattr(control, "max") else control.options[-1]
    ends = {slider: limits[0] for slider, limits in view.sliders.items()}  # the least of a range, the first of a list
    assert view(**ends).axes


def test_own_sliders_take_the_place_of_an_explorables() -> None:
    box = widgets.explore(widgets.window_explorer(IMAGE * 100), level=(0.0, 80.0, 10.0))
    assert controls(box)["level"].max == 80 and controls(box)["width"].max == 3000


def test_moved_is_identity_at_zero_and_shifts_right_and_inverts() -> None:
    np.testing.assert_allclose(widgets.moved(IMAGE), IMAGE, atol=1e-12)
    np.testing.assert_allclose(widgets.moved(IMAGE, shift=3)[:, 3:], IMAGE[:, :-3], atol=1e-12)
    np.testing.assert_allclose(widgets.moved(IMAGE, contrast=-1), -IMAGE, atol=1e-12)
    square = IMAGE[:20, :20]
    np.testing.assert_allclose(widgets.moved(square, rotation=90), np.rot90(square), atol=1e-9)


def test_loss_curve_is_least_where_the_moved_image_meets_the_reference() -> None:
    view = widgets.transform_explorer(IMAGE, IMAGE, {"L1": lambda a, b: np.abs(a - b).mean()}, reach=4, steps=9)
    curve = next(ax for ax in view(shift=2.0).axes if ax.get_title() == "L1").lines[0]
    assert curve.get_xdata()[np.argmin(curve.get_ydata())] == 0 and curve.get_ydata().min() == 0


def test_a_figure_that_is_changed_in_place_looks_like_one_that_is_drawn_anew() -> None:
    view, rest = explorables()["transform"], None
    kept = view()
    kept.canvas.draw()  # finds the layout
    plt.close(kept)  # as a notebook does after it has shown a figure
    for place in ((1.0, 0.0, 1.0), (-2.0, 20.0, -1.0)):
        values = dict(zip(("shift", "rotation", "contrast"), place, strict=True))
        rest = redrawing.redraw(kept, view.change(kept, **values), rest)
        anew = view(**values)
        anew.canvas.draw()
        assert kept.alt == anew.alt
        differ = (np.asarray(kept.canvas.buffer_rgba()) != np.asarray(anew.canvas.buffer_rgba())).any(axis=2)
        assert differ.sum() < 20  # pixels: a line may cross the frame of its panel


SMALL = np.random.default_rng(2).normal(100, 60, (4, 20, 16))
MAPS = np.arange(SMALL.size).reshape(SMALL.shape) // 40
MOVES = {
    "offset": [{"strength": -1.5}, {"strength": 0.0}, {"strength": 0.5}],
    "window": [{"level": 0.0}, {"width": 3000.0}, {"width": 50.0}],
    "sequence": [{"flip": 90.0}, {"tr": 90.0}, {"field": 1.5}],
    "scanner": [{"noise": 0.3}, {"noise": 0.28}],
    "row": [{"slice": 2}, {"slice": 1}],
    "labels": [{"slice": 2}, {"slice": 1}],
}


@pytest.mark.parametrize("name", MOVES)
def test_axes_that_are_used_again_show_what_new_ones_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(slice: int = 0):
        return figures.synthesis_row(*SMALL[[slice, 0, 3]], pixel=2.0)

    def labels(slice: int = 0):
        maps = dict.fromkeys("abc", MAPS[slice])
        return overlays.label_overlay(SMALL[0], maps, {n: f"part {n}" for n in range(40)}, CT_WINDOW, pixel=2.0)

    view = {**explorables(), "row": widgets.Explorable(row), "labels": widgets.Explorable(labels)}[name]
    shown, values = [], {}
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    monkeypatch.setattr(widgets, "display", shown.append)
    box = widgets.explore(view, **({"slice": (0, 3)} if name in ("row", "labels") else {}))
    for move in MOVES[name]:
        values |= move
        for argument, value in move.items():
            controls(box)[widgets.LABELS.get(argument, argument).split(" (")[0]].value = value
        last, fig = shown[-2:]
        assert fig is last
        with redrawing.onto(None):
            anew = view(**values)
        assert fig.alt == anew.alt
        anew.set_layout_engine("none")
        for ax, old in zip(anew.axes, fig.axes, strict=True):
            ax.set_position(old.get_position(original=True))
        with plt.rc_context(drawing.style()):
            anew.canvas.draw()
        differ = (np.asarray(fig.canvas.buffer_rgba()) != np.asarray(anew.canvas.buffer_rgba())).any(axis=2)
        assert not differ.any()


def test_offsets_read_where_they_point() -> None:
    down = np.ones_like(IMAGE)  # every place shows what lies one row below it
    shown = widgets.offset_explorer(IMAGE, down, 0 * down)(strength=1.0).axes[0].images[0].get_array()
    np.testing.assert_allclose(shown[:-1], IMAGE[1:])
    np.testing.assert_allclose(
        widgets.offset_explorer(IMAGE, down, 0 * down)(strength=0.0).axes[0].images[0].get_array(), IMAGE
    )
    with pytest.raises(InputError, match="expected fields of that shape"):
        widgets.offset_explorer(IMAGE, down[1:], down[1:])


def test_sequence_shows_fat_brighter_than_muscle_at_the_hips_settings() -> None:
    fig = explorables()["sequence"]()
    bars = {
        label.get_text(): bar.get_width()
        for label, bar in zip(fig.axes[1].get_yticklabels(), fig.axes[1].patches, strict=True)
    }
    assert bars["fat"] == pytest.approx(0.0871, abs=1e-4) and bars["muscle"] == pytest.approx(0.0227, abs=1e-4)


def test_a_stronger_field_lengthens_t1_and_darkens_muscle() -> None:
    view = explorables()["sequence"]
    one, more = (view(field=strength).axes[0].images[0].get_array().max() for strength in (1.0, 1.5))
    assert more < one


def test_an_ideal_scanner_shows_the_signal_itself_and_noise_lifts_the_air() -> None:
    view = explorables()["scanner"]
    clean, ideal = (ax.images[0].get_array() for ax in view(noise=0.0, bias=0.0).axes[:2])
    np.testing.assert_allclose(ideal, clean)
    noisy = view(noise=0.2, bias=0.0).axes[1].images[0].get_array()
    assert noisy[0].mean() == pytest.approx(0.2 * clean[clean > 0].mean() * np.sqrt(np.pi / 2), rel=0.3)


@pytest.mark.parametrize("name", ["transform", "offset"])
def test_moved_images_carry_the_patients_sides(name: str) -> None:
    assert {"R", "L"} <= {text.get_text() for text in explorables()[name]().axes[0].texts}


def test_sliders_name_their_quantity_and_its_unit() -> None:
    names = [control.description for control in widgets.explore(explorables()["sequence"]).children[0].children]
    assert names == ["TR (ms)", "TE (ms)", "flip angle (degrees)", "field strength (T)"]


def test_loss_curves_keep_their_axes_and_stay_inside() -> None:
    losses = {"L1": lambda a, b: np.abs(a - b).mean(), "dark": lambda a, b: -np.abs(b).mean()}  # dark: 0 at no contrast
    view = widgets.transform_explorer(IMAGE, IMAGE, losses, reach=2, steps=5)
    axes: dict[str, set] = {name: set() for name in losses}
    for values in ({}, {"contrast": 0.0}, {"contrast": -1.0, "rotation": 20.0}, {"contrast": 0.5, "rotation": -10.0}):
        for ax in (ax for ax in view(**values).axes if ax.get_title() in losses):
            (low, high), curve = ax.get_ylim(), ax.lines[0].get_ydata()
            assert low <= min(curve) and max(curve) <= high
            axes[ax.get_title()].add((low, high))
    assert {name: len(limits) for name, limits in axes.items()} == dict.fromkeys(losses, 1)
