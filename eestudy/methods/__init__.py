"""Early-exit methods by name: the heads, the weights of the loss and the exit rule that a paper puts together."""

from __future__ import annotations

from dataclasses import dataclass

from eestudy.methods import sdn

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """What a method adds to a backbone and a strategy. `exit_rule` is the rule its budgets are reported with."""

    title: str
    exit_rule: str


METHODS: dict[str, Method] = {"sdn": Method(sdn.TITLE, sdn.EXIT_RULE)}
