"""Passes over clean data: how good a phase's exits are on validation, and BatchNorm statistics measured again.

Shapes: K exits in the phase's loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from eestudy.data import DataSet
from eestudy.models import MultiExit
from eestudy.training.batches import EVALUATION_BATCH, Batches, Inputs, cached_features, clean_batches, placed
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_hits, exit_losses
from eestudy.training.phase_network import PhaseNetwork, exit_logits
from eestudy.training.phases import Phase
from eestudy.training.trainable import batch_norms, phase_exits, trained_modules


class Validation:
    """The validation split in memory, or its features where the training reads the frozen backbone's features."""

    def __init__(self, model: MultiExit, phase: Phase, data: DataSet, execution: Execution, cached: bool) -> None:
        self.network = PhaseNetwork(model, phase)
        self.split = placed(data.validation, execution.device)
        self.execution = execution
        self.cache = cached_features(model, phase, self.split, execution) if cached else None

    @torch.no_grad()
    def measured(self) -> Tensor:
        """Loss and accuracy (R2 in regression) of the phase's exits in eval mode, (2, K). Leaves the network in it."""
        phase, execution = self.network.phase, self.execution
        self.network.eval()
        exits = len(phase_exits(self.network.model, phase))
        sums = torch.zeros(2, exits, device=execution.device)
        for number, (x, labels) in enumerate(self._batches()):
            if number % execution.processes != execution.rank:
                continue
            with execution.precision(phase.settings.precision):
                logits = self.network(x)[:exits]  # behind them a frozen teacher's
            sums[0] += exit_losses(logits, labels) * len(labels)
            if not labels.is_floating_point():
                sums[1] += exit_hits(logits, labels) * len(labels)
        means = execution.summed(sums) / len(self.split)
        means[1] = scores(means, self.split.y)
        return means

    def _batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        if self.cache is None:
            yield from clean_batches(self.split, self.execution, self.network.model.memory_format)
            return
        for places in torch.arange(len(self.split), device=self.split.y.device).split(EVALUATION_BATCH):
            yield [features[places] for features in self.cache], self.split.y[places]


def scores(means: Tensor, y: Tensor) -> Tensor:
    """The exits' accuracies as they were counted; in regression R2, 1 - mean squared error / variance of the labels."""
    return 1 - means[0] / y.var(correction=0) if y.is_floating_point() else means[1]


@torch.no_grad()
def reestimate(model: MultiExit, phase: Phase, batches: Batches, execution: Execution) -> None:
    """Running means and variances of what the phase trained: the mean over one pass of the training data.

    While training they lag behind the weights. Whole batches without augmentation, as in use; all else is in eval mode
    (Wu and Johnson 2021, PreciseBN).
    """
    model.eval()
    norms = [norm for part in trained_modules(model, phase).values() for norm in batch_norms(part)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    with execution.precision(phase.settings.precision):
        for x in batches.clean("batchnorm"):
            exit_logits(model, phase_exits(model, phase), x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
