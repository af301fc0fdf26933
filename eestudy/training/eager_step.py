"""A training step: what the loop asks of it, and the one that runs operation by operation or with a compiled network.

Shapes: B batch, K exits in the phase's loss, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eestudy.training.batches import Inputs
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_hits, exit_losses, is_regression
from eestudy.training.objective import Objective, combine
from eestudy.training.optim import learning_rate
from eestudy.training.phase_network import phase_logits
from eestudy.training.resume import State


class Step:
    """Trains a phase batch by batch; made when `state` is loaded.

    network: the phase's, a PhaseNetwork or what `Execution.prepared` made of it. bad: is set to the number of the first
    step whose loss or gradient is not finite; the update is made all the same, and undone by going back to the saved
    state.
    """

    def __init__(
        self, network: nn.Module, state: State, objective: Objective, bad: Tensor, execution: Execution
    ) -> None:
        self.network, self.state, self.objective = network, state, objective
        self.bad, self.execution = bad, execution

    def step(self, x: Inputs, targets: Tensor, done: float) -> None:
        """Forward, backward, update; adds the exits' losses and hits to `state.sums`.

        done: share of the phase's steps behind.
        """
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
        combining = phase.settings.gradient_combination != "sum"
        with execution.precision(phase.settings.precision):
            if combining:  # every exit's gradient by itself, from where its logits are
                outputs = phase_logits(state.model, phase, x, turn)
                logits = torch.stack([each.detach() for each in outputs]).requires_grad_()
            else:
                logits = self.network(x) if turn is None else self.network(x, turn)
        known = logits[:-1] if phase.frozen_teacher else logits
        losses = exit_losses(known, targets)
        loss = losses.sum() if turn == "last" else objective(losses, logits, targets, x, done)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if combining:
            seeds = (*objective.seeds, "combination", state.progress.step)
            combine(state.model, outputs, logits.grad, phase, seeds, execution)
        _average(objective.parameters(), execution)
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


def _average(parameters: list[nn.Parameter], execution: Execution) -> None:
    """Of several processes each has its own gradient of what is not in the network."""
    for parameter in parameters:
        if execution.processes > 1 and parameter.grad is not None:
            parameter.grad = execution.summed(parameter.grad) / execution.processes
