"""The tidy frames of a study: read from its records, or collected from runs in a notebook."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eestudy.config import EestudyError, RunConfig, check_name, nearest
from eestudy.records import Records, results_folder
from eestudy.registry import STRATEGIES
from eestudy.report import union
from eestudy.study import project_root, studies

__all__ = ["Results", "collect", "load", "only", "results_folder"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "runs": (
        *("run", "architecture", "dataset", "strategy", "method", "seed", "backbone_flops"),
        *("training_flops", "seconds", "hardware", "versions", "commit", "config"),
    ),
    "history": ("run", "phase", "epoch", "exit", "split", "loss"),
    "exits": ("run", "exit", "stage", "flops", "params"),
    "budgets": ("run", "protocol", "rule", "allocation", "budget", "flops"),
    "tradeoff": ("run", "protocol", "rule", "allocation", "budget", "flops"),
}
# Of the score: classification has the first ones, regression r2.
SCORES = {name: ("accuracy",) for name in COLUMNS if name != "runs"} | {"exits": ("accuracy", "nll", "ece")}
# What identifies a run to the reader; every frame of `Results` carries these columns beside its own.
LABELS = ("cell", "architecture", "dataset", "strategy", "method", "seed")


@dataclass(frozen=True)
class Results:
    """The tables of one study, each joined with `LABELS` of its run; a table is read and checked on first use.

    Classification has a column `accuracy`, regression `r2` and a column `score` that says so; `value` is either.
    A cell is architecture x data set (and what else varies in the study: the method, a training setting).
    """

    study: str
    folder: Path | None = None
    _frames: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run: its labels, plain backbone's FLOPs, training FLOPs, seconds, hardware, versions."""
        return _with_cells(self._recorded("runs"))

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per run, phase, epoch, exit and split: loss, accuracy."""
        return self._scored("history")

    @cached_property
    def exits(self) -> pd.DataFrame:
        """One row per run and exit: cumulative FLOPs and parameters; accuracy, nll, ece on test."""
        return self._scored("exits")

    @cached_property
    def budgets(self) -> pd.DataFrame:
        """One row per run, protocol, rule, allocation and budget ("25" ... "100" per cent, "max"): accuracy, mean
        FLOPs, on test. Those of protocol paper are chosen from the sweeps of all seeds that there are.
        """
        return self._scored("budgets")

    @cached_property
    def tradeoff(self) -> pd.DataFrame:
        """One row per run and nominal budget (fraction of the plain backbone): accuracy, mean FLOPs, on test."""
        return self._scored("tradeoff")

    def dynamics(self, name: str) -> pd.DataFrame:
        """A table of `eestudy dynamics`, such as "rank", joined with the labels of its runs.

        Of a pair of runs these are the first's; the others' strategy and seed are strategy_2, seed_2 (and _3).
        EestudyError, with the command that makes it, where it is missing.
        """
        return self._made("dynamics", name, "dynamics")

    def evaluation(self, name: str) -> pd.DataFrame:
        """A table of `eestudy evaluate`, such as "allocation", joined with the labels of its runs.

        Where something has no answer its numbers are NaN, and `reason` says why.
        EestudyError, with the command that makes it, where it is missing.
        """
        return self._made("evaluation", name, "evaluate")

    def of(self, ids: Iterable[str]) -> "Results":
        """These runs alone, as a study of their own. EestudyError for one that has no record here."""
        kept, there = set(ids), set(self._recorded("runs")["run"])
        if kept - there:
            raise EestudyError(f"records: {self.study} has no record of {min(kept - there)}")
        frames = {name: self._recorded(name) for name in COLUMNS}
        return Results(self.study, None, {name: frame[frame["run"].isin(kept)] for name, frame in frames.items()})

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(self.runs["cell"]))

    @property
    def strategies(self) -> list[str]:
        """The strategies there are, in the order used everywhere."""
        return in_order(self.runs["strategy"])

    def _made(self, kind: str, name: str, command: str) -> pd.DataFrame:
        found = union.made(self._records(f"{kind}_{name}"), kind, name)
        if found is None:
            raise EestudyError(
                f"results: {self.folder}/{kind} has no record with the table {name!r}; make it with: "
                f"{_command(self.study, command)}"
            )
        frame = self._labelled(f"{kind}_{name}", found)
        for number, column in enumerate(("other", "other_3"), 2):
            if column in frame:
                labels = self.runs.set_index("run")[["strategy", "seed"]].add_suffix(f"_{number}")
                frame = frame.join(labels, on=column)
        return frame

    def _records(self, wanted: str) -> Records:
        if self.folder is None:
            raise EestudyError(f"results: the frame {wanted!r} was not collected")
        return Records(self.folder)

    def _scored(self, name: str) -> pd.DataFrame:
        return valued(self._labelled(name, self._recorded(name)))

    def _recorded(self, name: str) -> pd.DataFrame:
        """A table as it was recorded or collected. EestudyError where it, or a column of it, is missing."""
        if name not in self._frames:
            found = union.frame(self._records(name), name)
            if found is None:
                command = _command(self.study, "run")
                raise EestudyError(f"results: {self.folder}/runs has no record; make some with: {command}")
            self._frames[name] = found
        frame = self._frames[name]
        for column in COLUMNS[name] + (SCORES.get(name, ()) if "r2" not in frame else ()):
            if column not in frame:
                raise EestudyError(f"results: {self.study}, {name}: the column {column!r} is in no record")
        if frame.empty:
            raise EestudyError(f"results: {self.study}, {name}: no record has a row")
        return frame

    def _labelled(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        labels = self.runs.set_index("run")[list(LABELS)]
        unknown = set(frame["run"]) - set(labels.index)
        if unknown:
            raise EestudyError(f"results: {name} has the run {min(unknown)!r}, which the study has not")
        return frame.join(labels, on="run")


def is_regression(frame: pd.DataFrame) -> pd.Series:
    """The rows (bool) whose score is r2: a column `score` says so."""
    return frame["score"] == "r2" if "score" in frame else pd.Series(False, index=frame.index)


def score_name(frame: pd.DataFrame) -> str:
    """What a reader calls the score of these rows: "accuracy", "R2", or both."""
    regression = is_regression(frame)
    if not regression.any():
        return "accuracy"
    return "R2" if regression.all() else "accuracy (regression: R2)"


def valued(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column `value`: each row's accuracy, or its r2 where that is its score."""
    if "r2" not in frame:
        return frame.assign(value=frame["accuracy"])
    return frame.assign(value=frame["r2"].where(is_regression(frame), frame.get("accuracy", np.nan)))


def in_order(strategies: Iterable[str]) -> list[str]:
    """Distinct strategies in the order of `registry.STRATEGIES`, others after them."""
    seen = list(dict.fromkeys(strategies))
    return [s for s in STRATEGIES if s in seen] + [s for s in seen if s not in STRATEGIES]


def load(study: str) -> Results:
    """The committed tables of `study`. EestudyError when there are none, with the command that makes them."""
    if not isinstance(study, str) or not study or Path(study).name != study:
        raise EestudyError(f"study: {study!r} is not a name such as 'smoke'")
    folder = results_folder(study)
    if not folder.is_dir():
        planned = list(studies())
        known = list(dict.fromkeys([*sorted(path.parent.name for path in folder.parent.glob("*/runs")), *planned]))
        if study in planned or not known:
            raise EestudyError(f"study: {study!r} has no results in {folder}; make them with: {_command(study, 'run')}")
        raise EestudyError(f"study: unknown name {study!r}; {nearest(study, known)}")
    results = Results(study, folder)
    _ = results.runs  # a folder without its runs is told at once, the other tables on first use
    return results


def collect(runs: Iterable[Any], budgets: pd.DataFrame | None = None) -> Results:
    """The same frames from what `eestudy.run` returned, for a notebook that has no study folder.

    `budgets`: from `eestudy.budgets(runs, protocol, rule)`, one protocol or several below each other.
    """
    runs = list(runs)
    if not runs:
        raise EestudyError("runs: an empty list has no results")
    frames = {} if budgets is None else {"budgets": budgets}
    for name in ("history", "exits", "tradeoff"):
        frames[name] = pd.concat([getattr(run, name)() for run in runs], ignore_index=True)
    return Results("notebook", None, {"runs": pd.DataFrame([run.summary() for run in runs]), **frames})


def only(results: Results, setting: str, value: object) -> Results:
    """The runs whose RunConfig field `setting` is `value`, as a study of their own; EestudyError if there are none."""
    check_name("setting", setting, RunConfig.model_fields)
    runs = results._recorded("runs")
    values = [settings[setting] for settings in _settings(runs)]
    if value not in values:
        there = ", ".join(dict.fromkeys(map(str, values)))
        raise EestudyError(f"{setting}: no run of {results.study} has {value!r}; there are {there}")
    return results.of(runs["run"][[other == value for other in values]])


def _settings(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """All settings of each run; its column `config` leaves out those that have their default."""
    defaults = {name: field.default for name, field in RunConfig.model_fields.items() if not field.is_required()}
    return [{**defaults, **json.loads(text)} for text in runs["config"]]


def _command(study: str, command: str) -> str:
    planned = studies().get(study)
    return f"eestudy {command} {planned.relative_to(project_root()) if planned else f'params/{study}.yaml'}"


def _with_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """`runs` with a column `cell`: what is compared at once. Two runs of a cell differ in strategy or seed only."""
    cell = runs["architecture"] + " / " + runs["dataset"]
    if runs["method"].nunique() > 1:
        cell = cell + " / " + runs["method"]
    runs = runs.assign(cell=cell)
    same = runs.duplicated(["cell", "strategy", "seed"], keep=False)
    if same.any():
        # The study varies something else too: runs that differ in it must not be averaged.
        frame = pd.DataFrame([{k: json.dumps(v) for k, v in s.items()} for s in _settings(runs)], index=runs.index)
        groups = frame.loc[same].groupby([cell[same], runs["strategy"][same], runs["seed"][same]])
        varied = [c for c, n in groups.nunique().max().items() if n > 1 and c not in LABELS]
        for name in varied:
            runs["cell"] += f", {name} " + frame[name].str.strip('"')
        left = runs[runs.duplicated(["cell", "strategy", "seed"])]
        if len(left):
            raise EestudyError(f"results: the study has the run {left['run'].iloc[0]!r} twice")
    return runs
