"""Time and memory of `eestudy plan` on a simulated study of 100,000 runs. `python benchmarks/plan.py` writes plan.json.

The study varies what people sweep: architecture, strategy, learning rate, weight decay, epochs and seed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from timing import hardware, save

GRID = {
    "architecture": ["mlp", "vit1d"],
    "dataset": "mnist1d",
    "strategy": ["disjoint", "mixed"],
    "lr_scale": [1, 3, 10],
    "epochs": [20, 40],
    "batch_size": 64,
}
# In one process, so that its peak memory is the command's own.
PROGRAM = """
import resource, sys
from eestudy.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


def study(runs: int, seeds: int = 10) -> dict[str, object]:
    """`runs` runs of 24 combinations; learning rates and weight decays are as many as that takes."""
    settings = -(-runs // (24 * seeds))
    rates = max(1, round(settings**0.5))
    decays = -(-settings // rates)
    grid = GRID | {"lr": [1e-4 * (1 + i) for i in range(rates)], "weight_decay": [1e-4 * i for i in range(decays)]}
    return {"seeds": list(range(seeds)), "grid": [grid]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simulated.yaml"
        path.write_text(yaml.safe_dump(study(runs)))
        began = time.perf_counter()
        command = [sys.executable, "-c", PROGRAM, "plan", str(path), "--store", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - began
    lines = done.stdout.splitlines()
    found = {"runs": len(lines) - 2, "seconds": seconds, "peak MiB": int(done.stderr.split()[-1]) / 1024}
    print(found, lines[-1])
    save("plan", {"machine": hardware(), "command": "eestudy plan", **found})


if __name__ == "__main__":
    main()
