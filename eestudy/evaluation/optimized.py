"""A threshold for each exit, for the most worth within a budget on validation data. Names as in `allocation`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .allocation import Fitter
from .exit_rules import leave_at


class Solution(NamedTuple):
    """thresholds (K,), and what they give on validation data: the sum of worth, the mean cost."""

    thresholds: np.ndarray
    worth: float
    cost: float


_PRICES = 48
_SWEEPS = 100  # each sweep that changes anything improves the objective, so this is never reached in practice


class Ascent:
    """Thresholds (K,) one at a time, each exactly optimal while the others stand still.

    What leaves at exit k is a prefix of the samples that reach it, sorted by score; one cumulative sum says what
    every prefix gains over staying, and ties leave together. Exits are visited from the last to the first, which from
    "nobody leaves" is backward induction; sweeps repeat until nothing changes.
    """

    def __init__(self, score: np.ndarray, worth: np.ndarray, costs: np.ndarray) -> None:
        self.score, self.worth, self.costs = score, worth.astype(np.float64), costs
        self.order = np.argsort(-score, axis=1, kind="stable")

    def solution(self, thresholds: np.ndarray) -> Solution:
        index = leave_at(self.score, thresholds) - 1
        counts = np.bincount(index, minlength=len(self.costs))
        worth = self.worth[index, np.arange(len(index))].sum()
        return Solution(thresholds, float(worth), float(counts @ self.costs / len(index)))

    def climb(self, thresholds: np.ndarray, price: float = 0.0, budget: float = math.inf) -> Solution:
        """From `thresholds`, the most of sum(worth) - price * sum(cost) with a mean cost within `budget`.

        If the first thresholds are within the budget, the solution is never worse than they are.
        """
        thresholds = thresholds.copy()
        for _ in range(_SWEEPS):
            before = thresholds.copy()
            self._sweep(thresholds, price, budget)
            if (thresholds == before).all():
                break
        return self.solution(thresholds)

    def _sweep(self, thresholds: np.ndarray, price: float, budget: float) -> None:
        num_exits, num_samples = self.score.shape
        leaves = self.score > thresholds[:, None]
        left_before = np.logical_or.accumulate(leaves, axis=0)
        later = np.full(num_samples, num_exits - 1)  # where a sample leaves if it stays at the exit in question
        for k in range(num_exits - 2, -1, -1):
            gone = left_before[k - 1] if k else np.zeros(num_samples, dtype=bool)
            order = self.order[k][~gone[self.order[k]]]
            # Gains of letting the first 0, 1, 2, .. of them leave here.
            gain = _from_zero(self.worth[k, order] - self.worth[later[order], order])
            cost = _from_zero(self.costs[k] - self.costs[later[order]])
            value = gain - price * cost
            score = self.score[k, order]
            value[1:-1][score[1:] == score[:-1]] = -math.inf
            if budget < math.inf:
                out = self.costs[leaves[:k].argmax(axis=0)] if k else 0.0
                stay = np.where(gone, out, self.costs[later]).sum()
                value[(stay + cost) / num_samples > budget] = -math.inf
            if value.max() > -math.inf:
                many = len(value) - 1 - int(np.argmax(value[::-1]))  # of equals the cheapest
                thresholds[k] = math.inf if many == 0 else -math.inf if many == len(order) else score[many]
            later = np.where(self.score[k] > thresholds[k], k, later)
        thresholds[-1] = math.inf


def _from_zero(steps: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(steps)])


def optimized_fitter(score: np.ndarray, worth: np.ndarray, costs: np.ndarray, starts: tuple[Fitter, ...]) -> Fitter:
    """A threshold for each exit, for the most worth (correct samples, or minus squared errors) within the budget.

    Lagrange: for each price of a FLOP on a grid, coordinate ascent on worth - price * cost, from "nobody leaves". Then,
    for a budget, coordinate ascent under the budget itself from the best of these within it, and from the solutions
    of `starts`; the most worth wins, of equals the cheapest, of those the first. So on these data it is never worse
    than any of `starts`. Deterministic. Not always the global optimum: finding that one is combinatorial.
    """
    ascent = Ascent(score, worth, costs)
    steps = np.diff(costs)
    spread = float(np.ptp(ascent.worth, axis=0).max())
    # At the highest price no gain of a sample pays for the smallest step; at the lowest, hardly anything costs.
    highest = max(spread, 1e-300) / steps[steps > 0].min()
    nobody = np.full(len(costs), math.inf)
    path: list[Solution] = []

    def fit(budget: float) -> np.ndarray:
        if not path:
            path.extend(ascent.climb(nobody, price) for price in np.geomspace(highest, highest * 1e-5, _PRICES))
        within = [solution for solution in path if solution.cost <= budget]
        firsts = [max(within, key=_rank).thresholds] if within else []
        firsts += [start(budget) for start in starts]
        found = [ascent.climb(first, budget=budget) for first in firsts]
        # At a budget of the first exit's cost a mean may be rounded above it: then the cheapest, one of `starts`.
        allowed = [solution for solution in found if solution.cost <= budget] or [min(found, key=lambda one: one.cost)]
        return max(allowed, key=_rank).thresholds

    return fit


def _rank(solution: Solution) -> tuple[float, float]:
    return solution.worth, -solution.cost
