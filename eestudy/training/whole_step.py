"""A training step as one compiled graph: forward, losses, backward, clip and AdamW, on one flat tensor of weights.

Small networks spend most of an eager step on calls: of Python, autograd and the optimizer, one a tensor and operation.
Compiling the network alone leaves most of these, and adds guards on every parameter. Here the weights a phase trains
are views of one tensor, so the graph has a handful of inputs; seeds of one cell share the graph, as nothing in it
belongs to a seed. Bits differ from those of the eager step, but not with the cache or with what ran before.

K exits, B batch, C classes, N weights that the phase trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from eestudy.training.batches import Inputs
from eestudy.training.freezing import PhaseNetwork
from eestudy.training.losses import exit_hits, exit_losses
from eestudy.training.objective import Objective

BETAS, EPS = (0.9, 0.999), 1e-8  # torch's own of AdamW
Graph = Callable[..., None]


class Flat:
    """Makes `parameters` views of one tensor, those with weight decay (more than one dimension) first.

    weights, means, squares: (N,), the last two AdamW's.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = [*(p for p in parameters if p.ndim > 1), *(p for p in parameters if p.ndim <= 1)]
        self.decayed = sum(p.numel() for p in parameters if p.ndim > 1)
        self.weights = torch.empty(sum(p.numel() for p in parameters))
        self.means, self.squares = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        with torch.no_grad():
            for parameter, view in zip(self.parameters, self.views(self.weights), strict=True):
                view.copy_(parameter)
                parameter.data = view  # same strides, so channels-last stays so

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


class WholeStep:
    """`step` trains `flat` by one batch. graph: another seed's of the same cell and phase (`WholeStep.graph`).

    sums: (2, K), losses and hits are added to it. bad: is set to the number of the first step that is not finite.
    For AdamW and a fixed objective, in float32, classification, one process.
    """

    def __init__(
        self, network: PhaseNetwork, flat: Flat, objective: Objective, sums: Tensor, bad: Tensor,
        graph: Graph | None = None,
    ) -> None:  # fmt: skip
        self.network, self.flat, self.objective = network, flat, objective
        self.sums, self.bad, self.graph = sums, bad, graph
        named = dict(network.named_parameters())
        trained = {id(parameter): place for place, parameter in enumerate(flat.parameters)}
        self.trained = {name: trained[id(each)] for name, each in named.items() if id(each) in trained}
        rest = {name: each.detach() for name, each in named.items() if name not in self.trained}
        self.rest = rest | dict(network.named_buffers())

    def step(self, x: Inputs, targets: Tensor, lr: float, number: int) -> None:
        """number: of the step, from 0."""
        taken = number + 1
        scalars = torch.tensor([lr, 1 - BETAS[0] ** taken, (1 - BETAS[1] ** taken) ** 0.5, number])
        flat, inputs = self.flat, list(x) if isinstance(x, list) else [x]
        changed = [flat.weights, flat.means, flat.squares, self.sums, self.bad]
        given = [*changed, scalars, targets, *inputs, *self.rest.values()]
        if self.graph is None:
            # Tracing runs the step: on copies, as it changes what it is given.
            traced = make_fx(self._traced(isinstance(x, list), len(inputs)))(*(each.clone() for each in given))
            self.graph = torch.compile(traced, dynamic=False, fullgraph=True)
        with torch.no_grad():
            self.graph(*given)

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
