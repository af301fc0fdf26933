"""All that a run's stored predictions say, as tidy tables: what `eestudy evaluate` writes, a function a table.

Where something has no answer (a budget below the first exit's cost, a regression, labels of one class, NaN) the row
has NaN and its column `reason` says why. In regression r2 stands for accuracy, and a column `score` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from eestudy.config import EestudyError
from eestudy.registry import EXIT_RULES, LABEL_RULES

from .budgets import ALLOCATIONS, budget_misses, calibrate, fitter, measured
from .checks import Predictions, check_predictions, is_multi_label
from .exit_rules import ExitRule, leave_at, per_exit, score_table
from .quality import LABEL_SCORES, REGRESSION_SCORES
from .reliability import apply_temperatures, fit_temperatures, reliability_metrics, reliability_table
from .risk import control_risk

STEPS = 60
"""Budgets of the explorer, evenly from the first exit's cost to the last one's."""
TOLERANCES, CONFIDENCES = (0.005, 0.01, 0.02, 0.05), (0.8, 0.9, 0.95)
DRAWS, DRAWN = 50, (0.01, 0.9)
"""Of the simulation of risk control: how many, and the tolerance and confidence of all of them."""
CHOSEN = "match: patience chose the weights by these validation data, so they guarantee nothing"
DYNAMIC = 0.5
"""Budget, of the plain backbone, of the network that leaves early wherever one has to stand for all."""


class Predicted(NamedTuple):
    """A run's predictions, (logits (K, N, C), labels (N,)) each, costs (K,) and the plain backbone's cost in FLOPs.

    validation_chose: whether validation data had a say in the weights, as under match: patience.
    """

    validation: Predictions
    test: Predictions
    costs: np.ndarray
    backbone_flops: float
    validation_chose: bool = False

    @property
    def regression(self) -> bool:
        return np.shape(self.test[0])[2] == 1

    @property
    def rules(self) -> tuple[str, ...]:
        """The exit rules that apply; the first stands for all."""
        if is_multi_label(self.test[1]):
            return tuple(LABEL_RULES)
        return ("patience",) if self.regression else tuple(EXIT_RULES)


def or_reason(make: Callable[[], pd.DataFrame], **facts: object) -> pd.DataFrame:
    """What `make` gives, with `facts` and a column reason; or, where it refuses, one row that says why."""
    try:
        frame = make()
    except EestudyError as error:
        return pd.DataFrame([{**facts, "reason": str(error)}])
    frame = frame if "reason" in frame else frame.assign(reason="")
    return frame.assign(**facts)[[*facts, *(column for column in frame if column not in facts)]]


def stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One below the other; a column that a table lacks, such as one of reasons alone, is NaN there."""
    columns = dict.fromkeys(column for table in sorted(tables, key=lambda t: -t.shape[1]) for column in table)
    # As objects: pandas would guess a column's type from a table that has nothing in it.
    parts = [table.reindex(columns=list(columns)).astype(object) for table in tables]
    return pd.concat(parts, ignore_index=True).infer_objects()


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    scores = [name for name in (*REGRESSION_SCORES, *LABEL_SCORES) if name in frame]
    return frame.drop(columns=scores[1:]).assign(score=scores[0]) if scores else frame


def allocation(run: Predicted) -> pd.DataFrame:
    """`budget_misses` for every exit rule and way to share out the budget: rule, allocation (its name), budget, ..."""
    missed = partial(budget_misses, run.validation, run.test, run.costs, run.backbone_flops)
    pairs = [(rule, method) for rule in run.rules for method in ALLOCATIONS]
    return _scored(stacked([or_reason(partial(missed, *pair), rule=pair[0], allocation=pair[1]) for pair in pairs]))


def explorer(run: Predicted) -> pd.DataFrame:
    """What STEPS budgets buy on test, by allocation: budget and cost (shares of the backbone), accuracy, exits.

    left_1 .. left_K: how many samples leave at each exit; threshold_1 .. threshold_{K-1}: on the score of the rule,
    the first that applies: max-probability, patience (regression) or every-label (several labels a sample).
    """
    rule = run.rules[0]

    def explored(method: str) -> pd.DataFrame:
        fit = fitter(run.validation, run.costs, rule, method)
        tensor, labels = check_predictions(*run.test, several=True)
        score, _ = score_table(tensor, rule)
        rows = []
        for budget in np.linspace(run.costs[0], run.costs[-1], STEPS):
            thresholds = fit(float(budget))
            index = leave_at(score, thresholds) - 1
            left = np.bincount(index, minlength=len(run.costs))
            rows.append(
                {"budget": budget / run.backbone_flops, **measured(tensor, labels, index)}
                | {"cost": run.costs[index].mean() / run.backbone_flops}
                | {f"left_{number}": many for number, many in enumerate(left, 1)}
                | {f"threshold_{number}": value for number, value in enumerate(thresholds[:-1], 1)}
            )
        return _scored(pd.DataFrame(rows))

    return stacked([or_reason(partial(explored, method), rule=rule, allocation=method) for method in ALLOCATIONS])


def _outcome(score: np.ndarray, right: np.ndarray, threshold: float, costs: np.ndarray) -> tuple[float, float]:
    """Accuracy lost against the last exit, and the mean cost, by scores and correctness (K, N)."""
    index = leave_at(score, np.full(len(score), threshold)) - 1
    return right[-1].mean() - right[index, np.arange(len(index))].mean(), costs[index].mean()


def risk(run: Predicted) -> pd.DataFrame:
    """Risk control (risk gap, rule max-probability): tolerance, confidence, threshold, certified, and what came of it.

    validation_risk, test_risk: accuracy lost against the last exit; flops (test); speed_up: plain backbone's / flops.
    Nothing is certified where validation data chose the weights: the guarantee is for data that chose nothing.
    """

    def controlled(tolerance: float, confidence: float) -> pd.DataFrame:
        if run.validation_chose:
            return pd.DataFrame([{"certified": False, "reason": CHOSEN}])
        found = control_risk(*run.validation, run.costs, tolerance, confidence)
        row = {"certified": found.threshold is not None, "reason": found.reason}
        if found.threshold is not None:
            tensor, labels = check_predictions(*run.test)
            score, predicted = score_table(tensor, found.rule)
            lost, flops = _outcome(score, predicted == labels, found.threshold, run.costs)
            row |= {"threshold": found.threshold, "validation_risk": found.risk, "test_risk": lost, "flops": flops}
            row["speed_up"] = run.backbone_flops / flops
        return pd.DataFrame([row])

    pairs = [(tolerance, confidence) for tolerance in TOLERANCES for confidence in CONFIDENCES]
    return stacked([or_reason(partial(controlled, t, c), tolerance=t, confidence=c) for t, c in pairs])


def draws(run: Predicted) -> pd.DataFrame:
    """Does the guarantee hold on this network? Validation and test together stand for the whole population.

    From it as many samples as validation has are drawn with replacement, DRAWS times; so each draw's certified
    threshold has a risk that is known exactly. One row a draw: draw, tolerance, confidence, certified, risk (of the
    population), exceeded, speed_up.
    """
    tolerance, confidence = DRAWN

    def drawn() -> pd.DataFrame:
        logits = np.concatenate([run.validation[0], run.test[0]], axis=1)
        tensor, labels = check_predictions(logits, np.concatenate([run.validation[1], run.test[1]]))
        score, predicted = score_table(tensor, "max-probability")
        generator = np.random.default_rng(0)
        rows = []
        for draw in range(DRAWS):
            chosen = generator.integers(len(labels), size=len(run.validation[1]))
            found = control_risk(tensor[:, chosen], labels[chosen], run.costs, tolerance, confidence)
            row = {"draw": draw, "certified": found.threshold is not None, "reason": found.reason, "exceeded": False}
            if found.threshold is not None:
                lost, flops = _outcome(score, predicted == labels, found.threshold, run.costs)
                row |= {"risk": lost, "exceeded": bool(lost > tolerance), "speed_up": run.backbone_flops / flops}
            rows.append(row)
        return pd.DataFrame(rows)

    return or_reason(drawn, tolerance=tolerance, confidence=confidence)


def dynamic_rule(validation: Predictions, run: Predicted) -> ExitRule:
    """The rule that spends DYNAMIC of the backbone: max-probability, geometric, fitted on `validation`."""
    return per_exit(calibrate(*validation, run.costs, DYNAMIC * run.backbone_flops, "max-probability", "geometric"))


def reliability(run: Predicted) -> dict[str, pd.DataFrame]:
    """Calibration and failure prediction on test, by exit and for `dynamic_rule`; before and after temperatures.

    "reliability": `reliability_metrics` with scaled (bool) and temperature. "bins": `reliability_table`, those bins
    that hold any.
    """
    tables: dict[str, list[pd.DataFrame]] = {"reliability": [], "bins": []}
    for scaled in (False, True):
        try:
            found = _reliability(run, scaled)
        except EestudyError as error:
            found = {"reliability": pd.DataFrame([{"system": "all", "reason": str(error)}])}
        for name, table in found.items():
            tables[name].append(table.assign(scaled=scaled))
    return {name: stacked(made) for name, made in tables.items() if made}


def _reliability(run: Predicted, scaled: bool) -> dict[str, pd.DataFrame]:
    (validation, labels), (test, truth) = run.validation, run.test
    temperatures = np.ones(len(run.costs))
    if scaled:
        temperatures = fit_temperatures(validation, labels)
        validation, test = (apply_temperatures(logits, temperatures) for logits in (validation, test))
    rule, refused = None, []
    try:
        rule = dynamic_rule((validation, labels), run)
    except EestudyError as error:
        refused.append(pd.DataFrame([{"system": "dynamic", "reason": str(error)}]))
    table = reliability_metrics(test, truth, rule)
    table["temperature"] = [*temperatures, *[np.nan] * (len(table) - len(temperatures))]
    bins = reliability_table(test, truth, rule)
    return {"reliability": stacked([table, *refused]), "bins": bins[bins["count"] > 0]}
