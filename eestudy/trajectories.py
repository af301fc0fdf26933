"""How a study's runs came to be: the metrics of `eestudy.dynamics` at their checkpoints, kept in the store.

Points (see `probing`) that hold the same weights are measured once: disjoint and mixed share their first phase.
Training knows nothing of all this.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eestudy.config import EestudyError, RunConfig, check_name, content_hash
from eestudy.environment import describe, say, use_threads
from eestudy.grids import Study, project_root
from eestudy.plan import planned
from eestudy.probing import METRICS, Metric, Point, Tables
from eestudy.store import Store, write_atomically
from eestudy.study import Run

# Raised when a definition changes so that an old measurement no longer answers.
SCHEMA = 1


@dataclass(frozen=True)
class Measurement:
    """One metric at one tuple of points, and the folder in the store that holds it."""

    metric: str
    points: tuple[Point, ...]
    facts: tuple[tuple[str, Any], ...]
    id: str


def measurements(configs: Sequence[RunConfig], metric: str, store: Store) -> list[Measurement]:
    """Everything that `metric` is measured at in these runs, as far as their phases came and have checkpoints.

    What would compare a network with itself is left out: strategies that share their first phases are one until then.

    Raises EestudyError for a run that is not done.
    """
    rule = METRICS[check_name("metric", metric, METRICS)]
    cells: dict[str, list[RunConfig]] = {}
    for config in configs:
        if not store.folder("runs", config.id).done():
            raise EestudyError(f"{config.id}: is not trained yet; train the study first: eestudy run params/...yaml")
        cells.setdefault(config.replace(seed=0, strategy="joint").id, []).append(config)
    runs = {config: Run(config, store) for config in configs}
    found = []
    for cell in cells.values():
        for points, facts in rule.points(cell):
            if not all(p.kept and runs[p.config].reached(p.phase, p.share) for p in points):
                continue
            networks = [_identity(p, runs[p.config].phases, rule) for p in points]
            if len(networks) > 1 and all(network == networks[0] for network in networks):
                continue
            content = [SCHEMA, metric, rule.settings, networks]
            found.append(Measurement(metric, points, tuple(facts.items()), f"{metric}-{content_hash(content)}"))
    return found


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
    """Measures what is not measured and writes the study's tables dynamics_*.parquet; returns a line for each failure.

    metrics: of METRICS; None: all. results_dir: default book/results/<study>.
    """
    results_dir = results_dir or project_root() / "book" / "results" / study.name
    place = Store(store)
    place.check_writable()
    wanted = [each for metric in metrics or METRICS for each in measurements(study.configs, metric, place)]
    todo = {each.id: each for each in wanted if not place.whole(place.folder("dynamics", each.id))}
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
    use_threads(threads)
