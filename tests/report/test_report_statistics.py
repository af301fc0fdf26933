"""Statistics against hand-computed values and scipy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eestudy.config import EestudyError
from eestudy.report import statistics as st


def test_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, s 1, t(0.975, 2) = 4.302653 -> half 4.302653 / sqrt(3) = 2.484138
    interval = st.mean_interval([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n, interval.note) == (2.0, 3, "")
    assert interval.half == pytest.approx(2.484138, abs=1e-6)


def test_interval_agrees_with_scipy_and_leaves_nan_out() -> None:
    x = np.random.default_rng(0).normal(0.8, 0.02, 7)
    low, high = stats.t.interval(0.95, 6, loc=x.mean(), scale=stats.sem(x))
    interval = st.mean_interval([*x, math.nan])
    assert (interval.low, interval.high, interval.n) == (pytest.approx(low), pytest.approx(high), 7)


def test_interval_covers_the_true_mean_at_its_rate() -> None:
    draws = np.random.default_rng(1).normal(5, 2, (2000, 3))
    inside = [i.low <= 5 <= i.high for i in map(st.mean_interval, draws)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("values", "n", "note"),
    [([], 0, "no value"), ([0.5], 1, "one seed"), ([0.5, 0.5], 2, "the same in all 2 seeds")],
)
def test_no_interval_without_spread(values: list[float], n: int, note: str) -> None:
    interval = st.mean_interval(values)
    assert interval.n == n
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert note in interval.note


def test_paired_difference_agrees_with_scipy() -> None:
    rng = np.random.default_rng(2)
    a, b = (pd.Series(rng.normal(m, 0.01, 5)) for m in (0.82, 0.80))
    d, reference = st.paired_difference(a, b), stats.ttest_rel(a, b)
    assert d.p == pytest.approx(reference.pvalue)
    assert (d.low, d.high) == pytest.approx(tuple(reference.confidence_interval()))
    assert (d.n, d.unpaired) == (5, 0)
    assert d.sd == pytest.approx((a - b).std())


def test_seeds_are_paired_by_name_not_by_place() -> None:
    a = pd.Series({0: 0.5, 1: 0.7, 2: 0.9, 3: math.nan})
    b = pd.Series({2: 0.8, 1: 0.5, 5: 0.1, 0: 0.4})
    d = st.paired_difference(a, b)
    assert (d.n, d.unpaired) == (3, 1)  # 5 has no partner; 3 is missing in both
    assert d.mean == pytest.approx((0.1 + 0.2 + 0.1) / 3)


def test_equal_differences_make_no_test() -> None:
    d = st.paired_difference({0: 0.3, 1: 0.4}, {0: 0.1, 1: 0.2})  # 0.2 both times, up to the last bits
    assert d.mean == pytest.approx(0.2)
    assert math.isnan(d.p)
    assert math.isnan(d.low)
    assert "no interval" in d.note
    assert st.decision(d.mean, d.p) == ""


def test_no_common_seed() -> None:
    d = st.paired_difference({0: 0.3}, {1: 0.2})
    assert (d.n, d.unpaired) == (0, 2)
    assert math.isnan(d.mean)
    assert st.verdict(d.mean, d.low, d.high, d.p).startswith("not compared")


def test_holm_by_hand() -> None:
    # sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, each at least the one before; NaN is no comparison
    corrected = st.holm([0.02, 0.01, math.nan, 0.04, 0.03])
    assert corrected[[0, 1, 3, 4]] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert math.isnan(corrected[2])
    assert np.isnan(st.holm([math.nan, math.nan])).all()
    assert st.holm([]).shape == (0,)


def test_friedman_agrees_with_scipy() -> None:
    draws = np.random.default_rng(3).random((6, 3))
    values = pd.DataFrame(draws + np.array([0.0, 0.9, 2.5]), columns=list("abc"))
    test = st.friedman(values)
    p = stats.friedmanchisquare(*values.to_numpy().T).pvalue
    assert (test.p, test.n) == (pytest.approx(p), 6)
    assert test.ranks["c"] < test.ranks["b"] < test.ranks["a"]


def test_friedman_by_hand() -> None:
    # 5 cells in perfect agreement: ranks 1, 2, 3; 12 / (5 * 3 * 4) * (25 + 100 + 225) - 3 * 5 * 4 = 10
    test = st.friedman(pd.DataFrame([[3.0, 2.0, 1.0]] * 5, columns=list("abc")))
    assert test.p == pytest.approx(math.exp(-5))  # of chi-squared with 2 degrees of freedom
    assert test.ranks == {"a": 1.0, "b": 2.0, "c": 3.0}


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([[1.0, 2.0, 3.0]] * 4, "fewer than 5 cells"),
        ([[1.0, 2.0]] * 6, "fewer than 3 treatments"),
        ([[1.0, 1.0, 1.0]] * 6, "tie"),
        ([[1.0, 2.0, math.nan]] * 6, "fewer than 5 cells"),
    ],
)
def test_friedman_says_why_not(values: list[list[float]], note: str) -> None:
    test = st.friedman(pd.DataFrame(values))
    assert math.isnan(test.p)
    assert note in test.note


def test_verdict_wording() -> None:
    assert st.verdict(0.012, 0.009, 0.015, 0.01) == "better by 1.2 points (95 % interval +0.9 to +1.5)"
    assert st.verdict(-0.012, -0.015, -0.009, 0.01) == "worse by 1.2 points (95 % interval −1.5 to −0.9)"
    undecided = st.verdict(-0.003, -0.012, 0.006, 0.4)
    assert undecided == "no difference seen (−0.3 points, 95 % interval −1.2 to +0.6)"
    assert "no interval" in st.verdict(0.2, math.nan, math.nan, math.nan, "one seed: no interval")


def test_verdict_needs_the_corrected_test() -> None:
    text = st.verdict(0.012, 0.009, 0.015, 0.2)
    assert text.startswith("no difference seen after Holm's correction")
    assert "corrected p 0.2" in text


def test_smallest_difference_is_where_the_test_turns() -> None:
    least = st.smallest_difference(4, 0.01)
    spread = np.array([-1.0, 1.0, -1.0, 1.0]) * 0.01 * math.sqrt(3) / 2  # standard deviation 0.01
    for factor, significant in ((1.01, True), (0.99, False)):
        p = stats.ttest_1samp(spread + factor * least, 0).pvalue
        assert bool(p < 0.05) == significant
    assert math.isnan(st.smallest_difference(1, 0.01))


def test_points_has_no_negative_zero() -> None:
    assert [st.points(v) for v in (0.0, -0.0001, 0.0123, -0.0123)] == ["0.0", "0.0", "+1.2", "−1.2"]


def test_difficulty_counts_wrong_seed_exit_pairs() -> None:
    right, wrong = [0.0, 1.0], [1.0, 0.0]
    one = np.array([[right, right], [right, wrong]])  # (K 2, N 2, C 2)
    two = np.array([[right, wrong], [right, wrong]])
    assert st.share_wrong([one, two], np.array([1, 1])) == pytest.approx([0.0, 0.75])
    with pytest.raises(EestudyError, match="at least one seed"):
        st.share_wrong([], np.array([1]))


def test_a_family_is_corrected_together_and_has_its_columns_when_it_is_empty() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        ({"cell": name}, dict(enumerate(rng.normal(mean, 1, 8))), dict(enumerate(rng.normal(0, 1, 8))))
        for name, mean in (("far", 5.0), ("near", 0.1))
    ]
    frame = st.tested(("cell",), pairs).set_index("cell")
    alone = [stats.ttest_rel(list(a.values()), list(b.values())).pvalue for _, a, b in pairs]
    assert frame["p"].tolist() == pytest.approx(alone)
    assert frame.loc["far", "p_holm"] == pytest.approx(2 * alone[0])
    assert frame["decision"].tolist() == ["better", ""]
    assert frame.loc["far", "verdict"].startswith("better by ")
    empty = st.tested(("cell",), ())
    assert len(empty) == 0
    assert list(empty) == ["cell", *frame.columns]
