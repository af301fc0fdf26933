"""The exact trade-off curve beside a loop over 100 thresholds: 9 exits x 10,000 samples x 100 classes, one core.

    python benchmarks/evaluation.py -> evaluation.json

Milliseconds of `tradeoff_curve` by rule, from logits to the finished frame, and of its parts: the check of the input,
the search for the predicted classes, the scores (predictions included), the curve from scores. The loop is what a
reader would write: scores once, then for each of 100 thresholds where everybody leaves, accuracy and mean cost. It has
as many rows as thresholds; the curve has one for every threshold at which something changes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from timing import hardware, interleaved, save

from eestudy import evaluation
from eestudy.evaluation.checks import check_predictions
from eestudy.evaluation.curves import step_curve
from eestudy.evaluation.exit_rules import score_table
from eestudy.evaluation.rules.rule import predictions
from eestudy.registry import EXIT_RULES

EXITS, SAMPLES, CLASSES = 9, 10_000, 100
COSTS = np.linspace(1e6, 9e6, EXITS)


def made_up() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (K, N, C) that get better from exit to exit (accuracy 0.05 to 0.99), labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    logits = torch.randn(EXITS, SAMPLES, CLASSES, generator=generator)
    logits[:, torch.arange(SAMPLES), labels] += torch.linspace(1, 6, EXITS)[:, None]
    return logits, labels


def loop(logits: torch.Tensor, labels: torch.Tensor, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and mean cost at 100 thresholds (patience: K), one after another."""
    score, predicted = score_table(logits, rule)
    correct, everyone = predicted == labels.numpy(), np.arange(SAMPLES)
    accuracies, costs = [], []
    for threshold in EXIT_RULES[rule].sweep(EXITS, CLASSES):
        leaves = score > threshold
        leaves[-1] = True
        where = leaves.argmax(axis=0)
        accuracies.append(correct[where, everyone].mean())
        costs.append(COSTS[where].mean())
    return np.array(accuracies), np.array(costs)


def main() -> None:
    torch.set_num_threads(1)
    logits, labels = made_up()
    label_array = labels.numpy()
    parts = interleaved(
        {
            "check": lambda: check_predictions(logits, labels),
            "predictions": lambda: predictions(logits),
            "one softmax of all": lambda: [torch.softmax(each, -1) for each in logits],
        }
    )
    results = {}
    for rule in EXIT_RULES:
        score, predicted = score_table(logits, rule)
        correct = predicted == label_array
        swept = loop(logits, labels, rule)
        exact = evaluation.threshold_sweep(logits, labels, COSTS, EXIT_RULES[rule].sweep(EXITS, CLASSES), rule)
        assert (exact[0] == swept[0]).all()
        np.testing.assert_allclose(exact[1], swept[1], rtol=1e-12)
        measured = interleaved(
            {
                "tradeoff_curve": lambda rule=rule: evaluation.tradeoff_curve(logits, labels, COSTS, rule),
                "loop": lambda rule=rule: loop(logits, labels, rule),
                "scores": lambda rule=rule: score_table(logits, rule),
                "curve from scores": lambda score=score, correct=correct: step_curve(score, correct),
            }
        )
        results[rule] = {
            "rows": len(evaluation.tradeoff_curve(logits, labels, COSTS, rule)),
            "loop / tradeoff_curve": measured["loop"]["median"] / measured["tradeoff_curve"]["median"],
            "ms": {name: each["median"] * 1e3 for name, each in measured.items()},
            "ms, least": {name: each["least"] * 1e3 for name, each in measured.items()},
            "others": max(each["others"] for each in measured.values()),
        }
        print(rule, {name: f"{each['median'] * 1e3:.1f} ms" for name, each in measured.items()})
    results["parts, ms"] = {name: each["median"] * 1e3 for name, each in parts.items()}
    save("evaluation", {"hardware": hardware(), "exits, samples, classes": [EXITS, SAMPLES, CLASSES], **results})


if __name__ == "__main__":
    main()
