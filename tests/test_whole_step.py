"""The compiled whole step: against the eager one, and the same bits whatever ran before it."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import eestudy
from eestudy.config import RunConfig
from eestudy.models import MultiExit, build_backbone
from eestudy.plan import Plan, prepare
from eestudy.store import Folder, Store
from eestudy.training import loop, whole_step
from eestudy.training.batches import in_layout
from eestudy.training.eager_step import EagerStep, Step, build_optimizer
from eestudy.training.execution import Execution
from eestudy.training.objective import Objective
from eestudy.training.phase_network import PhaseNetwork, frozen_features, heads_alone, phase_exits, set_trainable
from eestudy.training.phases import Phase
from eestudy.training.resume import State, arrays
from eestudy.training.strategies import backbone_phase, heads_phase, together_phase
from eestudy.training.whole_step import WholeStep, fits

from .phases import check_resumed, interrupted_after

CPU, WHOLE = (Execution(torch.device("cpu"), compile=how) for how in ("never", "step"))
SHAPES = {"mlp": (1, 8), "resnet1d": (1, 40), "vit1d": (1, 40), "resnet-tiny": (1, 8, 8)}
# All compiling tests have this network and batch, so that each phase's graph is compiled once.
TINY = {
    "architecture": "mlp", "architecture_args": {"width": 16, "depth": 3}, "dataset": "mnist1d", "epochs": 2,
    "dataset_args": {"samples": 1000}, "batch_size": 64, "train_size": 192, "checkpoints": (0, 50, 100),
}  # fmt: skip


@pytest.fixture
def traced_only(monkeypatch):
    """The graph runs operation by operation."""
    monkeypatch.setattr(whole_step, "GRAPHS", {})
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)


def network(architecture: str) -> MultiExit:
    torch.manual_seed(0)
    model = MultiExit(build_backbone(architecture, SHAPES[architecture], 4))
    return model.to(memory_format=torch.channels_last) if len(SHAPES[architecture]) == 3 else model


def step_of(kind: type[Step], model: MultiExit, phase: Phase) -> Step:
    optimizer = build_optimizer(set_trainable(model, phase), phase)
    state = State(model, phase, optimizer, torch.zeros(2, len(phase_exits(model, phase))))
    objective, bad = Objective(model, phase, None, (), CPU), torch.full((), torch.inf)
    return kind(PhaseNetwork(model, phase), state, objective, bad, CPU)


def prepared(strategy: str, **settings: object) -> Plan:
    return prepare(RunConfig(**{**TINY, "strategy": strategy, **settings}))


def trained(made: Plan, place: int, folder: Folder, how: Execution = WHOLE) -> Folder:
    loop.train_phase(made.model, made.phases[place], made.data, folder, made.config.seed, place, how)
    return folder


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "shares"])
@pytest.mark.parametrize(
    ("architecture", "phase"),
    [
        ("mlp", together_phase(1.0)),
        ("mlp", heads_phase(1.0)),
        ("vit1d", together_phase(1.0).having(weighting="custom", weights=(1, 0, 2, 3, 1, 1, 1, 1))),
        ("resnet1d", together_phase(1.0)),
        ("resnet1d", backbone_phase(1.0).having(batchnorm="freeze", clip=None)),
        ("resnet1d", together_phase(1.0).having(gradient_scaling="equilibrium", weighting="depth-linear")),
        ("resnet-tiny", together_phase(1.0)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_equals_the_eager_step_up_to_rounding(architecture, phase, soft):
    phase = phase.having(lr=1e-3, weight_decay=10.0)  # so much that it is seen which weights have it
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, *SHAPES[architecture], generator=generator) for _ in range(3)]
    targets = torch.randint(0, 4, (16,), generator=generator)
    if soft:  # as mixup makes them
        targets = torch.softmax(4 * torch.randn(16, 4, generator=generator), 1)
    ours, theirs = (step_of(kind, network(architecture), phase) for kind in (WholeStep, EagerStep))
    for number, x in enumerate(batches):
        for each in (ours, theirs):
            model = each.state.model
            given = frozen_features(model, phase, x) if heads_alone(phase) else in_layout(x, model.memory_format)
            each.state.progress.step = number
            each.step(given, targets, 0.1 + number / 10)
    torch.testing.assert_close(ours.state.sums, theirs.state.sums, rtol=1e-4, atol=1e-4)
    ours.end()
    expected, close = theirs.state.model.state_dict(), []
    for name, tensor in ours.state.model.state_dict().items():
        assert tensor.stride() == expected[name].stride(), name
        close.append(torch.isclose(tensor.float(), expected[name].float(), rtol=1e-3, atol=1e-4).flatten())
        if "running" in name or "num_batches" in name:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    # AdamW's first steps are signs: where a gradient is all but 0, rounding decides.
    assert torch.cat(close).float().mean() > 0.99
    assert ours.bad == theirs.bad == torch.inf
    memory, expected = ours.state.optimizer.state_dict()["state"], theirs.state.optimizer.state_dict()["state"]
    assert memory.keys() == expected.keys()
    assert all(memory[number]["step"] == expected[number]["step"] == 3 for number in memory)


@pytest.mark.usefixtures("traced_only")
def test_marks_the_first_step_that_is_not_finite():
    step = step_of(WholeStep, network("mlp"), together_phase(1.0))
    good, targets = torch.randn(16, 1, 8), torch.zeros(16, dtype=torch.int64)
    for number, x in enumerate((good, good * torch.nan, good)):
        step.state.progress.step = number
        step.step(x, targets, 0.1)
    assert step.bad == 1


def test_flat_weights_are_the_networks_until_the_end():
    model, phase = network("resnet-tiny"), together_phase(1.0)
    before = copy.deepcopy(model.state_dict())
    step_of(WholeStep, model, phase)  # a phase that was interrupted, whose weights are made flat again
    step = step_of(WholeStep, model, phase)
    assert isinstance(step, WholeStep)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert value.stride() == before[name].stride(), name
        assert (arrays({name: value})[name] == before[name].numpy()).all()
    step.flat.weights.add_(1)
    weight = model.get_parameter("heads.1.1.weight")
    assert torch.equal(weight, before["heads.1.1.weight"] + 1)
    assert torch.equal(copy.deepcopy(model).get_parameter("heads.1.1.weight"), weight)
    model.load_state_dict(before)  # in place
    assert torch.equal(torch.cat([each.flatten() for each in step.flat.views(step.flat.weights)[-3:]]),
                       torch.cat([each.flatten() for each in step.flat.parameters[-3:]]))  # fmt: skip
    step.end()
    step.flat.weights.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len({each.untyped_storage().data_ptr() for each in model.parameters()}) == len(list(model.parameters()))


@pytest.mark.parametrize("strategy", ["joint", "disjoint", "alternating", "sequential-lwf", "sequential-ewc"])
def test_which_phases_fit_by_strategy(strategy):
    made = prepared(strategy)
    found = [fits(made.model, phase, made.data, WHOLE) for phase in made.phases]
    if strategy in ("joint", "disjoint"):
        assert all(found)
    else:
        assert found == [not phase.turns and phase.keeps == "none" for phase in made.phases]
        assert not all(found)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"augmentation": "mixup", "match": "patience", "patience": 3, "weighting": "depth-linear"}, True),
        ({"gradient_scaling": "boosting", "schedule": "one-cycle", "clip": None}, True),
        ({"optimizer": "sgd"}, False),
        ({"precision": "bfloat16"}, False),
        ({"distillation": "last"}, False),
        ({"weighting": "sdn-ramp"}, False),
        ({"method": "l2w"}, False),
        ({"dataset": "diabetes", "dataset_args": {}}, False),
    ],
    ids=str,
)
def test_which_settings_fit(settings, expected):
    made = prepared("joint", **settings)
    before = copy.deepcopy(made.model).state_dict()
    assert fits(made.model, made.phases[0], made.data, WHOLE) is expected
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    assert not fits(made.model, made.phases[0], made.data, CPU)


class Looking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else 2 * x


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize(
    ("part", "expected"),
    [(nn.Identity(), True), (nn.Dropout(0.0), True), (nn.Dropout(0.1), False), (Noisy(), False), (Looking(), False),
     (Unused(), False)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_which_networks_fit(part, expected):
    made = prepared("joint")
    stage = made.model.backbone.stages[0]
    made.model.backbone.stages[0] = nn.Sequential(stage, part)
    assert fits(made.model, made.phases[0], made.data, WHOLE) is expected


# ---------------------------------------------------------------- compiled


def digest(model: nn.Module) -> str:
    content = b"".join(value.contiguous().numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(content).hexdigest()


def trained_seeds(seeds: list[int], folder: Path, **settings: object) -> list[str]:
    """Digests of the final weights of runs that train one after the other in this process."""
    made = [prepared("disjoint", seed=seed, **settings) for seed in seeds]
    for each in made:
        for place in range(len(each.phases)):
            trained(each, place, Store(folder).folder("phases", f"{each.config.seed}-{place}"))
    return [digest(each.model) for each in made]


PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_whole_step import trained_seeds
print(json.dumps(trained_seeds([int(each) for each in sys.argv[2:]], Path(sys.argv[1]))))
"""


def elsewhere(cache: Path, folder: Path, *seeds: int) -> list[str]:
    """`trained_seeds` in a new process, with what is compiled kept in `cache`."""
    root = Path(__file__).parents[1]
    environment = {
        **os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(folder), *map(str, seeds)]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_seed_has_the_same_bits_alone_after_another_and_from_the_cache(tmp_path, monkeypatch):
    """Joint training and heads on cached features; one graph a phase for both seeds."""
    first = elsewhere(tmp_path / "cache", tmp_path / "two", 0, 1)  # cold
    again = elsewhere(tmp_path / "cache", tmp_path / "one", 1)  # from the cache
    assert first[0] != first[1]
    assert again == first[1:]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    known = set(whole_step.GRAPHS)
    here = trained_seeds([2, 1], tmp_path / "here")
    assert here[1] == first[1]
    assert len(set(whole_step.GRAPHS) - known) <= 2


def test_a_resumed_phase_ends_with_the_same_bits(tmp_path, monkeypatch):
    straight, broken = (prepared("disjoint", match="patience", patience=2) for _ in range(2))
    check_resumed(straight, broken, tmp_path, monkeypatch, WHOLE)


def test_a_phase_goes_on_as_it_was_begun(tmp_path, monkeypatch):
    """Whatever is asked for then; later phases are trained as it is asked."""
    config = RunConfig(**TINY, strategy="disjoint")
    whole = eestudy.run(config, tmp_path / "whole", device="cpu", compile="step")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_interrupt_between_steps", partial(interrupted_after, 2))
        with pytest.raises(KeyboardInterrupt):
            eestudy.run(config, tmp_path / "broken", device="cpu", compile="step")
    assert list((tmp_path / "broken").glob("phases/*/state-*"))
    eestudy.run(config, tmp_path / "broken", device="cpu", compile="never")
    first, second = ([Store(tmp_path / name).folder("phases", phase) for name in ("whole", "broken")]
                     for phase in whole.phases)  # fmt: skip
    assert [each.json("environment.json")["compiled"] for each in first] == ["step", "step"]
    assert [each.json("environment.json")["compiled"] for each in second] == ["step", "no"]
    assert first[0].records() == first[1].records()
    for name, entry in first[0].manifest().items():
        if name.endswith(".safetensors"):
            assert entry["sha256"] == first[1].manifest()[name]["sha256"], name


def test_another_shape_is_an_error_and_not_another_graph():
    step = step_of(WholeStep, network("mlp"), heads_phase(1.0))
    for size in (16, 8):
        step.state.progress.step += 1
        x = frozen_features(step.state.model, step.state.phase, torch.randn(size, 1, 8))
        if size == 16:
            step.step(x, torch.zeros(size, dtype=torch.int64), 0.1)
        else:
            with pytest.raises(Exception, match="ecompil"):
                step.step(x, torch.zeros(size, dtype=torch.int64), 0.1)
