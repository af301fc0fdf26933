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

    @property
    def kept(self) -> bool:
        """Whether the run has a checkpoint there."""
        return self.share in {*self.config.checkpoints, 100}


# Tuples of points, each with facts to note; and what finds them in a cell's configs (all seeds and strategies).
Found = Iterator[tuple[tuple[Point, ...], dict[str, Any]]]
Rule = Callable[[Sequence[RunConfig]], Found]


@dataclass(frozen=True)
class Metric:
    """measure: networks (one a point) and data -> tables. settings: what else the result depends on.

    points: at what it is measured. backbone_only: what a phase of heads alone does not change.
    """

    measure: Callable[..., Tables]
    settings: dict[str, Any]
    points: Rule
    backbone_only: bool = False


def _dominance(models: Sequence[MultiExit], data: DataSet, samples: int, batch_size: int) -> Tables:
    batches = dynamics.probe_batches(data.train, samples, models[0], batch_size)
    dominance, conflict = dynamics.gradient_tables(models[0], batches)
    scaled, _ = dynamics.gradient_tables(models[0], batches, scaled=True)
    return {"dominance": dominance, "conflict": conflict, "dominance_scaled": scaled}


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


def _paths(table: str) -> Callable[..., Tables]:
    def measure(models: Sequence[MultiExit], data: DataSet, samples: int, points: int, heads: str) -> Tables:
        splits = {name: dynamics.probe_batches(getattr(data, name), samples, models[0]) for name in ("train", "test")}
        frame = dynamics.linear_path(models[0], models[1], splits, points, heads, splits["train"])
        frame["distance"] = dynamics.distance(models[0], models[1], over="all" if heads == "all" else "backbone")
        return {table: frame}

    return measure


def _curves(
    models: Sequence[MultiExit], data: DataSet, samples: int, points: int, steps: int, lr: float, fitted_on: int
) -> Tables:
    """Fitted to other training samples than it is measured on: of a small split, half is for each.

    And the line between the same models, measured as the curve is.
    """
    measured = min(samples, len(data.train) // 2)
    fitted = dynamics.probe_batches(data.train, fitted_on, models[0], skip=measured)
    splits = {
        "train": dynamics.probe_batches(data.train, measured, models[0]),
        "test": dynamics.probe_batches(data.test, samples, models[0]),
    }
    curve = dynamics.bezier(models[0], models[1], fitted, splits, steps=steps, lr=lr, points=points)
    line = dynamics.linear_path(models[0], models[1], splits, points, "all", fitted)
    line["length"] = line["alpha"] * dynamics.distance(models[0], models[1])
    return {"curves": pd.concat([curve.assign(way="curve"), line.assign(way="line")], ignore_index=True)}


def _plane(models: Sequence[MultiExit], data: DataSet, samples: int, points: int) -> Tables:
    batches = dynamics.probe_batches(data.train, samples, models[0])
    grid, corners = dynamics.plane(models[0], models[1], models[2], batches, points=points)
    return {"plane": grid, "corners": corners}


def _landscape(models: Sequence[MultiExit], data: DataSet, samples: int, points: int) -> Tables:
    batches = dynamics.probe_batches(data.train, samples, models[0])
    return {"landscape": dynamics.landscape(models[0], batches, points=points)}


def _along(shares: Sequence[int] | None = None, backbone_only: bool = False) -> Rule:
    """Every run at `shares` of every phase (None: at all its checkpoints)."""

    def points(configs: Sequence[RunConfig]) -> Found:
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


def _pairs(initial: bool = False) -> Rule:
    """Finished runs of different strategies with the same seed; and, as controls, of one strategy with other seeds.

    initial: also each run and its own start.
    """

    def points(configs: Sequence[RunConfig]) -> Found:
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


def _across_strategies(configs: Sequence[RunConfig]) -> Found:
    """`_pairs` without their controls."""
    yield from ((pair, facts) for pair, facts in _pairs()(configs) if facts["relation"] == "strategies")


def _before_the_end(places: Sequence[float]) -> Rule:
    """Pairs of networks where both have a checkpoint at a share of the run; and each run's start and end.

    The pairs: different strategies with the same seed; as a control each strategy with the first two seeds. Facts:
    relation, and progress, which is 1 of start and end. How far a phase is that ends by patience is not known before:
    such runs are paired at their start alone.
    """

    def points(configs: Sequence[RunConfig]) -> Found:
        for place, left in enumerate(configs):
            for right in configs[place + 1 :]:
                if left.seed == right.seed:
                    relation = "strategies"
                elif left.strategy == right.strategy and {left.seed, right.seed} == _first_two(configs):
                    relation = "seeds"
                else:
                    continue
                for progress in places if left.match != "patience" else (0,):
                    here, there = _at(left, progress), _at(right, progress)
                    if here and there:
                        yield (here, there), {"relation": relation, "progress": progress}
            yield (Point(left, 1, 0), _ends(left)), {"relation": "start and end", "progress": 1.0}

    return points


def _first_two(configs: Sequence[RunConfig]) -> set[int]:
    return set(list(dict.fromkeys(config.seed for config in configs))[:2])


def _at(config: RunConfig, progress: float) -> Point | None:
    """The run's checkpoint at that share of its epochs, if it has one."""
    shares = sorted({*config.checkpoints, 100})
    every = (Point(config, number, share) for number in range(1, len(planned(config)) + 1) for share in shares)
    return next((point for point in every if abs(point.progress - progress) < 1e-6), None)


def _two_seeds(configs: Sequence[RunConfig]) -> Found:
    """`_pairs` of the first two seeds alone, for what is dear."""
    yield from _pairs()([config for config in configs if config.seed in _first_two(configs)])


def _every_end(configs: Sequence[RunConfig]) -> Found:
    yield from (((_ends(config),), {}) for config in configs)


def _three_strategies(configs: Sequence[RunConfig]) -> Found:
    """The finished runs of the smallest seed, where they are three."""
    ends = tuple(_ends(config) for config in configs if config.seed == min(each.seed for each in configs))
    if len(ends) == 3:
        yield ends, {}


# Probe samples of what is counted and averaged; 512, as of the pictures below, would cap the rank of a wide stage.
SAMPLES = 3000
METRICS: dict[str, Metric] = {
    "dominance": Metric(_dominance, {"samples": SAMPLES, "batch_size": 128}, _along()),
    "rank": Metric(_rank, {"samples": SAMPLES}, _along(backbone_only=True), True),
    "information": Metric(
        _information,
        {"samples": SAMPLES, "noises": (0.1, 0.3, 1.0, 3.0), "directions": 64},
        _along((0, 25, 50, 100), True),
        True,
    ),
    "similarity": Metric(_similarity, {"samples": SAMPLES, "debiased": True}, _pairs(initial=True), True),
    "paths": Metric(_paths("paths"), {"samples": SAMPLES, "points": 25, "heads": "all"}, _pairs()),
    "paths-over-training": Metric(
        _paths("paths_over_training"),
        {"samples": 512, "points": 9, "heads": "all"},
        _before_the_end((0, 0.25, 0.5, 0.75)),
    ),
    "probed-paths": Metric(_paths("probed_paths"), {"samples": 512, "points": 5, "heads": "probe"}, _two_seeds, True),
    "curves": Metric(
        _curves, {"samples": 512, "points": 9, "steps": 160, "lr": 3e-3, "fitted_on": 2048}, _across_strategies
    ),
    "plane": Metric(_plane, {"samples": 512, "points": 9}, _three_strategies),
    "landscape": Metric(_landscape, {"samples": 512, "points": 9}, _every_end),
}
