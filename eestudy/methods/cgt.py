r"""Confidence-gated training (Mokssit et al. 2025, arXiv 2509.17885): deeper exits learn what earlier ones fail at.

Sample :math:`i` weighs at exit :math:`k` what the exits before leave over, a constant for the gradient:

.. math:: \lambda_k^{(i)} = \prod_{j<k} \bigl(1 - g_j^{(i)}\bigr), \qquad
    L = \frac{1}{N} \sum_i \sum_k
    \frac{\lambda_k^{(i)} + \epsilon}{\sum_j (\lambda_j^{(i)} + \epsilon)} \, \ell_k^{(i)},

.. math:: g_j^{(i)} = p_j(y_i \mid x_i) \quad \text{(soft)}, \qquad g_j^{(i)} =
    1 \text{ if } \arg\max_c p_j = y_i \text{ and } \max_c p_j \geq \tau, \text{ else } 0 \quad \text{(hard)}.

`gate` is soft or hard; :math:`\tau` is `threshold`. From the paper: the loss with weights by sample and exit, its
binary and its residual gate. From the authors' public code: the product over all exits before, the scaling of a
sample's weights to sum 1, :math:`\epsilon = 0.001`. Ours: no weights of the exits that change over the epochs, which
that code also has (`weighting` multiplies, if given); shares of classes, as mixup gives them, count for :math:`y_i`.

.. code-block:: yaml

    architecture: resnet-tiny
    dataset: digits
    strategy: joint
    method: cgt
    method_args: {gate: soft}
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from eestudy.methods import Argument, Method, classes_only
from eestudy.models import MultiExit
from eestudy.training.batches import Inputs
from eestudy.training.loop import Hooks
from eestudy.training.losses import sample_losses
from eestudy.training.objective import Objective
from eestudy.training.phases import Phase

LEAK = 1e-3


class Gated(Objective):
    """Every sample's loss weighs at an exit what the phase's exits before it leave over."""

    def __init__(self, model: MultiExit, phase: Phase, *others: Any, gate: str, threshold: float) -> None:
        super().__init__(model, phase, *others)
        self.gate, self.threshold = gate, threshold

    def values(self, losses: Tensor, logits: Tensor, targets: Tensor, x: Inputs) -> Tensor:
        known = logits[: len(losses)]  # behind them a frozen teacher's
        weights = gated_weights(known.detach(), targets, self.gate, self.threshold)
        # Times K: the weighting, 1/K each if it is none, belongs to the sum over exits here.
        gated = len(losses) * (weights * sample_losses(known, targets, self.phase.settings)).mean(1)
        return super().values(gated, logits, targets, x)


def gated_weights(logits: Tensor, targets: Tensor, gate: str, threshold: float) -> Tensor:
    """Weights (K, B) of each sample at each exit, of sum 1 over exits. logits: (K, B, C)."""
    p = logits.float().softmax(2)
    if gate == "soft":
        passed = (
            (p * targets).sum(2) if targets.ndim == 2 else p.gather(2, targets.expand(len(p), -1)[..., None])[..., 0]
        )
    else:
        labels = targets.argmax(1) if targets.ndim == 2 else targets
        highest, chosen = p.max(2)
        passed = ((chosen == labels) & (highest >= threshold)).float()
    left = torch.cat([torch.ones_like(passed[:1]), (1 - passed[:-1]).cumprod(0)]) + LEAK
    return left / left.sum(0)


METHOD = Method(
    "Confidence-gated training",
    arguments={"gate": Argument("soft", choices=("soft", "hard")), "threshold": Argument(0.9, 0.0, 1.0)},
    hooks=lambda args: Hooks(objective=partial(Gated, gate=args["gate"], threshold=args["threshold"])),
    refuse=classes_only,
)
