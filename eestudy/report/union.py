"""A study's frames, made from the union of its records."""

import json
import math
from functools import lru_cache
from typing import Any

import pandas as pd

from eestudy.records import MADE, Record, Records
from eestudy.study import load_study, studies
from eestudy.sweeps import paper_budgets_of_sweeps

NAMES = ("architecture", "dataset", "strategy", "method", "seed", "backbone_flops", "training_flops")
OF_CELLS = ("curves", "agreement", "leaving", "samples", "examples")  # evaluations of a cell's runs together
LIMITS = {"25": 0.25, "50": 0.5, "75": 0.75, "100": 1.0, "max": math.inf}


def frame(records: Records, name: str) -> pd.DataFrame | None:
    """ "runs", "history", "exits", "budgets" or "tradeoff", with a column `run`; None where no run has a record."""
    if not records.ids("runs"):
        return None
    if name == "runs":
        return in_order_of_plan(pd.DataFrame([_row(record) for record in records.read("runs")]), records)
    if name == "budgets":
        parts = [records.frame("runs", "budgets"), paper_rows(records.read("runs"))]
        return _scored(in_order_of_plan(pd.concat(parts, ignore_index=True), records))
    found = in_order_of_plan(records.frame("runs", name), records)
    return _scored(found.assign(protocol="calibrated") if name == "tradeoff" else found)


def made(records: Records, kind: str, name: str) -> pd.DataFrame | None:
    """A table of `eestudy dynamics` or `evaluate`; None where no record has it."""
    found = [record.tables[name] for record in records.read(kind) if name in record.tables]
    if not found:
        return None
    return in_order_of_plan(pd.concat(found, ignore_index=True), records, kind == "dynamics" or name in OF_CELLS)


def in_order_of_plan(frame: pd.DataFrame, records: Records, by_cell: bool = False) -> pd.DataFrame:
    """The rows in the order of their runs in the study's YAML, what is not in it last; or cell by cell."""
    planned = _planned(records.folder.name)
    last = (len(planned), len(planned))
    keys = [planned.get(run, last) for run in frame["run"]]
    order = sorted(range(len(keys)), key=lambda row: keys[row] if by_cell else keys[row][1])
    return frame.iloc[order].reset_index(drop=True)


@lru_cache(maxsize=32)
def _planned(study: str) -> dict[str, tuple[int, int]]:
    """Run -> the numbers of its cell and of itself in the YAML of a study; empty where there is none."""
    path = studies().get(study)
    cells: dict[str, int] = {}
    numbers = {}
    for number, config in enumerate(load_study(path).configs if path else ()):
        cell = cells.setdefault(config.replace(seed=0, strategy="joint").id, len(cells))
        numbers[config.id] = cell, number
    return numbers


def _row(record: Record) -> dict[str, Any]:
    facts = record.facts
    how = {name: value for name, value in facts[MADE].items() if name != "phases"}
    config = json.dumps(facts["config"], sort_keys=True)
    return {"run": record.id, **{name: facts[name] for name in NAMES}, **how, "config": config}


def _scored(found: pd.DataFrame) -> pd.DataFrame:
    """Where regression stands beside classification, every row says its score."""
    return found.assign(score=found["score"].fillna("accuracy")) if "score" in found else found


def paper_rows(records: list[Record]) -> pd.DataFrame:
    """The published protocol's rows of a budget table: the seeds of each combination choose a threshold together."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        settings = {name: value for name, value in record.facts["config"].items() if name != "seed"}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(record)
    rows = []
    for group in groups.values():
        if all("paper" in record.tables for record in group):  # from before sweeps were recorded: as it was made then
            own = [record.tables["paper"].assign(run=record.id) for record in group]
            rows += [table.assign(protocol="paper", allocation="shared") for table in own]
            continue
        limits = {budget: share * group[0].facts["backbone_flops"] for budget, share in LIMITS.items()}
        sweeps = [dict(list(record.tables["sweep"].groupby("rule", sort=False))) for record in group]
        ids = pd.Series([record.id for record in group])
        for rule in sweeps[0]:
            chosen = paper_budgets_of_sweeps([sweep[rule] for sweep in sweeps], limits)
            run = chosen["run_index"].map(ids)
            chosen = chosen.drop(columns=["run_index", "threshold"])
            if "score" in chosen:
                chosen["score"] = "r2"
            rows.append(chosen.assign(run=run, protocol="paper", rule=rule, allocation="shared"))
    return pd.concat(rows, ignore_index=True)
