"""Is a difference more than chance? Paired tests with their size and spread, and tables of mean and SD over seeds.

A small p alone says little: with many slices any difference is "significant". So each test carries the difference in its
own unit, its confidence interval and its effect size. Count patients or seeds, not slices: slices of one
patient are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from mr2ct_lib.files import InputError


@dataclass(frozen=True)
class PairedTest:
    """Result of a paired t-test on differences first - second."""

    t: float
    p: float  # two-sided
    mean_difference: float  # in the unit of the measure
    interval: tuple[float, float]  # confidence interval of the mean difference
    effect_size: float  # Cohen's dz: mean difference / SD of the differences
    n: int  # pairs
    confidence: float = 0.95

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"difference {self.mean_difference:.3g} ({self.confidence:.0%} interval {low:.3g} to {high:.3g}), "
            f"t({self.n - 1}) = {self.t:.3g}, p = {self.p:.2g}, dz = {self.effect_size:.2g}, n = {self.n}"
        )


def _values(values: Sequence[float], name: str) -> np.ndarray:
    """Return a 1D float array of at least two finite values; InputError otherwise."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"{name}: shape {values.shape}; expected at least 2 values in one row. Measure more patients or seeds")
    if not np.isfinite(values).all():
        raise InputError(f"{name}: {int((~np.isfinite(values)).sum())} are NaN or infinite; expected numbers. Drop those pairs")
    return values


def paired_t_test(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedTest:
    """Two-sided paired t-test of first against second, pair by pair (the test of both papers).

    Raises InputError for fewer than two pairs, unequal lengths, NaN, and differences that are all the same, for which t
    is not defined.

    >>> print(paired_t_test([30.1, 26.9, 33.7], [29.0, 26.2, 32.9]))
    difference 0.867 (95% interval 0.35 to 1.38), t(2) = 7.21, p = 0.019, dz = 4.2, n = 3
    """
    first, second = _values(first, "first"), _values(second, "second")
    if len(first) != len(second):
        raise InputError(f"second: {len(second)} values; expected {len(first)}, one for each value of first")
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence}; expected a share between 0 and 1, such as 0.95")
    difference = first - second
    spread = difference.std(ddof=1)
    # 1e-12 of the values' size: what rounding leaves of differences that are equal on paper
    if spread <= 1e-12 * max(np.abs(first).max(), np.abs(second).max()):
        raise InputError(f"first: every value differs from second by {difference[0]:.4g}; expected some variation")
    result = stats.ttest_rel(first, second)
    low, high = result.confidence_interval(confidence)
    return PairedTest(
        t=float(result.statistic),
        p=float(result.pvalue),
        mean_difference=float(difference.mean()),
        interval=(float(low), float(high)),
        effect_size=float(difference.mean() / spread),
        n=len(difference),
        confidence=confidence,
    )


def mean_sd(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± sample SD as text, NaN left out; "-" without values, no SD for one.

    >>> mean_sd([18.5, 18.57, 18.2]), mean_sd([0.5]), mean_sd([])
    ('18.42 ± 0.20', '0.50', '-')
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return "-"
    text = f"{values.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def _columns(records: pd.DataFrame, needed: Sequence[str]) -> None:
    """InputError unless the table has these columns and at least one row."""
    missing = [name for name in needed if name not in records.columns]
    if missing:
        raise InputError(f"records: no column {', '.join(missing)}; found {', '.join(map(str, records.columns))}")
    if records.empty:
        raise InputError("records: no rows; expected at least one measurement")


def summary(records: pd.DataFrame, by: str | Sequence[str], value: str) -> pd.DataFrame:
    """Columns mean, sd (sample SD; NaN for one value), n of `value` for each group of `by`, in order of appearance.

    records: one row a measurement, for instance a seed or a patient.
    """
    by = [by] if isinstance(by, str) else list(by)
    _columns(records, [*by, value])
    return records.groupby(by, sort=False)[value].agg(mean="mean", sd="std", n="count")


def mean_sd_table(records: pd.DataFrame, rows: str, columns: str, value: str, digits: int = 2) -> pd.DataFrame:
    """Table of texts "mean ± SD" of `value`, one row and column for each of `rows` and `columns`, as they appear."""
    _columns(records, [rows, columns, value])
    table = records.pivot_table(
        index=rows,
        columns=columns,
        values=value,
        aggfunc=lambda group: mean_sd(group, digits),
        dropna=False,
        sort=False,
    )
    return table.fillna("-")


def compare(records: pd.DataFrame, unit: str, condition: str, value: str, first: str, second: str) -> PairedTest:
    """Paired t-test of condition `first` against `second`, paired by `unit` (patient, seed); several values: their mean.

    Raises InputError when a unit has only one of the two.
    """
    _columns(records, [unit, condition, value])
    wide = records[records[condition].isin([first, second])].pivot_table(index=unit, columns=condition, values=value)
    for name in (first, second):
        if name not in wide.columns:
            raise InputError(f"records: no rows whose {condition} is {name}; expected both {first} and {second}")
    single = wide.index[wide.isna().any(axis=1)].tolist()
    if single:
        raise InputError(f"records: {unit} {', '.join(map(str, single))} lacks {first} or {second}; expected both")
    return paired_t_test(wide[first].to_numpy(), wide[second].to_numpy())
