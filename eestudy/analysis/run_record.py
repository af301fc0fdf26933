"""A finished run as a record: the facts and tables that a study keeps of it, wherever the run itself may end up."""

from __future__ import annotations

from typing import Any

import pandas as pd

from eestudy import evaluation
from eestudy.config import EestudyError
from eestudy.evaluation.budgets import budgets_of_both
from eestudy.records import MADE, Record
from eestudy.registry import EXIT_RULES
from eestudy.runs import Run
from eestudy.store import Store

NAMES = ("architecture", "dataset", "strategy", "method", "seed", "epochs")
EVERY = ("shared", "optimized", "geometric")
ALLOCATIONS = {"classification": EVERY, "multi-label": EVERY, "regression": ("shared", "optimized")}


def record_of(run: Run, store: Store) -> Record:
    """Everything that is kept of a finished run. EestudyError for one that is not done or is damaged.

    Tables: exits, history, budgets, sweep, tradeoff; where a budget is out of reach or a rule has no answer their
    numbers are NaN. In regression r2 stands for accuracy, and a column `score` says so.
    """
    tables = {
        "exits": run.exits(),
        "history": run.history(),
        "budgets": budget_table(run),
        "sweep": sweep_table(run),
        "tradeoff": run.tradeoff().drop(columns="protocol"),
    }
    tables = {name: frame.drop(columns="run", errors="ignore") for name, frame in tables.items()}
    return Record("runs", run.id, facts_of(run, store), tables)


def facts_of(run: Run, store: Store) -> dict[str, Any]:
    """What the run is, what it costs, and under "made" how it came about, which no comparison looks at.

    made: all that the run's environment.json says, seconds of training, and the environment of each phase where it is
    another one.
    """
    provenance = run.provenance
    config = run.config
    environments = {phase: store.folder("phases", phase).json("environment.json") for phase in run.phases}
    own = run.folder.json("environment.json")
    elsewhere = {phase: found for phase, found in environments.items() if found != own}
    made = {"seconds": provenance["seconds"], **own, **({"phases": elsewhere} if elsewhere else {})}
    return {
        "config": config.identity(),
        **{name: getattr(config, name) for name in NAMES},
        "task": run.task,
        "phases": list(run.phases),
        "backbone_flops": run.backbone_flops,
        "training_flops": provenance["training_flops"],
        MADE: made,
    }


def rules_of(run: Run) -> tuple[str, ...]:
    return tuple(EXIT_RULES) if run.task == "classification" else (run.exit_rule,)


def budget_table(run: Run) -> pd.DataFrame:
    """protocol "calibrated", rule, allocation, budget, accuracy (regression: r2, ...), flops; every rule and way.

    validation_accuracy (validation_r2), validation_flops: of the data that the thresholds were fitted to.
    """
    tables = [_budgets(run, rule, way) for rule in rules_of(run) for way in ALLOCATIONS[run.task]]
    return _named(run, pd.concat(tables, ignore_index=True))


def _named(run: Run, frame: pd.DataFrame) -> pd.DataFrame:
    """With a column `score`, what stands for accuracy in other tasks than classification."""
    scores = {"regression": "r2", "multi-label": "exact_match"}
    return frame.assign(score=scores[run.task]) if run.task in scores else frame


def _budgets(run: Run, rule: str, allocation: str) -> pd.DataFrame:
    named = {"protocol": "calibrated", "rule": rule, "allocation": allocation}
    try:
        splits = (run.predictions("validation"), run.predictions("test"))
        return budgets_of_both(*splits, run.costs, run.backbone_flops, rule, allocation).assign(**named)
    except EestudyError:  # such as thresholds for the most accuracy where all labels are the same
        return pd.DataFrame({"budget": evaluation.BUDGETS, "flops": float("nan")}).assign(**named)


def sweep_table(run: Run) -> pd.DataFrame:
    """The published protocol's sweep of this run: rule, threshold (its number), accuracy (regression: r2), flops."""
    sweeps = [
        evaluation.paper_sweep(run.predictions("test"), run.costs, rule).drop(columns="value").assign(rule=rule)
        for rule in rules_of(run)
    ]
    frame = pd.concat(sweeps, ignore_index=True)
    frame.insert(0, "rule", frame.pop("rule"))
    return _named(run, frame)
