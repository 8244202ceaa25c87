"""Paired tests against scipy and by hand; intervals that cover; tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mr2ct_lib.files import InputError
from mr2ct_lib.measures.statistics import (
    compare,
    mean_sd,
    mean_sd_table,
    paired_t_test,
    summary,
)


def test_hand_computed_example():
    """Differences 1, 2, 3: mean 2, SD 1, standard error 1/sqrt(3), t = 2 sqrt(3); t(2) at 97.5 % is 4.302653."""
    test = paired_t_test([2, 4, 6], [1, 2, 3])
    assert test.t == pytest.approx(2 * np.sqrt(3))
    assert test.effect_size == pytest.approx(2)
    assert test.mean_difference == pytest.approx(2)
    assert test.interval == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)), abs=1e-5)
    # two degrees of freedom have a closed form: p = 1 - t / sqrt(2 + t^2)
    assert test.p == pytest.approx(1 - test.t / np.sqrt(2 + test.t**2))
    assert test.n == 3


def test_agrees_with_scipy():
    rng = np.random.default_rng(1)
    first, second = rng.normal(10, 2, 12), rng.normal(9, 2, 12)
    test, expected = paired_t_test(first, second, confidence=0.9), stats.ttest_rel(first, second)
    assert (test.t, test.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert test.interval == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert test.t == pytest.approx(test.effect_size * np.sqrt(test.n))


def test_exchange_of_sides_changes_signs_only():
    rng = np.random.default_rng(2)
    first, second = rng.normal(0, 1, 8), rng.normal(1, 1, 8)
    one, other = paired_t_test(first, second), paired_t_test(second, first)
    assert (one.t, one.p, one.effect_size) == pytest.approx((-other.t, other.p, -other.effect_size))
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))


def test_interval_excludes_zero_exactly_when_p_is_small():
    rng = np.random.default_rng(3)
    for _ in range(50):
        test = paired_t_test(rng.normal(0.7, 1, 6), np.zeros(6))
        low, high = test.interval
        assert (test.p < 0.05) == (low > 0 or high < 0)


@pytest.mark.parametrize(
    "first, second, word",
    [
        ([1.0], [2.0], "at least 2"),
        ([], [], "at least 2"),
        ([1, 2, 3], [1, 2], "expected 3"),
        ([1, 2, np.nan], [1, 2, 4], "NaN"),
        ([1, 2, 3], [2, 3, 4], "variation"),
        ([1.1, 2.2, 3.3], [1.2, 2.3, 3.4], "variation"),  # equal on paper, not in binary
        ([1, 2], [1, 2], "variation"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 5]], "one row"),
    ],
)
def test_what_cannot_be_tested_is_refused(first, second, word):
    with pytest.raises(InputError, match=word):
        paired_t_test(first, second)


RECORDS = pd.DataFrame(
    {
        "seed": [0, 0, 1, 1, 2, 2],
        "loss": ["no GC", "GC"] * 3,
        "mae": [18.50, 17.32, 18.57, 17.03, 18.30, 17.20],
    }
)


def test_tables_keep_the_order_and_the_numbers():
    table = summary(RECORDS, "loss", "mae")
    assert table.index.tolist() == ["no GC", "GC"]
    assert table.loc["GC", "mean"] == pytest.approx(np.mean([17.32, 17.03, 17.20]))
    assert table.loc["GC", "sd"] == pytest.approx(np.std([17.32, 17.03, 17.20], ddof=1))
    assert table["n"].tolist() == [3, 3]
    text = mean_sd_table(RECORDS.assign(metric="MAE"), "metric", "loss", "mae")
    assert text.loc["MAE", "GC"] == mean_sd([17.32, 17.03, 17.20]) == "17.18 ± 0.15"
    assert text.columns.tolist() == ["no GC", "GC"]


def test_compare_pairs_by_unit_in_any_order():
    shuffled = RECORDS.sample(frac=1, random_state=1)
    expected = paired_t_test([18.50, 18.57, 18.30], [17.32, 17.03, 17.20])
    assert compare(shuffled, "seed", "loss", "mae", "no GC", "GC").t == pytest.approx(expected.t)
    with pytest.raises(InputError, match="seed 2 lacks"):
        compare(RECORDS.iloc[:-1], "seed", "loss", "mae", "no GC", "GC")
    with pytest.raises(InputError, match="signed"):
        compare(RECORDS, "seed", "loss", "mae", "no GC", "signed")
    with pytest.raises(InputError, match="no column dose"):
        summary(RECORDS, "dose", "mae")
    with pytest.raises(InputError, match="no rows"):
        summary(RECORDS.iloc[:0], "loss", "mae")
