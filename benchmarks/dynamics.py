"""Seconds and peak memory of every metric of the training dynamics: one measurement of a network on one core.

    python benchmarks/dynamics.py -> dynamics.json

With the settings of `eestudy dynamics` (eestudy/probing.py), each in a process of its own, on networks trained for one
epoch. Memory: MiB that the measurement adds to a process with torch, the data and the networks in it.
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
from eestudy.probing import METRICS

NETWORKS = {
    "resnet20 on fashion-mnist": {"architecture": "resnet20", "dataset": "fashion-mnist", "train_size": 2000},
    "vit1d on mnist1d": {"architecture": "vit1d", "dataset": "mnist1d"},
}
STRATEGIES = ("joint", "mixed", "disjoint")  # the networks of a metric that takes several


def config(network: str, strategy: str) -> eestudy.RunConfig:
    return eestudy.RunConfig(**NETWORKS[network], strategy=strategy, epochs=2, checkpoints=(100,))


def networks_of(metric: str) -> int:
    """How many networks a measurement takes."""
    runs = [config("vit1d on mnist1d", strategy) for strategy in STRATEGIES]
    return len(next(iter(METRICS[metric].points(runs)))[0])


def one(network: str, metric: str, store: str) -> dict[str, float]:
    """Of a new process."""
    torch.set_num_threads(1)
    runs = [eestudy.run(config(network, strategy), store=store) for strategy in STRATEGIES[: networks_of(metric)]]
    models, data = [run.model() for run in runs], runs[0].data()
    models[0](data.train.x[:1].float())  # what torch itself needs once
    before, began = memory("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, which a new process has from its parent
    METRICS[metric].measure(models, data, **METRICS[metric].settings)
    return {"seconds": time.perf_counter() - began, "MiB": memory("VmHWM") - before}


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most. Linux alone tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "METRIC", "STORE"), help="print one measurement")
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
                command = [sys.executable, __file__, "--one", name, metric, folder]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[metric] = json.loads(answer.splitlines()[-1])
                print(name, metric, found[metric], flush=True)
            save("dynamics", {name: {"hardware": hardware(), "metrics": found}})


if __name__ == "__main__":
    main()
