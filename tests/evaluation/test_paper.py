"""The published protocol against a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eestudy import evaluation as ev
from eestudy.config import EestudyError

from .cases import BACKBONE, COSTS, random_run


def slow_score(logits, n, k, rule):
    """Score of sample n at exit k (from 0). Each rule in its own words."""
    p = sorted(torch.softmax(logits[k, n], dim=0).tolist(), reverse=True)
    if rule == "max-probability":
        return p[0]
    if rule == "margin":
        return p[0] - p[1]
    if rule == "entropy":
        return sum(q * math.log(q) for q in p)
    run = 1
    while run <= k and logits[k - run, n].argmax() == logits[k, n].argmax():
        run += 1
    return run


def slow_sweep(logits, labels, thresholds, rule):
    num_exits, num_samples, _ = logits.shape
    score = [[slow_score(logits, n, k, rule) for k in range(num_exits)] for n in range(num_samples)]
    right = (logits.argmax(-1) == labels).T.tolist()
    accuracies, costs = [], []
    for threshold in thresholds:
        correct = cost = 0
        for n in range(num_samples):
            k = 0
            while k < num_exits - 1 and not score[n][k] > threshold:
                k += 1
            correct += right[n][k]
            cost += COSTS[k]
        accuracies.append(correct / num_samples)
        costs.append(cost / num_samples)
    return accuracies, costs


def slow_thresholds(rule, num_exits, num_classes):
    if rule == "patience":
        return [float(k) for k in range(num_exits)]
    if rule == "entropy":
        return [-math.log(num_classes) * (99 - i) / 99 for i in range(100)]
    return [i / 99 for i in range(100)]


def slow_paper(runs, backbone, rule):
    """(run, budget) -> (threshold, accuracy, flops), or three NaN."""
    num_exits, _, num_classes = runs[0][0].shape
    thresholds = slow_thresholds(rule, num_exits, num_classes)
    sweeps = [slow_sweep(logits, labels, thresholds, rule) for logits, labels in runs]
    table = {}
    for budget in ("25", "50", "75", "100", "max"):
        chosen = None
        for i in range(len(thresholds)):
            mean = sum(cost[i] for _, cost in sweeps) / len(sweeps)
            if budget != "max" and mean > int(budget) / 100 * backbone:
                break
            chosen = i
        for run, (accuracy, cost) in enumerate(sweeps):
            found = None if chosen is None else (thresholds[chosen], accuracy[chosen], cost[chosen])
            table[run, budget] = found or (math.nan, math.nan, math.nan)
    return table


@pytest.mark.parametrize("rule", ["max-probability", "margin", "entropy", "patience"])
@pytest.mark.parametrize(
    ("seed", "backbone"),
    [
        (0, BACKBONE),
        (10, BACKBONE),
        (20, 300),  # 25 % is below the first exit: no threshold is feasible
        (30, 3000),  # 25 % is above the last exit: no threshold overshoots
    ],
)
def test_paper_budgets_equal_the_slow_reference(rule, seed, backbone):
    runs = [random_run(seed + i, (5, 40, 6)) for i in range(3)]
    frame = ev.paper_budgets(runs, COSTS, backbone, rule)
    reference = slow_paper(runs, backbone, rule)
    found = {(row[0], row[1]): row[2:] for row in frame.to_numpy().tolist()}
    assert found.keys() == reference.keys()
    assert len(frame) == len(found)
    for key, (threshold, accuracy, flops) in reference.items():
        assert found[key][0] == pytest.approx(threshold, abs=1e-12, nan_ok=True)
        np.testing.assert_array_equal(found[key][1:], [accuracy, flops])


def test_paper_edge_cases_are_really_there():
    runs = [random_run(20 + i, (5, 40, 6)) for i in range(3)]
    infeasible = ev.paper_budgets(runs, COSTS, 300)
    assert infeasible[infeasible.budget == "25"].accuracy.isna().all()
    assert infeasible[infeasible.budget != "25"].accuracy.notna().all()
    never_over = ev.paper_budgets(runs, COSTS, 3000)
    assert (never_over.threshold == 1.0).all()
    assert (never_over.flops == COSTS[-1]).all()


def test_paper_threshold_is_common_although_one_run_alone_overshoots():
    sure, unsure = random_run(1, gain=8.0), random_run(2, gain=0.5)
    frame = ev.paper_budgets([sure, unsure], COSTS, BACKBONE).query("budget == '50'")
    assert frame.threshold.nunique() == 1
    assert frame.flops.mean() <= 300 < frame.flops.max()


def test_paper_stops_at_the_first_excess():
    # The mean cost that falls again later must not tempt: checked on the helper, a sweep's own cost never
    # falls.
    from eestudy.sweeps import last_within

    for costs, chosen in (([1.0, 2.0, 5.0, 2.5], 1), ([1.0, 3.0, 5.0], 1), ([4.0, 1.0], None), ([1.0, 2.0], 1)):
        assert last_within(np.array([costs]), {"one": 3.0}) == [chosen]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.paper_budgets([], COSTS, 600), "at least one run"),
        (lambda x, y: ev.paper_budgets([(x, y), (x[:4], y)], COSTS, 600), "equal exits"),
        (lambda x, y: ev.paper_budgets([(x, y)], COSTS, 600, "max"), "max-probability"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(EestudyError, match=words):
        call(*random_run(0))
