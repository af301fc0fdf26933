"""Optimizers, and learning rates as a pure function of the step, so that a resumed phase needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from eestudy.training.phases import Phase


def build_optimizer(parameters: Iterable[nn.Parameter], phase: Phase) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum. Weight decay leaves out biases and the weights of norms (one dimension)."""
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": phase.settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if phase.settings.optimizer == "sgd":
        # torch's fused SGD fails on weights that get their first gradient later than others, as where steps take turns.
        return torch.optim.SGD(groups, lr=phase.settings.lr, momentum=phase.settings.momentum, fused=not phase.turns)
    return torch.optim.AdamW(groups, lr=phase.settings.lr, fused=True)


def learning_rate(phase: Phase, done: float) -> float:
    """That of the step with the share `done` of the phase's steps behind it."""
    return phase.settings.lr * lr_factor(phase.settings.schedule, phase.settings.warmup, done)


def lr_factor(schedule: str, warmup: float, done: float) -> float:
    """What the learning rate is multiplied by when the share `done` in [0, 1) of a phase's steps is behind.

    cosine: linear warm-up, then half a cosine to 0 (Loshchilov and Hutter 2017). one-cycle: 30 % up from 1/25 by a
    cosine, then down to 1/250,000 (Smith and Topin 2019). constant: linear warm-up, then 1.
    """
    if schedule == "one-cycle":
        if done < 0.3:
            return _cosine(1 / 25, 1.0, done / 0.3)
        return _cosine(1.0, 1 / 250_000, (done - 0.3) / 0.7)
    if done < warmup:
        return max(done / warmup, 0.01)
    return 1.0 if schedule == "constant" else _cosine(1.0, 0.0, (done - warmup) / (1 - warmup))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
