"""One gradient from the exits' gradients, where they conflict: name -> a share for each, from their inner products.

Both methods answer with a linear combination of the K gradients: all they need is the K x K matrix of inner products.
B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from eestudy.config import named_seed
from eestudy.models import MultiExit
from eestudy.registry import COMBINATIONS
from eestudy.training.execution import Execution
from eestudy.training.phases import Phase

Gradients = list[Tensor | None]
STEPS, GAP = 2000, 1e-9  # of the search for the smallest combination


def pcgrad(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient surgery (Yu et al. 2020, PCGrad): the sum of the gradients, each without what opposes another.

    For each gradient i, over the others j in random order: where <g, g_j> < 0, g loses its part along g_j. g begins as
    g_i, the g_j stay as they are. gram: (K, K) inner products; returns the factor (K,) of each gradient in the sum.
    """
    count = len(gram)
    factors = torch.eye(count, dtype=gram.dtype)  # row i: g as a combination of the gradients
    for i in range(count):
        for j in torch.randperm(count, generator=generator).tolist():
            inner = factors[i] @ gram[j]
            if j != i and inner < 0:
                factors[i, j] -= inner / gram[j, j]
    return factors.sum(0)


def min_norm(gram: Tensor, generator: torch.Generator) -> Tensor:
    """Multiple-gradient descent (Désidéri 2012; Sener and Koltun 2018, MGDA): the smallest convex combination.

    argmin a' G a over a >= 0, sum a = 1; it descends for every exit at once, or is 0. By pairwise Frank-Wolfe steps
    with exact line search. The factors are K a: equal shares are the plain sum, as with the other combinations.
    """
    matrix, count = gram.numpy(), len(gram)
    shares = np.full(count, 1 / count)
    tolerance = GAP * float(np.trace(matrix))
    for _ in range(STEPS):
        slope = matrix @ shares
        held = np.flatnonzero(shares > 0)
        best, worst = int(slope.argmin()), int(held[slope[held].argmax()])
        if slope[worst] - slope[best] <= tolerance:
            break
        bend = matrix[best, best] - 2 * matrix[best, worst] + matrix[worst, worst]
        step = shares[worst] if bend <= 0 else min(shares[worst], (slope[worst] - slope[best]) / bend)
        shares[best] += step
        shares[worst] -= step
    return torch.from_numpy(count * shares)


def combine(
    model: MultiExit, outputs: Sequence[Tensor], upstream: Tensor | None, phase: Phase,
    seeds: tuple[object, ...], execution: Execution,
) -> None:  # fmt: skip
    """Sets the gradients of what the phase trains from each exit's own.

    The parameters of the backbone's stages, which exits share, get the combination that the phase names; all others the
    sum, as always (a head has one exit's gradient). outputs: logits of each exit, with their graph; upstream: (K, B, C)
    gradient of the loss with respect to them.
    """
    assert upstream is not None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shared = {id(parameter) for parameter in model.backbone.stages.parameters()}
    own = exit_gradients(outputs, upstream, trained)
    if execution.processes > 1:  # each has a part of the batch
        own = [[None if g is None else execution.summed(g) / execution.processes for g in each] for each in own]
    common = [place for place, parameter in enumerate(trained) if id(parameter) in shared]
    gram = gram_matrix([[each[place] for place in common] for each in own])
    generator = torch.Generator().manual_seed(named_seed(*seeds))
    shares = COMBINATIONS[phase.settings.gradient_combination](gram, generator).tolist()
    for place, parameter in enumerate(trained):
        factors = shares if id(parameter) in shared else [1.0] * len(own)
        parts = [factor * each[place] for factor, each in zip(factors, own) if each[place] is not None]
        parameter.grad = torch.stack(parts).sum(0) if parts else None


def exit_gradients(
    outputs: Sequence[Tensor], upstream: Sequence[Tensor] | Tensor, trained: Sequence[nn.Parameter]
) -> list[Gradients]:
    """For each exit, the gradients of `trained` that its part of `upstream` gives; None where it does not reach."""
    return [
        list(torch.autograd.grad(logits, trained, above, retain_graph=place + 1 < len(outputs), allow_unused=True))
        for place, (logits, above) in enumerate(zip(outputs, upstream, strict=True))
    ]


def gram_matrix(gradients: Sequence[Gradients]) -> Tensor:
    """Inner products of the exits' gradients, (K, K) float64, on the CPU."""
    gram = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for a, left in enumerate(gradients):
        for b, right in enumerate(gradients[: a + 1]):
            pairs = [(x, y) for x, y in zip(left, right) if x is not None and y is not None]
            if pairs:
                parts = torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in pairs])
                gram[a, b] = gram[b, a] = parts.double().sum().cpu()
    return gram
