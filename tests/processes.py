"""Runs in forked processes, which have torch already: cheap enough to be killed by the dozen."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

import eestudy
from eestudy import store as store_module
from eestudy.config import RunConfig
from eestudy.training import loop
from eestudy.training.eager_step import EagerStep

# Everything a run leaves that must not depend on how often it was killed, nor on what ran beside it.
SAME = ("checkpoint-*.safetensors", "records.jsonl", "predictions.safetensors", "exits.parquet")


def bits(config: RunConfig, store: Path) -> dict[str, bytes]:
    """The files of a finished run and its phases that any other process must make alike, by their path in the store."""
    made = eestudy.Run(config, eestudy.Store(store))
    folders = [made.path, *(store / "phases" / phase for phase in made.phases)]
    found = {
        str(path.relative_to(store)): path.read_bytes()
        for folder in folders
        for kind in SAME
        for path in folder.glob(kind)
    }
    assert len(found) >= 4
    return found


def different(left: dict[str, bytes], right: dict[str, bytes]) -> list[str]:
    """Names of the files that are not the same in both, or not in both."""
    return sorted(name for name in {*left, *right} if left.get(name) != right.get(name))


def forked(work: Callable[[], object]) -> int:
    """Starts `work` in a child and returns its process id. Its exit status: what `work` returns, 0 for None."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        status = int(work() or 0)  # type: ignore[call-overload]
    except BaseException:  # noqa: BLE001  (this is the top of a process)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status(child: int) -> int:
    """Waits for a child: its exit status, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(config: RunConfig, store: Path, steps: Steps | None = None) -> None:
    """A run that saves its state before every step, which is the most that can go wrong. Only in a child."""
    loop.STATE_EVERY, loop.SAVING_SHARE = 0.0, float("inf")
    if steps:
        steps.count()
    eestudy.run(config, store=store, device="cpu")


class Steps:
    """Training steps of all children together, in memory that they share."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def done(self) -> int:
        return struct.unpack("q", self.memory[:8])[0]

    def count(self) -> None:
        """From now on in this process."""
        step = EagerStep.step

        def counted(*arguments):
            step(*arguments)
            self.memory[:8] = struct.pack("q", self.done + 1)

        EagerStep.step = counted  # type: ignore[method-assign]


def kill_at(where: str, moment: str, nth: int = 1) -> None:
    """Makes this process kill itself at its `nth` write of a file, `where` being how "kind of folder/name" begins.

    moment: "half written", "before the rename" or "after the rename".
    """
    write, flush, rename = store_module.write_atomically, os.fsync, Path.replace
    seen, armed = 0, False

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def watched_write(path: Path, content: bytes) -> None:
        nonlocal seen, armed
        found = f"{path.parent.parent.name}/{path.name}".startswith(where)
        seen += found
        armed = found and seen == nth
        write(path, content)

    def watched_flush(descriptor: int) -> None:
        if armed and moment == "half written":
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        flush(descriptor)

    def watched_rename(path: Path, target: Path) -> Path:
        if armed and moment == "before the rename":
            die()
        renamed = rename(path, target)
        if armed and moment == "after the rename":
            die()
        return renamed

    store_module.write_atomically = watched_write  # type: ignore[assignment]
    os.fsync = watched_flush  # type: ignore[assignment]
    Path.replace = watched_rename  # type: ignore[method-assign, assignment]


def flip_a_bit(path: Path, seed: str = "") -> None:
    content, random = bytearray(path.read_bytes()), Random(f"{path.name} {seed}")
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
