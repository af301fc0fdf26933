"""Scalings beside mixed training, and claim C8, on made-up tables with known differences."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from eestudy.chapters import scaling
from eestudy.config import EestudyError
from eestudy.report import differences
from eestudy.report.frames import Results
from eestudy.report.tables import BUDGETS

SCALED = {"plain": {}, "sdn-ramp": {"weighting": "sdn-ramp"}, "equilibrium": {"gradient_scaling": "equilibrium"}}

ROW = {"protocol": "calibrated", "allocation": "shared"}


def study(gains: dict[tuple[str, str], float], early: dict[str, float] | None = None) -> Results:
    """Two cells, six seeds. gains: of (strategy, scaling) on 0.5; early: of joint by scaling, added at 25 % alone."""
    rows: dict[str, list[dict[str, object]]] = {"runs": [], "budgets": [], "tradeoff": []}
    for architecture in ("vit1d", "resnet1d"):
        for (strategy, name), gain in gains.items():
            for seed in range(6):
                run = f"{architecture}-{strategy}-{name}-{seed}"
                labels = {"architecture": architecture, "dataset": "mnist1d", "strategy": strategy, "method": "sdn",
                          "seed": seed}  # fmt: skip
                facts = {"backbone_flops": 1e6, "training_flops": 1e9, "seconds": 3.0, "hardware": "h",
                         "versions": "{}", "commit": "c", "config": json.dumps(labels | SCALED[name])}  # fmt: skip
                rows["runs"].append({"run": run, **labels, **facts})
                for budget in BUDGETS:
                    noise = 0.001 * np.random.default_rng([seed, sum((run + budget).encode())]).normal()
                    extra = (early or {}).get(name, 0.0) if strategy == "joint" and budget == "25" else 0.0
                    value = 0.5 + 0.1 * seed + gain + extra + noise
                    rows["budgets"].append({**ROW, "run": run, "rule": "max-probability",
                                            "budget": budget, "accuracy": value, "flops": 1e5})  # fmt: skip
                rows["tradeoff"].append({**ROW, "run": run, "rule": "max-probability",
                                         "budget": 0.5, "accuracy": 0.5, "flops": 1e5})  # fmt: skip
    return Results("made-up", None, {name: pd.DataFrame(records) for name, records in rows.items()})


BEHIND = {
    ("joint", "plain"): 0.0,
    ("joint", "sdn-ramp"): 0.01,
    ("joint", "equilibrium"): -0.02,
    ("mixed", "plain"): 0.05,
    ("mixed", "sdn-ramp"): 0.07,
}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "plain"),
        ({"weighting": "equal", "gradient_scaling": "none"}, "plain"),
        ({"weighting": "depth-linear"}, "depth-linear"),
        ({"gradient_scaling": "equilibrium", "weighting": "sdn-ramp"}, "sdn-ramp + equilibrium"),
        ({"weighting": "custom", "weights": [1.0, 3.0]}, "custom + 1.0 + 3.0"),
    ],
)
def test_a_scaling_is_named_after_what_was_set(given, wanted):
    assert scaling.scaling_of(json.dumps(given | {"strategy": "joint"})) == wanted


def test_a_study_that_varies_something_else_is_refused():
    results = study(BEHIND)
    runs, budgets, tradeoff = (results._frames[name] for name in ("runs", "budgets", "tradeoff"))
    again = runs.assign(config=[json.dumps(json.loads(text) | {"lr": 0.1}) for text in runs["config"]])
    frames = [
        pd.concat([frame, other.assign(run=other["run"] + "-lr")])
        for frame, other in ((runs, again), (budgets, budgets), (tradeoff, tradeoff))
    ]
    twice = Results("made-up", None, dict(zip(("runs", "budgets", "tradeoff"), frames, strict=True)))
    with pytest.raises(EestudyError, match="-lr differs from another run in more than weighting, gradient_scaling"):
        scaling.by_scaling(twice)


def test_cells_are_not_split_by_the_scaling():
    rows = scaling.by_scaling(study(BEHIND))
    assert set(rows["cell"]) == {"vit1d / mnist1d", "resnet1d / mnist1d"}
    assert len(rows) == 2 * 5 * 6 * len(BUDGETS)


def test_accuracies_stand_cell_by_cell_with_their_intervals():
    rows = scaling.by_scaling(study(BEHIND))
    shown = scaling.accuracy_table(rows).data
    assert list(shown.columns) == ["25 %", "50 %", "75 %", "100 %", "max"]
    assert [cell for cell, *_ in shown.index] == ["resnet1d / mnist1d"] * 5 + ["vit1d / mnist1d"] * 5
    mean, half = shown.loc[("vit1d / mnist1d", "mixed", "sdn-ramp"), "50 %"].split(" ± ")
    assert float(mean) == pytest.approx(100 * (0.5 + 0.1 * 2.5 + 0.07), abs=0.2)
    assert float(half) == pytest.approx(2.571 * 18.71 / 6**0.5, abs=0.3)  # t(0.975, 5) s / sqrt(6)


def test_gains_are_over_plain_of_the_same_strategy():
    rows = scaling.by_scaling(study(BEHIND))
    joint = scaling.gains(rows, "joint").set_index(["cell", "scaling", "budget"])["mean"]
    assert set(joint.index.get_level_values("scaling")) == {"sdn-ramp", "equilibrium"}
    assert joint["vit1d / mnist1d", "sdn-ramp", "50"] == pytest.approx(0.01, abs=2e-3)
    assert joint["resnet1d / mnist1d", "equilibrium", "max"] == pytest.approx(-0.02, abs=2e-3)
    mixed = scaling.gains(rows, "mixed")
    assert set(mixed["scaling"]) == {"sdn-ramp"}
    assert mixed["mean"].to_numpy() == pytest.approx(0.02, abs=2e-3)
    with pytest.raises(EestudyError, match="frame: no cell and scaling to compare in this study"):
        differences.difference_plot(scaling.gains(rows, "disjoint"))


def test_every_scaling_of_joint_is_set_against_plain_mixed():
    frame = scaling.from_mixed(scaling.by_scaling(study(BEHIND)))
    assert len(frame) == 2 * 3 * 4
    assert set(frame["decision"]) == {"worse"}
    means = frame.groupby("scaling")["mean"].mean()
    assert means.to_dict() == pytest.approx({"plain": -0.05, "sdn-ramp": -0.04, "equilibrium": -0.07}, abs=2e-3)
