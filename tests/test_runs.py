from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import eestudy
from eestudy import evaluation, plan, runs
from eestudy.analysis.measurements import measurements
from eestudy.config import EestudyError, RunConfig
from eestudy.plan import prepare
from eestudy.training.loop import checkpoint_name

from .conftest import CELLS, SMALL


@pytest.mark.parametrize(("architecture", "dataset"), CELLS)
@pytest.mark.parametrize("strategy", ["disjoint", "joint", "mixed"])
def test_every_backbone_and_strategy_trains_predicts_and_reloads(small_run, architecture, dataset, strategy):
    run = small_run(architecture, dataset, strategy)
    logits, labels = run.predictions("test")
    model, test = run.model(), run.data().test
    assert not model.training
    assert logits.shape == (model.num_exits, len(test), 10)
    assert logits.dtype == np.float32
    with torch.no_grad():
        again = torch.stack([torch.cat(parts) for parts in zip(*(model(x) for x in test.x.split(512)))])
    np.testing.assert_array_equal(again.numpy(), logits)
    exits = run.exits()
    assert exits["accuracy"].to_numpy() == pytest.approx((logits.argmax(2) == labels).mean(1))
    assert list(exits.columns) == ["run", "exit", "stage", "flops", "params", "accuracy", "nll", "ece"]
    assert list(run.history().columns) == ["run", "phase", "epoch", "exit", "split", "loss", "accuracy"]
    assert exits["flops"].is_monotonic_increasing
    assert run.costs[-1] == pytest.approx(run.backbone_flops + sum(run.parts["heads"]))


def test_disjoint_and_mixed_share_the_very_same_first_phase(small_run):
    disjoint, mixed, joint = (small_run("resnet-tiny", "digits", name) for name in ("disjoint", "mixed", "joint"))
    assert disjoint.phases[0] == mixed.phases[0]
    assert len({*disjoint.phases, *mixed.phases, *joint.phases}) == 4
    # ... and disjoint's final backbone is that checkpoint, bit for bit.
    first = disjoint._store.folder("phases", disjoint.phases[0]).arrays(checkpoint_name(100))
    weights = disjoint.model().state_dict()
    assert len(first) > 50
    assert all((weights[name].numpy() == value).all() for name, value in first.items())


def test_other_heads_share_the_first_phase_too(small_run):
    one, two = (small_run("mlp", "digits", "disjoint", head_layers=layers) for layers in (1, 2))
    assert one.phases[0] == two.phases[0]
    assert one.phases[1] != two.phases[1]


def test_strategies_start_from_the_same_weights_and_order():
    plans = [
        prepare(RunConfig(architecture="mlp", dataset="digits", strategy=name, **SMALL)) for name in ("joint", "mixed")
    ]
    first, second = (plan.model.state_dict() for plan in plans)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = prepare(RunConfig(architecture="mlp", dataset="digits", strategy="joint", **SMALL, seed=1))
    assert not torch.equal(other.model.state_dict()["heads.1.0.weight"], first["heads.1.0.weight"])


def test_costs_are_counted_once_for_all_seeds_and_again_for_anything_else(monkeypatch):
    counted: list[str] = []
    count = plan.step_flops

    def counting(model, phase):
        counted.append(phase.name)
        return count(model, phase)

    monkeypatch.setattr(plan, "_COUNTED", {})
    monkeypatch.setattr(plan, "step_flops", counting)
    config = RunConfig(architecture="mlp", dataset="digits", strategy="mixed", **SMALL)
    flops = [prepare(config.model_copy(update={"seed": seed})).training_flops for seed in (3, 4, 5)]
    assert counted == ["backbone", "together"]
    assert len(set(flops)) == 1
    wider = prepare(config.model_copy(update={"architecture_args": {"width": 48}}))
    assert len(counted) == 4
    assert wider.training_flops != flops[0]
    own = RunConfig(architecture="own", dataset="digits", strategy="mixed", **SMALL)
    assert prepare(own, wider.model).training_flops == wider.training_flops
    assert prepare(own, prepare(config).model).training_flops == flops[0]


def test_a_phase_that_ends_by_patience_has_the_checkpoints_it_came_to(tmp_path):
    config = RunConfig(
        architecture="mlp", dataset="digits", strategy="joint", train_size=192, batch_size=64, epochs=200, lr=0.05,
        match="patience", patience=1, checkpoints=(0, 1, 90),
    )  # fmt: skip
    run = eestudy.run(config, store=tmp_path, device="cpu")
    assert [share for share in config.checkpoints if run.reached(1, share)] == [0, 1, 100]
    with pytest.raises(EestudyError, match=r"checkpoint: phase 1 of mlp-.* ended by patience before 90 %"):
        run.checkpoint(1, 90)
    found = measurements([config], eestudy.Store(tmp_path), "rank")
    assert [point.share for each in found for point in each.points] == [0, 1, 100]


def test_a_rerun_trains_nothing(small_run, monkeypatch):
    run = small_run("mlp", "digits", "mixed")

    def refuse(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train_phase", refuse)
    monkeypatch.setattr(runs, "prepare", refuse)
    again = small_run("mlp", "digits", "mixed")
    assert again.id == run.id
    np.testing.assert_array_equal(again.predictions()[0], run.predictions()[0])


def test_the_same_config_gives_the_same_bits(small_run, tmp_path):
    run = small_run("vit1d", "mnist1d", "mixed")
    torch.manual_seed(123)  # whatever the caller's random state
    again = eestudy.run(run.config, store=tmp_path, device="cpu")
    np.testing.assert_array_equal(again.predictions()[0], run.predictions()[0])
    assert again.id == run.id


def test_a_run_leaves_the_callers_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    eestudy.run(RunConfig(architecture="mlp", dataset="digits", strategy="joint", **SMALL), store=tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", [checkpoint_name(100), "records.jsonl", "summary.json"])
def test_a_damaged_phase_is_trained_again_to_the_same_bits(tmp_path, capsys, name):
    config = RunConfig(architecture="mlp", dataset="digits", strategy="joint", **SMALL)
    run = eestudy.run(config, store=tmp_path)
    expected = run.predictions()[0]
    path = tmp_path / "phases" / run.phases[0] / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    (run.path / "done").unlink()
    again = eestudy.run(config, store=tmp_path)
    np.testing.assert_array_equal(again.predictions()[0], expected)
    assert name in capsys.readouterr().err


def test_budgets(small_run):
    runs = [small_run("mlp", "digits", "mixed", seed=seed) for seed in (0, 1)]
    for protocol in ("calibrated", "paper"):
        frame = eestudy.budgets(runs, protocol)
        assert list(frame.columns) == ["run", "protocol", "rule", "allocation", "budget", "accuracy", "flops"]
        assert set(frame["run"]) == {run.id for run in runs}
        most = frame[frame["budget"] == "max"].set_index("run")
        for run in runs:
            assert most.loc[run.id, "accuracy"] == pytest.approx(run.exits()["accuracy"].iloc[-1])
            assert most.loc[run.id, "flops"] == pytest.approx(run.costs[-1])
    # The paper protocol selects on the mean over seeds: its cost stays below the budget there.
    paper = eestudy.budgets(runs, "paper").groupby("budget")["flops"].mean()
    assert paper["50"] <= 0.5 * runs[0].backbone_flops


def test_calibration_never_reads_test_labels(small_run, monkeypatch):
    run = small_run("mlp", "digits", "joint")
    given = run.budgets("calibrated")
    logits, labels = run.predictions("test")
    scrambled = {**run._predictions, "test.labels": np.roll(labels, 1)}
    monkeypatch.setitem(run.__dict__, "_predictions", scrambled)
    other = run.budgets("calibrated")
    assert other["flops"].equals(given["flops"])
    assert not other["accuracy"].equals(given["accuracy"])
    validation_logits, validation_labels = run.predictions("validation")
    budget = 0.6 * run.backbone_flops
    thresholds = evaluation.calibrate(validation_logits, validation_labels, run.costs, budget, "max-probability")
    assert thresholds.shape == (len(logits),)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda run: run.budgets("papre"), "protocol: unknown name 'papre'; nearest: paper"),
        (lambda run: run.predictions("train"), "split: 'train' has no stored predictions"),
        (lambda run: eestudy.budgets([]), "runs: the list is empty"),
        (lambda run: eestudy.run(run.config, device="gpu0"), "device: 'gpu0' is not available"),
    ],
)
def test_mistakes(small_run, call, wanted):
    with pytest.raises(EestudyError) as caught:
        call(small_run("mlp", "digits", "joint"))
    assert wanted in str(caught.value)


def test_settings_that_do_not_fit_together_write_nothing(tmp_path):
    config = RunConfig(architecture="mlp", dataset="digits", strategy="joint", architecture_args={"depth": 1})
    with pytest.raises(EestudyError, match="no place for an early exit"):
        eestudy.run(config, store=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_run_says_where_it_comes_from(small_run):
    run = small_run("mlp", "digits", "mixed")
    row = run.summary()
    assert row["seconds"] > 0
    assert row["training_flops"] == prepare(run.config).training_flops
    assert "torch" in row["versions"]
    assert row["hardware"]
    assert RunConfig(**{k: v for k, v in json.loads(row["config"]).items() if k != "schema"}) == run.config


@pytest.mark.parametrize(("width", "layout"), [(4, torch.contiguous_format), (8, torch.channels_last)])
def test_narrow_projections_keep_the_usual_layout(small_run, width, layout):
    """In the other one torch 2.15 writes past a buffer there: crashes, or other weights at every run."""
    run = small_run("resnet-tiny", "digits", "joint", architecture_args={"width": width})
    assert run.model().memory_format == layout
