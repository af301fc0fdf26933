"""Which of a run's settings take effect in which of its phases, and a refusal of those that would in none.

A setting is given to the phases in which it does something; the others are the same as without it, and shared with
runs that lack it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from eestudy.config import EestudyError, RunConfig
from eestudy.training.phases import Phase, Settings

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
    made = tuple(
        dataclasses.replace(
            phase,
            keeps=phase.keeps if place else "none",  # before the first phase there is nothing to keep
            settings=settings_of(phase, phases[:place], config, exits, method),
        )
        for place, phase in enumerate(phases)
    )
    for field, plain, why in _NEEDS:
        given = getattr(config, field)
        if (
            given != plain
            and field not in implied
            and not any(getattr(phase.settings, field) == given for phase in made)
        ):
            raise EestudyError(f"{field}: {given} needs {why}, and {_named(config)} has none")
    if config.lr_scale != 1 and len(made) == 1:
        raise EestudyError(
            f"lr_scale: {config.lr_scale:g} is for phases after the first, and {_named(config)} has none"
        )
    if config.stability is not None and not any(phase.keeps != "none" for phase in made):
        raise EestudyError(f"stability: {config.stability:g} has no effect in {config.strategy}; it is for "
                           "sequential-lwf and sequential-ewc")  # fmt: skip
    return made


# field, its value without effect, what a phase must have for it
_NEEDS: tuple[tuple[str, str, str], ...] = (
    ("weighting", "equal", "a phase in which the labels teach several exits at once"),
    ("gradient_scaling", "none", "a phase in which several exits train the backbone together"),
    ("gradient_combination", "sum", "a phase in which several exits train the backbone together"),
    ("distillation", "none", "a phase in which an exit is taught by labels beside the deeper exit it learns from"),
    ("batchnorm", "train", "a phase that trains the whole backbone after an earlier one did"),
)


def settings_of(phase: Phase, before: tuple[Phase, ...], config: RunConfig, exits: int, method: str = "") -> Settings:
    """The run's settings that do something in `phase`, which follows the phases `before`; epochs are for `resolve`."""
    plain = Settings()
    numbers = phase.exit_numbers(exits)
    later, keeps = bool(before), phase.keeps if before else "none"
    labelled = len(numbers) > 1 and phase.keeps == "none"
    merging = len(numbers) > 1 and "backbone" in phase.trains  # exits meet in the backbone
    taught = config.distillation != "none" and _has_teacher(phase, numbers, config.distillation, exits)
    softened = taught or keeps == "lwf"
    weights: tuple[float, ...] = ()
    if labelled and config.weighting == "custom":
        weights = tuple(config.weights[number - 1] for number in numbers)
        if not any(weights):
            raise EestudyError(
                f"weights: {list(config.weights)} gives none to the exits of phase {phase.name}, {numbers}"
            )
    return Settings(
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        lr=config.lr * config.lr_scale if later else config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum if config.optimizer == "sgd" else plain.momentum,
        schedule=config.schedule,
        warmup=config.warmup if config.schedule != "one-cycle" else plain.warmup,
        clip=config.clip,
        augmentation=config.augmentation,
        augmentation_args=config.augmentation_args,
        precision=config.precision,
        checkpoints=config.checkpoints,
        weighting=config.weighting if labelled else plain.weighting,
        weights=weights,
        gradient_scaling=config.gradient_scaling if merging else plain.gradient_scaling,
        gradient_combination=config.gradient_combination if merging else plain.gradient_combination,
        distillation=config.distillation if taught else plain.distillation,
        distillation_weight=config.distillation_weight if taught else plain.distillation_weight,
        distillation_temperature=config.distillation_temperature if softened else plain.distillation_temperature,
        stability=_stability(keeps, config),
        batchnorm=_batchnorm(phase, before, config),
        method=method if phase.uses_heads else plain.method,
    )


def _stability(keeps: str, config: RunConfig) -> float:
    if keeps == "none":
        return Settings.stability
    return STABILITY[keeps] if config.stability is None else config.stability


def _batchnorm(phase: Phase, before: tuple[Phase, ...], config: RunConfig) -> str:
    if config.batchnorm == "freeze":  # as an earlier phase left them
        has_use = phase.whole_backbone and any(each.whole_backbone for each in before)
    else:
        has_use = "backbone" in phase.trains
    return config.batchnorm if has_use else Settings.batchnorm


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
