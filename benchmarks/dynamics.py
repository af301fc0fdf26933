"""Seconds and peak memory of every metric of the training dynamics: one measurement of a network on one core.

    python benchmarks/dynamics.py -> dynamics.json

With the settings of `eestudy dynamics` (analysis/metrics.py), each in a process of its own, on networks trained for two
epochs. Memory: MiB that the measurement adds to a process with torch, the data and the networks in it; for GROWN with
GROWTH times the samples too.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from timing import hardware, save

import eestudy
from eestudy.analysis.metrics import METRICS

NETWORKS = {
    "resnet20 on fashion-mnist": {"architecture": "resnet20", "dataset": "fashion-mnist", "train_size": 3000},
    "vit1d on mnist1d": {"architecture": "vit1d", "dataset": "mnist1d"},
}
GROWN, GROWTH = ("dominance", "rank", "information", "similarity"), 4
STRATEGIES = ("joint", "mixed", "disjoint")  # the networks of a metric that takes several


def config(network: str, strategy: str) -> eestudy.RunConfig:
    return eestudy.RunConfig(**NETWORKS[network], strategy=strategy, epochs=2, checkpoints=(100,))


def networks_of(metric: str) -> int:
    """How many networks a measurement takes."""
    runs = [config("vit1d on mnist1d", strategy) for strategy in STRATEGIES]
    return len(next(iter(METRICS[metric].points(runs)))[0])


def one(network: str, metric: str, store: str, times: str) -> dict[str, float | None]:
    """Seconds and MiB, in this process. times: so many of the samples that the metric takes; without them no MiB."""
    torch.set_num_threads(1)
    runs = [eestudy.run(config(network, strategy), store=store) for strategy in STRATEGIES[: networks_of(metric)]]
    models, data = [run.model() for run in runs], runs[0].data()
    models[0](data.train.x[:1].float())  # what torch itself needs once
    before, began = memory("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, which a new process has from its parent
    settings = dict(METRICS[metric].settings)
    settings["samples"] *= int(times)
    METRICS[metric].measure(models, data, **settings)
    seconds, added = time.perf_counter() - began, memory("VmHWM") - before
    enough = settings["samples"] <= len(data.test if metric == "information" else data.train)
    return {"seconds": seconds, "MiB": added if enough else None}


def measured(network: str, metric: str, store: str, times: int) -> dict[str, float | None]:
    """`one` in a new process."""
    command = [sys.executable, __file__, "--one", network, metric, store, str(times)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most. Linux alone tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=4, metavar=("NETWORK", "METRIC", "STORE", "TIMES"), help="print one measurement")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            for strategy in STRATEGIES:
                eestudy.run(config(name, strategy), store=Path(folder))
            found = {}
            for metric in METRICS:
                found[metric] = measured(name, metric, folder, 1)
                if metric in GROWN:
                    found[metric]["MiB, more samples"] = measured(name, metric, folder, GROWTH)["MiB"]
                print(name, metric, found[metric], flush=True)
            save("dynamics", {name: {"hardware": hardware(), "growth": GROWTH, "metrics": found}})


if __name__ == "__main__":
    main()
