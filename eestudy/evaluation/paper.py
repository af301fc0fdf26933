"""The published protocol: one threshold for all exits, swept on the test set, as in Kubaty et al. 2025.

It chooses on test data, and it is here only to compare with published tables; `budgets` has the protocol of the study.
In regression (C = 1, rule "patience") the threshold is minus a difference, see `confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from eestudy.config import EestudyError

from .budgets import BUDGETS, measured, named_limits, score_names
from .checks import Costs, Predictions, check_predictions
from .confidence import TOO_EARLY, check_rule
from .curves import threshold_sweep
from .exit_rules import leave_at, scores


def paper_thresholds(rule: str, num_exits: int, num_classes: int) -> np.ndarray:
    """The swept thresholds (T,), from "everybody leaves early" to "everybody stays".

    max-probability and margin: 100 evenly spaced values from 0 to 1; patience: 0..K-1 (both as published).
    entropy: 100 evenly spaced values of h from log C down to 0, as scores -h (ours; not in the paper).
    """
    if check_rule(rule) == "patience":
        return np.arange(num_exits, dtype=np.float64)
    return np.linspace(-math.log(num_classes), 0.0, 100) if rule == "entropy" else np.linspace(0.0, 1.0, 100)


def paper_budgets(
    predictions: Sequence[Predictions],
    costs: Costs,
    backbone_flops: float,
    rule: str = "max-probability",
    budgets: Sequence[str] = BUDGETS,
    k: int | None = None,
) -> pd.DataFrame:
    """The published protocol for the runs (seeds) of one cell.

    predictions: (logits (K, N, C), labels (N,)) of the test set, one pair a run. costs (K,) in FLOPs.
    Accuracy and cost are averaged over the runs at each swept threshold; the last threshold before the mean
    cost first exceeds the budget is taken, without interpolation; where there is none, all three values are
    NaN. "max" is the last threshold of the sweep.
    Returns run_index, budget, threshold, accuracy, flops: each run's own numbers at the threshold that the
    runs chose together, so that their mean over runs is the published number.
    Regression, which the paper has not: first everybody leaves at exit 1, then come 100 evenly spaced differences
    from the largest change in any of the runs to 0.
    Raises EestudyError for no runs, runs of other shapes, bad costs, budgets or rule.
    """
    limits = named_limits(budgets, backbone_flops)
    if not predictions:
        raise EestudyError("predictions: paper_budgets needs those of at least one run, got none")
    checked = [check_predictions(*pair) for pair in predictions]
    if len({(tensor.shape[0], tensor.shape[2]) for tensor, _ in checked}) > 1:
        shapes = [tuple(tensor.shape) for tensor, _ in checked]
        raise EestudyError(f"predictions: the runs of a cell must have equal exits and classes, got {shapes}")
    num_exits, _, num_classes = checked[0][0].shape
    if num_classes == 1:
        found = [scores(tensor, rule, k) for tensor, _ in checked]
        thresholds = np.append(-math.inf, np.linspace(_lowest(found), 0.0, 100))
    else:
        thresholds = paper_thresholds(rule, num_exits, num_classes)
    sweeps = [threshold_sweep(tensor, labels, costs, thresholds, rule, k) for tensor, labels in checked]
    mean_cost = np.mean([cost for _, cost in sweeps], axis=0)
    rows = []
    for run_index, (accuracy, cost) in enumerate(sweeps):
        for budget, limit in limits.items():
            chosen = _last_before_excess(mean_cost, limit)
            if chosen is None:
                rows.append({"run_index": run_index, "budget": budget})
                continue
            if num_classes == 1:
                index = leave_at(found[run_index], np.full(num_exits, thresholds[chosen])) - 1
                score = measured(*checked[run_index], index)
            else:
                score = {"accuracy": accuracy[chosen]}
            values = {"threshold": thresholds[chosen], **score, "flops": cost[chosen]}
            rows.append({"run_index": run_index, "budget": budget, **values})
    return pd.DataFrame(rows, columns=["run_index", "budget", "threshold", *score_names(num_classes), "flops"])


def _lowest(found: Sequence[np.ndarray]) -> float:
    """Minus the largest change in scores (K, N) of regressions; 0 when there are too few exits for any."""
    return min(float(score[score > TOO_EARLY].min(initial=0.0)) for score in found)


def _last_before_excess(mean_cost: np.ndarray, limit: float) -> int | None:
    """Index of the last threshold before the cost first exceeds the limit; None when the first one does."""
    over = np.flatnonzero(mean_cost > limit)
    chosen = int(over[0]) - 1 if len(over) else len(mean_cost) - 1
    return chosen if chosen >= 0 else None
