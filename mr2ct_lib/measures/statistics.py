"""Is a difference more than chance? Tests with their size and spread, corrected for their number, and tables.

A small p alone says little: with many slices any difference is "significant". So each test carries the difference in
its own unit, its confidence interval and its effect size. Count patients and seeds, not slices: slices of one patient
are not independent, and neither are patients translated by one trained network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mr2ct_lib.files import InputError

ALPHA = 0.05  # below this p a claim is supported
LEAST_SEEDS = 3  # fewer allow no verdict on a method: a GAN's seed decides too much


@dataclass(frozen=True)
class PairedTest:
    """Result of a test on the differences first - second."""

    t: float
    p: float  # two-sided
    mean_difference: float  # in the unit of the measure
    interval: tuple[float, float]  # confidence interval of the mean difference
    effect_size: float  # mean difference / SD of the differences (Cohen's dz)
    n: int  # pairs
    confidence: float = 0.95

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"difference {self.mean_difference:.3g} ({self.confidence:.0%} interval {low:.3g} to {high:.3g}), "
            f"t({self.n - 1}) = {self.t:.3g}, p = {self.p:.2g}, dz = {self.effect_size:.2g}, n = {self.n}"
        )


def paired_t_test(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedTest:
    """Test first against second, pair by pair, with a two-sided paired t-test (Hiasa et al.; Wang et al. report none).

    Raises InputError for fewer than two pairs, unequal lengths, NaN, and differences that are all the same, for which t
    is not defined.

    >>> print(paired_t_test([30.1, 26.9, 33.7], [29.0, 26.2, 32.9]))
    difference 0.867 (95% interval 0.35 to 1.38), t(2) = 7.21, p = 0.019, dz = 4.2, n = 3
    """
    first, second = _values(first, "first"), _values(second, "second")
    if len(first) != len(second):
        raise InputError(f"second: {len(second)} values; expected {len(first)}, one for each value of first")
    _check_confidence(confidence)
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


# --- seeds and patients together ---


@dataclass(frozen=True)
class CrossedTest:
    """Result of a test on differences first - second over S seeds x P patients, both a random sample."""

    mean_difference: float  # in the unit of the measure
    interval: tuple[float, float]  # confidence interval of the mean difference, for new seeds and new patients
    p: float  # two-sided
    degrees: float  # of freedom
    effect_size: float  # mean difference / SD of a single difference (one new seed, one new patient)
    effect_interval: tuple[float, float]  # the interval of the mean difference / the same SD
    seeds: int
    patients: int
    confidence: float = 0.95

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"difference {self.mean_difference:.3g} ({self.confidence:.0%} interval {low:.3g} to {high:.3g}), "
            f"p = {self.p:.2g}, d = {self.effect_size:.2g}, {self.seeds} seeds x {self.patients} patients"
        )


def crossed_test(differences: np.ndarray, confidence: float = 0.95) -> CrossedTest:
    """Test whether the mean difference is 0, with seeds and patients as crossed random factors.

    differences (S, P): first - second for each training seed and each patient. The model is

        d[s, p] = mean + seed[s] + patient[p] + rest[s, p],

    the balanced two-way mixed model. With the mean squares of seeds, patients and rest, the variance of the mean is
    (MS_seed + MS_patient - MS_rest) / (S P), here never less than either factor alone gives; its degrees of freedom are
    Satterthwaite's. So neither many patients nor many slices make up for few seeds.

    Raises InputError for fewer than two seeds or patients, NaN, and differences without variation.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or min(d.shape) < 2:
        raise InputError(f"differences: shape {d.shape}; expected (seeds, patients) with at least 2 of each")
    if not np.isfinite(d).all():
        raise InputError(f"differences: {int((~np.isfinite(d)).sum())} are NaN or infinite; expected numbers")
    _check_confidence(confidence)
    seeds, patients = d.shape
    mean, by_seed, by_patient = d.mean(), d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
    degrees = np.array([seeds - 1, patients - 1, (seeds - 1) * (patients - 1)])
    rest = d - by_seed - by_patient + mean
    squares = [patients * ((by_seed - mean) ** 2).sum(), seeds * ((by_patient - mean) ** 2).sum(), (rest**2).sum()]
    ms_seed, ms_patient, ms_rest = ms = np.array(squares) / degrees
    total = max(ms_seed + ms_patient - ms_rest, ms_seed, ms_patient)
    if total <= (1e-12 * np.abs(d).max()) ** 2:
        raise InputError("differences: neither seeds nor patients differ in their means; expected some variation")
    error = np.sqrt(total / d.size)
    freedom = max(float(total**2 / (ms**2 / degrees).sum()), float(degrees[:2].min()))
    t = mean / error
    reach = stats.t.ppf(0.5 + confidence / 2, freedom) * error
    interval = (float(mean - reach), float(mean + reach))
    single = max(ms_seed - ms_rest, 0) / patients + max(ms_patient - ms_rest, 0) / seeds + ms_rest
    spread = np.sqrt(single)
    return CrossedTest(
        mean_difference=float(mean),
        interval=interval,
        p=float(2 * stats.t.sf(abs(t), freedom)),
        degrees=freedom,
        effect_size=float(mean / spread),
        effect_interval=(interval[0] / spread, interval[1] / spread),
        seeds=seeds,
        patients=patients,
        confidence=confidence,
    )


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values corrected for their number by Holm's method (1979), in the order given.

    The smallest is multiplied by n, the next by n - 1, ...; none falls below an earlier one, none exceeds 1. Rejecting
    what stays below alpha keeps the chance of any false rejection in the family below alpha.

    >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"p_values: {p_values}; expected numbers from 0 to 1 in one row")
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


@dataclass(frozen=True)
class Claim:
    """A claim to be tested: that `better` is better than `against` in `measure`.

    rows: what the records must hold, such as {"direction": "source_to_target"}.
    """

    better: str
    against: str
    measure: str
    lower_is_better: bool
    rows: tuple[tuple[str, str], ...] = ()


def weigh_claims(records: pd.DataFrame, claims: Sequence[Claim]) -> pd.DataFrame:
    """Test a family of claims over seeds and patients, corrected by Holm, a row per claim.

    records: columns run, seed, patient, those of the claims' `rows`, and the measures. Only seeds and patients that
    both runs have are compared; a baseline, recorded once with seed 0, is compared with each seed.
    Columns of the result: better, against, measure, the rows' columns, difference (better - against), low, high,
    effect, effect low, effect high, p, p Holm, seeds, patients, verdict. Claims with fewer than 3 seeds have no p, do
    not count in the family, and their verdict is "n too small".

    Raises InputError when a column is missing, and for several rows of a run for one seed and patient.
    """
    if not claims:
        raise InputError("claims: none given; expected at least one")
    conditions = dict.fromkeys(column for claim in claims for column, _ in claim.rows)
    table = pd.DataFrame(
        [_weighed(records, claim) for claim in claims],
        columns=["better", "against", "measure", *conditions, "difference", "low", "high", "effect", "effect low",
                 "effect high", "p", "p Holm", "seeds", "patients"],
    )  # fmt: skip
    tested = table.p.notna()
    table.loc[tested, "p Holm"] = holm(table.p[tested])
    table["verdict"] = [
        verdict(row.difference, row["p Holm"], row.seeds, claim.lower_is_better)
        for claim, (_, row) in zip(claims, table.iterrows(), strict=True)
    ]
    return table


def _weighed(records: pd.DataFrame, claim: Claim) -> dict[str, Any]:
    """A claim's row in the table of `weigh_claims`, as far as it does not depend on other claims."""
    conditions = dict(claim.rows)
    check_columns(records, ["run", "seed", "patient", claim.measure, *conditions])
    chosen = records[np.logical_and.reduce([np.ones(len(records), bool)] + [
        (records[column] == value).to_numpy() for column, value in conditions.items()
    ])]  # fmt: skip
    compared = chosen[chosen.run.isin((claim.better, claim.against))]
    if len(twice := compared[compared.duplicated(["run", "seed", "patient"])]):
        raise InputError(
            f"records: {twice.run.iloc[0]} has several rows for one seed and patient; expected one. Choose one split, "
            "cohort and direction"
        )
    first, second = (
        chosen[chosen.run == run].pivot_table(index="seed", columns="patient", values=claim.measure)
        for run in (claim.better, claim.against)
    )
    if list(second.index) == [0]:  # a baseline is the same for every seed
        second = second.loc[[0] * len(first)].set_axis(first.index)
    difference = (first - second).dropna(axis=0, how="all").dropna(axis=1).to_numpy()
    seeds, patients = difference.shape
    row = {"better": claim.better, "against": claim.against, "measure": claim.measure, **conditions}
    row |= {"seeds": seeds, "patients": patients if seeds else 0}
    row |= {"difference": difference.mean() if difference.size else np.nan}
    if seeds >= LEAST_SEEDS and patients >= 2:
        result = crossed_test(difference)
        row |= dict(zip(("low", "high"), result.interval, strict=True)) | {"p": result.p, "effect": result.effect_size}
        row |= dict(zip(("effect low", "effect high"), result.effect_interval, strict=True))
    return row


def verdict(difference: float, p: float, seeds: int, lower_is_better: bool) -> str:
    """Return "supported", "not supported" or "n too small" (fewer than 3 seeds).

    difference: better - against; p: corrected for the family of claims, below ALPHA where the claim is supported.

    >>> verdict(-2.0, 0.001, 5, lower_is_better=True), verdict(-2.0, 0.001, 2, lower_is_better=True)
    ('supported', 'n too small')
    """
    if seeds < LEAST_SEEDS or np.isnan(p):
        return "n too small"
    right_side = difference < 0 if lower_is_better else difference > 0
    return "supported" if p < ALPHA and right_side else "not supported"


# --- tables ---


def mean_sd(values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± sample SD as text, NaN left out; "-" without values, no SD for one.

    >>> mean_sd([18.5, 18.57, 18.2]), mean_sd([0.5]), mean_sd([])
    ('18.42 ± 0.20', '0.50', '-')
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        return "-"
    text = f"{values.mean():.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def _values(values: Sequence[float], name: str) -> np.ndarray:
    """Return a 1D float array of at least two finite values; InputError otherwise."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(
            f"{name}: shape {values.shape}; expected at least 2 values in one row. Measure more patients or seeds"
        )
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise InputError(f"{name}: {count} are NaN or infinite; expected numbers. Drop those pairs")
    return values


def _check_confidence(confidence: float) -> None:
    """InputError unless the confidence is a share."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence}; expected a share between 0 and 1, such as 0.95")


def check_columns(records: pd.DataFrame, needed: Sequence[str]) -> None:
    """InputError unless the table has these columns and at least one row."""
    missing = [name for name in needed if name not in records.columns]
    if missing:
        raise InputError(
            f"records: no column {', '.join(missing)}; expected it among {', '.join(map(str, records.columns))}"
        )
    if records.empty:
        raise InputError("records: no rows; expected at least one measurement")
