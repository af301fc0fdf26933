"""A phase: the unit of training and of caching. Pure data, no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from eestudy.config import RunConfig

# Settings that a phase takes over from the run as they are.
_FROM_RUN = (
    "weighting", "optimizer", "lr", "weight_decay", "momentum", "schedule", "warmup", "clip", "batch_size",
    "augmentation", "augmentation_args", "precision", "checkpoints",
)  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """What trains, on which exits' loss, for how long and how.

    trains: of "backbone" (with its own classifier) and "heads"; the rest is frozen, BatchNorm statistics included.
    exits: whose loss is taken: "last" (the backbone's own classifier), "all", "internal" (all but the last), or their
    numbers; then of the heads only these train.
    share: of the run's epochs, in (0, 1].
    stages: of the backbone only these train, from and to (counted from 1), and its classifier if its exit has a loss.
    turns: "last" or "all", whose loss odd and even steps take; none: that of `exits`, always.
    keeps: how exits of earlier phases are kept as they were: "lwf", "ewc" or "none".
    method: whose own heads, loss or step the phase trains with; none where the phase is the same without it.
    """

    name: str
    trains: tuple[str, ...]
    exits: str | tuple[int, ...]
    share: float
    epochs: int = 0  # 0 until `resolve`
    patience: int | None = None  # epochs without a better validation accuracy at any exit; None: train them all
    weighting: str = "equal"
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.01
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float | None = 1.0
    batch_size: int = 128
    augmentation: str = "none"
    augmentation_args: dict[str, float] = field(default_factory=dict)
    precision: str = "float32"
    checkpoints: tuple[int, ...] = (0, 100)
    # From here on, what has its default is left out of the identity: phases from before these fields keep their ids.
    stages: tuple[int, int] | None = None
    turns: tuple[str, ...] = ()
    keeps: str = "none"
    stability: float = 0.0
    weights: tuple[float, ...] = ()  # of the phase's exits, with `weighting: custom`
    gradient_scaling: str = "none"
    gradient_combination: str = "sum"
    distillation: str = "none"
    distillation_weight: float = 0.0
    distillation_temperature: float = 0.0
    batchnorm: str = "train"
    method: str = ""

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
        return self.exits == "internal" and "backbone" not in self.trains and self.distillation != "none"

    def exit_numbers(self, exits: int) -> list[int]:
        """The numbers of these exits, from 1, in a network of so many."""
        if not isinstance(self.exits, str):
            return list(self.exits)
        numbers = list(range(1, exits + 1))
        return {"last": numbers[-1:], "all": numbers, "internal": numbers[:-1]}[self.exits]

    def identity(self) -> dict[str, Any]:
        """What is hashed: everything that changes the weights the phase ends with, or what it leaves on disk."""
        content = dataclasses.asdict(self)
        unused = {"share"}  # epochs says it
        if not self.uses_heads:
            unused.add("weighting")
        if self.optimizer != "sgd":
            unused.add("momentum")
        if not self.augmentation_args:
            unused.add("augmentation_args")
        unused |= {each.name for each in _added_later() if content[each.name] == each.default}
        return {key: value for key, value in content.items() if key not in unused}


def _added_later() -> list[dataclasses.Field[Any]]:
    fields = list(dataclasses.fields(Phase))
    return fields[[each.name for each in fields].index("stages") :]


def resolve(
    phases: tuple[Phase, ...], config: RunConfig, step_flops: dict[str, float], joint: float | None = None
) -> tuple[Phase, ...]:
    """Phases with the run's settings and their epochs.

    match: epochs - the run's epochs are split by the phases' shares, each getting at least one.
    match: flops - each phase gets its share of the FLOPs that the run's epochs of joint training cost; `step_flops`
    gives the training FLOPs of one sample by phase name, `joint` those of plain joint training (default: of the phase
    "together").
    match: patience - each phase trains until no exit improves for `patience` epochs, at most the run's epochs.
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
        resolved.append(dataclasses.replace(phase, epochs=epochs, patience=patience))
    return tuple(resolved)


def from_run(phase: Phase, config: RunConfig) -> Phase:
    """The phase with the settings that every phase has from the run."""
    return dataclasses.replace(phase, **{name: getattr(config, name) for name in _FROM_RUN})
