"""What a study's runs come to for who uses them: every evaluation of the stored predictions, as tidy tables.

Nothing is trained. What takes longest is kept in the store, a folder a run, by the SHA-256 of its predictions: the same
command goes on where it was stopped. A run that has no answer to something (see `evaluation.run_tables`) has a row with
the reason, never a failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from eestudy.config import EestudyError, RunConfig, content_hash
from eestudy.data.out_of_distribution import outside
from eestudy.environment import say
from eestudy.evaluation import curve_summary, difficulty, exit_metrics, ood_detection, run_tables
from eestudy.evaluation.exit_rules import simulate
from eestudy.evaluation.run_tables import Predicted, or_reason, stacked
from eestudy.grids import Study
from eestudy.progress import Progress, shared
from eestudy.records import MADE, Record, Records, results_folder
from eestudy.store import Folder, Store
from eestudy.study import Run, predict_logits
from eestudy.training.execution import execution

# Raised when a definition changes so that what is kept no longer answers.
SCHEMA = 1
OUTSIDERS = 2000  # samples of each kind that no network was trained for
Tables = dict[str, pd.DataFrame]


def evaluate_study(study: Study, workers: int = 1, store: Path | None = None, results_dir: Path | None = None) -> int:
    """Evaluates what has no record and adds it to the study's; returns how many were added.

    results_dir: default book/results/<study>. Raises EestudyError for runs that are not in the store, with what makes
    them.
    """
    records = Records(results_dir or results_folder(study.name))
    place = Store(store)
    cells = _cells(study.configs)
    new = [cell for cell in cells if not records.has("evaluation", _cell_id(cell))]
    asked = [config for config in study.configs if not records.has("evaluation", config.id)]
    asked += [config for cell in new for config in cell if config not in asked]
    missing = [config.id for config in asked if not place.folder("runs", config.id).done()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise EestudyError(f"{missing[0]}{more}: not trained yet; make with: eestudy run params/{study.name}.yaml")
    place.check_writable()
    runs = {config: Run(config, place) for config in asked}
    todo = [config for config in asked if not records.has("evaluation", config.id)]
    say(f"study {study.name}: {len(study.configs)} runs, {len(todo)} to evaluate")
    lacking = [config for config in todo if not place.whole(_folder(runs[config], place))]
    progress = Progress({config.id: 1.0 for config in lacking})
    for config, error in shared(partial(evaluate, store=place), lacking, workers):
        if error:
            raise error
        progress.ended(config.id)
    for config in todo:
        folder = _folder(runs[config], place)
        tables = {path.stem: folder.frame(path.name) for path in sorted(folder.path.glob("*.parquet"))}
        for table in tables.values():
            table.insert(0, "run", config.id)
        records.add(Record("evaluation", config.id, {"schema": SCHEMA, MADE: runs[config].provenance}, tables))
    for cell in new:
        tables = cell_tables([runs[config] for config in cell])
        records.add(Record("evaluation", _cell_id(cell), {"schema": SCHEMA, "runs": len(cell)}, tables))
    return len(todo) + len(new)


def _cell_id(cell: Sequence[RunConfig]) -> str:
    """Of what is measured of a cell's runs together: another run makes another measurement."""
    first = cell[0]
    return f"{first.architecture}-{first.dataset}-cell-{content_hash([SCHEMA, sorted(each.id for each in cell)])}"


def _folder(run: Run, store: Store) -> Folder:
    """Where a run's tables are kept."""
    predictions = run.folder.manifest()["predictions.safetensors"]["sha256"]
    return store.folder("evaluations", f"{run.id}-{content_hash([SCHEMA, predictions])}")


def evaluate(config: RunConfig, store: Store) -> None:
    """A finished run's tables, into the store, each as soon as it is made; nothing where they are there already."""
    run = Run(config, store)
    folder = _folder(run, store)
    with folder.lock(say):
        if store.usable(folder):
            return
        for name, make in parts_of(run).items():
            if not folder.has(f"{name}.parquet"):
                for also, table in reversed(make().items()):  # a part's own table last: then it is whole
                    folder.write_frame(f"{also}.parquet", table)
        folder.finish()


def predicted(run: Run) -> Predicted:
    splits = (run.predictions("validation"), run.predictions("test"))
    return Predicted(*splits, run.costs, run.backbone_flops, run.config.match == "patience")


def parts_of(run: Run) -> dict[str, Callable[[], Tables]]:
    """Everything that one run's predictions say, and its network on samples of none of its classes.

    Name -> what makes the table of this name, and others along with it.
    """
    given = predicted(run)
    return {
        "allocation": lambda: {"allocation": run_tables.allocation(given)},
        "explorer": lambda: {"explorer": run_tables.explorer(given)},
        "risk": lambda: {"risk": run_tables.risk(given)},
        "draws": lambda: {"draws": run_tables.draws(given)},
        "reliability": lambda: run_tables.reliability(given),
        "ood": lambda: {"ood": strangers(run)},
    }


def strangers(run: Run) -> pd.DataFrame:
    """Is a stranger told from a test sample, by each exit and score, and where does it leave (`dynamic_rule`)?

    outside (the kind), samples, and `ood_detection`'s columns; cost, cost_inside: mean cost of the strangers and of the
    test samples, as shares of the plain backbone (rows "dynamic").
    """
    given = predicted(run)
    if given.regression:
        return pd.DataFrame([{"outside": "all", "reason": "a regression has no classes to be a stranger to"}])
    model, how = run.model(), execution("cpu")
    try:
        rule, reason = run_tables.dynamic_rule(given.validation, given), ""
    except EestudyError as error:
        rule, reason = None, str(error)
    tables = []
    for kind, (split, why) in outside(run.data(), OUTSIDERS).items():
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


# ---------------------------------------------------------------- of all runs of a cell


def _cells(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Runs that differ in strategy and seed alone."""
    cells: dict[str, list[RunConfig]] = {}
    for config in configs:
        cells.setdefault(config.replace(seed=0, strategy="joint").id, []).append(config)
    return list(cells.values())


def cell_tables(runs: Sequence[Run]) -> Tables:
    """curves, of one run each but with a goal in common; agreement, leaving, samples, examples: see `difficulty`.

    samples and examples are of all runs together; they stand under the first.
    """
    tables = {"curves": curves(runs)}
    try:
        return tables | _difficulty(runs)
    except EestudyError as error:
        reason = pd.DataFrame([{"run": run.id, "reason": str(error)} for run in runs])
        return tables | {"agreement": reason, "leaving": reason, "samples": reason[:1], "examples": reason[:1]}


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


def _difficulty(runs: Sequence[Run]) -> Tables:
    """The tables agreement, leaving, samples and examples. EestudyError where predictions have no classes."""
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
