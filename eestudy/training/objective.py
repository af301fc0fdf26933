"""What a training step minimizes, and how its gradient is put together from the exits' gradients.

K exits of the phase's loss, B batch, C classes, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eestudy.config import named_seed
from eestudy.models import MultiExit
from eestudy.registry import COMBINATIONS
from eestudy.training.batches import Batches, Inputs
from eestudy.training.continual import Answers, Penalty
from eestudy.training.execution import Execution
from eestudy.training.losses import soft_losses, teachers_of
from eestudy.training.phases import Phase
from eestudy.training.weighting import Fixed, weighting_of


class Objective:
    """The loss of a phase: the weighted sum of a value an exit, which is its loss by the labels or made of it.

    distillation: the value is (1 - w) of the loss and w of `soft_losses` against the deeper exits, at those that have
    one. A method with a loss of its own derives from this class; see `loop.Hooks`.
    """

    def __init__(
        self, model: MultiExit, phase: Phase, batches: Batches | None, seeds: tuple[object, ...], execution: Execution
    ) -> None:
        """model: with the weights it has at the start of the phase. batches: the phase's; None: not needed."""
        self.phase, self.seeds = phase, seeds
        self.weighting: nn.Module = weighting_of(model, phase, execution)
        self.answers = Answers(model, phase, execution) if phase.keeps == "lwf" else None
        self.penalty: Penalty | None = None
        if phase.keeps == "ewc":
            assert batches is not None
            self.penalty = Penalty(model, phase, batches.split, seeds, execution)
        if self.answers is not None:  # they are weighed already
            self.weighting = Fixed(torch.ones(len(phase.exit_numbers(model.num_exits)), device=execution.device))

    def parameters(self) -> list[nn.Parameter]:
        """What the loss itself learns."""
        return list(self.weighting.parameters())

    def state(self) -> dict[str, Tensor]:
        """What a resumed phase needs of it; `restore` takes it back."""
        return dict(self.weighting.state_dict())

    def restore(self, state: dict[str, Tensor]) -> None:
        self.weighting.load_state_dict(state)

    def values(self, losses: Tensor, logits: Tensor, targets: Tensor, x: Inputs) -> Tensor:
        """losses (K,) by the labels, logits (K, B, C), after them a frozen teacher's -> what is minimized, (K,)."""
        phase = self.phase
        if phase.settings.distillation != "none":
            teachers = teachers_of(logits, phase.settings.distillation, phase.settings.distillation_temperature)
            taught = len(teachers)  # all exits with a frozen teacher, all but the last without
            soft = soft_losses(logits[:taught], teachers, phase.settings.distillation_temperature)
            share = phase.settings.distillation_weight
            return torch.cat([(1 - share) * losses[:taught] + share * soft, losses[taught:]])
        if self.answers is not None:
            assert isinstance(x, Tensor)
            return self.answers.values(losses, logits, x)
        return losses

    def __call__(self, losses: Tensor, logits: Tensor, targets: Tensor, x: Inputs, done: float) -> Tensor:
        """The loss of a step, a scalar. Arguments as in `values`; done: share of the phase's steps behind."""
        values = self.values(losses, logits, targets, x)
        weights, more = self.weighting(values, done)
        loss = values @ weights
        if more is not None:
            loss = loss + more
        return loss if self.penalty is None else loss + self.penalty()


def combine(
    model: MultiExit,
    outputs: Sequence[Tensor],
    upstream: Tensor | None,
    phase: Phase,
    seeds: tuple[object, ...],
    execution: Execution,
) -> None:
    """Sets the gradients of what the phase trains from each exit's own.

    The parameters of the backbone's stages, which exits share, get the combination that the phase names; all others the
    sum, as always (a head has one exit's gradient). outputs: logits of each exit, with their graph; upstream: (K, B, C)
    gradient of the loss with respect to them.
    """
    assert upstream is not None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shared = {id(parameter) for parameter in model.backbone.stages.parameters()}
    own = exit_gradients(outputs, upstream, trained)
    if execution.processes > 1:  # each has a part of the batch
        own = [[None if g is None else execution.summed(g) / execution.processes for g in each] for each in own]
    common = [place for place, parameter in enumerate(trained) if id(parameter) in shared]
    gram = gram_matrix([[each[place] for place in common] for each in own])
    generator = torch.Generator().manual_seed(named_seed(*seeds))
    shares = COMBINATIONS[phase.settings.gradient_combination](gram, generator).tolist()
    for place, parameter in enumerate(trained):
        factors = shares if id(parameter) in shared else [1.0] * len(own)
        parts = [factor * each[place] for factor, each in zip(factors, own) if each[place] is not None]
        parameter.grad = torch.stack(parts).sum(0) if parts else None


Gradients = list[Tensor | None]


def exit_gradients(
    outputs: Sequence[Tensor], upstream: Sequence[Tensor] | Tensor, trained: Sequence[nn.Parameter]
) -> list[Gradients]:
    """For each exit, the gradients of `trained` that its part of `upstream` gives; None where it does not reach."""
    return [
        list(torch.autograd.grad(logits, trained, above, retain_graph=place + 1 < len(outputs), allow_unused=True))
        for place, (logits, above) in enumerate(zip(outputs, upstream, strict=True))
    ]


def gram_matrix(gradients: Sequence[Gradients]) -> Tensor:
    """Inner products of the exits' gradients, (K, K) float64, on the CPU."""
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for a, left in enumerate(gradients):
        for b, right in enumerate(gradients[: a + 1]):
            pairs = [(x, y) for x, y in zip(left, right) if x is not None and y is not None]
            if pairs:
                parts = torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in pairs])
                gram[a, b] = gram[b, a] = parts.double().sum().cpu()
    return gram
