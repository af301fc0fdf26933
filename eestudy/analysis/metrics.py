"""The metrics of `eestudy.dynamics` that a study's runs are measured by: with which settings, and at which points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from eestudy import dynamics
from eestudy.analysis import points as at
from eestudy.data import DataSet
from eestudy.models import MultiExit

Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Metric:
    """measure: networks (one a point) and data -> tables. settings: what else the result depends on.

    points: at what it is measured. backbone_only: what a phase of heads alone does not change.
    """

    measure: Callable[..., Tables]
    settings: dict[str, Any]
    points: at.Finder
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
    "dominance": Metric(_dominance, {"samples": SAMPLES, "batch_size": 128}, at.along_training),
    "rank": Metric(_rank, {"samples": SAMPLES}, partial(at.along_training, backbone_only=True), True),
    "information": Metric(
        _information,
        {"samples": SAMPLES, "noises": (0.1, 0.3, 1.0, 3.0), "directions": 64},
        partial(at.along_training, shares=(0, 25, 50, 100), backbone_only=True),
        True,
    ),
    "similarity": Metric(
        _similarity,
        {"samples": SAMPLES, "debiased": True},
        partial(at.final_pairs, relations=(at.STRATEGIES, at.SEEDS, at.START_AND_END)),
        True,
    ),
    "paths": Metric(partial(_paths, table="paths"), {"samples": SAMPLES, "points": 25, "heads": "all"}, at.final_pairs),
    "paths-over-training": Metric(
        partial(_paths, table="paths_over_training"),
        {"samples": 512, "points": 9, "heads": "all"},
        partial(at.pairs_during_training, progresses=(0, 0.25, 0.5, 0.75)),
    ),
    "probed-paths": Metric(
        partial(_paths, table="probed_paths"),
        {"samples": 512, "points": 5, "heads": "probe"},
        at.final_pairs_of_two_seeds,
        True,
    ),
    "curves": Metric(
        _curves,
        {"samples": 512, "points": 9, "steps": 160, "lr": 3e-3, "fitted_on": 2048},
        partial(at.final_pairs, relations=(at.STRATEGIES,)),
    ),
    "plane": Metric(_plane, {"samples": 512, "points": 9}, at.three_strategies),
    "landscape": Metric(_landscape, {"samples": 512, "points": 9}, at.final),
}
