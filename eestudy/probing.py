"""What is measured of a study's runs, and where: the metrics of `eestudy.dynamics` and the points they are taken at.

A point is a run at a share of one of its phases. `trajectories` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eestudy import dynamics
from eestudy.config import RunConfig
from eestudy.data import DataSet
from eestudy.models import MultiExit
from eestudy.plan import planned

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
