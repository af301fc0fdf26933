"""What a training step minimizes; in the sequential strategies also what keeps earlier exits as they were.

K exits of the phase's loss, B batch, C classes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from eestudy.config import named_seed
from eestudy.data import Split
from eestudy.models import MultiExit
from eestudy.training.batches import Batches, Inputs, chosen_batches
from eestudy.training.execution import Execution
from eestudy.training.losses import Fixed, exit_losses, soft_losses, softened, teachers_of, weighting_of
from eestudy.training.phase_network import exit_logits, set_trainable
from eestudy.training.phases import Phase

FISHER_SAMPLES = 256  # whose gradients tell how much a weight matters


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
        self.answers = Answers(model, phase, execution) if phase.keeps == "lwf" else None
        if self.answers is not None:  # they are weighed already
            self.weighting = Fixed(torch.ones(len(phase.exit_numbers(model.num_exits)), device=execution.device))
        self.penalty: Penalty | None = None
        if phase.keeps == "ewc":
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


class Answers:
    """Learning without Forgetting (Li and Hoiem 2016): earlier exits learn what the network of before says.

    Of K exits the first K-1 are earlier ones; their loss is `soft_losses` against their own logits at the start of the
    phase, on the same batch, times `stability`; the labels' is that of the new one. The loss is the sum.
    """

    def __init__(self, model: MultiExit, phase: Phase, execution: Execution) -> None:
        self.phase, self.execution = phase, execution
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.earlier = phase.exit_numbers(model.num_exits)[:-1]

    def values(self, losses: Tensor, logits: Tensor, x: Tensor) -> Tensor:
        """Losses by the labels and logits of the phase's exits -> what is minimized, (K,)."""
        with torch.no_grad(), self.execution.precision(self.phase.settings.precision):
            before = torch.stack(exit_logits(self.model, self.earlier, x))
        temperature = self.phase.settings.distillation_temperature
        kept = soft_losses(logits[:-1], softened(before, temperature), temperature)
        return torch.cat([self.phase.settings.stability * kept, losses[-1:]])


class Penalty:
    """Elastic weight consolidation (Kirkpatrick et al. 2017): stability / 2 * sum of F (theta - theta_0)^2.

    theta_0 are the weights at the start of the phase, F the diagonal of the Fisher information of the earlier exits,
    summed over them: mean over samples of the squared gradient of the log likelihood of their labels.
    """

    def __init__(
        self, model: MultiExit, phase: Phase, split: Split, seeds: tuple[object, ...], execution: Execution
    ) -> None:
        set_trainable(model, phase)
        self.stability = phase.settings.stability
        self.weights = [weight for weight in model.backbone.stages.parameters() if weight.requires_grad]
        self.start = [weight.detach().clone() for weight in self.weights]
        generator = torch.Generator().manual_seed(named_seed(*seeds, "fisher"))
        chosen = torch.randperm(len(split), generator=generator)[:FISHER_SAMPLES]
        earlier = list(range(1, phase.exit_numbers(model.num_exits)[0]))
        model.eval()
        self.fisher = fisher(model, self.weights, earlier, split, chosen, execution)
        set_trainable(model, phase)

    def __call__(self) -> Tensor:
        terms = [
            (importance * (weight - start).square()).sum()
            for importance, weight, start in zip(self.fisher, self.weights, self.start, strict=True)
        ]
        return self.stability / 2 * torch.stack(terms).sum()


def fisher(
    model: MultiExit, weights: list[torch.nn.Parameter], exits: list[int], split: Split, chosen: Tensor,
    execution: Execution,
) -> list[Tensor]:  # fmt: skip
    """For each of `weights` the mean over the `chosen` samples of its squared gradient, summed over `exits`."""
    sums = [torch.zeros_like(weight) for weight in weights]
    for x, y in chosen_batches(split, chosen.split(1), execution, model.memory_format):
        logits = exit_logits(model, exits, x)
        for place, each in enumerate(logits):
            loss = exit_losses(each[None], y).squeeze(0)
            more = place + 1 < len(logits)
            for total, gradient in zip(sums, torch.autograd.grad(loss, weights, retain_graph=more, allow_unused=True)):
                if gradient is not None:
                    total += gradient.square() / len(chosen)
    return sums
