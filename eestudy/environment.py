"""What a result was made with: versions, commit, hardware. No torch here."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("eestudy", "torch", "numpy", "scikit-learn", "pandas", "mnist1d")


def describe(device: str = "cpu") -> dict[str, Any]:
    """hardware, versions and commit, each a line of text; threads of one process."""
    torch = sys.modules.get("torch")  # on whose threads the last bits of a result depend
    threads = torch.get_num_threads() if torch else 0
    return {"hardware": hardware(device), "versions": versions(), "commit": commit(), "threads": threads}


def versions() -> str:
    """Python's version and those of the packages a result depends on."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return "; ".join(found)


def hardware(device: str = "cpu") -> str:
    """The processor and its cores, or the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def use_threads(count: int) -> None:
    """So many of this process's: torch's, and those under numpy, scipy and scikit-learn, else one for each core."""
    import sklearn.linear_model  # noqa: F401  # loads these libraries: a limit is for what is loaded already
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count)


def commit() -> str:
    """The package's git commit, with "+" behind it when files differ; "unknown" outside a checkout."""
    folder = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return shown.stdout.strip()


def say(line: str) -> None:
    """One line for the person at the terminal, on stderr."""
    print(f"eestudy: {line}", file=sys.stderr, flush=True)
