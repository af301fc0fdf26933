"""Statistics against hand-computed values and scipy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

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
    frame = st.tested((), [({}, {0: 0.3}, {1: 0.2})])
    assert frame["verdict"][0] == "not compared (no common seed)"


def test_holm_by_hand() -> None:
    # sorted 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.04 x 1, each at least the one before; NaN is no comparison
    corrected = st.holm([0.02, 0.01, math.nan, 0.04, 0.03])
    assert corrected[[0, 1, 3, 4]] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert math.isnan(corrected[2])
    assert np.isnan(st.holm([math.nan, math.nan])).all()
    assert st.holm([]).shape == (0,)
    draws = np.random.default_rng(0).random(9) ** 3
    assert st.holm(draws) == pytest.approx(multipletests(draws, method="holm")[1])


def row(seeds: dict[int, float]) -> object:
    return next(st.tested((), [({}, seeds, dict.fromkeys(seeds, 0.0))]).itertuples())


def test_verdict_wording() -> None:
    assert st.verdict(row({0: 0.012, 1: 0.013, 2: 0.011})) == "better by 1.2 points [+1.0, +1.4]"
    assert st.verdict(row({0: -0.012, 1: -0.013, 2: -0.011})) == "worse by 1.2 points [−1.4, −1.0]"
    assert st.verdict(row({0: 0.001, 1: -0.001, 2: 0.0})) == "equivalent within 0.5 points: 0.0 points [−0.2, +0.2]"
    assert st.verdict(row({0: 0.003, 1: -0.003, 2: 0.0})) == "equivalent within 1 point: 0.0 points [−0.7, +0.7]"
    assert st.verdict(row({0: 0.03, 1: -0.02, 2: 0.01})) == "inconclusive: +0.7 points [−5.6, +6.9]"
    assert st.verdict(row({0: 0.2})) == "inconclusive: +20.0 points (one seed: no interval)"


def test_words_need_the_corrected_test() -> None:
    """A difference that one test alone would call is inconclusive among many."""
    seeds, none = {0: 0.012, 1: 0.007, 2: 0.018}, {0: 0.03, 1: -0.02, 2: 0.01}
    zeros = dict.fromkeys(seeds, 0.0)
    frame = st.tested((), [({}, seeds, zeros), *[({}, none, zeros)] * 4])
    assert frame["p"][0] < 0.07
    assert frame["low"][0] < 0.0 or frame["decision"][0] == ""
    assert st.word(next(frame.itertuples())) == "inconclusive"


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
