"""Exits on a network that is already trained: `start: trained`, and what its user froze stays as it is, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eestudy
from eestudy.plan import frozen_by_user, prepare
from eestudy.training.phase_network import set_trainable


class Net(nn.Module):
    """Two convolutions with BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.out = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x)).mean((2, 3)))


def network(*frozen: str) -> eestudy.MultiExit:
    net = Net()
    for name in frozen:
        net.get_submodule(name).requires_grad_(False)
    return eestudy.add_exits(net, after=["first"], input_shape=(1, 8, 8))


def config(strategy: str, **settings: Any) -> eestudy.RunConfig:
    fields: dict[str, Any] = {"epochs": 2, "batch_size": 64, "train_size": 256, **settings}
    return eestudy.RunConfig(architecture="own", dataset="digits", strategy=strategy, **fields)


def changed(before: eestudy.MultiExit, after: eestudy.MultiExit) -> set[str]:
    old = before.state_dict()
    return {name for name, value in after.state_dict().items() if not torch.equal(value, old[name])}


@pytest.mark.parametrize(
    ("settings", "phases"),
    [
        ({"strategy": "disjoint"}, [("heads", 2, 1e-3)]),
        ({"strategy": "disjoint", "phase_split": 0}, [("heads", 2, 1e-3)]),
        ({"strategy": "disjoint", "lr_scale": 10}, [("heads", 2, 1e-2)]),
        ({"strategy": "mixed", "lr_scale": 0.1}, [("together", 2, 1e-4)]),
        ({"strategy": "joint"}, [("together", 2, 1e-3)]),
        ({"strategy": "joint", "warm_start": 0.5}, [("probes", 1, 1e-3), ("together", 1, 1e-3)]),
        ({"strategy": "mixed-heads"}, [("together", 1, 1e-3), ("heads", 1, 1e-3)]),
        ({"strategy": "mixed", "match": "flops"}, [("together", 2, 1e-3)]),
    ],
)
def test_the_phase_of_the_backbone_alone_is_left_out(settings, phases):
    plan = prepare(config(**settings, lr=1e-3, start="trained"), network())
    found = [(phase.name, phase.settings.epochs, pytest.approx(phase.settings.lr)) for phase in plan.phases]
    assert found == phases


def test_disjoint_trains_the_heads_alone(tmp_path):
    given = network()
    run = eestudy.run(config("disjoint", start="trained"), store=tmp_path, model=given)
    assert all(name.startswith("heads.") for name in changed(given, run.model()))
    assert changed(given, run.model())


def test_statistics_of_a_trained_network_can_stay(tmp_path):
    given = network()
    run = eestudy.run(config("joint", start="trained", batchnorm="freeze"), store=tmp_path, model=given)
    found = changed(given, run.model())
    assert not [name for name in found if "running" in name]
    assert [name for name in found if name.startswith("backbone.")]


@pytest.mark.parametrize("compile", ["never", "step"])
@pytest.mark.parametrize("strategy", ["joint", "mixed"])
def test_what_is_frozen_stays(strategy, compile, tmp_path):
    """Weights and statistics of the first convolution, and nothing else; also after a second start."""
    given = network("first")
    before = {name: value.clone() for name, value in given.state_dict().items()}
    run = eestudy.run(config(strategy), store=tmp_path, model=given, compile=compile)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items()), "the user's own"
    found = changed(given, run.model())
    assert not {name for name in found if name.startswith("backbone.stages.0")}
    assert {name.split(".")[1] for name in found if name.startswith("backbone.")} == {"stages", "classifier"}
    assert "backbone.stages.1.second.1.running_mean" in found
    again = eestudy.run(config(strategy), store=tmp_path, model=network("first"), compile=compile)
    assert again.id == run.id


def test_frozen_and_free_are_two_runs():
    ids = {prepare(config("joint"), network(*names)).phase_ids for names in ((), ("first",), ("first.1",))}
    assert len(ids) == 3


def test_a_single_frozen_parameter():
    given = network()
    given.backbone.classifier.get_parameter("out.bias").requires_grad_(False)
    assert frozen_by_user(given) == {"backbone.classifier.out.bias"}


def test_bad_settings_are_refused_in_one_line():
    def refused(line: str, settings: dict[str, Any], model: eestudy.MultiExit) -> None:
        with pytest.raises(eestudy.EestudyError, match=line) as caught:
            prepare(config(**settings), model)
        assert "\n" not in str(caught.value)

    refused(
        "phase_split: 1 leaves nothing to train in mixed",
        {"strategy": "mixed", "phase_split": 1, "start": "trained"},
        network(),
    )
    assert prepare(config("disjoint", phase_split=0), network()).phases[0].name == "heads"
    with pytest.raises(eestudy.EestudyError, match="phase_split: 0 leaves the backbone untrained"):
        prepare(eestudy.RunConfig(architecture="mlp", dataset="digits", strategy="disjoint", phase_split=0))
    frozen = network("first", "second", "out")
    refused("model: all that phase 'backbone' would train is frozen", {"strategy": "disjoint"}, frozen)
    assert prepare(config("disjoint", start="trained"), frozen).phases[0].name == "heads"
    with pytest.raises(eestudy.EestudyError, match="start: 'trained' needs architecture own"):
        eestudy.RunConfig(architecture="mlp", dataset="digits", strategy="joint", start="trained")


def test_frozen_statistics_normalize_too():
    """A frozen BatchNorm normalizes by its statistics while the rest trains, not by the batch."""
    plan = prepare(config("joint"), network("first"))
    set_trainable(plan.model, plan.phases[0])
    modes = {name: part.training for name, part in plan.model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    assert list(modes.values()) == [False, True], modes
