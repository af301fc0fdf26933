"""Which tensors a phase trains, and which exits its loss reads."""

from __future__ import annotations

from torch import Tensor, nn

from eestudy.models import MultiExit
from eestudy.training.phases import Phase


def parts(model: MultiExit) -> dict[str, nn.Module]:
    """The parts a phase can train, by name."""
    return {"backbone": model.backbone, "heads": model.heads}


def set_trainable(model: MultiExit, phase: Phase) -> list[nn.Parameter]:
    """Freezes what the phase does not train and returns the parameters it does.

    Frozen means no gradient and eval mode: without the second, BatchNorm would still move its statistics.
    """
    trained = []
    for name, part in parts(model).items():
        trains = name in phase.trains
        part.train(trains).requires_grad_(trains)
        if trains:
            trained += list(part.parameters())
    return trained


def phase_logits(model: MultiExit, phase: Phase, x: Tensor) -> list[Tensor]:
    """The logits (B, C) of the exits the phase's loss is taken over, in order. x: (B, *input_shape)."""
    if phase.exits == "last":
        return [model.backbone(x)]
    logits = model(x)
    return logits if phase.exits == "all" else logits[:-1]


def phase_exits(model: MultiExit, phase: Phase) -> list[int]:
    """The numbers of these exits, counted from 1."""
    exits = list(range(1, model.num_exits + 1))
    return {"last": exits[-1:], "all": exits, "internal": exits[:-1]}[phase.exits]


def trained_tensors(model: MultiExit, phase: Phase) -> dict[str, Tensor]:
    """Name -> tensor of everything the phase may change, BatchNorm buffers included."""
    return {name: value for name, value in model.state_dict().items() if name.split(".")[0] in phase.trains}
