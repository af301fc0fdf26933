"""What a phase makes of a network: which tensors it trains, and its forward pass to the exits that its loss reads.

B batch, C classes, K exits of the phase's loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eestudy.config import EestudyError
from eestudy.models import MultiExit
from eestudy.training.phases import Phase


class PhaseNetwork(nn.Module):
    """Inputs -> logits (K, B, C) of the exits a phase's loss is over; after them those of a `frozen_teacher`."""

    def __init__(self, model: MultiExit, phase: Phase) -> None:
        super().__init__()
        self.model = model
        self.phase = phase

    def forward(self, x: Tensor | list[Tensor], turn: str | None = None) -> Tensor:
        """x: (B, *input_shape), or what `frozen_features` gave for it; turn: the exits of a step that takes turns."""
        return torch.stack(phase_logits(self.model, self.phase, x, turn))


def phase_logits(model: MultiExit, phase: Phase, x: Tensor | list[Tensor], turn: str | None = None) -> list[Tensor]:
    """As PhaseNetwork, one tensor (B, C) an exit."""
    if heads_alone(phase):
        if isinstance(x, Tensor):
            with torch.no_grad():  # the frozen backbone
                x = frozen_features(model, phase, x)
        return _from_features(model, x)
    assert isinstance(x, Tensor)
    if turn is not None:
        phase = replace(phase, exits=turn)
    if phase.exits == "last":
        return [model.backbone(x)]
    if phase.exits == "all" and phase.settings.gradient_scaling == "none":
        return model(x)
    return exit_logits(model, phase.exit_numbers(model.num_exits), x, phase.settings.gradient_scaling)


def heads_alone(phase: Phase) -> bool:
    """Whether the phase reads a frozen backbone and nothing behind its last head, but for a frozen teacher."""
    return phase.exits == "internal" and "backbone" not in phase.trains


def frozen_features(model: MultiExit, phase: Phase, x: Tensor) -> list[Tensor]:
    """x (B, *input_shape) -> what each head reads of its stage, K-1 tensors; last a frozen teacher's logits (B, C)."""
    features: list[Tensor] = []
    state: Any = x
    for exit, stage in enumerate(model.exit_stages, 1):
        state = model.advance(exit, state)
        features.append(model.head(stage).reduce(model.backbone.features(state)))
    if phase.frozen_teacher:
        features.append(model.backbone.classifier(model.advance(model.num_exits, state)))
    return features


def _from_features(model: MultiExit, features: Sequence[Tensor]) -> list[Tensor]:
    """What `frozen_features` gave -> the logits (B, C) of the internal exits, after them those of the teacher."""
    logits: list[Tensor] = []
    previous = None
    for stage, reduced in zip(model.exit_stages, features):
        each, previous = model.head(stage).answer(reduced, previous)
        logits.append(each)
    if len(features) > len(logits):
        logits.append(model.boosted(features[-1], previous))
    return logits


def exit_logits(model: MultiExit, exits: Sequence[int], x: Tensor, scaling: str = "none") -> list[Tensor]:
    """Logits (B, C) of some exits alone; nothing behind the last of them runs.

    Heads in between run only if a later one reads their logits. scaling: how the gradients that K exits send into the
    backbone are scaled, i counting these exits from 0:
    equilibrium (Li et al. 2019, IMTA): what comes back into the stages before exit i from it and from the K-i-1 behind
    is their mean, not their sum (times 1/(K-i) before the exit, K-i-1 after it; the authors do so for MSDNet's coarsest
    scale, here for the whole state). Heads get their gradients unscaled.
    boosting: exit i's own gradient enters the backbone times 1/(K-i), so that deeper exits count more. After BoostNet
    (Yu et al. 2023), whose public code has the first one; this definition is ours.
    """
    reading = [model.head(model.exit_stages[exit - 1]).reads_previous for exit in exits if exit < model.num_exits]
    all_answer = any(reading) or (exits[-1] == model.num_exits and bool(model.last_exit_boost))
    logits: list[Tensor] = []
    previous: Tensor | None = None
    state: Any = x
    for exit in range(1, exits[-1] + 1):
        state = model.advance(exit, state)
        if exit not in exits:
            if all_answer:
                _, previous = model.answer(exit, state, previous)
            continue
        left = len(exits) - len(logits)  # exits from here on
        if scaling == "equilibrium":
            state = _scaled(state, 1 / left)
        own = scaling == "boosting" and exit < model.num_exits
        each, previous = model.answer(exit, _scaled(state, 1 / left) if own else state, previous)
        logits.append(each)
        if scaling == "equilibrium" and left > 1:
            state = _scaled(state, left - 1)
    return logits


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
        return tuple(_Scale.apply(each, factor) for each in state)
    return _Scale.apply(state, factor)


def trained_modules(model: MultiExit, phase: Phase) -> dict[str, nn.Module]:
    """What the phase trains, by the name it has in the model."""
    modules: dict[str, nn.Module] = {}
    numbers = phase_exits(model, phase)
    if phase.whole_backbone:
        modules["backbone"] = model.backbone
    elif "backbone" in phase.trains:
        assert phase.stages is not None
        first, last = phase.stages
        modules |= {f"backbone.stages.{index}": model.backbone.stages[index] for index in range(first - 1, last)}
        if model.num_exits in numbers:
            modules["backbone.classifier"] = model.backbone.classifier
    if "heads" in phase.trains and isinstance(phase.exits, str):
        modules["heads"] = model.heads
    elif "heads" in phase.trains:
        stages = [model.exit_stages[number - 1] for number in numbers if number < model.num_exits]
        modules |= {f"heads.{stage}": model.head(stage) for stage in stages}
    return modules


def set_trainable(model: MultiExit, phase: Phase) -> list[nn.Parameter]:
    """Freezes what the phase does not train, in eval mode (for BatchNorm's statistics); returns what it trains.

    What the user froze in their own network (`MultiExit.frozen`) no phase trains.
    """
    for module in model.children():
        module.eval().requires_grad_(False)
    trained: dict[int, nn.Parameter] = {}  # stages may share a parameter
    for module in trained_modules(model, phase).values():
        module.train().requires_grad_(True)
        trained |= {id(parameter): parameter for parameter in module.parameters()}
    for name, part in model.named_modules():
        if name in model.frozen:
            part.eval()
    for name, parameter in model.named_parameters():
        if name in model.frozen:
            trained.pop(id(parameter.requires_grad_(False)), None)
    if phase.settings.batchnorm == "freeze":
        for norm in batch_norms(model.backbone):
            norm.eval()
    return list(trained.values())


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers that have statistics."""
    return [each for each in network.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]


def check_phases(model: MultiExit, phases: Sequence[Phase]) -> None:
    """EestudyError for a phase that trains only what is frozen, or changes statistics that the backbone lacks.

    Also for one that would change an exit that it is to leave as it is, by weights that exits share.
    """
    taught: set[int] = set()
    for phase in phases:
        kept: list[nn.Module] = [] if "backbone" in phase.trains else [model.backbone]
        for exit in taught - {*phase_exits(model, phase)}:
            last = exit == model.num_exits
            kept.append(model.backbone.classifier if last else model.head(model.exit_stages[exit - 1]))
        trained = {weight for module in trained_modules(model, phase).values() for weight in module.parameters()}
        if not trained.isdisjoint(weight for module in kept for weight in module.parameters()):
            raise EestudyError(
                f"head: phase {phase.name!r} leaves some exits as they are, but they share weights with a head that it "
                "trains; joint, mixed and others train them together"
            )
        taught |= {*phase_exits(model, phase)}
        if model.frozen and not any(name in dict(model.named_parameters()) for name in trained_tensors(model, phase)):
            raise EestudyError(
                f"model: all that phase {phase.name!r} would train is frozen (requires_grad=False); RunConfig(start="
                "'trained', strategy='disjoint') trains the heads alone"
            )
        if phase.settings.batchnorm != "train" and not batch_norms(model.backbone):
            raise EestudyError(
                f"batchnorm: {phase.settings.batchnorm} has no effect: the backbone has no BatchNorm statistics"
            )


def phase_exits(model: MultiExit, phase: Phase) -> list[int]:
    """The numbers of these exits, counted from 1."""
    return phase.exit_numbers(model.num_exits)


def trained_tensors(model: MultiExit, phase: Phase) -> dict[str, Tensor]:
    """Name -> tensor of everything the phase may change, BatchNorm buffers included."""
    trained = tuple(f"{name}." for name in trained_modules(model, phase))
    named = {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(trained) and not {name, name.rpartition(".")[0]} & model.frozen
    }
    # What modules share is saved once, under its first name.
    first = {(value.data_ptr(), value.shape): name for name, value in reversed(named.items())}
    return {name: value for name, value in named.items() if name in first.values() or not value.numel()}


@contextmanager
def gathering(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """These layers normalize by their batch and keep the mean over all batches; all else stays as it is.

    So each layer sees what the layers before it give when they normalize by about these statistics (Izmailov et al.
    2018, SWA; Garipov et al. 2018). Batches weigh by their size: at each, a layer's momentum is its share of all that
    the layer has seen. The variance is the mean of the batches' (unbiased) variances, so it lacks what the batches'
    means differ by.
    """
    before = [(norm, norm.training, norm.momentum) for norm in norms]
    seen = dict.fromkeys(norms, 0)

    def weigh(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        count = inputs[0].numel() // inputs[0].shape[1]
        seen[module] += count
        module.momentum = count / seen[module]

    hooks = [norm.train().register_forward_pre_hook(weigh) for norm in seen]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum
