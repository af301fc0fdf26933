"""How a command ends early: by a signal, or when its time is over. Its state is saved as after Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def ended_like_ctrl_c(ended_by: list[signal.Signals]) -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end a command as Ctrl-C does: the state is saved, no process is left behind."""

    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # forked from it, such as a reader of image files
            os._exit(128 + number)
        ended_by.append(signal.Signals(number))
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # a shell's background jobs do not hear of Ctrl-C
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What is ignored stays so, as below nohup. Only a main thread may ask for signals.
        with suppress(ValueError):
            if number and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def for_minutes(minutes: float | None) -> Iterator[threading.Event]:
    """Ends what is below it as SIGTERM does, but without an error. The event is set when the time was over."""
    over = threading.Event()

    def end() -> None:
        over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(60 * (minutes or 0), end)
    timer.daemon = True
    if minutes:
        timer.start()
    try:
        yield over
    except KeyboardInterrupt:
        if not over.is_set():
            raise
    finally:
        timer.cancel()
