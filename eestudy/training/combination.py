"""One gradient from the exits' gradients, where they conflict: name -> a share for each, from their inner products.

Both methods answer with a linear combination of the K gradients: all they need is the K x K matrix of inner products.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
