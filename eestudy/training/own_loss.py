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
    weights, blends = config.class_weights, {"mixup", "cutmix"} & set(config.augmentation.split("+"))
    of_classes = {"class_weights": bool(weights), "label_smoothing": config.label_smoothing > 0}
    if facts.task == MULTI_LABEL:
        of_classes["augmentation"], of_classes["distillation"] = bool(blends), config.distillation != "none"
        of_classes["strategy"] = config.strategy == "sequential-lwf"
    for name in (name for name, given in of_classes.items() if given):
        if facts.task != "classification":
            raise EestudyError(f"{name}: {getattr(config, name)} is for classes; {facts.name} is {facts.task}")
        if config.criterion:
            raise EestudyError(f"{name}: has no effect with a criterion of your own")
    if isinstance(weights, tuple) and weights and len(weights) != facts.num_classes:
        raise EestudyError(f"class_weights: {len(weights)} are given, but {facts.name} has {facts.num_classes} classes")
    if config.criterion:
        _check_criterion(criterion_of(config.criterion, torch.device("cpu")), facts, bool(blends))


def _check_criterion(criterion: Criterion, facts: Outline, blends: bool) -> None:
    shape = () if facts.task == "regression" else (facts.num_classes,)
    four = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(4) % facts.num_classes
    # As a batch of the run has them: real values, 0 or 1 a label, the shares of blended classes, or classes.
    targets = four + 1 if not shape else (four > 0).float() if facts.task == MULTI_LABEL else classes
    targets = nn.functional.one_hot(classes, facts.num_classes).float() if blends and shape else targets
    means: list[float] = []
    for count in (4, 1, 8):  # the four twice: the mean stays, a sum does not
        logits, labels = (torch.cat([each, each])[:count].clone() for each in (four, targets))
        given = f"logits {tuple(logits.shape)} and targets {tuple(labels.shape)} of {labels.dtype}"
        try:
            with torch.random.fork_rng():
                loss: Any = criterion(logits.requires_grad_(), labels)
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise EestudyError(f"criterion: fails for {given}: {reason}") from error
        if not isinstance(loss, Tensor) or loss.shape not in ((), (count,)) or not loss.isfinite().all():
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise EestudyError(
                f"criterion: gives {found} for {given}; finite losses {(count,)} or their mean are needed"
            )
        if not loss.requires_grad or (count > 1 and not torch.autograd.grad(loss.sum(), logits)[0].any()):
            raise EestudyError("criterion: its loss has no gradient with respect to the logits")
        means.append(float(loss.detach().mean()))
    if not loss.ndim and means[0] and abs(means[2] - 2 * means[0]) < 1e-4 * abs(means[0]):
        raise EestudyError("criterion: gives the sum over the batch; losses (B,) or their mean are needed")


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
