"""The exact trade-off curve against the obvious loop, to the last count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eestudy import evaluation as ev
from eestudy.evaluation.exit_rules import ExitRule
from eestudy.registry import EXIT_RULES

COSTS = np.array([100, 230, 310, 470, 900])


def random_case(seed, num_samples=83, num_classes=6, coarse=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, num_samples, num_classes, generator=generator) * 2
    if coarse:  # many equal scores
        logits = logits.round()
    return logits, torch.randint(num_classes, (num_samples,), generator=generator)


def by_loop(logits, labels, threshold, name):
    """Samples that leave at each exit and correct ones, for one threshold."""
    where = ev.simulate(logits, ExitRule(name, float(threshold)))
    counts, correct = [0] * len(logits), 0
    for n, k in enumerate(where):
        counts[k - 1] += 1
        correct += int(logits[k - 1, n].argmax()) == int(labels[n])
    return counts, correct


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("name", list(EXIT_RULES))
def test_curve_equals_the_loop_at_every_threshold(name, coarse):
    logits, labels = random_case(3, coarse=coarse)
    frame = ev.tradeoff_curve(logits, labels, COSTS, name)
    assert frame.threshold[0] == -np.inf
    assert (np.diff(frame.threshold) > 0).all()
    for _, row in frame.iterrows():
        counts, correct = by_loop(logits, labels, row.threshold, name)
        assert [row[f"share_{k}"] * 83 for k in range(1, 6)] == pytest.approx(counts, abs=1e-9)
        assert row.accuracy == correct / 83
        assert row.cost == sum(c * int(f) for c, f in zip(counts, COSTS)) / 83


def test_curve_has_every_threshold_at_which_something_changes():
    logits, labels = random_case(5, num_samples=11)
    frame = ev.tradeoff_curve(logits, labels, COSTS)
    candidates = np.unique(ev.scores(logits)[:-1]).astype(np.float64)
    changes, last = [], by_loop(logits, labels, 0.0, "max-probability")[0]
    for threshold in candidates:
        counts, _ = by_loop(logits, labels, threshold, "max-probability")
        if counts != last:
            changes.append(threshold)
        last = counts
    assert frame.threshold[1:].tolist() == changes


@pytest.mark.parametrize("name", list(EXIT_RULES))
def test_sweep_equals_the_loop(name):
    logits, labels = random_case(7, coarse=True)
    score = ev.scores(logits, name).astype(np.float64)
    grid = np.linspace(score.min() - 0.1, score.max(), 40)
    # Exactly at scores and one float64 step beside them. Outside a score's range ExitRule would refuse the
    # value.
    close = np.concatenate([score[0, :9], np.nextafter(score[0, :9], -np.inf)])
    thresholds = np.concatenate([grid[3:], close, [-np.inf, np.inf]])
    accuracy, cost = ev.threshold_sweep(logits, labels, COSTS, thresholds, name)
    assert accuracy.shape == cost.shape == thresholds.shape
    compared = 0
    for i, threshold in enumerate(thresholds):
        if math.isinf(threshold) or name == "entropy" or threshold >= 0:
            counts, correct = by_loop(logits, labels, threshold, name)
            assert accuracy[i] == correct / 83
            assert cost[i] == sum(c * int(f) for c, f in zip(counts, COSTS)) / 83
            compared += 1
    assert compared > 40


def test_cost_never_falls_as_the_threshold_grows():
    logits, labels = random_case(9)
    assert (np.diff(ev.tradeoff_curve(logits, labels, COSTS).cost) >= 0).all()


def test_the_ends_of_the_curve_are_the_first_and_the_last_exit():
    logits, labels = random_case(11)
    frame = ev.tradeoff_curve(logits, labels, COSTS)
    alone = ev.exit_metrics(logits, labels).accuracy
    assert (frame.accuracy.iloc[0], frame.cost.iloc[0]) == (alone.iloc[0], 100)
    assert (frame.accuracy.iloc[-1], frame.cost.iloc[-1]) == (alone.iloc[-1], 900)


def test_one_exit_and_identical_exits():
    logits, labels = random_case(13)
    single = ev.tradeoff_curve(logits[:1], labels, COSTS[:1])
    assert single[["threshold", "cost", "share_1"]].to_numpy().tolist() == [[-np.inf, 100, 1]]
    same = ev.tradeoff_curve(logits[:1].expand(5, -1, -1), labels, COSTS)  # nobody ever stops in between
    assert same[["share_2", "share_3", "share_4"]].to_numpy().sum() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"costs": COSTS[:4]}, "5 exits"),
        ({"costs": COSTS[::-1]}, "never fall"),
        ({"costs": np.array([0, 1, 2, 3, 4])}, "positive"),
        ({"labels": torch.zeros(82, dtype=torch.int64)}, "83"),
        ({"labels": torch.full((83,), 6)}, r"0\.\.5, got 6\.\.6"),
        ({"labels": torch.full((83,), -1)}, "got -1"),
        ({"labels": torch.zeros(83)}, "integers"),
        ({"thresholds": [0.1, np.nan]}, "thresholds"),
        ({"rule": "entropie"}, "entropy"),
        ({"rule": ev.max_probability(0.5)}, "rule: unknown name"),
    ],
)
def test_bad_input_is_refused(change, words):
    logits, labels = random_case(0)
    arguments = {
        "logits": logits,
        "labels": labels,
        "costs": COSTS,
        "thresholds": [0.5],
        "rule": "margin",
    } | change
    with pytest.raises(ValueError, match=words):
        ev.threshold_sweep(**arguments)
    if "thresholds" not in change:
        arguments.pop("thresholds")
        with pytest.raises(ValueError, match=words):
            ev.tradeoff_curve(**arguments)


@pytest.mark.parametrize("name", list(EXIT_RULES))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", [0, -1])
def test_a_logit_that_is_not_finite_is_refused_at_any_exit(name, bad, number):
    logits, labels = random_case(0)
    logits[number, 40, 2] = bad
    with pytest.raises(ValueError, match="got 1 NaN or infinite of 2490"):
        ev.tradeoff_curve(logits, labels, [1.0, 2.0, 3.0, 4.0, 5.0], name)
