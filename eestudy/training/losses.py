"""The loss of a multi-exit network: a weighted mean over exits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# name -> weights (K,) before they are scaled to sum to 1
WEIGHTINGS: dict[str, Callable[[int], Tensor]] = {
    "equal": torch.ones,  # Kubaty et al. 2025: the plain mean
    "depth-linear": lambda exits: torch.arange(1.0, exits + 1),  # PABEE, Zhou et al. 2020
}


def exit_losses(logits: list[Tensor], y: Tensor) -> Tensor:
    """Cross-entropy of each exit, (K,), in float32. logits: K tensors (B, C); y: (B,)."""
    return torch.stack([F.cross_entropy(exit_logits.float(), y) for exit_logits in logits])


def exit_weights(name: str, exits: int) -> Tensor:
    """Weights (K,) that sum to 1."""
    weights = WEIGHTINGS[name](exits)
    return weights / weights.sum()
