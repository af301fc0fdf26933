"""Processor seconds of a training step with and without the compiled whole step, by network and phase.

python benchmarks/seeds.py [CELL ...] -> seeds.json
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from statistics import median
from typing import Any

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # compiling takes what it takes the first time
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # in this process, where its time is seen

import torch
from timing import hardware, save

from eestudy.config import RunConfig
from eestudy.plan import prepare
from eestudy.training.batches import training_batches
from eestudy.training.eager_step import EagerStep, Step, build_optimizer
from eestudy.training.execution import Execution
from eestudy.training.objective import Objective
from eestudy.training.phase_network import PhaseNetwork, phase_exits, set_trainable
from eestudy.training.resume import State
from eestudy.training.whole_step import WholeStep, fits

BLOCKS, SECONDS = 9, 1.5  # in turn; processor seconds of each, about
MNIST1D: dict[str, Any] = {"dataset": "mnist1d"}
# name -> settings
CELLS: dict[str, dict[str, Any]] = {
    "mlp": {"architecture": "mlp", **MNIST1D},  # all 4,000, a tenth of them held out
    "vit1d": {"architecture": "vit1d", **MNIST1D, "train_size": 2000},
    "resnet1d": {"architecture": "resnet1d", **MNIST1D, "train_size": 1500},
    "resnet-tiny": {
        "architecture": "resnet-tiny", "architecture_args": {"width": 8}, "dataset": "fashion-mnist",
        "train_size": 10_000,
    },
}  # fmt: skip
PHASES = {"together": ("joint", 0), "backbone": ("disjoint", 0), "heads": ("disjoint", 1)}


class Steps:
    """Trains a phase's first epoch over and over, its batches included."""

    def __init__(self, kind: type[Step], settings: dict[str, Any], phase: str) -> None:
        strategy, place = PHASES[phase]
        made = prepare(RunConfig(**settings, strategy=strategy, epochs=2))
        model, phase_of = made.model, made.phases[place]
        how = Execution(torch.device("cpu"), compile="step")
        assert fits(model, phase_of, made.data, how)
        optimizer = build_optimizer(set_trainable(model, phase_of), phase_of)
        state = State(model, phase_of, optimizer, torch.zeros(2, len(phase_exits(model, phase_of))))
        objective, bad = Objective(model, phase_of, None, (), how), torch.full((), torch.inf)
        self.batches = training_batches(model, phase_of, made.data, (0,), how)
        self.step = kind(PhaseNetwork(model, phase_of), state, objective, bad, how)
        self.feed = self.batches.epoch(0)

    def __call__(self) -> None:
        batch = next(self.feed, None)
        if batch is None:
            self.feed = self.batches.epoch(0)
            batch = next(self.feed)
        self.step.step(*batch, 0.1)
        self.step.state.progress.step += 1


def spent() -> float:
    """Processor seconds of this process and of the compilers it waited for."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def measured(settings: dict[str, Any], phase: str) -> dict[str, float]:
    """Milliseconds of the processor a step, eager and whole, in turn; the ratio is the median of the blocks'."""
    steps = {"eager": Steps(EagerStep, settings, phase), "whole": Steps(WholeStep, settings, phase)}
    steps["eager"]()
    began, clock = spent(), time.perf_counter()
    steps["whole"]()
    compiling, waited = spent() - began, time.perf_counter() - clock
    found: dict[str, list[float]] = {"eager": [], "whole": []}
    calls = 5
    for block in range(BLOCKS + 1):
        for name, step in steps.items():
            began = spent()
            for _ in range(calls):
                step()
            found[name].append((spent() - began) / calls)
        if block == 0:  # to warm up, and to know how many make a block
            calls = max(5, round(SECONDS / found["eager"].pop()))
            found["whole"].clear()
    ratios = [eager / whole for eager, whole in zip(found["eager"], found["whole"], strict=True)]
    return {
        **{f"{name} ms": 1000 * median(each) for name, each in found.items()},
        "ratio": median(ratios), "least": min(ratios), "most": max(ratios), "compiling s": compiling,
        "compiling s on the clock": waited,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(CELLS))
    torch.set_num_threads(1)
    for name in parser.parse_args().cells or CELLS:
        found = {phase: measured(CELLS[name], phase) for phase in PHASES}
        save("seeds", {name: {"hardware": hardware(), "batch": RunConfig.model_fields["batch_size"].default, **found}})
        print(name, *(f"{phase} {each['ratio']:.2f}" for phase, each in found.items()), flush=True)


if __name__ == "__main__":
    main()
