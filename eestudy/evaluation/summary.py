"""A trade-off curve in two numbers: the area under it, and the cost at which it is nearly as good as the whole network.

Both read points (cost, accuracy) as steps, as a user meets them who may spend c: what a(c) can be bought is the
accuracy at the most expensive point whose cost is at most c. Nothing is interpolated.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from eestudy.config import EestudyError

from .checks import Costs, Predictions, check_alike, check_between, check_costs, check_logits
from .curves import threshold_sweep, tradeoff_curve

SHARE = 0.99
"""Of the backbone's accuracy: what counts as nearly as good."""


def area_under_curve(
    cost: Costs,
    accuracy: Costs,
    low: float | None = None,
    high: float | None = None,
) -> float:
    """Mean accuracy over budgets drawn evenly from [low, high]: the integral of a(c) dc, divided by high - low.

    cost, accuracy (T,): points; of those with equal cost the last counts; rows with NaN (budgets out of reach) do not.
    low, high: default, the least and the greatest cost. In the unit of accuracy, so curves of networks with other
    FLOPs compare when low and high are, say, 25 and 100 % of the same backbone.
    NaN when the cheapest point costs more than `low`, for then a(c) is not defined everywhere. With one cost only, and
    low = high, its accuracy. Raises EestudyError for arrays that do not match and for low > high.
    """
    x, y = _points(cost, accuracy)
    if not len(x):
        return math.nan
    low = float(x[0]) if low is None else float(low)
    high = float(x[-1]) if high is None else float(high)
    if not low <= high:
        raise EestudyError(f"low: must not be above high, got {low:g} and {high:g}")
    if x[0] > low:
        return math.nan
    if low == high:
        return float(y[np.searchsorted(x, low, side="right") - 1])
    edges = np.clip(np.append(x, math.inf), low, high)
    return float((y * np.diff(edges)).sum() / (high - low))


def cost_to_reach(cost: Costs, accuracy: Costs, goal: float) -> float:
    """The least cost of a point (cost, accuracy) with accuracy >= goal; NaN when there is none."""
    x, y = _points(cost, accuracy)
    reached = x[y >= goal]
    return float(reached[0]) if len(reached) else math.nan


def _points(cost: Costs, accuracy: Costs) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(cost, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise EestudyError(f"cost: must be a list as long as accuracy, got shapes {x.shape} and {y.shape}")
    known = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[known], kind="stable")
    return x[known][order], y[known][order]


def curve_summary(
    test: Predictions,
    costs: Costs,
    rule: str = "max-probability",
    validation: Predictions | None = None,
    reference: float | None = None,
    share: float = SHARE,
    low: float | None = None,
    high: float | None = None,
    k: int | None = None,
) -> pd.DataFrame:
    """Both numbers for one shared threshold, from stored predictions: a frame of one row.

    test, validation: (logits (K, N, C), labels (N,)). With validation the protocol is `calibrated`: for every budget
    validation data choose the threshold, so the curve is the accuracy on test over the cost on validation, and the
    threshold for `share` of the reference is the cheapest one that reaches it there. Without, it is `paper`: all is
    read off the test set. reference: the backbone's accuracy (regression: R2), on the data that choose; default, the
    last exit's. low, high: limits of the area in FLOPs; default, the costs of the first and the last exit.

    Columns: protocol, rule, area, goal (share * reference), threshold, cost and accuracy (regression: r2; both on test,
    at that threshold; NaN where the goal is out of reach), reason (why; empty otherwise).
    Raises EestudyError as `threshold_sweep` does, and for a share outside (0, 1].
    """
    if share != 1:
        check_between("share", share, 0, 1)
    cost_array = check_costs(costs, len(test[0]))
    if validation is not None:
        check_alike(check_logits(validation[0]), check_logits(test[0]))
    chosen = tradeoff_curve(*(test if validation is None else validation), costs, rule, k)
    score = "r2" if "r2" in chosen else "accuracy"
    thresholds = chosen["threshold"].to_numpy()
    accuracy, flops = threshold_sweep(*test, costs, thresholds, rule, k)
    area = area_under_curve(
        chosen["cost"].to_numpy(),
        accuracy,
        cost_array[0] if low is None else low,
        cost_array[-1] if high is None else high,
    )
    known = chosen[score].to_numpy()
    reference = float(known[-1]) if reference is None else float(reference)
    goal = share * reference
    found = {"threshold": math.nan, "cost": math.nan, score: math.nan}
    reached = np.flatnonzero(known >= goal)
    reason = ""
    if not reference > 0:
        reason = f"a share of the reference's {score}, {reference:.4g}, means nothing: it is not above 0"
    elif not len(reached):
        best = int(np.nanargmax(known))
        reason = (
            f"no threshold reaches {share:g} x {reference:.4g} = {goal:.4g}; "
            f"the best is {known[best]:.4g} at {chosen['cost'][best]:g} FLOPs"
        )
    else:
        row = int(reached[0])  # cost grows with the threshold
        found = {"threshold": thresholds[row], "cost": flops[row], score: accuracy[row]}
    protocol = "paper" if validation is None else "calibrated"
    columns = {"protocol": protocol, "rule": rule, "area": area, "goal": goal, **found, "reason": reason}
    return pd.DataFrame([columns])
