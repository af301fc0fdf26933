"""Training FLOPs: one forward and backward pass under torch's own counter."""

from __future__ import annotations

import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from eestudy.models import MultiExit
from eestudy.training.freezing import phase_logits, set_trainable
from eestudy.training.losses import exit_losses
from eestudy.training.phases import Phase


def step_flops(model: MultiExit, phase: Phase) -> float:
    """FLOPs of training on one sample in `phase`: forward and backward, frozen parts forward only.

    Counted on a copy with a batch of two (BatchNorm needs two). The optimizer's own arithmetic is not counted.
    """
    copied = copy.deepcopy(model).cpu()
    set_trainable(copied, phase)
    x, y = torch.zeros(2, *model.input_shape), torch.zeros(2, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        exit_losses(phase_logits(copied, phase, x), y).mean().backward()
    return counter.get_total_flops() / 2
