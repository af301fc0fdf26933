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

from eestudy.config import EestudyError

from .checks import ArrayLike, Costs, check_costs, check_predictions, is_multi_label
from .exit_rules import check_rule, score_table

RULE = "max-probability"


@dataclass(frozen=True)
class StepCurve:
    """Row i holds for t in [thresholds[i], thresholds[i + 1]).

    thresholds: (T,) float64, on the score, growing; the first is -inf, where everybody leaves at exit 1.
    counts: (T, K) samples that leave at each exit. total: (T,) sum over samples of what they are worth where they
    leave: samples classified correctly, or squared errors.
    """

    thresholds: np.ndarray
    counts: np.ndarray
    total: np.ndarray

    def mean(self) -> np.ndarray:
        """Mean over samples (T,): the accuracy, or the mean squared error."""
        return self.total / self.counts[0].sum()

    def cost(self, costs: np.ndarray) -> np.ndarray:
        """Mean cost of a sample (T,), in the unit of costs (K,)."""
        return (self.counts @ costs) / self.counts[0].sum()


def step_curve(score: np.ndarray, worth: np.ndarray) -> StepCurve:
    """Scores (K, N) and correctness (K, N) bool, or squared errors (K, N) float64 -> the curve of one shared threshold.

    The scores of exit K, where nobody is asked, may be left out: (K - 1, N).
    Exact; sums of float64 up to their rounding.
    """
    num_exits, num_samples = worth.shape
    value, source, target, gain = _moves(score, worth)
    order = np.argsort(value)
    value = value[order]
    # The rows: before the first move, then after the last of the moves that happen at the same threshold.
    last = np.append(value[1:] != value[:-1], np.ones(min(1, len(value)), dtype=bool))
    ends = np.flatnonzero(last)
    row = np.cumsum(last, dtype=np.intp)  # of each move
    row -= last
    row += 1

    # What every row changes, then summed as whole numbers, which takes an eighth of the time; all in one piece of
    # memory, because fresh memory costs more than the arithmetic.
    changes = np.zeros((num_exits, len(ends) + 1), dtype=np.int64)
    changes[0, 0] = num_samples
    place = target[order].astype(np.intp)
    place *= len(ends) + 1
    place += row
    np.add.at(changes.reshape(-1), place, 1)
    place[:] = source[order]
    place *= len(ends) + 1
    place += row
    np.subtract.at(changes.reshape(-1), place, 1)
    np.cumsum(changes, axis=1, out=changes)
    counts = changes.view(np.float64)
    for own, whole in zip(counts, changes, strict=True):
        own[:] = whole.astype(np.float64)
    exact = np.int64 if worth.dtype == bool else np.float64
    total = np.full(len(ends) + 1, worth[0].sum(), dtype=exact)
    total[1:] += gain[order].cumsum(dtype=exact)[ends]
    return StepCurve(np.append(-np.inf, value[ends].astype(np.float64)), counts.T, total)


def _moves(score: np.ndarray, worth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every move of every sample: threshold, exit left, exit reached (from 0), gain in worth."""
    num_exits, num_samples = worth.shape
    highest = np.maximum.accumulate(score[: num_exits - 1], axis=0)
    following = np.full(num_samples, num_exits - 1, dtype=np.int8 if num_exits < 128 else np.int64)
    kind = np.int8 if worth.dtype == bool else np.float64
    there = worth[-1].astype(kind)
    parts = []
    for k in range(num_exits - 2, -1, -1):
        rises = score[k] > highest[k - 1] if k else np.ones(num_samples, dtype=bool)
        who = np.flatnonzero(rises)
        here = worth[k, who].astype(kind)
        parts.append((score[k, who], np.full(len(who), k, following.dtype), following[who], there[who] - here))
        following[who] = k
        there[who] = here
    if not parts:  # one exit: nobody ever moves
        return np.empty(0, np.float32), np.empty(0, np.int8), np.empty(0, np.int8), np.empty(0, kind)
    value, source, target, gain = (np.concatenate(column) for column in zip(*parts))
    return value, source, target, gain


def right(logits: Tensor, predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Who is right (K, N): predicted classes (K, N), or, of several labels a sample, all whose logit is above 0."""
    return ((logits > 0).numpy() == labels).all(axis=2) if is_multi_label(labels) else predicted == labels


def squared_errors(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """Checked logits (K, N, 1) and labels (N,) of a regression -> float64 (K, N)."""
    return (logits[:, :, 0].numpy().astype(np.float64) - labels) ** 2


def _curve(logits: ArrayLike, labels: ArrayLike, costs: Costs, rule: str) -> tuple[StepCurve, dict[str, np.ndarray]]:
    """The curve and its columns (T,): accuracy, of several labels exact_match, for regression r2 and mse; cost."""
    tensor, label_array = check_predictions(logits, labels, finite=False, several=True)  # `score_table` looks
    check_rule(rule, is_multi_label(label_array))
    cost_array = check_costs(costs, len(tensor))
    score, predicted = score_table(tensor, rule, last=False)
    if tensor.shape[2] > 1:
        curve = step_curve(score, right(tensor, predicted, label_array))
        name = "exact_match" if is_multi_label(label_array) else "accuracy"
        return curve, {name: curve.mean(), "cost": curve.cost(cost_array)}
    curve = step_curve(score, squared_errors(tensor, label_array))
    variance = label_array.var(dtype=np.float64)
    r2 = 1 - curve.mean() / variance if variance > 0 else np.full(len(curve.total), np.nan)
    return curve, {"r2": r2, "mse": curve.mean(), "cost": curve.cost(cost_array)}


def threshold_sweep(
    logits: ArrayLike, labels: ArrayLike, costs: Costs, thresholds: Sequence[float] | ArrayLike, rule: str = RULE
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy (T,), in regression R2, and mean cost (T,) at the given thresholds, each shared by all exits.

    logits (K, N, C), labels (N,), costs (K,) in FLOPs, thresholds (T,) on the score (entropy: minus h; regression:
    minus the difference).
    Raises EestudyError for shapes that do not match, labels out of range, NaN, an unknown rule.
    """
    wanted = np.asarray(thresholds, dtype=np.float64)
    if wanted.ndim != 1 or np.isnan(wanted).any():
        raise EestudyError(f"thresholds: must be a list of numbers, got {thresholds!r}")
    curve, columns = _curve(logits, labels, costs, rule)
    rows = np.searchsorted(curve.thresholds, wanted, side="right") - 1
    return next(iter(columns.values()))[rows], columns["cost"][rows]


def tradeoff_curve(logits: ArrayLike, labels: ArrayLike, costs: Costs, rule: str = RULE) -> pd.DataFrame:
    """The whole curve of one shared threshold: one row for every threshold at which something changes.

    Columns: threshold (on the score; the row holds from it up to the next row's; the first is -inf),
    accuracy (several labels: exact_match; regression: r2, mse), cost (mean, FLOPs a sample), share_1 .. share_K
    (fraction of the samples that leave at each exit). Raises EestudyError as `threshold_sweep` does.
    """
    curve, columns = _curve(logits, labels, costs, rule)
    # In place: nobody else has this curve, and fresh memory would take as long as the scores of an exit.
    shares = np.divide(curve.counts, curve.counts[0].sum(), out=curve.counts)
    by_exit = {f"share_{number}": share for number, share in enumerate(shares.T, 1)}
    return pd.DataFrame({"threshold": curve.thresholds} | columns | by_exit, copy=False)
