"""A training step as one compiled graph: forward, losses, backward, clip and AdamW, on one flat tensor of weights.

Small networks spend most of an eager step on calls: of Python, autograd and the optimizer, one a tensor and operation.
Compiling the network alone leaves most of these, and adds guards on every parameter. Here the weights a phase trains
are views of one tensor, so the graph has a handful of inputs; seeds of one cell share the graph, as nothing in it
belongs to a seed. Bits differ from those of the eager step, but not with the cache or with what ran before.

K exits, B batch, C classes, N weights that the phase trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from eestudy.data import DataSet
from eestudy.models import MultiExit
from eestudy.training.batches import Inputs, chosen_batches
from eestudy.training.eager_step import Step, learning_rate
from eestudy.training.execution import Execution
from eestudy.training.losses import exit_hits, exit_losses
from eestudy.training.objective import Objective
from eestudy.training.phase_network import PhaseNetwork, set_trainable
from eestudy.training.phases import Phase, Settings, differing
from eestudy.training.resume import State

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's own of AdamW
Graph = Callable[..., None]

# What may differ from the default in a phase that fits: all that is in the graph, or that the loop does around it.
PHASE = {"name", "trains", "exits", "share", "stages", "settings"}
SETTINGS = {
    "epochs", "patience", "batch_size", "lr", "weight_decay", "schedule", "warmup", "clip", "augmentation",
    "augmentation_args", "checkpoints", "weighting", "weights", "gradient_scaling", "batchnorm",
}  # fmt: skip
FIXED_WEIGHTINGS = ("equal", "depth-linear", "custom")

# Operations that no graph repeats as they are.
REFUSED = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}

# Compiled steps of this process, by all that is in them: seeds of one cell trained one after the other share them.
GRAPHS: dict[Hashable, Graph] = {}


def fits(model: MultiExit, phase: Phase, data: DataSet, execution: Execution) -> bool:
    """Whether the phase can be trained by WholeStep. The model stays as it is.

    Not if the step needs what is not in the graph, if a weight gets no gradient, which AdamW would skip, or if the
    network draws random numbers.
    """
    settings = phase.settings
    return (
        execution.whole_steps
        and data.task == "classification"
        and differing(phase).keys() <= PHASE
        and differing(settings).keys() <= SETTINGS
        and settings.optimizer == Settings.optimizer == "adamw"
        and settings.precision == Settings.precision == "float32"
        and settings.weighting in FIXED_WEIGHTINGS
        and _traceable(model, phase, data, execution)
    )


def _traceable(model: MultiExit, phase: Phase, data: DataSet, execution: Execution) -> bool:
    """Tries the phase's gradient on a copy of the network and two samples."""
    model = copy.deepcopy(model)
    trained = set_trainable(model, phase)
    x, _ = next(chosen_batches(data.train, [torch.arange(2)], execution, model.memory_format))
    with torch.random.fork_rng(devices=[]), _Refused() as refused:
        try:
            torch.autograd.grad(PhaseNetwork(model, phase)(x).sum(), trained)
        except RuntimeError:  # it does not reach a weight
            return False
    return not refused.seen


class _Refused(TorchDispatchMode):
    """Sees whether random numbers are drawn, or values looked at to decide what to compute."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or not REFUSED.isdisjoint(func.tags)
        return func(*args, **(kwargs or {}))


class Flat:
    """Makes the weights of an AdamW optimizer and what it remembers of them views of three tensors.

    weights, means, squares: (N,); the first `decayed` have weight decay. taken: the optimizer's count of steps, one
    tensor for all. The optimizer's `state_dict` is that of an eager step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        groups = [group["params"] for group in optimizer.param_groups]  # with weight decay, without
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group]
        self.decayed = sum(parameter.numel() for parameter in groups[0])
        self.weights = torch.empty(sum(parameter.numel() for parameter in self.parameters))
        self.means, self.squares = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.taken = torch.zeros(())
        parts = zip(self.parameters, *map(self.views, (self.weights, self.means, self.squares)), strict=True)
        for parameter, weight, mean, square in parts:
            weight.copy_(parameter.detach())
            parameter.data = weight  # same strides, so channels-last stays so
            before, now = optimizer.state[parameter], {"step": self.taken, "exp_avg": mean, "exp_avg_sq": square}
            for slot, value in before.items():
                now[slot].copy_(value)
            optimizer.state[parameter] = now

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each parameter's part of a tensor (N,), in its shape and layout."""
        views, at = [], 0
        for parameter in self.parameters:
            views.append(flat.as_strided(parameter.shape, parameter.stride(), at))
            at += parameter.numel()
        return views

    def joined(self, gradients: Sequence[Tensor]) -> Tensor:
        """The reverse of `views`: a gradient has its parameter's shape, but may have another layout."""
        parts = []
        for gradient, parameter in zip(gradients, self.parameters, strict=True):
            # From the slowest dimension to the fastest, as the parameter lies in memory.
            order = sorted(range(parameter.ndim), key=lambda dim: parameter.stride()[dim], reverse=True)
            parts.append(gradient.permute(order).reshape(-1))
        return torch.cat(parts)


class WholeStep(Step):
    """The step for phases that `fits`: the weights it trains are `flat` until its end."""

    network: PhaseNetwork

    def __init__(
        self, network: PhaseNetwork, state: State, objective: Objective, bad: Tensor, execution: Execution
    ) -> None:
        super().__init__(network, state, objective, bad, execution)
        self.flat = Flat(state.optimizer)
        self.graph: Graph | None = None
        named = dict(network.named_parameters())
        trained = {id(parameter): place for place, parameter in enumerate(self.flat.parameters)}
        self.trained = {name: trained[id(each)] for name, each in named.items() if id(each) in trained}
        rest = {name: each.detach() for name, each in named.items() if name not in self.trained}
        self.rest = rest | dict(network.named_buffers())

    def step(self, x: Inputs, targets: Tensor, done: float) -> None:
        state, flat, taken = self.state, self.flat, self.state.progress.step + 1
        lr, correction, root = learning_rate(state.phase, done), 1 - BETAS[0] ** taken, (1 - BETAS[1] ** taken) ** 0.5
        scalars = torch.tensor([lr, correction, root, taken - 1])
        inputs = list(x) if isinstance(x, list) else [x]
        changed = [flat.weights, flat.means, flat.squares, state.sums, self.bad]
        given = [*changed, scalars, targets, *inputs, *self.rest.values()]
        if self.graph is None:
            # Tracing runs the step: on copies, as it changes what it is given.
            traced = make_fx(self._traced(isinstance(x, list), len(inputs)))(*(each.clone() for each in given))
            self.graph = _compiled(traced, given)
        # Another shape than the first would be compiled anew, and have other bits after a resume.
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
            self.graph(*given)
        flat.taken.fill_(taken)

    def end(self) -> None:
        for parameter in self.flat.parameters:
            parameter.data = parameter.detach().clone()

    def _traced(self, several: bool, count: int) -> Graph:
        network, flat, objective, phase = self.network, self.flat, self.objective, self.network.phase

        def step(
            weights: Tensor, means: Tensor, squares: Tensor, sums: Tensor, bad: Tensor, scalars: Tensor,
            targets: Tensor, *others: Tensor,
        ) -> None:  # fmt: skip
            lr, correction, root, number = scalars.unbind()
            leaves = [view.detach().requires_grad_() for view in flat.views(weights)]
            tensors = {name: leaves[place] for name, place in self.trained.items()}
            tensors |= dict(zip(self.rest, others[count:], strict=True))
            x: Inputs = list(others[:count]) if several else others[0]
            logits = torch.func.functional_call(network, tensors, (x,))
            losses = exit_losses(logits, targets)
            loss = objective(losses, logits, targets, x, 0.0)
            gradient = flat.joined(torch.autograd.grad(loss, leaves))
            with torch.no_grad():
                norm = torch.linalg.vector_norm(gradient)
                if phase.settings.clip:
                    gradient = gradient * torch.clamp(phase.settings.clip / (norm + 1e-6), max=1.0)
                means.lerp_(gradient, 1 - BETAS[0])
                squares.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                weights[: flat.decayed].mul_(1 - lr * phase.settings.weight_decay)
                weights.sub_(lr * (means / correction) / (squares.sqrt() / root + EPS))
                finite = torch.isfinite(norm + loss)
                bad.copy_(torch.where(finite, bad, torch.minimum(bad, number)))
                sums[0] += losses.detach()
                sums[1] += exit_hits(logits.detach(), targets)

        return step


def _compiled(traced: GraphModule, given: Sequence[Tensor]) -> Graph:
    """The step in machine code, that of another seed if it is the same: by its text, the layout of what it is given,
    and the values of tensors that are in the graph itself, such as fixed weights of exits (one that belongs to a seed
    would be seen).
    """
    constants = [getattr(traced, str(node.target)) for node in traced.graph.nodes if node.op == "get_attr"]
    key = (
        traced.code,
        tuple((each.dtype, each.shape, each.stride()) for each in given),
        tuple((each.dtype, each.shape, each.detach().numpy().tobytes()) for each in constants),
    )
    if key not in GRAPHS:
        GRAPHS[key] = torch.compile(traced, dynamic=False, fullgraph=True)
    return GRAPHS[key]
