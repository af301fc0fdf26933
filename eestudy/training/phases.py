"""A phase: the unit of training and of caching. Pure data, no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass, field
from typing import Any

from eestudy.config import RunConfig


@dataclass(frozen=True)
class Settings:
    """How a phase trains. A setting without effect in the phase has its default (`settings.settings_of` sees to that).

    The defaults are RunConfig's, or "without it". epochs: 0 until `resolve`. patience: epochs with a worse validation
    accuracy at every exit; None: train them all. weights: of the phase's exits, with `weighting: custom`. method: whose
    own heads, loss or step the phase trains with; empty where the phase is the same without it.
    """

    epochs: int = 0
    patience: int | None = None
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float | None = 1.0
    augmentation: str = "none"
    augmentation_args: dict[str, float] = field(default_factory=dict)
    precision: str = "float32"
    checkpoints: tuple[int, ...] = (0, 5, 10, 25, 50, 75, 100)
    weighting: str = "equal"
    weights: tuple[float, ...] = ()
    gradient_scaling: str = "none"
    gradient_combination: str = "sum"
    distillation: str = "none"
    distillation_weight: float = 0.5
    distillation_temperature: float = 3.0
    stability: float = 0.0
    batchnorm: str = "train"
    method: str = ""


@dataclass(frozen=True)
class Phase:
    """What trains, on which exits' loss, for which share of the run; and how (`Settings`).

    trains: of "backbone" (with its own classifier) and "heads"; the rest is frozen, BatchNorm statistics included.
    exits: whose loss is taken: "last" (the backbone's own classifier), "all", "internal" (all but the last), or their
    numbers; then of the heads only these train.
    share: of the run's epochs, in (0, 1]; `resolve` turns it into epochs.
    stages: of the backbone only these train, from and to (counted from 1), and its classifier if its exit has a loss.
    turns: "last" or "all", whose loss odd and even steps take; none: that of `exits`, always.
    keeps: how exits of earlier phases are kept as they were: "lwf", "ewc" or "none".
    """

    name: str
    trains: tuple[str, ...]
    exits: str | tuple[int, ...]
    share: float = 1.0
    stages: tuple[int, int] | None = None
    turns: tuple[str, ...] = ()
    keeps: str = "none"
    settings: Settings = Settings()

    @property
    def uses_heads(self) -> bool:
        """Whether heads take part at all. A phase without them is shared by runs with different heads."""
        return self.exits != "last"

    @property
    def whole_backbone(self) -> bool:
        """Whether all of the backbone trains."""
        return "backbone" in self.trains and self.stages is None

    @property
    def frozen_teacher(self) -> bool:
        """Whether heads alone train and also learn from the frozen backbone's own classifier."""
        return self.exits == "internal" and "backbone" not in self.trains and self.settings.distillation != "none"

    def exit_numbers(self, exits: int) -> list[int]:
        """The numbers of these exits, from 1, in a network of so many."""
        if not isinstance(self.exits, str):
            return list(self.exits)
        numbers = list(range(1, exits + 1))
        return {"last": numbers[-1:], "all": numbers, "internal": numbers[:-1]}[self.exits]

    def having(self, **settings: Any) -> Phase:
        """The phase with other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **settings))

    def identity(self) -> dict[str, Any]:
        """What is hashed of a resolved phase: what differs from the defaults, settings included."""
        assert self.settings.epochs, "a share says nothing of how long it is; see resolve"
        return differing(self)


def differing(content: Any) -> dict[str, Any]:
    """A dataclass's fields that have no default or differ from it, by name; of one in a field likewise."""
    found = {}
    for each in dataclasses.fields(content):
        value = getattr(content, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if default is MISSING or value != default:
            found[each.name] = differing(value) if dataclasses.is_dataclass(value) else value
    return found


def resolve(
    phases: tuple[Phase, ...], config: RunConfig, step_flops: dict[str, float], joint: float | None = None
) -> tuple[Phase, ...]:
    """Phases with their epochs in place of their shares.

    match: epochs - the run's epochs are split by the phases' shares, each getting at least one.
    match: flops - each phase gets its share of the FLOPs that the run's epochs of joint training cost; `step_flops`
    gives the training FLOPs of one sample by phase name, `joint` those of plain joint training (default: of the phase
    "together").
    match: patience - each phase trains until every exit has been worse for `patience` epochs, at most the run's epochs.
    """
    resolved, share, spent = [], 0.0, 0
    for phase in phases:
        patience = None
        share += phase.share
        if config.match == "patience":
            epochs, patience = config.epochs, config.patience
        elif config.match == "flops":
            spend = phase.share * config.epochs * (step_flops["together"] if joint is None else joint)
            epochs = max(1, round(spend / step_flops[phase.name]))
        else:
            # To where the phase ends in the run: rounding changes neither the sum nor what later phases get.
            epochs = max(1, round(share * config.epochs) - spent)
            spent += epochs
        resolved.append(dataclasses.replace(phase.having(epochs=epochs, patience=patience), share=1.0))
    return tuple(resolved)
