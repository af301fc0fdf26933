"""Where the time of a batch goes: by stage of the plain backbone, and by part of `MultiExit.predict`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from eestudy.evaluation import clock as clocks
from eestudy.evaluation.clock import cut
from eestudy.models import MultiExit
from eestudy.models.multi_exit import Rule

PARTS = ("stages", "heads", "rule", "rest")


@torch.no_grad()
def stage_times(model: MultiExit, x: Tensor, size: int, repeats: int = 3) -> np.ndarray:
    """Milliseconds that each stage of the plain backbone takes for a batch, the classifier last: (L + 1,) medians."""
    found = []
    for _ in range(repeats + 1):
        for batch in cut(model, x, size):
            state: Any = batch
            times = []
            for part in (*model.backbone.stages, model.backbone.classifier):
                began = clocks.now()
                state = part(state)
                clocks.wait(batch)
                times.append(1000 * (clocks.now() - began))
            found.append(times)
    return np.median(found[len(x) // size :], axis=0)


@torch.no_grad()
def time_parts(model: MultiExit, rule: Rule, x: Tensor, size: int, repeats: int = 3) -> dict[str, float]:
    """Where the time of `predict` goes: milliseconds a batch in PARTS, the rest being what drops who leaves.

    Stages include the classifier. Watching takes some microseconds a part, which count as the rest. Means over
    batches and `repeats` passes.
    """
    batches = cut(model, x, size)
    found: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        for batch in batches:
            with _watched(model) as clock:
                began = clocks.now()
                model.predict(batch, clock.timing(rule))
                clocks.wait(batch)
                whole = 1000 * (clocks.now() - began)
            found.append({**clock.spent, "rest": whole - sum(clock.spent.values())})
    frame = pd.DataFrame(found[len(batches) :], columns=list(PARTS))
    return {part: float(frame[part].mean()) for part in PARTS}


class _Clock:
    """Milliseconds spent in each part by one call of `predict`: from event to event, as hooks and the rule tell them.

    What comes between a stage and the rule is the head.
    """

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS[:-1], 0.0)
        self.began = 0.0

    def starts(self, *_: Any) -> None:
        self.began = clocks.now()

    def ends(self, part: str, given: Any) -> None:
        clocks.wait(given[0] if isinstance(given, (tuple, list)) else given)
        self.spent[part] += 1000 * (clocks.now() - self.began)
        self.began = clocks.now()

    def after_stage(self, module: nn.Module, given: Any, result: Any) -> None:
        self.ends("stages", result)

    def timing(self, rule: Rule) -> Rule:
        """`rule`, which adds what it takes, and the head before it."""

        def timed_rule(history: list[Tensor]) -> Tensor:
            self.ends("heads", history)
            leaves = rule(history)
            self.ends("rule", leaves)
            return leaves

        return timed_rule


@contextmanager
def _watched(model: MultiExit) -> Iterator[_Clock]:
    """A clock told of stages and classifier by hooks, which are taken away again."""
    clock = _Clock()
    handles = []
    try:
        for module in (*model.backbone.stages, model.backbone.classifier):
            handles += [module.register_forward_pre_hook(clock.starts), module.register_forward_hook(clock.after_stage)]
        yield clock
    finally:
        for handle in handles:
            handle.remove()
