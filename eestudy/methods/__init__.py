"""Early-exit methods by name: the heads, the loss and the exit rule that a paper puts together.

Methods know training and evaluation; neither knows them. A plan asks a run's method what it makes of the run's
settings, its network and its training, and hands it down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eestudy.config import OF_THE_MODEL, EestudyError, RunConfig, check_name, nearest
from eestudy.models import MultiExit
from eestudy.registry import METHODS
from eestudy.training.loop import Hooks
from eestudy.training.phases import Phase

Args = Mapping[str, Any]


@dataclass(frozen=True)
class Argument:
    """A setting of a method: a number in [low, high], whole if the default is, or one of `choices`."""

    default: float | int | str
    low: float = 0.0
    high: float = float("inf")
    choices: tuple[str, ...] = ()

    def checked(self, name: str, value: object) -> Any:
        """`value`; EestudyError if it is none of this setting's."""
        if self.choices:
            return check_name(f"method_args: {name}", value, self.choices)
        whole = isinstance(self.default, int)
        number = isinstance(value, int) or (isinstance(value, float) and (not whole or value == int(value)))
        if not number or not self.low <= float(str(value)) <= self.high or float(str(value)) == float("inf"):
            kind = "a whole number" if whole else "a number"
            most = "" if self.high == float("inf") else f" and at most {self.high:g}"
            raise EestudyError(
                f"method_args: {name}: {value!r} is not valid; it must be {kind}, at least {self.low:g}{most}"
            )
        return int(float(str(value))) if whole else value


@dataclass(frozen=True)
class Method:
    """What a method adds to a backbone and a strategy.

    exit_rule: the rule its budgets are reported with.
    settings: RunConfig fields it sets where the run has their defaults (another value of the user's stays). head: the
    same for the field `head`, by the kind of the backbone's features.
    arguments: its own settings, `RunConfig.method_args`.
    change: (network, config, args, phases) makes the network the method's, in place; heads start the same by seed.
    hooks: what its phases train with. flops: (network, phase) of a step and sample, beyond what `step_flops` counts.
    refuse: (config, network) -> why they cannot go together, or nothing.
    """

    title: str
    exit_rule: str = "max-probability"
    settings: Mapping[str, Any] = field(default_factory=dict)
    head: Callable[[str], str] | None = None
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    change: Callable[[MultiExit, RunConfig, Args, Sequence[Phase]], None] | None = None
    hooks: Callable[[Args], Hooks] | None = None
    flops: Callable[[MultiExit, Phase, Args], float] | None = None
    refuse: Callable[[RunConfig, MultiExit], str | None] | None = None

    def args(self, config: RunConfig) -> Args:
        """Its settings in a run, with their defaults. EestudyError for one it does not have or that is out of range."""
        for name in config.method_args:
            if name not in self.arguments:
                hint = nearest(name, self.arguments) if self.arguments else "it takes none"
                raise EestudyError(f"method_args: unknown key {name!r} for {config.method}; {hint}")
        return {
            name: argument.checked(name, config.method_args.get(name, argument.default))
            for name, argument in self.arguments.items()
        }


def classes_only(config: RunConfig, network: MultiExit) -> str | None:
    """A `Method.refuse` for what needs the probabilities of classes."""
    return "needs the probabilities of classes, and a regression has none" if network.num_classes == 1 else None


class MethodOfRun:
    """The method of a run with its settings: looked up once, asked for all that it changes."""

    def __init__(self, config: RunConfig) -> None:
        """EestudyError for a setting that the method does not have or that is out of range."""
        self.config = config
        self.method: Method = METHODS[config.method]
        self.args = self.method.args(config)

    @property
    def implied(self) -> set[str]:
        """The fields that the method sets: those it has a value for and the run has the default of."""
        return {name for name in self.method.settings if self._is_default(name)}

    def settings(self, kind: str) -> RunConfig:
        """The config with what the method sets, but the heads of a model of one's own. kind: of the features."""
        changes = {name: self.method.settings[name] for name in self.implied}
        if self.method.head and self._is_default("head"):
            changes["head"] = self.method.head(kind)
        if self.config.architecture == "own":
            changes = {name: value for name, value in changes.items() if name not in OF_THE_MODEL}
        return self.config.replace(**changes) if changes else self.config

    def _is_default(self, name: str) -> bool:
        return bool(getattr(self.config, name) == RunConfig.model_fields[name].default)

    @property
    def identity(self) -> str:
        """What it is in the ids of its phases: name and settings; empty if its training is a plain weighted loss."""
        if not (self.method.change or self.method.hooks):
            return ""
        own = {name: value for name, value in self.args.items() if value != self.method.arguments[name].default}
        return f"{self.config.method} {json.dumps(own, sort_keys=True)}" if own else self.config.method

    def change(self, network: MultiExit, phases: Sequence[Phase]) -> None:
        """Makes a network of plain heads the method's, in place. EestudyError where that cannot work."""
        self.check(network)
        if self.method.change:
            self.method.change(network, self.config, self.args, phases)

    def check(self, network: MultiExit) -> None:
        """EestudyError where the run's settings and the method cannot go together."""
        why = self.method.refuse(self.config, network) if self.method.refuse else None
        if why:
            raise EestudyError(f"method: {self.config.method} {why}")

    def hooks(self, phase: Phase) -> Hooks | None:
        """What the phase trains with; None: as all do."""
        return self.method.hooks(self.args) if self.method.hooks and phase.settings.method else None

    def more_flops(self, network: MultiExit, phase: Phase) -> float:
        """Training FLOPs of one sample in `phase` beyond those of its exits' losses."""
        return self.method.flops(network, phase, self.args) if self.method.flops and phase.settings.method else 0.0
