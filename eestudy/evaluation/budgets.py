"""Accuracy under a budget of FLOPs, by two protocols. A budget is a mean cost in FLOPs a sample.

`calibrated`, the study's own: thresholds fitted on validation data for each budget, applied once to test. This is
budgeted batch classification (MSDNet, Huang et al. 2018). `paper`, the published one: one threshold for all exits,
swept on the test set, as in Kubaty et al. 2025; it chooses on test data, and is here only to compare with published
tables. The sweep of one run is all that is needed of it: the runs of a cell choose together, from their sweeps.

Named budgets are % of the plain backbone's FLOPs; "max" has no limit. Thresholds are on the score of the rule: leave
when score > threshold (entropy: score = -H). In regression (C = 1, rule "patience") the threshold is minus a difference
(see `rules.patience`); where a budget is too small for two exits, everybody leaves at exit 1. The tables then have
`REGRESSION_SCORES` in place of accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eestudy.config import EestudyError, check_name
from eestudy.sweeps import paper_budgets_of_sweeps

from .allocation import Fitter, geometric_fitter, shared_fitter
from .checks import (
    ArrayLike,
    Costs,
    Predictions,
    check_alike,
    check_classes,
    check_costs,
    check_predictions,
    is_multi_label,
    is_number,
)
from .curves import RULE, right, squared_errors, threshold_sweep
from .exit_rules import check_rule, leave_at, rule_for, score_table, scores
from .quality import LABEL_SCORES, REGRESSION_SCORES, label_scores, regression_scores
from .rules.patience import TOO_EARLY
from .rules.rule import predictions as classes_of

BUDGETS = ("25", "50", "75", "100", "max")
ALLOCATIONS = ("geometric", "shared", "optimized")


def calibrate(
    logits: ArrayLike, labels: ArrayLike, costs: Costs, budget: float, rule: str = RULE, method: str | None = None
) -> np.ndarray:
    """Thresholds (K,) that spend a budget on validation data; give them to `per_exit(thresholds, rule)`.

    In regression, to `per_exit(thresholds, "patience", k=1)`.

    logits (K, N, C), labels (N,), costs (K,) and budget in FLOPs a sample, from the first exit's cost to the last
    one's. The mean cost on these data never exceeds the budget.

    method, see `allocation`: "geometric" (Huang et al. 2018, budgeted batch): the share of samples that leaves at exit
    k is proportional to q^k. "shared": one threshold for all exits. In both labels play no part. "optimized": a
    threshold for each exit, for the most accuracy on these data within the budget; it learns K - 1 numbers from the
    labels, so on few samples it may be worse on test. None (default): geometric, but shared for patience, whose scores
    are whole numbers and nearly all tied.

    inf: nobody leaves at this exit (always at the last one, and everywhere when the budget covers the full
    cost); -inf: everybody leaves.
    Raises EestudyError for a budget below the first exit's cost, above the whole network's, or not finite, for bad
    arrays, and, if optimized, for labels of one class only.
    """
    if not is_number(budget) or not math.isfinite(budget):
        raise EestudyError(f"budget: must be a finite number of FLOPs, got {budget!r}")
    fit = fitter((logits, labels), costs, rule, method)
    cost = check_costs(costs, len(logits))
    if budget < cost[0]:
        raise EestudyError(f"budget: {budget:g} FLOPs is below the cost of the first exit, {cost[0]:g} FLOPs")
    if budget > cost[-1]:
        raise EestudyError(f"budget: {budget:g} FLOPs is above the cost of the whole network, {cost[-1]:g} FLOPs")
    return fit(float(budget))


def calibrated_budgets(
    validation: Predictions,
    test: Predictions,
    costs: Costs,
    backbone_flops: float,
    rule: str = RULE,
    budgets: Sequence[str] = BUDGETS,
    method: str | None = None,
) -> pd.DataFrame:
    """Accuracy and realised mean cost on the test set, for thresholds calibrated on validation data.

    validation, test: (logits (K, N, C), labels (N,)). Returns budget, accuracy, flops, one row a budget; NaN
    where the budget is below the first exit's cost. "max", or a budget above the whole network's cost: every sample
    goes to the last exit.
    The test cost may differ from the budget a little, in either direction: it is measured, not fitted
    (`budget_misses`).
    Raises EestudyError as `calibrate` does, and when validation and test differ in exits or classes.
    """
    limits = named_limits(budgets, backbone_flops)
    return _applied(fitter(validation, costs, rule, method), validation, test, costs, rule, limits)


def budgets_of_both(
    validation: Predictions, test: Predictions, costs: Costs, backbone_flops: float, rule: str, method: str
) -> pd.DataFrame:
    """`calibrated_budgets`, and beside it what the same thresholds come to on the validation data they were fitted to.

    validation_flops, and validation_accuracy (regression: validation_r2): what is chosen between trainings is chosen by
    these, as test data choose nothing.
    """
    limits, fit = named_limits(BUDGETS, backbone_flops), fitter(validation, costs, rule, method)
    own, table = (_applied(fit, validation, split, costs, rule, limits) for split in (validation, test))
    score = score_names(*test)[0]
    return table.assign(**{f"validation_{name}": own[name] for name in (score, "flops")})


def calibrated_curve(
    validation: Predictions,
    test: Predictions,
    costs: Costs,
    backbone_flops: float,
    rule: str,
    fractions: Sequence[float] | np.ndarray,
    method: str | None = None,
) -> pd.DataFrame:
    """`calibrated_budgets` over a grid of budgets given as fractions of the plain backbone's FLOPs.

    Returns budget (the fraction), accuracy, flops; NaN where the budget is below the first exit's cost.
    """
    _check_backbone(backbone_flops)
    grid = np.asarray(fractions, dtype=np.float64)
    if grid.ndim != 1 or not np.isfinite(grid).all() or (grid <= 0).any():
        raise EestudyError(f"fractions: must be a list of finite numbers above 0, got {fractions!r}")
    limits = {float(fraction): float(fraction) * backbone_flops for fraction in grid}
    return _applied(fitter(validation, costs, rule, method), validation, test, costs, rule, limits)


def budget_misses(
    validation: Predictions, test: Predictions, costs: Costs, backbone_flops: float, rule: str, method: str
) -> pd.DataFrame:
    """How far the realised mean cost on test is from the budget that the thresholds were fitted for.

    One row a budget: budget, limit (FLOPs), validation_flops, flops (on test), miss (flops / limit - 1: above 0 is
    overspent), accuracy (regression: `REGRESSION_SCORES`), reason: why a row has NaN, or spends less than it could;
    empty otherwise. Raises EestudyError as `calibrated_budgets` does.
    """
    limits, fit = named_limits(BUDGETS[:-1], backbone_flops), fitter(validation, costs, rule, method)
    own, frame = (_applied(fit, validation, split, costs, rule, limits) for split in (validation, test))
    frame = frame.assign(limit=list(limits.values()), validation_flops=own["flops"])
    frame["miss"] = frame["flops"] / frame["limit"] - 1
    cost = check_costs(costs, len(validation[0]))
    spent = frame["validation_flops"] if method == "optimized" else frame["limit"]
    frame["reason"] = [_reason(limit, cost, each) for limit, each in zip(frame["limit"], spent)]
    scores = score_names(*validation)
    return frame[["budget", "limit", "validation_flops", "flops", "miss", *scores, "reason"]]


def _reason(limit: float, cost: np.ndarray, spent: float) -> str:
    if limit < cost[0]:
        return f"budget of {limit:g} FLOPs is below the first exit's {cost[0]:g}"
    if limit > cost[-1]:
        return f"budget of {limit:g} FLOPs is above the whole network's {cost[-1]:g}, so nobody leaves early"
    if spent < 0.99 * limit:
        return f"{spent:g} FLOPs suffice: no thresholds were found that are better on validation data for more"
    return ""


def _applied(
    fit: Fitter, validation: Predictions, test: Predictions, costs: Costs, rule: str, limits: dict
) -> pd.DataFrame:
    """The one place where thresholds meet test data: fitted before, applied once."""
    tensor, labels = check_predictions(*test, several=True)
    check_alike(check_predictions(*validation, several=True)[0], tensor)
    cost = check_costs(costs, len(tensor))
    score, _ = score_table(tensor, rule)
    rows = []
    for budget, limit in limits.items():
        if limit < cost[0]:
            rows.append({"budget": budget})
            continue
        index = leave_at(score, fit(limit)) - 1
        rows.append({"budget": budget, **measured(tensor, labels, index), "flops": cost[index].mean()})
    return pd.DataFrame(rows, columns=["budget", *score_names(tensor, labels), "flops"])


def fitter(validation: Predictions, costs: Costs, rule: str, method: str | None) -> Fitter:
    """Checks the validation data once and returns budget in FLOPs, from the first exit's on -> thresholds (K,)."""
    tensor, labels = check_predictions(*validation, several=True)
    check_rule(rule, is_multi_label(labels))
    if method is None:
        method = "shared" if rule == "patience" else "geometric"
    check_name("method", method, ALLOCATIONS)
    regression = tensor.shape[2] == 1
    cost = check_costs(costs, len(tensor))
    score, predicted = score_table(tensor, rule)
    if regression and method == "geometric":
        # Nobody can leave at exits 1..k by a change, so no shares of samples can be set there.
        raise EestudyError(
            f"method: must be 'shared' in regression, one difference for all exits, or 'optimized'; got {method!r}"
        )
    shared = shared_fitter(score, cost)
    if method == "shared":
        fit_score = shared
    elif method == "geometric":
        fit_score = geometric_fitter(score, cost)
    else:
        from .optimized import optimized_fitter  # which no training needs

        starts: tuple[Fitter, ...] = (shared,)
        if regression:
            worth = -squared_errors(tensor, labels)
        else:
            if not is_multi_label(labels):
                check_classes(tensor, labels, "method optimized")
            worth, starts = right(tensor, predicted, labels), (shared, geometric_fitter(score, cost))
        fit_score = optimized_fitter(score, worth, cost, starts)

    @cache
    def fit(budget: float) -> np.ndarray:
        return np.full(len(cost), math.inf) if budget >= cost[-1] else fit_score(budget)

    return fit


# ---------------------------------------------------------------- the published protocol


def paper_sweep(test: Predictions, costs: Costs, rule: str = RULE) -> pd.DataFrame:
    """One run at every threshold of `Rule.sweep`: threshold (its number, from 0), accuracy, flops (mean), value.

    Regression, which the paper has not: `REGRESSION_SCORES` in place of accuracy. First everybody leaves at exit 1,
    then come 100 evenly spaced differences from the run's own largest change to 0.
    Raises EestudyError for shapes that do not match, bad costs and an unknown rule.
    """
    tensor, labels = check_predictions(*test, several=True)
    num_exits, _, num_classes = tensor.shape
    if num_classes > 1:
        values = rule_for(rule, num_classes).sweep(num_exits, num_classes)
        accuracy, cost = threshold_sweep(tensor, labels, costs, values, rule)
        table = pd.DataFrame({score_names(tensor, labels)[0]: accuracy, "flops": cost})
    else:
        found, flops = scores(tensor, rule), check_costs(costs, num_exits)
        largest = found[found > TOO_EARLY].min(initial=0.0)  # minus the largest change; 0 with too few exits for any
        values = np.append(-math.inf, np.linspace(float(largest), 0.0, 100))
        left = [leave_at(found, np.full(num_exits, value)) - 1 for value in values]
        table = pd.DataFrame([{**measured(tensor, labels, at), "flops": flops[at].mean()} for at in left])
    table.insert(0, "threshold", np.arange(len(table)))
    return table.assign(value=values)


def paper_budgets(
    predictions: Sequence[Predictions], costs: Costs, backbone_flops: float, rule: str = RULE
) -> pd.DataFrame:
    """The published protocol for the runs (seeds) of one cell.

    predictions: (logits (K, N, C), labels (N,)) of the test set, one pair a run. costs (K,) in FLOPs.
    Accuracy and cost are averaged over the runs at each swept threshold; the last threshold before the mean
    cost first exceeds the budget is taken, without interpolation; where there is none, all three values are
    NaN. "max" is the last threshold of the sweep.
    Returns run_index, budget, threshold, accuracy, flops: each run's own numbers at the threshold that the
    runs chose together, so that their mean over runs is the published number.
    Raises EestudyError for no runs, runs of other shapes, bad costs or rule.
    """
    limits = named_limits(BUDGETS, backbone_flops)
    if not predictions:
        raise EestudyError("predictions: paper_budgets needs those of at least one run, got none")
    shapes = [tuple(check_predictions(*pair, several=True)[0].shape) for pair in predictions]
    if len({(shape[0], shape[2]) for shape in shapes}) > 1:
        raise EestudyError(f"predictions: the runs of a cell must have equal exits and classes, got {shapes}")
    frame = paper_budgets_of_sweeps([paper_sweep(pair, costs, rule) for pair in predictions], limits)
    return frame.assign(threshold=frame["value"]).drop(columns="value")


# ---------------------------------------------------------------- what both protocols use


def score_names(logits: ArrayLike, labels: ArrayLike) -> tuple[str, ...]:
    """The columns that say how good predictions are: logits (K, N, C), labels (N,) or (N, C)."""
    if is_multi_label(labels):
        return LABEL_SCORES
    return REGRESSION_SCORES if np.shape(logits)[2] == 1 else ("accuracy",)


def measured(tensor: Tensor, labels: np.ndarray, index: np.ndarray) -> dict[str, float]:
    """How good checked logits (K, N, C) are when sample n leaves at exit index[n], from 0."""
    left = tensor[torch.from_numpy(index), torch.arange(len(index))]
    if is_multi_label(labels):
        return label_scores(left.numpy(), labels)
    if tensor.shape[2] == 1:
        return regression_scores(left[:, 0].numpy(), labels)
    return {"accuracy": (classes_of(left).numpy() == labels).mean()}


def named_limits(budgets: Sequence[str], backbone_flops: float) -> dict[str, float]:
    """Named budgets -> FLOPs a sample; "max" -> inf."""
    _check_backbone(backbone_flops)
    limits = {}
    for budget in budgets:
        try:
            percent = math.inf if budget == "max" else float(budget)
        except ValueError:
            percent = math.nan
        if not percent > 0 or (math.isinf(percent) and budget != "max"):
            raise EestudyError(f"budget: must be a % of the backbone's FLOPs such as '50', or 'max'; got {budget!r}")
        limits[str(budget)] = percent / 100 * backbone_flops
    return limits


def _check_backbone(backbone_flops: float) -> None:
    if not is_number(backbone_flops) or not math.isfinite(backbone_flops) or backbone_flops <= 0:
        raise EestudyError(f"backbone_flops: must be a finite number above 0, got {backbone_flops!r}")
