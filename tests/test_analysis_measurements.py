"""Metrics at a study's checkpoints: what is measured, once, kept, and written into tables."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from eestudy import data, dynamics
from eestudy.analysis.executor import analyse_study, keep
from eestudy.analysis.measurements import measurements
from eestudy.analysis.metrics import METRICS, Point
from eestudy.cli import main
from eestudy.config import EestudyError, RunConfig
from eestudy.records import Records
from eestudy.runs import Run
from eestudy.store import Store
from eestudy.study import Study

from .conftest import SMALL

STRATEGIES = ("disjoint", "joint", "mixed")


@pytest.fixture(scope="module")
def configs(small_run):
    """Two seeds of the three strategies, trained."""
    return [small_run("mlp", "digits", strategy, seed=seed).config for strategy in STRATEGIES for seed in (0, 1)]


@pytest.fixture
def store(small_store, tmp_path, monkeypatch):
    """The shared store of runs, with what is measured in a folder of the test's own."""
    store = Store(small_store)
    folder = store.folder

    def elsewhere(kind, name):
        return Store(tmp_path).folder(kind, name) if kind == "dynamics" else folder(kind, name)

    monkeypatch.setattr(store, "folder", elsewhere)
    return store


def test_progress_is_the_share_of_the_whole_run():
    mixed = RunConfig(architecture="mlp", dataset="digits", strategy="mixed", phase_split=0.25)
    assert [Point(mixed, 1, 0).progress, Point(mixed, 1, 100).progress] == [0, 0.25]
    assert Point(mixed, 2, 50).progress == pytest.approx(0.625)
    assert Point(mixed.replace(strategy="joint"), 1, 10).progress == pytest.approx(0.1)


def test_equal_weights_are_measured_once(configs, store):
    made = measurements(configs, store, "dominance")
    by_strategy = {s: {m.network_id for m in made if m.points[0].config.strategy == s} for s in STRATEGIES}
    first = {m.network_id for m in made if m.points[0].config.strategy == "mixed" and m.points[0].phase == 1}
    assert by_strategy["disjoint"] & by_strategy["mixed"] == first
    start = {m.network_id for m in made if m.points[0].progress == 0}
    assert by_strategy["joint"] & by_strategy["mixed"] == start
    assert len(start) == 2, "one a seed"
    assert len(first) == 2 * 7
    assert len({m.network_id for m in made}) == 2 * (7 + 6 + 6 + 7 - 1), "the untrained network is one"


def test_a_frozen_backbone_is_measured_once(configs, store):
    made = [m for m in measurements(configs, store, "rank") if m.points[0].config.strategy == "disjoint"]
    assert [(p.phase, p.share) for m in made for p in m.points if p.config.seed == 0] == [
        *((1, share) for share in (0, 5, 10, 25, 50, 75, 100)), (2, 100),
    ]  # fmt: skip
    ends = {m.network_id for m in made if m.points[0].share == 100}
    assert len(ends) == 2, "one a seed: the end of phase 1 is the end of the run"


def test_pairs_and_their_controls(configs, store):
    made = measurements(configs, store, "paths")
    relations = [dict(m.facts)["relation"] for m in made]
    assert relations.count("strategies") == 2 * 3
    assert relations.count("seeds") == 3, "two seeds are one pair"
    for each in made:
        left, right = (point.config for point in each.points)
        assert (left.seed == right.seed) == (dict(each.facts)["relation"] == "strategies")
    four = [config.replace(seed=seed) for config in configs[::2] for seed in range(4)]
    pairs = [
        (a.config.seed, b.config.seed) for (a, b), facts in METRICS["paths"].points(four) if "seeds" in facts.values()
    ]
    assert sorted(pairs) == sorted([(0, 1), (1, 2), (2, 3), (3, 0)] * 3)


def test_pairs_over_training_are_of_networks_that_differ(configs, store):
    """Two seeds: disjoint and mixed part after half of the run, joint from both at once."""
    made = measurements(configs, store, "paths-over-training")
    found: dict[str, set[object]] = {"strategies": set(), "seeds": set(), "start and end": set()}
    for each in made:
        (left, right), facts = each.points, dict(each.facts)
        first, second = (Run(point.config, store).checkpoint(point.phase, point.share) for point in each.points)
        assert dynamics.distance(first, second) > 0
        if facts["relation"] == "start and end":
            assert (left.progress, right.progress) == (0, 1)
        else:
            assert left.progress == right.progress == facts["progress"]
        found[facts["relation"]].add(
            (left.config.strategy, left.config.seed, right.config.strategy, right.config.seed, facts["progress"])
        )
    pairs = {
        ("disjoint", "joint"): (0.25, 0.5, 0.75),
        ("disjoint", "mixed"): (0.75,),
        ("joint", "mixed"): (0.25, 0.5, 0.75),
    }
    assert found["strategies"] == {(a, s, b, s, p) for (a, b), at in pairs.items() for s in (0, 1) for p in at}
    assert found["seeds"] == {(a, 0, a, 1, p) for a in STRATEGIES for p in (0, 0.25, 0.5, 0.75)}
    assert found["start and end"] == {(a, s, a, s, 1.0) for a in STRATEGIES for s in (0, 1)}
    assert len({each.network_id for each in made}) == len(made) - 2 - 2, (
        "the first phase is one, and so are untrained networks"
    )


def test_runs_that_end_by_patience_are_paired_at_their_start_alone(configs):
    patient = [config.replace(match="patience", patience=3) for config in configs]
    found = [(facts["relation"], facts["progress"]) for _, facts in METRICS["paths-over-training"].points(patient)]
    assert set(found) == {("strategies", 0), ("seeds", 0), ("start and end", 1.0)}


def test_a_point_without_a_checkpoint_is_not_measured(small_run, store):
    few = [small_run("mlp", "digits", strategy, checkpoints=(50,)).config for strategy in ("joint", "mixed")]
    shares = {p.share for each in measurements(few, store, "paths-over-training") for p in each.points}
    assert shares == {50, 100}
    assert [m.facts for m in measurements(few, store, "similarity")] == [(("relation", "strategies"),)]


def test_a_measurement_is_kept_and_made_again_when_damaged(configs, store, monkeypatch, capsys):
    each = measurements(configs, store, "rank")[3]
    keep(each, store)
    frame = each.tables(store)["rank"]
    assert {"run", "phase", "share", "progress", "stage", "numerical_rank"} <= set(frame.columns)
    assert set(frame["run"]) == {each.points[0].config.id}

    def never(*_, **__):
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setitem(METRICS, "rank", dataclasses.replace(METRICS["rank"], measure=never))
        keep(each, store)
    path = each.folder(store).path / "rank.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    keep(each, store)
    assert "set aside" in capsys.readouterr().err
    pd.testing.assert_frame_equal(each.tables(store)["rank"], frame)


def test_what_was_not_trained_is_named(tmp_path):
    config = RunConfig(architecture="mlp", dataset="digits", strategy="joint", **SMALL)
    for missing in (config, config.replace(match="patience")):
        with pytest.raises(EestudyError, match=rf"{missing.id}: not trained yet; make with: eestudy run params/tiny"):
            analyse_study(Study("tiny", (missing,)), ["rank"], Store(tmp_path), Records(tmp_path / "results"))
    with pytest.raises(EestudyError, match="metric: unknown name 'rang'; nearest: rank"):
        measurements([config], Store(tmp_path), "rang")


def test_what_is_fitted_is_fitted_to_training_samples(monkeypatch):
    """Which split each metric reads; what it reads is the split's name, instead of its batches."""
    monkeypatch.setattr(
        dynamics, "probe_batches", lambda split, *_, skip=0: f"{split} without {skip}" if skip else split
    )
    monkeypatch.setattr(dynamics, "distance", lambda *_, **__: 0.0)
    seen: dict[tuple[str, str], list[object]] = {}

    def spied(name):
        def spy(*given, **named):
            seen[metric, name] = [each for each in (*given, *named.values()) if isinstance(each, str | dict)]
            return pd.DataFrame({"alpha": [0.0]})

        return spy

    for name in ("linear_path", "bezier", "stage_ranks", "stage_information"):
        monkeypatch.setattr(dynamics, name, spied(name))
    splits = SimpleNamespace(train="train", test="test")
    for metric in ("rank", "information", "curves", "probed-paths"):
        METRICS[metric].measure([None, None], splits, **METRICS[metric].settings)
    both = {"train": "train", "test": "test"}
    assert seen == {
        ("rank", "stage_ranks"): ["train"],
        ("information", "stage_information"): ["test"],
        ("curves", "bezier"): ["train without 2", both],  # half of the five, which the split's name has
        ("curves", "linear_path"): [both, "all", "train without 2"],
        ("probed-paths", "linear_path"): [both, "probe", "train"],
    }


SMALLER = {"samples": 64, "points": 3, "steps": 2, "noises": (1.0,), "batch_size": 32}


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_gives_tables(configs, store, monkeypatch, metric):
    settings = {key: SMALLER.get(key, value) for key, value in METRICS[metric].settings.items()}
    monkeypatch.setitem(METRICS, metric, dataclasses.replace(METRICS[metric], settings=settings))
    each = measurements(configs, store, metric)[-1]
    keep(each, store)
    tables = each.tables(store)
    assert tables
    for frame in tables.values():
        assert len(frame)
        assert not frame.isna().all().any()
        assert ("other" in frame) == (len(each.points) > 1)
        assert ("progress" in frame) == (len(each.points) == 1 or metric == "paths-over-training")


def test_a_study_s_tables(configs, small_store, tmp_path):
    """In two processes; then nothing twice, and without the trained runs, because the records are there."""
    study = Study("tiny", tuple(configs))
    assert not analyse_study(study, ["rank", "plane"], Store(small_store), Records(tmp_path), 2)
    assert not (tmp_path / "replicates").exists()
    records = Records(tmp_path).read("dynamics")
    assert {record.facts["metric"] for record in records} == {"rank", "plane"}
    assert all(record.facts["made"]["seconds"] > 0 for record in records)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json.gz")}
    assert not analyse_study(study, ["rank"], Store(tmp_path / "empty"), Records(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json.gz")} == before
    rank = pd.concat([record.tables["rank"] for record in records if "rank" in record.tables])
    assert set(rank["run"]) == {config.id for config in configs}
    # Runs that share a network share its measurement, but each has its rows.
    shared = rank[(rank["phase"] == 1) & (rank["share"] == 50)].groupby("run")["numerical_rank"].apply(list)
    for seed in (0, 1):
        disjoint, mixed = (
            next(config.id for config in configs if (config.strategy, config.seed) == (strategy, seed))
            for strategy in ("disjoint", "mixed")
        )
        assert shared[disjoint] == shared[mixed]


def test_the_command_line_names_a_wrong_metric(capsys, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("architecture: mlp\ndataset: digits\nstrategy: joint\n")
    assert main(["dynamics", str(path), "--metrics", "ranks", "--store", str(tmp_path)]) == 2
    assert "metric: unknown name 'ranks'; nearest: rank" in capsys.readouterr().err


def test_probe_batches_are_the_same_for_every_network(small_run):
    models = [small_run("mlp", "digits", strategy).model() for strategy in ("joint", "mixed")]
    split = data.load("digits").train
    left, right = (dynamics.probe_batches(split, 300, model) for model in models)
    assert [len(y) for _, y in left] == [128, 128, 44]
    assert [len(y) for _, y in dynamics.probe_batches(split, 257, models[0])] == [128, 128]
    assert [len(y) for _, y in dynamics.probe_batches(split, 3, models[0], batch_size=1)] == [1, 1, 1]
    for (x, y), (other, labels) in zip(left, right, strict=True):
        assert torch.equal(x, other)
        assert torch.equal(y, labels)
    places = [int((split.x == sample).flatten(1).all(1).nonzero()[0]) for x, _ in left for sample in x]
    assert len(set(places)) > 295, "without repetition, but for equal pictures"
    assert torch.equal(torch.cat([y for _, y in left]), split.y[torch.tensor(places)])
    others = dynamics.probe_batches(split, 10**6, models[0], skip=300)
    whole = dynamics.probe_batches(split, 10**6, models[0])
    assert torch.equal(torch.cat([x for x, _ in (*left, *others)]), torch.cat([x for x, _ in whole]))
    with pytest.raises(EestudyError, match=f"skip: {len(split) - 1} of {len(split)} samples is not valid"):
        dynamics.probe_batches(split, 2, models[0], skip=len(split) - 1)
    assert sum(len(y) for _, y in whole) == len(split)
    with pytest.raises(EestudyError, match="samples: 1 in batches of 128 is not valid"):
        dynamics.probe_batches(split, 1, models[0])
