"""Verdicts on claims, on comparison frames made by hand."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from eestudy.report import Results, claims, tables
from eestudy.report import statistics as st

PAIRS = (("mixed", "joint"), ("mixed", "disjoint"), ("joint", "disjoint"))
CELLS = ("a", "b", "c", "d")
JITTER = {"a": -0.001, "b": 0.001, "c": 0.002, "d": 0.0}


def comparisons(effect: dict[tuple[str, str], float], cells: tuple[str, ...] = CELLS) -> pd.DataFrame:
    """A comparison frame: effect by (pair, budget), 0 where not given, with some spread over cells."""
    rows = [
        {
            "cell": cell,
            "a": a,
            "b": b,
            "pair": f"{a} − {b}",
            "budget": budget,
            "n": 2,
            "sd": 0.002,
            "note": "",
        }
        | {"mean": effect.get((f"{a}-{b}", budget), 0.0) + JITTER[cell], "low": -0.01, "high": 0.01, "p": 0.5}
        for cell in cells
        for a, b in PAIRS
        for budget in ("25", "50", "100", "max")
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("early", "late", "verdict"),
    [
        (0.10, -0.05, "supported"),
        (-0.10, 0.05, "supported"),
        (0.10, 0.05, "contradicted"),
        (0.10, 0.0, "not decided"),
    ],
)
def test_c1(early: float, late: float, verdict: str) -> None:
    claim = claims.c1(comparisons({("joint-disjoint", "25"): early, ("joint-disjoint", "100"): late}))
    assert claim.verdict == verdict
    assert len(claim.effects) == 2


def test_c1_takes_the_smallest_budget_that_every_cell_reaches() -> None:
    frame = comparisons({("joint-disjoint", "50"): 0.1, ("joint-disjoint", "100"): -0.1})
    frame.loc[(frame["cell"] == "a") & (frame["budget"] == "25"), "mean"] = float("nan")
    claim = claims.c1(frame)
    assert list(claim.effects["budget"]) == ["50", "100"]
    assert claim.verdict == "supported"


def gain(value: float, but: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    everywhere = {(f"mixed-{o}", b): value for o in ("joint", "disjoint") for b in ("25", "50", "100")}
    return everywhere | but


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (gain(0.05, {}), "supported"),
        (gain(0.05, {("mixed-joint", "25"): -0.05}), "contradicted"),
        (gain(0.05, {("mixed-joint", "25"): 0.0}), "not decided"),
        (gain(0.05, {("mixed-joint", "max"): -0.05}), "supported"),
    ],
)
def test_c2(effect: dict[tuple[str, str], float], verdict: str) -> None:
    claim = claims.c2(comparisons(effect))
    assert claim.verdict == verdict
    assert "max" not in set(claim.effects["budget"])


def test_one_cell_is_decided_by_its_seeds() -> None:
    frame = comparisons({}, cells=("a",))
    claim = claims.c2(frame)
    assert set(claim.effects["unit"]) == {"seeds"}
    assert claim.verdict == "not decided"
    decided = claims.c2(frame.assign(mean=0.05, low=0.04, high=0.06, p=1e-6))
    assert decided.verdict == "supported"


def test_a_study_without_joint_decides_nothing() -> None:
    frame = comparisons(gain(0.05, {}))
    frame = frame[frame["pair"] == "mixed − disjoint"]
    assert claims.c1(frame).verdict == "not decided"
    assert "not compared" in claims.c1(frame).reason
    assert claims.c2(frame).verdict == "not decided"


def test_claims_and_answer_rest_on_the_same_corrected_tests() -> None:
    frame = comparisons({("joint-disjoint", "25"): 0.1})
    table = claims.over_cells(frame)
    assert len(table) == 9  # 3 pairs x 25, 50, 100
    assert table["p_holm"].to_numpy() == pytest.approx(st.holm(table["p"]))
    told = claims.c1(frame).effects["verdict"].iloc[0]
    assert told in claims.answer(frame)


def test_claims_read_a_study(results: Results) -> None:
    frame = tables.comparisons(results)
    text = claims.c1(frame)._repr_markdown_()
    assert text.startswith("**C1: ")
    assert "95 % interval" in text or "no interval" in text


def last_exits(
    gains: dict[str, float], strategies: tuple[str, ...] = ("joint", "disjoint"), **settings: int
) -> Results:
    """Exits of five seeds: joint's last exit is ahead by the gain of the data set, its first one far behind."""
    runs, exits = [], []
    for dataset, gain in gains.items():
        for architecture in ("resnet18", "minilm"):  # the second one was trained before
            for strategy in strategies:
                for seed in range(5):
                    labels = {"architecture": architecture, "dataset": dataset, "strategy": strategy, "seed": seed}
                    run = f"{architecture}-{dataset}-{strategy}-{seed}"
                    facts = {"method": "sdn", "backbone_flops": 1.0, "training_flops": 1.0, "seconds": 1.0,
                             "hardware": "h", "versions": "v", "commit": "c"}  # fmt: skip
                    runs.append({"run": run, **labels, **facts, "config": json.dumps(labels | settings)})
                    for exit, ahead in ((1, -0.5), (3, gain if architecture == "resnet18" else 0.2)):
                        accuracy = 0.6 + 0.01 * seed + (strategy == "joint") * (ahead + 0.001 * (seed % 2))
                        exits.append({"run": run, "exit": exit, "stage": exit, "flops": 1.0, "params": 1,
                                      "accuracy": accuracy, "nll": 1.0, "ece": 0.0})  # fmt: skip
    return Results("made-up", None, {"runs": pd.DataFrame(runs), "exits": pd.DataFrame(exits)})


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"imagenet": -0.05, "digits": 0.05}, "supported"),
        ({"imagenet": 0.05, "digits": 0.05}, "contradicted"),
        ({"imagenet": -0.05, "digits": -0.05}, "not decided"),
        ({"imagenet": 0.0, "digits": 0.05}, "not decided"),
        ({"digits": 0.05}, "not decided"),
    ],
)
def test_c7(gains: dict[str, float], verdict: str) -> None:
    claim = claims.c7(last_exits(gains))
    assert claim.verdict == verdict
    assert claim.effects["mean"].to_numpy() == pytest.approx([*gains.values()], abs=1e-3)
    assert claim.reason.startswith("no cell has large data") == ("imagenet" not in gains)
    word = "better" if gains["digits"] > 0 else "worse"
    assert f"resnet18 / digits, last exit, joint against disjoint: {word} by " in claim.reason


def test_c7_takes_a_part_of_large_data_for_small_data() -> None:
    claim = claims.c7(last_exits({"imagenet": 0.05}, train_size=1000))
    assert claim.verdict == "not decided"
    assert claim.reason.startswith("no cell has large data")


def test_c7_without_joint() -> None:
    claim = claims.c7(last_exits({"digits": 0.05}, ("disjoint", "mixed")))
    assert (claim.verdict, claim.reason) == ("not decided", claims.NOT_COMPARED)


def test_findings_list_only_what_is_decided() -> None:
    frame = comparisons({}).assign(decision="", verdict="no difference seen")
    assert "decide 0; 48 were tested without a difference seen, 0 could not" in claims.findings(frame)
    frame.loc[0, ["decision", "verdict"]] = ["better", "better by 1 point"]
    assert claims.findings(frame).splitlines()[2:] == ["- a at 25 %: mixed against joint: better by 1 point."]


def test_answer_speaks_of_every_pair_at_every_budget_that_all_reach() -> None:
    frame = comparisons({("mixed-joint", "100"): 0.05})
    frame.loc[(frame["cell"] == "a") & (frame["budget"] == "25"), "mean"] = float("nan")
    text = claims.answer(frame)
    assert "over 4 cells, Holm-corrected over these 6 comparisons" in text
    assert "- At 100 %:\n  - mixed against joint: better by 5." in text
    assert "At 25 %:" not in text
    assert "Left out, because not every cell reaches it: 25 %." in text
    assert claims.answer(frame.assign(mean=float("nan"))).startswith("No budget")


def test_limits_say_what_seeds_cannot_show(results: Results) -> None:
    text = claims.limits(tables.comparisons(results))
    assert text.startswith("With 2 seeds")
    frame = comparisons({}).assign(n=1, sd=float("nan"))
    assert claims.limits(frame).startswith("One seed a cell")
