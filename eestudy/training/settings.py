"""Which of a run's settings take effect in which of its phases, and a refusal of those that would in none.

A setting is given to the phases in which it does something; the others are the same as without it, and shared with
runs that lack it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from eestudy.config import EestudyError, RunConfig
from eestudy.training.phases import Phase, from_run

# Weightings that one exit alone is not weighed by, and what `stability` is where the run does not say.
RELATIVE = ("custom", "sdn-ramp", "adaloss", "uncertainty")
STABILITY = {"lwf": 1.0, "ewc": 1000.0}


def configured(
    phases: tuple[Phase, ...], config: RunConfig, exits: int, method: str = "", implied: Collection[str] = ()
) -> tuple[Phase, ...]:
    """Phases with the run's settings, without epochs. exits: how many the network has.

    method: if it trains otherwise than a plain weighted loss; it is part of every phase that uses heads. implied:
    fields that the method has set and not the user, for the phases that have a use for them.
    Raises EestudyError, naming the field, for a setting that no phase of the strategy has a use for.
    """
    _check_alone(config, exits)
    made = tuple(_with_settings(from_run(phase, config), phases, place, config, exits) for place, phase in
                 enumerate(phases))  # fmt: skip
    for field, plain, why in _NEEDS:
        given = getattr(config, field)
        if given != plain and field not in implied and not any(getattr(phase, field) == given for phase in made):
            raise EestudyError(f"{field}: {given} needs {why}, and {_named(config)} has none")
    if config.lr_scale != 1 and len(made) == 1:
        raise EestudyError(
            f"lr_scale: {config.lr_scale:g} is for phases after the first, and {_named(config)} has none"
        )
    if config.stability is not None and not any(phase.keeps != "none" for phase in made):
        raise EestudyError(f"stability: {config.stability:g} has no effect in {config.strategy}; it is for "
                           "sequential-lwf and sequential-ewc")  # fmt: skip
    return tuple(dataclasses.replace(phase, method=method) if phase.uses_heads else phase for phase in made)


# field, its value without effect, what a phase must have for it
_NEEDS: tuple[tuple[str, str, str], ...] = (
    ("weighting", "equal", "a phase in which the labels teach several exits at once"),
    ("gradient_scaling", "none", "a phase in which several exits train the backbone together"),
    ("gradient_combination", "sum", "a phase in which several exits train the backbone together"),
    ("distillation", "none", "a phase in which an exit is taught by labels beside the deeper exit it learns from"),
    ("batchnorm", "train", "a phase that trains the whole backbone after an earlier one did"),
)


def _with_settings(phase: Phase, phases: tuple[Phase, ...], place: int, config: RunConfig, exits: int) -> Phase:
    numbers = phase.exit_numbers(exits)
    labelled = len(numbers) > 1 and phase.keeps == "none"
    own: dict[str, Any] = {}
    if place and config.lr_scale != 1:
        own["lr"] = config.lr * config.lr_scale
    later = phase.stages is not None or phase.keeps != "none"  # older phases have "depth-linear" in their identity
    if not labelled and (config.weighting in RELATIVE or later):
        own["weighting"] = "equal"
    elif config.weighting == "custom":
        own["weights"] = tuple(config.weights[number - 1] for number in numbers)
        if not any(own["weights"]):
            raise EestudyError(
                f"weights: {list(config.weights)} gives none to the exits of phase {phase.name}, {numbers}"
            )
    if len(numbers) > 1 and "backbone" in phase.trains:
        own["gradient_scaling"] = config.gradient_scaling
        own["gradient_combination"] = config.gradient_combination
    if config.distillation != "none" and _has_teacher(phase, numbers, config.distillation, exits):
        for name in ("distillation", "distillation_weight", "distillation_temperature"):
            own[name] = getattr(config, name)
    if phase.keeps != "none" and place:
        own["stability"] = STABILITY[phase.keeps] if config.stability is None else config.stability
        if phase.keeps == "lwf":
            own["distillation_temperature"] = config.distillation_temperature
    elif phase.keeps != "none":
        own["keeps"] = "none"  # nothing is there yet
    if config.batchnorm == "reestimate" and "backbone" in phase.trains:
        own["batchnorm"] = "reestimate"
    if config.batchnorm == "freeze" and phase.whole_backbone and any(p.whole_backbone for p in phases[:place]):
        own["batchnorm"] = "freeze"
    return dataclasses.replace(phase, **own)


def _has_teacher(phase: Phase, numbers: list[int], teacher: str, exits: int) -> bool:
    if phase.keeps != "none":
        return False
    # Where heads alone train, the frozen backbone's own classifier can teach them.
    frozen = phase.exits == "internal" and "backbone" not in phase.trains
    return frozen or (len(numbers) > 1 and (teacher != "last" or numbers[-1] == exits))


def _check_alone(config: RunConfig, exits: int) -> None:
    """Settings that have no effect without another one, and weights that do not fit the exits."""
    if config.weighting == "custom" and len(config.weights) != exits:
        raise EestudyError(
            f"weights: {list(config.weights)} are {len(config.weights)}, but the network has {exits} exits"
        )
    if config.weights and config.weighting != "custom":
        raise EestudyError(
            f"weights: {list(config.weights)} have no effect with weighting {config.weighting}; set it to custom"
        )
    defaults = {name: field.default for name, field in RunConfig.model_fields.items()}
    for field, strategies in (("distillation_weight", ()), ("distillation_temperature", ("sequential-lwf",))):
        given = getattr(config, field)
        if given != defaults[field] and config.distillation == "none" and config.strategy not in strategies:
            raise EestudyError(f"{field}: {given:g} has no effect without distillation; set it to last, later or next")


def _named(config: RunConfig) -> str:
    split = f" at phase_split {config.phase_split:g}" if config.phase_split in (0, 1) else ""
    return f"{config.strategy}{split}"
