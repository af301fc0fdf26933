"""Methods whose training is a weighted loss of plain heads: SDN, BranchyNet, PABEE, MSDNet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import eestudy
from eestudy import data
from eestudy.config import RunConfig
from eestudy.evaluation import calibrate, entropy, max_probability, patience, simulate
from eestudy.methods import MethodOfRun
from eestudy.models import MultiExit
from eestudy.plan import prepare
from eestudy.registry import METHODS
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_losses
from eestudy.training.objective import Objective

MLP = {"architecture": "mlp", "architecture_args": {"width": 8, "depth": 3}, "dataset": "digits", "train_size": 48,
       "batch_size": 16, "epochs": 2, "checkpoints": [100]}  # fmt: skip


def config(method: str, strategy: str = "joint", **settings: object) -> RunConfig:
    return RunConfig(**{**MLP, "method": method, "strategy": strategy, **settings})


def test_the_same_training_is_the_same_phase():
    """BranchyNet and, on vectors, MSDNet train as SDN does; PABEE as SDN with depth-linear weights."""
    for strategy in ("disjoint", "joint", "mixed", "branch-wise"):
        plain = prepare(config("sdn", strategy))
        for method in ("branchynet", "msdnet"):
            assert prepare(config(method, strategy)).phase_ids == plain.phase_ids
        if strategy == "branch-wise":  # each exit alone: nothing to weigh
            assert prepare(config("pbee", strategy)).phase_ids == plain.phase_ids
        else:
            weighted = prepare(config("sdn", strategy, weighting="depth-linear"))
            assert prepare(config("pbee", strategy)).phase_ids == weighted.phase_ids
            assert weighted.phase_ids != plain.phase_ids
    assert len({config(method).id for method in ("sdn", "branchynet", "msdnet", "pbee")}) == 4


def test_a_users_choice_stays():
    kept = MethodOfRun(config("pbee", weighting="sdn-ramp")).settings("vector")
    assert kept.weighting == "sdn-ramp"
    assert MethodOfRun(config("msdnet", head="vector")).settings("maps").head == "vector"


def test_the_loss_of_pabee():
    made = prepare(config("pbee"))
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 10, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(5)
    objective = Objective(made.model, made.phases[0], None, (0,), Execution(torch.device("cpu")))
    loss = objective(exit_losses(logits, targets), logits, targets, torch.zeros(5), 0.0)
    loss.backward()

    slow = 0.0
    expected = torch.zeros(3, 5, 10)
    for k in (1, 2, 3):
        for n in range(5):
            row = logits.detach()[k - 1, n].tolist()
            total = sum(math.exp(value) for value in row)
            slow += k / 6 * -math.log(math.exp(row[n]) / total) / 5
            for c in range(10):
                expected[k - 1, n, c] = k / 6 * (math.exp(row[c]) / total - (c == n)) / 5
    assert float(loss.detach()) == pytest.approx(slow, rel=1e-6)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.float(), expected, rtol=1e-5, atol=1e-7)


def slow_exits(logits: np.ndarray, method: str, threshold: float) -> list[int]:
    """Where each sample leaves, one number at a time; logits (K, N, C)."""
    exits, samples, classes = logits.shape
    found = []
    for n in range(samples):
        run, last, left = 0, None, exits
        for k in range(1, exits):
            row = [math.exp(logits[k - 1, n, c]) for c in range(classes)]
            p = [value / sum(row) for value in row]
            run, last = (run + 1 if p.index(max(p)) == last else 1), p.index(max(p))
            stops = {
                "sdn": max(p) > threshold,
                "branchynet": -sum(value * math.log(value) for value in p) < threshold,
                "pbee": run > threshold,
            }
            if stops[method]:
                left = k
                break
        found.append(left)
    return found


@pytest.mark.parametrize(
    ("method", "made", "threshold"),
    [("sdn", max_probability, 0.5), ("branchynet", entropy, 1.0), ("pbee", patience, 1)],
)
def test_who_leaves_where(method, made, threshold):
    logits = np.random.default_rng(0).normal(scale=1.5, size=(4, 60, 5)).astype(np.float32)
    rule = made(threshold)
    assert rule.name == METHODS[method].exit_rule
    left = simulate(logits, rule).tolist()
    assert left == slow_exits(logits, method, threshold)
    assert len(set(left)) > 2


def test_budgeted_batch_classification_of_msdnet():
    """Shares proportional to q^k, the most confident first: q found by search, samples handed out one by one."""
    assert METHODS["msdnet"].exit_rule == "max-probability"
    random = np.random.default_rng(1)
    logits, costs, budget = random.normal(size=(3, 50, 4)).astype(np.float32), np.array([1.0, 2.0, 4.0]), 2.3
    thresholds = calibrate(logits, random.integers(0, 4, 50), costs, budget)
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    best: list[int] = []
    for q in np.linspace(0.5, 1.5, 1000):
        shares = q ** np.arange(1, 4)
        ends = np.rint(50 * np.cumsum(shares) / shares.sum()).astype(int)
        inside, left = list(range(50)), [3] * 50
        for k in range(2):
            inside.sort(key=lambda n: -p[k, n].max())
            leaving = ends[k] - (50 - len(inside))
            for n in inside[:leaving]:
                left[n] = k + 1
            inside = inside[leaving:]
        if np.mean([costs[exit - 1] for exit in left]) <= budget:
            best = left
    assert simulate(logits, eestudy.evaluation.per_exit(thresholds)).tolist() == best


def test_the_heads_of_msdnet_are_for_maps():
    maps = prepare(config("msdnet", architecture="resnet-tiny", architecture_args={"width": 4, "blocks": 1}))
    wanted = MultiExit(maps.model.backbone, head="msdnet")
    assert str(maps.model.heads) == str(wanted.heads)
    plain = prepare(config("sdn", architecture="resnet-tiny", architecture_args={"width": 4, "blocks": 1}))
    assert maps.phase_ids != plain.phase_ids


def test_pabee_in_regression(tmp_path):
    """Two predictions that differ by less than a threshold count as the same."""
    run = eestudy.run(config("pbee", dataset="diabetes", strategy="mixed"), store=tmp_path, device="cpu")
    assert (run.task, run.exit_rule) == ("regression", "patience")
    assert np.isfinite(run.budgets().query("budget == 'max'")["r2"]).all()
    logits, labels = run.predictions("test")
    assert (logits.shape, len(labels)) == ((3, len(labels), 1), len(data.load("diabetes").test))
