"""The published protocol against a slow reference, the calibrated one against its promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eestudy import evaluation as ev

COSTS = [110, 230, 350, 470, 620]
BACKBONE = 600


def random_run(seed, shape=(5, 120, 6), gain=1.0, coarse=False):
    """Logits that get better from exit to exit, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(shape[2], (shape[1],), generator=generator)
    logits = torch.randn(shape, generator=generator)
    logits[:, torch.arange(shape[1]), labels] += torch.linspace(0.3, 2.0, shape[0])[:, None]
    logits = logits * gain
    return (logits * 2).round() / 2 if coarse else logits, labels


# ---------------------------------------------------------------- paper


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
    frame = ev.paper_budgets([sure, unsure], COSTS, BACKBONE, budgets=["50"])
    assert frame.threshold.nunique() == 1
    assert frame.flops.mean() <= 300 < frame.flops.max()


def test_paper_stops_at_the_first_excess():
    # The mean cost that falls again later must not tempt: checked on the helper, a sweep's own cost never
    # falls.
    from eestudy.evaluation.budgets import _last_before_excess

    assert _last_before_excess(np.array([1.0, 2.0, 5.0, 2.5]), 3.0) == 1
    assert _last_before_excess(np.array([1.0, 3.0, 5.0]), 3.0) == 1
    assert _last_before_excess(np.array([4.0, 1.0]), 3.0) is None
    assert _last_before_excess(np.array([1.0, 2.0]), 3.0) == 1


# ---------------------------------------------------------------- calibrated


def realised(logits, thresholds, rule):
    return np.asarray(COSTS, dtype=float)[ev.simulate(logits, ev.per_exit(thresholds, rule)) - 1].mean()


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("allocation", ["geometric", "shared", None])
@pytest.mark.parametrize("rule", ["max-probability", "margin", "entropy", "patience"])
def test_the_budget_is_never_exceeded_on_validation(rule, allocation, coarse):
    for seed in range(4):
        logits, labels = random_run(seed, coarse=coarse)
        for budget in [110, 111, 180.5, 230, 300, 450, 599.9, 619.9]:
            thresholds = ev.calibrate(logits, labels, COSTS, budget, rule, allocation)
            assert thresholds.shape == (5,)
            assert thresholds[-1] == math.inf
            assert realised(logits, thresholds, rule) <= budget


def test_geometric_spends_the_budget():
    logits, labels = random_run(3, (5, 2000, 6))
    for budget in [150, 230, 300, 450, 600]:
        spent = realised(logits, ev.calibrate(logits, labels, COSTS, budget), "max-probability")
        # Rounding shares to whole samples can leave over about one sample an exit.
        assert budget - 5 * COSTS[-1] / 2000 <= spent <= budget


def test_geometric_shares_are_geometric():
    logits, labels = random_run(4, (5, 5000, 6))
    for budget in [200, 350, 500]:
        thresholds = ev.calibrate(logits, labels, COSTS, budget)
        counts = np.bincount(ev.simulate(logits, ev.per_exit(thresholds)), minlength=6)[1:]
        steps = np.diff(np.log(counts))
        assert counts.min() > 50
        assert np.abs(steps - steps.mean()).max() < 0.03


def test_the_most_confident_of_those_inside_leave():
    logits, labels = random_run(5)
    thresholds = ev.calibrate(logits, labels, COSTS, 300)
    score, where = ev.scores(logits), ev.simulate(logits, ev.per_exit(thresholds))
    for k in range(1, 5):
        assert score[k - 1, where == k].min() > score[k - 1, where > k].max()


def test_shared_takes_the_largest_cost_within_the_budget():
    logits, labels = random_run(6)
    costs = ev.tradeoff_curve(logits, labels, COSTS).cost
    for budget in [110, 200, 333, 500]:
        thresholds = ev.calibrate(logits, labels, COSTS, budget, allocation="shared")
        assert len(set(thresholds[:-1])) == 1
        assert realised(logits, thresholds, "max-probability") == costs[costs <= budget].max()


def test_everybody_leaves_at_once_or_nobody_ever():
    logits, labels = random_run(7)
    for allocation in ("geometric", "shared"):
        cheapest = ev.calibrate(logits, labels, COSTS, 110, allocation=allocation)
        assert cheapest[0] == -math.inf
        for budget in (620, 1e9):
            assert (ev.calibrate(logits, labels, COSTS, budget, allocation=allocation) == math.inf).all()
    assert (ev.simulate(logits, ev.per_exit(cheapest)) == 1).all()


def test_all_scores_equal():
    logits, labels = torch.zeros(5, 20, 3), torch.zeros(20, dtype=torch.int64)
    for allocation in ("geometric", "shared"):
        thresholds = ev.calibrate(logits, labels, COSTS, 400, allocation=allocation)
        assert realised(logits, thresholds, "max-probability") <= 400


def test_the_default_allocation():
    logits, labels = random_run(8)
    for rule, allocation in [
        ("max-probability", "geometric"),
        ("entropy", "geometric"),
        ("patience", "shared"),
    ]:
        np.testing.assert_array_equal(
            ev.calibrate(logits, labels, COSTS, 300, rule),
            ev.calibrate(logits, labels, COSTS, 300, rule, allocation),
        )


@pytest.mark.parametrize("rule", ["max-probability", "patience"])
def test_calibration_never_reads_the_test_set(rule):
    validation, (logits, labels) = random_run(9), random_run(10)
    before = ev.calibrated_budgets(validation, (logits, labels), COSTS, BACKBONE, rule)
    other_labels = ev.calibrated_budgets(validation, (logits, labels.roll(1)), COSTS, BACKBONE, rule)
    # Other test labels: the same samples leave at the same exits.
    assert before.flops.tolist() == other_labels.flops.tolist()
    assert before.accuracy.tolist() != other_labels.accuracy.tolist()
    # A test set twice as long, of the same samples: not a digit changes, so no threshold did.
    doubled = ev.calibrated_budgets(validation, (logits.repeat(1, 2, 1), labels.repeat(2)), COSTS, BACKBONE, rule)
    np.testing.assert_allclose(doubled[["accuracy", "flops"]], before[["accuracy", "flops"]], rtol=1e-12)
    # And the numbers are those of the thresholds that validation alone gives.
    for budget, accuracy, flops in before[before.budget != "max"].to_numpy().tolist():
        thresholds = ev.calibrate(validation[0], validation[1], COSTS, int(budget) / 100 * BACKBONE, rule)
        where = ev.simulate(logits, ev.per_exit(thresholds, rule)) - 1
        correct = logits.argmax(-1).numpy()[where, np.arange(120)] == labels.numpy()
        assert accuracy == correct.mean()
        assert flops == np.asarray(COSTS, dtype=float)[where].mean()


def test_each_test_sample_is_judged_by_itself():
    # Thresholds that adapted to the test set would give a sample another exit in other company.
    validation, (logits, labels) = random_run(11), random_run(12)
    whole = ev.calibrated_budgets(validation, (logits, labels), COSTS, BACKBONE)
    parts = [
        ev.calibrated_budgets(validation, (logits[:, rows], labels[rows]), COSTS, BACKBONE)
        for rows in (slice(0, 60), slice(60, 120))
    ]
    np.testing.assert_allclose((parts[0].flops + parts[1].flops) / 2, whole.flops, rtol=1e-12)


def test_labels_play_no_part_in_the_thresholds():
    logits, labels = random_run(13)
    for allocation in ("geometric", "shared"):
        np.testing.assert_array_equal(
            ev.calibrate(logits, labels, COSTS, 300, allocation=allocation),
            ev.calibrate(logits, labels.roll(5), COSTS, 300, allocation=allocation),
        )


def test_calibrated_table():
    validation, test = random_run(14), random_run(15)
    frame = ev.calibrated_budgets(validation, test, COSTS, 400)  # 25 % = 100 < 110
    assert frame.columns.tolist() == ["budget", "accuracy", "flops"]
    assert frame.budget.tolist() == list(ev.BUDGETS)
    assert frame.iloc[0, 1:].isna().all()
    assert frame.iloc[1:, 1:].notna().all(axis=None)
    last = frame.iloc[-1]
    assert (last.accuracy, last.flops) == (ev.exit_metrics(*test).accuracy.iloc[-1], COSTS[-1])


def test_calibrated_curve_is_the_table_on_a_grid():
    validation, test = random_run(16), random_run(17)
    table = ev.calibrated_budgets(validation, test, COSTS, BACKBONE, budgets=["25", "50", "75"])
    curve = ev.calibrated_curve(validation, test, COSTS, BACKBONE, fractions=[0.1, 0.25, 0.5, 0.75])
    assert curve.budget.tolist() == [0.1, 0.25, 0.5, 0.75]
    assert curve.iloc[0, 1:].isna().all()
    assert curve.iloc[1:, 1:].to_numpy().tolist() == table.iloc[:, 1:].to_numpy().tolist()
    default = ev.calibrated_curve(validation, test, COSTS, BACKBONE)
    assert default.budget.min() == 0.05
    assert default.flops.iloc[-1] == COSTS[-1]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.calibrate(x, y, COSTS, 109), "109.*110"),
        (lambda x, y: ev.calibrate(x, y, COSTS, math.nan), "nan"),
        (lambda x, y: ev.calibrate(x, y, COSTS, math.inf), "inf"),
        (lambda x, y: ev.calibrate(x, y, COSTS, "50"), "'50'"),  # type: ignore[arg-type]
        (lambda x, y: ev.calibrate(x[:, :0], y[:0], COSTS, 300), "0 samples"),
        (lambda x, y: ev.calibrate(x[:4], y, COSTS, 300), "4 exits"),
        (lambda x, y: ev.calibrate(x, y[:-1], COSTS, 300), "120"),
        (lambda x, y: ev.calibrate(x, y + 6, COSTS, 300), r"0\.\.5"),
        (lambda x, y: ev.calibrate(x / 0.0, y, COSTS, 300), "NaN"),
        (lambda x, y: ev.calibrate(x, y, COSTS, 300, "patienc"), "patience"),
        (lambda x, y: ev.calibrate(x, y, COSTS, 300, allocation="even"), "geometric, shared"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x[:, :, :5], y % 5), COSTS, 600), "differ"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x[:4], y), COSTS, 600), "differ"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 0), "backbone_flops"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 600, budgets=["half"]), "'half'"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 600, budgets=["inf"]), "'inf'"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 600, budgets=["-5"]), "'-5'"),
        (lambda x, y: ev.calibrated_curve((x, y), (x, y), COSTS, 600, fractions=[0.5, math.nan]), "nan"),
        (lambda x, y: ev.calibrated_curve((x, y), (x, y), COSTS, math.nan), "backbone_flops"),
        (lambda x, y: ev.paper_budgets([], COSTS, 600), "at least one run"),
        (lambda x, y: ev.paper_budgets([(x, y), (x[:4], y)], COSTS, 600), "equal exits"),
        (lambda x, y: ev.paper_budgets([(x, y)], COSTS, 600, "max"), "max-probability"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call(*random_run(0))
