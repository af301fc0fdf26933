"""The pilots' table, from made-up records whose means are known."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from eestudy.records import Record, Records
from eestudy.report.pilots import KEYS, pilots


def record(number: int, strategy: str, last: float, budgets: tuple[float, float], **settings: object) -> Record:
    config = {"architecture": "mlp", "dataset": "digits", "strategy": strategy, "train_size": 400, **settings}
    phases = {"disjoint": [("1-backbone", (2,)), ("2-heads", (1,))]}.get(strategy, [("1-together", (1, 2))])
    if settings.get("phase_split") == 1:
        phases = [("1-backbone", (2,))]
    history = pd.DataFrame(
        [
            {"phase": phase, "epoch": epoch, "exit": exit, "split": split, "loss": 1.0,
             "accuracy": (last if exit == 2 else last - 0.2) - 0.1 * (epoch == 1) - 0.5 * (split == "train")}
            for phase, exits in phases for epoch in (1, 2) for exit in exits for split in ("train", "validation")
        ]
    )  # fmt: skip
    rows = [
        {"budget": budget, "accuracy": 0.0, "validation_accuracy": value, "rule": rule, "allocation": allocation}
        for budget, value in zip(("25", "100"), budgets, strict=True)
        for rule, allocation in (("max-probability", "shared"), ("max-probability", "optimized"), ("entropy", "shared"))
    ]
    table = pd.DataFrame(rows)
    other = (table["rule"] == "entropy") | (table["allocation"] == "optimized")
    table.loc[other, "validation_accuracy"] = 0.0  # what may not be read
    facts = {
        "architecture": "mlp",
        "dataset": "digits",
        "strategy": strategy,
        "epochs": 20,
        "config": config,
        "made": {},
    }
    return Record("runs", f"run-{number}", facts, {"history": history, "budgets": table})


def test_means_over_seeds_of_validation_accuracy(tmp_path, monkeypatch):
    monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path))
    union = Records(tmp_path / "pilots")
    for number, made in enumerate([
        record(0, "joint", 0.8, (0.5, 0.7), seed=100), record(1, "joint", 0.6, (0.3, 0.5), seed=101),
        record(2, "joint", 0.9, (0.6, 0.8), seed=100, lr=0.01), record(3, "disjoint", 0.7, (0.4, 0.6), lr_scale=3.0),
        record(4, "mixed", 0.75, (0.1, 0.1), phase_split=1),
    ]):  # fmt: skip
        assert union.add(made) == "added", number
    table = pilots().set_index(KEYS[1:])
    assert set(pilots()["cell"]) == {"mlp / digits-400"}
    joint = table.loc[("joint", 20, 0.5, 3e-3, 1.0)]
    assert joint["seeds"] == 2
    assert joint[["last", "exits", "at_25", "at_100", "both"]].tolist() == pytest.approx([0.7, 0.6, 0.4, 0.6, 0.5])
    assert table.loc[("joint", 20, 0.5, 0.01, 1.0), "both"] == pytest.approx(0.7)
    # The last exit is measured in phase 1 alone, the others in phase 2.
    assert table.loc[("disjoint", 20, 0.5, 3e-3, 3.0)][["last", "exits"]].tolist() == pytest.approx([0.7, 0.6])
    plain = table.loc[("plain", 20, 1.0, 3e-3, 1.0)]
    assert plain["last"] == pytest.approx(0.75)
    assert all(math.isnan(plain[name]) for name in ("exits", "at_25", "both"))
