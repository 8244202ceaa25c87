"""Every figure says in words what it shows: its panels, units and the numbers that a reader would look for."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from test_figures import DRAWINGS  # noqa: E402

from mr2ct_lib.course import alt_text, charts, drawing  # noqa: E402


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_drawing_function_describes_its_figure_and_names_each_panel(name: str) -> None:
    fig = DRAWINGS[name][0]()
    titles = [ax.get_title().replace("\n", " ") for ax in fig.axes]
    assert len(fig.alt) > 40 and all(t in fig.alt or t.startswith("error (") for t in titles)
    assert len(fig.alt) <= alt_text.LONGEST and "\n" not in fig.alt


def test_a_line_is_told_by_its_ends_and_its_turning_points() -> None:
    fig, ax = plt.subplots()
    ax.plot([0, 1, 2, 3], [4, 1, 2, np.nan], label="GC")
    ax.set(xlabel="shift / pixels", ylabel="loss", title="hip")
    assert alt_text.read_off(fig) == "hip, loss against shift / pixels: GC from 4 at 0 to 2 at 2, lowest 1 at 1."


def test_a_curve_over_misalignment_names_its_minimum() -> None:
    assert "lowest 0 at 1" in charts.landscape([-1, 0, 1, 2], {"L1": [3, 2, 0, 1]}).alt


def test_what_a_notebook_says_replaces_what_was_read_off_and_long_text_ends_at_a_word() -> None:
    fig = charts.landscape([0, 1], {"L1": [1, 0]})
    assert drawing.describe(fig, "one\n  line") is fig and alt_text.alternative_text(fig) == "one line"
    assert drawing.describe(fig, "word " * 500).alt.endswith("word ...") and len(fig.alt) <= alt_text.LONGEST


def test_a_figure_of_the_page_has_twice_its_pixels_and_its_own_sharpness_goes_first() -> None:
    fig = charts.landscape([0, 1, 2], {"L1": [1, 0, 1]})
    png, about = drawing.picture(fig)
    pixels = int.from_bytes(png[16:20], "big")
    assert about["alt"] == fig.alt and pixels // 2 == about["width"]
    fig.sharpness = 1
    png, plain = drawing.picture(fig)
    assert int.from_bytes(png[16:20], "big") == plain["width"] and abs(plain["width"] - about["width"]) <= 2
    assert drawing.picture(plt.figure()) is None


def test_a_figure_that_is_laid_out_is_taken_as_drawn_at_the_pages_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fig, drawn, draw = charts.landscape([0, 1, 2], {"L1": [1, 0, 1]}), [], Figure.draw
    fig.laid_out = True
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: (drawn.append(self), draw(self, renderer)))
    fig.canvas.draw()
    png, about = drawing.picture(fig)
    assert drawn == [fig] and about["width"] == int.from_bytes(png[16:20], "big") == round(100 * fig.get_figwidth())
