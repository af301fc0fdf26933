"""The area under a trade-off curve and the cost of a goal, against sums done by hand and a slow integral."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eestudy import evaluation as ev
from eestudy.config import EestudyError

from .cases import COSTS, random_run


def test_area_by_hand():
    # 0.5 from 100 to 200, 0.8 from 200 to 400, 0.9 at 400.
    points = [100, 200, 400], [0.5, 0.8, 0.9]
    assert ev.area_under_curve(*points, low=100, high=400) == pytest.approx((100 * 0.5 + 200 * 0.8) / 300)
    assert ev.area_under_curve(*points, low=150, high=600) == pytest.approx((50 * 0.5 + 200 * 0.8 + 200 * 0.9) / 450)
    assert ev.area_under_curve(*points, low=400, high=500) == pytest.approx(0.9)
    assert ev.area_under_curve(*points, low=250, high=250) == 0.8
    assert ev.area_under_curve([100.0], [0.7], low=100, high=100) == 0.7
    assert math.isnan(ev.area_under_curve(*points, low=99, high=400))


def test_of_equal_costs_the_last_counts():
    assert ev.area_under_curve([1, 1, 2], [0.1, 0.6, 0.9], low=1, high=2) == pytest.approx(0.6)


def test_summary_of_the_paper_protocol_equals_a_walk_over_budgets():
    logits, labels = random_run(1, (5, 90, 4))
    curve = ev.tradeoff_curve(logits, labels, COSTS)
    row = ev.curve_summary((logits, labels), COSTS).iloc[0]
    budgets = np.linspace(110, 620, 200_001)[:-1]
    rows = np.searchsorted(curve.cost.to_numpy(), budgets, side="right") - 1
    assert row.area == pytest.approx(curve.accuracy.to_numpy()[rows].mean(), abs=1e-5)
    last = ev.exit_metrics(logits, labels).accuracy.iloc[-1]
    assert row.goal == pytest.approx(0.99 * last)
    cheapest = next(point for point in curve.itertuples() if point.accuracy >= 0.99 * last)
    assert (row.threshold, row.cost, row.accuracy) == (cheapest.threshold, cheapest.cost, cheapest.accuracy)
    assert (row.protocol, row.reason) == ("paper", "")
    assert row.cost < 620


def test_the_calibrated_summary_chooses_on_validation_and_measures_on_test():
    validation, test = random_run(2, (5, 90, 4)), random_run(3, (5, 70, 4))
    row = ev.curve_summary(test, COSTS, "entropy", validation=validation).iloc[0]
    curve = ev.tradeoff_curve(validation[0], validation[1], COSTS, "entropy")
    goal = 0.99 * ev.exit_metrics(*validation).accuracy.iloc[-1]
    chosen = next(point for point in curve.itertuples() if point.accuracy >= goal)
    where = ev.simulate(test[0], ev.per_exit([chosen.threshold] * 5, "entropy")) - 1
    assert row.threshold == chosen.threshold
    assert row.cost == np.asarray(COSTS, dtype=float)[where].mean()
    assert row.accuracy == (test[0].argmax(-1) == test[1]).numpy()[where, np.arange(70)].mean()
    accuracy, _ = ev.threshold_sweep(test[0], test[1], COSTS, curve.threshold, "entropy")
    budgets = np.linspace(110, 620, 200_001)[:-1]  # spent on validation
    rows = np.searchsorted(curve.cost.to_numpy(), budgets, side="right") - 1
    assert row.area == pytest.approx(accuracy[rows].mean(), abs=1e-5)
    other = ev.curve_summary((test[0], test[1].roll(1)), COSTS, "entropy", validation=validation).iloc[0]
    assert (other.threshold, other.cost) == (row.threshold, row.cost)
    assert other.area < row.area


def test_a_goal_out_of_reach_is_nan_with_its_reason():
    logits, labels = random_run(4, (5, 90, 4))
    row = ev.curve_summary((logits, labels), COSTS, reference=1 / 0.99).iloc[0]
    best = ev.tradeoff_curve(logits, labels, COSTS).accuracy.max()
    assert row[["threshold", "cost", "accuracy"]].isna().all()
    assert row.reason.startswith(f"no threshold reaches 0.99 x 1.01 = 1; the best is {best:.4g} at ")
    assert row.area > 0
    wrong = (logits.argmax(-1)[-1] + 1) % 4  # the last exit is never right
    assert "is not above 0" in ev.curve_summary((logits, wrong), COSTS).iloc[0].reason


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.curve_summary((x, y), COSTS, validation=(x[:4], y)), "differ in exits"),
        (lambda x, y: ev.curve_summary((x, y[:-1]), COSTS), "120"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(EestudyError, match=words):
        call(*random_run(0))
