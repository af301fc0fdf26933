"""Does a metric measured early in training predict which strategy wins at a budget?

A group is one (cell, seed): its strategies start alike and see the same data, in the same order during their first
phase, so they are compared within it and never across cells, whose accuracies differ for other reasons. Accuracies and
regrets are fractions.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eestudy.config import EestudyError, check_name
from eestudy.report import statistics as st
from eestudy.report.dynamics import exit_shares, third_of
from eestudy.report.frames import in_order

WHEN = ("run", "last phase")
METRICS = ("cell", "seed", "strategy", "metric", "value")
OUTCOMES = ("cell", "seed", "strategy", "budget", "accuracy")
# From as many cells on, cells are resampled; below, (cell, seed) groups: a few numbers have too few resamples. In a
# simulation with independent normal cells the intervals here cover the mean in 74 % of cases with 3 cells, 92 % with 5,
# 95 % with 8; with exponential ones in 70, 85 and 89 %.
FEWEST_CELLS = 8
RESAMPLES = 2000
EXACT = 1e-12  # means of equal numbers may differ in their last bits


def early_metrics(
    dominance: pd.DataFrame, conflict: pd.DataFrame, rank: pd.DataFrame, per_cent: int, when: str
) -> pd.DataFrame:
    """Metrics at the last checkpoint within the first `per_cent` of the run, or of its last phase (`when`).

    Within the run it is the last checkpoint that all strategies of a (cell, seed) have: as much is trained of each.
    Tidy: cell, seed, strategy, metric, value. middle share, evenness (`dynamics.exit_shares`), conflicts (rate of the
    whole backbone's pairs), rank of early and of late stages. In disjoint's last phase the backbone is frozen: its rank
    is that of the phase before. Raises EestudyError for an unknown `when`.
    """
    check_name("when", when, WHEN)

    def chosen(frame: pd.DataFrame) -> pd.DataFrame:
        return _within_run(frame, per_cent) if when == "run" else _within_last_phase(frame, per_cent)

    pairs = chosen(conflict[(conflict["stage"] == 0) & (conflict["kind"] == "exits")])
    stages = chosen(rank)
    stages = stages.assign(part=third_of(stages, "stage"))
    keys = ["cell", "seed", "strategy"]
    found = [
        exit_shares(chosen(dominance[dominance["stage"] == 0])).melt(keys, ["middle", "evenness"], "metric"),
        pairs.groupby(keys)["negative_rate"].mean().rename("value").reset_index().assign(metric="conflicts"),
    ]
    for part in ("early", "late"):
        mean = stages[stages["part"] == part].groupby(keys)["numerical_share"].mean().rename("value")
        found.append(mean.reset_index().assign(metric=f"rank of {part} stages"))
    return pd.concat(found, ignore_index=True)[list(METRICS)]


def _within_run(frame: pd.DataFrame, per_cent: int) -> pd.DataFrame:
    """The rows of each (cell, seed) at the largest progress up to `per_cent` that all its strategies have."""
    frame = frame.assign(at=frame["progress"].round(6))
    strategies = frame.groupby(["cell", "seed"])["strategy"].transform("nunique")
    have = frame.groupby(["cell", "seed", "at"])["strategy"].transform("nunique")
    frame = frame[(have == strategies) & (frame["at"] <= per_cent / 100)]
    return frame[frame["at"] == frame.groupby(["cell", "seed"])["at"].transform("max")]


def _within_last_phase(frame: pd.DataFrame, per_cent: int) -> pd.DataFrame:
    """The rows of each run at its last checkpoint up to `per_cent` of its last phase, the phase's start included."""
    last = frame.groupby("run")["phase"].transform("max")
    start = (frame["phase"] == last - 1) & (frame["share"] == 100)  # the end of the phase before
    frame = frame[start | (frame["phase"] == last) & (frame["share"] <= per_cent)]
    return frame[frame["progress"] == frame.groupby("run")["progress"].transform("max")]


def early_prediction(metrics: pd.DataFrame, outcomes: pd.DataFrame, fixed: str = "mixed") -> pd.DataFrame:
    """How well each metric ranks, and chooses, the strategies at each budget: one row per metric and budget.

    metrics: cell, seed, strategy, metric, value (at an early checkpoint). outcomes: cell, seed, strategy, budget,
    accuracy. A NaN is a value that is not there. Used are the groups that have both the metric and the budget.

    correlation, low, high: mean over groups of Spearman's rank correlation of value and accuracy over the strategies. A
      metric that is the same for all of them scores 0; a group with equal accuracies has nothing to rank, is left out.
    regret, regret_low, regret_high: accuracy of the group's best strategy less that of the one the metric chooses: its
      highest value or its lowest, whichever the mean correlation in the *other* cells says (a cell counts once). Of
      strategies that tie the mean is taken, and of all of them where that correlation is 0.
    reference_regret: of the one strategy that is best on average in the other cells; fixed_regret: of always `fixed`;
      random_regret: of a strategy drawn at random. Each with reference_low, reference_high and so on.
    less_reference, less_fixed, less_random, each with _low, _high: the metric's regret less that one's, paired by
      group. Below 0 the metric chooses better.
    groups, cells: how many. note: what is missing, and what the intervals stand for.

    Intervals: 95 %, bootstrap percentiles expanded for small samples (Hesterberg 2014, arXiv 1411.5279), over cells
    with all their seeds, or over groups where there are fewer than 8 cells: then they are about other seeds of these
    cells, not about other cells. Directions and the reference are chosen anew in every resample: for a metric of pure
    noise, less_random then covers 0 in 99 to 100 % of simulated studies (4, 10 and 20 cells), where with the choices
    held it covers 78 to 89 %. Not corrected for the number of rows. NaN where all groups have the same value.

    Raises EestudyError for a missing column, a value given twice, a group without one of the strategies, and
    fewer than 2 strategies.
    """
    metrics, outcomes = _checked(metrics, "metrics", METRICS), _checked(outcomes, "outcomes", OUTCOMES)
    strategies = in_order([*outcomes["strategy"], *metrics["strategy"]])
    if len(strategies) < 2:
        raise EestudyError(f"strategies: only {strategies[0]}; there is nothing to choose")
    check_name("fixed", fixed, strategies)
    values = _by_group(metrics, "metrics", strategies)
    accuracies = _by_group(outcomes, "outcomes", strategies)
    rows = []
    for (metric, value), (budget, accuracy) in product(values.items(), accuracies.items()):
        common = value.index.intersection(accuracy.index).sort_values()
        row: dict[str, Any] = {"groups": 0, "cells": 0, "note": "no (cell, seed) has both"}
        if len(common):
            cells = common.get_level_values("cell").to_numpy()
            row = _row(value.loc[common], accuracy.loc[common], cells, fixed)
        rows.append({"metric": metric, "budget": budget, **row})
    return pd.DataFrame(rows, columns=["metric", "budget", *_MEASURED, "groups", "cells", "note"])


_AGAINST = ("reference", "fixed", "random")
_MEASURED = [
    *("correlation", "low", "high", "regret", "regret_low", "regret_high"),
    *(f"{name}_{end}" for name in _AGAINST for end in ("regret", "low", "high")),
    *(f"less_{name}{end}" for name in _AGAINST for end in ("", "_low", "_high")),
]


def _row(value: pd.DataFrame, accuracy: pd.DataFrame, cells: np.ndarray, fixed: str) -> dict[str, Any]:
    """One row of `early_prediction`: value, accuracy (groups x strategies), cells (groups,)."""
    x, y = value.to_numpy(dtype=float), accuracy.to_numpy(dtype=float)
    draws = _draw(cells)
    correlations = rank_correlations(x, y)
    direction = draws.elsewhere(correlations[:, None])
    direction = np.sign(np.where(np.abs(direction) > EXACT, direction, 0.0)) + 0 * direction  # NaN stays
    regret = _regret(y, direction * stats.rankdata(x, axis=1))
    others = {
        "reference": _regret(y, draws.elsewhere(y)),
        "fixed": _regret(y, np.broadcast_to(accuracy.columns == fixed, y.shape)[None].astype(float)),
        "random": _regret(y, np.zeros((1, *y.shape))),
    }
    notes = []

    def measured(name: str, prefix: str, values: np.ndarray) -> dict[str, float]:
        interval = draws.interval(values)
        if interval.note:
            notes.append(f"{name}: {interval.note}")
        return {name: interval.mean, f"{prefix}low": interval.low, f"{prefix}high": interval.high}

    row: dict[str, Any] = measured("correlation", "", correlations[None]) | measured("regret", "regret_", regret)
    for name, other in others.items():
        row |= measured(f"{name}_regret", f"{name}_", other)
        row |= measured(f"less_{name}", f"less_{name}_", regret - other)
    number = len(np.unique(cells))
    if np.isnan(correlations).any():
        notes.append(f"{int(np.isnan(correlations).sum())} groups with equal accuracies not ranked")
    if number < 2:
        notes.append("one cell: no other to learn a direction or a strategy from")
    if number < FEWEST_CELLS:
        notes.append(f"fewer than {FEWEST_CELLS} cells: intervals over (cell, seed), for these cells only")
    return row | {"groups": len(cells), "cells": number, "note": "; ".join(notes)}


def rank_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of x and y (groups, strategies), ties by mean ranks: (groups,).

    0 where only x is constant, NaN where y is.
    """
    a, b = (stats.rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (x, y))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    correlations = (a * b).sum(1) / np.where(size > 0, size, 1.0)
    return np.where((b**2).sum(1) > 0, correlations, math.nan)


def _regret(accuracy: np.ndarray, score: np.ndarray) -> np.ndarray:
    """accuracy (groups, S), score (D, groups, S) -> (D, groups), the best accuracy less the mean at the highest score.

    NaN where a score is.
    """
    chosen = score >= score.max(axis=2, keepdims=True) - EXACT
    count = np.where(np.isnan(score).any(axis=2), math.nan, chosen.sum(axis=2))
    return accuracy.max(axis=1) - (accuracy * chosen).sum(axis=2) / count


@dataclass(frozen=True)
class _Draws:
    """Bootstrap draws, D of them; the first is no draw but each group once.

    weights (D, groups): how often a group is in; copies (D, cells): how often its cell counts; inside (groups, cells).
    """

    weights: np.ndarray
    copies: np.ndarray
    inside: np.ndarray
    clusters: int  # that are drawn: cells or groups

    def elsewhere(self, values: np.ndarray) -> np.ndarray:
        """values (groups, S) -> (D, groups, S), the mean over the means of the draw's other cells, NaN left out.

        0 where the other cells have no value; NaN where there is no other cell at all.
        """
        if self.copies.shape[1] < 2:
            return np.full((1, *values.shape), math.nan)
        weights = self.weights[:, :, None] * np.isfinite(values)
        sums = np.einsum("dgs,gc->dcs", weights * np.nan_to_num(values), self.inside)
        sizes = np.einsum("dgs,gc->dcs", weights, self.inside)
        copies = self.copies[:, :, None] * (sizes > 0)
        means = copies * sums / np.maximum(sizes, 1)
        others = copies.sum(axis=1, keepdims=True) - copies
        mean = (means.sum(axis=1, keepdims=True) - means) / np.maximum(others, 1)
        return np.where(others > 0, mean, 0.0)[:, self.inside.argmax(axis=1)]

    def interval(self, values: np.ndarray) -> st.Interval:
        """Mean of values (D or 1, groups), NaN left out, and the expanded percentile interval of its draws."""
        there = np.isfinite(values)
        count = int(there[0].sum())
        if not count:
            return st.Interval(math.nan, math.nan, math.nan, 0, "no value")
        sizes = (self.weights * there).sum(axis=1)
        means = (self.weights * np.nan_to_num(values)).sum(axis=1)[sizes > 0] / sizes[sizes > 0]
        if np.ptp(means) <= EXACT or self.clusters < 2:
            why = "one group" if count == 1 else f"the same in all {count} groups"
            return st.Interval(float(means[0]), math.nan, math.nan, count, f"{why}: no interval")
        # A bootstrap mean spreads as z sqrt((n - 1) / n) s, the t interval as t s: tails that make the two alike.
        degrees = self.clusters - 1
        stretch = math.sqrt(self.clusters / degrees) * stats.t.ppf((1 + st.LEVEL) / 2, degrees)
        low, high = np.quantile(means[1:], [stats.norm.sf(stretch), stats.norm.cdf(stretch)])
        return st.Interval(float(means[0]), float(low), float(high), count)


def _draw(cells: np.ndarray, resamples: int = RESAMPLES) -> _Draws:
    """cells (groups,): which each group belongs to. Draws the same of the same groups."""
    names, cell = np.unique(cells, return_inverse=True)
    inside = (cell[:, None] == np.arange(len(names))).astype(float)
    clusters = len(names) if len(names) >= FEWEST_CELLS else len(cells)
    drawn = np.random.default_rng(0).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    drawn = np.concatenate([np.ones((1, clusters)), drawn])
    if len(names) >= FEWEST_CELLS:
        return _Draws(drawn[:, cell], drawn, inside, clusters)
    return _Draws(drawn, (drawn @ inside > 0).astype(float), inside, clusters)


def _checked(frame: pd.DataFrame, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    """`columns` of a frame without the rows whose value is NaN."""
    *keys, value = columns
    for column in columns:
        if column not in frame:
            raise EestudyError(f"{name}: lacks the column {column!r}; needed: {', '.join(columns)}")
    frame = frame[list(columns)].dropna(subset=value)
    if frame.empty:
        raise EestudyError(f"{name}: has no {value}")
    infinite = frame[value].abs() == math.inf
    for wrong, what in ((infinite, f"{value} is infinite"), (frame.duplicated(keys), "is given more than once")):
        for cell, seed, strategy, measured in frame.loc[wrong, keys].itertuples(index=False):
            raise EestudyError(f"{name}: {cell}, seed {seed}, {strategy}, {measured}: {what}")
    return frame


def _by_group(frame: pd.DataFrame, name: str, strategies: list[str]) -> dict[str, pd.DataFrame]:
    """Metric or budget -> its values, a row per (cell, seed), a column per strategy, none missing."""
    measured, value = frame.columns[-2:]
    tables = {}
    for key, part in frame.groupby(measured, sort=False):
        wide = part.pivot(index=["cell", "seed"], columns="strategy", values=value).reindex(columns=strategies)
        missing = wide.isna().stack()
        if missing.any():
            cell, seed, strategy = missing.idxmax()
            raise EestudyError(
                f"{name}: {measured} {key!r} of {cell}, seed {seed} has no value for {strategy} "
                f"({missing.sum()} missing); each (cell, seed) needs all of {', '.join(strategies)}, or none"
            )
        tables[key] = wide
    return tables


def written(mean: float, low: float, high: float, form: str) -> str:
    """Such as "+0.12 [−0.03 to 0.27]"; form: of each number, as of `str.format`."""
    return st.with_interval(st.Interval(mean, low, high, 0), form.format, to=" to ").replace("-", "−")
