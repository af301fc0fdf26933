"""Where runs live: content-addressed folders, written by one process at a time, safe to kill at any moment.

A folder is `phases/<id>` or `runs/<id>` under $EESTUDY_HOME (default ./runs of the checkout). Every file is written to
a temporary name, flushed to disk and renamed, then entered with its SHA-256 in `manifest.json`; `done` is written last.
Nothing is pickled: tensors are safetensors, tables parquet, the rest JSON. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from eestudy.config import EestudyError
from eestudy.grids import project_root

Arrays = dict[str, np.ndarray]


def home() -> Path:
    """$EESTUDY_HOME, or `runs` in the checkout around the working folder, or ./runs."""
    given = os.environ.get("EESTUDY_HOME")
    if given:
        return Path(given).expanduser()
    root = project_root()
    return (root if root in (Path.cwd(), *Path.cwd().parents) else Path.cwd()) / "runs"


class Folder:
    """One phase or one run on disk. The lock must be held to write."""

    def __init__(self, path: Path, lock_path: Path) -> None:
        self.path = path
        self._lock_path = lock_path

    @property
    def id(self) -> str:
        return self.path.name

    @contextmanager
    def lock(self, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
        """Held by one process at a time; the operating system frees it when that process dies.

        `on_wait` gets one line if another process holds it now.
        """
        with _clear_os_errors(self._lock_path):
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._lock_path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if on_wait:
                    on_wait(f"another process works on {self.id}; waiting for it")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # reading

    def manifest(self) -> dict[str, dict[str, Any]]:
        """File name -> {bytes, sha256} of every file that was written whole."""
        return self._json("manifest.json") if (self.path / "manifest.json").is_file() else {}

    def has(self, name: str) -> bool:
        return name in self.manifest()

    def done(self) -> bool:
        return (self.path / "done").is_file()

    def verify(self) -> str | None:
        """The name of the first file that is not as it was written, with the reason; None when all are whole."""
        try:
            manifest = self.manifest()
        except ValueError:
            return "manifest.json (not readable)"
        for name, entry in manifest.items():
            try:
                content = (self.path / name).read_bytes()
            except FileNotFoundError:
                return f"{name} (missing)"
            if len(content) != entry["bytes"]:
                return f"{name} ({len(content)} bytes, {entry['bytes']} were written)"
            if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                return f"{name} (its SHA-256 is not the one it was written with)"
        if self.done() and (self.path / "done").read_text() != _seal(manifest):
            return "done (does not belong to manifest.json)"
        return None

    def _json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def json(self, name: str) -> Any:
        return self._json(name)

    def arrays(self, name: str) -> Arrays:
        with safe_open(self.path / name, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)

    def metadata(self, name: str) -> dict[str, Any]:
        with safe_open(self.path / name, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get("json", "{}"))

    def frame(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.path / name)

    def records(self) -> list[dict[str, Any]]:
        text = (self.path / "records.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    # writing

    def write_json(self, name: str, content: Any) -> None:
        self._write(name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def write_arrays(self, name: str, arrays: Arrays, metadata: dict[str, Any] | None = None) -> None:
        contiguous = {key: value.copy(order="C") for key, value in arrays.items()}
        self._write(name, safetensors_bytes(contiguous, {"json": json.dumps(metadata or {}, sort_keys=True)}))

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        self._write(name, buffer.getvalue())

    def write_records(self, records: list[dict[str, Any]]) -> None:
        self._write("records.jsonl", "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode())

    def remove(self, name: str) -> None:
        manifest = self.manifest()
        if manifest.pop(name, None) is not None:
            self._replace("manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
            (self.path / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Marks the folder complete. Written last."""
        self._replace("done", _seal(self.manifest()).encode())

    def _write(self, name: str, content: bytes) -> None:
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        before = self.manifest().get(name)
        if before == entry:
            return
        if before:
            # Never leave a moment in which the manifest speaks of other bytes than the file holds.
            self.remove(name)
        self._replace(name, content)
        manifest = {**self.manifest(), name: entry}
        self._replace("manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())

    def _replace(self, name: str, content: bytes) -> None:
        write_atomically(self.path / name, content)

    def set_aside(self, reason: str) -> None:
        """Moves a damaged folder out of the way, keeping it for whoever wants to look, and says so on stderr."""
        with _clear_os_errors(self.path):
            place = self.path.parent.parent / "set-aside"
            place.mkdir(parents=True, exist_ok=True)
            target = place / f"{self.id}-{time.time_ns()}"
            self.path.rename(target)
        print(f"eestudy: {self.path} is damaged: {reason}; set aside as {target}, made again", file=sys.stderr)


class Store:
    """The folders of all phases and runs. Raises EestudyError when nothing can be written there."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path).expanduser() if path else home()

    def check_writable(self) -> None:
        with _clear_os_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()

    def folder(self, kind: str, folder_id: str) -> Folder:
        """`kind` is "phases" or "runs"."""
        return Folder(self.path / kind / folder_id, self.path / "locks" / f"{kind}-{folder_id}.lock")

    def usable(self, folder: Folder) -> bool:
        """Whether `folder` is done and whole. A damaged one, done or not, is set aside. Hold its lock."""
        if not folder.path.exists():
            return False
        try:
            reason = folder.verify()
        except (OSError, SafetensorError) as error:
            reason = str(error)
        if reason:
            folder.set_aside(reason)
        return folder.done()


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest() + "\n"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: temporary name, flush to disk, rename. EestudyError on a full disk."""
    with _clear_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _clear_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EestudyError(f"{path}: the disk is full; free some space and run the same command again") from None
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)) or error.errno == errno.EROFS:
            raise EestudyError(f"{path}: cannot be written ({error.strerror}); set EESTUDY_HOME or --store") from None
        raise
