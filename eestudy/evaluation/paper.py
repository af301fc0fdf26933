"""The published protocol: one threshold for all exits, swept on the test set, as in Kubaty et al. 2025.

It chooses on test data, and it is here only to compare with published tables; `budgets` has the protocol of the study.
The sweep of one run (`paper_sweep`) is all that is needed of it: the runs of a cell choose together, from their sweeps.
In regression (C = 1, rule "patience") the threshold is minus a difference, see `rules.patience`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from eestudy.config import EestudyError
from eestudy.sweeps import paper_budgets_of_sweeps

from .budgets import BUDGETS, measured, named_limits
from .checks import Costs, Predictions, check_costs, check_predictions
from .curves import threshold_sweep
from .exit_rules import leave_at, scores
from .rules.patience import TOO_EARLY
from .score_table import rule_for


def paper_sweep(test: Predictions, costs: Costs, rule: str = "max-probability", k: int | None = None) -> pd.DataFrame:
    """One run at every threshold of `Rule.sweep`: threshold (its number, from 0), accuracy, flops (mean), value.

    Regression, which the paper has not: `regression.SCORES` in place of accuracy. First everybody leaves at exit 1,
    then come 100 evenly spaced differences from the run's own largest change to 0.
    Raises EestudyError for shapes that do not match, bad costs and an unknown rule.
    """
    tensor, labels = check_predictions(*test)
    num_exits, _, num_classes = tensor.shape
    if num_classes > 1:
        values = rule_for(rule, num_classes).sweep(num_exits, num_classes)
        accuracy, cost = threshold_sweep(tensor, labels, costs, values, rule, k)
        table = pd.DataFrame({"accuracy": accuracy, "flops": cost})
    else:
        found, flops = scores(tensor, rule, k), check_costs(costs, num_exits)
        values = np.append(-math.inf, np.linspace(_lowest(found), 0.0, 100))
        left = [leave_at(found, np.full(num_exits, value)) - 1 for value in values]
        table = pd.DataFrame([{**measured(tensor, labels, at), "flops": flops[at].mean()} for at in left])
    table.insert(0, "threshold", np.arange(len(table)))
    return table.assign(value=values)


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
    Regression: see `paper_sweep`; the runs choose the number of the threshold together.
    Raises EestudyError for no runs, runs of other shapes, bad costs, budgets or rule.
    """
    limits = named_limits(budgets, backbone_flops)
    if not predictions:
        raise EestudyError("predictions: paper_budgets needs those of at least one run, got none")
    shapes = [tuple(check_predictions(*pair)[0].shape) for pair in predictions]
    if len({(shape[0], shape[2]) for shape in shapes}) > 1:
        raise EestudyError(f"predictions: the runs of a cell must have equal exits and classes, got {shapes}")
    sweeps = [paper_sweep(pair, costs, rule, k) for pair in predictions]
    frame = paper_budgets_of_sweeps(sweeps, limits)
    return frame.assign(threshold=frame["value"]).drop(columns="value")


def _lowest(score: np.ndarray) -> float:
    """Minus the largest change in scores (K, N) of a regression; 0 when there are too few exits for any."""
    return float(score[score > TOO_EARLY].min(initial=0.0))
