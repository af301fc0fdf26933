"""Learning to weight samples: the imagined step, the samples' exits and the meta gradient, against slow references."""

from __future__ import annotations

import copy
import math
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.methods.l2w import WeighedSamples, allotted, before_step, looked_ahead, meta_loss, target_shares
from eestudy.models import MultiExit
from eestudy.plan import Plan
from eestudy.training.eager_step import build_optimizer
from eestudy.training.losses import exit_losses
from eestudy.training.phase_network import PhaseNetwork, set_trainable
from eestudy.training.resume import State

from .tiny import CPU, batch, cross_entropy, plan, shaken, states

LR = 0.05


def ready(made: Plan, steps: int = 3) -> tuple[torch.optim.Optimizer, WeighedSamples]:
    """The optimizer after some steps on the plain loss, and the objective of the phase."""
    model, phase = shaken(made.model), made.phases[0]
    optimizer = build_optimizer(set_trainable(model, phase), phase)
    args = {"epsilon": 0.8, "p": 15, "meta_lr": 0.01, "every": 1}
    objective = WeighedSamples(model, phase, None, (0, "phase-0"), CPU, args=args)
    x, targets = batch(12)
    for _ in range(steps):
        optimizer.zero_grad()
        exit_losses(PhaseNetwork(model, phase)(x), targets).mean().backward()
        optimizer.step()
    return optimizer, objective


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"clip": 0.05}, {"optimizer": "sgd", "clip": 0.05}])
def test_the_imagined_step_is_the_optimizers_own(settings, steps):
    made = plan("l2w", weight_decay=0.1, **settings)
    optimizer, _ = ready(made, steps)
    module = PhaseNetwork(made.model, made.phases[0])
    trained = dict(module.named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    x, targets = batch(12)
    optimizer.zero_grad()
    exit_losses(module(x), targets).mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in trained.items() if parameter.grad is not None}
    moved = looked_ahead(optimizer, trained, start, gradients, LR, made.phases[0].settings.clip)
    if made.phases[0].settings.clip:
        torch.nn.utils.clip_grad_norm_(trained.values(), made.phases[0].settings.clip)
    for group in optimizer.param_groups:
        group["lr"] = LR
    optimizer.step()
    for name, parameter in trained.items():
        assert not torch.equal(parameter, start[name])
        torch.testing.assert_close(moved[name], parameter.detach(), rtol=1e-4, atol=1e-6)


def slow_allotment(confidence: list[list[float]], shares: list[float]) -> list[list[int]]:
    samples = len(confidence[0])
    used: set[int] = set()
    found = []
    for k, share in enumerate(shares):
        order = sorted((n for n in range(samples) if n not in used), key=lambda n: -confidence[k][n])
        chosen = order if k == len(shares) - 1 else order[: math.floor(samples * share)]
        used |= set(chosen)
        found.append(chosen)
    return found


@pytest.mark.parametrize(("exits", "samples", "p"), [(3, 20, 15), (4, 7, 30), (2, 1, 20), (1, 5, 15), (5, 64, 1)])
def test_every_sample_is_used_once(exits, samples, p):
    confidence = torch.rand(exits, samples, generator=torch.Generator().manual_seed(0))
    shares = target_shares(exits, p)
    assert sum(shares) == pytest.approx(1)
    assert all(b / a == pytest.approx(p / 20) for a, b in pairwise(shares))
    found = [chosen.tolist() for chosen in allotted(confidence, shares)]
    assert [sorted(each) for each in found] == [sorted(each) for each in slow_allotment(confidence.tolist(), shares)]
    assert sorted(chain(*found)) == list(range(samples))


def slow_logits(model: MultiExit, x: Tensor) -> list[Tensor]:
    h1, h2, h3 = states(model, x)
    return [model.head(1)(h1), model.head(2)(h2), model.backbone.classifier(h3)]


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_the_meta_gradient_against_a_slow_reference(optimizer_name):
    """Every sample's gradient at every exit by itself; the step written out; the weights as free numbers."""
    made = plan("l2w", optimizer=optimizer_name, clip=None)
    optimizer, objective = ready(made)
    model, phase = made.model, made.phases[0]
    x, targets = batch(12)
    names = [name for name, _ in model.named_parameters()]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = meta_loss(model, phase, optimizer, objective, x, targets, LR)
    found = torch.autograd.grad(loss, list(objective.weigher.parameters()))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())

    first = slow_logits(model, x[:6])
    each = [[cross_entropy(first[k][n : n + 1], targets[n : n + 1]) for k in range(3)] for n in range(6)]
    given = torch.tensor([[float(value.detach()) for value in row] for row in each])
    w1, b1, w2, b2 = objective.weigher.parameters()
    raw = torch.tanh(torch.relu(given @ w1.T + b1) @ w2.T + b2)
    shifted = raw - sum(raw[n, k] for n in range(6) for k in range(3)) / 18
    assert shifted.detach().abs().max() < 1  # nothing to scale
    weights = 1 + 0.8 * shifted
    gradient = {name: torch.zeros_like(before[name]) for name in names}
    for n in range(6):
        for k in range(3):
            own = torch.autograd.grad(each[n][k], list(model.parameters()), retain_graph=True, allow_unused=True)
            for name, part in zip(names, own, strict=True):
                if part is not None:
                    gradient[name] = gradient[name] + weights[n, k] * part / 18
    moved = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = next(name for name, other in model.named_parameters() if other is parameter)
            slots, g, theta = optimizer.state[parameter], gradient[name], before[name]
            if optimizer_name == "sgd":
                moved[name] = theta - LR * (0.9 * slots["momentum_buffer"] + g + group["weight_decay"] * theta)
            else:
                m = (0.9 * slots["exp_avg"] + 0.1 * g) / (1 - 0.9**4)
                v = (0.999 * slots["exp_avg_sq"] + 0.001 * g**2) / (1 - 0.999**4)
                moved[name] = theta - LR * group["weight_decay"] * theta - LR * m / (torch.sqrt(v + 1e-30) + 1e-8)
    second = torch.func.functional_call(model, moved, (x[6:],))
    confidence = [[float((torch.exp(row) / torch.exp(row).sum()).max().detach()) for row in exit] for exit in second]
    expected = torch.zeros(())
    for k, places in enumerate(slow_allotment(confidence, target_shares(3, 15))):
        for n in places:
            expected = expected + cross_entropy(second[k][n : n + 1], targets[6 + n : 7 + n]) / len(places)
    torch.testing.assert_close(loss, expected)
    slow = torch.autograd.grad(expected, list(objective.weigher.parameters()))
    for a, b in zip(found, slow, strict=True):
        assert float(b.abs().max()) > 0
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4 * float(b.abs().max()))


def test_weights_lie_around_one():
    _, objective = ready(plan("l2w"))
    with torch.no_grad():
        for parameter in objective.weigher.parameters():
            parameter.mul_(30)  # the tanh at its ends
        weights = objective.weigher(torch.rand(16, 3) * 5)
    assert weights.min() >= 0.2 - 1e-6
    assert weights.max() <= 1.8 + 1e-6
    assert float(weights.mean()) == pytest.approx(1, abs=1e-6)
    assert float(weights.std()) > 0.1


def test_the_loss_of_a_step():
    made = plan("l2w")
    _, objective = ready(made)
    x, targets = batch(6)
    logits = torch.stack(slow_logits(made.model, x))
    each = torch.stack(
        [torch.stack([cross_entropy(row[n : n + 1], targets[n : n + 1]) for n in range(6)]) for row in logits]
    )
    weights = objective.weigher(each.T.detach()).detach()
    expected = sum(weights[n, k] * each[k, n] for n in range(6) for k in range(3)) / 18
    torch.testing.assert_close(objective(exit_losses(logits, targets), logits, targets, x, 0.0), expected)


def test_the_meta_step_moves_the_weigher_alone_and_every_so_often():
    made = plan("l2w")
    optimizer, objective = ready(made)
    objective.args = {**objective.args, "every": 3}
    state = State(made.model, made.phases[0], optimizer, torch.zeros(2, 3), objective=objective)
    model = copy.deepcopy(made.model.state_dict())
    slots = copy.deepcopy(optimizer.state_dict())
    x, targets = batch(12)
    moved = []
    for step in range(7):
        state.progress.step = step
        before = copy.deepcopy(objective.weigher.state_dict())
        before_step(PhaseNetwork(made.model, made.phases[0]), state, objective, x, targets, step / 7, CPU)
        moved.append(
            not all(torch.equal(value, before[name]) for name, value in objective.weigher.state_dict().items())
        )
    assert moved == [True, False, False, True, False, False, True]
    assert all(torch.equal(value, model[name]) for name, value in made.model.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(value, after[n][slot]) for n, each in slots["state"].items() for slot, value in each.items())


@pytest.mark.parametrize(
    ("architecture", "dataset", "args"), [("vit1d", "mnist1d", {"width": 8, "depth": 2, "heads": 2}),
                                          ("resnet-tiny", "digits", {"width": 4, "blocks": 1})]
)  # fmt: skip
def test_attention_and_batchnorm(architecture, dataset, args):
    """Second derivatives through both; the statistics stay as they were."""
    settings: dict[str, Any] = {"dataset_args": {"samples": 1000}} if dataset == "mnist1d" else {}
    made = plan("l2w", architecture=architecture, dataset=dataset, architecture_args=args, **settings)
    phase = made.phases[0].having(precision="float32")
    optimizer = build_optimizer(set_trainable(made.model, phase), phase)
    objective = WeighedSamples(made.model, phase, None, (0,), CPU, args={"epsilon": 0.8, "p": 15, "meta_lr": 0.01,
                               "every": 1})  # fmt: skip
    state = State(made.model, phase, optimizer, torch.zeros(2, 3), objective=objective)
    before = copy.deepcopy(objective.weigher.state_dict())
    buffers = {name: value.clone() for name, value in made.model.named_buffers()}
    x, y = made.data.train.x[:8], made.data.train.y[:8]
    before_step(PhaseNetwork(made.model, phase), state, objective, x, y, 0.0, CPU)
    assert any(not torch.equal(value, before[name]) for name, value in objective.weigher.state_dict().items())
    assert all(value.isfinite().all() for value in objective.weigher.state_dict().values())
    assert all(torch.equal(value, buffers[name]) for name, value in made.model.named_buffers())


def test_flops_count_the_imagined_step():
    sdn, l2w, rare = plan("sdn"), plan("l2w"), plan("l2w", method_args={"every": 4})
    more = l2w.step_flops["together"] - sdn.step_flops["together"]
    assert rare.step_flops["together"] - sdn.step_flops["together"] == pytest.approx(more / 4)
    assert 0.5 < more / sdn.step_flops["together"] < 6


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"weighting": "sdn-ramp"}, "learns the weights itself; weighting sdn-ramp would weigh twice"),
        ({"distillation": "last"}, "weighs samples by their losses by the labels; distillation last has another one"),
        ({"strategy": "sequential-lwf"}, "weighs the exits of a sample against each other, and sequential-lwf teaches"),
        ({"dataset": "diabetes"}, "needs the probabilities of classes"),
        ({"method_args": {"every": 0}}, "every: 0 is not valid; it must be a whole number, at least 1"),
        ({"method_args": {"p": 40}}, "p: 40 is not valid; it must be a whole number, at least 1 and at most 39"),
        ({"method_args": {"epsilon": 2}}, "epsilon: 2 is not valid; it must be a number, at least 0 and at most 1"),
    ],
)
def test_what_cannot_work(settings, wanted):
    with pytest.raises(EestudyError) as caught:
        plan("l2w", **{"strategy": "joint", **settings})
    assert wanted in str(caught.value)
