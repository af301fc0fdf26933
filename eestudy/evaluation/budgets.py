"""Accuracy under a budget of FLOPs, by the two protocols of the study.

`paper` (`paper_budgets`): one threshold for all exits, swept on the test set, as in Kubaty et al. 2025. It
chooses on test data, and it is here only to compare with published tables.
`calibrated` (`calibrate`, `calibrated_budgets`, `calibrated_curve`): thresholds fitted on validation data for
each budget and applied once to the test set, as in budgeted batch classification (MSDNet, Huang et al. 2018).

A budget is a mean cost in FLOPs a sample. Named budgets are % of the plain backbone's FLOPs; "max" has no
limit. Thresholds are on the score of the rule: leave when score > threshold (entropy: score = -H).

In regression (C = 1, rule "patience") the threshold is minus a difference and `k` is fixed, 1 unless given (see
`exit_rules`); where a budget is too small for k + 1 exits, everybody leaves at exit 1. The tables then have
`regression.SCORES` in place of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .curves import is_correct, step_curve, threshold_sweep
from .exit_rules import (
    TOO_EARLY,
    ArrayLike,
    check_costs,
    check_logits,
    check_predictions,
    check_rule,
    leave_at,
    scores,
)
from .regression import SCORES, regression_scores

BUDGETS = ("25", "50", "75", "100", "max")
"""% of the plain backbone's FLOPs, and no limit."""

FRACTIONS = tuple(percent / 100 for percent in range(5, 126, 5))
"""Grid of the calibrated curve: 5 % to 125 % of the plain backbone."""

ALLOCATIONS = ("geometric", "shared")

Predictions = tuple[ArrayLike, ArrayLike]
Costs = Sequence[float] | ArrayLike


# ---------------------------------------------------------------- paper


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
    Raises ValueError for no runs, runs of other shapes, bad costs, budgets or rule.
    """
    limits = _limits(budgets, backbone_flops)
    if not predictions:
        raise ValueError("paper_budgets needs the predictions of at least one run, got none")
    checked = [check_predictions(*pair) for pair in predictions]
    if len({(tensor.shape[0], tensor.shape[2]) for tensor, _ in checked}) > 1:
        shapes = [tuple(tensor.shape) for tensor, _ in checked]
        raise ValueError(f"the runs of a cell must have equal exits and classes, got {shapes}")
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
                score = _measured(*checked[run_index], index)
            else:
                score = {"accuracy": accuracy[chosen]}
            values = {"threshold": thresholds[chosen], **score, "flops": cost[chosen]}
            rows.append({"run_index": run_index, "budget": budget, **values})
    return pd.DataFrame(rows, columns=["run_index", "budget", "threshold", *_score_names(num_classes), "flops"])


def _lowest(found: Sequence[np.ndarray]) -> float:
    """Minus the largest change in scores (K, N) of regressions; 0 when there are too few exits for any."""
    return min(float(score[score > TOO_EARLY].min(initial=0.0)) for score in found)


def _last_before_excess(mean_cost: np.ndarray, limit: float) -> int | None:
    """Index of the last threshold before the cost first exceeds the limit; None when the first one does."""
    over = np.flatnonzero(mean_cost > limit)
    chosen = int(over[0]) - 1 if len(over) else len(mean_cost) - 1
    return chosen if chosen >= 0 else None


# ---------------------------------------------------------------- calibrated


def calibrate(
    logits: ArrayLike,
    labels: ArrayLike,
    costs: Costs,
    budget: float,
    rule: str = "max-probability",
    allocation: str | None = None,
    k: int | None = None,
) -> np.ndarray:
    """Thresholds (K,) that spend a budget on validation data; give them to `per_exit(thresholds, rule)`.

    In regression, to `per_exit(thresholds, "patience", k)`, with k = 1 if none is given here.

    logits (K, N, C), labels (N,), costs (K,) and budget in FLOPs a sample. Labels are only checked: the
    thresholds follow from scores and costs. The mean cost on these data never exceeds the budget.

    allocation "geometric" (Huang et al. 2018, budgeted batch): the share of samples that leaves at exit k is
    proportional to q^k, with one q, the largest that the budget allows; at each exit the most confident of
    those still inside leave, and samples tied with the last of them leave too.
    allocation "shared": one threshold for all exits, the one with the largest cost within the budget.
    None (default): geometric, but shared for patience, whose scores are whole numbers and nearly all tied.

    inf: nobody leaves at this exit (always at the last one, and everywhere when the budget covers the full
    cost); -inf: everybody leaves.
    Raises ValueError for a budget that is not finite or below the first exit's cost, and for bad arrays.
    """
    if not isinstance(budget, (int, float, np.integer, np.floating)) or not math.isfinite(budget):
        raise ValueError(f"budget must be a finite number of FLOPs, got {budget!r}")
    fit = _fitter((logits, labels), costs, rule, allocation, k)
    cheapest = check_costs(costs, len(logits))[0]
    if budget < cheapest:
        raise ValueError(f"budget of {budget:g} FLOPs is below the cost of the first exit, {cheapest:g} FLOPs")
    return fit(float(budget))


def calibrated_budgets(
    validation: Predictions,
    test: Predictions,
    costs: Costs,
    backbone_flops: float,
    rule: str = "max-probability",
    budgets: Sequence[str] = BUDGETS,
    allocation: str | None = None,
    k: int | None = None,
) -> pd.DataFrame:
    """Accuracy and realised mean cost on the test set, for thresholds calibrated on validation data.

    validation, test: (logits (K, N, C), labels (N,)). Returns budget, accuracy, flops, one row a budget; NaN
    where the budget is below the first exit's cost. "max": every sample goes to the last exit.
    The test cost may differ from the budget a little, in either direction: it is measured, not fitted.
    Raises ValueError as `calibrate` does, and when validation and test differ in exits or classes.
    """
    limits = _limits(budgets, backbone_flops)
    return _calibrated(validation, test, costs, rule, allocation, k, limits)


def calibrated_curve(
    validation: Predictions,
    test: Predictions,
    costs: Costs,
    backbone_flops: float,
    rule: str = "max-probability",
    fractions: Sequence[float] | np.ndarray = FRACTIONS,
    allocation: str | None = None,
    k: int | None = None,
) -> pd.DataFrame:
    """`calibrated_budgets` over a grid of budgets given as fractions of the plain backbone's FLOPs.

    Returns budget (the fraction), accuracy, flops; NaN where the budget is below the first exit's cost.
    """
    _check_backbone(backbone_flops)
    grid = np.asarray(fractions, dtype=np.float64)
    if grid.ndim != 1 or not np.isfinite(grid).all() or (grid <= 0).any():
        raise ValueError(f"fractions must be a list of finite numbers above 0, got {fractions!r}")
    limits = {float(fraction): float(fraction) * backbone_flops for fraction in grid}
    return _calibrated(validation, test, costs, rule, allocation, k, limits)


def _calibrated(
    validation: Predictions,
    test: Predictions,
    costs: Costs,
    rule: str,
    allocation: str | None,
    k: int | None,
    limits: dict,
) -> pd.DataFrame:
    """The one place where thresholds meet test data: fitted before, applied once."""
    fit = _fitter(validation, costs, rule, allocation, k)
    tensor, labels = check_predictions(*test)
    fitted = tuple(check_logits(validation[0]).shape)
    if (fitted[0], fitted[2]) != (tensor.shape[0], tensor.shape[2]):
        raise ValueError(f"validation {fitted} and test {tuple(tensor.shape)} differ in exits or classes")
    cost = check_costs(costs, len(tensor))
    score = scores(tensor, rule, k)
    rows = []
    for budget, limit in limits.items():
        if limit < cost[0]:
            rows.append({"budget": budget})
            continue
        index = leave_at(score, fit(limit)) - 1
        rows.append({"budget": budget, **_measured(tensor, labels, index), "flops": cost[index].mean()})
    return pd.DataFrame(rows, columns=["budget", *_score_names(tensor.shape[2]), "flops"])


def _score_names(num_classes: int) -> tuple[str, ...]:
    return SCORES if num_classes == 1 else ("accuracy",)


def _measured(tensor: Tensor, labels: np.ndarray, index: np.ndarray) -> dict[str, float]:
    """How good checked logits (K, N, C) are when sample n leaves at exit index[n], from 0."""
    left = tensor[torch.from_numpy(index), torch.arange(len(index))]
    if tensor.shape[2] == 1:
        return regression_scores(left[:, 0].numpy(), labels)
    return {"accuracy": is_correct(left, labels).mean()}


# ---------------------------------------------------------------- fitting


def _fitter(
    validation: Predictions, costs: Costs, rule: str, allocation: str | None, k: int | None
) -> Callable[[float], np.ndarray]:
    """Checks the validation data once and returns budget in FLOPs -> thresholds (K,)."""
    check_rule(rule)
    if allocation is None:
        allocation = "shared" if rule == "patience" else "geometric"
    if allocation not in ALLOCATIONS:
        raise ValueError(f"unknown allocation {allocation!r}; choose one of {', '.join(ALLOCATIONS)}")
    tensor, _ = check_predictions(*validation)
    cost = check_costs(costs, len(tensor))
    score = scores(tensor, rule, k)
    if tensor.shape[2] == 1 and allocation != "shared":
        # Nobody can leave at exits 1..k by a change, so no shares of samples can be set there.
        raise ValueError(f"allocation must be 'shared' in regression, one difference for all exits; got {allocation!r}")
    fit_score = _shared_fitter(score, cost) if allocation == "shared" else _geometric_fitter(score, cost)

    def fit(budget: float) -> np.ndarray:
        return np.full(len(cost), math.inf) if budget >= cost[-1] else fit_score(budget)

    return fit


def _shared_fitter(score: np.ndarray, costs: np.ndarray) -> Callable[[float], np.ndarray]:
    curve = step_curve(score, np.zeros(score.shape, dtype=bool))  # correctness plays no part in the choice
    mean_cost = curve.cost(costs)

    def fit(budget: float) -> np.ndarray:
        thresholds = np.full(len(costs), curve.thresholds[np.flatnonzero(mean_cost <= budget)[-1]])
        thresholds[-1] = math.inf
        return thresholds

    return fit


# log q. At -60 all samples leave at exit 1, at +60 all at exit K; every other share is far below one sample.
_STEEPEST = 60.0
_PRECISION = 1e-9


def _geometric_fitter(score: np.ndarray, costs: np.ndarray) -> Callable[[float], np.ndarray]:
    num_exits, num_samples = score.shape
    exits = np.arange(1, num_exits + 1)

    def goal(log_q: float) -> tuple[int, ...]:
        """How many samples should have left at exits 1..k, for each k."""
        weights = np.exp(log_q * exits - np.max(log_q * exits))
        return tuple(np.rint(num_samples * np.cumsum(weights) / weights.sum()).astype(int))

    def fit(budget: float) -> np.ndarray:
        low, high = -_STEEPEST, _STEEPEST
        low_goal, high_goal = goal(low), goal(high)
        best, best_cost = _leave_in_order(score, costs, low_goal)
        while high - low > _PRECISION:
            middle = (low + high) / 2
            middle_goal = goal(middle)
            if middle_goal == low_goal:
                low = middle
            elif middle_goal == high_goal:
                high = middle
            else:
                thresholds, cost = _leave_in_order(score, costs, middle_goal)
                if cost <= budget:
                    low, low_goal = middle, middle_goal
                    # Ties can make the cost fall while q grows, so keep the best seen, not the last.
                    best, best_cost = (thresholds, cost) if cost > best_cost else (best, best_cost)
                else:
                    high, high_goal = middle, middle_goal
        return best

    return fit


def _leave_in_order(score: np.ndarray, costs: np.ndarray, goal: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Thresholds (K,) with which goal[k-1] samples or more left by exit k, and the realised mean cost."""
    num_exits, num_samples = score.shape
    thresholds = np.full(num_exits, math.inf)
    left = np.zeros(num_exits, dtype=np.int64)
    inside = np.arange(num_samples)
    for k in range(num_exits - 1):
        wanted = goal[k] - (num_samples - len(inside))
        if wanted <= 0:
            continue
        here = score[k, inside]
        stays = here < np.partition(here, -wanted)[-wanted]
        thresholds[k] = here[stays].max() if stays.any() else -math.inf
        left[k] = len(inside) - stays.sum()
        inside = inside[stays]
    left[-1] = len(inside)
    return thresholds, float(left @ costs / num_samples)


# ---------------------------------------------------------------- checks


def _check_backbone(backbone_flops: float) -> None:
    if not math.isfinite(backbone_flops) or backbone_flops <= 0:
        raise ValueError(f"backbone_flops must be a finite number above 0, got {backbone_flops!r}")


def _limits(budgets: Sequence[str], backbone_flops: float) -> dict[str, float]:
    """Named budgets -> FLOPs a sample; "max" -> inf."""
    _check_backbone(backbone_flops)
    limits = {}
    for budget in budgets:
        try:
            percent = math.inf if budget == "max" else float(budget)
        except ValueError:
            percent = math.nan
        if not percent > 0 or (math.isinf(percent) and budget != "max"):
            raise ValueError(f"budget must be a % of the backbone's FLOPs such as '50', or 'max'; got {budget!r}")
        limits[str(budget)] = percent / 100 * backbone_flops
    return limits
