"""What an early metric says of the later winner, on frames made so that the answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eestudy.chapters import early_signs
from eestudy.chapters.early_signs import early_metrics, early_prediction, rank_correlations
from eestudy.config import EestudyError

STRATEGIES = ("disjoint", "joint", "mixed")
KEYS = ["cell", "seed", "strategy"]


def outcomes(accuracy: Callable[[int, int], Any], cells: int = 4, seeds: int = 3, budget: str = "50") -> pd.DataFrame:
    """accuracy(cell, seed) -> one a strategy."""
    rows = [
        (f"cell {cell}", seed, strategy, budget, value)
        for cell in range(cells)
        for seed in range(seeds)
        for strategy, value in zip(STRATEGIES, accuracy(cell, seed), strict=True)
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "budget", "accuracy"])


def metrics(outcome: pd.DataFrame, value: Any, name: str = "rank") -> pd.DataFrame:
    return outcome[KEYS].assign(metric=name, value=np.asarray(value, dtype=float))


def drawn(cells: int = 4, seeds: int = 3, number: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(number)
    return outcomes(lambda cell, seed: 0.5 + 0.1 * cell + 0.05 * generator.random(3), cells, seeds)


def only(frame: pd.DataFrame) -> Any:
    assert len(frame) == 1
    return next(frame.itertuples())


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_predictor_has_no_regret_whichever_its_direction(sign: int) -> None:
    outcome = drawn()
    row = only(early_prediction(metrics(outcome, sign * np.exp(9 * outcome["accuracy"])), outcome))
    assert (row.metric, row.budget, row.groups, row.cells) == ("rank", "50", 12, 4)
    assert row.correlation == sign
    assert row.regret == 0
    assert math.isnan(row.low)
    assert math.isnan(row.regret_high)
    assert "correlation: the same in all 12 groups: no interval" in row.note
    wide = outcome.pivot(index=["cell", "seed"], columns="strategy", values="accuracy")
    best = wide.max(axis=1)
    assert row.random_regret == pytest.approx((best - wide.mean(axis=1)).mean())
    assert row.fixed_regret == pytest.approx((best - wide["mixed"]).mean())
    assert row.less_fixed == pytest.approx(-row.fixed_regret)
    assert row.less_random_high < 0, "better than a draw, and the interval says so"
    assert row.random_low < row.random_regret < row.random_high


def test_independent_noise_has_intervals_with_0_and_the_regret_of_a_draw() -> None:
    covered = []
    for number in range(20):
        outcome = drawn(10, 4, number)
        noise = np.random.default_rng(100 + number).random(len(outcome))
        row = only(early_prediction(metrics(outcome, noise), outcome))
        covered.append((row.low <= 0 <= row.high, row.less_random_low <= 0 <= row.less_random_high))
        assert row.note == ""
    # 95 % of 20 is 19; 16 or fewer come up once in 60 times
    assert np.sum(covered, axis=0).min() >= 17


def test_a_direction_is_learnt_in_the_other_cells_only() -> None:
    outcome = drawn()
    flips = np.where(outcome["cell"] == "cell 0", -1, 1)
    row = only(early_prediction(metrics(outcome, flips * outcome["accuracy"]), outcome))
    assert row.correlation == pytest.approx((3 - 1) / 4)
    # In three cells it chooses the best; in cell 0, by the others' direction, the worst. With its own it had no regret.
    there = outcome[outcome["cell"] == "cell 0"].groupby("seed")["accuracy"]
    assert row.regret == pytest.approx((there.max() - there.min()).mean() / 4)


def test_a_direction_that_ties_is_a_draw() -> None:
    outcome = drawn(3)
    flips = outcome["cell"].map({"cell 0": 1, "cell 1": -1, "cell 2": 1})
    row = only(early_prediction(metrics(outcome, flips * outcome["accuracy"]), outcome))
    groups = outcome.groupby(["cell", "seed"])["accuracy"]
    draw = (groups.max() - groups.mean()).groupby("cell").mean()
    worst = (groups.max() - groups.min()).groupby("cell").mean()
    # cells 0 and 2 see one cell for and one against; cell 1 sees two for, and is against
    assert row.regret == pytest.approx((draw["cell 0"] + draw["cell 2"] + worst["cell 1"]) / 3)


def test_the_reference_is_chosen_in_the_other_cells() -> None:
    # joint is best by far in cell 0, so on average too; disjoint is in the others
    outcome = outcomes(lambda cell, seed: (0.6, 0.9, 0.5) if cell == 0 else (0.62, 0.6, 0.55))
    row = only(early_prediction(metrics(outcome, outcome["accuracy"]), outcome))
    # cell 0 gets disjoint (regret 0.3); cells 1 to 3 get joint, for cell 0's sake (0.02)
    assert row.reference_regret == pytest.approx((0.3 + 3 * 0.02) / 4)
    assert row.less_reference == pytest.approx(-row.reference_regret)
    assert row.fixed_regret == pytest.approx((0.4 + 3 * 0.07) / 4)
    fixed = only(early_prediction(metrics(outcome, outcome["accuracy"]), outcome, fixed="joint"))
    assert fixed.fixed_regret == pytest.approx(3 * 0.02 / 4)


def test_ties() -> None:
    assert list(rank_correlations(np.array([[1, 1, 2], [3, 3, 3.0]]), np.array([[1, 2, 3], [1, 2, 3]]))) == [
        pytest.approx(math.sqrt(3) / 2),
        0,
    ]
    assert np.isnan(rank_correlations(np.array([[1, 2, 3]]), np.array([[5, 5, 5]]))).all()
    outcome = outcomes(lambda cell, seed: (0.5, 0.7, 0.8))
    row = only(early_prediction(metrics(outcome, np.ones(len(outcome))), outcome))
    assert row.correlation == 0
    assert row.regret == pytest.approx(row.random_regret)
    two = only(early_prediction(metrics(outcome, np.tile([0, 1, 1], 12)), outcome))
    assert two.regret == pytest.approx(0.05), "of joint and mixed one is drawn"
    # a group whose accuracies are equal has nothing to rank
    even = outcomes(lambda cell, seed: (0.5, 0.5, 0.5) if cell == 0 and seed == 0 else (0.5, 0.7, 0.8))
    row = only(early_prediction(metrics(even, np.tile([0, 1, 2], 12)), even))
    assert (row.correlation, row.regret, row.groups) == (1, 0, 12)
    assert "1 groups with equal accuracies not ranked" in row.note


def test_small_differences_of_a_metric_are_differences() -> None:
    outcome = drawn()
    row = only(early_prediction(metrics(outcome, 1e-15 * outcome["accuracy"]), outcome))
    assert (row.correlation, row.regret) == (1, 0)


def test_one_cell_has_no_other_to_learn_from() -> None:
    outcome = drawn(1, 6)
    row = only(early_prediction(metrics(outcome, outcome["accuracy"]), outcome))
    assert row.correlation == 1
    assert math.isnan(row.regret)
    assert math.isnan(row.reference_regret)
    assert row.random_regret > 0
    assert "no other to learn" in row.note


def test_cells_are_resampled_where_there_are_enough() -> None:
    """Seeds of a cell agree: 10 cells of 4 seeds are 10 numbers, not 40."""
    generator = np.random.default_rng(3)
    outcome = outcomes(lambda cell, seed: (0.5, 0.6, 0.7), 10, 4)
    metric = metrics(outcome, np.concatenate([np.tile(generator.random(3), 4) for _ in range(10)]))
    row = only(early_prediction(metric, outcome))
    by_cell = [rank_correlations(np.array([part["value"][:3]]), np.array([[1, 2, 3]]))[0] for _, part in
               metric.groupby("cell", sort=False)]  # fmt: skip
    mean, half = np.mean(by_cell), 2.262 * np.std(by_cell, ddof=1) / math.sqrt(10)  # Student t, 9 degrees of freedom
    assert row.correlation == pytest.approx(mean)
    assert (row.high - row.low) / 2 == pytest.approx(half, rel=0.15)
    assert "cells" not in row.note
    few = only(early_prediction(metric[metric["cell"] < "cell 7"], outcome))
    assert few.cells == 7
    assert "fewer than 8 cells: intervals over (cell, seed), for these cells only" in few.note


def test_the_interval_of_many_groups_is_students() -> None:
    values, cells = np.random.default_rng(0).normal(size=60), np.repeat([1, 2, 3], 20)
    interval = early_signs._draw(cells, 20000).interval(values[None])
    expected = early_signs.st.mean_interval(values)
    assert (interval.mean, interval.n) == (pytest.approx(expected.mean), 60)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert early_signs._draw(cells, 20000).interval(values[None]) == interval


@pytest.mark.parametrize("cells", [3, 9])  # groups are drawn, cells are
def test_the_other_cells_of_a_draw(cells: int) -> None:
    """Against the slow way: the means of the groups drawn in each other cell, a cell drawn twice counted twice."""
    draws = early_signs._draw(np.repeat(np.arange(cells), 2), 50)
    values = np.random.default_rng(5).random((2 * cells, 1))
    values[4] = math.nan
    assert draws.weights.sum(axis=1) == pytest.approx(2 * cells)
    for weights, copies, found in zip(draws.weights, draws.copies, draws.elsewhere(values)):
        for own in range(cells):
            means, counts = [], []
            for cell in set(range(cells)) - {own}:
                drawn = [(values[g, 0], weights[g]) for g in (2 * cell, 2 * cell + 1) if weights[g] and g != 4]
                if drawn:
                    means.append(np.average([v for v, _ in drawn], weights=[w for _, w in drawn]))
                    counts.append(weights[2 * cell] if cells == 9 else 1)
            expected = np.average(means, weights=counts) if means else 0
            assert found[2 * own, 0] == found[2 * own + 1, 0] == pytest.approx(expected)
        assert (copies > 0).any()


def test_every_metric_meets_every_budget_on_the_groups_they_share() -> None:
    first, second = drawn(), drawn(2, number=1).assign(budget="25")
    outcome = pd.concat([first, second])
    metric = pd.concat([metrics(first, first["accuracy"]), metrics(first, -first["accuracy"], "norm")[:18]])
    lone = metrics(second, second["accuracy"], "late").assign(cell="elsewhere " + second["cell"])
    frame = early_prediction(pd.concat([metric, lone]), outcome)
    assert list(zip(frame["metric"], frame["budget"], frame["groups"])) == [
        *(("rank", "50", 12), ("rank", "25", 6), ("norm", "50", 6), ("norm", "25", 6)),
        *(("late", "50", 0), ("late", "25", 0)),
    ]
    assert frame.loc[2, "correlation"] == -1
    assert frame.loc[4, "note"] == "no (cell, seed) has both"
    assert frame.loc[[4, 5], "regret"].isna().all()
    shuffled = pd.concat([metric, lone]).iloc[::-1]
    again = early_prediction(shuffled, outcome).set_index(["metric", "budget"])
    pd.testing.assert_frame_equal(again.loc[list(zip(frame["metric"], frame["budget"]))].reset_index(), frame)


OUTCOME = drawn()
METRIC = metrics(OUTCOME, OUTCOME["accuracy"])


@pytest.mark.parametrize(
    ("metric", "outcome", "settings", "message"),
    [
        (METRIC.drop(columns="value"), OUTCOME, {}, "metrics: lacks the column 'value'"),
        (METRIC, OUTCOME.drop(columns="budget"), {}, "outcomes: lacks the column 'budget'"),
        (METRIC[1:], OUTCOME, {}, r"metrics: metric 'rank' of cell 0, seed 0 has no value for disjoint \(1 missing\)"),
        (METRIC, OUTCOME[:-1], {}, "outcomes: budget '50' of cell 3, seed 2 has no value for mixed"),
        (METRIC, OUTCOME.assign(accuracy=[math.nan, *OUTCOME["accuracy"][1:]]), {}, "cell 0, seed 0 has no value"),
        (METRIC.assign(value=math.nan), OUTCOME, {}, "metrics: has no value"),
        (METRIC.assign(value=math.inf), OUTCOME, {}, "metrics: cell 0, seed 0, disjoint, rank: value is infinite"),
        (pd.concat([METRIC, METRIC]), OUTCOME, {}, "cell 0, seed 0, disjoint, rank: is given more than once"),
        (METRIC, OUTCOME, {"fixed": "mixd"}, "fixed: unknown name 'mixd'; nearest: mixed"),
        (METRIC[::3], OUTCOME[::3], {"fixed": "disjoint"}, "strategies: only disjoint"),
    ],
)
def test_a_mistake_is_named(metric: pd.DataFrame, outcome: pd.DataFrame, settings: dict, message: str) -> None:
    with pytest.raises(EestudyError, match=message) as raised:
        early_prediction(metric, outcome, **settings)
    assert "\n" not in str(raised.value)


def test_early_metrics_are_of_the_last_checkpoint_that_all_strategies_have():
    rows = [
        {"cell": "a", "strategy": strategy, "seed": 0, "run": strategy, "phase": phase, "share": share,
         "progress": (share / 100 if strategy == "joint" else (phase - 1 + share / 100) / 2)}
        for strategy, phases in (("joint", (1,)), ("mixed", (1, 2)))
        for phase in phases for share in (0, 5, 10, 50, 100) if share or phase == 1
    ]  # fmt: skip
    base = pd.DataFrame(rows)
    marked = base.assign(mark=100 * base["phase"] + base["share"])
    dominance = pd.concat([marked.assign(stage=0, exit=exit, norm_share=0.5) for exit in (1, 2)])
    conflict = marked.assign(stage=0, kind="exits", negative_rate=marked["mark"])
    rank = pd.concat([marked.assign(stage=stage, numerical_share=marked["mark"]) for stage in (1, 2, 3)])

    def seen(per_cent, when):
        found = early_metrics(dominance, conflict, rank, per_cent, when)
        assert (found[found["metric"] == "evenness"]["value"].round(6) == 1).all()
        late = found[found["metric"] == "rank of late stages"].set_index("strategy")["value"].to_dict()
        assert late == found[found["metric"] == "conflicts"].set_index("strategy")["value"].to_dict()
        return late

    assert seen(5, "run") == {"joint": 105, "mixed": 110}
    assert seen(10, "run") == {"joint": 105, "mixed": 110}, "mixed has no checkpoint at 10 % of the run"
    assert seen(50, "run") == {"joint": 150, "mixed": 200}
    assert seen(10, "last phase") == {"joint": 110, "mixed": 210}
    assert seen(1, "last phase") == {"joint": 100, "mixed": 200}
    with pytest.raises(EestudyError, match="when: unknown name 'first'"):
        seen(5, "first")
