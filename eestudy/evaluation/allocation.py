"""Thresholds that spend a budget on validation data: three ways to share it out over the exits.

Scores (K, N) float32, costs (K,) FLOPs of leaving at each exit; a budget is a mean cost. A fitter reads the data once
and gives back budget -> thresholds (K,), with which the mean cost on these data never exceeds the budget. Budgets lie
from the first exit's cost to below the last one's, and means are floats: at the first exit's cost everybody leaves
there, even where the mean of N equal costs is rounded above it. inf: nobody leaves (always at the last exit); -inf:
everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .curves import step_curve
from .exit_rules import leave_at

Fitter = Callable[[float], np.ndarray]


def shared_fitter(score: np.ndarray, costs: np.ndarray) -> Fitter:
    """One threshold for all exits: the one with the largest cost within the budget."""
    curve = step_curve(score, np.zeros(score.shape, dtype=bool))  # correctness plays no part in the choice
    mean_cost = curve.cost(costs)

    def fit(budget: float) -> np.ndarray:
        within = np.flatnonzero(mean_cost <= budget)
        # None: the budget is the first exit's cost, and a mean of costs that are no whole numbers is rounded above it.
        thresholds = np.full(len(costs), curve.thresholds[within[-1] if len(within) else 0])
        thresholds[-1] = math.inf
        return thresholds

    return fit


# log q. At -60 all samples leave at exit 1, at +60 all at exit K; every other share is far below one sample.
_STEEPEST = 60.0
_PRECISION = 1e-9


def geometric_fitter(score: np.ndarray, costs: np.ndarray) -> Fitter:
    """The share of samples that leaves at exit k is proportional to q^k (Huang et al. 2018, budgeted batch).

    One q, by bisection the largest that the budget allows; at each exit the most confident of those still inside
    leave, and samples tied with the last of them leave too.
    """
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


# ---------------------------------------------------------------- optimized


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
