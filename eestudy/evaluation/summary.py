"""The curve of one shared threshold in two numbers: the area under it, and the cost of being nearly as good."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from .checks import Costs, Predictions, check_alike, check_costs, check_logits
from .curves import RULE, threshold_sweep, tradeoff_curve

SHARE = 0.99  # of the backbone's accuracy: what counts as nearly as good


def area_under_curve(cost: Costs, accuracy: Costs, low: float, high: float) -> float:
    """Mean accuracy over budgets drawn evenly from [low, high]: the integral of a(c) dc, divided by high - low.

    cost, accuracy (T,): points, cost never falling; of those with equal cost the last counts. Read as steps, as a user
    meets them who may spend c: a(c) is the accuracy at the most expensive point whose cost is at most c.
    NaN when the cheapest point costs more than `low`, for then a(c) is not defined everywhere.
    """
    x, y = np.asarray(cost, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x[0] > low:
        return math.nan
    if low == high:
        return float(y[np.searchsorted(x, low, side="right") - 1])
    edges = np.clip(np.append(x, math.inf), low, high)
    return float((y * np.diff(edges)).sum() / (high - low))


def curve_summary(
    test: Predictions,
    costs: Costs,
    rule: str = RULE,
    validation: Predictions | None = None,
    reference: float | None = None,
) -> pd.DataFrame:
    """The curve of one shared threshold in two numbers: the area under it, and the cost at which it is nearly as good
    as the whole network, SHARE of the reference. A frame of one row.

    test, validation: (logits (K, N, C), labels (N,)). With validation the protocol is `calibrated`: for every budget
    validation data choose the threshold, so the curve is the accuracy on test over the cost on validation, and the
    threshold for the goal is the cheapest one that reaches it there. Without, it is `paper`: all is read off the test
    set. reference: the backbone's accuracy (regression: R2), on the data that choose; default, the last exit's. The
    area is taken from the first exit's cost to the last one's.

    Columns: protocol, rule, area, goal, threshold, cost and accuracy (regression: r2; both on test, at that threshold;
    NaN where the goal is out of reach), reason (why; empty otherwise). Raises EestudyError as `threshold_sweep` does.
    """
    cost_array = check_costs(costs, len(test[0]))
    if validation is not None:
        check_alike(check_logits(validation[0]), check_logits(test[0]))
    chosen = tradeoff_curve(*(test if validation is None else validation), costs, rule)
    score = str(chosen.columns[1])
    thresholds, known = chosen["threshold"].to_numpy(), chosen[score].to_numpy()
    accuracy, flops = threshold_sweep(*test, costs, thresholds, rule)
    reference = float(known[-1]) if reference is None else float(reference)
    goal = SHARE * reference
    found, reason = {"threshold": math.nan, "cost": math.nan, score: math.nan}, ""
    reached = np.flatnonzero(known >= goal)
    if not reference > 0:
        reason = f"a share of the reference's {score}, {reference:.4g}, means nothing: it is not above 0"
    elif not len(reached):
        best = int(np.nanargmax(known))
        reason = (
            f"no threshold reaches {SHARE:g} x {reference:.4g} = {goal:.4g}; "
            f"the best is {known[best]:.4g} at {chosen['cost'][best]:g} FLOPs"
        )
    else:
        row = int(reached[0])  # cost grows with the threshold
        found = {"threshold": thresholds[row], "cost": flops[row], score: accuracy[row]}
    area = area_under_curve(chosen["cost"].to_numpy(), accuracy, cost_array[0], cost_array[-1])
    protocol = "paper" if validation is None else "calibrated"
    return pd.DataFrame([{"protocol": protocol, "rule": rule, "area": area, "goal": goal, **found, "reason": reason}])
