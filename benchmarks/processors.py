"""How far results differ where the bits are not promised: another thread count, another processor's instructions.

    python benchmarks/processors.py -> processors.json

The same runs in processes that are told to use two threads, or fewer of the processor's instructions, which stands in
for an older processor. Everything is compared with one thread and all instructions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from timing import hardware, save

import eestudy

SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {},
    "one thread, once more": {},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "AVX2 kernels of torch off": {"ATEN_CPU_CAPABILITY": "default"},
    "oneDNN with SSE4.1 only": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
}
CELLS = (
    {"architecture": "resnet-tiny", "dataset": "digits", "train_size": 400, "epochs": 15},
    {"architecture": "vit1d", "dataset": "mnist1d", "train_size": 1000, "epochs": 15},
)
SEEDS = (0, 1, 2)


def config(cell: dict, seed: int) -> eestudy.RunConfig:
    return eestudy.RunConfig(**cell, strategy="mixed", seed=seed, batch_size=64, checkpoints=(100,))


def train(store: Path) -> None:
    for cell in CELLS:
        for seed in SEEDS:
            eestudy.run(config(cell, seed), store=store, device="cpu")


def compared(first: Path, other: Path, setting: str) -> list[dict[str, object]]:
    """Of each cell: how far the logits on test are apart, and what that does to predictions and accuracy."""
    rows = []
    for cell in CELLS:
        apart, changed, accuracies = [], [], []
        for seed in SEEDS:
            runs = [eestudy.Run(config(cell, seed), eestudy.Store(store)) for store in (first, other)]
            (a, labels), (b, _) = (run.predictions() for run in runs)
            apart.append(np.abs(a - b).max())
            changed.append((a.argmax(2) != b.argmax(2)).mean())
            accuracies.append((b.argmax(2) == labels).mean(1) - (a.argmax(2) == labels).mean(1))
        shift = np.array(accuracies)  # (seeds, exits)
        rows.append(
            {
                "setting": f"{setting}: {cell['architecture']} on {cell['dataset']}",
                "same_bits": bool(max(apart) == 0),
                "largest_difference_of_logits": float(max(apart)),
                "predictions_changed_in_percent": 100 * float(np.mean(changed)),
                "accuracy_of_an_exit_changed_by_at_most_points": 100 * float(np.abs(shift).max()),
                "mean_over_seeds_by_at_most_points": 100 * float(np.abs(shift.mean(0)).max()),
            }
        )
    return rows


def main() -> None:
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]))
        return
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        stores = {name: Path(folder) / str(number) for number, name in enumerate(SETTINGS)}
        for name, variables in SETTINGS.items():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
            subprocess.run([sys.executable, __file__, str(stores[name])], check=True, env=environment)
            print(name, "done", flush=True)
        reference, *others = SETTINGS
        for name in others:
            rows += compared(stores[reference], stores[name], name)
    save("processors", {"hardware": hardware(), "seeds": len(SEEDS), "compared_with_one_thread": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
