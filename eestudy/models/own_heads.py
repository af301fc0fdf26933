"""Heads of the user's own: a function that makes them, modules, or the backbone's own classifier; tried on numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.models.backbone import Backbone, device_of, mode
from eestudy.models.heads import HEADS, Head

# A name; one module for all exits; one an exit; or (shape of the features without the batch, classes) -> module.
Heads = str | nn.Module | Sequence[nn.Module] | Callable[[tuple[int, ...], int], nn.Module]
CLASSIFIER = "classifier"  # the backbone's own, at every exit


class OwnHead(Head):
    """A user's module as a head. copies: it changes in place what it reads, which later stages need."""

    copies = False

    def reduce(self, features: Tensor) -> Tensor:
        return features.clone() if self.copies else features

    def read(self, reduced: Tensor, previous: Tensor | None = None) -> Tensor:
        return self[0](reduced)


class ClassifierHead(nn.Module):
    """The backbone's own classifier for what a head reads. moved: there its channels are in front, in a state last."""

    def __init__(self, classifier: nn.Module, moved: bool) -> None:
        super().__init__()
        self.classifier, self.moved = classifier, moved

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(features.movedim(1, -1) if self.moved else features)


def own_heads(given: Any, backbone: Backbone, stages: Sequence[int]) -> list[Head]:
    """A head for each of `stages`, tried on random features (`checked`). EestudyError for what cannot be one."""
    shapes, classes = [backbone.feature_shapes()[stage - 1] for stage in stages], backbone.num_classes
    if isinstance(given, str):
        made: list[Any] = [ClassifierHead(backbone.classifier, moved) for moved in _moved(backbone, stages)]
    elif isinstance(given, list | tuple | nn.ModuleList):
        made = list(given)
        if len(made) != len(stages):
            raise EestudyError(f"head: {len(made)} modules are given for {len(stages)} exits before the last")
    elif isinstance(given, nn.Module):
        made = [given] * len(stages)
    elif callable(given):
        made = [_called(given, shape, classes) for shape in shapes]
    else:
        raise EestudyError(
            f"head: {given!r} is not valid; give a name ({', '.join(('auto', CLASSIFIER, *HEADS))}), a torch module "
            "for all exits, a list of one an exit, or a function of a feature's shape and the number of classes"
        )
    wrapped: dict[int, Head] = {}  # one module for several exits is one head
    heads = []
    for module, shape, stage in zip(made, shapes, stages):
        where = f"head: {type(module).__name__} after stage {stage}"
        if not isinstance(module, nn.Module):
            raise EestudyError(f"{where} is no torch module; one that gives logits (B, {classes}) is needed")
        head = module if isinstance(module, Head) else wrapped.setdefault(id(module), OwnHead(module))
        if checked(where, head, torch.randn(3, *shape, device=device_of(backbone)), classes):
            head = head if isinstance(head, OwnHead) else OwnHead(head)
            head.copies = True
        heads.append(head)
    return heads


def _called(make: Callable[[tuple[int, ...], int], Any], shape: tuple[int, ...], classes: int) -> Any:
    try:
        return make(shape, classes)
    except Exception as error:
        raise EestudyError(
            f"head: {getattr(make, '__name__', type(make).__name__)}({shape}, {classes}) fails: {_reason(error)}; it "
            "gets the shape of a sample's features and the number of classes"
        ) from error


@torch.no_grad()
def checked(where: str, head: Head, x: Tensor, classes: int) -> bool:
    """Whether a head changes features x (3, ...) in place. EestudyError where what it gives are no logits of its own.

    Logits (B, C) are needed for any batch, of each sample whatever the others are, not random, and not probabilities.
    """
    head.to(x.device)
    with mode(head, False), torch.random.fork_rng():
        try:
            given = x.clone()
            whole = head(given)
            parts = [head(x[:1].clone()), head(x[1:].clone())]
            turned = head(x.flip(0)).flip(0) if isinstance(whole, Tensor) and whole.ndim else None
        except Exception as error:
            raise EestudyError(f"{where} does not take features of shape {_shape(x)}: {_reason(error)}") from error
    for logits, count in zip((whole, *parts), (3, 1, 2)):
        if not isinstance(logits, Tensor) or logits.shape != (count, classes):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise EestudyError(f"{where} gives {found} for {count} samples; logits {(count, classes)} are needed")
    if not torch.isfinite(whole).all():
        raise EestudyError(f"{where} gives NaN or infinity for random features")
    near = 1e-3 * float(whole.abs().max())
    for other in (torch.cat(parts), turned):
        if other is None or not torch.allclose(whole, other, rtol=1e-3, atol=near):
            raise EestudyError(f"{where}: its logits of a sample are random or depend on the others in the batch")
    if classes > 1 and whole.min() >= 0 and whole.max() <= 1:
        with torch.enable_grad():
            sigmoid = _ends_in_sigmoid(head(x.clone().requires_grad_()))
        if sigmoid or torch.allclose(whole.sum(1), torch.ones_like(whole[:, 0]), atol=1e-4):
            raise EestudyError(f"{where} gives probabilities; exits need logits: leave its softmax or sigmoid out")
    return not torch.equal(given, x)


def _ends_in_sigmoid(logits: Tensor) -> bool:
    node: Any = logits.grad_fn
    for _ in range(4):  # behind a view or two
        if node is None or node.name().startswith("Sigmoid"):
            return node is not None
        node = node.next_functions[0][0] if node.next_functions else None
    return False


@torch.no_grad()
def _moved(backbone: Backbone, stages: Sequence[int]) -> list[bool]:
    """Whether what heads read after these stages has the channels moved to the front, which a state has last."""
    found, state = [], backbone.dry_input(2)
    with mode(backbone, False):
        for number, stage in enumerate(backbone.stages, 1):
            state = stage(state)
            if number not in stages:
                continue
            if not isinstance(state, Tensor):
                raise EestudyError(
                    f"head: classifier: the state after stage {number} is a tuple, of which heads read one"
                )
            features = backbone.features(state)
            moved = features.ndim > 2 and features.stride() != state.stride()
            if not torch.equal(features.movedim(1, -1) if moved else features, state):
                raise EestudyError(f"head: classifier: heads read another form of the state after stage {number}")
            found.append(moved)
    return found


def _shape(x: Tensor) -> str:
    return f"(B, {', '.join(map(str, x.shape[1:]))})"


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
