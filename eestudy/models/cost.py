"""What an exit costs: FLOPs by torch's own counter (a multiply and an add count as two) and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from eestudy.models.backbone import counted, mode, stage_flops
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
    """Counted on one sample, part by part, in eval mode. The model is left as it was."""
    *stages, _ = stage_flops(model.backbone)
    answers, flops, params = [], [], []  # of each exit alone
    state: Any = model.backbone.dry_input()
    previous: Any = None
    with mode(model, False):
        for exit in range(1, model.num_exits + 1):
            state = model.advance(exit, state)
            (_, previous), answer = counted(model.answer, exit, state, previous)
            between = model.stages_to(exit)
            head = model.head(between[-1]) if exit < model.num_exits else model.backbone.classifier
            modules = [*(model.backbone.stages[stage - 1] for stage in between), head]
            answers.append(answer)
            flops.append(sum(stages[stage - 1] for stage in between) + answer)
            params.append(sum(weight.numel() for module in modules for weight in module.parameters()))
    *heads, classifier = answers
    return ExitCosts(tuple(stages), classifier, tuple(heads), tuple(accumulate(flops)), tuple(accumulate(params)))
