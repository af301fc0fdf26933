"""Several labels a sample: data, loss, exit rule and scores, and what is said where something is of classes."""

# Wrong types are given on purpose, and modules are looked into.
# mypy: disable-error-code="arg-type, union-attr, assignment, operator, override, index, call-arg, attr-defined"

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from torch import nn

import eestudy
from eestudy import dynamics, evaluation, export
from eestudy.analysis.evaluations import difficulty_tables, run_makers
from eestudy.analysis.run_record import record_of
from eestudy.export.runner import score
from eestudy.store import Store
from eestudy.training.losses import exit_hits, exit_losses

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 6)).astype(np.float32)
Y = (X @ RANDOM.normal(size=(6, 4)) > [0, 1, -1, 0]).astype(int)
FRAME = pd.DataFrame(X, columns=list("abcdef")).assign(u=Y[:, 0], v=Y[:, 1], w=Y[:, 2])


def run(store: Path, data: Any = (X, Y), **settings: Any) -> Any:
    fields = {
        "architecture_args": {"depth": 3},
        "architecture": "mlp",
        "strategy": "joint",
        "epochs": 8,
        "batch_size": 16,
        **settings,
    }
    return eestudy.run(eestudy.RunConfig(dataset="own", **fields), store, data=data)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def made(store):
    return run(store)


def test_loss_and_hits_of_each_exit():
    logits, targets = torch.randn(3, 5, 4), torch.rand(5, 4) > 0.5
    for each, loss, hits in zip(logits, exit_losses(logits, targets), exit_hits(logits, targets)):
        torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(each, targets.float()))
        assert hits == ((each.sigmoid() > 0.5) == targets).all(1).float().mean()


def test_a_run_has_scores_that_are_named_for_what_they_are(made, store):
    assert made.task == "multi-label"
    assert made.exit_rule == "every-label"
    logits, labels = made.predictions()
    assert labels.shape == (40, 4)
    exits = made.exits()
    last, guessed = exits.iloc[-1], logits[-1] > 0
    assert last["exact_match"] == (guessed == labels).all(1).mean() > 0.3
    assert last["macro_f1"] == pytest.approx(f1_score(labels, guessed, average="macro"))
    assert last["mean_average_precision"] == pytest.approx(average_precision_score(labels, logits[-1]))
    record = record_of(made, Store(store))
    tables = [made.history(), exits, made.budgets(), made.budgets("paper"), made.tradeoff(), *record.tables.values()]
    for table in tables:
        assert set(table["score"]) == {"exact_match"}
        assert "exact_match" in table
        assert not [name for name in table if "accuracy" in name]
    assert made.budgets().set_index("budget").loc["max", "exact_match"] == last["exact_match"]


def test_absent_labels_take_no_part_in_the_means():
    logits = np.array([[[3.0, -3.0, -3.0], [-3.0, -3.0, 3.0]]], np.float32)
    found = evaluation.exit_metrics(logits, np.array([[1, 0, 0], [0, 0, 1]])).iloc[0]
    assert found[["exact_match", "macro_f1", "mean_average_precision"]].tolist() == [1, 1, 1]
    assert np.isnan(evaluation.exit_metrics(logits, np.zeros((2, 3), int)).iloc[0]["mean_average_precision"])


def test_early_exit_equals_its_simulation_here_and_exported(made, tmp_path):
    network, x = made.model(), made.data().test.inputs()
    logits, _ = made.predictions()
    sure = np.sort(evaluation.scores(logits, "every-label")[0])
    p = torch.from_numpy(logits[0]).sigmoid()
    np.testing.assert_allclose(sure, np.sort(torch.maximum(p, 1 - p).amin(1)), rtol=1e-6)
    np.testing.assert_allclose(np.sort(score([logits[0]], "every-label")), sure, rtol=1e-6)
    for threshold in (0.5, float(sure[20]), 1.0):
        rule = evaluation.every_label(threshold)
        assert (network.predict(x, rule)[1].numpy() == evaluation.simulate(logits, rule)).all()
    rule = evaluation.every_label(float(sure[20]))
    runner = export.Runner(export.export(network, tmp_path / "exported", rule))
    assert (runner.predict(x.numpy())[1] == evaluation.simulate(logits, rule)).all()
    with pytest.raises(eestudy.EestudyError, match="rule: entropy is not for logits of several labels a sample"):
        export.export(network, tmp_path / "other", evaluation.entropy(0.5))


@pytest.mark.parametrize("allocation", evaluation.ALLOCATIONS)
def test_budgets_are_kept(made, allocation):
    validation, costs = made.predictions("validation"), made.costs
    budget = float(costs[[0, -1]].mean())
    thresholds = evaluation.calibrate(*validation, costs, budget, "every-label", allocation)
    left = evaluation.simulate(validation[0], evaluation.per_exit(thresholds, "every-label"))
    assert costs[left - 1].mean() <= budget


def test_the_curve_is_that_of_all_thresholds(made):
    logits, labels = made.predictions()
    curve = evaluation.tradeoff_curve(logits, labels, made.costs, "every-label")
    for row in curve.iloc[:: len(curve) // 5].itertuples():
        left = evaluation.simulate(logits, evaluation.per_exit([row.threshold] * len(logits), "every-label"))
        chosen = logits[left - 1, range(len(left))] > 0
        assert row.exact_match == pytest.approx((chosen == labels).all(1).mean())
        assert row.cost == pytest.approx(made.costs[left - 1].mean())


def test_what_is_of_classes_says_so(made):
    logits, labels = made.predictions()
    network, x = made.model(), made.data().test.inputs()
    calls = {
        "rule: max-probability is not for logits of several labels": lambda: network.predict(
            x, evaluation.max_probability(0.9)
        ),
        "rule: entropy is not for logits of several labels": lambda: made.budgets(rule="entropy"),
        "rule: every-label is not for logits of classes": lambda: evaluation.tradeoff_curve(
            logits, labels.argmax(1), made.costs, "every-label"
        ),
        "risk control: is for one class a sample": lambda: evaluation.control_risk(logits, labels, made.costs, 0.1),
        "temperature scaling: is for one class": lambda: evaluation.fit_temperatures(logits, labels),
        "labels: are several a sample": lambda: evaluation.reliability_metrics(logits, labels),
        "labels: several a sample must be 0 or 1": lambda: evaluation.exit_metrics(logits, labels * 2),
        "labels: shape .* does not fit": lambda: dynamics.usable_information(x, labels),
    }
    for line, call in calls.items():
        with pytest.raises(eestudy.EestudyError, match=line):
            call()
    for make in run_makers(made).values():
        for table in make().values():
            assert not [name for name in table if "accuracy" in name]
    assert difficulty_tables([made])["agreement"]["reason"].str.contains("one class a sample").all()


def test_dynamics_measure_its_loss(made):
    batches = dynamics.probe_batches(made.data().train, 32, made.model())
    assert np.isfinite(dynamics.gradient_dominance(made.model(), batches)["norm_share"]).all()
    assert "usable" not in set(dynamics.stage_information(made.model(), batches, [0.3])["quantity"])


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> tuple[np.ndarray, torch.Tensor]:
        return X[number], torch.from_numpy(Y[number])


def test_the_forms_they_come_in(made, store):
    assert run(store, Pairs()).id == made.id
    for labels in (Y.astype(bool), Y.astype(float)):
        np.testing.assert_array_equal(run(store, (X, labels)).predictions()[0], made.predictions()[0])
    framed = run(store, FRAME, dataset_args={"target": "u, v,w"}).data()
    assert (framed.classes, framed.input_shape) == (("u", "v", "w"), (6,))
    given = run(store, {"train": (X[:150], Y[:150]), "test": (X[150:], Y[150:])}, train_size=50)
    assert (len(given.data().train), len(given.data().test)) == (50, 50)


@pytest.mark.parametrize("settings", [{"strategy": "disjoint"}, {"strategy": "sequential-ewc"}, {"match": "patience"}])
def test_strategies_take_them(store, settings):
    assert run(store, **settings).exits()["mean_average_precision"].between(0, 1).all()


@pytest.mark.parametrize(
    ("data", "settings", "line"),
    [
        ((X, np.eye(4)[Y[:, 0]]), {}, r"exactly one of 4 labels: give classes, y.argmax\(1\), or"),
        ((X, 2 * Y), {}, r"train labels of shape \(200, 4\) must be 0 or 1 each, found 2"),
        ((X, Y + 0.5), {}, "must be 0 or 1 each, found 0.5"),
        ((X, Y.astype(str)), {}, "must be 0 or 1 each"),
        ((X, np.c_[Y, 0 * Y[:, 0]]), {}, "label '4' is 0 for all 200 training samples"),
        ((X, Y[:, :, None]), {}, r"labels of shape \(200, 4, 1\); one a sample"),
        ((X, Y[:-1]), {}, "200 train inputs but 199 labels"),
        ((X, Y[:, 0]), {"dataset_args": {"task": "multi-label"}}, r"several labels are \(N, C\)"),
        ((X, Y), {"dataset_args": {"task": "classification"}}, "for classification, which needs one a sample"),
        ({"train": (X, Y), "test": (X, Y[:, :3])}, {}, r"test labels of shape \(200, 3\), those of train \(200, 4\)"),
        (FRAME, {"dataset_args": {"target": "u,z"}}, "target: 'z' is no column"),
        ((X, Y), {"augmentation": "mixup"}, "augmentation: mixup is for classes; own is multi-label"),
        ((X, Y), {"distillation": "last"}, "distillation: last is for classes"),
        ((X, Y), {"class_weights": "balanced"}, "class_weights: balanced is for classes"),
        ((X, Y), {"strategy": "sequential-lwf"}, "strategy: sequential-lwf is for classes"),
        ((X, Y), {"method": "ztw"}, "method: ztw works with probabilities of classes"),
    ],
)
def test_what_they_cannot_be_is_told_in_one_line(store, data, settings, line):
    with pytest.raises(eestudy.EestudyError, match=line) as caught:
        run(store, data, **settings)
    assert "\n" not in str(caught.value)


def test_a_criterion_sees_them_as_numbers(made, store):
    config = made.config.replace(dataset_args={})
    own = eestudy.run(config, store, data=(X, Y), criterion=nn.BCEWithLogitsLoss())
    np.testing.assert_allclose(own.predictions()[0], made.predictions()[0], atol=1e-4)
