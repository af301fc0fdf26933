"""One study under two values of a setting: pairing, correction, and what may be called a changed conclusion."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import synthetic_study
from scipy import stats

from eestudy.chapters import families, precision
from eestudy.config import EestudyError
from eestudy.report import Results, tables
from eestudy.report.frames import only


def twice(change: dict[str, float], noise: float = 0.0005) -> Results:
    """A made-up study of four seeds in float32, and in bfloat16 with `change` added to a strategy's accuracies."""
    once, again = synthetic_study.frames(4), synthetic_study.frames(4)
    for frame in again.values():
        frame["run"] += "-low"
    again["runs"]["config"] = [
        json.dumps(json.loads(text) | {"precision": "bfloat16"}) for text in again["runs"]["config"]
    ]
    strategies = again["runs"].set_index("run")["strategy"]
    draws = np.random.default_rng(1).normal(0, noise, len(again["budgets"]))
    again["budgets"]["accuracy"] += again["budgets"]["run"].map(strategies).map(change).fillna(0.0) + draws
    frames = {name: pd.concat([once[name], again[name]], ignore_index=True) for name in once}
    return Results("x", None, frames)


def halves(results: Results) -> tuple[Results, Results]:
    return only(results, "precision", "bfloat16"), only(results, "precision", "float32")


def test_a_default_that_runs_leave_out_is_a_value_too() -> None:
    results = twice({})
    assert len(results.cells) == 4
    assert "mlp / digits, precision float32" in results.cells
    low, high = halves(results)
    assert low.cells == high.cells == ["mlp / digits", "vit1d / mnist1d"]
    assert low.runs["run"].str.endswith("-low").all()
    assert not high.runs["run"].str.endswith("-low").any()
    assert len(low.exits) + len(high.exits) == len(results.exits)
    with pytest.raises(EestudyError, match=r"^setting: unknown name 'precison'; nearest: precision"):
        only(results, "precison", "float32")
    with pytest.raises(EestudyError, match=r"precision: no run of x has 'float16'; there are float32, bfloat16"):
        only(results, "precision", "float16")


def test_differences_of_accuracy_are_paired_over_seeds() -> None:
    low, high = halves(twice({"joint": -0.02}))
    frame = precision.accuracies(low, high)
    row = frame[(frame["cell"] == "mlp / digits") & (frame["strategy"] == "joint") & (frame["budget"] == "50")].iloc[0]
    at = [
        tables.select(half.budgets, "calibrated", "max-probability")
        .query("cell == 'mlp / digits' and strategy == 'joint' and budget == '50'")
        .sort_values("seed")["accuracy"]
        .to_numpy()
        for half in (low, high)
    ]
    expected = stats.ttest_rel(*at)
    assert row["mean"] == pytest.approx((at[0] - at[1]).mean())
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert row["p_holm"] >= row["p"]
    assert set(frame.loc[frame["decision"] == "worse", "strategy"]) == {"joint"}
    said = precision.in_short(frame, precision.conclusions(low, high), "bfloat16", "float32")
    assert f"{(frame['decision'] != '').sum()} of {len(frame)} accuracies differ" in said


def test_the_same_change_of_all_strategies_changes_no_conclusion() -> None:
    low, high = halves(twice(dict.fromkeys(("disjoint", "joint", "mixed"), -0.02)))
    assert (precision.accuracies(low, high)["decision"] == "worse").all()
    frame = precision.conclusions(low, high)
    assert (frame["decision"] == "").all()
    assert (frame["change"] != "reversed").all()
    said = precision.in_short(precision.accuracies(low, high), frame, "bfloat16", "float32")
    assert "No conclusion is seen to change" in said
    assert "0 are decided in opposite ways" in said


def test_a_change_of_one_strategy_reverses_its_lead() -> None:
    low, high = halves(twice({"mixed": -0.06}))
    frame = precision.conclusions(low, high)
    reversed_ = frame[frame["change"] == "reversed"]
    assert len(reversed_)
    assert reversed_["pair"].str.startswith("mixed").all()
    assert (reversed_["in_a"] < 0).all()
    assert (reversed_["in_b"] > 0).all()
    assert (frame.loc[frame["pair"] == "joint − disjoint", "decision"] == "").all()
    said = precision.in_short(precision.accuracies(low, high), frame, "bfloat16", "float32")
    assert f"{len(reversed_)} are decided in opposite ways" in said
    assert "conclusions change between bfloat16 and float32" in said


def test_tables_and_figure_show_every_row() -> None:
    low, high = halves(twice({}))
    accuracies, conclusions = precision.accuracies(low, high), precision.conclusions(low, high)
    table = precision.accuracy_table(accuracies, "low", "high").data
    assert (table != tables.DASH).sum().sum() == len(accuracies)
    leads = precision.conclusion_table(conclusions, "low", "high").data
    assert list(leads.columns) == ["low", "high", "difference"]
    assert len(leads) == len(conclusions)
    assert len(precision.accuracy_plot(accuracies, "low", "high").axes) == 2


def test_parts_with_nothing_in_common_are_refused() -> None:
    low, high = halves(twice({}))
    other = synthetic_study.frames(2, (("resnet1d", "mnist1d", 4),))
    with pytest.raises(EestudyError, match="no cell, strategy and budget in common"):
        precision.accuracies(low, Results("x", None, other))
    assert len(precision.accuracies(low, high))


def test_one_seed_is_told_without_a_verdict() -> None:
    results = Results("x", None, synthetic_study.frames(1))
    text = families.savings(results)
    assert "nothing here says which strategy is better" in families.in_short(results)
    assert "better by" not in text
    assert text.count("- **") == 2
    exits = results.exits[(results.exits["cell"] == "mlp / digits") & (results.exits["strategy"] == "joint")]
    accuracy = exits.sort_values("exit")["accuracy"].to_numpy()
    near = 1 + int(np.argmax(accuracy >= accuracy[-1] - 0.01))
    assert f"joint: {100 * accuracy[0]:.1f} % at exit 1" in text
    assert f"first within a point of it at exit {near}" in text
    assert "2 cells, strategies disjoint, joint, mixed, 1 seed each." in tables.described(results)
