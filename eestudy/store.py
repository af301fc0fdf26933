"""Where runs live: content-addressed folders, written by one process at a time, safe to kill at any moment.

A folder is `phases/<id>`, `runs/<id>` or `dynamics/<id>` under $EESTUDY_HOME (default ./runs of the checkout). Every
file is written to a temporary name, flushed to disk and renamed, then entered with its SHA-256 in `manifest.json`,
which holds one of its own; `done` is written last. A file is compared with its SHA-256 whenever it is read.
Nothing is pickled: tensors are safetensors, tables parquet, the rest JSON. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from safetensors.numpy import load as safetensors_arrays
from safetensors.numpy import save as safetensors_bytes

from eestudy.config import EestudyError
from eestudy.study import project_root

Arrays = dict[str, np.ndarray]
Files = dict[str, dict[str, Any]]  # file name -> {bytes, sha256}

MANIFEST = "manifest.json"


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
        """Held by one process at a time, freed when it dies. `on_wait` gets a line if another holds it now."""
        lock = FileLock(self._lock_path)
        with clear_os_errors(self._lock_path):
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout):
                lock.acquire(timeout=0)
        if not lock.is_locked:
            if on_wait:
                on_wait(f"another process works on {self.id}; waiting for it")
            with clear_os_errors(self._lock_path):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # reading

    def manifest(self) -> Files:
        """Every file that was written whole. EestudyError if the manifest is not as it was written."""
        files = self._entered()
        if files is None:
            raise self._damaged(f"{MANIFEST} (not as it was written)")
        return files

    def _entered(self) -> Files | None:
        """The files of the manifest; None if it is not what `_manifest` wrote, byte for byte."""
        try:
            content = (self.path / MANIFEST).read_bytes()
            files = json.loads(content)["files"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            return None
        return files if content == _manifest(files) else None

    def has(self, name: str) -> bool:
        return name in self.manifest()

    def done(self) -> bool:
        return (self.path / "done").is_file()

    def verify(self) -> str | None:
        """The name of the first file that is not as it was written, with the reason; None when all are whole."""
        files = self._entered()
        if files is None:
            return f"{MANIFEST} (not as it was written)"
        if self.done() and (self.path / "done").read_bytes() != _seal(files):
            return f"done (does not belong to {MANIFEST})"
        return next((wrong for name, entry in files.items() if (wrong := self._checked(name, entry)[1])), None)

    def _checked(self, name: str, entry: dict[str, Any]) -> tuple[bytes, str]:
        """The file's bytes, and what is wrong with it: "" if it is as it was written."""
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:
            return b"", f"{name} (missing)"
        if len(content) != entry["bytes"]:
            return content, f"{name} ({len(content)} bytes, {entry['bytes']} were written)"
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            return content, f"{name} (its SHA-256 is not the one it was written with)"
        return content, ""

    def _damaged(self, reason: str) -> EestudyError:
        return EestudyError(f"{self.path} is damaged: {reason}; running it again sets it aside and makes it again")

    def read(self, name: str) -> bytes:
        """A file's bytes, as they were written. EestudyError if they are not, or if there is no such file (yet)."""
        entry = self.manifest().get(name)
        if entry is None:
            raise EestudyError(f"{self.path}: has no {name}; running it again goes on and makes what is not there")
        content, wrong = self._checked(name, entry)
        if wrong:
            raise self._damaged(wrong)
        return content

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def arrays(self, name: str) -> Arrays:
        return safetensors_arrays(self.read(name))

    def metadata(self, name: str) -> dict[str, Any]:
        """What stands in the head of a safetensors file: its length (8 bytes, little endian), then JSON."""
        content = self.read(name)
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return json.loads(head["__metadata__"]["json"])

    def frame(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(io.BytesIO(self.read(name)))

    def frames(self) -> dict[str, pd.DataFrame]:
        """All tables, by their names without the suffix, sorted."""
        names = sorted(name for name in self.manifest() if name.endswith(".parquet"))
        return {name.removesuffix(".parquet"): self.frame(name) for name in names}

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read("records.jsonl").splitlines()]

    # writing

    def write(self, name: str, content: bytes) -> None:
        """A file as it is, and its entry in the manifest. The folder is then not done until `finish`."""
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        before = self.manifest().get(name)
        if before == entry:
            return
        (self.path / "done").unlink(missing_ok=True)
        if before:
            # Never leave a moment in which the manifest speaks of other bytes than the file holds.
            self.remove(name)
        write_atomically(self.path / name, content)
        write_atomically(self.path / MANIFEST, _manifest({**self.manifest(), name: entry}))

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def write_arrays(self, name: str, arrays: Arrays, metadata: dict[str, Any] | None = None) -> None:
        contiguous = {key: value.copy(order="C") for key, value in arrays.items()}
        self.write(name, safetensors_bytes(contiguous, {"json": json.dumps(metadata or {}, sort_keys=True)}))

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        self.write(name, buffer.getvalue())

    def write_records(self, records: list[dict[str, Any]]) -> None:
        self.write("records.jsonl", "".join(json.dumps(record, sort_keys=True) + "\n" for record in records).encode())

    def remove(self, name: str) -> None:
        files = self.manifest()
        if files.pop(name, None) is not None:
            write_atomically(self.path / MANIFEST, _manifest(files))
            (self.path / name).unlink(missing_ok=True)

    def finish(self) -> None:
        """Marks the folder complete. Written last."""
        write_atomically(self.path / "done", _seal(self.manifest()))

    def sweep(self) -> None:
        """Deletes what a killed process left: half-written files, and whole ones it had not yet entered."""
        files = self.manifest()
        for path in self.path.iterdir():
            if path.is_file() and path.name not in (MANIFEST, "done", *files):
                path.unlink()

    def set_aside(self, reason: str) -> None:
        """Moves a damaged folder out of the way, keeping it for whoever wants to look, and says so on stderr."""
        target = self.path.parent.parent / "set-aside" / f"{self.id}-{time.time_ns()}"
        with clear_os_errors(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.rename(target)
        print(f"eestudy: {self.path} is damaged: {reason}; set aside as {target}, made again", file=sys.stderr)


class Store:
    """The folders of all phases and runs. Raises EestudyError when nothing can be written there."""

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path).expanduser() if path else home()

    def check_writable(self) -> None:
        check_writable(self.path)

    def folder(self, kind: str, folder_id: str) -> Folder:
        """`kind` is "phases", "runs", "dynamics" or "evaluations"."""
        return Folder(self.path / kind / folder_id, self.path / "locks" / f"{kind}-{folder_id}.lock")

    def done(self, kind: str) -> set[str]:
        """Ids of a kind's folders that are done: one look at the disk, for studies of many runs."""
        return {path.parent.name for path in (self.path / kind).glob("*/done")}

    def whole(self, folder: Folder) -> bool:
        """Whether `folder` is done and as it was written; changes nothing and needs no lock."""
        try:
            return folder.done() and folder.verify() is None
        except OSError:
            return False

    def phases_whole(self, run: Folder) -> bool:
        """Whether the phases of a finished run are there as they were written."""
        return all(self.whole(self.folder("phases", phase)) for phase in run.json("run.json")["phases"])

    def usable(self, folder: Folder) -> bool:
        """Whether `folder` is done and whole. A damaged one, done or not, is set aside. Hold its lock."""
        if not folder.path.exists():
            return False
        try:
            reason = folder.verify()
        except OSError as error:  # such as a disk that cannot be read
            reason = str(error)
        if reason:
            folder.set_aside(reason)
            return False
        if not folder.done():
            folder.sweep()
        return folder.done()


def _manifest(files: Files) -> bytes:
    content = {"files": files, "sha256": _seal(files).decode().strip()}
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _seal(files: Files) -> bytes:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest().encode() + b"\n"


def check_writable(folder: Path) -> None:
    """Makes the folder where there is none. EestudyError when nothing can be written there."""
    with clear_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: temporary name, flush to disk, rename. EestudyError on a full disk."""
    with _on_disk(path, content) as temporary:
        temporary.replace(path)


def write_once(path: Path, content: bytes) -> bool:
    """Writes a file whole, unless there is one: then False, and nothing changed. So of several writers one does."""
    with _on_disk(path, content) as temporary:
        try:
            os.link(temporary, path)  # unlike a rename, never over what another writer put there
        except FileExistsError:
            return False
        return True


@contextmanager
def _on_disk(path: Path, content: bytes) -> Iterator[Path]:
    """A file beside `path` that holds `content`, on the disk and not only in memory; it is gone afterwards."""
    with clear_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # No lock guards a record: processes on several machines may write one folder.
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def clear_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full, too_large = error.errno in (errno.ENOSPC, errno.EDQUOT), error.errno == errno.EFBIG
        reason = f"cannot be written ({error.strerror}); --store keeps runs elsewhere"
        if full:
            reason = "the disk is full; free some space and run the same command again"
        elif too_large:
            reason = "larger than a file may be here; raise the limit (ulimit -f) and run the same command again"
        raise EestudyError(f"{path}: {reason}") from None
