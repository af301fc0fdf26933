"""What an exit costs: FLOPs by torch's own counter (a multiply and an add count as two) and parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eestudy.models.backbone import Backbone

if TYPE_CHECKING:
    from eestudy.models.multi_exit import MultiExit


@dataclass(frozen=True)
class ExitCosts:
    """FLOPs of one sample and parameters, part by part; exits counted from 1.

    stages: FLOPs of each backbone stage; classifier: of the backbone's own; heads: of each head.
    flops: (K,) cost of leaving at exit k, the backbone up to there and every head up to and including k.
    params: (K,) parameters needed up to there, counted the same way.
    """

    stages: tuple[int, ...]
    classifier: int
    heads: tuple[int, ...]
    flops: tuple[int, ...]
    params: tuple[int, ...]

    @property
    def backbone(self) -> int:
        """FLOPs of the plain backbone, without heads: the 100 % of every budget."""
        return sum(self.stages) + self.classifier


@torch.no_grad()
def exit_costs(model: MultiExit) -> ExitCosts:
    """Counts one forward pass of one sample, part by part, in eval mode. The model is left as it was."""
    training = model.training
    model.eval()
    state: Any = model.backbone.dry_input()
    stages, heads, flops, params = [], [], [], []
    spent = size = 0
    previous: Any = None
    for number, stage in enumerate(model.backbone.stages, 1):
        state, cost = _counted(stage, state)
        stages.append(cost)
        spent += cost
        size += _size(stage)
        if str(number) in model.heads:
            head = model.head(number)
            (_, previous), cost = _counted(model.passed, number, state, previous)
            heads.append(cost)
            spent += cost
            size += _size(head)
            flops.append(spent)
            params.append(size)
    _, classifier = _counted(model.backbone.classifier, state)
    flops.append(spent + classifier)
    params.append(size + _size(model.backbone.classifier))
    model.train(training)
    return ExitCosts(tuple(stages), classifier, tuple(heads), tuple(flops), tuple(params))


@torch.no_grad()
def stage_flops(backbone: Backbone) -> list[int]:
    """FLOPs of one sample in each stage, and in the classifier, which comes last."""
    training = backbone.training
    backbone.eval()
    state: Any = backbone.dry_input()
    counts = []
    for part in (*backbone.stages, backbone.classifier):
        state, cost = _counted(part, state)
        counts.append(cost)
    backbone.train(training)
    return counts


def _counted(call: Callable, *inputs: Any) -> tuple[Any, int]:
    with FlopCounterMode(display=False) as counter:
        result = call(*inputs)
    return result, counter.get_total_flops()


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
