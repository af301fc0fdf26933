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
FIXED: dict[str, Callable[[int], Tensor]] = {
    "equal": torch.ones,  # Kubaty et al. 2025: the plain mean
    "depth-linear": lambda exits: torch.arange(1.0, exits + 1),  # PABEE, Zhou et al. 2020
}


def exit_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each exit, or mean squared error for real targets: (K,), float32. logits: (K, B, C)."""
    return sample_losses(logits, targets).mean(1)


def sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Those of every sample: (K, B), float32. logits: (K, B, C)."""
    exits, _, classes = logits.shape
    logits = logits.float()
    if is_regression(targets):
        return (logits[:, :, 0] - targets).square()
    repeated = targets.repeat(exits, *[1] * (targets.ndim - 1))
    return F.cross_entropy(logits.reshape(-1, classes), repeated, reduction="none").view(exits, -1)


def exit_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose likeliest class is the (mostly) right one: (K,). Not for regression. logits: (K, B, C)."""
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.argmax(2) == labels).float().mean(1)


def is_regression(targets: Tensor) -> bool:
    """Whether targets are real values rather than classes or their shares."""
    return targets.ndim == 1 and targets.is_floating_point()


def exit_weights(name: str, exits: int) -> Tensor:
    """Weights (K,) that sum to 1."""
    weights = FIXED[name](exits)
    return weights / weights.sum()


def soft_losses(students: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """How far students (K, B, C) are from what their teachers expect: (K,), float32, scaled by temperature^2.

    teachers: (K, B, C) probabilities at that temperature (`softened`). The Kullback-Leibler divergence of the student's
    from the teacher's, mean over samples (Hinton et al. 2015). With one output, as in regression: mean squared
    difference.
    """
    if students.shape[2] == 1:
        return (students.float() - teachers).square().mean((1, 2))
    log_students = F.log_softmax(students.float() / temperature, 2)
    return temperature**2 * F.kl_div(log_students, teachers, reduction="none").sum(2).mean(1)


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Logits (..., C) -> detached probabilities at a temperature, float32; a single output is taken as it is."""
    logits = logits.detach().float()
    return logits if logits.shape[-1] == 1 else F.softmax(logits / temperature, -1)


def teachers_of(logits: Tensor, teacher: str, temperature: float) -> Tensor:
    """What each exit but the last of logits (K, B, C) learns from, (K-1, B, C), detached; see `soft_losses`.

    teacher: "last", the last exit (Li et al. 2019); "later", the mean of all deeper exits; "next", the next one.
    """
    soft = softened(logits, temperature)
    if teacher == "last":
        return soft[-1:].expand(len(soft) - 1, *soft.shape[1:])
    if teacher == "next":
        return soft[1:]
    behind = soft.flip(0).cumsum(0).flip(0)[1:]  # the sum of all deeper ones
    counts = torch.arange(len(soft) - 1, 0, -1, device=soft.device)
    return behind / counts[:, None, None]
