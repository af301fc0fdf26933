"""Thresholds that spend a budget on validation data: ways to share it out over the exits (`optimized` is another).

Scores (K, N) float32, costs (K,) FLOPs of leaving at each exit; a budget is a mean cost. A fitter reads the data once
and gives back budget -> thresholds (K,), with which the mean cost on these data never exceeds the budget. Budgets lie
from the first exit's cost to below the last one's, and means are floats: at the first exit's cost everybody leaves
there, even where the mean of N equal costs is rounded above it. inf: nobody leaves (always at the last exit); -inf:
everybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .curves import step_curve

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
