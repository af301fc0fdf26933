"""Minus the softmax entropy, in nats (Teerapittayanon et al. 2016, BranchyNet)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .rule import STEPS, OfOneExit, piece


class Entropy(OfOneExit):
    """sum p log p = sum(e d) / S - log S, with d = logits - largest, e = exp(d), S = sum(e).

    Neither term is above 0, so nothing cancels and the score never is; and there is one exponential for each logit.
    """

    low, high = -math.inf, 0.0

    def of_exit(self, logits: Tensor, predicted: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
        logits = logits.float()
        largest = logits.amax(dim=-1, keepdim=True) if predicted is None else logits.gather(-1, predicted.unsqueeze(-1))
        d = torch.sub(logits, largest, out=piece(spare, 0, logits))
        e = torch.exp(d, out=piece(spare, 1, logits))
        total = e.sum(dim=-1)
        return _row_products(d, e) / total - total.log()

    def sweep(self, num_exits: int, num_classes: int) -> np.ndarray:
        """100 evenly spaced values of h from log C down to 0, as scores -h (ours; not in the paper)."""
        return np.linspace(-math.log(num_classes), 0.0, 100)

    def sequence(self, num_exits: int, num_classes: int) -> np.ndarray:
        """Evenly in log h, from 1e-5 to log C nats."""
        return -np.geomspace(1e-5, math.log(num_classes), STEPS)


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """sum(left * right) of each row: two (b, C) -> (b,). The sum of a row is the same in any batch."""
    if left.device.type == "cpu":  # one pass where torch takes two
        return torch.from_numpy(np.vecdot(left.detach().numpy(), right.detach().numpy()))
    return (left * right).sum(dim=-1)


RULE = Entropy()
