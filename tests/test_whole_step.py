"""The compiled whole step against the training loop's own."""

from __future__ import annotations

import pytest
import torch

from eestudy.models import MultiExit, build_backbone
from eestudy.training import loop
from eestudy.training.execution import Execution
from eestudy.training.freezing import PhaseNetwork, frozen_features, phase_exits, set_trainable
from eestudy.training.objective import Objective
from eestudy.training.optim import build_optimizer, lr_factor
from eestudy.training.saved import State
from eestudy.training.strategies import heads_phase, together_phase
from eestudy.training.whole_step import Flat, WholeStep

CPU = Execution(torch.device("cpu"))


def network(architecture: str, shape: tuple[int, ...]) -> MultiExit:
    torch.manual_seed(0)
    model = MultiExit(build_backbone(architecture, shape, 4))
    return model.to(memory_format=torch.channels_last) if len(shape) == 3 else model


@pytest.mark.parametrize("compiled", [False, True], ids=["traced", "compiled"])
@pytest.mark.parametrize(
    ("architecture", "shape", "make"),
    [("mlp", (1, 8), together_phase), ("mlp", (1, 8), heads_phase), ("resnet-tiny", (1, 8, 8), together_phase)],
)
def test_equals_the_loops_step_up_to_rounding(architecture, shape, make, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    elif architecture != "mlp":
        pytest.skip("compiling it takes minutes")
    phase = make(1.0).having(lr=1e-3, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, *shape, generator=generator) for _ in range(3)]
    targets = torch.randint(0, 4, (16,), generator=generator)
    graph = None
    for _ in range(2):  # the second time with the first one's graph
        ours, theirs = network(architecture, shape), network(architecture, shape)
        exits = len(phase_exits(ours, phase))
        sums, bad, flat = torch.zeros(2, exits), torch.full((), torch.inf), Flat(set_trainable(ours, phase))
        whole = WholeStep(PhaseNetwork(ours, phase), flat, Objective(ours, phase, None, (), CPU), sums, bad, graph)
        state = State(theirs, phase, build_optimizer(set_trainable(theirs, phase), phase), torch.zeros(2, exits))
        objective, joined = Objective(theirs, phase, None, (), CPU), PhaseNetwork(theirs, phase)
        spent = torch.zeros(exits)
        for number, x in enumerate(batches):
            given = [frozen_features(model, phase, x) if make is heads_phase else x for model in (ours, theirs)]
            whole.step(
                given[0],
                targets,
                phase.settings.lr * lr_factor(phase.settings.schedule, phase.settings.warmup, 0.1),
                number,
            )
            spent += loop._step(joined, state, objective, given[1], targets, 0.1, bad.clone(), CPU)[0]
        torch.testing.assert_close(sums[0], spent, rtol=1e-3, atol=1e-4)
        for name, tensor in theirs.state_dict().items():
            # AdamW's first steps are signs: where a gradient is all but 0, rounding decides.
            close = torch.isclose(ours.state_dict()[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)
            assert close.float().mean() > 0.99, name
        assert bad == torch.inf
        graph = whole.graph


def test_keeps_layout_and_marks_the_first_step_that_is_not_finite(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    model, phase = network("resnet-tiny", (1, 8, 8)), together_phase(1.0).having(lr=1e-3)
    bad, sums = torch.full((), torch.inf), torch.zeros(2, model.num_exits)
    flat = Flat(set_trainable(model, phase))
    assert model.memory_format == torch.channels_last
    whole = WholeStep(PhaseNetwork(model, phase), flat, Objective(model, phase, None, (), CPU), sums, bad)
    good, targets = torch.randn(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64)
    for number, x in enumerate((good, good * torch.nan, good)):
        whole.step(x, targets, 1e-3, number)
    assert bad == 1
