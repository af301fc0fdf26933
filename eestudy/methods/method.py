"""What a method is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eestudy.config import EestudyError, RunConfig, check_name, nearest
from eestudy.models import MultiExit
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
