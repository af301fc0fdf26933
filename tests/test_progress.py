"""Work that is shared out, and what is said of it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from eestudy import progress
from eestudy.config import EestudyError
from eestudy.progress import Progress, minutes, shared


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_time_left_is_by_how_much_work_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    said = Progress({"small": 1.0, "large": 3.0, "last": 1.0})
    for name, now, failed in (("small", 10.0, False), ("large", 40.0, True), ("last", 50.0, False)):
        clock.now = now
        said.ended(name, failed)
    assert capsys.readouterr().err.splitlines() == [
        "eestudy: [1/3] small: done after 10 s, about 40 s left",
        "eestudy: [2/3] large: failed after 40 s, about 10 s left",
        "eestudy: [3/3] last: done after 50 s",
    ]


def test_a_quiet_one_says_failures_the_end_and_a_line_now_and_then(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    said = Progress(dict.fromkeys("abcdef", 1.0), quiet=20.0)
    for name, now in zip("abcdef", (1, 2, 3, 22, 23, 24), strict=True):
        clock.now = float(now)
        said.ended(name, failed=name == "c")
    numbers = [line.split("]")[0][-3:] for line in capsys.readouterr().err.splitlines()]
    assert numbers == ["1/6", "3/6", "5/6", "6/6"]


def test_minutes() -> None:
    assert [minutes(each) for each in (42.4, 99.6, 738)] == ["42 s", "100 s", "12.3 min"]


def write(folder: Path, name: str) -> None:
    if name == "bad":
        raise EestudyError("name: 'bad' is not valid")
    (folder / name).write_text(str(os.getpid()))


def leave(name: str) -> None:
    os._exit(9)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_is_done_once_and_a_failure_stops_no_other(tmp_path: Path, workers: int) -> None:
    names = ["one", "bad", "two", "three"]
    outcomes = dict(shared(partial(write, tmp_path), names, workers))
    assert outcomes.keys() == set(names)
    assert [name for name, error in outcomes.items() if error] == ["bad"]
    assert str(outcomes["bad"]) == "name: 'bad' is not valid"
    made = {path.name: int(path.read_text()) for path in tmp_path.iterdir()}
    assert made.keys() == {"one", "two", "three"}
    assert (os.getpid() in made.values()) is (workers == 1)


def test_processes_that_the_system_killed_are_failures() -> None:
    outcomes = dict(shared(leave, ["one", "two", "three"], 2))
    assert len(outcomes) == 3
    assert all("terminated abruptly" in str(error) for error in outcomes.values())
