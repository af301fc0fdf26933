"""Training FLOPs: forward and backward passes under torch's own counter."""

from __future__ import annotations

import copy
from dataclasses import replace

from eestudy.models import MultiExit
from eestudy.models.backbone import counted, flop_counter
from eestudy.training.phase_network import PhaseNetwork, exit_logits, phase_exits, phase_logits, set_trainable
from eestudy.training.phases import Phase


def step_flops(model: MultiExit, phase: Phase) -> float:
    """FLOPs of training on one sample in `phase`: forward and backward, frozen parts forward only, up to the last head.

    Counted on a copy with a batch of two (BatchNorm needs two). The optimizer's own arithmetic, and that on gradients,
    are not counted. Where a frozen backbone's features are cached, less is spent than this counts, which is what the
    strategy asks for. Where steps take turns, their mean.
    """
    if phase.turns:
        each = [step_flops(model, replace(phase, exits=turn, turns=())) for turn in phase.turns]
        return sum(each) / len(each)
    copied = copy.deepcopy(model).cpu()
    set_trainable(copied, phase)
    x = copied.backbone.dry_input(2)
    with flop_counter() as counter:
        PhaseNetwork(copied, phase)(x).float().sum().backward()
        if phase.keeps == "lwf":  # what the earlier exits said before
            set_trainable(copied, replace(phase, trains=()))
            exit_logits(copied, phase_exits(copied, phase)[:-1], x)
    return counter.get_total_flops() / 2


def once_flops(model: MultiExit, phase: Phase, samples: int) -> float:
    """FLOPs that a phase on so many samples spends once, whatever its epochs: BatchNorm statistics, importances."""
    flops = 0.0
    if phase.settings.batchnorm == "reestimate":
        copied = copy.deepcopy(model).cpu()
        _, of_two = counted(exit_logits, copied, phase_exits(model, phase), copied.backbone.dry_input(2))
        flops += samples * of_two / 2
    if phase.keeps == "ewc":
        from eestudy.training.earlier_exits import FISHER_SAMPLES

        earlier = tuple(range(1, phase_exits(model, phase)[0]))
        # As a phase that trains all stages up to the last earlier exit, with every exit's backward pass by itself.
        alike = Phase("fisher", ("backbone",), earlier, stages=(1, model.exit_stages[earlier[-1] - 1]))
        copied = copy.deepcopy(model).cpu()
        set_trainable(copied, alike)
        with flop_counter() as counter:
            for logits in phase_logits(copied, alike, copied.backbone.dry_input(2)):
                logits.float().sum().backward(retain_graph=True)
        flops += min(samples, FISHER_SAMPLES) * counter.get_total_flops() / 2
    return flops
