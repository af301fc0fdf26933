"""Every strategy and setting of a phase: what trains, what stays bit for bit, what a kill costs, what is refused."""

from __future__ import annotations

import pytest
import torch

import eestudy
from eestudy.config import EestudyError, RunConfig
from eestudy.models import MultiExit, build_backbone
from eestudy.plan import Plan, planned, prepare
from eestudy.registry import STRATEGIES
from eestudy.training import loop
from eestudy.training.cost import once_flops, step_flops
from eestudy.training.phase_network import batch_norms
from eestudy.training.phases import Phase, resolve
from eestudy.training.strategies import backbone_phase, phases_of, together_phase

from .phases import check_resumed, trained

# Three steps an epoch on digits; three stages with BatchNorm to freeze.
TINY = {"architecture": "resnet-tiny", "architecture_args": {"width": 8, "blocks": 1}, "dataset": "digits",
        "batch_size": 16, "train_size": 48, "checkpoints": [100]}  # fmt: skip
EPOCHS = {"joint": 1, "alternating": 1, "disjoint": 2, "mixed": 2, "joint-heads": 2}


def config(strategy: str, **settings: object) -> RunConfig:
    return RunConfig(**{**TINY, "strategy": strategy, "epochs": EPOCHS.get(strategy, 3), **settings})


def plan(strategy: str, **settings: object) -> Plan:
    return prepare(config(strategy, **settings))


# What the phases are


def shape(phases: tuple[Phase, ...]) -> list[tuple[object, ...]]:
    return [(phase.trains, phase.exits, phase.stages, round(phase.share, 3)) for phase in phases]


def test_strategies_are_what_they_say():
    """Three exits, after stages 2, 4 and 6."""
    both, backbone, heads = ("backbone", "heads"), ("backbone",), ("heads",)
    third = 0.333
    expected = {
        "mixed-heads": [(backbone, "last", None, 0.4), (both, "all", None, 0.3), (heads, "internal", None, 0.3)],
        "joint-heads": [(both, "all", None, 0.4), (heads, "internal", None, 0.6)],
        "alternating": [(both, "all", None, 1.0)],
        "branch-wise": [(both, (1,), (1, 2), third), (both, (2,), (3, 4), third), (backbone, (3,), (5, 6), third)],
        "separate": [(both, (1,), (1, 2), third), (both, (1, 2), (1, 4), third), (both, (1, 2, 3), (1, 6), third)],
        "gradual": [(backbone, "last", None, third), (both, (2, 3), None, third), (both, (1, 2, 3), None, third)],
        "sequential-ewc": [(both, (1,), (1, 2), third), (both, (2,), (1, 4), third), (backbone, (3,), (1, 6), third)],
    }
    expected["sequential-lwf"] = expected["separate"]
    for name, phases in expected.items():
        assert shape(STRATEGIES[name](0.4, (2, 4, 6))) == phases, name
    assert STRATEGIES["alternating"](0.4)[0].turns == ("last", "all")
    for name in STRATEGIES:
        made = STRATEGIES[name](0.3, (2, 4, 6))
        assert sum(phase.share for phase in made) == pytest.approx(1)
        assert len({phase.name for phase in made}) == len(made)


def test_the_first_phase_is_shared_wherever_it_is_the_backbone_alone():
    ids = {name: plan(name, epochs=6, phase_split=1 / 3).phase_ids[0] for name in ("mixed", "mixed-heads", "gradual")}
    assert len(set(ids.values())) == 1


@pytest.mark.parametrize("epochs", [1, 7, 40])
def test_epochs_of_many_phases_are_shared_evenly(epochs):
    made = resolve(STRATEGIES["branch-wise"](0.5, tuple(range(1, 17))), config("branch-wise", epochs=epochs), {})
    each = [phase.settings.epochs for phase in made]
    assert sum(each) == max(16, epochs)
    assert max(each) - min(each) <= 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_match_flops_spends_what_joint_spends(strategy):
    settings = {"match": "flops", "epochs": 60}
    spent = plan(strategy, **settings).training_flops
    assert spent == pytest.approx(plan("joint", **settings).training_flops, rel=0.05)


def test_a_split_of_0_and_1():
    assert plan("mixed", phase_split=0).phase_ids == plan("joint", epochs=2).phase_ids
    for strategy in ("mixed", "disjoint"):
        alone = plan(strategy, phase_split=1)
        assert [(phase.name, phase.settings.epochs) for phase in alone.phases] == [("backbone", 2)]
    assert [phase.name for phase in phases_of(config("mixed-heads", phase_split=0))] == ["together", "heads"]


# What trains


def names_that_train(strategy: str, place: int) -> tuple[str, ...]:
    """For exits after stages 1, 2 and 3, in the order of the phases; how names in the network begin."""
    stages, heads = [f"backbone.stages.{number}." for number in range(3)], ["heads.1.", "heads.2."]
    last = ["backbone.classifier."]
    everything, alone = [*stages, *heads, *last], [*stages, *last]
    lists = {
        "disjoint": [alone, heads], "joint": [everything], "mixed": [alone, everything],
        "mixed-heads": [alone, everything, heads], "joint-heads": [everything, heads], "alternating": [everything],
        "branch-wise": [[stages[0], heads[0]], [stages[1], heads[1]], [stages[2], *last]],
        "separate": [[stages[0], heads[0]], [*stages[:2], *heads], everything],
        "gradual": [alone, [*alone, heads[1]], everything],
        "sequential-ewc": [[stages[0], heads[0]], [*stages[:2], heads[1]], alone],
    }  # fmt: skip
    lists["sequential-lwf"] = lists["separate"]
    return tuple(lists[strategy][place])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_phase_trains_what_it_says_and_leaves_the_rest_bit_for_bit(tmp_path, strategy):
    made = plan(strategy, head_layers=2, weight_decay=0.1)
    for place, phase in enumerate(made.phases):
        before = {name: value.clone() for name, value in made.model.state_dict().items()}
        folder = trained(made, place, tmp_path)
        expected = names_that_train(strategy, place)
        for name, value in made.model.state_dict().items():
            assert torch.equal(value, before[name]) != name.startswith(expected), f"{name} in phase {phase.name}"
        checkpoint = folder.arrays(loop.checkpoint_name(100))
        assert set(checkpoint) == {name for name in before if name.startswith(expected)}
        assert folder.json("summary.json")["steps"] == 3 * phase.settings.epochs
        exits = {record["exit"] for record in folder.records()}
        assert exits == set(phase.exit_numbers(3))
    assert place + 1 == len(made.phases)
    assert planned(config(strategy)) == phases_of(config(strategy), (1, 2, 3))


# Every strategy, and settings that make it keep something between steps.
SETTINGS: dict[str, dict[str, object]] = {
    **{strategy: {"strategy": strategy} for strategy in STRATEGIES},
    "patience": {"strategy": "joint", "match": "patience", "patience": 1, "lr": 0.02},
    "ramp": {"strategy": "mixed", "weighting": "sdn-ramp", "gradient_scaling": "equilibrium"},
    "boosting": {"strategy": "alternating", "gradient_scaling": "boosting"},
    "distillation": {"strategy": "disjoint", "distillation": "later"},
    "batchnorm": {"strategy": "mixed", "batchnorm": "reestimate", "warm_start": 0.2, "epochs": 4},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_resumed_phase_ends_with_the_same_bits(tmp_path, monkeypatch, settings):
    straight, broken = (plan(**settings, augmentation="none") for _ in range(2))
    check_resumed(straight, broken, tmp_path, monkeypatch)


@pytest.mark.parametrize("strategy", ["branch-wise", "gradual", "sequential-lwf", "sequential-ewc", "alternating"])
def test_runs_predict_and_reload(tmp_path, strategy):
    run = eestudy.run(config(strategy), store=tmp_path, device="cpu")
    logits, _ = run.predictions("test")
    assert logits.shape == (3, len(run.data().test), 10)
    assert len(run.phases) == len(planned(run.config))
    with torch.no_grad():
        again = torch.stack(run.model()(run.data().test.x[:512])).numpy()
    assert (again == logits[:, :512]).all()
    assert set(run.history()["phase"].str.split("-").str[1]) == {phase.name for phase in planned(run.config)}
    assert run.provenance["training_flops"] == prepare(run.config).training_flops


@pytest.mark.parametrize(("kept", "strong"), [("sequential-lwf", 30.0), ("sequential-ewc", 1e5)])
def test_an_earlier_exit_answers_more_like_before(tmp_path, kept, strong):
    """Than without what keeps it. By SGD: AdamW would make steps of one size out of any stability."""
    # Without BatchNorm, whose statistics move whatever is kept.
    settings = {"architecture": "mlp", "architecture_args": {}, "epochs": 6, "train_size": 96}
    settings |= {"optimizer": "sgd", "lr": 0.05}
    moved = {}
    for stability in (1e-6, strong):
        made = plan(kept, **settings, stability=stability)
        x, answers = made.data.validation.x, []
        for place in range(2):
            trained(made, place, tmp_path, f"{stability}")
            with torch.no_grad():
                answers.append(made.model.eval()(x)[0].softmax(1))
        moved[stability] = float((answers[1] - answers[0]).square().mean())
    assert moved[strong] < 0.7 * moved[1e-6], moved


# Settings of a phase


def test_the_learning_rate_of_later_phases():
    plain, scaled = plan("mixed-heads"), plan("mixed-heads", lr_scale=0.1)
    assert [phase.settings.lr for phase in scaled.phases] == pytest.approx([3e-3, 3e-4, 3e-4])
    assert plain.phase_ids[0] == scaled.phase_ids[0]
    assert plain.phase_ids[1] != scaled.phase_ids[1]


def test_a_warm_start_is_a_phase_of_heads():
    made = plan("mixed", epochs=10, phase_split=0.5, warm_start=0.2)
    assert [(phase.name, phase.settings.epochs) for phase in made.phases] == [
        ("backbone", 5),
        ("probes", 2),
        ("together", 3),
    ]
    assert made.phases[1].trains == ("heads",)
    assert made.phase_ids[0] == plan("mixed", epochs=10).phase_ids[0]


def statistics(model: MultiExit) -> list[torch.Tensor]:
    return [value.clone() for name, value in model.backbone.named_buffers() if "running" in name]


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_weights(tmp_path):
    made = plan("mixed", batchnorm="freeze")
    trained(made, 0, tmp_path)
    before, weights = statistics(made.model), [norm.weight.clone() for norm in batch_norms(made.model.backbone)]
    trained(made, 1, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(made.model), strict=True))
    assert not any(torch.equal(a, b.weight) for a, b in zip(weights, batch_norms(made.model.backbone), strict=True))


def test_re_estimated_batchnorm(tmp_path):
    """The mean of the batches' statistics with the final weights; the same weights as without."""
    plain, made = plan("joint"), plan("joint", batchnorm="reestimate")
    trained(plain, 0, tmp_path, "plain")
    folder = trained(made, 0, tmp_path, "again")
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), made.model.parameters(), strict=True))
    first = made.model.backbone.stages[0]
    norm = batch_norms(first)[0]
    read: list[torch.Tensor] = []
    hook = norm.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        made.model.eval()(made.data.train.x.contiguous(memory_format=made.model.memory_format))
    hook.remove()
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, read[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.state_dict()["num_batches_tracked"] == 3
    stored = folder.arrays(loop.checkpoint_name(100))
    assert all((stored[name] == value.numpy()).all() for name, value in made.model.state_dict().items())


# What it costs


def test_training_flops_of_slices():
    """The arithmetic of test_training.py: forward once, backward twice, no input gradient for what comes first."""
    torch.manual_seed(0)
    model = MultiExit(build_backbone("mlp", (1, 8, 8), 10, width=32, depth=3))
    first, second, third, head = 2 * 64 * 32, 2 * 32 * 32, 2 * 32 * 32, 2 * 32 * 10
    classifier = head
    branches = STRATEGIES["branch-wise"](0.5, (1, 2, 3))
    assert [step_flops(model, phase) for phase in branches] == [
        2 * first + 3 * head,
        first + 2 * second + 3 * head,
        first + second + 2 * third + 3 * classifier,
    ]
    growing = STRATEGIES["separate"](0.5, (1, 2, 3))
    assert step_flops(model, growing[1]) == 2 * first + 3 * second + 6 * head
    alternating = (step_flops(model, backbone_phase(1)) + step_flops(model, together_phase(1))) / 2
    assert step_flops(model, STRATEGIES["alternating"](0.5)[0]) == alternating
    # Learning without forgetting: the earlier network's forward pass up to its last exit.
    lwf = STRATEGIES["sequential-lwf"](0.5, (1, 2, 3))
    assert step_flops(model, lwf[1]) == step_flops(model, growing[1]) + first + head
    # Importances: forward and backward for two exits on one sample each.
    ewc = STRATEGIES["sequential-ewc"](0.5, (1, 2, 3))[2]
    assert once_flops(model, ewc, 10) == 10 * (first + second + 2 * head + 2 * first + 2 * second + 2 * head)


# What cannot work


@pytest.mark.parametrize(
    ("strategy", "settings", "wanted"),
    [
        ("disjoint", {"phase_split": 0}, "phase_split: 0 leaves the backbone untrained in disjoint"),
        ("branch-wise", {"gradient_scaling": "equilibrium"}, "gradient_scaling: equilibrium needs a phase in which"),
        ("sequential-ewc", {"gradient_scaling": "equilibrium"}, "and sequential-ewc has none"),
        ("branch-wise", {"weighting": "sdn-ramp"}, "weighting: sdn-ramp needs a phase in which the labels teach"),
        ("sequential-lwf", {"weighting": "sdn-ramp"}, "weighting: sdn-ramp needs a phase in which the labels teach"),
        ("mixed", {"phase_split": 1, "weighting": "sdn-ramp"}, "and mixed at phase_split 1 has none"),
        ("branch-wise", {"distillation": "last"}, "distillation: last needs a phase in which an exit is taught"),
        ("sequential-lwf", {"distillation": "next"}, "and sequential-lwf has none"),
        ("joint", {"weighting": "custom", "weights": [1, 2]}, "weights: [1.0, 2.0] are 2, but the network has 3 exits"),
        ("joint", {"weighting": "custom"}, "weights: [] are 0, but the network has 3 exits"),
        ("joint", {"weights": [1, 2, 3]}, "have no effect with weighting equal; set it to custom"),
        ("mixed-heads", {"weighting": "custom", "weights": [0, 0, 1]}, "gives none to the exits of phase heads"),
        ("joint", {"lr_scale": 0.1}, "lr_scale: 0.1 is for phases after the first, and joint has none"),
        ("joint", {"warm_start": 0.1}, "warm_start: joint at phase_split 0.5 has no phase of the backbone alone"),
        ("mixed", {"warm_start": 0.5}, "warm_start: 0.5 of the epochs is not less than the 0.5 of the phase"),
        ("mixed", {"phase_split": 0, "warm_start": 0.1}, "warm_start: mixed at phase_split 0 has no phase"),
        ("joint", {"batchnorm": "freeze"}, "batchnorm: freeze needs a phase that trains the whole backbone after"),
        ("mixed", {"batchnorm": "freeze", "architecture": "mlp", "architecture_args": {}}, "has no BatchNorm"),
        ("joint", {"distillation_weight": 0.1}, "distillation_weight: 0.1 has no effect without distillation"),
        ("joint", {"distillation_temperature": 1}, "distillation_temperature: 1 has no effect without distillation"),
        ("joint", {"stability": 2}, "stability: 2 has no effect in joint; it is for sequential-lwf and sequential-ewc"),
    ],
)  # fmt: skip
def test_combinations_that_cannot_work_are_refused_by_name(strategy, settings, wanted):
    with pytest.raises(EestudyError) as caught:
        plan(strategy, **settings)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_steps_that_take_turns_need_two(tmp_path):
    made = plan("alternating", batch_size=48)
    with pytest.raises(EestudyError, match="batch_size: 48 makes one step an epoch of 48 samples; phase alternating"):
        trained(made, 0, tmp_path)


def test_a_setting_leaves_phases_alone_that_have_no_use_for_it():
    """So that they are shared with the runs without it."""
    plain = plan("mixed-heads").phase_ids
    for settings in ({"gradient_scaling": "equilibrium"}, {"weighting": "sdn-ramp"}, {"distillation": "last"}):
        made = plan("mixed-heads", **settings).phase_ids
        assert made[0] == plain[0]
        assert made[1] != plain[1]
