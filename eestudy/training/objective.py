"""What a training step minimizes.

K exits of the phase's loss, B batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eestudy.models import MultiExit
from eestudy.training.batches import Batches, Inputs
from eestudy.training.execution import Execution
from eestudy.training.losses import Fixed, soft_losses, teachers_of, weighting_of
from eestudy.training.phases import Phase

if TYPE_CHECKING:  # of the sequential strategies alone
    from eestudy.training.earlier_exits import Answers, Penalty


class Objective:
    """The loss of a phase: the weighted sum of a value an exit, which is its loss by the labels or made of it.

    distillation: the value is (1 - w) of the loss and w of `soft_losses` against the deeper exits, at those that have
    one. A method with a loss of its own derives from this class; see `loop.Hooks`.
    """

    def __init__(
        self, model: MultiExit, phase: Phase, batches: Batches | None, seeds: tuple[object, ...], execution: Execution
    ) -> None:
        """model: with the weights it has at the start of the phase. batches: the phase's, for `Penalty` alone."""
        self.phase, self.seeds = phase, seeds
        self.weighting = weighting_of(model, phase).to(execution.device)
        self.answers: Answers | None = None
        self.penalty: Penalty | None = None
        if phase.keeps == "lwf":
            from eestudy.training.earlier_exits import Answers

            self.answers = Answers(model, phase, execution)
            # They are weighed already.
            self.weighting = Fixed(torch.ones(len(phase.exit_numbers(model.num_exits)), device=execution.device))
        elif phase.keeps == "ewc":
            from eestudy.training.earlier_exits import Penalty

            assert batches is not None
            self.penalty = Penalty(model, phase, batches.split, seeds, execution)

    def state(self) -> dict[str, Tensor]:
        """What a resumed phase needs of it; `restore` takes it back."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        assert not state

    def values(self, losses: Tensor, logits: Tensor, targets: Tensor, x: Inputs) -> Tensor:
        """losses (K,) by the labels, logits (K, B, C), after them a frozen teacher's -> what is minimized, (K,)."""
        settings = self.phase.settings
        if settings.distillation != "none":
            temperature, share = settings.distillation_temperature, settings.distillation_weight
            teachers = teachers_of(logits, settings.distillation, temperature)
            taught = len(teachers)  # all exits with a frozen teacher, all but the last without
            soft = soft_losses(logits[:taught], teachers, temperature)
            return torch.cat([(1 - share) * losses[:taught] + share * soft, losses[taught:]])
        if self.answers is not None:
            assert isinstance(x, Tensor)
            return self.answers.values(losses, logits, x)
        return losses

    def __call__(self, losses: Tensor, logits: Tensor, targets: Tensor, x: Inputs, done: float) -> Tensor:
        """The loss of a step, a scalar. Arguments as in `values`; done: share of the phase's steps behind."""
        loss = self.values(losses, logits, targets, x) @ self.weighting(done)
        return loss if self.penalty is None else loss + self.penalty()
