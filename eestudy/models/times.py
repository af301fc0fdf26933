"""Parts of a network on the clock, in turn: what disturbs one repetition disturbs all its parts.

FLOPs are no measure of time: early stages, with large maps and few channels, take longer than their FLOPs say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.environment import hardware
from eestudy.models.backbone import device_of, mode

now: Callable[[], float] = time.perf_counter  # seconds; a test gives one that does not depend on the machine
WARM_UP, LEAST = 2, 5  # passes that do not count; that there are, however long they take
SECONDS = 20.0  # after which there are no more


@dataclass(frozen=True)
class ExitTimes:
    """Milliseconds of one sample in a batch of `batch_size`, measured part by part; exits counted from 1.

    parts: name -> (median, lower quartile, upper quartile) over the repetitions, in the order they run: "copy" (of the
    input to the device; nothing where that is the processor), "stage 1", .., "head 1", .., "classifier".
    stages, heads, classifier, copy: the medians. ms: (K,) of leaving at exit k: the copy, the backbone up to there,
    every head up to and including k. backbone: of the plain one, without heads. hardware: what measured it.
    """

    parts: dict[str, tuple[float, ...]]
    exit_ends: tuple[int, ...]
    batch_size: int
    hardware: str

    def _of(self, kind: str) -> tuple[float, ...]:
        return tuple(part[0] for name, part in self.parts.items() if name.split()[0] == kind)

    copy = property(lambda self: self._of("copy")[0])
    stages = property(lambda self: self._of("stage"))
    heads = property(lambda self: self._of("head"))
    classifier = property(lambda self: self._of("classifier")[0])
    backbone = property(lambda self: self.copy + sum(self.stages) + self.classifier)
    ms = property(lambda self: tuple(of_leaving(self, self.exit_ends, range(1, len(self.exit_ends) + 1)).tolist()))

    def __str__(self) -> str:
        lines = [f"{name:<12}{part[0]:>9.4g} ms ({part[1]:.4g} to {part[2]:.4g})" for name, part in self.parts.items()]
        return "\n".join([*lines, f"backbone {self.backbone:.4g} ms; batch of {self.batch_size}, {self.hardware}"])


@torch.no_grad()
def part_times(
    model: nn.Module, parts: Mapping[Any, Callable[[Any], Any]], x: Tensor, repeats: int = 30
) -> dict[Any, tuple[float, ...]]:
    """`ExitTimes.parts` of `repeats` passes, each part given what the one before gave, the first x; in eval mode."""
    found: list[np.ndarray] = []
    began = now()
    with mode(model, False):
        while len(found) < WARM_UP + LEAST or (len(found) < WARM_UP + repeats and now() - began < SECONDS):
            state, ticks = x, [now()]
            for part in parts.values():
                state = part(state)
                wait(device_of(model))
                ticks.append(now())
            found.append(1000 * np.diff(ticks))
    quantiles = np.quantile(found[WARM_UP:], (0.5, 0.25, 0.75), axis=0).T / len(x)
    return {name: tuple(row) for name, row in zip(parts, quantiles.tolist(), strict=True)}


def exit_times(model: Any, batch_size: int, rule: Callable[[list[Tensor]], Tensor] | None, repeats: int) -> ExitTimes:
    """What `MultiExit.costs` measures."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise EestudyError(f"batch_size: {batch_size!r} is not valid; give a whole number from 1 on")
    parts: dict[str, Callable[[Any], Any]] = {"copy": model.inputs}
    history: list[Tensor] = []
    handed: list[Tensor | None] = [None]

    def ask(exit: int, state: Any) -> Any:
        logits, handed[0] = model.answer(exit, state, handed[0] if exit > 1 else None)
        history[exit - 1 :] = [logits]
        if rule is not None and exit < model.num_exits:
            int(rule(history).sum())
        return state

    for exit in range(1, model.num_exits + 1):
        parts |= {f"stage {stage}": model.backbone.stages[stage - 1] for stage in model.stages_to(exit)}
        parts[f"head {exit}" if exit < model.num_exits else "classifier"] = partial(ask, exit)
    x = noise(model.backbone.dry_input(batch_size))
    x = x.contiguous(memory_format=model.memory_format) if x.ndim == 4 else x
    ends = (*model.exit_stages, len(model.backbone.stages))
    return ExitTimes(part_times(model, parts, x, repeats), ends, batch_size, hardware(device_of(model).type))


def noise(x: Tensor) -> Tensor:
    """Of the shape and type of x, in the processor's memory; token ids stay as they are."""
    return (
        torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
        if x.is_floating_point()
        else x.cpu()
    )


def wait(device: torch.device) -> None:
    """Until the device has done what it was told: a GPU answers before it is."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def of_leaving(costs: Any, ends: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """Cost (len(kept),), of ExitCosts or ExitTimes, of leaving at each of the exits `kept` where no other head is run.

    ends: the stage that each of the network's K exits follows.
    """
    answers = (*costs.heads, costs.classifier)
    before = [sum(costs.stages[: ends[exit - 1]]) for exit in kept]
    return np.cumsum([answers[exit - 1] for exit in kept]) + before + getattr(costs, "copy", 0)
