"""Writes tests/pinned_weights.json again: python -m tests.pinned_weights. Only when results are meant to move.

A tiny run of each path through the training engine, on one thread: how its phases end, and the SHA-256 of its final
weights for each kind of processor it was made on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

import eestudy

PINS = Path(__file__).with_suffix(".json")
PLAIN: dict[str, Any] = {"batch_size": 64, "train_size": 192, "epochs": 2, "checkpoints": (100,)}
IMAGES = {"architecture": "resnet-tiny", "architecture_args": {"width": 8}, "dataset": "digits", **PLAIN}
LINES = {"dataset": "mnist1d", "dataset_args": {"samples": 1000}, **PLAIN}
CASES: dict[str, dict[str, Any]] = {
    "joint": {**IMAGES, "strategy": "joint"},
    "disjoint, cached features": {**IMAGES, "strategy": "disjoint"},
    "mixed, transformer": {**LINES, "architecture": "vit1d", "strategy": "mixed"},
    "mixed, convolutions of lines": {**LINES, "architecture": "resnet1d", "strategy": "mixed"},
    "mlp, sgd": {**LINES, "architecture": "mlp", "strategy": "joint", "optimizer": "sgd", "schedule": "one-cycle"},
    "augmented": {**IMAGES, "strategy": "joint", "augmentation": "shift+mixup"},
    "bfloat16": {**IMAGES, "strategy": "joint", "precision": "bfloat16"},
    "turns": {**IMAGES, "strategy": "alternating", "exits": (1, 2)},
    "answers kept": {**IMAGES, "strategy": "sequential-lwf", "exits": (1, 2)},
    "weights kept": {**IMAGES, "strategy": "sequential-ewc", "exits": (1, 2)},
    "gradients scaled, distilled": {
        **IMAGES, "strategy": "mixed", "gradient_scaling": "equilibrium", "distillation": "last",
        "weighting": "sdn-ramp", "batchnorm": "reestimate",
    },
    "patience": {**IMAGES, "strategy": "joint", "match": "patience", "patience": 1, "epochs": 6},
    "a method's own step": {**IMAGES, "strategy": "joint", "method": "l2w", "exits": (1, 2)},
    "compiled step": {**LINES, "architecture": "mlp", "strategy": "joint", "compile": "step"},
    "regression": {**PLAIN, "architecture": "mlp", "dataset": "diabetes", "strategy": "mixed"},
}  # fmt: skip


def family() -> str:
    """What the bits of a result depend on, on one thread: torch, and the instructions its kernels are chosen by."""
    maker, instructions = "unknown", torch.backends.cpu.get_cpu_capability()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        text = cpuinfo.read_text(errors="replace")
        lines = text.splitlines()
        maker = next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), maker)
        # bfloat16 is summed in another order by each of the three kinds of processor with AVX-512
        instructions += "+AMX" if "amx_bf16" in text else "+BF16" if "avx512_bf16" in text else ""
    return f"torch {torch.__version__.split('+')[0]}, {platform.machine()} {maker} {instructions}"


def ended(name: str, store: Path) -> tuple[float, str]:
    """Mean validation loss of a case's last phase at its end, and the SHA-256 of the final weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        settings = {"compile": "never", **CASES[name]}
        how = settings.pop("compile")
        run = eestudy.run(eestudy.RunConfig(**settings), store=store, device="cpu", compile=how)
    finally:
        torch.set_num_threads(threads)
    records = eestudy.Store(store).folder("phases", run.phases[-1]).records()
    losses = [
        each["loss"] for each in records if each["epoch"] == records[-1]["epoch"] and each["split"] == "validation"
    ]
    loss = sum(losses) / len(losses)
    digest = hashlib.sha256()
    for key, value in sorted(run.model().state_dict().items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return loss, digest.hexdigest()[:16]


def main() -> None:
    pins = json.loads(PINS.read_text()) if PINS.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES:
            loss, weights = ended(name, Path(folder))
            known = pins.setdefault(name, {"loss": loss, "weights": {}})
            known["loss"] = loss
            known["weights"][family()] = weights
            print(f"{name}: loss {loss:.6f}, weights {weights}")
    PINS.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
