"""Times on a machine that others use too: variants in turn, and what was disturbed is measured again."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch

from eestudy.training.execution import fast_bfloat16

HERE = Path(__file__).parent
BLOCK = 0.4  # seconds; the processor's own clock of who used it ticks in hundredths
DISTURBED = 0.05  # share of the cores that other programs used
TRIES = 4  # times the wanted number of blocks

Variants = dict[str, Callable[[], object]]


def interleaved(variants: Variants, blocks: int = 7, seconds: float = 40.0) -> dict[str, dict[str, float]]:
    """Seconds of one call of each variant: median, least and most of `blocks` blocks, in turn, after a call to warm up.

    seconds: after these a variant gets no further block, if it has two. others: the share of the cores that other
    programs used meanwhile; a block above DISTURBED is measured again, and the quietest are kept.
    """
    calls, found = {}, {name: [] for name in variants}  # type: dict[str, int], dict[str, list[tuple[float, float]]]
    for name, call in variants.items():
        call()
        calls[name] = max(1, round(BLOCK / _one(call, 1)[0]))
    for _ in range(blocks * TRIES):
        for name, call in variants.items():
            quiet = [took for took, others in found[name] if others <= DISTURBED]
            spent = sum(took for took, _ in found[name]) * calls[name]
            if len(quiet) < blocks and (len(found[name]) < 2 or spent < seconds):
                found[name].append(_one(call, calls[name]))
    results = {}
    for name, measured in found.items():
        kept = sorted(measured, key=lambda pair: (pair[1] > DISTURBED, pair[1]))[:blocks]
        times = [took for took, _ in kept]
        results[name] = {
            "median": median(times), "least": min(times), "most": max(times), "blocks": len(kept),
            "others": max(others for _, others in kept),
        }  # fmt: skip
    return results


def _one(call: Callable[[], object], calls: int) -> tuple[float, float]:
    """Seconds of one call, and the share of the cores that others used meanwhile."""
    began, busy, own = time.perf_counter(), _busy(), sum(os.times()[:4])
    for _ in range(calls):
        call()
    took = time.perf_counter() - began
    others = (_busy() - busy) - (sum(os.times()[:4]) - own)
    return took / calls, max(0.0, others / took / (os.cpu_count() or 1))


def _busy() -> float:
    """Seconds that all cores together have worked; 0 where the system does not tell in the Linux way."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, interrupts, soft, stolen = (int(field) for field in fields[:8])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def matrix_rates() -> dict[str, float]:
    """GFLOP/s of the product of two large matrices, the best of some, by precision."""
    rates = {}
    for precision, dtype, side in (("float32", torch.float32, 2048), ("bfloat16", torch.bfloat16, 1024)):
        left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        took = interleaved({"mm": lambda left=left, right=right: left @ right}, blocks=5, seconds=10)["mm"]["least"]
        rates[precision] = 2 * side**3 / took / 1e9
    return rates


def hardware() -> dict[str, Any]:
    """What the numbers belong to."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16 instructions": ", ".join(fast_bfloat16()) or "none",
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{facts.get('model name', platform.machine())}, family {facts.get('cpu family', '?')}"


def save(name: str, content: dict[str, Any]) -> None:
    """Puts `content` into benchmarks/<name>.json, over what stands there under the same keys."""
    path = HERE / f"{name}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(_rounded({**before, **content}), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
