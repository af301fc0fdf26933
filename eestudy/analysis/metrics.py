"""The metrics of `eestudy.dynamics` that a study's runs are measured by: with which settings, and at which points.

A point is a run at a share of one of its phases. What finds points takes the configs of a cell (all its seeds and
strategies) and yields tuples of points, each with facts to note.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from eestudy import dynamics
from eestudy.config import RunConfig
from eestudy.data import DataSet
from eestudy.models import MultiExit
from eestudy.plan import planned

Tables = dict[str, pd.DataFrame]
# How the two networks of a pair are related. "seeds" are the controls of "strategies".
STRATEGIES, SEEDS, START_AND_END = "strategies", "seeds", "start and end"


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


Found = Iterator[tuple[tuple[Point, ...], dict[str, Any]]]
Finder = Callable[[Sequence[RunConfig]], Found]


def start(config: RunConfig) -> Point:
    return Point(config, 1, 0)


def end(config: RunConfig) -> Point:
    return Point(config, len(planned(config)), 100)


def along_training(
    configs: Sequence[RunConfig], shares: Collection[int] | None = None, backbone_only: bool = False
) -> Found:
    """Every run at `shares` of every phase (None: at all its checkpoints)."""
    for config in configs:
        for number, phase in enumerate(planned(config), 1):
            frozen = backbone_only and "backbone" not in phase.trains
            for share in sorted({*config.checkpoints, 100}):
                wanted = shares is None or share in shares
                # The start of a later phase is the end of the one before; a frozen backbone stays what it was.
                if wanted and (share or number == 1) and not (frozen and share < 100):
                    yield (Point(config, number, share),), {}


def final_pairs(configs: Sequence[RunConfig], relations: Collection[str] = (STRATEGIES, SEEDS)) -> Found:
    """Finished runs of different strategies with the same seed; of one strategy with other seeds, in a ring.

    START_AND_END: each run and its own start. Facts: relation.
    """
    for number, left in enumerate(configs):
        for right in configs[number + 1 :] if STRATEGIES in relations else ():
            if left.seed == right.seed:
                yield (end(left), end(right)), {"relation": STRATEGIES}
        same = [other for other in configs if other.strategy == left.strategy]
        after = same[(same.index(left) + 1) % len(same)]
        if SEEDS in relations and after != left and not (len(same) == 2 and same.index(left)):
            yield (end(left), end(after)), {"relation": SEEDS}
        if START_AND_END in relations:
            yield (start(left), end(left)), {"relation": START_AND_END}


def final_pairs_of_two_seeds(configs: Sequence[RunConfig]) -> Found:
    """`final_pairs` of the first two seeds alone, for what takes long."""
    yield from final_pairs([config for config in configs if config.seed in _first_two_seeds(configs)])


def pairs_during_training(configs: Sequence[RunConfig], progresses: Sequence[float]) -> Found:
    """Pairs of networks where both have a checkpoint at a share of the run; and each run's start and end.

    The pairs: different strategies with the same seed; as a control each strategy with the first two seeds. Facts:
    relation, and progress, which is 1 of start and end. How far a phase is that ends by patience is not known before:
    such runs are paired at their start alone.
    """
    for number, left in enumerate(configs):
        for right in configs[number + 1 :]:
            if left.seed == right.seed:
                relation = STRATEGIES
            elif left.strategy == right.strategy and {left.seed, right.seed} == _first_two_seeds(configs):
                relation = SEEDS
            else:
                continue
            for progress in progresses if left.match != "patience" else (0,):
                points = _at(left, progress), _at(right, progress)
                if points[0] and points[1]:
                    yield (points[0], points[1]), {"relation": relation, "progress": progress}
        yield (start(left), end(left)), {"relation": START_AND_END, "progress": 1.0}


def final(configs: Sequence[RunConfig]) -> Found:
    """Every finished run."""
    yield from (((end(config),), {}) for config in configs)


def three_strategies(configs: Sequence[RunConfig]) -> Found:
    """The finished runs of the smallest seed, where they are three."""
    ends = tuple(end(config) for config in configs if config.seed == min(each.seed for each in configs))
    if len(ends) == 3:
        yield ends, {}


def _first_two_seeds(configs: Sequence[RunConfig]) -> set[int]:
    return set(list(dict.fromkeys(config.seed for config in configs))[:2])


def _at(config: RunConfig, progress: float) -> Point | None:
    """The run's checkpoint at that share of its epochs, if it has one."""
    shares = sorted({*config.checkpoints, 100})
    every = (Point(config, number, share) for number in range(1, len(planned(config)) + 1) for share in shares)
    return next((point for point in every if abs(point.progress - progress) < 1e-6), None)


@dataclass(frozen=True)
class Metric:
    """measure: networks (one a point) and data -> tables. settings: what else the result depends on.

    points: at what it is measured. backbone_only: what a phase of heads alone does not change.
    """

    measure: Callable[..., Tables]
    settings: dict[str, Any]
    points: Finder
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


def _paths(models: Sequence[MultiExit], data: DataSet, table: str, samples: int, points: int, heads: str) -> Tables:
    splits = {name: dynamics.probe_batches(getattr(data, name), samples, models[0]) for name in ("train", "test")}
    frame = dynamics.linear_path(models[0], models[1], splits, points, heads, splits["train"])
    frame["distance"] = dynamics.distance(models[0], models[1], over="all" if heads == "all" else "backbone")
    return {table: frame}


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


# Probe samples of what is counted and averaged; 512, as of the pictures below, would cap the rank of a wide stage.
SAMPLES = 3000
METRICS: dict[str, Metric] = {
    "dominance": Metric(_dominance, {"samples": SAMPLES, "batch_size": 128}, along_training),
    "rank": Metric(_rank, {"samples": SAMPLES}, partial(along_training, backbone_only=True), True),
    "information": Metric(
        _information,
        {"samples": SAMPLES, "noises": (0.1, 0.3, 1.0, 3.0), "directions": 64},
        partial(along_training, shares=(0, 25, 50, 100), backbone_only=True),
        True,
    ),
    "similarity": Metric(
        _similarity,
        {"samples": SAMPLES, "debiased": True},
        partial(final_pairs, relations=(STRATEGIES, SEEDS, START_AND_END)),
        True,
    ),
    "paths": Metric(partial(_paths, table="paths"), {"samples": SAMPLES, "points": 25, "heads": "all"}, final_pairs),
    "paths-over-training": Metric(
        partial(_paths, table="paths_over_training"),
        {"samples": 512, "points": 9, "heads": "all"},
        partial(pairs_during_training, progresses=(0, 0.25, 0.5, 0.75)),
    ),
    "probed-paths": Metric(
        partial(_paths, table="probed_paths"),
        {"samples": 512, "points": 5, "heads": "probe"},
        final_pairs_of_two_seeds,
        True,
    ),
    "curves": Metric(
        _curves,
        {"samples": 512, "points": 9, "steps": 160, "lr": 3e-3, "fitted_on": 2048},
        partial(final_pairs, relations=(STRATEGIES,)),
    ),
    "plane": Metric(_plane, {"samples": 512, "points": 9}, three_strategies),
    "landscape": Metric(_landscape, {"samples": 512, "points": 9}, final),
}
