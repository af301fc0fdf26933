r"""Learning to weight samples (Han et al. 2022, L2W): a small network weighs every sample at every exit.

It reads the :math:`K` losses of a sample and gives :math:`K` weights around 1,

.. math:: w = 1 + \epsilon\, \delta, \qquad
    \delta = \tanh(\mathrm{MLP}(\ell)) \text{ less its mean over batch and exits},

and the loss is the mean of :math:`w_{ik} \ell_{ik}`. Before a step it learns from one that is only imagined:

1. on the first half of the batch, the optimizer's own next step :math:`\theta'(w)` under the weighted loss;
2. on the second half, the loss of :math:`\theta'` as it would be used: exit :math:`k` is given a share of the samples
   proportional to :math:`q^k`, :math:`q = p / 20`, those it is surest of among the ones no earlier exit has; the sum
   over exits of the mean loss of their own samples;
3. its gradient reaches the weights through :math:`\theta'(w)`, and Adam (rate `meta_lr`, falling to 0 by a cosine)
   moves the small network. Then the real step is made with the new weights.

Every sample is used once, at one exit. One hidden layer of 500 units, `epsilon` 0.8, `p` 15. `every`: only before
every so many steps (the authors: 1 for CIFAR, 100 for ImageNet).

Ours: the imagined step is that of the run's optimizer, AdamW too, with its state, its weight decay and its clipping
(whose factor is taken as given); the real step is one on the whole batch, where the authors make one on each half;
:math:`\delta` is scaled where taking off the mean has carried it out of [-1, 1]. A penalty (`sequential-ewc`) is no
part of the imagined step.

.. code-block:: yaml

    architecture: resnet-tiny
    dataset: digits
    strategy: joint
    method: l2w
    method_args: {p: 15, every: 2}
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from eestudy.config import EestudyError, RunConfig, named_seed
from eestudy.methods import Args, Argument, Method, classes_only
from eestudy.models import MultiExit
from eestudy.models.backbone import flop_counter
from eestudy.training.batches import Inputs
from eestudy.training.eager_step import build_optimizer, learning_rate
from eestudy.training.execution import Execution
from eestudy.training.loop import Hooks
from eestudy.training.losses import PLAIN, sample_losses
from eestudy.training.objective import Objective
from eestudy.training.phase_network import PhaseNetwork, set_trainable
from eestudy.training.phases import Phase, Settings
from eestudy.training.resume import State

HIDDEN = 500


class Weigher(nn.Sequential):
    """Losses (B, K) -> weights (B, K) in [1 - epsilon, 1 + epsilon] whose mean is 1."""

    def __init__(self, exits: int, epsilon: float) -> None:
        super().__init__(nn.Linear(exits, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, exits), nn.Tanh())
        self.epsilon = epsilon

    def forward(self, losses: Tensor) -> Tensor:
        delta = super().forward(losses)
        delta = delta - delta.mean()
        return 1 + self.epsilon * delta / delta.detach().abs().amax().clamp(min=1)


class WeighedSamples(Objective):
    """The mean of the samples' losses, weighed by a network that `before_step` trains."""

    def __init__(self, model: MultiExit, phase: Phase, *others: Any, args: Args) -> None:
        super().__init__(model, phase, *others)
        self.args = args
        *_, execution = others
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(*self.seeds, "weigher"))
            weigher = Weigher(len(phase.exit_numbers(model.num_exits)), args["epsilon"])
        self.weigher = weigher.to(execution.device)
        self.optimizer = torch.optim.Adam(self.weigher.parameters(), lr=args["meta_lr"])

    def values(self, losses: Tensor, logits: Tensor, targets: Tensor, x: Inputs) -> Tensor:
        each = sample_losses(logits, targets, self.phase.settings)
        with torch.no_grad():
            weights = self.weigher(each.T)
        return super().values((weights.T * each).mean(1), logits, targets, x)

    def state(self) -> dict[str, Tensor]:
        found = {f"weigher.{name}": value for name, value in self.weigher.state_dict().items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            found |= {f"adam.{number}.{slot}": value for slot, value in slots.items()}
        return {**super().state(), **found}

    def restore(self, state: dict[str, Tensor]) -> None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name in [name for name in state if name.startswith("adam.")]:
            _, number, slot = name.split(".")
            slots.setdefault(int(number), {})[slot] = state.pop(name)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        own = [name for name in state if name.startswith("weigher.")]
        self.weigher.load_state_dict({name.removeprefix("weigher."): state.pop(name) for name in own})
        super().restore(state)


def before_step(
    network: nn.Module, state: State, objective: WeighedSamples, x: Inputs, targets: Tensor, done: float,
    execution: Execution,
) -> None:  # fmt: skip
    """Moves the weigher by the gradient of an imagined step; see `loop.Hooks.before`."""
    if execution.processes > 1:
        raise EestudyError("method: l2w trains in one process; its imagined step needs the whole batch")
    phase, step = state.phase, state.progress.step
    turn = phase.turns[step % len(phase.turns)] if phase.turns else None
    if turn == "last" or (step // max(1, len(phase.turns))) % objective.args["every"]:
        return
    for group in objective.optimizer.param_groups:
        group["lr"] = objective.args["meta_lr"] * (1 + math.cos(math.pi * done)) / 2
    # The other kernels have no second derivative.
    with execution.precision(phase.settings.precision), sdpa_kernel(SDPBackend.MATH):
        loss = meta_loss(state.model, phase, state.optimizer, objective, x, targets, learning_rate(phase, done))
    objective.optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=list(objective.weigher.parameters()))
    objective.optimizer.step()


def meta_loss(
    model: MultiExit, phase: Phase, optimizer: torch.optim.Optimizer, objective: WeighedSamples, x: Inputs,
    targets: Tensor, lr: float,
) -> Tensor:  # fmt: skip
    """The loss of the second half of a batch after an imagined step on the first; differentiable by the weigher."""
    module, half = PhaseNetwork(model, phase), len(targets) // 2
    first = x[:half] if isinstance(x, Tensor) else [each[:half] for each in x]
    second = x[half:] if isinstance(x, Tensor) else [each[half:] for each in x]
    turn = "all" if phase.turns else None
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    start = {name: p.detach().requires_grad_() for name, p in trained.items()}

    losses = sample_losses(_called(module, start, first, turn), targets[:half], phase.settings)
    with torch.autocast(targets.device.type, enabled=False):
        weights = objective.weigher(losses.detach().T)
    gradients = torch.autograd.grad(
        (weights.T * losses).mean(), list(start.values()), create_graph=True, allow_unused=True
    )
    moved = looked_ahead(optimizer, trained, start, dict(zip(start, gradients, strict=True)), lr, phase.settings.clip)
    return allotted_loss(_called(module, moved, second, turn), targets[half:], objective.args["p"], phase.settings)


def _called(module: nn.Module, weights: Mapping[str, Tensor], x: Inputs, turn: str | None) -> Tensor:
    """The logits with these weights; buffers, such as BatchNorm's statistics, stay as they are."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module, {**weights, **buffers}, (x,) if turn is None else (x, turn))


def looked_ahead(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], start: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None], lr: float, clip: float | None,
) -> dict[str, Tensor]:  # fmt: skip
    """The weights after the optimizer's next step, differentiable by the gradients; the optimizer stays as it is.

    trained: its parameters by name, which stay where there is no gradient; start: their values without history.
    """
    known = [gradient for gradient in gradients.values() if gradient is not None]
    factor = 1.0
    if clip:
        factor = min(1.0, clip / (float(torch.nn.utils.get_total_norm([g.detach() for g in known])) + 1e-6))
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    rule = _sgd if isinstance(optimizer, torch.optim.SGD) else _adamw
    moved = {}
    for name, parameter in trained.items():
        gradient = gradients[name]
        moved[name] = start[name] if gradient is None else rule(
            start[name], factor * gradient, lr, group_of[id(parameter)], optimizer.state.get(parameter, {})
        )  # fmt: skip
    return moved


def _sgd(weight: Tensor, gradient: Tensor, lr: float, group: dict[str, Any], slots: Mapping[str, Any]) -> Tensor:
    gradient = gradient + group["weight_decay"] * weight
    buffer = slots.get("momentum_buffer")
    return weight - lr * (gradient if buffer is None else group["momentum"] * buffer + gradient)


def _adamw(weight: Tensor, gradient: Tensor, lr: float, group: dict[str, Any], slots: Mapping[str, Any]) -> Tensor:
    beta1, beta2 = group["betas"]
    step = float(slots.get("step", 0)) + 1
    mean = beta1 * slots.get("exp_avg", torch.zeros_like(weight)) + (1 - beta1) * gradient
    square = beta2 * slots.get("exp_avg_sq", torch.zeros_like(weight)) + (1 - beta2) * gradient.square()
    # The root's slope at 0 is infinite: where no gradient ever was, it is taken as 0.
    root = square.clamp(min=1e-30).sqrt() / math.sqrt(1 - beta2**step)
    return weight * (1 - lr * group["weight_decay"]) - lr / (1 - beta1**step) * mean / (root + group["eps"])


def allotted_loss(logits: Tensor, targets: Tensor, p: int, settings: Settings = PLAIN) -> Tensor:
    """Sum over exits of the mean loss of the samples allotted to them. logits: (K, B, C)."""
    losses = sample_losses(logits, targets, settings)
    confidence = logits.detach().float().softmax(2).amax(2)
    places = allotted(confidence, target_shares(len(logits), p))
    return torch.stack([losses[exit, chosen].mean() for exit, chosen in enumerate(places) if len(chosen)]).sum()


def target_shares(exits: int, p: int) -> list[float]:
    """Shares of the samples proportional to (p / 20)^k for exits k = 1, 2, ..."""
    powers = [(p / 20) ** exit for exit in range(1, exits + 1)]
    return [power / sum(powers) for power in powers]


def allotted(confidence: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """For each exit its share of the samples: of those that no exit before has the surest. confidence: (K, B)."""
    exits, samples = confidence.shape
    free = torch.ones(samples, dtype=torch.bool, device=confidence.device)
    found = []
    for exit in range(exits - 1):
        order = confidence[exit].argsort(descending=True, stable=True)
        chosen = order[free[order]][: math.floor(samples * shares[exit])]
        free[chosen] = False
        found.append(chosen)
    return [*found, free.nonzero().squeeze(1)]


def meta_flops(network: MultiExit, phase: Phase, args: Args) -> float:
    """FLOPs of the imagined steps for one sample of the batch, counted on four samples of a copy."""
    model = copy.deepcopy(network).cpu()
    plain = dataclasses.replace(phase, keeps="none", turns=()).having(precision="float32")
    optimizer = build_optimizer(set_trainable(model, plain), plain)
    objective = WeighedSamples(model, plain, None, (0, "flops"), Execution(torch.device("cpu")), args=args)
    x, targets = model.backbone.dry_input(4), torch.zeros(4, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), flop_counter() as counter:
        loss = meta_loss(model, plain, optimizer, objective, x, targets, plain.settings.lr)
        loss.backward(inputs=list(objective.weigher.parameters()))
    turns = phase.turns.count("all") / len(phase.turns) if phase.turns else 1.0
    return counter.get_total_flops() / 4 / args["every"] * turns


def refused(config: RunConfig, network: MultiExit) -> str | None:
    if config.weighting != "equal":
        return f"learns the weights itself; weighting {config.weighting} would weigh twice"
    if config.distillation != "none":
        return f"weighs samples by their losses by the labels; distillation {config.distillation} has another one"
    if config.strategy == "sequential-lwf":
        return "weighs the exits of a sample against each other, and sequential-lwf teaches one by the labels at a time"
    return classes_only(config, network)


METHOD = Method(
    "Learning to weight samples",
    arguments={
        "epsilon": Argument(0.8, 0.0, 1.0),
        "p": Argument(15, 1, 39),
        "meta_lr": Argument(1e-4),
        "every": Argument(1, 1),
    },
    hooks=lambda args: Hooks(objective=partial(WeighedSamples, args=args), before=before_step),
    flops=meta_flops,
    refuse=refused,
)
