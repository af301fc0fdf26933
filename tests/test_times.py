"""Costs in milliseconds and exits placed by time, on a clock that the parts themselves move on."""

# Wrong types are given on purpose, and modules are looked into.
# mypy: disable-error-code="arg-type, union-attr, assignment, operator, override, index, call-arg, attr-defined"

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eestudy import EestudyError, RunConfig
from eestudy import evaluation as ev
from eestudy.models import Backbone, MultiExit, exit_costs, times
from eestudy.models.times import ExitTimes, of_leaving
from tests.evaluation.test_clock import Slow, Time

STAGES, CLASSIFIER, HEAD, COPY, RULE = (60.0, 20.0, 10.0), 10.0, 5.0, 4.0, 3.0  # milliseconds of a batch


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(times, "now", made)
    return made


@pytest.fixture
def backbone(time: Time) -> Backbone:
    torch.manual_seed(0)
    stages = [Slow(nn.Linear(4, 4), each, time) for each in STAGES]
    return Backbone.from_stages(stages, Slow(nn.Linear(4, 3), CLASSIFIER, time), (4,))


@pytest.fixture
def model(backbone: Backbone, time: Time, monkeypatch: pytest.MonkeyPatch) -> MultiExit:
    made = MultiExit(backbone).eval()
    for head in made.heads.values():

        def slow(*given: Any, answer: Any = head.answer) -> Any:
            time.takes(HEAD)
            return answer(*given)

        monkeypatch.setattr(head, "answer", slow)

    def copied(x: Tensor, inputs: Any = made.inputs) -> Tensor:
        time.takes(COPY)
        return inputs(x)

    monkeypatch.setattr(made, "inputs", copied)
    return made


def test_each_part_takes_what_it_takes(model: MultiExit) -> None:
    costs = model.costs(unit="ms")
    assert isinstance(costs, ExitTimes)
    names = ["copy", "stage 1", "head 1", "stage 2", "head 2", "stage 3", "classifier"]
    assert list(costs.parts) == names
    np.testing.assert_allclose([each[0] for each in costs.parts.values()], [COPY, 60, HEAD, 20, HEAD, 10, CLASSIFIER])
    np.testing.assert_allclose(costs.backbone, COPY + sum(STAGES) + CLASSIFIER)
    np.testing.assert_allclose(costs.ms, [COPY + 60 + 5, COPY + 80 + 10, COPY + 90 + 10 + CLASSIFIER])
    assert (costs.batch_size, costs.exit_ends) == (1, (1, 2, 3))
    assert [line.split("  ")[0] for line in str(costs).splitlines()[:3]] == names[:3]


def test_milliseconds_are_a_samples_not_a_batchs(model: MultiExit) -> None:
    np.testing.assert_allclose(model.costs("ms", batch_size=4).ms, np.array(model.costs("ms").ms) / 4)


def test_a_rule_that_is_asked_counts_with_the_head(model: MultiExit, time: Time) -> None:
    seen = []

    def rule(history: list[Tensor]) -> Tensor:
        time.takes(RULE)
        seen.append(len(history))
        return ev.max_probability(0.5)(history)

    costs = model.costs("ms", rule=rule, repeats=5)
    np.testing.assert_allclose(costs.heads, [HEAD + RULE] * 2)
    np.testing.assert_allclose(costs.classifier, CLASSIFIER)
    assert seen == [1, 2] * (5 + times.WARM_UP), "each exit is asked about all before it, once a pass"


def test_quartiles_are_over_passes_that_count(model: MultiExit) -> None:
    first = model.backbone.stages[0]
    first.milliseconds, first.slower = 0.0, 1.0
    median, low, high = model.costs("ms", repeats=21).parts["stage 1"]
    np.testing.assert_allclose([median, low, high], np.array([10, 5, 15]) + times.WARM_UP)


def test_there_are_no_passes_after_the_time_given(model: MultiExit, time: Time, monkeypatch) -> None:
    a_pass = (COPY + sum(STAGES) + CLASSIFIER + 2 * HEAD) / 1000
    for given, passes in ((0.0, times.WARM_UP + times.LEAST), (9.5 * a_pass, 10), (1e9, times.WARM_UP + 30)):
        monkeypatch.setattr(times, "SECONDS", given)
        began = time.seconds
        model.costs("ms")
        assert (time.seconds - began) / a_pass == pytest.approx(passes)


def test_training_mode_comes_back(model: MultiExit) -> None:
    model.train().costs("ms", repeats=1)
    assert model.training
    assert model.head(1).training


def test_flops_are_those_of_exit_costs(model: MultiExit) -> None:
    assert model.costs() == model.costs(unit="flops") == exit_costs(model)


def test_exits_that_are_left_out_cost_nothing(model: MultiExit) -> None:
    for kept in ((1, 2, 3), (2, 3), (1, 3), (3,)):
        part = model.keeping(kept)
        assert part.exit_stages == kept[:-1]
        found = of_leaving(exit_costs(model), (1, 2, 3), kept)
        assert found.tolist() == list(exit_costs(part).flops)
    assert model.exit_stages == (1, 2), "the network keeps its own"
    assert len(model.heads) == 2


def test_exits_placed_by_time_and_by_flops(backbone: Backbone, capfd) -> None:
    """Of three stages with the same FLOPs the first takes 60 % of the time."""
    assert MultiExit(backbone, {"time": [55, 75]}).exit_stages == (1, 2)
    assert "exits: after stage 1 (60.0 %), stage 2 (80.0 %) of 100 ms, measured" in capfd.readouterr().err
    assert MultiExit(backbone, {"time": [85]}).exit_stages == (2,)
    assert MultiExit(backbone, {"flops": [32]}).exit_stages == (1,)
    with pytest.raises(EestudyError, match=r"exits: time: 50 % and 60 % both fall on stage 1 \(60\.0 %\)"):
        MultiExit(backbone, {"time": [50, 60]})


@pytest.mark.parametrize("shares", ["25", [], [0], [100], [25, None], 25, {"a": 1}])
def test_shares_that_are_none_are_refused(backbone: Backbone, shares: Any) -> None:
    for unit in ("time", "flops"):
        with pytest.raises(EestudyError, match=rf"^exits: {unit}: .* give per cents of the backbone"):
            MultiExit(backbone, {unit: shares})


@pytest.mark.parametrize("exits", [5, None, "some", {}, {"evry": 2}, {"every": 0}, {"every": "2"}, ["layer1"], [1.5],
                                   {"every": 1, "time": [25]}, [1, 1], (3,)])  # fmt: skip
def test_places_that_are_none_are_refused(backbone: Backbone, exits: Any) -> None:
    with pytest.raises(EestudyError, match=r"^exits: .* is not valid for 3 stages; give 'all' or .* from 1 to 2"):
        MultiExit(backbone, exits)


def test_a_run_is_not_placed_by_a_clock() -> None:
    with pytest.raises(EestudyError, match=r"^exits: .*time.* is not valid"):
        RunConfig(architecture="mlp", dataset="digits", strategy="joint", exits={"time": [25, 50]})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"unit": "mJ"}, "unit: 'mJ' needs counters of energy"),
        ({"unit": "seconds"}, "unit: unknown name 'seconds'; .*flops, ms"),
        *(({"unit": "ms", "batch_size": size}, f"batch_size: {size!r}") for size in (0, 1.5, True, "1")),
    ],
)
def test_other_units_and_sizes_are_refused(model: MultiExit, given: dict[str, Any], words: str) -> None:
    with pytest.raises(EestudyError, match=words):
        model.costs(**given)
