"""What an exit rule is made of.

Inference (`ExitRule.__call__`) and simulation on stored logits call the same row-wise functions, so both see the same
float32 numbers, whatever the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

History = Sequence[Tensor] | Tensor
STEPS = 200  # thresholds that risk control tests


class Rule:
    """A score of each exit: a sample exits where it is strictly greater than a threshold.

    low, high: where finite thresholds on it make sense.
    """

    low, high = 0.0, 1.0

    def score(self, history: History) -> Tensor:
        """Logits (b, C) of exits 1..k of the samples still inside -> the score at exit k (b,)."""
        raise NotImplementedError

    def of_stored(self, logits: Tensor, predicted: Tensor, before: Tensor | None, spare: Tensor) -> Tensor:
        """The same, where more is known: logits (k, b, C), predicted classes (k, b), the score at exit k - 1 (b,).

        spare: (2, b or more, C), memory to work in, as fresh memory would cost as much as the arithmetic.
        """
        return self.score(logits)

    def sweep(self, num_exits: int, num_classes: int) -> np.ndarray:
        """The published protocol's thresholds (T,), from "everybody exits early" to "everybody stays"."""
        return np.linspace(0.0, 1.0, 100)

    def sequence(self, num_exits: int, num_classes: int) -> np.ndarray:
        """The finite thresholds that risk control tests, from careful to cheap; no data are looked at."""
        raise NotImplementedError


class OfOneExit(Rule):
    """A rule that looks at the exit alone, not at those before it."""

    def of_exit(self, logits: Tensor, predicted: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
        """(b, C) -> (b,). `predicted` and `spare` save time, where they are there, and change no number."""
        raise NotImplementedError

    def score(self, history: History) -> Tensor:
        return self.of_exit(history[-1])

    def of_stored(self, logits: Tensor, predicted: Tensor, before: Tensor | None, spare: Tensor) -> Tensor:
        return self.of_exit(logits[-1], predicted[-1], spare)


def predictions(logits: Tensor) -> Tensor:
    """Predicted classes (..., C) -> (...), the first one where several logits are largest in float32."""
    logits = logits.float()  # as they are stored: two that differ in float64 alone are equal
    if logits.device.type == "cpu":
        # numpy's argmax is vectorized and several times faster than torch's; both take the first of equals.
        return torch.from_numpy(np.asarray(np.argmax(logits.detach().numpy(), axis=-1)))
    return logits.argmax(dim=-1)


def probabilities(logits: Tensor, spare: Tensor | None) -> Tensor:
    """Softmax over classes in float32, row by row: (b, C) -> (b, C)."""
    return torch.softmax(logits.float(), dim=-1, out=piece(spare, 0, logits))


def piece(spare: Tensor | None, number: int, logits: Tensor) -> Tensor | None:
    """Of the memory to work in, one array as large as logits (b, C)."""
    return None if spare is None else spare[number, : len(logits)]


def logistic_steps(lowest: float) -> np.ndarray:
    """Probabilities from 0.99999 down to `lowest`, evenly on the logistic scale: the careful ones lie close to 1."""
    return 1 / (1 + np.exp(-np.linspace(11.5, math.log(lowest / (1 - lowest)), STEPS)))
