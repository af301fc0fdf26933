"""Does a metric measured early in training predict which strategy wins at a budget?

A group is one (cell, seed): its strategies start alike and see the same data, in the same order during their first
phase, so they are compared within it and never across cells, whose accuracies differ for other reasons. Accuracies and
regrets are fractions.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eestudy.config import EestudyError
from eestudy.report import statistics as st
from eestudy.report.dynamics import exit_shares, third_of
from eestudy.report.frames import Results
from eestudy.report.tables import Table, budget_name, by_budget, select, table

METRICS = ("cell", "seed", "strategy", "metric", "value")
EARLY = (5, 10)  # per cent of the last phase
FIXED = "mixed"  # the strategy one would take without any sign


def predictions(studies: Sequence[Results], protocol: str, rule: str) -> pd.DataFrame:
    """`early_prediction` at each of EARLY (column `measured`), over the runs of all studies, each counted once."""
    outcomes = pd.concat([select(results.budgets, protocol, rule) for results in studies])
    outcomes = outcomes.drop_duplicates(["run", "budget"])
    dominance, conflict, rank = (
        pd.concat([results.dynamics(name) for results in studies], ignore_index=True).drop_duplicates()
        for name in ("dominance", "conflict", "rank")
    )
    parts = []
    for per_cent in EARLY:
        found = early_prediction(early_metrics(dominance, conflict, rank, per_cent), outcomes)
        parts.append(found.assign(measured=f"{per_cent} % of the last phase"))
    return pd.concat(parts, ignore_index=True)


def early_metrics(dominance: pd.DataFrame, conflict: pd.DataFrame, rank: pd.DataFrame, per_cent: int) -> pd.DataFrame:
    """Metrics at the last checkpoint within the first `per_cent` of a run's last phase: METRICS.

    middle share, evenness (`dynamics.exit_shares`), conflicts (rate of the whole backbone's pairs), rank of early and
    of late stages. In disjoint's last phase the backbone is frozen: its rank is that of the phase before.
    """
    whole, pairs, stages = (
        _within_last_phase(frame, per_cent)
        for frame in (
            dominance[dominance["stage"] == 0],
            conflict[(conflict["stage"] == 0) & (conflict["kind"] == "exits")],
            rank,
        )
    )
    stages = stages.assign(part=third_of(stages, "stage"))
    keys = ["cell", "seed", "strategy"]
    found = [
        exit_shares(whole).melt(keys, ["middle", "evenness"], "metric"),
        pairs.groupby(keys)["negative_rate"].mean().rename("value").reset_index().assign(metric="conflicts"),
    ]
    for part in ("early", "late"):
        mean = stages[stages["part"] == part].groupby(keys)["numerical_share"].mean().rename("value")
        found.append(mean.reset_index().assign(metric=f"rank of {part} stages"))
    return pd.concat(found, ignore_index=True)[list(METRICS)]


def _within_last_phase(frame: pd.DataFrame, per_cent: int) -> pd.DataFrame:
    """The rows of each run at its last checkpoint up to `per_cent` of its last phase, the phase's start included."""
    last = frame.groupby("run")["phase"].transform("max")
    start = (frame["phase"] == last - 1) & (frame["share"] == 100)  # the end of the phase before
    frame = frame[start | (frame["phase"] == last) & (frame["share"] <= per_cent)]
    return frame[frame["progress"] == frame.groupby("run")["progress"].transform("max")]


def early_prediction(metrics: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """How well each metric ranks, and chooses, the strategies at each budget: one row per metric and budget.

    metrics: METRICS (at an early checkpoint). outcomes: cell, seed, strategy, budget, accuracy. Used are the groups
    that have both for every strategy. All are means over cells of the mean over their groups, low and high ends of
    their 95 % t interval over cells:

    correlation, low, high: Spearman's, of value and accuracy over the strategies.
    regret: accuracy of the group's best strategy less that of the one the metric chooses: its highest value or its
      lowest, whichever the mean correlation in the *other* cells says; of strategies that tie the mean.
    fixed: the regret of always FIXED; random: of a strategy drawn at random. less, less_low, less_high: regret - fixed.
    groups, cells: how many. EestudyError for fewer than 2 strategies or 2 cells in common.
    """
    keys = ["cell", "seed"]
    rows = []
    for (metric, value), (budget, accuracy) in product(
        metrics.groupby("metric"), outcomes.groupby("budget", sort=False)
    ):
        x, y = (
            each.pivot(index=keys, columns="strategy", values=name).dropna()
            for each, name in ((value, "value"), (accuracy, "accuracy"))
        )
        x, y = x.align(y, "inner")
        cells = x.index.get_level_values("cell")
        if x.shape[1] < 2 or cells.nunique() < 2:
            raise EestudyError(
                f"{metric}, budget {budget}: {x.shape[1]} strategies in {cells.nunique()} cells; needs 2"
            )
        correlation = pd.Series(rank_correlations(x.to_numpy(), y.to_numpy()), x.index)
        means = correlation.groupby(level="cell").mean().fillna(0.0)
        direction = np.sign((means.sum() - means).round(9)).reindex(cells).to_numpy()[:, None]
        regret = _regret(y, direction * x.to_numpy())
        fixed, random = _regret(y, np.broadcast_to(y.columns == FIXED, y.shape)), _regret(y, np.zeros(y.shape))
        found: dict[str, Any] = {"metric": metric, "budget": budget, "groups": len(x), "cells": cells.nunique()}
        measured = {"correlation": correlation, "regret": regret, "fixed": fixed, "random": random}
        for name, each in (measured | {"less": regret - fixed}).items():
            interval = st.mean_interval(each.groupby(level="cell").mean())
            ends = "" if name == "correlation" else f"{name}_"
            found |= {name: interval.mean, f"{ends}low": interval.low, f"{ends}high": interval.high}
        rows.append(found)
    return pd.DataFrame(rows)


def rank_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of x and y (groups, strategies), ties by mean ranks: (groups,).

    0 where only x is constant, NaN where y is.
    """
    a, b = (stats.rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (x, y))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    correlations = (a * b).sum(1) / np.where(size > 0, size, 1.0)
    return np.where((b**2).sum(1) > 0, correlations, math.nan)


def _regret(accuracy: pd.DataFrame, score: np.ndarray) -> pd.Series:
    """Of each group (a row): the best accuracy less the mean of those with the highest score, both (groups, S)."""
    chosen = score == score.max(axis=1, keepdims=True)
    return accuracy.max(axis=1) - (accuracy * chosen).sum(axis=1) / chosen.sum(axis=1)


def correlation_table(found: pd.DataFrame) -> Table:
    """Rows what was measured x metric, columns budgets: the mean rank correlation."""
    text = [written(r.correlation, r.low, r.high, "{:+.2f}") for r in found.itertuples()]
    made = by_budget(found.assign(text=text), ["measured", "metric"])
    return table(made, "Mean rank correlation [95 % interval over cells].", "correlations")


def regret_table(found: pd.DataFrame) -> Table:
    """Rows what was measured x metric, columns budgets: the regret, and in brackets less that of always FIXED."""
    rows = found.itertuples()
    ends = (
        f"{100 * r.regret:.1f}; {written(100 * r.less, 100 * r.less_low, 100 * r.less_high, '{:+.1f}')}" for r in rows
    )
    made = by_budget(found.assign(text=list(ends)), ["measured", "metric"])
    caption = f"Regret of choosing by the metric, points; less that of always {FIXED} [95 % interval over cells]."
    return table(made, caption, "regrets")


def in_short(found: pd.DataFrame) -> str:
    """Whether any metric beats the fixed choice, in how many cases, and what that costs without a metric."""
    better, worse = (found["less_high"] < 0).sum(), (found["less_low"] > 0).sum()
    clear = ((found["low"] > 0) | (found["high"] < 0)).sum()
    beaten = better > 0.05 * len(found)  # chance alone gives one in forty
    answer = f"Some early signs beat always {FIXED}" if beaten else f"No early sign is shown to beat always {FIXED}"
    costs = ", ".join(
        f"{100 * rows['fixed'].mean():.1f} at {budget_name(str(budget))}"
        for budget, rows in found.groupby("budget", sort=False)
    )
    return (
        f"**In short.** {answer}: choosing by a metric loses less in {better} and more in {worse} of {len(found)} "
        f"cases ({found['groups'].max()} networks and seeds in {found['cells'].max()} cells). {clear} of the rank "
        f"correlations have an interval without 0. Always {FIXED} loses, in points: {costs}."
    )


def written(mean: float, low: float, high: float, form: str) -> str:
    """Such as "+0.12 [−0.03 to 0.27]"; form: of each number, as of `str.format`."""
    return st.with_interval(st.Interval(mean, low, high, 0), form.format, to=" to ").replace("-", "−")
