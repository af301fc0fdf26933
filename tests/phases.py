"""Phases trained one by one in this process, straight and interrupted, for tests of strategies and of methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from eestudy.plan import Plan
from eestudy.store import Folder, Store
from eestudy.training import loop
from eestudy.training.execution import Execution

CPU = Execution(torch.device("cpu"))


def trained(made: Plan, place: int, tmp_path: Path, name: str = "phase", how: Execution = CPU) -> Folder:
    """The folder that phase number `place` (from 0) leaves; the plan's network is trained on."""
    folder, phase = Store(tmp_path).folder("phases", f"{name}-{place}"), made.phases[place]
    hooks = made.method.hooks(phase)
    loop.train_phase(made.model, phase, made.data, folder, 0, place, how, hooks)
    return folder


@contextmanager
def interrupted_after(steps: int) -> Iterator:
    """In place of `loop._interrupt_between_steps`: Ctrl-C is noticed once `steps` steps of a phase are done."""
    calls = iter(range(10**9))
    yield lambda: next(calls) >= steps


def check_resumed(
    straight: Plan, broken: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Execution = CPU
) -> None:
    """Every phase of `broken` is interrupted after two steps and goes on in a network that is new: the same bits."""
    for place in range(len(straight.phases)):
        whole = trained(straight, place, tmp_path, "whole", how)
        start = {name: value.clone() for name, value in broken.model.state_dict().items()}
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_interrupt_between_steps", partial(interrupted_after, 2))
            with pytest.raises(KeyboardInterrupt):
                trained(broken, place, tmp_path, "broken", how)
        broken.model.load_state_dict(start)  # a new process has the weights that the phase before ended with
        assert trained(broken, place, tmp_path, "broken", how).records() == whole.records()
        for name, value in straight.model.state_dict().items():
            assert torch.equal(value, broken.model.state_dict()[name]), (place, name)
