"""Early exits on the clock: what leaving early saves in time, beside what it saves in FLOPs.

The measure of all times is the plain backbone, the same stages and classifier without heads, on the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.models import MultiExit, check_network, exit_costs
from eestudy.models import times as parts
from eestudy.models.multi_exit import Rule

COLUMNS = [
    "batch_size", "calls", "median_ms", "p95_ms", "samples_per_s",
    "plain_median_ms", "plain_p95_ms", "speedup", "flops_speedup",
]  # fmt: skip
now: Callable[[], float] = time.perf_counter  # seconds; a test gives one that does not depend on the machine
PLAIN = ""  # the name of the plain backbone among the rules
LEAST = 2  # passes over the data, however long they take


def latency(
    model: MultiExit,
    rule: Rule,
    x: Tensor,
    batch_sizes: Sequence[int] = (1, 32, 256),
    repeats: int = 7,
    seconds: float = 60.0,
) -> pd.DataFrame:
    """How long `model.predict(x, rule)` takes beside the plain backbone: one row a batch size (COLUMNS).

    x (N, ...) is cut into whole batches, on the model's device. Each pass runs every batch through the backbone and
    through `predict` in turn. After one pass to warm up there are `repeats`, or fewer, but two, where a batch size has
    taken `seconds`.
    median_ms, p95_ms: of one batch, over all calls. speedup: time of the backbone over time of `predict`, each the sum
    over batches of the median over passes. flops_speedup: FLOPs of the backbone over the mean cost of the exits taken.
    Raises EestudyError for a batch size that is not a whole number from 1 to N, and for a model in training mode.
    """
    rows = []
    for size in batch_sizes:
        times = timed(model, {"rule": rule}, x, size, repeats, seconds)
        rows.append({"batch_size": size, **compared(times["rule"], times[PLAIN], exit_costs(model).backbone)})
    return pd.DataFrame(rows, columns=COLUMNS)


@dataclass(frozen=True)
class Times:
    """milliseconds (passes, batches) of calls on batches of `size`.

    flops: mean of a sample by the exits taken; taken (K,): the share that left at each, none for the plain backbone.
    """

    size: int
    milliseconds: np.ndarray
    flops: float
    taken: np.ndarray

    @property
    def whole(self) -> float:
        """Milliseconds of all batches once: the sum of each one's median."""
        return float(np.median(self.milliseconds, axis=0).sum())


def compared(times: Times, plain: Times, backbone_flops: float) -> dict[str, Any]:
    """A row of `latency`, without the batch size."""
    median, p95 = np.quantile(times.milliseconds, (0.5, 0.95))
    plain_median, plain_p95 = np.quantile(plain.milliseconds, (0.5, 0.95))
    return {
        "calls": times.milliseconds.size,
        "median_ms": float(median),
        "p95_ms": float(p95),
        "samples_per_s": 1000 * times.size * times.milliseconds.shape[1] / times.whole,
        "plain_median_ms": float(plain_median),
        "plain_p95_ms": float(plain_p95),
        "speedup": plain.whole / times.whole,
        "flops_speedup": backbone_flops / times.flops,
    }


@torch.no_grad()
def timed(
    model: MultiExit, rules: Mapping[str, Rule], x: Tensor, size: int, repeats: int = 7, seconds: float = 60.0
) -> dict[str, Times]:
    """Times of each rule and of the plain backbone (PLAIN), batch by batch in turn: what disturbs one disturbs all."""
    check_network(model)
    batches = cut(model, x, size)
    costs = exit_costs(model)
    calls: dict[str, Callable[[Tensor], Any]] = {PLAIN: model.backbone}
    for name, rule in rules.items():
        calls[name] = partial(model.predict, rule=rule)
    spent: dict[str, list[list[float]]] = {name: [] for name in calls}
    taken: dict[str, list[Tensor]] = {name: [] for name in rules}
    for batch in batches:
        for name, call in calls.items():
            gives = call(batch)
            if name != PLAIN:
                taken[name].append(gives[1].cpu())
    began = now()
    for number in range(max(repeats, LEAST)):
        if number >= LEAST and now() - began > seconds:
            break
        for times in spent.values():
            times.append([])
        for batch in batches:
            for name, call in calls.items():
                spent[name][-1].append(_milliseconds(call, batch))
    result = {PLAIN: Times(size, np.array(spent[PLAIN]), float(costs.backbone), np.empty(0))}
    for name, exits in taken.items():
        shares = np.bincount(torch.cat(exits).numpy() - 1, minlength=model.num_exits) / (size * len(batches))
        result[name] = Times(size, np.array(spent[name]), float(shares @ np.array(costs.flops)), shares)
    return result


def cut(model: MultiExit, x: Tensor, size: int) -> list[Tensor]:
    """x in whole batches of `size`, in the memory format of the model; what is left over is dropped."""
    if model.training:
        raise EestudyError("latency: the model is in training mode; call model.eval() first")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(x):
        raise EestudyError(f"batch_sizes: {size!r} is not valid; x has {len(x)} samples, give whole numbers from 1 on")
    batches = list(x.split(size))[: len(x) // size]
    if x.ndim != 4:
        return batches
    return [batch.contiguous(memory_format=model.memory_format) for batch in batches]


def _milliseconds(call: Callable[[Tensor], Any], batch: Tensor) -> float:
    wait(batch)
    began = now()
    call(batch)
    wait(batch)
    return 1000 * (now() - began)


def wait(batch: Tensor) -> None:
    """Until the device has done what it was told: a GPU answers before it is."""
    parts.wait(batch.device)
