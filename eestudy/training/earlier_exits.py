"""What keeps earlier exits as they were while a sequential strategy trains the next one: LwF and EWC.

K exits of the phase's loss, B batch, C classes.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from eestudy.config import named_seed
from eestudy.data import Split
from eestudy.models import MultiExit
from eestudy.training.batches import chosen_batches
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_losses, soft_losses, softened
from eestudy.training.phase_network import exit_logits, set_trainable
from eestudy.training.phases import Phase

FISHER_SAMPLES = 256  # whose gradients tell how much a weight matters


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
