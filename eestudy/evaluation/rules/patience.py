"""How long predictions have been the same (Zhou et al. 2020, PABEE).

Regression, that is logits with one column (the prediction), has no classes: a sample exits when each of its last k
changes, from exit to exit, was smaller than a difference d, in the units of the labels. The score is minus the largest
of the last k changes, so the threshold is -d; before k changes were seen, it is `TOO_EARLY`, which no finite d reaches.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .rule import History, Rule, predictions

TOO_EARLY = torch.finfo(torch.float32).min
"""Score of a regression's exits 1..k: above -inf alone, the threshold at which everybody exits."""


class Patience(Rule):
    """Length of the run of equal predictions that ends at exit k; 1 at the first exit."""

    low, high = 0.0, math.inf

    def score(self, history: History) -> Tensor:
        predicted = predictions(history if isinstance(history, Tensor) else torch.stack(list(history)))
        return (predicted == predicted[-1]).flip(0).float().cumprod(0).sum(0)

    def of_stored(self, logits: Tensor, predicted: Tensor, before: Tensor | None, spare: Tensor) -> Tensor:
        if before is None:
            return torch.ones(predicted.shape[1])
        return 1 + before * (predicted[-1] == predicted[-2])

    def sweep(self, num_exits: int, num_classes: int) -> np.ndarray:
        return np.arange(num_exits, dtype=np.float64)

    def sequence(self, num_exits: int, num_classes: int) -> np.ndarray:
        """K - 1 equal predictions in a row, then less."""
        return np.arange(num_exits - 2, 0, -1, dtype=np.float64)


class Steadiness(Rule):
    """Regression: minus the largest of the last k changes of a prediction."""

    low, high = -math.inf, 0.0

    def __init__(self, k: int) -> None:
        self.k = k

    def score(self, history: History) -> Tensor:
        last = [logits[:, 0].float() for logits in history[-(self.k + 1) :]]
        if len(last) <= self.k:
            return torch.full_like(last[0], TOO_EARLY)
        largest = torch.zeros_like(last[0])
        for before, after in pairwise(last):
            largest = torch.maximum(largest, (after - before).abs())
        return -largest


RULE = Patience()
