"""The printed numbers obey their own arithmetic, and equal the project's list of facts where that is at hand."""

import re
from pathlib import Path

import numpy as np
import pytest

from mr2ct_lib.course import papers
from mr2ct_lib.files import InputError

FACTS = Path(__file__).parents[2] / "shared" / "facts" / "papers.md"


@pytest.mark.parametrize("metric", ["MAE", "PSNR"])
def test_the_mean_row_is_the_mean_of_the_three_patients(metric):
    table = papers.cyclegan_errors().loc[metric]
    assert table.index.tolist() == [1, 2, 3, "mean"]
    assert np.allclose(table.loc[[1, 2, 3]].mean(), table.loc["mean"], atol=6e-4)  # three printed decimals


def test_patient_3_follows_from_the_mean():
    table = papers.cyclegan_errors()
    for metric in ("MAE", "PSNR"):
        third = 3 * table.loc[(metric, "mean")] - table.loc[(metric, 1)] - table.loc[(metric, 2)]
        assert np.allclose(third, table.loc[(metric, 3)], atol=2e-3)  # the mean's rounding, three times


def test_mae_in_hu():
    best = papers.cyclegan_errors().loc[("MAE", "mean"), (">300", "GC")]
    assert best == 25.541
    low, high = papers.CYCLEGAN["ct_window"].value
    assert round(best * (high - low) / 255, 1) == 50.1


def test_root_mean_square_error_is_at_least_the_mae():
    table = papers.cyclegan_errors()
    rmse = 255 * 10 ** (-table.loc["PSNR"] / 20)
    assert (rmse >= table.loc["MAE"]).all(axis=None)


def test_volumes_of_the_mr_slab():
    settings = papers.CYCLEGAN
    assert settings["mr_slab"].value / settings["mr_slice"].value == 38
    assert settings["mr_volumes"].value + settings["ct_volumes"].value == 915


def test_mr_alone_is_the_better_one_in_the_paper():
    dice = papers.cyclegan_dice()
    assert (dice[("MR alone", "mean")] > dice[("MR + synthetic CT", "mean")]).all()


def test_gains_on_the_distorted_heads():
    psnr = papers.dicyclegan_errors()["PSNR"]
    gain = psnr["DicycleGAN"] - psnr["CycleGAN"]
    assert gain[("PD -> T2", "deformed")] == pytest.approx(2.80)
    assert gain[("T2 -> PD", "deformed")] == pytest.approx(3.44)
    assert abs(gain[("PD -> T2", "undeformed")]) < 1 and abs(gain[("T2 -> PD", "undeformed")]) < 1


def test_the_range_behind_the_psnr_is_about_10_sd_without_distortion():
    table = papers.dicyclegan_errors()
    ranges = {
        row: [papers.implied_range(table.loc[row, ("MSE", model)], table.loc[row, ("PSNR", model)])
              for model in ("CycleGAN", "DicycleGAN")]
        for row in table.index
    }  # fmt: skip
    undeformed = ranges[("PD -> T2", "undeformed")] + ranges[("T2 -> PD", "undeformed")]
    assert min(undeformed) > 9 and max(undeformed) < 11.2 and np.mean(undeformed) == pytest.approx(10.2, abs=0.1)
    deformed = ranges[("PD -> T2", "deformed")] + ranges[("T2 -> PD", "deformed")]
    assert min(deformed) > 4.9 and max(deformed) < 7.3
    with pytest.raises(InputError, match="positive"):
        papers.implied_range(0, 20)


@pytest.mark.parametrize("method", papers.METHODS)
def test_every_setting_has_a_known_mark(method):
    table = papers.settings_table(method)
    assert set(table["mark"]) <= set(papers.MARKS)
    assert not table.isna().any(axis=None)


def test_unknown_method_is_refused_and_tables_are_fresh_copies():
    with pytest.raises(InputError, match="cyclegan or dicyclegan"):
        papers.settings_table("pix2pix")
    table = papers.cyclegan_errors()
    table.iloc[0, 0] = 0
    assert papers.cyclegan_errors().iloc[0, 0] == 30.121
    with pytest.raises(TypeError):
        papers.CYCLEGAN["lambda_gc"] = 1


# --- against the list of facts ---


@pytest.fixture(scope="module")
def facts() -> str:
    if not FACTS.is_file():
        pytest.skip("the list of facts is not beside this checkout")
    return FACTS.read_text(encoding="utf-8")


def rows(facts: str, start: str) -> list[list[str]]:
    """Cells of the table rows that begin with `start`."""
    lines = [line.strip() for line in facts.splitlines()]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(rf"\| ({start})", line)]


def test_first_table_equals_the_facts(facts):
    table = papers.cyclegan_errors()
    found = rows(facts, "MAE|PSNR")
    assert len(found) == len(table) == 8
    for name, *cells in found:
        metric, word, *rest = name.split()
        patient = "mean" if word == "mean" else int(rest[0])
        assert [float(cell) for cell in cells] == table.loc[(metric, patient)].tolist()


def test_tables_of_the_second_paper_equal_the_facts(facts):
    table = papers.dicyclegan_errors()
    found = [row for row in rows(facts, "PD|T2|CT") if len(row) == 5]
    assert len(found) == len(table) == 6
    for name, model, *cells in found:
        assert model == "CycleGAN / DicycleGAN"
        expected = table.loc[tuple(name.split(", "))]
        assert [float(value) for cell in cells for value in cell.split("/")] == expected.tolist()


def test_dice_and_weights_equal_the_facts(facts):
    values = [float(value) for value in re.findall(r"(0\.\d{3})\+-", facts)]
    spreads = [float(value) for value in re.findall(r"\+-(0\.\d{3})", facts)]
    dice = papers.cyclegan_dice()
    inputs = ("MR + synthetic CT", "MR alone")
    assert values == [value for column in inputs for value in dice[(column, "mean")]]
    assert spreads == [value for column in inputs for value in dice[(column, "sd")]]
    flat = " ".join(facts.split())
    first, second = papers.CYCLEGAN, papers.DICYCLEGAN
    settings = [
        f"lambda_cycle = {first['lambda_cycle'].value:g}, lambda_GC = {first['lambda_gc'].value:g}",
        f"{first['mr_volumes'].value} unlabelled MR, {first['ct_volumes'].value} unlabelled CT, "
        f"{first['labelled_ct'].value} labelled CT ({first['structures'].value} structures), "
        f"{first['paired_patients'].value} paired MR/CT patients, {first['labelled_mr'].value} labelled MR",
        f"TR {first['mr_repetition_time'].value} ms, TE {first['mr_echo_time'].value} ms, "
        f"flip {first['mr_flip_angle'].value} degrees",
        f"batch size ({first['batch_size'].value}, as in CycleGAN), image pool ({first['pool_size'].value}), "
        f"beta1 ({first['beta1'].value})",
        f"L_GAN(deformed) + {second['lambda_align'].value:g} L_align + {second['lambda_cycle'].value:g} L_cycle"
        f" + {second['lambda_dicycle'].value:g} L_dicycle",
        f"{second['train_pairs'].value} training pairs, {second['test_pairs'].value} test pairs, "
        f"{second['spacing'].value} mm isotropic, {second['size'].value}x{second['size'].value} crops",
        f"Adam 2e-4, {second['epochs_constant'].value} epochs, then {second['epochs_decay'].value} falling linearly",
    ]
    for text in settings:
        assert text in flat, text
