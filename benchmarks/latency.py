"""Early exits on the clock: speed-up over the plain backbone beside the speed-up in FLOPs, by strategy and budget.

python benchmarks/latency.py [NETWORK ...] [--quick] -> latency.json

Reads the runs of params/dynamics.yaml from the store ($EESTUDY_HOME or ./runs), which have to be there. A trained
network leaves by its own thresholds, on test images. The large ones are not trained: at each strategy and budget they
leave as the runs of a trained cell did, each exit's share taken over by the exit nearest to it in FLOPs; the scores
are computed all the same.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import stage_times, time_parts
from timing import _busy, hardware, save
from torch import Tensor

import eestudy
from eestudy import evaluation
from eestudy.evaluation.clock import PLAIN, compared, timed
from eestudy.evaluation.exit_rules import ExitRule, max_probability, per_exit, simulate
from eestudy.models import MultiExit, build_backbone, exit_costs
from eestudy.models.multi_exit import Rule
from eestudy.runs import Run
from eestudy.study import load_study, project_root

STUDY = "dynamics"
RULE = "max-probability"
BUDGETS = (25, 50, 75)  # per cent of the plain backbone's FLOPs
# batch size -> samples of a pass: a call on one takes as long as its exit is deep, so it needs many.
SIZES = {1: 64, 32: 128, 256: 256}
SECONDS = 25.0  # for each network and batch size, all strategies and budgets together; two passes at least
REPEATS = 9
THREADS = 2
PARTS_AT = 50  # the budget at which the time is taken apart


@dataclass(frozen=True)
class Network:
    """What is timed. source: the trained cell it leaves as; its own, if `trained`."""

    architecture: str
    input_shape: tuple[int, ...]
    num_classes: int
    args: dict[str, Any]
    source: tuple[str, str]
    trained: bool = False


NETWORKS = {
    "resnet34, 32x32": Network("resnet34", (3, 32, 32), 100, {}, ("resnet20", "fashion-mnist")),
    "msdnet, 32x32": Network("msdnet", (3, 32, 32), 100, {}, ("resnet20", "fashion-mnist")),
    "ViT of width 192, 32x32": Network("vit-tiny", (3, 32, 32), 100, {}, ("vit1d", "mnist1d")),
    "ViT of width 96, 28x28": Network("vit-tiny", (1, 28, 28), 10, {"width": 96, "depth": 8}, ("vit1d", "mnist1d")),
    "resnet20, 28x28": Network("resnet20", (1, 28, 28), 10, {}, ("resnet20", "fashion-mnist"), trained=True),
}


class Imposed:
    """A rule that asks `real`, then lets each sample leave where it is told; samples come in order, over and over.

    exits (N,): from 1. Every pass has to show all N samples.
    """

    def __init__(self, exits: np.ndarray, real: ExitRule) -> None:
        self.exits, self.real = torch.as_tensor(exits), real
        self.next = 0
        self.inside = self.exits

    def __call__(self, history: list[Tensor]) -> Tensor:
        self.real(history)
        if len(history) == 1:
            size = len(history[0])
            self.inside = self.exits[self.next : self.next + size]
            self.next = (self.next + size) % len(self.exits)
        leaves = self.inside == len(history)
        self.inside = self.inside[~leaves]
        return leaves


def cell_runs(source: tuple[str, str]) -> dict[str, list[Run]]:
    """strategy -> the finished runs of a cell of the study, one a seed."""
    runs: dict[str, list[Run]] = {}
    for config in load_study(project_root() / "params" / f"{STUDY}.yaml").configs:
        if (config.architecture, config.dataset) == source:
            run = Run(config, eestudy.Store())
            if not run.folder.done():
                raise SystemExit(f"{run.folder.path}: not there; make it with: eestudy run params/{STUDY}.yaml")
            runs.setdefault(config.strategy, []).append(run)
    return runs


def fitted(run: Run, budget: int) -> ExitRule | None:
    """The run's own thresholds for a budget, from validation data; None where no thresholds meet it."""
    validation, flops = run.predictions("validation"), budget / 100 * run.backbone_flops
    if flops < run.costs[0]:
        return None
    return per_exit(evaluation.calibrate(*validation, run.costs, flops, RULE), RULE)


def shares(runs: list[Run], budget: int, model: MultiExit) -> np.ndarray | None:
    """The share of test samples (K,) that leaves at each exit of `model`, if it leaves as the runs do."""
    own = np.asarray(exit_costs(model).flops) / exit_costs(model).backbone
    taken = np.zeros(len(own))
    for run in runs:
        rule = fitted(run, budget)
        if rule is None:
            return None
        exits = simulate(run.predictions("test")[0], rule)
        depth = run.costs / run.backbone_flops
        for number, place in enumerate(depth, 1):
            nearest = len(own) - 1 if number == len(depth) else int(np.abs(own[:-1] - place).argmin())
            taken[nearest] += (exits == number).mean() / len(runs)
    return taken


def dealt(taken: np.ndarray, count: int) -> np.ndarray:
    """Exits (count,) from 1 in those shares, as exactly as whole numbers can, in a random order."""
    ends = np.round(np.cumsum(taken) * count).astype(int)
    exits = np.repeat(np.arange(1, len(taken) + 1), np.diff(ends, prepend=0))
    return np.random.default_rng(0).permutation(exits)


Job = tuple[MultiExit, Tensor, dict[tuple[str, int], Rule]]  # a model, its samples, the rule by strategy and budget


def jobs(name: str, runs: dict[str, list[Run]], count: int) -> list[Job]:
    """What is timed on `count` samples. Trained, every strategy is a model of its own beside its own backbone."""
    network = NETWORKS[name]
    if network.trained:
        found: list[Job] = []
        for strategy, (run, *_) in runs.items():
            rules = {(strategy, budget): fitted(run, budget) for budget in BUDGETS}
            x = run.data().test.inputs(slice(count))
            found.append((run.model(), x, {key: rule for key, rule in rules.items() if rule}))
        return found
    model, keys = untrained(network), [(strategy, budget) for strategy in runs for budget in BUDGETS]
    taken = {key: shares(runs[key[0]], key[1], model) for key in keys}
    asked = max_probability(0.5)
    imposed = {key: Imposed(dealt(each, count), asked) for key, each in taken.items() if each is not None}
    return [(model, torch.randn(count, *network.input_shape), dict(imposed))]


def untrained(network: Network) -> MultiExit:
    torch.manual_seed(0)
    backbone = build_backbone(network.architecture, network.input_shape, network.num_classes, **network.args)
    return MultiExit(backbone).to(memory_format=torch.channels_last).eval()


def measure(name: str, quick: bool) -> dict[str, Any]:
    """Every strategy x budget x batch size of one network."""
    network, rows, parts, others = NETWORKS[name], [], [], {}
    runs = cell_runs(network.source)
    for size, count in SIZES.items():
        began, busy, own = time.perf_counter(), _busy(), sum(os.times()[:4])
        work = jobs(name, runs, count)
        for model, x, rules in work:
            found = timed(model, {f"{key}": rule for key, rule in rules.items()}, x, size,
                          2 if quick else REPEATS, SECONDS / len(work))  # fmt: skip
            for key in rules:
                row = compared(found[f"{key}"], found[PLAIN], exit_costs(model).backbone)
                rows.append({"strategy": key[0], "budget": key[1], "batch_size": size, **row,
                             "taken": found[f"{key}"].taken.tolist()})  # fmt: skip
        model, x, rules = work[-1]
        key = next(key for key in rules if key[1] == PARTS_AT)
        spent = time_parts(model, rules[key], x, size, 1 if quick else 2)
        parts.append({"batch_size": size, "strategy": key[0], "budget": key[1], **spent,
                      "stage_ms": stage_times(model, x, size, 1 if quick else 3).tolist()})  # fmt: skip
        took = time.perf_counter() - began
        used = (_busy() - busy - (sum(os.times()[:4]) - own)) / took / (os.cpu_count() or 1)
        others[str(size)] = max(0.0, used)
        print(f"  batch {size}: {took:.0f} s; other programs used {max(0.0, used):.0%} of the cores", flush=True)
    model = untrained(network)
    costs = exit_costs(model)
    return {"exits": model.num_exits, "backbone_flops": costs.backbone, "head_flops": sum(costs.heads),
            "exit_stages": model.exit_stages, "stage_flops": [*costs.stages, costs.classifier],
            "source": ", ".join(network.source), "trained": network.trained, "others": others,
            "rows": rows, "parts": parts}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="two passes each: a look, not a measurement")
    parser.add_argument("--threads", type=int, default=THREADS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    began = time.perf_counter()
    for name in given.networks or NETWORKS:
        print(f"{name} ({time.perf_counter() - began:.0f} s)", flush=True)
        save("latency", {name: {"hardware": hardware(), **measure(name, given.quick)}})
    print(f"done in {time.perf_counter() - began:.0f} s: {Path(__file__).with_name('latency.json')}")


if __name__ == "__main__":
    main()
