"""Heads of the user's own: a function that makes them, modules, or the backbone's own classifier; tried on numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.environment import say
from eestudy.models.backbone import Backbone, device_of, mode
from eestudy.models.heads import HEADS, POOLED_SIZE, Head

# A name; one module for all exits; one an exit; or (shape of the features without the batch, classes) -> module.
Heads = str | nn.Module | Sequence[nn.Module] | Callable[[tuple[int, ...], int], nn.Module]
CLASSIFIER = "classifier"  # the backbone's own, at every exit
LARGEST_SHARE = 0.1  # of the parameters of a backbone of one's own that a default head's last layer may have


class OwnHead(Head):
    """A user's module as a head.

    copies: it changes in place what it reads, which later stages need. moved: it reads channels last.
    """

    copies = moved = False

    def reduce(self, features: Tensor) -> Tensor:
        features = features.movedim(1, -1) if self.moved else features
        return features.clone() if self.copies else features


def own_heads(given: Any, backbone: Backbone, stages: Sequence[int]) -> list[Head]:
    """A head for each of `stages`, tried on random features; EestudyError where one gives no logits of a sample."""
    shapes, classes = [backbone.feature_shapes()[stage - 1] for stage in stages], backbone.num_classes
    several = isinstance(given, list | tuple | nn.ModuleList)
    if several and len(given) != len(stages):
        raise EestudyError(f"head: {len(given)} modules are given for {len(stages)} exits before the last")
    if not several and not callable(given) and given != CLASSIFIER:
        raise EestudyError(
            f"head: {given!r} is not valid; give a name ({', '.join(('auto', CLASSIFIER, *HEADS))}), a torch module "
            "for all exits, a list of one an exit, or a function of a feature's shape and the number of classes"
        )
    heads: dict[int, Head] = {}  # one module for several exits is one head
    made = []
    for place, (stage, shape) in enumerate(zip(stages, shapes)):
        where = f"head after stage {stage}"
        module: Any = backbone.classifier if given == CLASSIFIER else given[place] if several else given
        if not isinstance(module, nn.Module) and callable(module):
            try:
                module = module(shape, classes)
            except Exception as error:
                raise EestudyError(f"{where}: it fails for {shape}, {classes} classes: {_reason(error)}") from error
        if not isinstance(module, nn.Module):
            raise EestudyError(
                f"{where}: {type(module).__name__} is no torch module, which gives logits (B, {classes})"
            )
        head: Head = heads.setdefault(id(module), module if isinstance(module, Head) else OwnHead(module))
        if given == CLASSIFIER and isinstance(head, OwnHead):
            head.moved = getattr(backbone, "channels_last", False)
        if _changes(where, head.to(device_of(backbone)), shape, classes):
            head = heads[id(module)] = head if isinstance(head, OwnHead) else OwnHead(head)
            head.copies = True
        made.append(head)
    return made


@torch.no_grad()
def _changes(where: str, head: Head, shape: tuple[int, ...], classes: int) -> bool:
    """Whether a head changes features in place; EestudyError where it gives no logits (B, C), each sample's alone."""
    with mode(head, False), torch.random.fork_rng():
        x = torch.randn(3, *shape, device=device_of(head))
        given = x.clone()
        found: list[Any] = []
        for batch in (given, x[:1].clone(), x[1:].clone(), x.flip(0), -1000 * x):
            try:
                found.append(head(batch))
            except Exception as error:
                needs = f"does not take features (B, {', '.join(map(str, shape))})"
                raise EestudyError(f"{where}: {needs}: {_reason(error)}") from error
            if not isinstance(found[-1], Tensor) or found[-1].shape != (len(batch), classes):
                gives = tuple(found[-1].shape) if isinstance(found[-1], Tensor) else type(found[-1]).__name__
                raise EestudyError(f"{where}: gives {gives}; logits {(len(batch), classes)} are needed")
    logits, first, others, turned, large = found
    near = 1e-3 * float(logits.abs().max())
    if not all(torch.allclose(logits, each, 1e-3, near) for each in (torch.cat([first, others]), turned.flip(0))):
        raise EestudyError(f"{where}: its logits of a sample are random, NaN or depend on the others in the batch")
    both = torch.cat([logits, large])  # logits grow with what they are made of, probabilities do not
    if classes > 1 and both.any() and both.min() >= 0 and both.max() <= 1:
        raise EestudyError(f"{where}: gives probabilities; exits need logits: leave the last softmax or sigmoid out")
    return not torch.equal(given, x)


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def smaller_sides(backbone: Backbone, shapes: Mapping[int, tuple[int, ...]], args: Mapping[str, Any]) -> dict[int, int]:
    """By stage the side of 2 or 1 that a user's default head pools to, where its last layer would be too large at 4."""
    if not backbone.own or backbone.default_head or backbone.kind not in ("maps", "sequence") or "side" in args:
        return {}
    most = LARGEST_SHARE * sum(weight.numel() for weight in backbone.parameters())
    smaller = {}
    for stage, (channels, *sides) in shapes.items():
        width = args.get("width", channels) * backbone.num_classes
        sizes = {side: width * prod(min(side, each) for each in sides) for side in (POOLED_SIZE, 2, 1)}
        side = next((side for side, size in sizes.items() if size <= most), 1)
        if sizes[side] < sizes[POOLED_SIZE]:
            smaller[stage] = side
    if smaller:
        pooled = ", ".join(f"{side} after stage {stage}" for stage, side in smaller.items())
        say(
            f"head: pools to a side of {pooled}, as with {POOLED_SIZE} a head has more than {LARGEST_SHARE:.0%} of the "
            f"backbone's parameters; head_args={{'side': {POOLED_SIZE}}} pools to {POOLED_SIZE} anyhow"
        )
    return smaller
