r"""Boosted dynamic networks (Yu et al. 2023, BoostNet, arXiv 2211.16726): every exit adds to those before it.

Exit :math:`k` answers with what its head gives, :math:`f_k`, on top of the answer before, which it takes as given and
weakens by a factor :math:`w`:

.. math:: F_k = f_k + w \, \mathrm{sg}(F_{k-1}), \qquad F_1 = f_1,

where no gradient passes :math:`\mathrm{sg}`. The loss is the mean of the cross-entropies of :math:`F_1 \ldots F_K`, so
deeper exits work on what is still wrong. :math:`w` is `reweight`, 0.5. The gradients that exits send into the backbone
are scaled (`gradient_scaling: boosting`, :math:`1/(K-i)` for exit :math:`i` counted from 0).

Ours: the last exit adds to the heads' answers only where a phase trains it together with them or after them. Under
`disjoint` it was trained alone and answers alone. In the odd steps of `alternating` it is trained alone as well.

.. code-block:: yaml

    architecture: msdnet
    dataset: cifar100
    strategy: joint
    method: boosted
    method_args: {reweight: 0.5}
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from eestudy.config import RunConfig
from eestudy.methods import Args, Argument, Method
from eestudy.models import MultiExit
from eestudy.models.heads import Head, WrappedHead
from eestudy.training.phases import Phase


class BoostedHead(WrappedHead):
    """A head whose logits (B, C) come on top of the answer of the exit before, (B, C)."""

    def __init__(self, base: Head, reweight: float) -> None:
        super().__init__(base)
        self.reweight = reweight

    def read(self, reduced: Tensor, previous: Tensor | None = None) -> Tensor:
        logits = self.base.read(reduced, previous)
        return logits if previous is None else logits + self.reweight * previous.detach()


def boosted(network: MultiExit, config: RunConfig, args: Args, phases: Sequence[Phase]) -> None:
    """Every head on top of the one before; the last exit too, where a phase trains it so."""
    for stage in network.exit_stages:
        network.heads[str(stage)] = BoostedHead(network.head(stage), args["reweight"])
    last = network.num_exits
    if any(phase.uses_heads and last in phase.exit_numbers(last) for phase in phases):
        network.last_exit_boost = args["reweight"]


METHOD = Method(
    "Boosted dynamic network",
    settings={"gradient_scaling": "boosting"},
    arguments={"reweight": Argument(0.5, 0.0, 1.0)},
    change=boosted,
)
