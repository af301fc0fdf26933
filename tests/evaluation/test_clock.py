"""Times beside the plain backbone's: a network whose parts take a known time, and what is refused.

Time is a number that the parts themselves move on, so it is the same however busy the machine is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eestudy import EestudyError
from eestudy import evaluation as ev
from eestudy.evaluation import clock
from eestudy.models import Backbone, MultiExit, exit_costs

_SPEC = importlib.util.spec_from_file_location("parts", Path(__file__).parents[2] / "benchmarks" / "parts.py")
assert _SPEC
assert _SPEC.loader
parts_of = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parts_of)
STAGES, HEAD, CLASSIFIER, RULE = (20.0, 40.0), 5.0, 10.0, 3.0  # milliseconds


class Time:
    """Stands still until a part of the network moves it on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def takes(self, milliseconds: float) -> None:
        self.seconds += milliseconds / 1000


class Slow(nn.Module):
    """slower: milliseconds that each call takes more than the one before."""

    def __init__(self, part: nn.Module, milliseconds: float, time: Time, slower: float = 0) -> None:
        super().__init__()
        self.part, self.milliseconds, self.time, self.slower = part, milliseconds, time, slower

    def forward(self, x: Tensor) -> Tensor:
        self.time.takes(self.milliseconds)
        self.milliseconds += self.slower
        return self.part(x)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock, "now", made)
    return made


@pytest.fixture
def model(time: Time, monkeypatch: pytest.MonkeyPatch) -> MultiExit:
    torch.manual_seed(0)
    stages = [Slow(nn.Linear(4, 4), each, time) for each in STAGES]
    made = MultiExit(Backbone.from_stages(stages, Slow(nn.Linear(4, 3), CLASSIFIER, time), (4,))).eval()
    head = made.head(1)
    answer = head.answer

    def slow_answer(*given: Any) -> Any:
        time.takes(HEAD)
        return answer(*given)

    monkeypatch.setattr(head, "answer", slow_answer)
    return made


WHOLE = sum(STAGES) + CLASSIFIER


def test_leaving_before_a_stage_saves_what_it_takes(model: MultiExit) -> None:
    x, costs = torch.randn(4, 4), exit_costs(model)
    frame = ev.latency(model, ev.max_probability(0.0), x, batch_sizes=(1, 4), repeats=2)
    assert frame.columns.tolist() == clock.COLUMNS
    assert frame["batch_size"].tolist() == [1, 4]
    assert frame["calls"].tolist() == [8, 2]
    assert frame["flops_speedup"].tolist() == [costs.backbone / costs.flops[0]] * 2
    early = STAGES[0] + HEAD
    for column, expected in (("median_ms", early), ("p95_ms", early), ("plain_median_ms", WHOLE),
                             ("plain_p95_ms", WHOLE), ("speedup", WHOLE / early)):  # fmt: skip
        np.testing.assert_allclose(frame[column], expected, rtol=1e-9)
    np.testing.assert_allclose(frame["samples_per_s"], [1000 / early, 4000 / early], rtol=1e-9)


def test_who_never_leaves_pays_for_the_heads(model: MultiExit) -> None:
    frame = ev.latency(model, ev.max_probability(1.0), torch.randn(2, 4), batch_sizes=(2,), repeats=2)
    assert frame["flops_speedup"].item() < 1
    assert frame["speedup"].item() == pytest.approx(WHOLE / (WHOLE + HEAD))


def test_times_are_medians_over_passes_and_sums_over_batches(model: MultiExit, time: Time) -> None:
    """Each call of the first stage takes a millisecond longer than the one before."""
    first = model.backbone.stages[0]

    def later(module: nn.Module, given: object) -> None:
        module.milliseconds += 1  # type: ignore[operator, assignment]

    handle = first.register_forward_pre_hook(later)
    times = clock.timed(model, {"all": ev.max_probability(1.0)}, torch.randn(4, 4), 2, repeats=3)
    handle.remove()
    # Twice to count its cost; two batches, of each the backbone and then the rule, to warm up; then four calls a pass.
    calls = np.arange(7, 19).reshape(3, 2, 2)
    np.testing.assert_allclose(times[clock.PLAIN].milliseconds, WHOLE + calls[:, :, 0])
    np.testing.assert_allclose(times["all"].milliseconds, WHOLE + HEAD + calls[:, :, 1])
    assert times["all"].whole == pytest.approx(2 * (WHOLE + HEAD) + calls[1, :, 1].sum())


def test_parts_and_stages_take_what_they_take(model: MultiExit, time: Time) -> None:
    x = torch.randn(2, 4)

    def slow(history: list[Tensor]) -> Tensor:
        time.takes(RULE)
        return ev.max_probability(1.0)(history)

    parts = parts_of.time_parts(model, slow, x, 2, 1)
    assert list(parts) == list(parts_of.PARTS)
    assert parts == pytest.approx({"stages": WHOLE, "heads": HEAD, "rule": RULE, "rest": 0.0}, abs=1e-6)
    np.testing.assert_allclose(parts_of.stage_times(model, x, 2, 1), [*STAGES, CLASSIFIER])
    for module in (*model.backbone.stages, model.backbone.classifier):
        assert not module._forward_hooks | module._forward_pre_hooks, "nothing of the watching stays"


def test_what_is_left_of_the_samples_is_not_timed(model: MultiExit) -> None:
    times = clock.timed(model, {"all": ev.max_probability(1.0)}, torch.randn(5, 4), 2, repeats=2)
    assert times["all"].milliseconds.shape == (2, 2)
    assert times["all"].taken.tolist() == [0, 1]


def test_the_time_given_ends_it_after_two_passes(model: MultiExit) -> None:
    times = clock.timed(model, {"all": ev.max_probability(0.0)}, torch.randn(1, 4), 1, repeats=50, seconds=0)
    assert times["all"].milliseconds.shape == (2, 1)
    a_pass = (WHOLE + STAGES[0] + HEAD) / 1000
    times = clock.timed(model, {"all": ev.max_probability(0.0)}, torch.randn(1, 4), 1, repeats=50, seconds=4.5 * a_pass)
    assert times["all"].milliseconds.shape == (5, 1)


@pytest.mark.parametrize("size", [0, 4, 1.5, True])
def test_a_batch_size_that_does_not_fit_is_refused(model: MultiExit, size: object) -> None:
    with pytest.raises(EestudyError, match=rf"batch_sizes: {size}.*3 samples"):
        ev.latency(model, ev.max_probability(0.0), torch.randn(3, 4), batch_sizes=(size,))  # type: ignore[arg-type]


def test_a_model_in_training_is_refused(model: MultiExit) -> None:
    with pytest.raises(EestudyError, match=r"model\.eval"):
        ev.latency(model.train(), ev.max_probability(0.0), torch.randn(3, 4), batch_sizes=(1,))
