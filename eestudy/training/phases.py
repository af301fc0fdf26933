"""A phase, the unit of training and of caching: what it trains, and which of a run's settings take effect in it.

Pure data, no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field
from typing import Any

from eestudy.config import EestudyError, RunConfig


@dataclass(frozen=True)
class Settings:
    """How a phase trains. A setting without effect in the phase has its default (`configured` sees to that).

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
    class_weights: tuple[float, ...] | str = ()
    label_smoothing: float = 0.0
    criterion: str = ""
    weighting: str = "equal"
    weights: tuple[float, ...] = ()
    gradient_scaling: str = "none"
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


# What `stability` is where the run does not say.
STABILITY = {"lwf": 1.0, "ewc": 1000.0}

# field, its value without effect, what a phase must have for it
_NEEDS: tuple[tuple[str, str, str], ...] = (
    ("weighting", "equal", "a phase in which the labels teach several exits at once"),
    ("gradient_scaling", "none", "a phase in which several exits train the backbone together"),
    ("distillation", "none", "a phase in which an exit is taught by labels beside the deeper exit it learns from"),
    ("batchnorm", "train", "a phase that trains the whole backbone after an earlier one did"),
)


def configured(
    phases: tuple[Phase, ...], config: RunConfig, exits: int, method: str = "", implied: Collection[str] = ()
) -> tuple[Phase, ...]:
    """Phases with the run's settings, without epochs. exits: how many the network has.

    A setting is given to the phases in which it does something; the others are the same as without it, and shared with
    runs that lack it. method: if it trains otherwise than a plain weighted loss; it is part of every phase that uses
    heads. implied: fields that the method has set and not the user, for the phases that have a use for them.
    Raises EestudyError, naming the field, for a setting that no phase of the strategy has a use for.
    """
    _check_alone(config, exits)
    made = tuple(
        dataclasses.replace(
            phase,
            keeps=phase.keeps if place else "none",  # before the first phase there is nothing to keep
            settings=_settings(phase, phases[:place], config, exits, method),
        )
        for place, phase in enumerate(phases)
    )
    at_the_ends = f" at phase_split {config.phase_split:g}" if config.phase_split in (0, 1) else ""
    strategy = f"{config.strategy}{at_the_ends}"
    for name, plain, why in _NEEDS:
        given = getattr(config, name)
        if given != plain and name not in implied and all(getattr(phase.settings, name) != given for phase in made):
            raise EestudyError(f"{name}: {given} needs {why}, and {strategy} has none")
    if config.lr_scale != 1 and len(made) == 1 and config.start == "scratch":
        raise EestudyError(f"lr_scale: {config.lr_scale:g} is for phases after the first, and {strategy} has none")
    if config.stability is not None and all(phase.keeps == "none" for phase in made):
        known = "it is for sequential-lwf and sequential-ewc"
        raise EestudyError(f"stability: {config.stability:g} has no effect in {config.strategy}; {known}")
    return made


def _settings(phase: Phase, before: tuple[Phase, ...], config: RunConfig, exits: int, method: str) -> Settings:
    """The run's settings that do something in `phase`, which follows the phases `before`; epochs are for `resolve`."""
    numbers, trains_backbone = phase.exit_numbers(exits), "backbone" in phase.trains
    several, keeps = len(numbers) > 1, phase.keeps if before else "none"
    labelled = several and phase.keeps == "none"
    # An exit learns from a deeper one of the phase; heads alone also from the frozen backbone's own classifier.
    has_teacher = labelled and (config.distillation != "last" or numbers[-1] == exits)
    has_teacher |= phase.exits == "internal" and not trains_backbone and phase.keeps == "none"
    taught = config.distillation != "none" and has_teacher
    if config.batchnorm == "freeze":  # as an earlier phase left them
        gathered = config.start == "trained" or any(each.whole_backbone for each in before)
        moves_statistics = phase.whole_backbone and gathered
    else:
        moves_statistics = trains_backbone
    has_effect = {
        "momentum": config.optimizer == "sgd",
        "warmup": config.schedule != "one-cycle",
        "weighting": labelled,
        "weights": labelled and config.weighting == "custom",
        "gradient_scaling": several and trains_backbone,  # exits meet in the backbone
        "distillation": taught,
        "distillation_weight": taught,
        "distillation_temperature": taught or keeps == "lwf",
        "stability": keeps != "none",
        "batchnorm": moves_statistics,
        "method": phase.uses_heads,
    }
    given = {each.name: getattr(config, each.name) for each in dataclasses.fields(Settings)}
    given |= {"epochs": Settings.epochs, "patience": Settings.patience, "method": method}
    if before or config.start == "trained":
        given["lr"] *= config.lr_scale
    if has_effect["weights"]:
        given["weights"] = tuple(config.weights[number - 1] for number in numbers)
        if not any(given["weights"]):
            raise EestudyError(
                f"weights: {list(config.weights)} gives none to the exits of phase {phase.name}, {numbers}"
            )
    if config.stability is None:
        given["stability"] = STABILITY.get(keeps)
    return Settings(**{name: value for name, value in given.items() if has_effect.get(name, True)})


def _check_alone(config: RunConfig, exits: int) -> None:
    """Settings that have no effect without another one, and weights that do not fit the exits."""
    weights = list(config.weights)
    if config.weighting == "custom" and len(weights) != exits:
        raise EestudyError(f"weights: {weights} are {len(weights)}, but the network has {exits} exits")
    if weights and config.weighting != "custom":
        raise EestudyError(f"weights: {weights} have no effect with weighting {config.weighting}; set it to custom")
    for name, strategies in (("distillation_weight", ()), ("distillation_temperature", ("sequential-lwf",))):
        given = getattr(config, name)
        plain = given == RunConfig.model_fields[name].default
        if not plain and config.distillation == "none" and config.strategy not in strategies:
            raise EestudyError(f"{name}: {given:g} has no effect without distillation; set it to last, later or next")


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
