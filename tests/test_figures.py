"""Shared scales, the right panels, refused shapes, no warning, nothing left open."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from colorspacious import cspace_convert
from matplotlib.quiver import QuiverKey
from skimage.color import deltaE_ciede2000, rgb2lab

matplotlib.use("Agg")

from mr2ct_lib.course import charts, drawing, figures, overlays, papers  # noqa: E402
from mr2ct_lib.files import InputError  # noqa: E402
from mr2ct_lib.images.intensity import CT_WINDOW, MR_WINDOW  # noqa: E402
from mr2ct_lib.images.volumes import Volume  # noqa: E402
from mr2ct_lib.patients.hip import STRUCTURES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1000, 1000, (24, 20))
MR = RNG.uniform(0, 100, (24, 20))
LABELS = (IMAGE > 0).astype(int) + (IMAGE > 500)
NAMES = {0: "background", 1: "gluteus_medius", 2: "femur"}
VOLUME = Volume(RNG.uniform(-1000, 1000, (10, 8, 6)), np.diag([1.0, 2.0, 3.0, 1.0]), "HU")
LOG = [{"step": i, "seconds": 0.1 * i, "learning_rate": 2e-4, "cycle": 1 / (i + 1), "gc": 0.5} for i in range(30)]
RECORDS = pd.DataFrame(
    {"method": ["no GC", "GC"] * 3, "seed": [0, 0, 1, 1, 2, 2], "MAE": [5.0, 4.0, 6.0, 4.5, 5.5, 4.1]}
)
SCORES = pd.DataFrame({"pelvis": [0.8, 0.9], "femur": [0.7, np.nan]}, index=["p1", "p2"])
PSNR = papers.dicyclegan_errors()["PSNR"]

DRAWINGS = {  # name: (draw, number of panels with colour bars)
    "show_images": (lambda: figures.show_images({"a": IMAGE, "b": MR}, unit="HU", plane="coronal"), 3),
    "show_images, own windows": (
        lambda: figures.show_images({"a": IMAGE, "b": MR}, {"a": CT_WINDOW, "b": MR_WINDOW}),
        4,
    ),
    "synthesis_row": (lambda: figures.synthesis_row(MR, IMAGE, IMAGE + 9), 7),
    "synthesis_row, methods": (lambda: figures.synthesis_row(MR, {"plain": IMAGE, "GC": IMAGE}, IMAGE + 9), 8),
    "label_overlay": (
        lambda: overlays.label_overlay(IMAGE, {"truth": LABELS, "prediction": LABELS}, NAMES, CT_WINDOW),
        3,
    ),
    "numbered_images": (lambda: figures.numbered_images({"a": IMAGE[:3, :3].round(), "b": MR[:1].round()}), 2),
    "block_shapes": (lambda: figures.block_shapes({"input": (1, 64, 64), "strided": (32, 32, 32)}), 1),
    "joint_histogram, several": (lambda: overlays.joint_histogram(MR, {"a": IMAGE, "b": IMAGE + 9}), 3),
    "training_curves": (lambda: charts.training_curves({"a": LOG, "b": LOG}), 2),
    "box_comparison": (lambda: charts.box_comparison(RECORDS, "method", "MAE", "seed"), 1),
    "dice_bars": (lambda: charts.dice_bars({"a": SCORES, "b": SCORES}, {"femur": (0.88, 0.03)}), 1),
    "landscape": (
        lambda: charts.landscape([-1, 0, 1], {"L1": [1, 0, 1], "GC": {"abs": [1, 0, 1], "signed": [0, 1, 0]}}),
        2,
    ),
    "misalignment": (lambda: overlays.misalignment(IMAGE, MR, [-1, 0, 1], {"L1": [1, 0, 1]}, 0), 3),
    "offset_field": (lambda: overlays.offset_field(MR / 50, -MR / 50, IMAGE), 3),
    "offset_field, none": (lambda: overlays.offset_field(0 * MR, 0 * MR), 3),
    "checkerboard": (lambda: overlays.checkerboard(IMAGE, MR), 3),
    "edge_overlay": (lambda: overlays.edge_overlay({"reference": MR, "b": MR}, IMAGE, plane="sagittal"), 2),
    "edge_overlay, blank": (lambda: overlays.edge_overlay(MR, 0 * IMAGE), 1),
    "tissue_histogram": (lambda: charts.tissue_histogram({"air": [-1000.0, -990.0], "bone": IMAGE}), 1),
    "receptive_field": (lambda: figures.receptive_field(IMAGE, {"small": 6, "large": 70}), 1),
    "three_planes": (lambda: figures.three_planes(VOLUME, window=CT_WINDOW, title="hip"), 4),
    "joint_histogram": (lambda: overlays.joint_histogram(MR, {"a": IMAGE}), 2),
    "window_view": (lambda: figures.window_view(IMAGE, CT_WINDOW), 3),
    "contrast_view": (lambda: figures.contrast_view(MR, {"fat": 2.0, "muscle": 1.0}), 3),
}


@pytest.fixture(autouse=True)
def closed():
    plt.close("all")
    yield
    plt.close("all")


@pytest.mark.parametrize("name", DRAWINGS)
def test_each_figure_renders_without_a_warning_in_a_notebooks_width_and_closes(name: str, tmp_path) -> None:
    draw, panels = DRAWINGS[name]
    before = dict(plt.rcParams)
    fig = draw()
    fig.savefig(tmp_path / "figure.png")
    assert len(fig.axes) == panels
    assert fig.get_figwidth() * fig.dpi <= 900 and (tmp_path / "figure.png").stat().st_size < 150_000
    assert dict(plt.rcParams) == before
    plt.close(fig)
    assert plt.get_fignums() == []


def clims(fig) -> list[tuple[float, float]]:
    return [ax.images[0].get_clim() for ax in fig.axes if ax.images]


def test_images_share_one_scale_by_default() -> None:
    fig = figures.show_images({"a": np.array([[0.0, 1.0]]), "b": np.array([[2.0, 5.0]])})
    assert clims(fig) == [(0, 5), (0, 5)]


def test_synthetic_and_true_ct_share_the_window_and_the_error_is_centred_on_zero() -> None:
    fig = figures.synthesis_row(MR, IMAGE, IMAGE + 9)
    assert clims(fig)[:4] == [(0, 100), (-150, 350), (-150, 350), pytest.approx((-500 / 3, 500 / 3))]
    np.testing.assert_allclose(fig.axes[3].images[0].get_array(), -9)
    assert fig.axes[3].get_title() == "error (MAE 9.0 HU)"


def test_error_counts_inside_the_mask_only() -> None:
    truth, mask = IMAGE.copy(), np.zeros(IMAGE.shape, bool)
    mask[:5] = True
    truth[:5] -= 4
    truth[5:] += 300
    fig = figures.synthesis_row(MR, IMAGE, truth, mask=mask)
    assert fig.axes[3].get_title() == "error (MAE 4.0 HU)"
    np.testing.assert_array_equal(np.ma.getmaskarray(fig.axes[3].images[0].get_array()), ~mask)


def test_a_tensor_is_an_image_and_a_stack_is_not() -> None:
    tensor = torch.ones(1, 1, 4, 5, requires_grad=True)
    assert figures.as_image(tensor).shape == (4, 5)
    with pytest.raises(InputError, match=r"MR: shape \(2, 4, 5\); expected one image"):
        figures.show_images({"MR": np.ones((2, 4, 5))})


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.synthesis_row(MR, IMAGE[1:], IMAGE),
        lambda: overlays.label_overlay(IMAGE, LABELS[1:], NAMES),
        lambda: overlays.label_overlay(IMAGE, LABELS, {0: "background"}),
        lambda: overlays.offset_field(MR, MR[1:]),
        lambda: overlays.checkerboard(MR, MR[1:]),
        lambda: overlays.edge_overlay(MR, MR[1:]),
        lambda: overlays.joint_histogram(MR, {"a": MR[1:]}),
        lambda: charts.landscape([0, 1], {"L1": [1, 2, 3]}),
        lambda: charts.landscape([0, 1], {}),
        lambda: charts.training_curves([]),
        lambda: charts.training_curves(LOG, ["unknown"]),
        lambda: charts.box_comparison(RECORDS, "method", "PSNR"),
        lambda: charts.dice_bars(pd.DataFrame()),
        lambda: charts.tissue_histogram({}),
        lambda: figures.show_images({}),
        lambda: figures.show_images({"a": MR}, plane="oblique"),
        lambda: figures.show_images({"a": MR}, {"b": MR_WINDOW}),
        lambda: figures.synthesis_row(MR, {"true CT": IMAGE}, IMAGE),
    ],
)
def test_what_does_not_fit_is_refused_and_no_empty_figure_stays(draw) -> None:
    with pytest.raises(InputError, match="expected"):
        draw()
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("plane", "sides"), [("coronal", ["R", "L"]), ("axial", ["R", "L"]), ("sagittal", ["A", "P"]), (None, [])]
)
def test_sides_are_marked_as_a_radiologist_expects(plane: str | None, sides: list[str]) -> None:
    (ax, _) = figures.show_images({"": MR}, plane=plane).axes
    marks = sorted((text.get_position()[0], text.get_text()) for text in ax.texts)
    assert [mark for _, mark in marks] == sides


def test_three_planes_go_through_the_same_voxel() -> None:
    coronal, axial, sagittal = (ax.images[0].get_array() for ax in figures.three_planes(VOLUME).axes[:3])
    assert coronal.shape == (6, 10) and axial.shape == (8, 10) and sagittal.shape == (6, 8)
    here = VOLUME.array[5, 4, 3]
    assert coronal[6 - 1 - 3, 10 - 1 - 5] == axial[8 - 1 - 4, 10 - 1 - 5] == sagittal[6 - 1 - 3, 8 - 1 - 4] == here


def test_a_structure_keeps_its_colour_whatever_else_is_there() -> None:
    full, alone = (
        overlays.label_overlay(IMAGE, LABELS, NAMES),
        overlays.label_overlay(IMAGE, np.where(LABELS == 2, 2, 0), NAMES),
    )
    colour = [f.legends[0].legend_handles[-1].get_facecolor() for f in (full, alone)]
    assert colour[0] == colour[1]


VISIONS = (None, "deuteranomaly", "protanomaly")  # as everybody sees, without green cones, without red cones


def seen(rgb: np.ndarray, vision: str | None) -> np.ndarray:
    """Colours (n, 3) in sRGB as a reader with this vision sees them (Machado et al. 2009, severity 100)."""
    if vision is None:
        return rgb
    return np.clip(cspace_convert(rgb, {"name": "sRGB1+CVD", "cvd_type": vision, "severity": 100}, "sRGB1"), 0, 1)


def least(rgb: np.ndarray, vision: str | None) -> float:
    """The smallest CIEDE2000 between two of the colours (n, 3): 2 is just seen side by side, 10 at a glance."""
    lab = rgb2lab(seen(rgb, vision)[None])[0]
    return deltaE_ciede2000(lab[:, None], lab[None])[np.triu_indices(len(rgb), 1)].min()


@pytest.mark.parametrize("vision", VISIONS)
def test_any_two_of_the_22_structures_are_told_apart_by_colour_blind_readers_too(vision: str | None) -> None:
    colours = np.array(drawing.palette(len(STRUCTURES)))
    assert least(colours, vision) > 9
    assert least(0.55 * colours + 0.45 * 0.3, vision) > 6  # as `label_overlay` paints them over the grey of muscle


@pytest.mark.parametrize("vision", VISIONS)
def test_neighbouring_structures_are_told_apart_at_a_glance_over_muscle(vision: str | None) -> None:
    over_muscle = 0.55 * np.array(drawing.palette(len(STRUCTURES))) + 0.45 * 0.3
    for group in (
        ("pelvis", "femur", "gluteus_medius", "gluteus_minimus", "gluteus_maximus", "vastus_lateralis_and_intermedius"),
        ("pelvis", "iliacus", "psoas_major", "sacrum"),
        ("pelvis", "femur", "obturator_externus", "pectineus", "adductor_muscles"),
        ("gluteus_maximus", "biceps_femoris", "semitendinosus", "semimembranosus", "adductor_muscles"),
        ("rectus_femoris", "sartorius", "tensor_fasciae_latae"),
        ("pelvis", "tensor_fasciae_latae"),
        ("femur", "vastus_medialis", "adductor_muscles"),
    ):
        assert least(over_muscle[[STRUCTURES.index(name) for name in group]], vision) > 10, group


def test_many_structures_carry_their_numbers() -> None:
    many = np.pad(np.repeat(np.repeat(np.arange(1, 10).reshape(3, 3), 8, axis=0), 8, axis=1), 50)
    fig = overlays.label_overlay(
        np.zeros(many.shape), many, {value: f"muscle {value}" for value in range(1, 10)}, plane=None
    )
    places = {text.get_text(): many[text.get_position()[::-1]] for text in fig.axes[0].texts}
    assert places == {str(value): value for value in range(1, 10)}  # each number stands on its structure
    assert fig.legends[0].texts[3].get_text() == "4 muscle 4"


def test_checkerboard_takes_every_pixel_from_one_of_the_two() -> None:
    board = (
        overlays.checkerboard(np.zeros((16, 16)) + [[0, 1] * 8], np.full((16, 16), 0.5), tiles=4)
        .axes[2]
        .images[0]
        .get_array()
    )
    assert set(np.unique(board[:4, :4])) == {0, 1} and set(np.unique(board[:4, 4:8])) == {
        0
    }  # a flat image is all black


def test_curves_leave_out_step_time_and_rate_and_mark_the_least_value() -> None:
    assert [ax.get_title() for ax in charts.training_curves(LOG).axes] == ["cycle", "gc"]
    (ax,) = charts.landscape([-2, -1, 0, 1], {"GC": [4, 1, 2, 3]}).axes
    assert ax.lines[1].get_xdata()[0] == -1 and ax.lines[1].get_ydata()[0] == 1


def test_points_of_one_seed_are_joined() -> None:
    (ax,) = charts.box_comparison(RECORDS, "method", "MAE", pair="seed").axes
    joined = {tuple(line.get_ydata()) for line in ax.lines if list(line.get_xdata()) == [1, 2]}
    assert {(5.0, 4.0), (6.0, 4.5), (5.5, 4.1)} <= joined


def test_dice_boxes_stand_side_by_side_and_the_paper_beside_its_method() -> None:
    scores = pd.DataFrame({"femur": [0.8, 0.9], "pelvis": [0.7, np.nan]}, index=["p1", "p2"])
    (ax,) = charts.dice_boxes(
        {"one": scores, "other": scores}, ["femur", "pelvis"], {"other": {"femur": (0.5, 0.1)}}
    ).axes
    points = np.concatenate(
        [c.get_offsets() for c in ax.collections if hasattr(c, "get_sizes") and len(c.get_offsets())]
    )
    assert len(points) == 6 and points[:, 0].min() < 0 < points[:, 0].max()
    assert [list(c[0].get_ydata()) for c in ax.containers] == [[0.5], []]
    with pytest.raises(InputError, match="sacrum of one"):
        charts.dice_boxes({"one": scores}, ["sacrum"])


def test_channel_rows_frame_what_is_synthetic() -> None:
    fig = overlays.channel_rows(
        {"train": (IMAGE, IMAGE, LABELS), "test": (IMAGE, IMAGE, None)}, {"train": "MR", "test": "CT"}, NAMES
    )
    titles = [ax.get_title() for ax in fig.axes]
    mr, ct = "0 to 100 %", "-150 to 350 HU"
    first, second = [f"synthetic MR\n{mr}", f"real CT\n{ct}"], [f"real MR\n{mr}", f"synthetic CT\n{ct}"]
    assert titles == [*first, "labels on the CT", *second, "labels: none"]
    assert [len(ax.patches) for ax in fig.axes] == [1, 0, 0, 0, 1, 0]
    with pytest.raises(InputError, match="synthetic"):
        overlays.channel_rows({"train": (IMAGE, IMAGE, None)}, {"train": "PET"}, NAMES)


def test_a_scale_bar_is_as_long_as_it_says() -> None:
    for columns, pixel, text in ((128, 2.5, "10 cm"), (192, 1.8, "10 cm"), (30, 1.0, "1 cm"), (20, 0.5, "2 mm")):
        ax = figures.show_images({"": np.zeros((10, columns))}, pixel=pixel).axes[0]
        ends = ax.lines[0].get_xdata()
        mm = float(text.split()[0]) * (10 if text.endswith("cm") else 1)
        assert ax.texts[-1].get_text() == text
        assert (ends[1] - ends[0]) * columns * pixel == pytest.approx(mm)
    assert not figures.show_images({"": MR}).axes[0].lines
    lengths = [len(ax.lines) for ax in figures.three_planes(VOLUME).axes[:3]]
    assert lengths == [2, 2, 2]


def test_a_structure_with_room_carries_its_name_and_a_thin_one_its_number() -> None:
    labels = np.zeros((128, 128), int)
    labels[10:60, 10:118], labels[70:72, 5:120] = 3, 4
    labels[80:128:6, :8] = np.arange(5, 13)[:, None]  # more than seven structures, these too small for anything
    names = {value: f"muscle {value}" for value in range(1, 13)}
    ax = overlays.label_overlay(np.zeros(labels.shape), labels, names, plane=None).axes[0]
    places = {text.get_text().replace("\n", " "): labels[text.get_position()[::-1]] for text in ax.texts}
    assert places == {"muscle 3": 3, "4": 4}


def test_no_name_of_a_structure_lies_on_the_scale_bar() -> None:
    labels = np.zeros((128, 128), int)
    labels[104:, :60] = 1  # all around the bar
    labels[122:, 70:] = 2
    labels[:32:4, 100:] = np.arange(3, 11)[:, None]  # more than seven structures carry names
    names = {value: f"muscle {value}" for value in range(1, 11)}
    ax = overlays.label_overlay(np.zeros(labels.shape), labels, names, plane=None, pixel=2.5).axes[0]
    ax.figure.canvas.draw()
    bar = next(text for text in ax.texts if text.get_text() == "10 cm").get_window_extent()
    named = [text for text in ax.texts if text.get_text().startswith("muscle")]
    assert named and not any(bar.overlaps(text.get_window_extent()) for text in named)


def test_small_displacements_get_arrows_of_their_own_scale_with_a_length_in_mm() -> None:
    small = np.full((60, 60), 0.6)  # 0.85 pixels long; arrows stand 3 pixels apart
    common = overlays.offset_field(small, small, limit=6.0, pixel=2.0)
    own = overlays.offset_field(small, small, limit=6.0, pixel=2.0, own_arrows=True)
    assert "times as long" not in common.alt and "(arrows 5 times as long)" in own.alt  # 1.3 * 3 / 0.85 = 4.6
    keys = [ax.findobj(QuiverKey)[0] for ax in (common.axes[0], own.axes[0])]
    assert [key.label for key in keys] == ["10 mm", "2 mm"]  # at most 1.7 * 3 * 2 mm, and a fifth of it
    assert [key.U for key in keys] == [5.0, 1.0]  # pixels
    assert common.axes[1].images[0].get_clim() == own.axes[1].images[0].get_clim() == (0, 6)
    still = overlays.offset_field(np.zeros((60, 60)), np.zeros((60, 60)))
    assert "times as long" not in still.alt  # nothing has moved
