"""Work on many things: by processes that share it, with a line for each thing that ended and the time left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TypeVar

from eestudy.environment import say, use_threads

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Something that could not be made, such as a run or a notebook, and why in one line."""

    title: str
    reason: str


class Progress:
    """Says what ended, and how long the rest will take. quiet: seconds between two lines about successes."""

    def __init__(self, amounts: Mapping[str, float], quiet: float = 0.0) -> None:
        self.left, self.count, self.quiet = dict(amounts), len(amounts), quiet
        self.total = sum(amounts.values())
        self.began = time.monotonic()
        self.said = -quiet

    def ended(self, name: str, failed: bool = False) -> None:
        """One of them."""
        del self.left[name]
        spent, left = time.monotonic() - self.began, sum(self.left.values())
        if self.left and not failed and spent - self.said < self.quiet:
            return
        self.said = spent
        more = f", about {minutes(spent * left / max(self.total - left, 1e-9))} left" if self.left else ""
        word = "failed" if failed else "done"
        say(f"[{self.count - len(self.left)}/{self.count}] {name}: {word} after {minutes(spent)}{more}")


def minutes(seconds: float) -> str:
    """Such as "42 s" or "12.3 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def shared(work: Callable[[T], None], todo: Sequence[T], workers: int) -> Iterator[tuple[T, Exception | None]]:
    """Does `work` on each in this process, or in several with their share of the cores; yields it with what it raised.

    As they end. Ctrl-C ends the other processes at once: `work` must leave nothing half done.
    """
    if workers == 1 or len(todo) < 2:
        for each in todo:
            yield each, _outcome(work, each)
        return
    share = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (share,))
    try:
        futures = {pool.submit(_outcome, work, each): each for each in todo}
        for future in as_completed(futures):
            died = future.exception()  # of a process that the system killed, all that is left ends with this
            yield futures[future], died if isinstance(died, Exception) else future.result()
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(work: Callable[[T], None], each: T) -> Exception | None:
    try:
        work(each)
    except Exception as error:  # noqa: BLE001  (it must not stop the others)
        return error
    return None


def _begin(threads: int) -> None:
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_threads(threads)
