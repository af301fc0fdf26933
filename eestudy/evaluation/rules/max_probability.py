"""Largest softmax probability (Kaya et al. 2019, SDN)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .rule import OfOneExit, logistic_steps, probabilities


class MaxProbability(OfOneExit):
    def of_exit(self, logits: Tensor, predicted: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
        p = probabilities(logits, spare)
        # The largest logit has the largest probability, rounding never changes an order.
        return p.amax(dim=-1) if predicted is None else p.gather(-1, predicted.unsqueeze(-1)).squeeze(-1)

    def sequence(self, num_exits: int, num_classes: int) -> np.ndarray:
        return logistic_steps(1 / num_classes)


RULE = MaxProbability()
