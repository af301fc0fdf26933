"""Every weighting, gradient scaling and distillation against a slow reference of its equations."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from eestudy import data
from eestudy.models import MultiExit, build_backbone
from eestudy.training.batches import Batches
from eestudy.training.earlier_exits import Penalty
from eestudy.training.execution import Execution
from eestudy.training.losses import (
    RAMP_START,
    exit_losses,
    exit_shares,
    soft_losses,
    softened,
    teachers_of,
    weighting_of,
)
from eestudy.training.objective import Objective
from eestudy.training.phase_network import exit_logits, phase_logits, set_trainable
from eestudy.training.phases import Phase
from eestudy.training.strategies import heads_phase, together_phase

CPU = Execution(torch.device("cpu"))
SMALL: dict[str, dict[str, int]] = {"mlp": {"width": 8, "depth": 3}, "resnet-tiny": {}, "vit1d": {}, "msdnet": {}}


def network(architecture: str = "mlp", classes: int = 4, head: str = "auto") -> MultiExit:
    torch.manual_seed(0)
    shape = {"vit1d": (1, 40), "msdnet": (3, 32, 32)}.get(architecture, (1, 8, 8))
    return MultiExit(build_backbone(architecture, shape, classes, **SMALL[architecture]), head=head)


def batch(model: MultiExit, size: int = 6) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(size, *model.input_shape), torch.arange(size) % model.num_classes


def number(value: Tensor) -> float:
    return float(value.detach())


def objective(model: MultiExit, phase: Phase) -> Objective:
    return Objective(model, phase, None, (0, "phase-0"), CPU)


# Weightings. L: the exits' losses.


def weighed(phase: Phase, losses: Tensor, done: float = 0.0) -> tuple[Tensor, Objective]:
    made = objective(network(), phase)
    return made(losses, torch.zeros(len(losses), 1, 4), torch.zeros(1), torch.zeros(1), done), made


def test_custom_weights_are_scaled_to_sum_1():
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss, _ = weighed(together_phase(1.0).having(weighting="custom", weights=(1.0, 0.0, 3.0)), losses)
    loss.backward()
    assert number(loss) == pytest.approx((1 * 1 + 3 * 3) / 4)
    torch.testing.assert_close(losses.grad, torch.tensor([0.25, 0.0, 0.75]))


@pytest.mark.parametrize("done", [0.0, 0.4, 0.99])
def test_the_ramp_of_sdn(done):
    model = network()
    phase = together_phase(1.0).having(weighting="sdn-ramp")
    losses = torch.tensor([1.0, 2.0, 3.0])
    # 64 -> 8 -> 8 -> 8 -> 4 classes
    spent = [64 * 8, 64 * 8 + 8 * 8]
    whole = 64 * 8 + 2 * 8 * 8 + 8 * 4
    assert exit_shares(model) == pytest.approx([spent[0] / whole, spent[1] / whole, 1.0])
    coefficients = [min(flops / whole, RAMP_START + done * flops / whole) for flops in spent] + [1.0]
    expected = sum(c * number(loss) for c, loss in zip(coefficients, losses)) / sum(coefficients)
    assert number(objective(model, phase)(losses, losses, losses, losses, done)) == pytest.approx(expected, rel=1e-6)
    internal = weighting_of(model, replace(phase, exits="internal"))
    weights = internal(done)
    assert weights.tolist() == pytest.approx([c / sum(coefficients[:2]) for c in coefficients[:2]])


# Distillation


def divergence(student: Tensor, teacher: list[float], temperature: float) -> float:
    scaled = [math.exp(number(z) / temperature) for z in student]
    own = [value / sum(scaled) for value in scaled]
    return temperature**2 * sum(p * math.log(p / q) for p, q in zip(teacher, own))


@pytest.mark.parametrize("teacher", ["last", "later", "next"])
def test_distillation(teacher):
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 4, requires_grad=True)
    y, temperature, share = torch.tensor([1, 3]), 2.0, 0.3
    phase = together_phase(1.0).having(
        distillation=teacher, distillation_weight=share, distillation_temperature=temperature
    )
    losses = exit_losses(logits, y)
    values = objective(network(), phase).values(losses, logits, y, y)
    soft = (logits.detach() / temperature).softmax(2)
    for k in range(3):
        deeper = {"last": [2], "later": range(k + 1, 3), "next": [k + 1]}[teacher] if k < 2 else []
        expected = number(losses[k])
        if deeper:
            total = 0.0
            for sample in range(2):
                mean = [sum(number(soft[j, sample, c]) for j in deeper) / len(deeper) for c in range(4)]
                total += divergence(logits[k, sample], mean, temperature) / 2
            expected = (1 - share) * expected + share * total
        assert number(values[k]) == pytest.approx(expected, rel=1e-5)
    # Teachers are not taught: what exit 1 learns moves exit 1 alone.
    (gradient,) = torch.autograd.grad(values[0], logits)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1:].any()


def test_the_gradient_of_distillation():
    """T^2 KL(p || q): its derivative by the student's logits is T (q - p) / B."""
    torch.manual_seed(0)
    students, teachers = torch.randn(2, 5, 4, requires_grad=True), softened(torch.randn(2, 5, 4), 3.0)
    soft_losses(students, teachers, 3.0).sum().backward()
    expected = 3.0 * ((students.detach() / 3.0).softmax(2) - teachers) / 5
    torch.testing.assert_close(students.grad, expected)
    same = torch.randn(2, 5, 4)
    torch.testing.assert_close(soft_losses(same, softened(same, 3.0), 3.0), torch.zeros(2), atol=1e-5, rtol=0)


def test_distillation_of_a_single_output_is_the_squared_difference():
    logits = torch.tensor([[[1.0], [2.0]], [[3.0], [5.0]]])
    torch.testing.assert_close(soft_losses(logits[:1], teachers_of(logits, "next", 3.0), 3.0), torch.tensor([6.5]))


def test_a_frozen_backbones_classifier_teaches_heads_alone():
    model, (x, y) = network(), batch(network())
    phase = heads_phase(1.0).having(distillation="next", distillation_weight=1.0, distillation_temperature=1.0)
    set_trainable(model, phase)
    logits = torch.stack(phase_logits(model, phase, x))
    everything = torch.stack(model(x))
    torch.testing.assert_close(logits, everything)
    values = objective(model, phase).values(exit_losses(logits[:2], y), logits, y, x)
    torch.testing.assert_close(values, soft_losses(everything[:2], everything[1:].softmax(2), 1.0))


# Gradients


@pytest.mark.parametrize("head", ["auto", "cascading"])
@pytest.mark.parametrize("architecture", SMALL)
def test_some_exits_alone_are_the_same_as_among_all(architecture, head):
    if head == "cascading":
        head = {"mlp": "cascading-vector", "vit1d": "cascading-token"}.get(architecture, "cascading-pooled")
    model = network(architecture, head=head).eval()
    x, _ = batch(model, 2)
    everything = model(x)
    count = model.num_exits
    for exits in ([1], [2], [count], [1, count], list(range(2, count + 1)), list(range(1, count + 1))):
        for scaling in ("none", "equilibrium", "boosting"):
            for number, logits in zip(exits, exit_logits(model, exits, x, scaling), strict=True):
                torch.testing.assert_close(logits, everything[number - 1])


@pytest.mark.parametrize("architecture", SMALL)
def test_gradient_scalings(architecture):
    """equilibrium gives a stage the mean over the exits behind it, boosting weighs exit i by 1/(K-i)."""
    model = network(architecture).double().eval()
    x, y = batch(model, 2)
    x, count = x.double(), model.num_exits
    stages = [*model.exit_stages, len(model.backbone.stages)]
    parameters = [list(stage.parameters()) for stage in model.backbone.stages]
    own = list(itertools.chain(model.heads.parameters(), model.backbone.classifier.parameters()))
    flat = [*itertools.chain(*parameters), *own]

    def gradients(scaling: str, exits: list[int]) -> list[Tensor]:
        logits = exit_logits(model, list(range(1, count + 1)), x, scaling)
        loss = torch.stack([torch.nn.functional.cross_entropy(logits[k - 1], y) for k in exits]).sum()
        return list(torch.autograd.grad(loss, flat, materialize_grads=True))

    alone = [gradients("none", [k]) for k in range(1, count + 1)]
    for scaling in ("equilibrium", "boosting"):
        scaled, place = gradients(scaling, list(range(1, count + 1))), 0
        for number, weights in enumerate(parameters, 1):
            behind = [k for k in range(count) if stages[k] >= number]
            factor = [1 / len(behind) if scaling == "equilibrium" else 1 / (count - k) for k in behind]
            for _ in weights:
                expected = sum(f * alone[k][place] for f, k in zip(factor, behind))
                torch.testing.assert_close(scaled[place], expected)
                place += 1
        for each in range(place, len(flat)):
            torch.testing.assert_close(scaled[each], sum(gradient[each] for gradient in alone))


# What the sequential strategies keep


def test_learning_without_forgetting():
    model = network()
    x, y = batch(model)
    phase = Phase("lwf3", ("backbone", "heads"), (1, 2, 3), stages=(1, 3), keeps="lwf")
    phase = phase.having(stability=0.7, distillation_temperature=2.0)
    made = objective(model, phase)
    before = [logits.detach().clone() for logits in model(x)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    logits = torch.stack(phase_logits(model, phase, x))
    losses = exit_losses(logits, y)
    found = made(losses, logits, y, x, 0.0)
    expected = number(torch.nn.functional.cross_entropy(logits[2], y))
    for k in range(2):
        soft = (before[k] / 2).softmax(1)
        mean = sum(divergence(logits[k, n], soft[n].tolist(), 2.0) for n in range(len(x))) / len(x)
        expected += 0.7 * mean
    assert number(found) == pytest.approx(expected, rel=1e-4)


def test_elastic_weight_consolidation():
    model = network()
    x, y = batch(model)
    phase = Phase("ewc3", ("backbone",), (3,), stages=(1, 3), keeps="ewc").having(stability=10.0)
    batches = Batches(data.Split(x, y), 4, phase, (0, "phase-2"), CPU)
    slow = copy.deepcopy(model).eval()
    penalty = Penalty(model, phase, batches.split, batches.seeds, CPU)
    assert number(penalty()) == 0
    moves = [0.1 * torch.randn_like(weight) for weight in penalty.weights]
    with torch.no_grad():
        for weight, move in zip(penalty.weights, moves):
            weight.add_(move)
    found = penalty()
    gradients = torch.autograd.grad(found, penalty.weights)

    weights, expected = list(slow.backbone.stages.parameters()), 0.0
    sums = [torch.zeros_like(weight) for weight in weights]
    for n in range(len(x)):
        for k in range(2):
            likelihood = slow(x[n : n + 1])[k].log_softmax(1)[0, y[n]]
            for total, g in zip(sums, torch.autograd.grad(likelihood, weights, materialize_grads=True)):
                total += g**2 / len(x)
    for total, move, gradient in zip(sums, moves, gradients, strict=True):
        expected += number((total * move**2).sum()) * 10 / 2
        torch.testing.assert_close(gradient, 10 * total * move, rtol=1e-4, atol=1e-6)
    assert number(found) == pytest.approx(expected, rel=1e-4)
    assert not sums[-1].any()  # the last stage, which no earlier exit reads, is free
