"""What a run's predictions come to: the tables of `evaluation.run_tables`, and its network on samples of no class.

A run that has no answer to something has a row with the reason, never a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd

from eestudy.config import EestudyError, RunConfig, content_hash
from eestudy.data.out_of_distribution import outside
from eestudy.evaluation import ood_detection, run_tables
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
        return pd.DataFrame([{"outside": "all", "reason": "a regression has no classes to be a stranger to"}])
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
