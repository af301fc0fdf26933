"""Parts of a network on the clock, in turn: what disturbs one repetition disturbs all its parts.

A FLOP is no unit of time: early stages have large maps and few channels, where memory takes longer than arithmetic, so
a first exit at a third of the FLOPs may come after more than half of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from eestudy.config import EestudyError, check_name
from eestudy.environment import hardware
from eestudy.models.backbone import Backbone, mode

now: Callable[[], float] = time.perf_counter  # seconds; a test gives one that does not depend on the machine
UNITS = ("flops", "ms")
WARM_UP, LEAST = 2, 5  # passes that do not count; that there are, however long they take


class Quartiles(NamedTuple):
    """Milliseconds of one sample over the repetitions: the median, and the ends of the middle half."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class ExitTimes:
    """Milliseconds of one sample in a batch of `batch_size`, measured part by part; exits counted from 1.

    parts: "copy" (of the input to the device; nothing where that is the processor), "stage 1", .., "head 1", ..,
    "classifier", in the order they run. exit_ends: the stage that each exit follows. hardware: what measured it.
    """

    parts: dict[str, Quartiles]
    exit_ends: tuple[int, ...]
    batch_size: int
    hardware: str

    def _of(self, kind: str) -> tuple[float, ...]:
        return tuple(part.median for name, part in self.parts.items() if name.split()[0] == kind)

    copy = property(lambda self: self._of("copy")[0])
    stages = property(lambda self: self._of("stage"))
    heads = property(lambda self: self._of("head"))
    classifier = property(lambda self: self._of("classifier")[0])

    @property
    def ms(self) -> tuple[float, ...]:
        """(K,) of leaving at exit k: the copy, the backbone up to there, every head up to and including k."""
        return tuple(of_leaving(self, self.exit_ends, range(1, len(self.exit_ends) + 1)).tolist())

    @property
    def backbone(self) -> float:
        """Of the plain backbone, without heads: the 100 % of every budget."""
        return self.copy + sum(self.stages) + self.classifier

    def __str__(self) -> str:
        lines = [f"{'part':<12}{'median':>10}{'quartiles, ms':>22}{'share':>8}"]
        for name, (median, low, high) in self.parts.items():
            share = f"{median / self.backbone:.1%}"
            lines.append(f"{name:<12}{median:>10.4g}{f'{low:.4g} .. {high:.4g}':>22}{share:>8}")
        return "\n".join([*lines, f"backbone {self.backbone:.4g} ms; batch of {self.batch_size}, {self.hardware}"])


@torch.no_grad()
def part_times(
    model: nn.Module, parts: Mapping[str, Callable[[Any], Any]], x: Tensor, repeats: int = 30, seconds: float = 20.0
) -> dict[str, Quartiles]:
    """Milliseconds of each part, each given what the one before gave, the first x; model: in eval mode meanwhile.

    After WARM_UP passes through all parts there are `repeats`, or fewer, but LEAST, where `seconds` have passed.
    """
    device = next(chain((weight.device for weight in model.parameters()), repeat(x.device)))
    found: list[list[float]] = []
    began = now()
    with mode(model, False):
        while len(found) < WARM_UP + LEAST or (len(found) < WARM_UP + repeats and now() - began < seconds):
            times, state, last = [], x, now()
            for part in parts.values():
                state = part(state)
                wait(device)
                at = now()
                times.append(1000 * (at - last))
                last = at
            found.append(times)
    quantiles = np.quantile(found[WARM_UP:], (0.5, 0.25, 0.75), axis=0).T / len(x)
    return {name: Quartiles(*row) for name, row in zip(parts, quantiles.tolist(), strict=True)}


def exit_times(model: Any, batch_size: int, rule: Callable[[list[Tensor]], Tensor] | None, repeats: int) -> ExitTimes:
    """What `MultiExit.costs` measures."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise EestudyError(f"batch_size: {batch_size!r} is not valid; give a whole number from 1 on")
    x, device = example(model.backbone, batch_size), model.backbone.dry_input().device
    parts: dict[str, Callable[[Any], Any]] = {"copy": lambda state: state.to(device)}
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
    ends = (*model.exit_stages, len(model.backbone.stages))
    return ExitTimes(part_times(model, parts, x, repeats), ends, batch_size, measured_on(device))


def stage_times(backbone: Backbone) -> list[float]:
    """Median milliseconds of each stage for one sample; the classifier comes last."""
    modules = (*backbone.stages, backbone.classifier)
    x = example(backbone).to(backbone.dry_input().device)
    return [part.median for part in part_times(backbone, dict(zip(map(str, range(len(modules))), modules)), x).values()]


def example(backbone: Backbone, batch_size: int = 1) -> Tensor:
    """Noise of the weights' precision and layout, or zeros for token ids, (batch_size, *input_shape), on the CPU."""
    x = backbone.dry_input(batch_size).cpu()
    if not x.is_floating_point():
        return x
    weights = [weight for weight in backbone.parameters() if weight.is_floating_point()]
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(weights[0].dtype if weights else x.dtype)
    last = x.ndim == 4 and any(weight.ndim == 4 and not weight.is_contiguous() for weight in weights)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def measured_on(device: torch.device) -> str:
    return hardware(device.type) + (f", threads: {torch.get_num_threads()}" if device.type == "cpu" else "")


def wait(device: torch.device) -> None:
    """Until the device has done what it was told: a GPU answers before it is."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def check_unit(unit: str, units: Sequence[str]) -> str:
    """One of `units`; EestudyError otherwise."""
    if unit == "mJ":
        raise EestudyError(f"unit: 'mJ' needs counters of energy, which are not read here; valid: {', '.join(units)}")
    return check_name("unit", unit, units)


def of_leaving(costs: Any, ends: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """Cost (len(kept),) of leaving at each of the exits `kept` where no other head is computed; the last is K.

    costs: ExitCosts or ExitTimes of the whole network. ends: the stage that each of its K exits follows.
    """
    answers = (*costs.heads, costs.classifier)
    before = [sum(costs.stages[: ends[exit - 1]]) for exit in kept]
    return np.cumsum([answers[exit - 1] for exit in kept]) + before + getattr(costs, "copy", 0)
