"""Every method with every strategy: it trains, leaves alone what is frozen, resumes; and it really stops early."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import eestudy
from eestudy import evaluation
from eestudy.config import EestudyError, RunConfig
from eestudy.plan import prepare
from eestudy.registry import METHODS, STRATEGIES
from eestudy.training.phase_network import trained_tensors

from .phases import check_resumed, trained

# Three steps an epoch on digits; three exits.
TINY = {"architecture": "mlp", "architecture_args": {"width": 8, "depth": 3}, "dataset": "digits", "batch_size": 16,
        "train_size": 48, "checkpoints": [100]}  # fmt: skip
REFUSED = {("l2w", "sequential-lwf"): "method: l2w weighs the exits of a sample against each other, and sequential-lwf"}


def config(method: str, strategy: str, **settings: object) -> RunConfig:
    epochs = {"joint": 1, "alternating": 1, "disjoint": 2, "mixed": 2, "joint-heads": 2}.get(strategy, 3)
    return RunConfig(**{**TINY, "method": method, "strategy": strategy, "epochs": epochs, **settings})


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", METHODS)
def test_three_steps_of_every_phase(tmp_path, method, strategy):
    if (method, strategy) in REFUSED:
        with pytest.raises(EestudyError, match=REFUSED[method, strategy]):
            prepare(config(method, strategy))
        return
    made = prepare(config(method, strategy))
    for place, phase in enumerate(made.phases):
        before = {name: value.clone() for name, value in made.model.state_dict().items()}
        folder = trained(made, place, tmp_path)
        moving = trained_tensors(made.model, phase)
        for name, value in made.model.state_dict().items():
            assert name in moving or torch.equal(value, before[name]), f"{name} in phase {phase.name}"
        # A layer of a head alone, such as the imitators where nothing is imitated, may have nothing to learn.
        assert sum(not torch.equal(value, before[name]) for name, value in moving.items()) > 0.7 * len(moving)
        records = folder.records()
        assert all(np.isfinite(record["loss"]) for record in records)
        assert {record["exit"] for record in records} == set(phase.exit_numbers(3))
    assert np.isfinite(made.training_flops)


def test_a_phase_without_heads_is_everybodys():
    firsts = {
        prepare(config(method, strategy)).phase_ids[0] for method in METHODS for strategy in ("disjoint", "mixed")
    }
    assert len(firsts) == 1


def test_methods_that_train_otherwise_have_phases_of_their_own():
    ids = {method: prepare(config(method, "joint")).phase_ids[0] for method in METHODS}
    assert len({ids[method] for method in METHODS if method not in ("branchynet", "msdnet")}) == len(METHODS) - 2
    for method, args in (("gpf", {"width": 9}), ("l2w", {"every": 2}), ("ztw", {"ensemble": "arithmetic"})):
        assert prepare(config(method, "joint", method_args=args)).phase_ids[0] != ids[method]
    defaults = {"width": 64, "imitation": 1.0}
    assert prepare(config("gpf", "joint", method_args=defaults)).phase_ids[0] == ids["gpf"]


RESUMED = {
    **{method: {"method": method, "strategy": "joint"} for method in METHODS},
    "ztw, heads alone": {"method": "ztw", "strategy": "disjoint"},
    "gpf, taught by the next": {"method": "gpf", "strategy": "mixed", "distillation": "next"},
    "l2w by turns, SGD": {"method": "l2w", "strategy": "alternating", "optimizer": "sgd", "epochs": 2},
    "cgt, exit by exit": {"method": "cgt", "strategy": "separate"},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_a_resumed_phase_ends_with_the_same_bits(tmp_path, monkeypatch, settings):
    straight, broken = prepare(config(**settings)), prepare(config(**settings))
    check_resumed(straight, broken, tmp_path, monkeypatch)


@pytest.mark.parametrize("strategy", ["disjoint", "mixed"])
@pytest.mark.parametrize("method", ["ztw", "boosted", "gpf"])
def test_stopping_is_the_simulation_on_stored_logits(tmp_path, method, strategy):
    """Methods whose exits build on those before them: in batches of any size, one sample included."""
    run = eestudy.run(config(method, strategy, epochs=8), store=tmp_path, device="cpu")
    model, x = run.model(), run.data().test.x[:40]
    stored, _ = run.predictions("test")
    with torch.no_grad():
        torch.testing.assert_close(torch.stack(model(x)), torch.from_numpy(stored[:, :40]))
        model, x = model.double(), x.double()
        logits = torch.stack(model(x))
    rules = [evaluation.patience(1)]
    for name in ("max-probability", "entropy", "margin"):
        found = np.quantile(evaluation.scores(logits.numpy(), name)[:-1], [0.0, 0.4, 0.7, 1.0])
        rules += [evaluation.per_exit([float(value)] * 3, name) for value in found + 1e-4]
    for rule in rules:
        expected = evaluation.simulate(logits.numpy(), rule)
        for size in (1, 7, 40):
            parts = [model.predict(part, rule) for part in x.split(size)]
            left, exit_index = (torch.cat(values) for values in zip(*parts, strict=True))
            assert exit_index.tolist() == expected.tolist()
            torch.testing.assert_close(left.double(), logits[expected - 1, torch.arange(40)].double())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_from_top_to_bottom(tmp_path, method):
    run = eestudy.run(config(method, "mixed"), store=tmp_path, device="cpu")
    assert run.exit_rule == METHODS[method].exit_rule
    assert np.isfinite(run.budgets().set_index("budget").loc["max", "accuracy"])
    assert (np.diff(run.costs) > 0).all()
    assert run.provenance["training_flops"] == prepare(run.config).training_flops
    assert run.summary()["method"] == method


def test_what_a_head_of_a_method_costs():
    """An MLP of width 8: a linear layer to 10 classes; GPF's states of 5, 2 heads; ensembles cost no product."""

    def heads(method: str, **args: object) -> tuple[int, ...]:
        return eestudy.models.exit_costs(prepare(config(method, "joint", method_args=args)).model).heads

    linear = 2 * 8 * 10
    assert heads("boosted") == heads("sdn") == (linear, linear)
    assert heads("ztw") == (linear, linear + 2 * 10 * 10)
    state, own = 2 * 8 * 5, 2 * 5 * 10
    # State, past, gate, imitator, future; then state and past alone, on both states.
    assert heads("gpf", width=5) == (state + 2 * own + 2 * 5 * 5 + own, state + 2 * own)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"method": "sdn", "method_args": {"width": 3}}, "method_args: unknown key 'width' for sdn; it takes none"),
        ({"method": "boosted", "method_args": {"reweigth": 1}}, "unknown key 'reweigth' for boosted; nearest: "),
        ({"method": "boosted", "method_args": {"reweight": 2}}, "reweight: 2 is not valid; it must be a number, "),
        ({"method": "ztw", "method_args": {"ensemble": "geometrc"}}, "unknown name 'geometrc'; nearest: geometric"),
        ({"method": "cgt", "method_args": {"threshold": "x"}}, "threshold: 'x' is not valid; it must be a number"),
    ],
)  # fmt: skip
def test_settings_that_a_method_does_not_have(settings, wanted):
    with pytest.raises(EestudyError) as caught:
        prepare(config(strategy="joint", **settings))
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_a_method_are_part_of_a_runs_identity():
    plain = config("gpf", "joint")
    assert plain.replace(method_args={}).id == plain.id
    assert "method_args" not in plain.identity()
    assert plain.replace(method_args={"width": 9}).id != plain.id


def test_a_network_of_ones_own_with_methods(tmp_path):
    backbone = prepare(config("sdn", "joint")).model.backbone
    own = eestudy.MultiExit(backbone, exits=[1, 2])
    settings = {"architecture": "own", "architecture_args": {}}
    for method in ("boosted", "ztw", "cgt"):
        run = eestudy.run(config(method, "joint", **settings), store=tmp_path, device="cpu", model=own)
        assert run.predictions("test")[0].shape[0] == 3
    with pytest.raises(
        EestudyError, match="method: gpf makes its own heads, and a network of your own has them already"
    ):
        prepare(config("gpf", "joint", **settings), own)
