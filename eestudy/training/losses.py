"""The loss of a multi-exit network: a weighted mean over exits.

Shapes: K exits, B batch, C classes. Targets are labels (B,), int64; or the classes' shares (B, C), as mixup gives them;
or, in regression with C = 1, real values (B,).
"""

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


def exit_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each exit, or mean squared error for real targets: (K,), float32. logits: (K, B, C)."""
    exits, _, classes = logits.shape
    logits = logits.float()
    if is_regression(targets):
        return (logits[:, :, 0] - targets).square().mean(1)
    repeated = targets.repeat(exits, *[1] * (targets.ndim - 1))
    return F.cross_entropy(logits.reshape(-1, classes), repeated, reduction="none").view(exits, -1).mean(1)


def exit_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose likeliest class is the (mostly) right one: (K,). Not for regression. logits: (K, B, C)."""
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.argmax(2) == labels).float().mean(1)


def is_regression(targets: Tensor) -> bool:
    """Whether targets are real values rather than classes or their shares."""
    return targets.ndim == 1 and targets.is_floating_point()


def exit_weights(name: str, exits: int) -> Tensor:
    """Weights (K,) that sum to 1."""
    weights = WEIGHTINGS[name](exits)
    return weights / weights.sum()
