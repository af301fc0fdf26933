"""Executing a notebook through papermill, and knowing when that is not needed. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eestudy.config import EestudyError
from eestudy.store import write_atomically

PACKAGE = Path(__file__).parent


def identity(*inputs: object) -> str:
    """SHA-256 of everything an output was made from: files by their bytes, other things by their JSON."""
    digest = hashlib.sha256()
    for item in inputs:
        content = item.read_bytes() if isinstance(item, Path) else json.dumps(item, sort_keys=True).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def package_files() -> list[Path]:
    """The package's own source: when it changes, every page is drawn again (trained runs are kept)."""
    return sorted(PACKAGE.rglob("*.py"))


def source_identity(notebook: Path) -> str:
    """Identity of a notebook's cells, without outputs and execution counts."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return identity([[cell["cell_type"], cell["source"], cell["metadata"].get("tags", [])] for cell in cells])


def made_from(notebook: Path) -> str | None:
    """The identity of what an executed notebook was made from; None if there is none, or it is not whole."""
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["eestudy"]["identity"]
    except (OSError, ValueError, KeyError):
        return None


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    made: str,
    environment: Mapping[str, str],
    title: str | None = None,
) -> str | None:
    """Executes `source` with `parameters` into `target`; returns None, or one line that says what failed.

    The output gets its final name only when every cell ran; what failed is kept beside it as `*.failed.ipynb`.
    made: identity to remember. title: replaces the first heading, which papermill does not fill in.
    """
    failed = target.with_suffix(".failed.ipynb")
    running = target.with_suffix(".running.ipynb")
    given = target.with_suffix(".parameters.json")
    write_atomically(given, json.dumps(parameters).encode())  # JSON is YAML
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(source),
        str(running),
        "-f",
        str(given),
        "--no-progress-bar",
    ]
    process = subprocess.Popen(
        [*command, "--cwd", str(source.parent)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches us first, and the kernel through us
    )
    try:
        _, errors = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        given.unlink(missing_ok=True)
    if process.returncode:
        if running.is_file():
            running.replace(failed)
        return f"{_reason(errors)} (notebook: {failed if failed.is_file() else 'not written'})"
    notebook = json.loads(running.read_text(encoding="utf-8"))
    notebook["metadata"]["eestudy"] = {"identity": made}
    notebook["metadata"].pop("papermill", None)  # times and paths of this machine
    for cell in notebook["cells"]:
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
    if title:
        set_title(notebook, title)
    write_atomically(target, (json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode())
    running.unlink()
    failed.unlink(missing_ok=True)
    return None


def set_title(notebook: dict[str, Any], title: str) -> None:
    """Replaces the first level-one heading of a notebook."""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and re.search(r"^# ", text, re.MULTILINE):
            changed = re.sub(r"^# .*$", lambda _: f"# {title}", text, count=1, flags=re.MULTILINE)
            cell["source"] = changed.splitlines(keepends=True)
            return


def error_outputs(notebook: Path) -> list[str]:
    """One line for each cell that holds an error output."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError):
        raise EestudyError(f"{notebook}: not a notebook") from None
    return [
        f"{notebook}, cell {number}: {output.get('ename')}: {output.get('evalue')}"
        for number, cell in enumerate(cells, 1)
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]


def _reason(errors: str) -> str:
    """The last line of a papermill log that says something."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in errors.splitlines()]
    lines = [line for line in lines if line]
    return lines[-1] if lines else "papermill ended without a word"


def pool_environment(workers: int, home: Path | None) -> dict[str, str]:
    """Environment of each of `workers` processes: an equal share of the cores, and the store."""
    share = max(1, (os.cpu_count() or 1) // workers)
    names: Iterable[str] = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: os.environ.get(name, str(share)) for name in names}
    return environment | ({"EESTUDY_HOME": str(home.resolve())} if home else {})
