"""What a run says of its loss: class weights, label smoothing, or a criterion of the user's own; checked on numbers.

B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError, RunConfig, content_hash
from eestudy.content import code_of
from eestudy.data import Outline
from eestudy.data.splits import MULTI_LABEL
from eestudy.training.phases import Phase

# Logits (B, C) of an exit (of a regression (B,)), targets -> losses (B,), or their mean. Targets as in `losses`, but
# of several labels a sample float.
Criterion = Callable[[Tensor, Tensor], Tensor]
_GIVEN: dict[str, Criterion] = {}  # what it is known by -> what was given in this process


def with_criterion(config: RunConfig, criterion: object) -> RunConfig:
    """The config whose loss is `criterion`, known by its code and the values it holds: another one is another run."""
    if not callable(criterion) or isinstance(criterion, type):
        raise EestudyError(
            f"criterion: {criterion!r} is not valid; give a function of logits (B, C) and targets that gives losses "
            "(B,) or their mean, such as torch.nn.CrossEntropyLoss()"
        )
    if isinstance(criterion, nn.Module) and any(weight.requires_grad for weight in criterion.parameters()):
        raise EestudyError("criterion: has parameters, which nothing would train; make them buffers")
    known_by = content_hash(code_of(criterion))
    _GIVEN[known_by] = criterion
    return config.replace(criterion=known_by)


def criterion_of(known_by: str, device: torch.device) -> Criterion:
    """What was given in this process; EestudyError if nothing was."""
    if known_by not in _GIVEN:
        raise EestudyError(f"criterion: {known_by} was not given in this process; give it: eestudy.run(criterion=...)")
    found = _GIVEN[known_by]
    return found.to(device) if isinstance(found, nn.Module) else found


def check_loss(config: RunConfig, facts: Outline) -> None:
    """EestudyError for settings of the loss that do not fit the data, and for a criterion that gives no loss."""
    weights, smoothing = config.class_weights, config.label_smoothing
    if facts.task == MULTI_LABEL:
        blends = {"mixup", "cutmix"} & set(config.augmentation.split("+"))
        for name, mixes in (("augmentation", bool(blends)), ("distillation", config.distillation != "none")):
            if mixes:
                raise EestudyError(f"{name}: {getattr(config, name)} is for classes, and {facts.name} is {facts.task}")
        if config.strategy == "sequential-lwf":
            raise EestudyError(
                f"strategy: {config.strategy} compares class probabilities; {facts.name} is {facts.task}"
            )
    for name, given in (("class_weights", weights), ("label_smoothing", smoothing)):
        if given and config.criterion:
            raise EestudyError(f"{name}: has no effect with a criterion of your own")
        if given and facts.task != "classification":
            raise EestudyError(f"{name}: is for classification, and {facts.name} is {facts.task}")
    if isinstance(weights, tuple) and weights and len(weights) != facts.num_classes:
        raise EestudyError(f"class_weights: {len(weights)} are given, but {facts.name} has {facts.num_classes} classes")
    if config.criterion:
        _check_criterion(criterion_of(config.criterion, torch.device("cpu")), config, facts)


def _check_criterion(criterion: Criterion, config: RunConfig, facts: Outline) -> None:
    generator = torch.Generator().manual_seed(0)
    values: dict[int, Tensor] = {}
    shape = () if facts.task == "regression" else (facts.num_classes,)
    four, four_targets = torch.randn(4, *shape, generator=generator), _targets(4, config, facts)
    for count in (4, 1, 8):  # the four twice: the mean stays, a sum does not
        logits, targets = (torch.cat([each, each])[:count].clone() for each in (four, four_targets))
        given = f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} of {targets.dtype}"
        logits.requires_grad_()
        try:
            with torch.random.fork_rng():
                loss: Any = criterion(logits, targets)
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise EestudyError(f"criterion: fails for {given}: {reason}") from error
        if not isinstance(loss, Tensor) or loss.shape not in ((), (count,)):
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise EestudyError(f"criterion: gives {found} for {given}; losses {(count,)} or their mean () are needed")
        if not loss.isfinite().all():
            raise EestudyError(f"criterion: gives NaN or infinity for {given}")
        if not loss.requires_grad or not torch.autograd.grad(loss.sum(), logits)[0].any():
            raise EestudyError("criterion: its loss has no gradient with respect to the logits")
        values[count] = loss.detach()
    if not values[4].ndim and torch.isclose(values[8], 2 * values[4]) and values[4].abs() > 1e-6:
        raise EestudyError("criterion: gives the sum over the batch; its mean or losses (B,) are needed")


def _targets(count: int, config: RunConfig, facts: Outline) -> Tensor:
    """Targets as a batch of the run has them."""
    if facts.task == "regression":
        return torch.linspace(-1, 1, count)
    if facts.task == MULTI_LABEL:
        return (torch.arange(count * facts.num_classes).view(count, -1) % 3 == 0).float()
    labels = torch.arange(count) % facts.num_classes
    shares = {"mixup", "cutmix"} & set(config.augmentation.split("+"))
    return nn.functional.one_hot(labels, facts.num_classes).float() if shares else labels


def with_class_weights(phase: Phase, y: Tensor, classes: int) -> Phase:
    """The phase with its class weights as numbers, scaled so that their mean over the training labels y (N,) is 1."""
    given = phase.settings.class_weights
    if not given:
        return phase
    counts = torch.bincount(y.cpu(), minlength=classes).double()
    weights = 1 / counts.clamp(min=1) if isinstance(given, str) else torch.tensor(given, dtype=torch.float64)
    whole = float((weights * counts).sum())
    if not whole:
        raise EestudyError(f"class_weights: {list(given)} are 0 for every class of the training data")
    return phase.having(class_weights=tuple((weights * len(y) / whole).tolist()))
