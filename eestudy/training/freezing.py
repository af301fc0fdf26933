"""Which tensors a phase trains, and which exits its loss reads."""

from __future__ import annotations

import torch
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


class PhaseNetwork(nn.Module):
    """What a phase computes: inputs -> logits (K, B, C) of the exits its loss is taken over, in order."""

    def __init__(self, model: MultiExit, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self.phase = phase

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """x: (B, *input_shape); in a phase of heads alone also what `MultiExit.reduced_features` gave for it."""
        return torch.stack(phase_logits(self.model, self.phase, x))


def phase_logits(model: MultiExit, phase: Phase, x: Tensor | list[Tensor]) -> list[Tensor]:
    """As PhaseNetwork, one tensor (B, C) an exit."""
    if heads_alone(phase):
        if isinstance(x, Tensor):
            with torch.no_grad():  # the frozen backbone
                x = model.reduced_features(x)
        return model.head_logits(x)
    assert isinstance(x, Tensor)
    return [model.backbone(x)] if phase.exits == "last" else model(x)


def heads_alone(phase: Phase) -> bool:
    """Whether the phase reads a frozen backbone and nothing behind its last head."""
    return phase.exits == "internal" and "backbone" not in phase.trains


def phase_exits(model: MultiExit, phase: Phase) -> list[int]:
    """The numbers of these exits, counted from 1."""
    exits = list(range(1, model.num_exits + 1))
    return {"last": exits[-1:], "all": exits, "internal": exits[:-1]}[phase.exits]


def trained_tensors(model: MultiExit, phase: Phase) -> dict[str, Tensor]:
    """Name -> tensor of everything the phase may change, BatchNorm buffers included."""
    return {name: value for name, value in model.state_dict().items() if name.split(".")[0] in phase.trains}
