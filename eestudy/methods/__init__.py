"""Early-exit methods by name: the heads, the loss and the exit rule that a paper puts together.

Methods know training and evaluation; neither knows them. `study` asks here what a run's method makes of its settings,
its network and its training, and hands it down.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from eestudy.config import OF_THE_MODEL, EestudyError, RunConfig
from eestudy.methods import boosted, branchynet, cgt, gpf, l2w, msdnet, pbee, sdn, ztw
from eestudy.methods.method import Argument, Method
from eestudy.models import MultiExit
from eestudy.training.loop import Hooks
from eestudy.training.phases import Phase

__all__ = [
    "METHODS", "Argument", "Method", "change", "hooks_of", "implied_by", "more_flops", "training_identity",
    "with_method_settings",
]  # fmt: skip

METHODS: dict[str, Method] = {
    "sdn": sdn.METHOD,
    "branchynet": branchynet.METHOD,
    "pbee": pbee.METHOD,
    "gpf": gpf.METHOD,
    "ztw": ztw.METHOD,
    "l2w": l2w.METHOD,
    "msdnet": msdnet.METHOD,
    "boosted": boosted.METHOD,
    "cgt": cgt.METHOD,
}


def implied_by(config: RunConfig) -> set[str]:
    """The fields that the method sets: those it has a value for and the run has the default of."""
    return {name for name in METHODS[config.method].settings if _left(config, name)}


def with_method_settings(config: RunConfig, kind: str) -> RunConfig:
    """The config with what its method sets; a model of one's own keeps its heads. kind: of the backbone's features."""
    method = METHODS[config.method]
    changes = {name: method.settings[name] for name in implied_by(config)}
    if method.head and _left(config, "head"):
        changes["head"] = method.head(kind)
    if config.architecture == "own":
        changes = {name: value for name, value in changes.items() if name not in OF_THE_MODEL}
    return config.replace(**changes) if changes else config


def _left(config: RunConfig, name: str) -> bool:
    return bool(getattr(config, name) == RunConfig.model_fields[name].default)


def training_identity(config: RunConfig) -> str:
    """The method and its settings, as part of its phases' identity; empty if its training is a plain weighted loss."""
    method = METHODS[config.method]
    args = method.args(config)
    if not (method.change or method.hooks):
        return ""
    own = {name: value for name, value in args.items() if value != method.arguments[name].default}
    return f"{config.method} {json.dumps(own, sort_keys=True)}" if own else config.method


def change(network: MultiExit, config: RunConfig, phases: Sequence[Phase]) -> None:
    """Makes a network of plain heads the method's, in place. EestudyError where that cannot work."""
    method = METHODS[config.method]
    args = method.args(config)
    why = method.refuse(config, network) if method.refuse else None
    if why:
        raise EestudyError(f"method: {config.method} {why}")
    if method.change:
        method.change(network, config, args, phases)


def hooks_of(config: RunConfig) -> Hooks | None:
    """What the method's phases train with."""
    method = METHODS[config.method]
    return method.hooks(method.args(config)) if method.hooks else None


def more_flops(config: RunConfig, network: MultiExit, phase: Phase) -> float:
    """Training FLOPs of one sample in `phase` beyond those of its exits' losses."""
    method = METHODS[config.method]
    return method.flops(network, phase, method.args(config)) if method.flops and phase.settings.method else 0.0
