"""Backbones by name, and MultiExit, which gives them exits."""

from __future__ import annotations

import inspect

from eestudy.config import EestudyError, check_name, nearest
from eestudy.models.backbone import Backbone
from eestudy.models.cost import ExitCosts, exit_costs
from eestudy.models.heads import HEADS
from eestudy.models.multi_exit import MultiExit
from eestudy.registry import ARCHITECTURES

__all__ = ["HEADS", "Backbone", "ExitCosts", "MultiExit", "build_backbone", "exit_costs"]


def build_backbone(name: str, input_shape: tuple[int, ...], num_classes: int, **architecture_args: object) -> Backbone:
    """The backbone `name` for inputs (B, *input_shape) and `num_classes` classes.

    Raises EestudyError for an unknown name or argument, an argument that is not a whole number above 0, or an input
    the backbone cannot take.
    """
    build = ARCHITECTURES[check_name("architecture", name, ARCHITECTURES)]
    known = list(inspect.signature(build).parameters)[2:]
    for key, value in architecture_args.items():
        if key not in known:
            raise EestudyError(f"architecture_args: unknown key {key!r} for {name}; {nearest(key, known)}")
        wanted = inspect.signature(build).parameters[key].annotation
        if wanted in ("str", str):  # the builder knows which names are valid
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EestudyError(f"architecture_args: {key}: {value!r} is not valid; it must be a whole number above 0")
    fitting = [other for other, entry in ARCHITECTURES.entries.items() if entry.inputs in (None, len(input_shape))]
    if name not in fitting:
        raise EestudyError(
            f"architecture: {name} does not take inputs of shape {tuple(input_shape)}; valid: {', '.join(fitting)}"
        )
    return build(tuple(input_shape), num_classes, **architecture_args)
