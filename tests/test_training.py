from __future__ import annotations

import math
import signal
from functools import partial
from itertools import pairwise

import pytest
import torch

from eestudy import data
from eestudy.config import EestudyError, RunConfig
from eestudy.models import MultiExit, build_backbone
from eestudy.plan import prepare
from eestudy.registry import STRATEGIES
from eestudy.store import Store
from eestudy.training import loop
from eestudy.training.cost import step_flops
from eestudy.training.eager_step import EagerStep, lr_factor
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_losses, exit_weights
from eestudy.training.phase_network import phase_exits, phase_logits, set_trainable
from eestudy.training.phases import resolve
from eestudy.training.resume import Progress
from eestudy.training.strategies import backbone_phase, heads_phase, together_phase

from .conftest import CELLS, SMALL
from .phases import interrupted_after

CPU = Execution(torch.device("cpu"))
OF_THE_PAPER = ("disjoint", "joint", "mixed")  # the others: test_strategies.py


def plan(strategy: str, architecture: str = "resnet-tiny", dataset: str = "digits", **settings: object):
    return prepare(RunConfig(architecture=architecture, dataset=dataset, strategy=strategy, **{**SMALL, **settings}))


def snapshot(model: MultiExit) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("architecture", "dataset"), CELLS)
@pytest.mark.parametrize("strategy", OF_THE_PAPER)
@pytest.mark.parametrize("head_layers", [1, 2])
def test_a_phase_trains_what_it_says_and_leaves_the_rest_bit_for_bit(
    tmp_path, architecture, dataset, strategy, head_layers
):
    """Every tensor, BatchNorm's buffers included: the paper's public code trained what it meant to freeze."""
    made = plan(strategy, architecture, dataset, head_layers=head_layers, epochs=2, weight_decay=0.1)
    for place, phase in enumerate(made.phases):
        before = snapshot(made.model)
        folder = Store(tmp_path).folder("phases", str(place))
        loop.train_phase(made.model, phase, made.data, folder, 0, place, CPU)
        for name, value in made.model.state_dict().items():
            same = torch.equal(value, before[name])
            trained = name.split(".")[0] in phase.trains
            assert same != trained, f"{name} in phase {phase.name}"
    for parameter in made.model.parameters():
        assert torch.isfinite(parameter).all()


def test_batchnorm_is_there_to_be_frozen():
    """The test above covers running statistics only if the network has some."""
    names = plan("disjoint").model.state_dict()
    assert any("running_mean" in name and name.startswith("backbone") for name in names)


def test_which_exits_a_phase_reads():
    model = MultiExit(build_backbone("mlp", (1, 8, 8), 10))
    x = torch.randn(4, 1, 8, 8)
    everything = model(x)
    for phase, exits in (
        (backbone_phase(1), [5]),
        (together_phase(1), [1, 2, 3, 4, 5]),
        (heads_phase(1), [1, 2, 3, 4]),
    ):
        assert phase_exits(model, phase) == exits
        logits = phase_logits(model, phase, x)
        assert all(torch.equal(mine, everything[k - 1]) for mine, k in zip(logits, exits, strict=True))


def test_the_loss_is_the_plain_mean():
    logits = [torch.randn(6, 3) for _ in range(4)]
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    by_hand = [-sum(row.log_softmax(0)[label] for row, label in zip(exit_logits, y)) / 6 for exit_logits in logits]
    losses = exit_losses(torch.stack(logits), y)
    torch.testing.assert_close(losses, torch.stack(by_hand))
    torch.testing.assert_close(losses @ exit_weights("equal", 4), torch.stack(by_hand).mean())
    torch.testing.assert_close(exit_weights("depth-linear", 4), torch.tensor([0.1, 0.2, 0.3, 0.4]))


def test_strategies_as_the_paper_defines_them():
    phases = {name: [(p.name, p.trains, p.exits) for p in STRATEGIES[name](0.5)] for name in OF_THE_PAPER}
    backbone = ("backbone", ("backbone",), "last")
    together = ("together", ("backbone", "heads"), "all")
    heads = ("heads", ("heads",), "internal")
    assert phases == {"disjoint": [backbone, heads], "joint": [together], "mixed": [backbone, together]}
    for name in OF_THE_PAPER:
        assert sum(phase.share for phase in STRATEGIES[name](0.3)) == pytest.approx(1)


@pytest.mark.parametrize("epochs", [1, 2, 7, 40])
def test_match_epochs_splits_the_runs_epochs(epochs):
    config = RunConfig(architecture="mlp", dataset="digits", strategy="mixed", epochs=epochs, phase_split=0.3)
    resolved = resolve(STRATEGIES["mixed"](0.3), config, {})
    assert sum(phase.settings.epochs for phase in resolved) == max(2, epochs)
    assert all(phase.settings.epochs >= 1 for phase in resolved)


def test_match_flops_spends_what_joint_spends():
    joint = plan("joint", epochs=40, match="flops")
    for strategy in ("disjoint", "mixed"):
        assert plan(strategy, epochs=40, match="flops").training_flops == pytest.approx(joint.training_flops, rel=0.03)
    cheaper = plan("disjoint", epochs=40)
    assert cheaper.training_flops < 0.9 * joint.training_flops
    assert sum(phase.settings.epochs for phase in plan("disjoint", epochs=40, match="flops").phases) > 40


def test_training_flops_against_the_formula():
    """Forward once, backward twice (weights and inputs), but no input gradient for the first layer."""
    model = MultiExit(build_backbone("mlp", (1, 8, 8), 10, width=32, depth=2))
    first, second, classifier, head = 2 * 64 * 32, 2 * 32 * 32, 2 * 32 * 10, 2 * 32 * 10
    assert step_flops(model, backbone_phase(1)) == 2 * first + 3 * second + 3 * classifier
    assert step_flops(model, together_phase(1)) == 2 * first + 3 * second + 3 * classifier + 3 * head
    assert step_flops(model, heads_phase(1)) == first + 2 * head  # nothing behind the last head runs


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_learning_rate_schedules(schedule):
    factors = [lr_factor(schedule, 0.1, step / 200) for step in range(200)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1, abs=1e-3)
    assert factors[0] < 0.1
    assert factors[-1] == (1 if schedule == "constant" else pytest.approx(0, abs=1e-3))
    assert all(abs(a - b) < 0.2 for a, b in pairwise(factors))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_phase_ends_with_the_same_bits(tmp_path, monkeypatch, optimizer):
    settings = {"optimizer": optimizer, "epochs": 3, "augmentation": "shift", "match": "patience", "patience": 2}
    straight = plan("joint", **settings)
    whole = Store(tmp_path).folder("phases", "whole")
    loop.train_phase(straight.model, straight.phases[0], straight.data, whole, 0, 0, CPU)

    broken = Store(tmp_path).folder("phases", "broken")
    for steps in (2, 1, 3):
        again = plan("joint", **settings)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_interrupt_between_steps", partial(interrupted_after, steps))
            with pytest.raises(KeyboardInterrupt):
                loop.train_phase(again.model, again.phases[0], again.data, broken, 0, 0, CPU)
        assert [name for name in broken.manifest() if name.startswith("state-")]
    resumed = plan("joint", **settings)
    loop.train_phase(resumed.model, resumed.phases[0], resumed.data, broken, 0, 0, CPU)

    assert broken.records() == whole.records()
    for name in whole.manifest():
        if name.endswith(".safetensors"):
            assert broken.manifest()[name]["sha256"] == whole.manifest()[name]["sha256"], name
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert not [name for name in broken.manifest() if name.startswith("state-")]


def test_checkpoints_at_fixed_shares(tmp_path):
    made = plan("joint", epochs=5, checkpoints=[0, 50, 100])
    before = snapshot(made.model)
    folder = Store(tmp_path).folder("phases", "p")
    loop.train_phase(made.model, made.phases[0], made.data, folder, 0, 0, CPU)
    names = [name for name in folder.manifest() if name.startswith("checkpoint")]
    assert names == [loop.checkpoint_name(share) for share in (0, 50, 100)]
    first, half, last = (folder.arrays(name) for name in names)
    assert all((first[name] == value.numpy()).all() for name, value in before.items())
    weight = "backbone.classifier.2.weight"
    assert (half[weight] != first[weight]).any()
    assert (half[weight] != last[weight]).any()


def test_a_tie_is_neither_an_improvement_nor_stale():
    """The rule of the paper's public code, by hand: (values, epochs counted for each exit, improved)."""
    progress = Progress()
    for values, stale, better in [
        ([0.5, 0.5], [0, 0], True),
        ([0.5, 0.4], [0, 1], False),  # exit 1 ties: as before
        ([0.4, 0.5], [1, 1], False),  # exit 2 ties: its count stays
        ([0.4, 0.6], [2, 0], True),
        ([0.5, 0.6], [2, 0], False),
        ([0.3, 0.5], [3, 1], False),
    ]:
        assert loop.improved(progress, values) is better
        assert progress.stale == stale
    assert progress.best == [0.5, 0.6]


def test_patience_stops_and_keeps_the_last_improvement(tmp_path):
    made = plan("joint", epochs=200, match="patience", patience=3, lr=0.02, exits=[1])
    folder = Store(tmp_path).folder("phases", "p")
    loop.train_phase(made.model, made.phases[0], made.data, folder, 0, 0, CPU)
    records = [record for record in folder.records() if record["split"] == "validation"]
    exits = made.model.num_exits
    by_epoch = [[r["accuracy"] for r in records if r["epoch"] == e + 1] for e in range(len(records) // exits)]
    assert len(by_epoch) < 200
    assert len(records) == exits * len(by_epoch), "with patience every epoch is measured"

    def best_before(epoch: int, k: int) -> float:
        return max((row[k] for row in by_epoch[:epoch]), default=-math.inf)

    improving = [[k for k in range(exits) if row[k] > best_before(e, k)] for e, row in enumerate(by_epoch)]

    def worse_since(k: int, epochs: int) -> int:
        last = max(e for e in range(epochs) if k in improving[e])
        return sum(row[k] < by_epoch[last][k] for row in by_epoch[last + 1 : epochs])

    # Every exit was worse in 3 epochs at the end, and not one epoch earlier.
    assert min(worse_since(k, len(by_epoch)) for k in range(exits)) == 3
    assert min(worse_since(k, len(by_epoch) - 1) for k in range(exits)) == 2
    kept = loop.Validation(made.model, made.phases[0], made.data, CPU, cached=False).measured()[1]
    last = max(e for e, better in enumerate(improving) if better)
    assert kept.tolist() == pytest.approx(by_epoch[last], abs=1e-6)


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1), (7, 7), (20, 20), (21, 20), (80, 20), (333, 20)])
def test_curves_have_at_most_twenty_points(epochs, expected):
    phase = together_phase(1.0).having(epochs=epochs)
    measured = [epoch for epoch in range(1, epochs + 1) if loop.measured_after(epoch, phase)]
    assert len(measured) == expected
    assert measured[-1] == epochs
    gaps = {b - a for a, b in pairwise([0, *measured])}
    assert max(gaps) - min(gaps) <= 1, "evenly"
    assert all(loop.measured_after(epoch, phase.having(patience=3)) for epoch in range(1, epochs + 1))


def test_how_often_is_measured_changes_no_weight(tmp_path, monkeypatch):
    ends = []
    for most in (20, 1):
        monkeypatch.setattr(loop, "MEASURED", most)
        made = plan("joint", epochs=4)
        folder = Store(tmp_path).folder("phases", str(most))
        loop.train_phase(made.model, made.phases[0], made.data, folder, 0, 0, CPU)
        assert {record["epoch"] for record in folder.records()} == ({1, 2, 3, 4} if most == 20 else {4})
        ends.append((folder.records()[-1], folder.manifest()[loop.checkpoint_name(100)]["sha256"]))
    assert ends[0] == ends[1]


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    made = plan("joint", lr=1e30, clip=None, optimizer="sgd", epochs=3)
    with pytest.raises(EestudyError, match=r"phase together: .* not finite in epoch \d, step \d+ of \d+, at learning"):
        loop.train_phase(made.model, made.phases[0], made.data, Store(tmp_path).folder("phases", "p"), 0, 0, CPU)


def test_history_is_what_the_weights_do(tmp_path):
    """The last validation record equals a fresh evaluation of the final weights."""
    made = plan("mixed", "vit1d", "mnist1d")
    folder = Store(tmp_path).folder("phases", "p")
    loop.train_phase(made.model, made.phases[1], made.data, folder, 0, 1, CPU)
    losses, accuracies = loop.Validation(made.model, made.phases[1], made.data, CPU, cached=False).measured()
    last = [r for r in folder.records() if r["split"] == "validation" and r["epoch"] == made.phases[1].settings.epochs]
    assert [r["loss"] for r in last] == pytest.approx(losses.tolist(), rel=1e-5)
    assert [r["accuracy"] for r in last] == pytest.approx(accuracies.tolist(), abs=1e-6)
    assert all(math.isfinite(r["loss"]) for r in folder.records())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns(tmp_path, precision):
    made = plan("joint", "resnet-tiny", "digits", epochs=6, train_size=None, precision=precision)
    folder = Store(tmp_path).folder("phases", "p")
    loop.train_phase(made.model, made.phases[0], made.data, folder, 0, 0, CPU)
    assert folder.records()[-1]["accuracy"] > 0.9
    for parameter in made.model.parameters():
        assert parameter.dtype == torch.float32


def test_set_trainable_returns_what_trains():
    model = MultiExit(build_backbone("resnet-tiny", (1, 8, 8), 10))
    assert len(set_trainable(model, heads_phase(1))) == len(list(model.heads.parameters()))
    assert not model.backbone.training
    assert model.heads.training
    assert data.load("digits").num_classes == model.num_classes


def test_ctrl_c_in_the_last_step_of_a_phase_is_not_lost(tmp_path, monkeypatch):
    made = plan("joint", epochs=1)
    folder = Store(tmp_path).folder("phases", "p")
    step, last = EagerStep.step, 256 // 64

    def pressed_at_the_last(self, *arguments):
        if self.state.progress.step == last - 1:
            signal.raise_signal(signal.SIGINT)
        step(self, *arguments)

    monkeypatch.setattr(EagerStep, "step", pressed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        loop.train_phase(made.model, made.phases[0], made.data, folder, 0, 0, CPU)
    assert folder.has(loop.checkpoint_name(100))
    assert folder.json("summary.json")["steps"] == last
