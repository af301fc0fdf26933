"""How a study's runs came to be: the metrics of `eestudy.dynamics` at their checkpoints, kept in the store.

Points (see `probing`) that hold the same weights are measured once: disjoint and mixed share their first phase.
Training knows nothing of all this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from eestudy.config import EestudyError, RunConfig, check_name, content_hash
from eestudy.environment import describe, say
from eestudy.grids import Study
from eestudy.plan import planned, prepare
from eestudy.probing import METRICS, Metric, Point, Tables
from eestudy.progress import Progress, shared
from eestudy.records import MADE, Record, Records, results_folder
from eestudy.store import Store
from eestudy.study import Run

# Raised when a definition changes so that an old measurement no longer answers.
SCHEMA = 1
QUIET = 20.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Measurement:
    """One metric at one tuple of points, and the folder in the store that holds it."""

    metric: str
    points: tuple[Point, ...]
    facts: tuple[tuple[str, Any], ...]
    id: str

    @property
    def record(self) -> str:
        """Id of its record. Runs that share a network share the measurement, but each has the record of its own."""
        places = [[point.config.id, point.phase, point.share] for point in self.points]
        about = [self.id, places, self.facts]
        return f"{self.metric}-{content_hash(about)}"


def measurements(configs: Sequence[RunConfig], metric: str, store: Store) -> list[Measurement]:
    """Everything that `metric` is measured at in these runs, as far as their phases came and have checkpoints.

    What would compare a network with itself is left out: strategies that share their first phases are one until then.
    How far a phase that ends by patience came is known in the store alone: EestudyError where such a run is not done.
    """
    rule = METRICS[check_name("metric", metric, METRICS)]
    cells: dict[str, list[RunConfig]] = {}
    for config in configs:
        if config.match == "patience" and not store.folder("runs", config.id).done():
            raise _untrained(config)
        cells.setdefault(config.replace(seed=0, strategy="joint").id, []).append(config)
    runs = {config: Run(config, store) for config in configs}
    found = []
    for cell in cells.values():
        for points, facts in rule.points(cell):
            if not all(p.kept and runs[p.config].reached(p.phase, p.share) for p in points):
                continue
            networks = [_identity(p, _phases(p.config), rule) for p in points]
            if len(networks) > 1 and all(network == networks[0] for network in networks):
                continue
            content = [SCHEMA, metric, rule.settings, networks]
            found.append(Measurement(metric, points, tuple(facts.items()), f"{metric}-{content_hash(content)}"))
    return found


def _untrained(config: RunConfig) -> EestudyError:
    return EestudyError(f"{config.id}: is not trained yet; train the study first: eestudy run params/...yaml")


@lru_cache(maxsize=4096)
def _phases(config: RunConfig) -> list[str]:
    return list(prepare(config).phase_ids)


def _identity(point: Point, phases: list[str], rule: Metric) -> list[Any]:
    """What decides the weights at a point, and the probe samples."""
    config, number, share = point.config, point.phase, point.share
    trains = [phase.trains for phase in planned(config)]
    if rule.backbone_only:
        while "backbone" not in trains[number - 1]:
            number, share = number - 1, 100
    if point.progress == 0:  # untrained, whatever its phases will be
        phases = [f"untrained {config.method} {sorted(config.method_args.items())}"]
    heads = [config.exits, config.head, config.head_layers, config.head_args]
    data = [config.dataset, config.dataset_args, config.train_size]
    return [phases[:number], share, config.seed, [config.architecture, config.architecture_args], heads, data]


def measure(measurement: Measurement, store: Store) -> None:
    """Measures what is not in the store yet."""
    folder = store.folder("dynamics", measurement.id)
    with folder.lock(say):
        if store.usable(folder):
            return
        rule = METRICS[measurement.metric]
        runs = [Run(point.config, store) for point in measurement.points]
        models = [run.checkpoint(p.phase, p.share) for run, p in zip(runs, measurement.points, strict=True)]
        began = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tables = rule.measure(models, runs[0].data(), **rule.settings)
        seconds = time.perf_counter() - began
        for name, table in tables.items():
            folder.write_frame(f"{name}.parquet", table)
        folder.write_json("environment.json", {**describe("cpu"), "seconds": round(seconds, 3)})
        folder.finish()


def measured(measurement: Measurement, store: Store) -> Tables:
    """The tables of a measurement, each with the runs and checkpoints it belongs to."""
    folder = store.folder("dynamics", measurement.id)
    tables = {}
    for path in sorted(folder.path.glob("*.parquet")):
        frame = folder.frame(path.name)
        for key, value in measurement.facts:
            frame[key] = value
        first, *others = measurement.points
        frame.insert(0, "run", first.config.id)
        if others:
            for number, other in enumerate(others, 2):
                frame.insert(number - 1, "other" if number == 2 else f"other_{number}", other.config.id)
        else:
            frame.insert(1, "phase", first.phase)
            frame.insert(2, "share", first.share)
            frame.insert(3, "progress", first.progress)
        tables[path.stem] = frame
    return tables


def measure_study(
    study: Study,
    metrics: Sequence[str] | None = None,
    workers: int = 1,
    store: Path | None = None,
    results_dir: Path | None = None,
) -> list[str]:
    """Measures what has no record and adds it to the study's; returns a line for each failure.

    metrics: of METRICS; None: all. results_dir: default book/results/<study>. Raises EestudyError for runs that are not
    in the store: a measurement needs their weights.
    """
    results_dir = results_dir or results_folder(study.name)
    place, records = Store(store), Records(results_dir)
    place.check_writable()
    wanted = [each for metric in metrics or METRICS for each in measurements(study.configs, metric, place)]
    new = [each for each in wanted if not records.has("dynamics", each.record)]
    for config in {point.config for each in new for point in each.points}:
        if not place.folder("runs", config.id).done():
            raise _untrained(config)
    todo = {each.id: each for each in new if not place.whole(place.folder("dynamics", each.id))}
    say(f"study {study.name}: {len({each.id for each in wanted})} measurements, {len(todo)} to make")
    for each in new:
        if each.id not in todo:
            records.add(record_of(each, place))
    progress, failures = Progress(dict.fromkeys(todo, 1.0), QUIET), []
    for made, error in shared(partial(measure, store=place), list(todo.values()), workers):
        progress.ended(made.id, error is not None)
        if error:
            names = ", ".join(point.config.id for point in made.points)
            failures.append(f"{made.metric} of {names}: {error}")
            continue
        for each in new:
            if each.id == made.id:  # runs that share a network
                records.add(record_of(each, place))
    return failures


def record_of(measurement: Measurement, store: Store) -> Record:
    """The record of a measurement that is in the store."""
    made = store.folder("dynamics", measurement.id).json("environment.json")
    config = measurement.points[0].config
    about = {name: getattr(config, name) for name in ("architecture", "dataset")}
    facts = {"metric": measurement.metric, **METRICS[measurement.metric].settings, **about, MADE: made}
    return Record("dynamics", measurement.record, facts, measured(measurement, store))
