"""A network small enough to read, its phase, and the plain arithmetic that the methods are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from eestudy.config import RunConfig
from eestudy.models import MultiExit
from eestudy.plan import Plan, prepare
from eestudy.training.execution import Execution
from eestudy.training.loop import Hooks
from eestudy.training.losses import exit_losses
from eestudy.training.phase_network import PhaseNetwork, set_trainable

CPU = Execution(torch.device("cpu"))
MLP = {"architecture": "mlp", "architecture_args": {"width": 8, "depth": 3}, "dataset": "digits", "train_size": 48,
       "batch_size": 16, "epochs": 2, "checkpoints": [100]}  # fmt: skip


def plan(method: str, strategy: str = "joint", **settings: object) -> Plan:
    return prepare(RunConfig(**{**MLP, "method": method, "strategy": strategy, **settings}))


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def shaken(model: MultiExit) -> MultiExit:
    """Its weights moved, so that nothing is at the round number it starts from."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def step(made: Plan, place: int = 0) -> tuple[float, Tensor, dict[str, Tensor]]:
    """The loss of one step of a phase, its logits (K, B, C) and the gradients, as the training makes them."""
    model, phase = made.model, made.phases[place]
    x, targets = batch()
    set_trainable(model, phase)
    hooks = made.method.hooks(phase) or Hooks()
    objective = hooks.objective(model, phase, None, (0, "phase-0"), CPU)
    logits = PhaseNetwork(model, phase)(x)
    loss = objective(exit_losses(logits, targets), logits, targets, x, 0.0)
    model.zero_grad()
    loss.backward()
    return float(loss.detach()), logits.detach(), gradients(model)


def gradients(model: MultiExit) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def states(model: MultiExit, x: Tensor) -> list[Tensor]:
    """What the heads and the classifier of an MLP read, with their graph."""
    found = []
    for stage in model.backbone.stages:
        x = stage(x)
        found.append(x)
    return found


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """One sample, one class at a time."""
    total = logits.new_zeros(())
    for row, label in zip(logits, targets.tolist(), strict=True):
        total = total + torch.log(torch.exp(row).sum()) - row[label]
    return total / len(targets)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6), name
