"""Backbones by name, and MultiExit, which gives them exits."""

from __future__ import annotations

import inspect

from eestudy.config import EestudyError, check_name
from eestudy.models.backbone import Backbone
from eestudy.models.heads import HEADS, check_args
from eestudy.models.multi_exit import ExitCosts, MultiExit, check_network, exit_costs
from eestudy.registry import ARCHITECTURES

__all__ = [
    "HEADS", "Backbone", "ExitCosts", "MultiExit", "build_backbone", "check_network", "exit_costs"
]  # fmt: skip


def build_backbone(name: str, input_shape: tuple[int, ...], num_classes: int, **architecture_args: object) -> Backbone:
    """The backbone `name` for inputs (B, *input_shape) and `num_classes` classes.

    Raises EestudyError for an unknown name or argument, an argument that is not a whole number above 0, or an input
    the backbone cannot take.
    """
    build = ARCHITECTURES[check_name("architecture", name, ARCHITECTURES)]
    check_args("architecture_args", name, list(inspect.signature(build).parameters.values())[2:], architecture_args)
    fitting = [other for other, entry in ARCHITECTURES.entries.items() if entry.inputs in (None, len(input_shape))]
    if name not in fitting:
        raise EestudyError(
            f"architecture: {name} does not take inputs of shape {tuple(input_shape)}; valid: {', '.join(fitting)}"
        )
    backbone: Backbone = build(tuple(input_shape), num_classes, **architecture_args)
    backbone.own = False
    return backbone
