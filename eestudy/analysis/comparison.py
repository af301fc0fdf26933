"""What the runs of a cell say together: goals in common, how far exits and seeds agree, which samples are hard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from eestudy.analysis.evaluations import SCHEMA, Evaluation, Makers, Tables, predicted
from eestudy.config import EestudyError, content_hash
from eestudy.evaluation import curve_summary, difficulty, exit_metrics, run_tables
from eestudy.evaluation.run_tables import or_reason, stacked
from eestudy.records import Record
from eestudy.runs import Run
from eestudy.store import Store


class CellEvaluation(Evaluation):
    """Of the runs that differ in strategy and seed alone; another run more makes another evaluation."""

    analysis = "comparison"

    @property
    def id(self) -> str:
        first = self.configs[0]
        runs = content_hash([SCHEMA, sorted(config.id for config in self.configs)])
        return f"{first.architecture}-{first.dataset}-cell-{runs}"

    def makers(self, runs: list[Run]) -> Makers:
        return {"curves": lambda: {"curves": curves(runs)}, "agreement": lambda: difficulty_tables(runs)}

    def record(self, store: Store) -> Record:
        facts = {"schema": SCHEMA, "runs": len(self.configs)}
        return Record(self.kind, self.id, facts, self.folder(store).frames())


def curves(runs: Sequence[Run]) -> pd.DataFrame:
    """`curve_summary` of each run, rule max-probability (regression: patience), costs as shares of the backbone.

    goal_of "own": 99 % of the run's own last exit on validation data; "best": of the best last exit that any strategy
    has with this seed.
    """
    last = {run.id: _last_exit(run) for run in runs}
    tables = []
    for run in runs:
        given = predicted(run)
        best = max(last[other.id] for other in runs if other.config.seed == run.config.seed)
        rule = "patience" if given.regression else "max-probability"
        summary = partial(curve_summary, given.test, given.costs, rule, given.validation)
        for goal_of, reference in (("own", last[run.id]), ("best", best)):
            table = or_reason(partial(summary, reference), run=run.id, goal_of=goal_of)
            if "cost" in table:
                table["cost"] /= run.backbone_flops
            tables.append(table)
    return stacked(tables)


def _last_exit(run: Run) -> float:
    """Accuracy (regression: R2) of the last exit on validation data; -inf where there is none, which no goal is."""
    try:
        metrics = exit_metrics(*run.predictions("validation"))
    except EestudyError:
        return -math.inf
    return float(metrics["r2" if "r2" in metrics else "accuracy"].iloc[-1])


def difficulty_tables(runs: Sequence[Run]) -> Tables:
    """agreement, leaving, samples, examples: see `difficulty`; where predictions have no classes, the reason.

    samples and examples are of all runs together; they stand under the first.
    """
    try:
        return _difficulty_tables(runs)
    except EestudyError as error:
        reason = pd.DataFrame([{"run": run.id, "reason": str(error)} for run in runs])
        return {"agreement": reason, "leaving": reason, "samples": reason[:1], "examples": reason[:1]}


def _difficulty_tables(runs: Sequence[Run]) -> Tables:
    labels = runs[0].predictions("test")[1]
    classes = {run.id: difficulty.predicted_classes(*run.predictions("test")) for run in runs}
    samples = difficulty.sample_table(list(classes.values()), labels)
    group = difficulty.group_of(samples["difficulty"].to_numpy())
    agreed, left = [], []
    exits: dict[str, list[np.ndarray]] = {}
    for strategy in dict.fromkeys(run.config.strategy for run in runs):
        own = [run for run in runs if run.config.strategy == strategy]
        table = difficulty.exit_agreement([classes[run.id] for run in own])
        agreed.append(table.assign(run=[own[place].id for place in table["place"]]).drop(columns="place"))
        for run in own:
            given = predicted(run)
            try:
                rule = run_tables.dynamic_rule(given.validation, given)
            except EestudyError as error:
                left.append(pd.DataFrame([{"run": run.id, "reason": str(error)}]))
                continue
            table, where = difficulty.leaving(given.test[0], labels, rule, group)
            left.append(table.assign(run=run.id, reason=""))
            exits.setdefault(strategy, []).append(where)
    means = {f"exit_{strategy}": np.mean(where, axis=0) for strategy, where in exits.items()}
    everywhere = np.mean(list(means.values()), axis=0) if means else np.full(len(labels), np.nan)
    samples = samples.assign(run=runs[0].id, group=group, reason="", **means)
    chosen = difficulty.examples(samples, everywhere)
    return {
        "agreement": stacked(agreed),
        "leaving": stacked(left),
        "samples": samples,
        "examples": _with_pictures(chosen, runs[0]),
    }


def _with_pictures(chosen: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The examples with what they look like: pixels (flat, 0 to 255), shape, and the names of their classes."""
    data = run.data()
    if data.train.dtype == torch.int64 or len(data.input_shape) not in (2, 3):
        return chosen.assign(reason=f"{data.name}: its inputs are no pictures")
    x = data.test.inputs(torch.tensor(chosen["sample"].tolist())).flatten(1).numpy()
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    pixels = np.rint(255 * (x - low) / np.maximum(high - low, 1e-9)).astype(np.uint8)
    names = data.classes or tuple(map(str, range(data.num_classes)))
    shape = "x".join(map(str, data.input_shape))
    words = {f"{column}_name": [names[number] for number in chosen[column]] for column in ("label", "majority")}
    return chosen.assign(pixels=list(pixels), shape=shape, reason="", **words)
