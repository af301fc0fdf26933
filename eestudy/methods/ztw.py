r"""Zero Time Waste (Wołczyk et al. 2021): heads that read the exit before, and ensembles of all exits so far.

*Cascade*: the last layer of head :math:`k` also reads the layer-normed, detached logits of head :math:`k-1`
(`head: cascading-token` and the like, which this method sets). *Ensemble*: exit :math:`k` answers with the heads'
probabilities :math:`p_1 \ldots p_k`, weighed:

.. math::

    q_k(c) \propto b_{k,c} \prod_{j \leq k} p_j(c)^{w_{kj}} \quad \text{(geometric)}, \qquad
    q_k(c) \propto b_{k,c} \sum_{j \leq k} w_{kj}\, p_j(c) \quad \text{(arithmetic)},

with learned :math:`w_{kj} > 0` and :math:`b_{k,c} > 0` for every exit, kept as their logarithms and started at
:math:`1/k` and 1. The last exit is the backbone's own classifier, alone.

Ours: the authors train the heads first and the ensembles after them. Here both learn at once, in every phase that
trains heads, from the cross-entropy of :math:`q_k`; no gradient reaches the heads before :math:`k` through it.

.. code-block:: yaml

    architecture: vit1d
    dataset: mnist1d
    strategy: disjoint
    method: ztw
    method_args: {ensemble: geometric}
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import RunConfig
from eestudy.methods import Args, Argument, Method, classes_only
from eestudy.models import MultiExit
from eestudy.models.heads import Head, WrappedHead, heads_for
from eestudy.training.phases import Phase


class EnsembleHead(WrappedHead):
    """Exit k: its head's logits and those of the heads before -> logits (B, C) of the ensemble.

    It hands on the heads' logits so far, (B, k, C).
    """

    def __init__(self, base: Head, number: int, num_classes: int, geometric: bool) -> None:
        """number: k, from 1."""
        super().__init__(base)
        self.geometric = geometric
        self.log_weights = nn.Parameter(torch.full((number,), -math.log(number)))
        self.log_bias = nn.Parameter(torch.zeros(num_classes))

    def answer(self, reduced: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        own = self.base.read(reduced, None if previous is None else previous[:, -1]).unsqueeze(1)
        logits = own if previous is None else torch.cat([previous.detach(), own], 1)
        return self.ensemble(logits), logits

    def ensemble(self, logits: Tensor) -> Tensor:
        """Logits of the heads, (B, k, C) -> logits of the ensemble, (B, C)."""
        log_p, log_weights = F.log_softmax(logits.float(), 2), self.log_weights[:, None]
        joined = (log_weights.exp() * log_p).sum(1) if self.geometric else (log_weights + log_p).logsumexp(1)
        return joined + self.log_bias


def ensembled(network: MultiExit, config: RunConfig, args: Args, phases: Sequence[Phase]) -> None:
    """Every head answers for the ensemble of the heads up to it."""
    for number, stage in enumerate(network.exit_stages, 1):
        network.heads[str(stage)] = EnsembleHead(
            network.head(stage), number, network.num_classes, args["ensemble"] == "geometric"
        )


def cascading(kind: str) -> str:
    """The cascading head for features of a kind."""
    return next(name for name in heads_for(kind) if name.startswith("cascading-"))


METHOD = Method(
    "Zero Time Waste",
    head=cascading,
    arguments={"ensemble": Argument("geometric", choices=("geometric", "arithmetic"))},
    change=ensembled,
    refuse=classes_only,
)
