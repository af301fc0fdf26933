"""The losses of a multi-exit network's exits, and their weights, which may change during a phase.

Shapes: K exits, B batch, C classes. Targets are labels (B,), int64; or the classes' shares (B, C), as mixup gives them;
or, in regression with C = 1, real values (B,); or of several labels a sample those it has, bool (B, C).
A weighting is made of (network, phase) and is a module: share of the phase behind -> weights (K,) that sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.models import MultiExit
from eestudy.models.backbone import stage_flops
from eestudy.registry import WEIGHTINGS
from eestudy.training.own_loss import criterion_of
from eestudy.training.phases import Phase, Settings

# name -> weights (K,) before they are scaled to sum to 1
FIXED: dict[str, Callable[[int], Tensor]] = {
    "equal": torch.ones,  # Kubaty et al. 2025: the plain mean
    "depth-linear": lambda exits: torch.arange(1.0, exits + 1),  # PABEE, Zhou et al. 2020
}
PLAIN = Settings()


def exit_losses(logits: Tensor, targets: Tensor, settings: Settings = PLAIN) -> Tensor:
    """Cross-entropy of each exit, or mean squared error for real targets: (K,), float32. logits: (K, B, C).

    Of several labels a sample the mean over labels of the binary cross-entropy.
    settings: of the phase, whose class weights are numbers (`with_class_weights`); or whose criterion is the loss.
    """
    if settings.criterion:
        return torch.stack([each.mean() for each in _by_criterion(logits, targets, settings)])
    return sample_losses(logits, targets, settings).mean(1)


def sample_losses(logits: Tensor, targets: Tensor, settings: Settings = PLAIN) -> Tensor:
    """Those of every sample: (K, B), float32. logits: (K, B, C)."""
    if settings.criterion:
        losses = torch.stack(_by_criterion(logits, targets, settings))
        if losses.ndim < 2:
            raise EestudyError(
                "criterion: gives the mean of a batch, and the method needs the loss of each sample (B,)"
            )
        return losses
    exits, _, classes = logits.shape
    logits = logits.float()
    if is_regression(targets):
        return (logits[:, :, 0] - targets).square()
    if targets.dtype == torch.bool:
        each = F.binary_cross_entropy_with_logits(logits, targets.float().expand_as(logits), reduction="none")
        return each.mean(2)
    repeated = targets.repeat(exits, *[1] * (targets.ndim - 1))
    weights = torch.tensor(settings.class_weights, device=logits.device) if settings.class_weights else None
    return F.cross_entropy(
        logits.reshape(-1, classes), repeated, weights, reduction="none", label_smoothing=settings.label_smoothing
    ).view(exits, -1)


def _by_criterion(logits: Tensor, targets: Tensor, settings: Settings) -> list[Tensor]:
    """What the user's own loss gives for each exit: losses (B,) or their mean.

    Of a regression it gets predictions (B,), as (B, 1) and targets (B,) would be broadcast to (B, B).
    """
    criterion, logits = criterion_of(settings.criterion, logits.device), logits.float()
    targets = targets.float() if targets.dtype == torch.bool else targets
    return [criterion(each, targets) for each in (logits[:, :, 0] if is_regression(targets) else logits)]


def exit_hits(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of samples whose likeliest class is the (mostly) right one: (K,). Not for regression. logits: (K, B, C).

    Of several labels: whose labels, those with a logit above 0, are all right.
    """
    if targets.dtype == torch.bool:
        return ((logits > 0) == targets).all(2).float().mean(1)
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


RAMP_START = 0.01


class Fixed(nn.Module):
    """The same weights at every step."""

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, done: float) -> Tensor:
        return self.weights


class Ramp(nn.Module):
    """Each internal exit's weight grows from 0.01 to its cost (Kaya et al. 2019, SDN): min(c, 0.01 + c t).

    t is the share of the phase behind (the authors change it once an epoch), c the exit's share of the plain backbone's
    FLOPs; the last exit has weight 1. Scaled to sum 1, which the authors' are not: every weighting has one scale here.
    """

    costs: Tensor

    def __init__(self, model: MultiExit, phase: Phase) -> None:
        super().__init__()
        numbers, costs = phase.exit_numbers(model.num_exits), exit_shares(model)
        self.last = numbers[-1] == model.num_exits
        self.register_buffer("costs", torch.tensor([costs[number - 1] for number in numbers]), persistent=False)

    def forward(self, done: float) -> Tensor:
        weights = torch.minimum(self.costs, RAMP_START + self.costs * done)
        if self.last:
            weights[-1] = 1.0
        return weights / weights.sum()


def weighting_of(model: MultiExit, phase: Phase) -> nn.Module:
    """The weighting of a phase, for the exits its loss is over."""
    made: nn.Module = WEIGHTINGS[phase.settings.weighting](model, phase)
    return made


def fixed(model: MultiExit, phase: Phase) -> Fixed:
    """equal, depth-linear or custom."""
    given = phase.settings.weights
    if given:
        return Fixed(torch.tensor(given) / sum(given))
    return Fixed(exit_weights(phase.settings.weighting, len(phase.exit_numbers(model.num_exits))))


def exit_shares(model: MultiExit) -> list[float]:
    """Share of the plain backbone's FLOPs that each exit costs, without heads; 1 for the last."""
    *stages, classifier = stage_flops(model.backbone)
    whole = sum(stages) + classifier
    return [*(sum(stages[:stage]) / whole for stage in model.exit_stages), 1.0]
