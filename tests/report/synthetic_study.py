"""Made-up tidy frames in the shape of a study's tables: for tests only, never results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eestudy.records import MADE, Record, Records
from eestudy.report import Results, load

CELLS = (("mlp", "digits", 4), ("vit1d", "mnist1d", 6))
GAIN = {"disjoint": (-0.20, 0.0), "joint": (0.03, -0.01), "mixed": (0.02, 0.01)}
PHASES = {"disjoint": ("backbone", "heads"), "joint": ("together",), "mixed": ("backbone", "together")}


def frames(seeds: int = 2, cells: tuple[tuple[str, str, int], ...] = CELLS) -> dict[str, pd.DataFrame]:
    """runs, history, exits, budgets, tradeoff; seed s of a cell shares its noise between strategies."""
    rows: dict[str, list[dict]] = {name: [] for name in ("runs", "history", "exits", "budgets", "tradeoff")}
    for place, (architecture, dataset, exits) in enumerate(cells):
        for strategy, gain in GAIN.items():
            for seed in range(seeds):
                rng = np.random.default_rng([place, seed])
                noise = rng.normal(0, 0.004) + np.random.default_rng([place, seed, sum(strategy.encode())]).normal(
                    0, 0.002
                )
                _one(rows, architecture, dataset, strategy, seed, exits, gain, noise)
    return {name: pd.DataFrame(records) for name, records in rows.items()}


def _one(rows, architecture, dataset, strategy, seed, exits, gain, noise) -> None:
    run = f"{architecture}-{dataset}-{strategy}-s{seed}-0123456789"
    depth = np.arange(1, exits + 1) / exits
    backbone = 4e5 * exits
    costs = backbone * depth * 1.04
    slope = np.linspace(gain[0], gain[1], exits)
    accuracy = np.clip(0.93 - 0.15 * (1 - depth) ** 2 + slope + noise, 0, 1)
    labels = {
        "architecture": architecture,
        "dataset": dataset,
        "strategy": strategy,
        "method": "sdn",
        "seed": seed,
    }
    made = {
        "training_flops": 3e10,
        "seconds": 4.25,
        "hardware": "2 cores",
        "versions": "{}",
        "commit": "abcdef012345",
    }
    config = json.dumps(labels | {"epochs": 4})
    rows["runs"].append({"run": run} | labels | {"backbone_flops": backbone} | made | {"config": config})
    for k in range(exits):
        rows["exits"].append(
            {"run": run, "exit": k + 1, "stage": k + 1, "flops": costs[k], "params": 1000 * (k + 1)}
            | {"accuracy": accuracy[k], "nll": 0.3, "ece": 0.02}
        )
        for phase in PHASES[strategy]:
            for epoch in range(1, 5):
                for split in ("train", "validation"):
                    level = accuracy[k] * (1 - 0.5**epoch) + (0.01 if split == "train" else 0)
                    row = {"run": run, "phase": phase, "epoch": epoch, "exit": k + 1, "split": split}
                    rows["history"].append(row | {"loss": 2.3 * (1 - level), "accuracy": level})
    for protocol in ("calibrated", "paper"):
        for budget in ("25", "50", "75", "100", "max"):
            share = 1.04 if budget == "max" else float(budget) / 100
            reached = share * backbone >= costs[0]
            row = {
                "run": run,
                "protocol": protocol,
                "rule": "max-probability",
                "allocation": "shared",
                "budget": budget,
            }
            value = float(np.interp(share * backbone, costs, accuracy))
            flops = min(share * backbone, costs[-1])
            rows["budgets"].append(
                row | ({"accuracy": value, "flops": flops} if reached else {"accuracy": np.nan, "flops": np.nan})
            )
    for share in np.linspace(0.05, 1.05, 21):
        reached = share * backbone >= costs[0]
        value = float(np.interp(share * backbone, costs, accuracy)) if reached else np.nan
        rows["tradeoff"].append(
            {"run": run, "protocol": "calibrated", "rule": "max-probability", "allocation": "shared"}
            | {"budget": round(share, 3)}
            | {"accuracy": value, "flops": share * backbone if reached else np.nan}
        )


def write(folder: Path, tables: dict[str, pd.DataFrame]) -> Path:
    """The frames as the records of a study."""
    for row in tables["runs"].to_dict("records"):
        add(folder, row, {name: tables[name] for name in tables if name != "runs"})
    return folder


def add(folder: Path, row: dict, tables: dict[str, pd.DataFrame]) -> None:
    """One run's record: its row of runs, and its rows of the other tables."""
    own = {name: table[table["run"] == row["run"]].drop(columns="run") for name, table in tables.items()}
    paper = own["budgets"]["protocol"] == "paper"
    own["paper"] = own["budgets"][paper].drop(columns=["protocol", "allocation"])
    own["budgets"], own["tradeoff"] = own["budgets"][~paper], own["tradeoff"].drop(columns="protocol")
    made = {name: row[name] for name in ("seconds", "hardware", "versions", "commit")}
    facts = {name: value for name, value in row.items() if name not in ("run", *made)}
    facts |= {"config": json.loads(row["config"]), MADE: made}
    Records(folder).add(
        Record("runs", row["run"], facts, {name: each.reset_index(drop=True) for name, each in own.items()})
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder with one study, "made-up", of two cells, three strategies, two seeds."""
    monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path))
    return write(tmp_path / "made-up", frames())


@pytest.fixture
def results(folder: Path) -> Results:
    return load("made-up")
