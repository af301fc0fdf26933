"""The calibrated protocol against its promises, its optimized thresholds against an exhaustive search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from eestudy import evaluation as ev
from eestudy.config import EestudyError
from eestudy.evaluation.budgets import budgets_of_both

from .cases import BACKBONE, COSTS, random_run

# ---------------------------------------------------------------- calibrated


def realised(logits, thresholds, rule):
    return np.asarray(COSTS, dtype=float)[ev.simulate(logits, ev.per_exit(thresholds, rule)) - 1].mean()


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("method", ["geometric", "shared", "optimized", None])
@pytest.mark.parametrize("rule", ["max-probability", "margin", "entropy", "patience"])
def test_the_budget_is_never_exceeded_on_validation(rule, method, coarse):
    for seed in range(1 if method == "optimized" else 4):
        logits, labels = random_run(seed, coarse=coarse)
        for budget in [110, 111, 180.5, 230, 300, 450, 599.9, 619.9]:
            thresholds = ev.calibrate(logits, labels, COSTS, budget, rule, method)
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
        thresholds = ev.calibrate(logits, labels, COSTS, budget, method="shared")
        assert len(set(thresholds[:-1])) == 1
        assert realised(logits, thresholds, "max-probability") == costs[costs <= budget].max()


def test_everybody_leaves_at_once_or_nobody_ever():
    logits, labels = random_run(7)
    for method in ("geometric", "shared"):
        cheapest = ev.calibrate(logits, labels, COSTS, 110, method=method)
        assert cheapest[0] == -math.inf
        assert (ev.calibrate(logits, labels, COSTS, 620, method=method) == math.inf).all()
    assert (ev.simulate(logits, ev.per_exit(cheapest)) == 1).all()


@pytest.mark.parametrize("method", ["geometric", "shared", "optimized"])
def test_a_budget_of_the_first_exit_s_cost_when_costs_are_no_whole_numbers(method):
    # The mean of 3, 6, 12, ... costs of 0.1 is rounded above 0.1.
    for samples in (3, 6, 12, 24, 41, 48, 49):
        logits, labels = random_run(7, (5, samples, 6))
        costs = 0.1 + 0.7 * np.arange(5)
        thresholds = ev.calibrate(logits, labels, costs, float(costs[0]), method=method)
        assert (ev.simulate(logits, ev.per_exit(thresholds)) == 1).all()


def test_all_scores_equal():
    logits, labels = torch.zeros(5, 20, 3), torch.zeros(20, dtype=torch.int64)
    for method in ("geometric", "shared"):
        thresholds = ev.calibrate(logits, labels, COSTS, 400, method=method)
        assert realised(logits, thresholds, "max-probability") <= 400


def test_the_default_method():
    logits, labels = random_run(8)
    for rule, method in [
        ("max-probability", "geometric"),
        ("entropy", "geometric"),
        ("patience", "shared"),
    ]:
        np.testing.assert_array_equal(
            ev.calibrate(logits, labels, COSTS, 300, rule),
            ev.calibrate(logits, labels, COSTS, 300, rule, method),
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
    for method in ("geometric", "shared"):
        np.testing.assert_array_equal(
            ev.calibrate(logits, labels, COSTS, 300, method=method),
            ev.calibrate(logits, labels.roll(5), COSTS, 300, method=method),
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
    curve = ev.calibrated_curve(validation, test, COSTS, BACKBONE, "max-probability", [0.1, 0.25, 0.5, 0.75])
    assert curve.budget.tolist() == [0.1, 0.25, 0.5, 0.75]
    assert curve.iloc[0, 1:].isna().all()
    assert curve.iloc[1:, 1:].to_numpy().tolist() == table.iloc[:, 1:].to_numpy().tolist()


# ---------------------------------------------------------------- optimized


def exhaustive(logits, labels, costs, budget, rule):
    """Most correct samples within the budget over every combination of thresholds, and the least cost of that."""
    score = ev.scores(logits, rule).astype(float)
    options = [[-math.inf, *sorted(set(row))] for row in score[:-1]]
    right = (logits.argmax(-1) == labels).numpy()
    best = (-1, 0.0)
    for chosen in itertools.product(*options):
        where = ev.simulate(logits, ev.per_exit([*chosen, math.inf], rule)) - 1
        cost = np.asarray(costs, dtype=float)[where].mean()
        if cost <= budget:
            best = max(best, (int(right[where, np.arange(len(where))].sum()), -cost))
    return best


@pytest.mark.parametrize("rule", ["max-probability", "entropy", "patience"])
def test_optimized_is_nearly_always_the_optimum_of_an_exhaustive_search(rule):
    reached, gained = 0, 0
    for seed in range(8):
        logits, labels = random_run(seed, (3, 14, 3))
        for budget in (170.0, 250.0):
            best, _ = exhaustive(logits, labels, COSTS[:3], budget, rule)
            correct = {}
            for method in ("shared", "optimized"):
                thresholds = ev.calibrate(logits, labels, COSTS[:3], budget, rule, method)
                where = ev.simulate(logits, ev.per_exit(thresholds, rule)) - 1
                assert np.asarray(COSTS)[where].mean() <= budget
                correct[method] = int((logits.argmax(-1) == labels).numpy()[where, np.arange(14)].sum())
            assert correct["shared"] <= correct["optimized"] <= best
            reached += correct["optimized"] == best
            gained += correct["optimized"] > correct["shared"]
    assert reached >= 14  # of 16
    assert gained >= (0 if rule == "patience" else 5)


def misses(validation, test, rule, methods=ev.ALLOCATIONS):
    tables = [ev.budget_misses(validation, test, COSTS, BACKBONE, rule, method) for method in methods]
    return pd.concat([table.assign(method=method) for method, table in zip(methods, tables, strict=True)])


def test_optimized_is_never_worse_on_validation_than_the_other_methods():
    for seed in range(3):
        validation = random_run(seed, (5, 300, 6))
        for rule in ("max-probability", "patience"):
            scores = misses(validation, validation, rule).pivot(index="budget", columns="method", values="accuracy")
            assert (scores["optimized"] >= scores[["shared", "geometric"]].max(axis=1)).all()
            if rule == "max-probability":
                assert (scores["optimized"] > scores["shared"]).any()


def test_optimized_closes_an_exit_that_is_confident_and_wrong():
    # Exit 1 is sure of everything and right on half; exit 2 is less sure and always right, at twice the cost.
    n = 40
    labels = torch.arange(n) % 2
    first = torch.nn.functional.one_hot(torch.zeros(n, dtype=torch.int64), 2) * (8.0 + torch.arange(n)[:, None] / n)
    second = torch.nn.functional.one_hot(labels, 2) * (2.0 + torch.arange(n)[:, None] / n)
    logits, costs = torch.stack([first, second, second]), [100, 200, 900]
    thresholds = ev.calibrate(logits, labels, costs, 200, method="optimized")
    assert (ev.simulate(logits, ev.per_exit(thresholds)) == 2).all()
    shared = ev.calibrate(logits, labels, costs, 200, method="shared")
    where = ev.simulate(logits, ev.per_exit(shared)) - 1
    assert (logits.argmax(-1) == labels).numpy()[where, np.arange(n)].mean() < 0.7
    frame = ev.budget_misses((logits, labels), (logits, labels), costs, 800, "max-probability", "optimized")
    assert frame.loc[3, ["validation_flops", "miss"]].tolist() == [200, -0.75]
    assert frame.loc[3, "reason"].startswith("200 FLOPs suffice")


def test_optimized_is_deterministic_and_reads_no_order():
    logits, labels = random_run(21, (4, 200, 5))
    again = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    for budget in (150, 260, 400):
        first = ev.calibrate(logits, labels, COSTS[:4], budget, method="optimized")
        np.testing.assert_array_equal(first, ev.calibrate(logits, labels, COSTS[:4], budget, method="optimized"))
        np.testing.assert_array_equal(
            first, ev.calibrate(logits[:, again], labels[again], COSTS[:4], budget, method="optimized")
        )


def test_optimized_in_regression_has_less_error_than_one_difference():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randn(200, generator=generator)
    noise = torch.randn(5, 200, generator=generator) * torch.tensor([2.0, 1.2, 0.8, 0.5, 0.4])[:, None]
    data = ((labels + noise).unsqueeze(2), labels)
    frame = misses(data, data, "patience", ["shared", "optimized"])
    frame = frame[frame["budget"].isin(["50", "75"])]
    scores = frame.pivot(index="budget", columns="method", values="mse")
    assert (scores["optimized"] < scores["shared"]).all()
    assert (frame["miss"] <= 0).all()


def test_misses_by_hand():
    validation, test = random_run(22), random_run(23)
    frame = ev.budget_misses(validation, test, COSTS, 400, "max-probability", "shared")
    assert frame["limit"].tolist() == [100, 200, 300, 400]
    half = frame.iloc[1]
    thresholds = ev.calibrate(validation[0], validation[1], COSTS, 200, method="shared")
    assert half["validation_flops"] == realised(validation[0], thresholds, "max-probability")
    assert half["flops"] == realised(test[0], thresholds, "max-probability")
    assert half["miss"] == half["flops"] / 200 - 1 != 0
    assert frame["miss"].isna().tolist() == [True, False, False, False]
    assert frame["reason"].tolist() == ["budget of 100 FLOPs is below the first exit's 110", "", "", ""]
    above = ev.budget_misses(validation, test, COSTS, 800, "max-probability", "shared").iloc[3]
    assert above["miss"] == 620 / 800 - 1
    assert above["reason"] == "budget of 800 FLOPs is above the whole network's 620, so nobody leaves early"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.calibrate(x, y, COSTS, 109), "budget: 109 .*first exit, 110"),
        (lambda x, y: ev.calibrate(x, y, COSTS, 621), "budget: 621 .*whole network, 620"),
        (lambda x, y: ev.calibrate(x, y, COSTS, True), "True"),
        (lambda x, y: ev.calibrate(x, y * 0 + 2, COSTS, 300, method="optimized"), "all 120 are of class 2"),
        (lambda x, y: ev.calibrate(x[:, :, :1], y * 0, COSTS, 300), "1 class .*at least 2 classes"),
        (
            lambda x, y: ev.budget_misses((x, y), (x[:4], y), COSTS, 600, "margin", "shared"),
            r"\(5, 120, 6\).*\(4, 120, 6\)",
        ),
        (lambda x, y: ev.budget_misses((x, y), (x, y), COSTS, 600, "margin", "best"), "best"),
        (lambda x, y: ev.calibrate(x, y, COSTS, math.nan, "margin"), "nan"),
        (lambda x, y: ev.calibrate(x, y, COSTS, math.inf), "inf"),
        (lambda x, y: ev.calibrate(x, y, COSTS, "50"), "'50'"),  # type: ignore[arg-type]
        (lambda x, y: ev.calibrate(x[:, :0], y[:0], COSTS, 300), "0 samples"),
        (lambda x, y: ev.calibrate(x[:4], y, COSTS, 300), "4 exits"),
        (lambda x, y: ev.calibrate(x, y[:-1], COSTS, 300), "120"),
        (lambda x, y: ev.calibrate(x, y + 6, COSTS, 300), r"0\.\.5"),
        (lambda x, y: ev.calibrate(x / 0.0, y, COSTS, 300), "NaN"),
        (lambda x, y: ev.calibrate(x, y, COSTS, 300, "patienc"), "patience"),
        (lambda x, y: ev.calibrate(x, y, COSTS, 300, method="even"), "method: .*geometric, shared"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x[:, :, :5], y % 5), COSTS, 600), "differ"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x[:4], y), COSTS, 600), "differ"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 0), "backbone_flops"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 600, budgets=["half"]), "'half'"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 600, budgets=["inf"]), "'inf'"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 600, budgets=["-5"]), "'-5'"),
        (lambda x, y: ev.calibrated_curve((x, y), (x, y), COSTS, 600, "margin", [0.5, math.nan]), "nan"),
        (lambda x, y: ev.calibrated_curve((x, y), (x, y), COSTS, math.nan, "margin", [0.5]), "backbone_flops"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(EestudyError, match=words) as caught:
        call(*random_run(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("rule", "method"), [("max-probability", "shared"), ("entropy", "optimized")])
def test_what_thresholds_come_to_where_they_were_fitted(rule: str, method: str) -> None:
    """Validation columns are those of the validation data, and nothing of test is in them."""
    runs = [random_run(seed, (5, 300, 6), 2.0) for seed in (1, 2, 3)]
    validation, test, other = ((logits.numpy(), labels.numpy()) for logits, labels in runs)
    table = budgets_of_both(validation, test, COSTS, BACKBONE, rule, method)
    for name, split in (("", test), ("validation_", validation)):
        alone = ev.calibrated_budgets(validation, split, COSTS, BACKBONE, rule, method=method)
        for column in ("accuracy", "flops"):
            np.testing.assert_array_equal(table[f"{name}{column}"], alone[column])
    elsewhere = budgets_of_both(validation, other, COSTS, BACKBONE, rule, method)
    assert (elsewhere["validation_accuracy"] == table["validation_accuracy"]).all()
    assert (elsewhere["accuracy"] != table["accuracy"]).any()
