"""A training step, operation by operation or with a compiled network; its optimizer, and its learning rate.

The learning rate is a pure function of the step, so that a resumed phase needs no state of a scheduler.
Shapes: B batch, K exits in the phase's loss, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from eestudy.training.batches import Inputs
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_hits, exit_losses, is_regression
from eestudy.training.objective import Objective
from eestudy.training.phases import Phase
from eestudy.training.resume import State


class Step:
    """What trains a phase batch by batch; made when `state` is loaded.

    network: a PhaseNetwork, or what `Execution.prepared` made of it. bad: becomes the number of the first step whose
    loss or gradient is not finite; the update is made all the same, and undone by going back to the saved state.
    """

    def __init__(
        self, network: nn.Module, state: State, objective: Objective, bad: Tensor, execution: Execution
    ) -> None:
        self.network, self.state, self.objective = network, state, objective
        self.bad, self.execution = bad, execution

    def step(self, x: Inputs, targets: Tensor, done: float) -> None:
        """Forward, backward, update; adds losses and hits to `state.sums`. done: share of the phase's steps behind."""
        raise NotImplementedError

    def end(self) -> None:
        """After the last step: the network is as a new one with these weights."""


class EagerStep(Step):
    """The step for every phase."""

    def step(self, x: Inputs, targets: Tensor, done: float) -> None:
        state, execution, objective = self.state, self.execution, self.objective
        phase, optimizer = state.phase, state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(phase, done)
        turn = phase.turns[state.progress.step % len(phase.turns)] if phase.turns else None
        with execution.precision(phase.settings.precision):
            logits = self.network(x) if turn is None else self.network(x, turn)
        known = logits[:-1] if phase.frozen_teacher else logits
        losses = exit_losses(known, targets, phase.settings)
        loss = losses.sum() if turn == "last" else objective(losses, logits, targets, x, done)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
        # Where looking costs nothing, a gradient that is short enough is left alone: scaled by 1 it would be the same.
        if phase.settings.clip and (execution.device.type != "cpu" or not float(norm) < phase.settings.clip):
            torch.nn.utils.clip_grads_with_norm_(trained, phase.settings.clip, norm)
        # Of several processes each has its own loss, but all have the same gradient.
        finite = torch.isfinite(norm if execution.processes > 1 else norm + loss.detach())
        self.bad.copy_(torch.where(finite, self.bad, torch.clamp(self.bad, max=state.progress.step)))
        optimizer.step()
        # Of all exits, or of the last where steps take turns.
        state.sums[0, -len(losses) :] += losses.detach()
        if not is_regression(targets):
            state.sums[1, -len(losses) :] += exit_hits(known.detach(), targets)


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
