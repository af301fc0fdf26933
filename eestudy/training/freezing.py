"""Which tensors a phase trains, and which exits its loss reads.

B batch, C classes, K exits of the phase's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eestudy.config import EestudyError
from eestudy.heads import Cascade
from eestudy.models import MultiExit
from eestudy.training.phases import Phase


def trained_parts(model: MultiExit, phase: Phase) -> dict[str, nn.Module]:
    """What the phase trains, by the name it has in the model."""
    parts = {name: getattr(model, name) for name in phase.trains if name not in ("backbone", "heads")}
    numbers = phase_exits(model, phase)
    if phase.whole_backbone:
        parts["backbone"] = model.backbone
    elif "backbone" in phase.trains:
        assert phase.stages is not None
        first, last = phase.stages
        parts |= {f"backbone.stages.{place}": model.backbone.stages[place] for place in range(first - 1, last)}
        if model.num_exits in numbers:
            parts["backbone.classifier"] = model.backbone.classifier
    if "heads" in phase.trains and isinstance(phase.exits, str):
        parts["heads"] = model.heads
    elif "heads" in phase.trains:
        stages = [model.exit_stages[number - 1] for number in numbers if number < model.num_exits]
        parts |= {f"heads.{stage}": model.head(stage) for stage in stages}
    return parts


def set_trainable(model: MultiExit, phase: Phase) -> list[nn.Parameter]:
    """Freezes what the phase does not train and returns the parameters it does.

    Frozen means no gradient and eval mode: without the second, BatchNorm would still move its statistics.
    """
    for part in model.children():
        part.eval().requires_grad_(False)
    trained: dict[int, nn.Parameter] = {}  # stages may share a parameter
    for part in trained_parts(model, phase).values():
        part.train().requires_grad_(True)
        trained |= {id(parameter): parameter for parameter in part.parameters()}
    if phase.settings.batchnorm == "freeze":
        for norm in batch_norms(model.backbone):
            norm.eval()
    return list(trained.values())


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers that have statistics."""
    return [part for part in network.modules() if isinstance(part, _BatchNorm) and part.running_mean is not None]


def check_batch_norms(model: MultiExit, phases: Sequence[Phase]) -> None:
    """EestudyError if a phase does something to statistics that the backbone does not have."""
    for phase in phases:
        if phase.settings.batchnorm != "train" and not batch_norms(model.backbone):
            raise EestudyError(
                f"batchnorm: {phase.settings.batchnorm} has no effect: the backbone has no BatchNorm statistics"
            )


class PhaseNetwork(nn.Module):
    """What a phase computes: inputs -> logits (K, B, C) of the exits its loss is taken over, in order.

    With `Phase.frozen_teacher` those of the last exit come after them.
    """

    def __init__(self, model: MultiExit, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self.phase = phase

    def forward(self, x: Tensor | list[Tensor], turn: str | None = None) -> Tensor:
        """x: (B, *input_shape); in a phase of heads alone also what `frozen_features` gave for it.

        turn: the exits of this step, in a phase that takes turns.
        """
        return torch.stack(phase_logits(self.model, self.phase, x, turn))


def phase_logits(model: MultiExit, phase: Phase, x: Tensor | list[Tensor], turn: str | None = None) -> list[Tensor]:
    """As PhaseNetwork, one tensor (B, C) an exit."""
    if heads_alone(phase):
        if isinstance(x, Tensor):
            with torch.no_grad():  # the frozen backbone
                x = frozen_features(model, phase, x)
        return model.head_logits(x[:-1], x[-1]) if phase.frozen_teacher else model.head_logits(x)
    assert isinstance(x, Tensor)
    if turn is not None:
        phase = replace(phase, exits=turn)
    if phase.exits == "last":
        return [model.backbone(x)]
    if phase.exits == "all" and phase.settings.gradient_scaling == "none":
        return model(x)
    return walked(model, phase_exits(model, phase), x, phase.settings.gradient_scaling)


def frozen_features(model: MultiExit, phase: Phase, x: Tensor) -> list[Tensor]:
    """What the phase's heads read, `MultiExit.reduced_features`; with a frozen teacher its logits (B, C) after them."""
    if not phase.frozen_teacher:
        return model.reduced_features(x)
    reduced: list[Tensor] = []
    state: Any = x
    for number, stage in enumerate(model.backbone.stages, 1):
        state = stage(state)
        if number in model.exit_stages:
            reduced.append(model.head(number).reduce(model.backbone.features(state)))
    return [*reduced, model.backbone.classifier(state)]


def walked(model: MultiExit, exits: Sequence[int], x: Tensor, scaling: str = "none") -> list[Tensor]:
    """Logits (B, C) of some exits alone; nothing behind the last of them runs.

    Heads in between run only if a later one reads their logits. scaling: how the gradients that K exits send into the
    backbone are scaled, i counting these exits from 0:
    equilibrium (Li et al. 2019, IMTA): what comes back into the stages before exit i from it and from the K-i-1 behind
    is their mean, not their sum (times 1/(K-i) before the exit, K-i-1 after it; the authors do so for MSDNet's coarsest
    scale, here for the whole state). Heads get their gradients unscaled.
    boosting: exit i's own gradient enters the backbone times 1/(K-i), so that deeper exits count more. After BoostNet
    (Yu et al. 2023), whose public code has the first one; this definition is ours.
    """
    stages = (*model.exit_stages, len(model.backbone.stages))
    wanted = {stages[number - 1]: place for place, number in enumerate(exits)}
    whole = exits[-1] == model.num_exits
    chained = any(_reads_previous(model.head(stage)) for stage in model.exit_stages if stage in wanted)
    chained = chained or (whole and bool(model.added))
    logits: list[Tensor] = []
    previous: Tensor | None = None
    state: Any = x
    for number, stage in enumerate(model.backbone.stages[: max(wanted)], 1):
        state = stage(state)
        left = len(exits) - wanted.get(number, 0)  # exits from here on
        if number in wanted and scaling == "equilibrium":
            state = _scaled(state, 1 / left)
        if number in model.exit_stages and (number in wanted or chained):
            features = model.backbone.features(state)
            if number in wanted and scaling == "boosting":
                features = _scaled(features, 1 / left)
            head = model.head(number)
            each, previous = head.passing(head.reduce(features), previous)
            if number in wanted:
                logits.append(each)
        if number in wanted and scaling == "equilibrium" and left > 1:
            state = _scaled(state, left - 1)
    return [*logits, model.closing(model.backbone.classifier(state), previous)] if whole else logits


class _Scale(torch.autograd.Function):
    """x as it is; its gradient times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()  # no view: what comes next may work in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.factor, None


def _scaled(state: Any, factor: float) -> Any:
    if isinstance(state, tuple):
        return tuple(_Scale.apply(part, factor) for part in state)
    return _Scale.apply(state, factor)


def _reads_previous(head: nn.Module) -> bool:
    """Whether a head reads what the one before passes on."""
    return any(isinstance(part, Cascade) or getattr(part, "reads_previous", False) for part in head.modules())


def heads_alone(phase: Phase) -> bool:
    """Whether the phase reads a frozen backbone and nothing behind its last head, but for a frozen teacher."""
    return phase.exits == "internal" and "backbone" not in phase.trains


def phase_exits(model: MultiExit, phase: Phase) -> list[int]:
    """The numbers of these exits, counted from 1."""
    return phase.exit_numbers(model.num_exits)


def trained_tensors(model: MultiExit, phase: Phase) -> dict[str, Tensor]:
    """Name -> tensor of everything the phase may change, BatchNorm buffers included."""
    parts = tuple(f"{name}." for name in trained_parts(model, phase))
    return {name: value for name, value in model.state_dict().items() if name.startswith(parts)}
