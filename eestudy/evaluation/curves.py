"""The accuracy-cost trade-off of one shared threshold: exact, every distinct threshold at once.

With one threshold t for all exits, a sample leaves at exit k < K exactly for t in [max_{j<k} s_j, s_k), which
is empty unless its score s_k is a new running maximum. So as t grows, the sample moves from one running
maximum to the next and at last to exit K; it moves when t reaches the score of the maximum that it leaves.
All moves of all samples, sorted by that score, and one cumulative sum give the number of samples at each
exit, and of correct ones, for every t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from .exit_rules import ArrayLike, check_costs, check_predictions, check_rule, predictions, scores


@dataclass(frozen=True)
class StepCurve:
    """Row i holds for t in [thresholds[i], thresholds[i + 1]).

    thresholds: (T,) float64, on the score, growing; the first is -inf, where everybody leaves at exit 1.
    counts: (T, K) samples that leave at each exit. correct: (T,) samples classified correctly there.
    """

    thresholds: np.ndarray
    counts: np.ndarray
    correct: np.ndarray

    def accuracy(self) -> np.ndarray:
        """Fraction of samples classified correctly (T,)."""
        return self.correct / self.counts[0].sum()

    def cost(self, costs: np.ndarray) -> np.ndarray:
        """Mean cost of a sample (T,), in the unit of costs (K,)."""
        return (self.counts @ costs) / self.counts[0].sum()

    def rows(self, thresholds: np.ndarray) -> np.ndarray:
        """The row that holds for each of these thresholds."""
        return np.searchsorted(self.thresholds, thresholds, side="right") - 1


def step_curve(score: np.ndarray, correct: np.ndarray) -> StepCurve:
    """Scores (K, N) and correctness (K, N) bool -> the exact curve of one shared threshold."""
    num_exits, num_samples = score.shape
    value, source, target, gain = _moves(score, correct)
    order = np.argsort(value)
    value = value[order]
    # The rows: before the first move, then after the last of the moves that happen at the same threshold.
    ends = np.append(np.flatnonzero(value[1:] != value[:-1]), np.arange(len(value))[-1:])

    change = np.zeros((num_exits, len(value)), dtype=np.int8)
    position = np.arange(len(value))
    change[source[order], position] = -1
    change[target[order], position] = 1
    counts = np.zeros((num_exits, len(ends) + 1), dtype=np.float64)
    counts[0] = num_samples
    counts[:, 1:] += change.cumsum(axis=1, dtype=np.int32)[:, ends]
    hits = np.full(len(ends) + 1, correct[0].sum(), dtype=np.int64)
    hits[1:] += gain[order].cumsum(dtype=np.int64)[ends]
    return StepCurve(np.append(-np.inf, value[ends].astype(np.float64)), counts.T, hits)


def _moves(score: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every move of every sample: threshold, exit left, exit reached (from 0), gain in correctness."""
    num_exits, num_samples = score.shape
    highest = np.maximum.accumulate(score[:-1], axis=0)
    following = np.full(num_samples, num_exits - 1, dtype=np.int8 if num_exits < 128 else np.int64)
    right_there = correct[-1].astype(np.int8)
    parts = []
    for k in range(num_exits - 2, -1, -1):
        rises = score[k] > highest[k - 1] if k else np.ones(num_samples, dtype=bool)
        who = np.flatnonzero(rises)
        right_here = correct[k, who].astype(np.int8)
        parts.append((score[k, who], np.full(len(who), k), following[who], right_there[who] - right_here))
        following[who] = k
        right_there[who] = right_here
    if not parts:  # one exit: nobody ever moves
        return np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int8)
    value, source, target, gain = (np.concatenate(column) for column in zip(*parts))
    return value, source, target, gain


def is_correct(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """Checked logits (K, N, C) and labels (N,) -> bool (K, N)."""
    return predictions(logits).numpy() == labels


def threshold_sweep(
    logits: ArrayLike,
    labels: ArrayLike,
    costs: Sequence[float] | ArrayLike,
    thresholds: Sequence[float] | ArrayLike,
    rule: str = "max-probability",
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy (T,) and mean cost (T,) at the given thresholds, each shared by all exits.

    logits (K, N, C), labels (N,), costs (K,) in FLOPs, thresholds (T,) on the score (entropy: minus h).
    Raises ValueError for shapes that do not match, labels out of range, NaN, an unknown rule.
    """
    check_rule(rule)
    tensor, label_array = check_predictions(logits, labels)
    cost_array = check_costs(costs, len(tensor))
    wanted = np.asarray(thresholds, dtype=np.float64)
    if wanted.ndim != 1 or np.isnan(wanted).any():
        raise ValueError(f"thresholds must be a list of numbers, got {thresholds!r}")
    curve = step_curve(scores(tensor, rule), is_correct(tensor, label_array))
    rows = curve.rows(wanted)
    return curve.accuracy()[rows], curve.cost(cost_array)[rows]


def tradeoff_curve(
    logits: ArrayLike, labels: ArrayLike, costs: Sequence[float] | ArrayLike, rule: str = "max-probability"
) -> pd.DataFrame:
    """The whole curve of one shared threshold: one row for every threshold at which something changes.

    Columns: threshold (on the score; the row holds from it up to the next row's; the first is -inf),
    accuracy, cost (mean, FLOPs a sample), share_1 .. share_K (fraction of the samples that leave at each
    exit). Raises ValueError as `threshold_sweep` does.
    """
    check_rule(rule)
    tensor, label_array = check_predictions(logits, labels)
    cost_array = check_costs(costs, len(tensor))
    curve = step_curve(scores(tensor, rule), is_correct(tensor, label_array))
    columns = {"threshold": curve.thresholds, "accuracy": curve.accuracy(), "cost": curve.cost(cost_array)}
    shares = curve.counts / len(label_array)
    return pd.DataFrame(columns | {f"share_{k + 1}": shares[:, k] for k in range(len(cost_array))}, copy=False)
