"""Times beside the plain backbone's: a network whose stages take a known time, and what is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eestudy import EestudyError
from eestudy import evaluation as ev
from eestudy.evaluation import clock
from eestudy.models import Backbone, MultiExit, exit_costs

SLEEP = 0.02  # seconds


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.linear(x)


@pytest.fixture
def model() -> MultiExit:
    torch.manual_seed(0)
    stages = [Slow(SLEEP), Slow(2 * SLEEP)]
    return MultiExit(Backbone.from_stages(stages, nn.Linear(4, 3), (4,))).eval()


def test_leaving_before_a_stage_saves_what_it_takes(model: MultiExit) -> None:
    x, costs = torch.randn(4, 4), exit_costs(model)
    frame = ev.latency(model, ev.max_probability(0.0), x, batch_sizes=(1, 4), repeats=2)
    assert frame.columns.tolist() == clock.COLUMNS
    assert frame["batch_size"].tolist() == [1, 4]
    assert frame["calls"].tolist() == [8, 2]
    assert frame["flops_speedup"].tolist() == [costs.backbone / costs.flops[0]] * 2
    assert (frame["median_ms"] >= 1000 * SLEEP).all()
    assert (frame["plain_median_ms"] >= 3000 * SLEEP).all()
    assert (frame["p95_ms"] >= frame["median_ms"]).all()
    assert frame["speedup"].between(1.5, 3.1).all()
    np.testing.assert_allclose(frame["samples_per_s"], [1, 4] / frame["median_ms"] * 1000, rtol=0.2)


def test_who_never_leaves_pays_for_the_heads(model: MultiExit) -> None:
    frame = ev.latency(model, ev.max_probability(1.0), torch.randn(2, 4), batch_sizes=(2,), repeats=2)
    assert frame["flops_speedup"].item() < 1
    assert 0.7 < frame["speedup"].item() < 1.2


def test_parts_and_stages_take_what_they_take(model: MultiExit) -> None:
    x = torch.randn(2, 4)

    def slow(history: list[Tensor]) -> Tensor:
        time.sleep(SLEEP)
        return ev.max_probability(1.0)(history)

    parts = clock.time_parts(model, slow, x, 2, 1)
    assert list(parts) == list(clock.PARTS)
    assert parts["stages"] >= 3000 * SLEEP
    assert parts["rule"] >= 1000 * SLEEP
    assert 0 < parts["heads"] + parts["rest"] < parts["rule"]
    stages = clock.stage_times(model, x, 2, 1)
    assert (stages >= [1000 * SLEEP, 2000 * SLEEP, 0]).all()
    assert "forward" not in vars(model.backbone.stages[0]), "nothing of the watching stays"
    assert "passed" not in vars(model)


def test_what_is_left_of_the_samples_is_not_timed(model: MultiExit) -> None:
    times = clock.timed(model, {"all": ev.max_probability(1.0)}, torch.randn(5, 4), 2, repeats=2)
    assert times["all"].milliseconds.shape == (2, 2)
    assert times["all"].taken.tolist() == [0, 1]


def test_the_time_given_ends_it_after_two_passes(model: MultiExit) -> None:
    times = clock.timed(model, {"all": ev.max_probability(0.0)}, torch.randn(1, 4), 1, repeats=50, seconds=0)
    assert times["all"].milliseconds.shape == (2, 1)


@pytest.mark.parametrize("size", [0, 4, 1.5, True])
def test_a_batch_size_that_does_not_fit_is_refused(model: MultiExit, size: object) -> None:
    with pytest.raises(EestudyError, match=rf"batch_sizes: {size}.*3 samples"):
        ev.latency(model, ev.max_probability(0.0), torch.randn(3, 4), batch_sizes=(size,))  # type: ignore[arg-type]


def test_a_model_in_training_is_refused(model: MultiExit) -> None:
    with pytest.raises(EestudyError, match=r"model\.eval"):
        ev.latency(model.train(), ev.max_probability(0.0), torch.randn(3, 4), batch_sizes=(1,))
