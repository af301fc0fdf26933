"""Early-exit methods by name: the heads, the loss and the exit rule that a paper puts together.

Methods know training and evaluation; neither knows them. A plan asks a run's method what it makes of the run's
settings, its network and its training, and hands it down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from eestudy.config import OF_THE_MODEL, EestudyError, RunConfig
from eestudy.methods.method import Argument, Method
from eestudy.models import MultiExit
from eestudy.registry import METHODS
from eestudy.training.loop import Hooks
from eestudy.training.phases import Phase

__all__ = ["Argument", "Method", "MethodOfRun"]


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
        why = self.method.refuse(self.config, network) if self.method.refuse else None
        if why:
            raise EestudyError(f"method: {self.config.method} {why}")
        if self.method.change:
            self.method.change(network, self.config, self.args, phases)

    def hooks(self, phase: Phase) -> Hooks | None:
        """What the phase trains with; None: as all do."""
        return self.method.hooks(self.args) if self.method.hooks and phase.settings.method else None

    def more_flops(self, network: MultiExit, phase: Phase) -> float:
        """Training FLOPs of one sample in `phase` beyond those of its exits' losses."""
        return self.method.flops(network, phase, self.args) if self.method.flops and phase.settings.method else 0.0
