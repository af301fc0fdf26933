"""What a step reads: augmented inputs and their targets, or the cached features of a frozen backbone; clean passes too.

Every random choice is seeded by names (run seed, place of the phase, purpose, epoch or step), never by the order of
calls: a resumed phase, and each of several processes, makes the same batches. K exits in the phase's loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eestudy.config import named_seed
from eestudy.data import DataSet, Split
from eestudy.data.augmentation import augment, check
from eestudy.models import MultiExit
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_hits, exit_losses
from eestudy.training.phase_network import (
    PhaseNetwork,
    batch_norms,
    exit_logits,
    frozen_features,
    gathering,
    heads_alone,
    phase_exits,
    trained_modules,
)
from eestudy.training.phases import Phase

EVALUATION_BATCH = 512
# Above this size the features of a frozen backbone are computed at every step. A fixed number: which way is taken may
# change the last bits of a result, so it must not depend on the machine.
CACHE_BYTES = 4 * 2**30

Inputs = Tensor | list[Tensor]


@dataclass(frozen=True)
class Batches:
    """The training batches of a phase. size: samples in each; seeds: the names every seed begins with."""

    split: Split
    num_classes: int
    phase: Phase
    seeds: tuple[object, ...]
    execution: Execution
    memory_format: torch.memory_format = torch.contiguous_format
    cache: list[Tensor] | None = None

    @property
    def size(self) -> int:
        return min(self.phase.settings.batch_size, len(self.split))

    @property
    def steps_an_epoch(self) -> int:
        return len(self.split) // self.size

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Inputs, Tensor]]:
        """The batches of epoch `number` (from 0) from its step `first` on; of each this process's part."""
        generator = torch.Generator().manual_seed(named_seed(*self.seeds, "order", number))
        order = torch.randperm(len(self.split), generator=generator)[: self.steps_an_epoch * self.size]
        chosen = order.split(self.size)[first:]
        part = self.execution.part(self.size)
        if self.cache is not None:
            for places in (numbers[part].to(self.execution.device) for numbers in chosen):
                yield [features[places] for features in self.cache], self.split.y[places]
            return
        raws = self.split.batches(chosen, self.execution.workers)
        for step, (numbers, raw) in enumerate(zip(chosen, raws, strict=True), number * self.steps_an_epoch + first):
            generator.manual_seed(named_seed(*self.seeds, "augmentation", step))
            raw = raw.to(self.execution.device)
            y = self.split.y[numbers.to(self.execution.device)]
            x, targets = augment(
                raw, y, self.split.normalization, self.num_classes, self.phase.settings.augmentation,
                self.phase.settings.augmentation_args, generator,
            )  # fmt: skip
            yield in_layout(x[part], self.memory_format), targets[part]

    def clean(self, *names: object) -> Iterator[Tensor]:
        """Whole batches of the training data once, in an order of their own, as a network takes them, not augmented."""
        generator = torch.Generator().manual_seed(named_seed(*self.seeds, *names))
        order = torch.randperm(len(self.split), generator=generator)[: self.steps_an_epoch * self.size]
        for x, _ in chosen_batches(self.split, order.split(self.size), self.execution, self.memory_format):
            yield x


def training_batches(
    model: MultiExit, phase: Phase, data: DataSet, seeds: tuple[object, ...], execution: Execution
) -> Batches:
    """The batches of `phase`; where heads alone train on clean data, the backbone's features are computed once."""
    check(phase.settings.augmentation, data.input_shape, data.train.dtype)
    split = placed(data.train, execution.device)
    made = Batches(split, data.num_classes, phase, seeds, execution, model.memory_format)
    if heads_alone(phase) and phase.settings.augmentation == "none" and not split.streamed:
        made = replace(made, cache=cached_features(model, phase, split, execution))
    return made


def cached_features(model: MultiExit, phase: Phase, split: Split, execution: Execution) -> list[Tensor] | None:
    """`frozen_features` of a whole split, (N, ...) each; None if they are more than CACHE_BYTES."""
    made: list[Tensor] | None = None
    with torch.no_grad(), execution.precision(phase.settings.precision):
        start = 0
        for x, y in clean_batches(split, execution, model.memory_format):
            features = frozen_features(model, phase, x)
            if made is None:
                if sum(each.nbytes for each in features) / len(y) * len(split) > CACHE_BYTES:
                    return None
                made = [each.new_empty(len(split), *each.shape[1:]) for each in features]
            for whole, each in zip(made, features, strict=True):
                whole[start : start + len(y)] = each
            start += len(y)
    return made


def clean_batches(
    split: Split, execution: Execution, memory_format: torch.memory_format
) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples of a split in order, as a network takes them, with their labels, on the device."""
    return chosen_batches(split, torch.arange(len(split)).split(EVALUATION_BATCH), execution, memory_format)


def chosen_batches(
    split: Split, chosen: Sequence[Tensor], execution: Execution, memory_format: torch.memory_format
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of the samples with these numbers, not augmented."""
    for numbers, raw in zip(chosen, split.batches(chosen, execution.workers), strict=True):
        raw = raw.to(execution.device)
        x = split.normalization(raw) if split.normalization else raw
        yield in_layout(x, memory_format), split.y[numbers.to(split.y.device)].to(execution.device)


def placed(split: Split, device: torch.device) -> Split:
    """The split with its samples on the device; those that are read from files stay there."""
    if split.streamed:
        return replace(split, y=split.y.to(device))
    return replace(split, x=split.x.to(device), y=split.y.to(device))


def in_layout(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Images in the memory format of the network (`MultiExit.memory_format`), anything else as it is."""
    return x.contiguous(memory_format=memory_format) if x.ndim == 4 else x


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
            sums[0] += exit_losses(logits, labels, phase.settings) * len(labels)
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
    for norm in norms:
        norm.reset_running_stats()
    with gathering(norms), execution.precision(phase.settings.precision):
        for x in batches.clean("batchnorm"):
            exit_logits(model, phase_exits(model, phase), x)
