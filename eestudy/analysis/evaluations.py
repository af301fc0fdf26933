"""What predictions come to: of a run by itself, and of the runs of a cell together.

Of one the tables of `evaluation.run_tables`, and its network on samples of no class; of a cell goals in common, how far
exits and seeds agree, which samples are hard. A run that has no answer to something has a row with the reason, never a
failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

from eestudy.config import EestudyError, RunConfig, content_hash
from eestudy.data.out_of_distribution import outside
from eestudy.evaluation import curve_summary, difficulty, exit_metrics, ood_detection, run_tables
from eestudy.evaluation.exit_rules import simulate
from eestudy.evaluation.run_tables import Predicted, or_reason, stacked
from eestudy.records import MADE, Record
from eestudy.runs import Run, predict_logits
from eestudy.store import Folder, Store
from eestudy.training.execution import execution

# Raised when a definition changes so that what is kept no longer answers.
SCHEMA = 1
OOD_SAMPLES = 2000  # of each kind
Tables = dict[str, pd.DataFrame]
# Name -> what makes the table of this name, and others along with it.
Makers = Mapping[str, Callable[[], Tables]]


@dataclass(frozen=True)
class Evaluation:
    """Of one run's predictions, or of several runs' together. What is kept belongs to these predictions alone."""

    configs: tuple[RunConfig, ...]
    kind = "evaluation"

    def folder(self, store: Store) -> Folder:
        folders = (store.folder("runs", config.id) for config in self.configs)
        predictions = [folder.manifest()["predictions.safetensors"]["sha256"] for folder in folders]
        return store.folder("evaluations", f"{self.id}-{content_hash([SCHEMA, *predictions])}")

    def fill(self, folder: Folder, store: Store) -> None:
        """Each table as soon as it is made: they take minutes."""
        for name, make in self.makers([Run(config, store) for config in self.configs]).items():
            if not folder.has(f"{name}.parquet"):
                for also, table in reversed(make().items()):  # the table of this name last: then all are there
                    folder.write_frame(f"{also}.parquet", table)

    @property
    def id(self) -> str:
        """Of the record."""
        raise NotImplementedError

    def makers(self, runs: list[Run]) -> Makers:
        raise NotImplementedError


class RunEvaluation(Evaluation):
    """Everything that one run's predictions say."""

    analysis = "predictions"

    @property
    def id(self) -> str:
        return self.configs[0].id

    def makers(self, runs: list[Run]) -> Makers:
        return run_makers(runs[0])

    def record(self, store: Store) -> Record:
        tables = self.folder(store).frames()
        for table in tables.values():
            table.insert(0, "run", self.id)
        return Record(self.kind, self.id, {"schema": SCHEMA, MADE: Run(self.configs[0], store).provenance}, tables)


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


def predicted(run: Run) -> Predicted:
    """Its predictions and costs, as `evaluation.run_tables` take them."""
    splits = (run.predictions("validation"), run.predictions("test"))
    return Predicted(*splits, run.costs, run.backbone_flops, run.config.match == "patience")


def run_makers(run: Run) -> Makers:
    given = predicted(run)
    return {
        "allocation": lambda: {"allocation": run_tables.allocation(given)},
        "explorer": lambda: {"explorer": run_tables.explorer(given)},
        "risk": lambda: {"risk": run_tables.risk(given)},
        "draws": lambda: {"draws": run_tables.draws(given)},
        "reliability": lambda: run_tables.reliability(given),
        "ood": lambda: {"ood": ood_table(run)},
    }


def ood_table(run: Run) -> pd.DataFrame:
    """Are out-of-distribution samples told from test samples, by each exit and score; where do they leave?

    By `dynamic_rule`. outside (their kind), samples, and `ood_detection`'s columns; cost, cost_inside: mean cost of
    these samples and of the test samples, as shares of the plain backbone (rows "dynamic").
    """
    given = predicted(run)
    if given.regression:
        return pd.DataFrame([{"outside": "all", "reason": "a regression has no classes to be outside of"}])
    if run.task != "classification":
        return pd.DataFrame([{"outside": "all", "reason": f"the scores are of classes, and {run.task} has none"}])
    model, how = run.model(), execution("cpu")
    try:
        rule, reason = run_tables.dynamic_rule(given.validation, given), ""
    except EestudyError as error:
        rule, reason = None, str(error)
    tables = []
    for kind, (split, why) in outside(run.data(), OOD_SAMPLES).items():
        if split is None:
            tables.append(pd.DataFrame([{"outside": kind, "reason": why}]))
            continue
        logits = predict_logits(model, split, how)
        table = or_reason(partial(ood_detection, given.test[0], logits, rule), outside=kind)
        table["samples"] = len(split)
        if rule is not None:
            own, other = (run.costs[simulate(each, rule) - 1].mean() for each in (given.test[0], logits))
            at = table["system"] == "dynamic"
            table.loc[at, ["cost", "cost_inside"]] = other / run.backbone_flops, own / run.backbone_flops
        tables.append(table)
    if reason:
        tables.append(pd.DataFrame([{"outside": "all", "system": "dynamic", "reason": reason}]))
    return stacked(tables)


# ---------------------------------------------------------------- the runs of a cell together


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
        rule = given.rules[0]
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
    return float(metrics.iloc[-1, 1])


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
