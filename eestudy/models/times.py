"""Parts of a network on the clock, in turn: what disturbs one repetition disturbs all parts of it.

A FLOP is not a unit of time: early stages have large maps and few channels, where memory, not arithmetic, is what takes
long, so a first exit with a third of the FLOPs may come after more than half of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError, check_name
from eestudy.environment import hardware
from eestudy.models.backbone import Backbone, mode

now: Callable[[], float] = time.perf_counter  # seconds; a test gives one that does not depend on the machine
UNITS = ("flops", "ms")
REPEATS = 30
SECONDS = 20.0  # after these no further repetition begins,
LEAST = 5  # but so many there are
WARM_UP = 2


class Quartiles(NamedTuple):
    """Milliseconds of one sample over the repetitions: the median, and between what the middle half of them lies."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class ExitTimes:
    """Milliseconds of one sample in a batch of `batch_size`, measured part by part; exits counted from 1.

    parts: by name, in the order they run: "copy" (of the input to the device; next to nothing where that is the
    processor), "stage 1", .., "head 1", .., "classifier". A head's time includes the rule's that was asked there, if
    there was one. exit_ends: the stage that each exit follows. hardware: what it was measured on.
    """

    parts: dict[str, Quartiles]
    exit_ends: tuple[int, ...]
    batch_size: int
    hardware: str

    @property
    def copy(self) -> float:
        return self.parts["copy"].median

    @property
    def stages(self) -> tuple[float, ...]:
        return tuple(part.median for name, part in self.parts.items() if name.startswith("stage"))

    @property
    def heads(self) -> tuple[float, ...]:
        return tuple(part.median for name, part in self.parts.items() if name.startswith("head"))

    @property
    def classifier(self) -> float:
        return self.parts["classifier"].median

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
            share = f"{100 * median / self.backbone:.1f} %"
            lines.append(f"{name:<12}{median:>10.4g}{f'{low:.4g} .. {high:.4g}':>22}{share:>8}")
        return "\n".join([*lines, f"backbone {self.backbone:.4g} ms; batch of {self.batch_size}, {self.hardware}"])


@torch.no_grad()
def part_times(
    model: Any, batch_size: int = 1, rule: Callable[[list[Tensor]], Tensor] | None = None, repeats: int = REPEATS,
    seconds: float = SECONDS,
) -> ExitTimes:  # fmt: skip
    """ExitTimes of a `MultiExit` in eval mode, on noise (token ids: zeros), where its weights are; left as it was."""
    backbone, names = model.backbone, ["copy"]
    x, device = example(backbone, batch_size, model.memory_format)
    for exit in range(1, model.num_exits + 1):
        names += [f"stage {stage}" for stage in model.stages_to(exit)]
        names.append(f"head {exit}" if exit < model.num_exits else "classifier")

    def walk() -> Iterator[None]:
        state: Any = x.to(device)
        yield
        previous, history = None, []
        for exit in range(1, model.num_exits + 1):
            for stage in model.stages_to(exit):
                state = backbone.stages[stage - 1](state)
                yield
            logits, previous = model.answer(exit, state, previous)
            history.append(logits)
            if rule is not None and exit < model.num_exits:
                int(rule(history).sum())
            yield

    with mode(model, False):
        found = _quartiles(in_turn(walk, device, repeats, seconds) / batch_size)
    ends = (*model.exit_stages, len(backbone.stages))
    return ExitTimes(dict(zip(names, found, strict=True)), ends, batch_size, measured_on(device))


@torch.no_grad()
def stage_times(backbone: Backbone, repeats: int = REPEATS, seconds: float = SECONDS) -> list[float]:
    """Median milliseconds of each stage for one sample, in eval mode; the classifier comes last."""
    x, device = example(backbone)
    parts = (*backbone.stages, backbone.classifier)
    x = x.to(device)

    def walk() -> Iterator[None]:
        state: Any = x
        for part in parts:
            state = part(state)
            yield

    with mode(backbone, False):
        return [part.median for part in _quartiles(in_turn(walk, device, repeats, seconds))]


def in_turn(walk: Callable[[], Iterator[Any]], device: torch.device, repeats: int, seconds: float) -> np.ndarray:
    """Milliseconds (repeats, parts) between one yield of `walk` and the next, after WARM_UP walks that do not count."""
    found: list[list[float]] = []
    began = now()
    for number in range(WARM_UP + max(repeats, LEAST)):
        if number >= WARM_UP + LEAST and now() - began > seconds:
            break
        found.append([])
        wait(device)
        last = now()
        for _ in walk():
            wait(device)
            at = now()
            found[-1].append(1000 * (at - last))
            last = at
    return np.array(found[WARM_UP:])


def _quartiles(times: np.ndarray) -> list[Quartiles]:
    median, low, high = np.quantile(times, (0.5, 0.25, 0.75), axis=0)
    return [Quartiles(*map(float, part)) for part in zip(median, low, high)]


def example(
    backbone: Backbone, batch_size: int = 1, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, torch.device]:
    """An input (batch_size, *input_shape) in the processor's memory, and the device it has to go to."""
    zeros = backbone.dry_input(batch_size)
    x = zeros.cpu()
    if x.is_floating_point():
        x = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    return (x.contiguous(memory_format=memory_format) if x.ndim == 4 else x), zeros.device


def measured_on(device: torch.device) -> str:
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    return hardware(device.type) + threads


def check_unit(unit: str, units: Sequence[str]) -> str:
    """One of `units`; EestudyError otherwise."""
    if unit == "mJ":
        raise EestudyError(f"unit: 'mJ' needs the machine's own counters of energy; valid: {', '.join(units)}")
    return check_name("unit", unit, units)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told: a GPU answers before it is."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def of_leaving(costs: Any, ends: Sequence[int], kept: Sequence[int]) -> np.ndarray:
    """Cost (len(kept),) of leaving at each of the exits `kept` where no other head is computed; the last is K.

    costs: ExitCosts or ExitTimes of the whole network. ends: the stage that each of its K exits follows.
    """
    answers = (*costs.heads, costs.classifier)
    spent = np.cumsum([answers[exit - 1] for exit in kept])
    return np.array([sum(costs.stages[: ends[exit - 1]]) for exit in kept]) + spent + getattr(costs, "copy", 0)
