"""How a study's runs came to be: the metrics of `eestudy.dynamics` at their checkpoints, kept in the store.

A metric is measured at points: a run at a share of one of its phases; or between two runs. Points that hold the same
weights (disjoint and mixed share their first phase) are measured once. Training knows nothing of all this.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eestudy import dynamics
from eestudy.config import EestudyError, RunConfig, check_name, content_hash
from eestudy.data import DataSet
from eestudy.environment import describe, say
from eestudy.grids import Study, project_root
from eestudy.models import MultiExit
from eestudy.store import Store, write_atomically
from eestudy.study import Run, planned

# Raised when a definition changes so that an old measurement no longer answers.
SCHEMA = 1
Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Point:
    """A run's network at `share` per cent of its phase number `phase` (from 1)."""

    config: RunConfig
    phase: int
    share: int

    @property
    def progress(self) -> float:
        """Share of the whole run's epochs that are behind it, by the phases' shares."""
        shares = [phase.share for phase in planned(self.config)]
        return sum(shares[: self.phase - 1]) + self.share / 100 * shares[self.phase - 1]


@dataclass(frozen=True)
class Metric:
    """measure: networks (one a point) and data -> tables. settings: what else the result depends on.

    points: of a cell's configs (all seeds and strategies) -> what is measured: tuples of points, with facts to note.
    backbone_only: what a phase of heads alone does not change.
    """

    measure: Callable[..., Tables]
    settings: dict[str, Any]
    points: Callable[[Sequence[RunConfig]], Iterator[tuple[tuple[Point, ...], dict[str, Any]]]]
    backbone_only: bool = False


def _dominance(models: Sequence[MultiExit], data: DataSet, samples: int, batch_size: int) -> Tables:
    batches = dynamics.probe_batches(data.train, samples, models[0], batch_size)
    dominance, conflict = dynamics.gradient_tables(models[0], batches)
    return {"dominance": dominance, "conflict": conflict}


def _rank(models: Sequence[MultiExit], data: DataSet, samples: int) -> Tables:
    return {"rank": dynamics.stage_ranks(models[0], dynamics.probe_batches(data.train, samples, models[0]))}


def _information(
    models: Sequence[MultiExit], data: DataSet, samples: int, noises: Sequence[float], directions: int
) -> Tables:
    batches = dynamics.probe_batches(data.test, samples, models[0])
    return {"information": dynamics.stage_information(models[0], batches, noises, directions=directions)}


def _similarity(models: Sequence[MultiExit], data: DataSet, samples: int, debiased: bool) -> Tables:
    batches = dynamics.probe_batches(data.train, samples, models[0])
    return {"similarity": dynamics.stage_similarity(models[0], models[1], batches, debiased=debiased)}


def _paths(models: Sequence[MultiExit], data: DataSet, samples: int, points: int, heads: str) -> Tables:
    splits = _splits(models[0], data, samples)
    frame = dynamics.linear_path(models[0], models[1], splits, points, heads, splits["train"])
    frame["distance"] = dynamics.distance(models[0], models[1], over="all" if heads == "all" else "backbone")
    return {"paths" if heads == "all" else "probed_paths": frame}


def _curves(models: Sequence[MultiExit], data: DataSet, samples: int, points: int, steps: int) -> Tables:
    splits = _splits(models[0], data, samples)
    return {"curves": dynamics.bezier(models[0], models[1], splits["train"], splits, steps=steps, points=points)}


def _splits(model: MultiExit, data: DataSet, samples: int) -> dict[str, dynamics.Batches]:
    return {name: dynamics.probe_batches(getattr(data, name), samples, model) for name in ("train", "test")}


def _plane(models: Sequence[MultiExit], data: DataSet, samples: int, points: int) -> Tables:
    batches = dynamics.probe_batches(data.train, samples, models[0])
    grid, corners = dynamics.plane(models[0], models[1], models[2], batches, points=points)
    return {"plane": grid, "corners": corners}


def _landscape(models: Sequence[MultiExit], data: DataSet, samples: int, points: int) -> Tables:
    batches = dynamics.probe_batches(data.train, samples, models[0])
    return {"landscape": dynamics.landscape(models[0], batches, points=points)}


def _along(shares: Sequence[int] | None = None, backbone_only: bool = False) -> Callable[..., Any]:
    """Every run at `shares` of every phase (None: at all its checkpoints)."""

    def points(configs: Sequence[RunConfig]) -> Iterator[tuple[tuple[Point, ...], dict[str, Any]]]:
        for config in configs:
            for number, phase in enumerate(planned(config), 1):
                frozen = backbone_only and "backbone" not in phase.trains
                for share in sorted({*config.checkpoints, 100}):
                    kept = shares is None or share in shares
                    # The start of a later phase is the end of the one before; a frozen backbone stays what it was.
                    if kept and (share or number == 1) and not (frozen and share < 100):
                        yield (Point(config, number, share),), {}

    return points


def _ends(config: RunConfig) -> Point:
    return Point(config, len(planned(config)), 100)


def _pairs(initial: bool = False) -> Callable[..., Any]:
    """Finished runs of different strategies with the same seed; and, as controls, of one strategy with other seeds.

    initial: also each run and its own start.
    """

    def points(configs: Sequence[RunConfig]) -> Iterator[tuple[tuple[Point, ...], dict[str, Any]]]:
        for place, left in enumerate(configs):
            for right in configs[place + 1 :]:
                if left.seed == right.seed:
                    yield (_ends(left), _ends(right)), {"relation": "strategies"}
            same = [other for other in configs if other.strategy == left.strategy]
            after = same[(same.index(left) + 1) % len(same)]
            if after != left and not (len(same) == 2 and same.index(left)):
                yield (_ends(left), _ends(after)), {"relation": "seeds"}
            if initial:
                yield (Point(left, 1, 0), _ends(left)), {"relation": "start and end"}

    return points


def _two_seeds(controls: bool) -> Callable[..., Any]:
    """`_pairs` of the two smallest seeds alone, for what is dear; with or without the controls."""

    def points(configs: Sequence[RunConfig]) -> Iterator[tuple[tuple[Point, ...], dict[str, Any]]]:
        first = sorted({config.seed for config in configs})[:2]
        pairs = _pairs()([config for config in configs if config.seed in first])
        yield from ((pair, facts) for pair, facts in pairs if controls or facts["relation"] == "strategies")

    return points


def _first_seed(together: bool) -> Callable[..., Any]:
    """The finished runs of the smallest seed: all strategies at once, or one by one."""

    def points(configs: Sequence[RunConfig]) -> Iterator[tuple[tuple[Point, ...], dict[str, Any]]]:
        ends = tuple(_ends(config) for config in configs if config.seed == min(each.seed for each in configs))
        if not together:
            yield from (((end,), {}) for end in ends)
        elif len(ends) == 3:
            yield ends, {}

    return points


METRICS: dict[str, Metric] = {
    "dominance": Metric(_dominance, {"samples": 512, "batch_size": 128}, _along()),
    "rank": Metric(_rank, {"samples": 512}, _along(backbone_only=True), True),
    "information": Metric(
        _information, {"samples": 1000, "noises": (0.1, 0.3, 1.0, 3.0), "directions": 64}, _along((100,), True), True
    ),
    "similarity": Metric(_similarity, {"samples": 512, "debiased": True}, _pairs(initial=True), True),
    "paths": Metric(_paths, {"samples": 512, "points": 25, "heads": "all"}, _pairs()),
    "probed-paths": Metric(_paths, {"samples": 512, "points": 5, "heads": "probe"}, _two_seeds(True), True),
    "curves": Metric(_curves, {"samples": 512, "points": 9, "steps": 80}, _two_seeds(False)),
    "plane": Metric(_plane, {"samples": 512, "points": 9}, _first_seed(together=True)),
    "landscape": Metric(_landscape, {"samples": 512, "points": 9}, _first_seed(together=False)),
}


@dataclass(frozen=True)
class Measurement:
    """One metric at one tuple of points, and the folder in the store that holds it."""

    metric: str
    points: tuple[Point, ...]
    facts: tuple[tuple[str, Any], ...]
    id: str


def measurements(configs: Sequence[RunConfig], metric: str, store: Store) -> list[Measurement]:
    """Everything that `metric` is measured at in these runs, which must be done. Raises EestudyError otherwise."""
    rule = METRICS[check_name("metric", metric, METRICS)]
    cells: dict[str, list[RunConfig]] = {}
    for config in configs:
        if not store.folder("runs", config.id).done():
            raise EestudyError(f"{config.id}: is not trained yet; train the study first: eestudy run params/...yaml")
        cells.setdefault(config.replace(seed=0, strategy="joint").id, []).append(config)
    phases = {config: Run(config, store).phases for config in configs}
    found = []
    for cell in cells.values():
        for points, facts in rule.points(cell):
            content = [SCHEMA, metric, rule.settings, [_identity(p, phases[p.config], rule) for p in points]]
            found.append(Measurement(metric, points, tuple(facts.items()), f"{metric}-{content_hash(content)}"))
    return found


def _identity(point: Point, phases: list[str], rule: Metric) -> list[Any]:
    """What decides the weights at a point, and the probe samples."""
    config, number, share = point.config, point.phase, point.share
    trains = [phase.trains for phase in planned(config)]
    if rule.backbone_only:
        while "backbone" not in trains[number - 1]:
            number, share = number - 1, 100
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
    """Measures what is not measured and writes the study's tables dynamics_*.parquet; returns a line for each failure.

    metrics: of METRICS; None: all. results_dir: default book/results/<study>.
    """
    results_dir = results_dir or project_root() / "book" / "results" / study.name
    place = Store(store)
    place.check_writable()
    wanted = [each for metric in metrics or METRICS for each in measurements(study.configs, metric, place)]
    todo = {each.id: each for each in wanted if not place.folder("dynamics", each.id).done()}
    say(f"study {study.name}: {len({each.id for each in wanted})} measurements, {len(todo)} to make")
    failed = dict(_measure_all(list(todo.values()), workers, place))
    tables: dict[str, list[pd.DataFrame]] = {}
    costs = []
    for each in wanted:
        if each.id in failed:
            continue
        for name, frame in measured(each, place).items():
            tables.setdefault(name, []).append(frame)
        config = each.points[0].config
        facts = place.folder("dynamics", each.id).json("environment.json")
        costs.append({"metric": each.metric, "architecture": config.architecture, "dataset": config.dataset,
                      "id": each.id, "seconds": facts["seconds"], "hardware": facts["hardware"]})  # fmt: skip
    for name, frames in tables.items():
        frame = pd.concat(frames, ignore_index=True)
        write_atomically(results_dir / f"dynamics_{name}.parquet", _compact(frame).to_parquet(index=False))
    if costs:
        _write_costs(results_dir / "dynamics_costs.csv", pd.DataFrame(costs).drop_duplicates("id"))
    return list(failed.values())


def _compact(frame: pd.DataFrame) -> pd.DataFrame:
    """Single precision, and each name stored once: what is committed should be small."""
    floats = dict.fromkeys(frame.select_dtypes("float64"), "float32")
    return frame.astype(floats)


def _write_costs(path: Path, costs: pd.DataFrame) -> None:
    """Median seconds of a measurement, by metric and cell; of metrics that were not asked for this time, as before."""
    keys = ["metric", "architecture", "dataset", "hardware"]
    now = costs.groupby(keys)["seconds"].agg(measurements="size", median="median", most="max").reset_index()
    if path.is_file():
        before = pd.read_csv(path)
        now = pd.concat([before[~before["metric"].isin(now["metric"])], now])
    content = now.sort_values(keys).to_csv(index=False, float_format="%.4g", lineterminator="\n")
    write_atomically(path, content.encode())


def _measure_all(todo: Sequence[Measurement], workers: int, store: Store) -> Iterator[tuple[str, str]]:
    """(id, line) of what failed. Every worker gets its share of the cores."""
    share = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (share,))
    started, said, ended = time.monotonic(), 0.0, 0
    try:
        futures: dict[Future[None], Measurement] = {pool.submit(measure, each, store): each for each in todo}
        waiting: Iterable[Future[None]] = set(futures)
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                ended += 1
                each = futures[future]
                if error := future.exception():
                    names = ", ".join(point.config.id for point in each.points)
                    yield each.id, f"{each.metric} of {names}: {error}"
            spent = time.monotonic() - started
            if spent - said > 20 or not waiting:
                said = spent
                left = spent / ended * (len(todo) - ended)
                say(f"[{ended}/{len(todo)}] after {spent / 60:.1f} min, about {left / 60:.1f} min left")
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
