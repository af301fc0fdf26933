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
    exits: whose loss is taken: "last" (the backbone's own classifier), "all", or "internal" (all but the last).
    share: of the run's epochs, in (0, 1].
    """

    name: str
    trains: tuple[str, ...]
    exits: str
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

    @property
    def uses_heads(self) -> bool:
        """Whether heads take part at all. A phase without them is shared by runs with different heads."""
        return self.exits != "last"

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
        return {key: value for key, value in content.items() if key not in unused}


def resolve(phases: tuple[Phase, ...], config: RunConfig, step_flops: dict[str, float]) -> tuple[Phase, ...]:
    """Phases with the run's settings and their epochs.

    match: epochs - the run's epochs are split by the phases' shares, each getting at least one.
    match: flops - each phase gets its share of the FLOPs that the run's epochs of joint training cost; `step_flops`
    gives the training FLOPs of one sample by phase name, "together" among them.
    match: patience - each phase trains until no exit improves for `patience` epochs, at most the run's epochs.
    """
    settings = {name: getattr(config, name) for name in _FROM_RUN}
    resolved, left = [], config.epochs
    for number, phase in enumerate(phases, 1):
        patience = None
        if config.match == "patience":
            epochs, patience = config.epochs, config.patience
        elif config.match == "flops":
            spend = phase.share * config.epochs * step_flops["together"]
            epochs = max(1, round(spend / step_flops[phase.name]))
        elif number == len(phases):
            epochs = max(1, left)  # rounding must not change the sum
        else:
            epochs = max(1, round(phase.share * config.epochs))
            left -= epochs
        resolved.append(dataclasses.replace(phase, epochs=epochs, patience=patience, **settings))
    return tuple(resolved)
