"""Training FLOPs: one forward and backward pass under torch's own counter."""

from __future__ import annotations

import copy

from torch.utils.flop_counter import FlopCounterMode

from eestudy.models import MultiExit
from eestudy.training.freezing import PhaseNetwork, set_trainable
from eestudy.training.phases import Phase


def step_flops(model: MultiExit, phase: Phase) -> float:
    """FLOPs of training on one sample in `phase`: forward and backward, frozen parts forward only, up to the last head.

    Counted on a copy with a batch of two (BatchNorm needs two). The optimizer's own arithmetic is not counted. Where a
    frozen backbone's features are cached, less is spent than this counts, which is what the strategy asks for.
    """
    copied = copy.deepcopy(model).cpu()
    set_trainable(copied, phase)
    with FlopCounterMode(display=False) as counter:
        PhaseNetwork(copied, phase)(copied.backbone.dry_input(2)).float().sum().backward()
    return counter.get_total_flops() / 2
