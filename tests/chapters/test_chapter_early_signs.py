"""What an early metric says of the later winner, on frames made so that the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eestudy.chapters.early_signs import early_metrics, early_prediction, in_short, rank_correlations
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
    assert (row.correlation, row.regret) == (sign, 0)
    wide = outcome.pivot(index=["cell", "seed"], columns="strategy", values="accuracy")
    best = wide.max(axis=1)
    assert row.random == pytest.approx((best - wide.mean(axis=1)).mean())
    assert row.fixed == pytest.approx((best - wide["mixed"]).mean())
    assert row.less == pytest.approx(-row.fixed)


def test_intervals_are_over_cells_whose_groups_are_averaged_first() -> None:
    """Two cells that differ and agree within: many seeds are no more evidence than one."""
    found = []
    for seeds in (1, 9):
        outcome = outcomes(lambda cell, seed: (0.5, 0.6, 0.7) if cell % 2 else (0.7, 0.6, 0.5), 4, seeds)
        found.append(only(early_prediction(metrics(outcome, list(range(3)) * (4 * seeds)), outcome)))
    assert found[0].correlation == found[1].correlation == 0
    assert (found[0].low, found[0].high) == pytest.approx((found[1].low, found[1].high))
    assert found[0].low < -1


def test_a_direction_is_learnt_in_the_other_cells_only() -> None:
    """In cell 0 low values are good, in the others high ones are: cell 0 is chosen wrongly, the others rightly."""
    outcome = outcomes(lambda cell, seed: (0.5, 0.6, 0.7) if cell else (0.7, 0.6, 0.5))
    row = only(early_prediction(metrics(outcome, list(range(3)) * 12), outcome))
    assert row.regret == pytest.approx(0.2 / 4)


def test_ties_take_the_mean_and_a_constant_metric_tells_nothing() -> None:
    outcome = outcomes(lambda cell, seed: (0.5, 0.6, 0.7))
    row = only(early_prediction(metrics(outcome, np.ones(36)), outcome))
    assert row.correlation == 0
    assert row.regret == pytest.approx(row.random) == pytest.approx(0.1)
    x, y = np.array([[1.0, 2, 3], [1, 1, 1], [3, 2, 1]]), np.array([[1.0, 2, 3], [1, 2, 3], [1, 1, 1]])
    assert rank_correlations(x, y)[:2].tolist() == [1, 0]
    assert np.isnan(rank_correlations(x, y)[2])


def test_a_group_that_lacks_a_strategy_is_left_out_and_one_cell_is_refused() -> None:
    outcome = drawn()
    metric = metrics(outcome, outcome["accuracy"])
    assert only(early_prediction(metric[1:], outcome)).groups == 11
    with pytest.raises(EestudyError, match="3 strategies in 1 cells"):
        early_prediction(metric, drawn(cells=1))


def test_what_is_said_first_counts_the_cases() -> None:
    outcome = drawn()
    found = early_prediction(metrics(outcome, -(outcome["accuracy"] ** 2)), outcome)
    said = in_short(found.assign(less_low=-0.2, less_high=-0.1))
    assert "Some early signs beat always mixed: choosing by a metric loses less in 1 and more in 0 of 1 cases" in said
    assert "No early sign is shown to beat" in in_short(found.assign(less_low=0.1, less_high=0.2))


def test_early_metrics_are_of_the_last_checkpoint_within_the_last_phase() -> None:
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

    def seen(per_cent: int) -> dict[str, float]:
        found = early_metrics(dominance, conflict, rank, per_cent)
        assert (found[found["metric"] == "evenness"]["value"].round(6) == 1).all()
        late = found[found["metric"] == "rank of late stages"].set_index("strategy")["value"].to_dict()
        assert late == found[found["metric"] == "conflicts"].set_index("strategy")["value"].to_dict()
        return late

    assert seen(10) == {"joint": 110, "mixed": 210}
    assert seen(1) == {"joint": 100, "mixed": 200}
