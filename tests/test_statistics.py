"""Paired tests against scipy and by hand; intervals that cover; tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from mr2ct_lib.files import InputError
from mr2ct_lib.measures.statistics import (
    Claim,
    crossed_test,
    holm,
    paired_t_test,
    weigh_claims,
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


# --- seeds and patients as crossed factors ---


def crossed(rng, seeds=4, patients=8, sd=(1.0, 1.0, 1.0), mean=0.0):
    """Differences with effects of seeds and patients, (seeds, patients)."""
    return (
        mean
        + rng.normal(0, sd[0], (seeds, 1))
        + rng.normal(0, sd[1], (1, patients))
        + rng.normal(0, sd[2], (seeds, patients))
    )


def test_crossed_by_hand():
    """Rows (1, 3), (3, 5), (5, 13): seeds' means 2, 4, 9, patients' 3, 7; MS 26, 24, 6; variance of the mean 44 / 6."""
    test = crossed_test(np.array([[1.0, 3], [3, 5], [5, 13]]))
    assert (test.mean_difference, test.seeds, test.patients) == (5, 3, 2)
    t = 5 / np.sqrt(44 / 6)
    degrees = 44**2 / (26**2 / 2 + 24**2 / 1 + 6**2 / 2)
    assert test.degrees == pytest.approx(degrees)
    assert test.p == pytest.approx(2 * stats.t.sf(t, degrees))
    spread = np.sqrt((26 - 6) / 2 + (24 - 6) / 3 + 6)
    assert test.effect_size == pytest.approx(5 / spread)
    reach = stats.t.ppf(0.975, degrees) * np.sqrt(44 / 6)
    assert test.interval == pytest.approx((5 - reach, 5 + reach))
    assert test.effect_interval == pytest.approx(((5 - reach) / spread, (5 + reach) / spread))


def test_without_an_effect_of_the_seed_it_is_the_paired_t_test_of_the_patients():
    """Differences that are equal for all seeds: only patients vary."""
    by_patient = np.array([0.3, 1.2, -0.4, 0.9, 0.5])
    test = crossed_test(np.tile(by_patient, (3, 1)))
    expected = stats.ttest_1samp(by_patient, 0)
    assert test.p == pytest.approx(expected.pvalue)
    assert test.mean_difference == pytest.approx(by_patient.mean())


def test_crossed_intervals_cover_the_truth_where_one_factor_alone_does_not():
    rng = np.random.default_rng(0)
    tables = [crossed(rng, mean=1.0, sd=(1, 0.5, 0.5)) for _ in range(400)]
    covered = np.mean([low <= 1 <= high for low, high in (crossed_test(d).interval for d in tables)])
    assert 0.93 <= covered <= 0.995
    patients_only = [stats.ttest_1samp(d.mean(axis=0), 1).pvalue > 0.05 for d in tables]
    assert np.mean(patients_only) < 0.7  # this is what counting patients alone would claim


def test_crossed_test_does_not_reject_too_often_with_three_seeds():
    rng = np.random.default_rng(1)
    p = [crossed_test(crossed(rng, seeds=3, patients=10)).p for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) < 0.07


def test_more_patients_do_not_make_up_for_few_seeds():
    rng = np.random.default_rng(2)
    seeds = rng.normal(1, 1, (3, 1))
    few, many = (crossed_test(seeds + rng.normal(0, 0.1, (3, n))) for n in (5, 500))
    assert np.ptp(many.interval) > 0.8 * np.ptp(few.interval)


@pytest.mark.parametrize(
    "differences, word",
    [(np.ones((1, 5)), "at least 2"), (np.ones((3, 4)), "variation"), (np.full((3, 3), np.nan), "NaN")],
)
def test_crossed_refusals(differences, word):
    with pytest.raises(InputError, match=word):
        crossed_test(differences)


def test_crossed_by_hand_where_the_rest_is_larger_than_the_seeds():
    """(1, 5), (3, 3): MS of seeds 0, of patients 4, of the rest 4; t(1) is 12.706 at 97.5 %, 6.314 at 95 %."""
    for confidence, t in ((0.95, 12.7062), (0.9, 6.31375)):
        test = crossed_test(np.array([[1.0, 5], [3, 3]]), confidence)
        assert test.interval == pytest.approx((3 - t, 3 + t), rel=1e-4)
        assert (test.degrees, test.effect_size) == (1, 1.5)


def test_holm_by_hand():
    """0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1: the last may not fall below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02]) and len(holm([])) == 0
    with pytest.raises(InputError, match="from 0 to 1"):
        holm([0.1, 1.2])


def records_of(differences, runs=("GC", "no GC"), direction="there"):
    """Records in which runs[0] has the given differences (seeds, patients) to runs[1], whose values are 20."""
    rows = []
    for (seed, patient), d in np.ndenumerate(differences):
        for run, value in zip(runs, (20 + d, 20.0), strict=True):
            rows.append({"run": run, "seed": seed, "patient": f"p{patient}", "MAE": value, "direction": direction})
    return pd.DataFrame(rows)


def test_claims_are_a_family():
    rng = np.random.default_rng(3)
    clear, none = crossed(rng, 5, 10, (0.2, 0.2, 0.2), mean=-3), crossed(rng, 5, 10, (1, 1, 1))
    records = pd.concat([records_of(clear), records_of(none, direction="back")])
    claims = [Claim("GC", "no GC", "MAE", True, (("direction", way),)) for way in ("there", "back")]
    table = weigh_claims(records, claims)
    assert table.verdict.tolist() == ["supported", "not supported"]
    assert table["p Holm"].tolist() == pytest.approx(holm(table.p).tolist())
    assert (table["p Holm"] >= table.p).all() and table.seeds.tolist() == [5, 5]
    first = crossed_test(clear)
    assert table.difference[0] == pytest.approx(first.mean_difference)
    assert (table.low[0], table.high[0]) == pytest.approx(first.interval)
    other_side = weigh_claims(records, [Claim("no GC", "GC", "MAE", True, (("direction", "there"),))])
    assert other_side.verdict.tolist() == ["not supported"]  # significant, on the other side


def test_claims_are_weighed_by_the_corrected_p_on_the_side_that_is_better():
    """p of about 0.03 twice: each alone below 5 %, Holm's 0.06 not; MI is better where it is larger."""
    d = crossed(np.random.default_rng(3), 5, 10, (0.2, 0.2, 0.2))
    centred = d - d.mean()
    claimed = centred - 1.1 * np.ptp(crossed_test(centred).interval) / 2
    two = pd.concat([records_of(claimed, direction=way) for way in ("there", "back")])
    claims = [Claim("GC", "no GC", "MAE", True, (("direction", way),)) for way in ("there", "back")]
    alone, family = weigh_claims(two, claims[:1]), weigh_claims(two, claims)
    assert 0.025 < alone.p[0] < 0.05 and alone.verdict.tolist() == ["supported"]
    assert family.verdict.tolist() == ["not supported"] * 2
    expected = crossed_test(claimed)
    assert (alone.effect[0], alone["effect low"][0], alone["effect high"][0]) == pytest.approx(
        (expected.effect_size, *expected.effect_interval)
    )
    larger = records_of(3 + d).rename(columns={"MAE": "MI"})
    assert weigh_claims(larger, [Claim("GC", "no GC", "MI", False)]).verdict.tolist() == ["supported"]
    assert weigh_claims(larger, [Claim("no GC", "GC", "MI", False)]).verdict.tolist() == ["not supported"]


def test_no_verdict_below_three_seeds_and_none_of_them_counts_in_the_family():
    rng = np.random.default_rng(4)
    clear, few = crossed(rng, 5, 10, (0.2, 0.2, 0.2), mean=-3), crossed(rng, 2, 10, (0.1, 0.1, 0.1), mean=-3)
    records = pd.concat([records_of(clear), records_of(few, direction="back")])
    claims = [Claim("GC", "no GC", "MAE", True, (("direction", way),)) for way in ("there", "back", "nowhere")]
    table = weigh_claims(records, claims)
    assert table.verdict.tolist() == ["supported", "n too small", "n too small"]
    assert table["p Holm"][0] == table.p[0] and table.p[1:].isna().all() and table.seeds.tolist() == [5, 2, 0]
    with pytest.raises(InputError, match="no column dose"):
        weigh_claims(records, [Claim("GC", "no GC", "dose", True)])
    with pytest.raises(InputError, match="several rows"):  # of both directions, which a mean would hide
        weigh_claims(records, [Claim("GC", "no GC", "MAE", True)])


def test_only_seeds_and_patients_of_both_are_compared():
    rng = np.random.default_rng(5)
    records = records_of(crossed(rng, 4, 6, mean=-3))
    records = records[(records.run != "GC") | (records.seed != 3)]
    records = records[(records.run != "no GC") | (records.patient != "p5")]
    table = weigh_claims(records, [Claim("GC", "no GC", "MAE", True)])
    assert (table.seeds[0], table.patients[0]) == (3, 5)


def test_a_baseline_stands_against_every_seed():
    d = crossed(np.random.default_rng(7), 4, 6, mean=-3)
    records = records_of(d)
    once = records[(records.run == "no GC") & (records.seed == 1)].assign(run="curve", seed=0)
    table = weigh_claims(pd.concat([records, once]), [Claim("GC", "curve", "MAE", True)])
    assert (table.seeds[0], table.patients[0]) == (4, 6)
    assert table.difference[0] == pytest.approx(d.mean()) and table.p[0] == pytest.approx(crossed_test(d).p)


def restricted_likelihood(variances, d):
    """-2 log of the restricted likelihood of the mixed model, and the variance of its mean."""
    seeds, patients = d.shape
    same_seed = np.kron(np.eye(seeds), np.ones((patients, patients)))
    same_patient = np.kron(np.ones((seeds, seeds)), np.eye(patients))
    covariance = variances[0] * same_seed + variances[1] * same_patient + variances[2] * np.eye(d.size)
    ones, inverse = np.ones(d.size), np.linalg.inv(covariance)
    information = ones @ inverse @ ones
    rest = d.ravel() - (ones @ inverse @ d.ravel()) / information
    value = np.linalg.slogdet(covariance)[1] + np.log(information) + rest @ inverse @ rest
    return value, 1 / information


def test_the_crossed_test_is_the_mixed_model_fitted_by_restricted_likelihood():
    """In a balanced design the mean squares give the REML estimates while all components are positive."""
    d = crossed(np.random.default_rng(6), 6, 9, (1.0, 1.0, 0.5), mean=1.0)
    options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000}
    fit = optimize.minimize(
        lambda logs: restricted_likelihood(np.exp(logs), d)[0], np.zeros(3), method="Nelder-Mead", options=options
    )
    test = crossed_test(d)
    error = np.ptp(test.interval) / 2 / stats.t.ppf(0.975, test.degrees)
    assert error**2 == pytest.approx(restricted_likelihood(np.exp(fit.x), d)[1], rel=1e-4)
    assert test.effect_size == pytest.approx(test.mean_difference / np.sqrt(np.exp(fit.x).sum()), rel=1e-4)
