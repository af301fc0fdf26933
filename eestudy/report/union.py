"""A study's frames out of its records; out of its old tables where it has none yet."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eestudy.config import EestudyError
from eestudy.records import MADE, Record, Records
from eestudy.report.scores import renamed
from eestudy.sweeps import last_within

OLD = ("runs", "history", "exits", "budgets", "tradeoff")
FILES = {name: f"{name}.parquet" if name == "history" else f"{name}.csv" for name in OLD}
NAMES = ("architecture", "dataset", "strategy", "method", "seed", "backbone_flops", "training_flops")
LIMITS = {"25": 0.25, "50": 0.5, "75": 0.75, "100": 1.0, "max": math.inf}


def frame(records: Records, name: str) -> pd.DataFrame | None:
    """One of OLD, with the run in its first columns; None where there are neither records nor an old table."""
    if records.ids("runs"):
        if name == "runs":
            return pd.DataFrame([_row(record) for record in records.read("runs")])
        if name == "budgets":
            found = [records.frame("runs", "budgets"), paper_rows(records)]
            return _scored(pd.concat(found, ignore_index=True))
        found = records.frame("runs", name)
        return _scored(found.assign(protocol="calibrated") if name == "tradeoff" else found)
    path = records.folder / FILES[name]
    return _old(path, name) if path.is_file() else None


def made(records: Records, kind: str, name: str) -> pd.DataFrame | None:
    """A table of `eestudy dynamics` or `evaluate`: of their records, or of the file <kind>_<name>.parquet."""
    found = [record.tables[name] for record in records.read(kind) if name in record.tables]
    if found:
        return pd.concat(found, ignore_index=True)
    path = records.folder / f"{kind}_{name}.parquet"
    return renamed(pd.read_parquet(path)) if path.is_file() else None


def _row(record: Record) -> dict[str, Any]:
    facts = record.facts
    how = {name: value for name, value in facts[MADE].items() if name != "phases"}
    config = json.dumps(facts["config"], sort_keys=True)
    return {"run": record.id, **{name: facts[name] for name in NAMES}, **how, "config": config}


def _scored(found: pd.DataFrame) -> pd.DataFrame:
    """Where regression stands beside classification, every row says its score."""
    return found.assign(score=found["score"].fillna("accuracy")) if "score" in found else found


def paper_rows(records: Records) -> pd.DataFrame:
    """The published protocol's rows of a budget table: the seeds of each combination choose a threshold together.

    As `sweeps.paper_budgets_of_sweeps`, for all of them at once. EestudyError for seeds with unequal sweeps.
    """
    sweeps = records.frame("runs", "sweep")
    flops = sweeps["flops"].to_numpy()
    parts = {key: np.asarray(places) for key, places in sweeps.groupby(["run", "rule"], sort=False).indices.items()}
    groups: dict[tuple[str, str], list[str]] = {}
    facts = {record.id: record.facts for record in records.read("runs")}
    for run, rule in parts:
        settings = {name: value for name, value in facts[run]["config"].items() if name != "seed"}
        groups.setdefault((json.dumps(settings, sort_keys=True), rule), []).append(run)
    rows: list[int] = []
    budgets: list[str] = []
    reached: list[bool] = []
    for (_, rule), runs in groups.items():
        places = [parts[run, rule] for run in runs]
        if len({len(place) for place in places}) > 1:
            raise EestudyError(f"results: {runs[0]} and other seeds of it have unequal sweeps of {rule}")
        limits = {budget: share * facts[runs[0]]["backbone_flops"] for budget, share in LIMITS.items()}
        chosen = last_within(np.stack([flops[place] for place in places]), limits)
        rows += [int(place[at or 0]) for place in places for at in chosen]
        reached += [at is not None for at in chosen] * len(runs)
        budgets += [*limits] * len(runs)
    table = sweeps.drop(columns="threshold").take(rows).reset_index(drop=True)
    numbers = list(table.select_dtypes("float64"))
    table.loc[~np.array(reached), numbers] = np.nan
    return table.assign(budget=budgets, protocol="paper", allocation="shared")


def _old(path: Path, name: str) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return renamed(pd.read_parquet(path))
    found = renamed(pd.read_csv(path, dtype={"budget": str} if name == "budgets" else None))
    if name in ("budgets", "tradeoff") and "allocation" not in found and {"protocol", "rule"} <= set(found.columns):
        shared = (found["rule"] == "patience") | (found["protocol"] == "paper")
        found["allocation"] = shared.map({True: "shared", False: "geometric"})
    return found
