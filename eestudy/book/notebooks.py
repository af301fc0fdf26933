"""Executing a notebook through papermill. No torch here."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from eestudy.config import EestudyError
from eestudy.extras import check_there
from eestudy.store import Store, write_atomically

T = TypeVar("T")


class Executor:
    """Executes notebooks in processes of their own, several at a time when called from several threads."""

    def __init__(self, workers: int, store: Store) -> None:
        """workers: how many share the cores; store: which they all use."""
        check_there("papermill", "book")
        self.workers = workers
        share = max(1, (os.cpu_count() or 1) // workers)
        threads = {name: os.environ.get(name, str(share)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.environment = {**threads, "EESTUDY_HOME": str(store.path.resolve())}
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends what is running, kernels included. What they trained is in the store, up to the last saved state."""
        self._stopped.set()
        for process in list(self._running):
            process.terminate()  # papermill takes its kernel along

    def execute_all(self, todo: Mapping[T, tuple[Any, ...]]) -> Iterator[tuple[T, str | None]]:
        """What `execute` says of the arguments of each, as they end. All are stopped when the caller is."""
        pool = ThreadPoolExecutor(self.workers)
        try:
            futures = {pool.submit(self.execute, *arguments): each for each, arguments in todo.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            self.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def execute(
        self, source: Path, target: Path, parameters: Mapping[str, Any], made: str, title: str | None = None
    ) -> str | None:
        """Executes `source` with `parameters` into `target`; returns None, or one line that says what failed.

        The output gets its final name only when every cell ran; what failed is kept beside it as `*.failed.ipynb`.
        made: identity to remember. title: replaces the first heading, which papermill does not fill in.
        """
        failed = target.with_suffix(".failed.ipynb")
        running = target.with_suffix(".running.ipynb")
        target.parent.mkdir(parents=True, exist_ok=True)
        given = ["-y", json.dumps(parameters)] if parameters else []  # JSON is YAML
        command = [sys.executable, "-m", "papermill", str(source), str(running), *given]
        status, errors = self._call([*command, "--no-progress-bar", "--cwd", str(source.parent)])
        if self._stopped.is_set():
            running.unlink(missing_ok=True)
            return "stopped"
        if status:
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
        # Written the same way every time.
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        write_atomically(target, text.encode())
        running.unlink()
        failed.unlink(missing_ok=True)
        return None

    def _call(self, command: list[str]) -> tuple[int, str]:
        process = subprocess.Popen(
            command,
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C at the terminal reaches us alone; we pass it on
        )
        self._running.add(process)
        try:
            if self._stopped.is_set():
                process.terminate()
            _, errors = process.communicate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            self._running.discard(process)
        return process.returncode, errors


def set_title(notebook: dict[str, Any], title: str) -> None:
    """Replaces the first level-one heading of a notebook."""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        changed, count = re.subn(r"^# .*$", lambda _: f"# {title}", text, count=1, flags=re.MULTILINE)
        if cell["cell_type"] == "markdown" and count:
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
    lines = re.sub(r"\x1b\[[0-9;]*m", "", errors).strip().splitlines()
    return lines[-1].strip() if lines else "papermill ended without a word"
