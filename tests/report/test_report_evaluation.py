"""Figures and tables of the evaluation: the numbers are the tables' numbers, and what has no answer is a dash."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch

from eestudy.analysis import evaluations
from eestudy.chapters import calibration, difficulty, thresholds
from eestudy.config import EestudyError
from eestudy.evaluation import difficulty as samples_of
from eestudy.evaluation import ood_detection, run_tables
from eestudy.evaluation.run_tables import Predicted, or_reason, stacked
from eestudy.report import explorer, style
from eestudy.report.effects import counted

COSTS, BACKBONE = (110, 230, 350, 470, 620), 600.0
STRATEGIES = ("disjoint", "joint", "mixed")
LABELS = ("cell", "architecture", "dataset", "strategy", "method", "seed", "run")
WHY = "rule: a regression has none"


def predicted(strategy: str, seed: int) -> Predicted:
    """Logits that get better from exit to exit; a strategy is better at its own depth."""
    generator = torch.Generator().manual_seed(10 * seed + STRATEGIES.index(strategy))
    pairs = []
    for size in (150, 200):
        labels = torch.randint(6, (size,), generator=generator)
        logits = torch.randn((5, size, 6), generator=generator)
        gain = torch.linspace(0.5 + 0.5 * STRATEGIES.index(strategy), 2.5, 5)
        logits[:, torch.arange(size), labels] += gain[:, None]
        pairs.append(((2 * logits).numpy(), labels.numpy()))
    return Predicted(pairs[0], pairs[1], np.array(COSTS, dtype=float), BACKBONE)


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    """The tables of one cell (3 strategies, 2 seeds), and of a second that has no answer to anything."""
    made: dict[str, list[pd.DataFrame]] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_tables, "STEPS", 9)
        patched.setattr(run_tables, "DRAWS", 3)
        for strategy in STRATEGIES:
            for seed in (0, 1):
                for name, frame in _tables(predicted(strategy, seed)).items():
                    frame = frame.assign(**_labels("a / b", strategy, seed))
                    made.setdefault(name, []).append(frame)
    for name, parts in made.items():
        parts.append(pd.DataFrame([{**_labels("c / d", "joint", 0), "rule": "max-probability", "reason": WHY}]))
        if name in ("reliability", "bins"):
            parts[-1]["scaled"] = True
    return {name: stacked(parts) for name, parts in made.items()}


def _labels(cell: str, strategy: str, seed: int) -> dict[str, object]:
    values = (cell, *cell.split(" / "), strategy, "sdn", seed, f"{cell}-{strategy}-{seed}")
    return dict(zip(LABELS, values, strict=True))


def _tables(run: Predicted) -> dict[str, pd.DataFrame]:
    logits, labels = run.test
    classes = samples_of.predicted_classes(logits, labels)
    samples = samples_of.sample_table([classes], np.asarray(labels))
    group = samples_of.group_of(samples["difficulty"].to_numpy())
    rule = run_tables.dynamic_rule(run.validation, run)
    leaving, exits = samples_of.leaving(logits, np.asarray(labels), rule, group)
    agreement = samples_of.exit_agreement([classes, classes]).query("place == 0")
    noise = torch.randn(5, 50, 6, generator=torch.Generator().manual_seed(1)).numpy()
    ood = or_reason(lambda: ood_detection(logits, noise, rule), outside="noise")
    pictures = samples_of.examples(samples, exits).assign(
        label_name="coat", majority_name="shirt", shape="1x2x2", reason="", pixels=[np.arange(4)] * 26
    )
    return {
        "allocation": run_tables.allocation(run), "explorer": run_tables.explorer(run), "risk": run_tables.risk(run),
        "draws": run_tables.draws(run), **run_tables.reliability(run),
        "ood": ood.assign(cost=0.6, cost_inside=0.5), "samples": samples.assign(group=group, reason=""),
        "leaving": leaving.assign(reason=""), "agreement": agreement.assign(reason=""), "examples": pictures,
        "curves": pd.DataFrame([{"goal_of": goal, "area": 0.8, "cost": 0.4, "reason": ""} for goal in ("own", "best")]),
    }  # fmt: skip


Shown = Callable[[dict[str, pd.DataFrame]], object]
FIGURES: dict[str, Shown] = {
    "misses": lambda f: thresholds.miss_plot(f["allocation"], "max-probability"),
    "diagrams": lambda f: calibration.reliability_diagrams(f["bins"], True),
    "ece": lambda f: calibration.by_exit(f["reliability"], "ece"),
    "auroc": lambda f: calibration.by_exit(f["reliability"], "auroc"),
    "ood samples": lambda f: calibration.ood_plot(f["ood"], "noise"),
    "nobody": lambda f: calibration.ood_plot(f["ood"], "turned"),
    "agreement": lambda f: difficulty.agreement_plot(f["agreement"]),
    "leaving": lambda f: difficulty.leaving_plot(f["leaving"]),
    "examples": lambda f: difficulty.examples_plot(f["examples"], "a / b", "hard"),
}
TABLES: dict[str, Shown] = {
    "misses": lambda f: thresholds.miss_table(f["allocation"], "max-probability"),
    "curves": lambda f: thresholds.curve_table(f["curves"]),
    "risk": lambda f: thresholds.risk_table(f["risk"], 0.9),
    "reliability": lambda f: calibration.metric_table(f["reliability"]),
    "ood samples": lambda f: calibration.ood_table(f["ood"]),
    "difficulty": lambda f: difficulty.sizes_table(f["samples"]),
    "depth": lambda f: difficulty.depth_table(f["leaving"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_and_the_same_again(name, frames):
    first, second = (FIGURES[name](frames) for _ in range(2))
    assert isinstance(first, style.Plot)
    assert isinstance(second, style.Plot)
    assert first.png(40) == second.png(40)
    assert first.shows


@pytest.mark.parametrize("name", TABLES)
def test_tables_say_why_there_is_no_number(name, frames):
    table = TABLES[name](frames)
    text, caption = repr(table), str(getattr(table, "caption", ""))
    assert "nan" not in text.lower().replace("dominan", "")
    if name != "risk":  # what risk control refuses is told by `certified`
        assert WHY in caption


def test_the_numbers_in_the_page_are_the_table_s(frames):
    shown = explorer.Explorer(frames["explorer"])._repr_html_()
    found = re.search(r'<script type="application/json">(.*?)</script>', shown, re.DOTALL)
    assert found
    (cell,) = json.loads(found.group(1))["cells"]
    assert (cell["cell"], cell["exits"], cell["score"], len(cell["curves"])) == ("a / b", 5, "accuracy", 9)
    for curve in cell["curves"]:
        rows = frames["explorer"].query("strategy == @curve['strategy'] and allocation == @curve['method']")
        means = rows.groupby("budget")[["accuracy", "cost", *(f"left_{k}" for k in range(1, 6))]].mean()
        assert cell["budgets"] == pytest.approx(list(means.index), abs=1e-4)
        assert curve["accuracy"] == pytest.approx(list(means["accuracy"]), abs=1e-4)
        assert curve["cost"] == pytest.approx(list(means["cost"]), abs=1e-4)
        shares = means.drop(columns=["accuracy", "cost"]).to_numpy() / 200
        np.testing.assert_allclose(curve["shares"], shares, atol=1e-4)
        first = rows[rows["seed"] == 0].sort_values("budget")
        for given, row in zip(curve["thresholds"], first.itertuples(), strict=True):
            for k, value in enumerate(given, 1):
                known = getattr(row, f"threshold_{k}")
                same = pytest.approx(known, rel=1e-7, abs=0)
                assert value == (None if known == math.inf else "all" if known == -math.inf else same)
        for low, mean, high in zip(curve["low"], curve["accuracy"], curve["high"], strict=True):
            assert low is None or low <= mean <= high


def test_the_page_needs_nothing_from_elsewhere(frames):
    shown = explorer.Explorer(frames["explorer"], "two")
    page = shown._repr_html_()
    assert 'id="two"' in page
    assert 'getElementById("two")' in page
    assert not re.findall(r"(?:src|href)=|url\(|@import|fetch\(|import\(", page)
    assert "<svg" in page.split('type="application/json"')[0], "a drawing that needs no script"
    assert page.count("<script") == page.count("</script>") == 2
    assert repr(shown).startswith("Explorer: 1 cells, a slider over 9 budgets")
    with pytest.raises(EestudyError, match=f"explorer: no run has an answer: {WHY}"):
        explorer.Explorer(frames["explorer"].query("cell == 'c / d'"))


@pytest.fixture
def two_cells(frames) -> explorer.Explorer:
    """Of cells that have one strategy each; in the second with thresholds next to 1, also the nearest float32."""
    own = frames["explorer"].query("cell == 'a / b'")
    second = own.query("strategy == 'joint'").assign(cell="e / f", threshold_1=1 - 3.2e-5, threshold_2=1.0)
    second["threshold_3"] = float(np.nextafter(np.float32(1), np.float32(0)))
    return explorer.Explorer(pd.concat([own.query("strategy == 'mixed'"), second]))


def test_thresholds_next_to_1_keep_what_tells_them_from_1(two_cells):
    curve = two_cells.data["cells"][1]["curves"][0]
    assert curve["thresholds"][0][:3] == [0.999968, 1.0, 0.99999994]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not here")
def test_the_script_runs_and_follows_the_controls(two_cells, tmp_path):
    page = two_cells._repr_html_()
    numbers, script = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert f'getElementById("{two_cells.name}")' in script
    assert f'id="{two_cells.name}"' in page
    stub = (Path(__file__).parent / "stub_page.js").read_text()
    (tmp_path / "page.js").write_text(stub.replace("NUMBERS", json.dumps(numbers)).replace("// SCRIPT", script))
    done = subprocess.run(["node", tmp_path / "page.js"], capture_output=True, text=True, check=True, timeout=60)
    shown = json.loads(done.stdout)
    (first, second), colours = two_cells.data["cells"], [style.colour("mixed"), style.colour("joint")]
    at = explorer.middle(first)
    for name, cell, place in (("start", first, at), ("second cell", second, 8)):
        curve = cell["curves"][0]
        assert f"{curve['strategy']} reaches {100 * curve['accuracy'][place]:.1f} %" in shown[name]["output"]
        assert f"mean cost of {100 * curve['cost'][place]:.1f} %" in shown[name]["output"]
        assert shown[name]["colours"] == [colours[cell is second]]
    assert "exits 1 to 4: 1 − 3.2e-5, nobody, 1 − 6.0e-8, " in shown["second cell"]["note"]
    assert "no answer here" in shown["no such strategy"]["output"]


def test_misses_are_counted(frames):
    chosen = frames["allocation"].query("rule == 'max-probability' and allocation == 'geometric'")
    row = thresholds.miss_table(frames["allocation"], "max-probability").data.loc[("a / b", "geometric")]
    at = chosen[chosen["budget"] == "50"]
    assert f"({int((at['miss'] > 0).sum())} of 6)" in row["50 %"]
    effects = thresholds.method_effects(frames["allocation"], "max-probability")
    one = effects.query("budget == '50' and pair == 'optimized − shared'").iloc[0]
    half = frames["allocation"].query("rule == 'max-probability' and budget == '50'")
    means = half.groupby("allocation")["accuracy"].mean()
    assert one["mean"] == pytest.approx(means["optimized"] - means["shared"])
    assert set(thresholds.rule_effects(frames["allocation"])["pair"]) == {
        f"{rule} − max-probability" for rule in ("entropy", "margin", "patience")
    }
    shared = frames["allocation"].query("rule == 'max-probability' and allocation == 'shared'")["miss"].dropna()
    draws = frames["draws"].assign(exceeded=None, reason=WHY)
    said = thresholds.in_short(frames["allocation"], "max-probability", effects, draws)
    assert f"above the budget in {(shared > 0).sum()} of {len(shared)} cases" in said
    table = thresholds.effects_table(effects, "Accuracy.", "x")
    assert table.data.shape == (3, 4)


def test_what_was_not_tested_is_not_called_the_same():
    """Joint reaches the goal with all seeds, mixed with two of them, disjoint with one."""
    costs = {"joint": (0.2, 0.3, 0.5), "mixed": (0.4, 0.4, math.nan), "disjoint": (math.nan, math.nan, 0.9)}
    curves = pd.DataFrame(
        [{"cell": "a", "strategy": name, "seed": seed, "goal_of": "best", "cost": cost}
         for name, by_seed in costs.items() for seed, cost in enumerate(by_seed)]
    )  # fmt: skip
    frame = thresholds.cost_effects(curves).set_index("pair")
    assert frame.loc["mixed − joint", ["mean_a", "mean_b", "mean"]].tolist() == pytest.approx([0.4, 0.25, 0.15])
    assert frame.loc["joint − disjoint", ["mean_a", "mean_b"]].tolist() == pytest.approx([0.5, 0.9])
    said = counted(frame.reset_index(), "pair")
    assert said == (
        "mixed − joint: inconclusive in 1 of 1; mixed − disjoint: not tested in 1 of 1; "
        "joint − disjoint: not tested in 1 of 1"
    )


def test_a_broken_guarantee_is_seen():
    draws = pd.DataFrame(
        {"cell": "a", "strategy": "joint", "tolerance": 0.01, "confidence": 0.9, "reason": "", "speed_up": 2.0,
         "certified": True, "exceeded": [True] * 30 + [False] * 70}
    )  # fmt: skip
    frame = thresholds.exceedance(draws)
    assert frame[["draws", "exceeded", "share"]].iloc[0].tolist() == [100, 30, 0.3]
    assert frame["p"].iloc[0] < 1e-6
    assert "allowed share: a, joint." in thresholds.guarantee(draws)
    held = draws.assign(exceeded=[True] * 9 + [False] * 91)
    assert "allowed share: none." in thresholds.guarantee(held)
    assert thresholds.exceedance(held)["p"].iloc[0] > 0.5
    assert thresholds.draws_table(held).data["risk too high, %"].iloc[0].startswith("9.0 [")
    nothing = draws[:1].assign(exceeded=None, reason=WHY)
    assert thresholds.guarantee(nothing) == f"The guarantee was not simulated: {WHY}."


def test_risk_control_says_what_it_certified(frames):
    risk = frames["risk"]
    held = risk.query("cell == 'a / b' and strategy == 'mixed' and confidence == 0.9 and tolerance == 0.05")
    text = thresholds.risk_table(risk, 0.9).data.loc[("a / b", "mixed"), "5 points"]
    many = int(held["certified"].eq(True).sum())
    assert f"({many} of 2)" in text if many else text == "–"
    refused = risk[risk["certified"].eq(False)]
    lines = thresholds.certified(risk).splitlines()
    assert len(lines) == len(risk.groupby(["tolerance", "confidence"]))
    at = risk[
        (risk["tolerance"] == refused["tolerance"].iloc[0]) & (risk["confidence"] == refused["confidence"].iloc[0])
    ]
    line = next(each for each in lines if refused["reason"].iloc[0] in each)
    assert f": {int(at['certified'].eq(True).sum())} of {len(at)} runs; " in line


def test_validation_data_that_chose_the_weights_guarantee_nothing():
    table = run_tables.risk(predicted("mixed", 0)._replace(validation_chose=True))
    assert len(table) == len(run_tables.TOLERANCES) * len(run_tables.CONFIDENCES)
    assert not table["certified"].any()
    assert table["reason"].str.startswith("match: patience chose the weights").all()
    assert "they guarantee nothing" in thresholds.certified(table.assign(cell="a"))
    for match in ("epochs", "patience"):
        run = SimpleNamespace(
            predictions=str, costs=COSTS, backbone_flops=BACKBONE, config=SimpleNamespace(match=match)
        )
        assert evaluations.predicted(cast(Any, run)).validation_chose == (match == "patience")


def test_ends_scaling_and_strategies(frames):
    frame = frames["reliability"]
    assert set(calibration.ends(frame)["system"]) == {"exit 1", "exit 5", "dynamic"}
    effects = calibration.scaling_effects(frame, "nll").set_index(["part", "strategy"])
    own = frame.query("strategy == 'joint' and system == 'exit 5'")
    after, before = (own[own["scaled"] == scaled]["nll"].mean() for scaled in (True, False))
    assert effects.loc[("last exit", "joint"), "mean"] == pytest.approx(after - before)
    pairs = calibration.strategy_effects(frame, "auroc").set_index(["part", "pair"])
    first = frame.query("system == 'exit 1' and not scaled").groupby("strategy")["auroc"].mean()
    assert pairs.loc[("first exit", "mixed − joint"), "mean"] == pytest.approx(first["mixed"] - first["joint"])
    costs = calibration.cost_effects(frames["ood"])
    assert costs["mean"].iloc[0] == pytest.approx(0.1)


def test_bins_are_pooled_by_their_samples():
    rows = pd.DataFrame(
        {"bin": [1, 1, 2], "count": [10, 30, 60], "confidence": [0.1, 0.2, 0.9], "accuracy": [0, 0.4, 1]}
    )
    pooled = calibration._pooled(rows)
    assert pooled.loc[1].tolist() == pytest.approx([0.175, 0.3])
    assert pooled.loc[2].tolist() == pytest.approx([0.9, 1])


def test_depth_of_known_exits():
    rows = [
        {"cell": "a", "strategy": strategy, "seed": seed, "run": f"{strategy}{seed}", "group": group, "exit": k,
         "reason": "", "samples": 10, "left": left, "right": 5}
        for strategy in ("joint", "mixed") for seed in (0, 1)
        for group, by_exit in (("easy", (10, 0, 0)), ("hard", (0, 5, 5 + seed))) for k, left in enumerate(by_exit, 1)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    found = difficulty.mean_exits(frame).set_index(["run", "group"])["depth"]
    assert found["joint0", "easy"] == 0
    assert found["joint0", "hard"] == pytest.approx(0.75)
    effects = difficulty.depth_effects(frame)
    assert effects["mean"].tolist() == pytest.approx([(0.75 + (2.5 + 6) / 11) / 2] * 2)
    gaps = difficulty.gap_effects(frame)
    assert gaps.query("pair == 'mixed − joint'")["mean"].iloc[0] == pytest.approx(0)


def test_examples_without_pictures_say_why(frames):
    assert difficulty.examples_plot(frames["examples"], "c / d", "easy") == f"c / d: – ({WHY})"
    shown = difficulty.examples_plot(frames["examples"], "a / b", "hard")
    assert isinstance(shown, style.Plot)
    assert "coat" in shown.shows
