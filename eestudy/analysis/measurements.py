"""How a study's runs came to be: the metrics of `eestudy.dynamics` at their checkpoints.

Points that hold the same weights are measured once: disjoint and mixed share their first phase.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from eestudy.analysis import cells_of
from eestudy.analysis.metrics import METRICS, Metric, Point, Tables
from eestudy.config import RunConfig, check_name, content_hash
from eestudy.environment import describe
from eestudy.plan import planned, prepare
from eestudy.records import MADE, Record
from eestudy.runs import Run
from eestudy.store import Folder, Store

# Raised when a definition changes so that an old measurement no longer answers.
SCHEMA = 1


@dataclass(frozen=True)
class Measurement:
    """One metric at one tuple of points. network_id: equal for the points of the same weights."""

    analysis: str
    points: tuple[Point, ...]
    facts: tuple[tuple[str, Any], ...]
    network_id: str
    kind = "dynamics"

    @property
    def id(self) -> str:
        """Runs that share a network share what is kept, but each has a record of its own."""
        points = [[point.config.id, point.phase, point.share] for point in self.points]
        return f"{self.analysis}-{content_hash([self.network_id, points, self.facts])}"

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        return tuple(point.config for point in self.points)

    def folder(self, store: Store) -> Folder:
        return store.folder("dynamics", self.network_id)

    def fill(self, folder: Folder, store: Store) -> None:
        metric = METRICS[self.analysis]
        runs = [Run(config, store) for config in self.configs]
        models = [run.checkpoint(point.phase, point.share) for run, point in zip(runs, self.points, strict=True)]
        began = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tables = metric.measure(models, runs[0].data(), **metric.settings)
        seconds = time.perf_counter() - began
        for name, table in tables.items():
            folder.write_frame(f"{name}.parquet", table)
        folder.write_json("environment.json", {**describe("cpu"), "seconds": round(seconds, 3)})

    def tables(self, store: Store) -> Tables:
        """What is kept, with the runs and checkpoints it belongs to."""
        first, *others = self.points
        if others:
            names = ["other", *(f"other_{number}" for number in range(3, 2 + len(others)))]
            about: dict[str, Any] = dict(zip(names, (point.config.id for point in others), strict=True))
        else:
            about = {"phase": first.phase, "share": first.share, "progress": first.progress}
        tables = self.folder(store).frames()
        for frame in tables.values():
            for name, value in self.facts:
                frame[name] = value
            for number, (name, value) in enumerate({"run": first.config.id, **about}.items()):
                frame.insert(number, name, value)
        return tables

    def record(self, store: Store) -> Record:
        config = self.points[0].config
        settings = METRICS[self.analysis].settings
        about = {"architecture": config.architecture, "dataset": config.dataset}
        made = self.folder(store).json("environment.json")
        return Record(
            self.kind, self.id, {"metric": self.analysis, **settings, **about, MADE: made}, self.tables(store)
        )


def measurements(configs: Sequence[RunConfig], store: Store, metric: str) -> list[Measurement]:
    """Everything that `metric` is measured at in these runs, as far as their phases came and have checkpoints.

    What would compare a network with itself is left out: strategies that share their first phases are one until then.
    How far a phase that ends by patience came is known in the store alone: such a run must be done.
    """
    rule = METRICS[check_name("metric", metric, METRICS)]
    runs = {config: Run(config, store) for config in configs}
    found = []
    for cell in cells_of(configs):
        for points, facts in rule.points(cell):
            if not all(p.kept and runs[p.config].reached(p.phase, p.share) for p in points):
                continue
            networks = [_network(point, rule) for point in points]
            if len(networks) > 1 and all(network == networks[0] for network in networks):
                continue
            network_id = f"{metric}-{content_hash([SCHEMA, metric, rule.settings, networks])}"
            found.append(Measurement(metric, points, tuple(facts.items()), network_id))
    return found


@lru_cache(maxsize=4096)
def _phase_ids(config: RunConfig) -> tuple[str, ...]:
    return prepare(config).phase_ids


def _network(point: Point, rule: Metric) -> list[Any]:
    """What decides the weights at a point, and the probe samples."""
    config, number, share = point.config, point.phase, point.share
    trains = [phase.trains for phase in planned(config)]
    if rule.backbone_only:
        while "backbone" not in trains[number - 1]:
            number, share = number - 1, 100
    phases = list(_phase_ids(config))
    if point.progress == 0:  # untrained, whatever its phases will be
        phases = [f"untrained {config.method} {sorted(config.method_args.items())}"]
    heads = [config.exits, config.head, config.head_layers, config.head_args]
    data = [config.dataset, config.dataset_args, config.train_size]
    return [phases[:number], share, config.seed, [config.architecture, config.architecture_args], heads, data]
