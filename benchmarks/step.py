"""Speed and peak memory of a joint training step: the package's beside the one that is written without thinking.

python benchmarks/step.py [MODEL ...] [--only time|memory] -> step.json
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # compiling takes what it takes the first time

import torch
import torch.nn.functional as F
from timing import hardware, interleaved, matrix_rates, save
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from eestudy.models import MultiExit, build_backbone
from eestudy.training.batches import in_layout
from eestudy.training.cost import step_flops
from eestudy.training.eager_step import EagerStep, build_optimizer
from eestudy.training.execution import Execution, fast_bfloat16
from eestudy.training.objective import Objective
from eestudy.training.phase_network import PhaseNetwork, phase_exits, set_trainable
from eestudy.training.phases import Phase
from eestudy.training.resume import State
from eestudy.training.strategies import backbone_phase, together_phase

BATCH = 128
# name -> (architecture, input shape, classes, architecture_args)
MODELS: dict[str, tuple[str, tuple[int, ...], int, dict[str, object]]] = {
    "resnet20, 28x28": ("resnet20", (1, 28, 28), 10, {}),
    "resnet34, 32x32": ("resnet34", (3, 32, 32), 100, {}),
    "msdnet, 32x32": ("msdnet", (3, 32, 32), 100, {}),
    "ViT of width 192, 32x32": ("vit-tiny", (3, 32, 32), 100, {}),
    "ViT of width 96, 28x28": ("vit-tiny", (1, 28, 28), 10, {"width": 96, "depth": 8}),
}
Step = Callable[[], object]


def network(name: str) -> MultiExit:
    architecture, shape, classes, args = MODELS[name]
    torch.manual_seed(0)
    return MultiExit(build_backbone(architecture, shape, classes, **args))


def batch(name: str) -> tuple[Tensor, Tensor]:
    _, shape, classes, _ = MODELS[name]
    return torch.randn(BATCH, *shape), torch.randint(0, classes, (BATCH,))


def plain(name: str, layout: torch.memory_format = torch.contiguous_format) -> Step:
    """float32, NCHW, a loss an exit, an optimizer that goes through the weights one by one."""
    model, (x, y) = network(name).to(memory_format=layout), batch(name)
    x = x.contiguous(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False, fused=False)

    def step() -> None:
        logits = model(x)
        loss = sum(F.cross_entropy(each, y) for each in logits) / len(logits)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)
        optimizer.step()

    return step


def package(name: str, phase: Phase | None = None, precision: str = "float32", compile: bool = False) -> Step:
    """The training loop's own step, on the same batch each time."""
    model, (x, y) = network(name).to(memory_format=torch.channels_last), batch(name)
    x = in_layout(x, model.memory_format)
    phase = (phase or together_phase(1.0)).having(lr=1e-3, precision=precision)
    return engine_step(model, phase, lambda: (x, y), "always" if compile else "never")


def engine_step(model: MultiExit, phase: Phase, feed: Callable[[], Any], compile: str = "never") -> Step:
    """The training loop's step as a function of nothing. feed: gives a batch (inputs, targets)."""
    execution = Execution(torch.device("cpu"), compile=compile)
    exits = len(phase_exits(model, phase))
    state = State(model, phase, build_optimizer(set_trainable(model, phase), phase), torch.zeros(2, exits))
    joined = execution.prepared(PhaseNetwork(model, phase), 0)
    objective, bad = Objective(model, phase, None, (), execution), torch.full((), torch.inf)
    step = EagerStep(joined, state, objective, bad, execution)
    return lambda: step.step(*feed(), 0.1)


VARIANTS: dict[str, Callable[[str], Step]] = {
    "plain": plain,
    "plain, channels-last": lambda name: plain(name, torch.channels_last),
    "float32": package,
    "bfloat16": lambda name: package(name, precision="bfloat16"),
    "compiled": lambda name: package(name, compile=True),
    "last exit alone": lambda name: package(name, backbone_phase(1.0)),
}


def variants(name: str) -> list[str]:
    """Emulated, a bfloat16 step of a large network takes a quarter of an hour: there the smallest one has to do."""
    emulated = not fast_bfloat16() and name != next(iter(MODELS))
    return [variant for variant in VARIANTS if not (emulated and variant == "bfloat16")]


def times(name: str) -> dict[str, Any]:
    """Samples a second of each variant, as a share of the machine's matrix products too, and what compiling costs."""
    rates = matrix_rates()
    flops = step_flops(network(name), together_phase(1.0))
    steps = {variant: VARIANTS[variant](name) for variant in variants(name)}
    began = time.perf_counter()
    for _ in range(2):  # the second step is fast only if the first compiled all there is
        steps["compiled"]()
    warmup = time.perf_counter() - began
    took = interleaved(steps, blocks=5)
    found = {}
    for variant, seconds in took.items():
        per_second = {
            key: BATCH / seconds[other] for key, other in (("median", "median"), ("low", "most"), ("high", "least"))
        }
        found[variant] = {
            "samples_per_second": per_second,
            "ratio": took["plain"]["median"] / seconds["median"],
            "blocks": seconds["blocks"],
            "others": seconds["others"],
        }
        if variant != "last exit alone":  # which has fewer FLOPs
            found[variant]["share_of_float32_rate"] = flops * per_second["median"] / rates["float32"] / 1e9
    saved = took["float32"]["median"] - took["compiled"]["median"]
    found["compiled"]["warmup_seconds"] = warmup
    found["compiled"]["steps_to_earn_it_back"] = round(warmup / saved) if saved > 0 else None
    return {"batch": BATCH, "exits": network(name).num_exits, "flops_a_sample": flops, "rates": rates,
            "variants": found, "operations": operations(steps["float32"])}  # fmt: skip


def operations(step: Step) -> dict[str, float]:
    """Share of a step's time by kind of operation, the largest six."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profiled.key_averages()}
    largest = sorted(spent, key=lambda key: -spent[key])[:6]
    return {key: spent[key] / sum(spent.values()) for key in largest}


def peak(name: str, variant: str) -> float:
    """MiB that two steps add to a process with torch and the network in it. To be asked of a new process."""
    step = VARIANTS[variant](name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(), step()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def peaks(name: str) -> dict[str, float]:
    """`peak` of each variant; not of the compiled one, whose process holds a compiler too."""
    found = {}
    for variant in variants(name):
        if variant == "compiled":
            continue
        command = [sys.executable, __file__, name, "--only", "peak", "--variant", variant]
        found[variant] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--only", choices=("time", "memory", "peak"))
    parser.add_argument("--variant", choices=VARIANTS)
    given = parser.parse_args()
    for name in given.models or MODELS:
        if given.only == "peak":
            print(peak(name, given.variant))
            continue
        if given.only != "memory":
            save("step", {name: {"hardware": hardware(), **times(name)}})
        if given.only != "time":
            save("memory", {name: peaks(name)})
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
