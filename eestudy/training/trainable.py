"""Which tensors a phase trains, and which exits its loss reads; the rest is frozen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eestudy.config import EestudyError
from eestudy.models import MultiExit
from eestudy.training.phases import Phase


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
    """Freezes what the phase does not train, in eval mode (for BatchNorm's statistics); returns what it trains."""
    for module in model.children():
        module.eval().requires_grad_(False)
    trained: dict[int, nn.Parameter] = {}  # stages may share a parameter
    for module in trained_modules(model, phase).values():
        module.train().requires_grad_(True)
        trained |= {id(parameter): parameter for parameter in module.parameters()}
    if phase.settings.batchnorm == "freeze":
        for norm in batch_norms(model.backbone):
            norm.eval()
    return list(trained.values())


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers that have statistics."""
    return [each for each in network.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]


def check_batch_norms(model: MultiExit, phases: Sequence[Phase]) -> None:
    """EestudyError if a phase does something to statistics that the backbone does not have."""
    for phase in phases:
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
    return {name: value for name, value in model.state_dict().items() if name.startswith(trained)}
