r"""Global past-future early exit (Liao et al. 2021): an exit sees the states before it and guesses those behind it.

Head :math:`k` makes a state :math:`s_k = \mathrm{ReLU}(h_k(\cdot))` of `width` numbers from what it reads, and guesses
the states of the heads behind it, :math:`\hat s_{kj} = \mathrm{ReLU}(M_{kj} s_k + m_{kj})` for :math:`j > k`. Its
logits are those of the past, its own state among it, and of the imitated future, mixed by a gate:

.. math:: z_k = g_k \odot P_k [s_1 \ldots s_k] + (1 - g_k) \odot Q_k [\hat s_{k,k+1} \ldots], \qquad
    g_k = \sigma(G_k [s_1 \ldots s_k]).

The loss weighs exits by depth and adds how far the imitated states are from the real ones, which are detached:

.. math:: L = \frac{\sum_k k\, L_k}{\sum_k k} + \lambda \, \frac{1}{K'} \sum_k \frac{1}{|\{j > k\}|}
    \sum_{j > k} \bigl(1 - \cos(\hat s_{kj}, \mathrm{sg}(s_j))\bigr),

:math:`K'` heads that have others behind them; :math:`\lambda` is `imitation`. Past states are detached as well.

Ours, where the paper and its public code differ or are silent: concatenated states and one linear layer, each exit with
layers of its own (so that an exit that is frozen stays as it is); the last exit is the backbone's own classifier, whose
state nobody imitates; in a phase of a few exits, only their states are imitated.

.. code-block:: yaml

    architecture: vit1d
    dataset: mnist1d
    strategy: mixed
    method: gpf
    method_args: {width: 64, imitation: 1.0}
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import RunConfig, named_seed
from eestudy.methods import Args, Argument, Method
from eestudy.models import MultiExit
from eestudy.models.heads import CASCADING, Head, WrappedHead, build_head
from eestudy.training.batches import Inputs
from eestudy.training.loop import Hooks
from eestudy.training.objective import Objective
from eestudy.training.phases import Phase


class PastFutureHead(WrappedHead):
    """Exit k of `heads` internal ones: its state (B, d), those before and guesses of those behind -> logits (B, C).

    It hands on the states so far, (B, k, d). state_and_guesses: of the last forward pass in training, its own state and
    its guesses (B, heads - k, d), if it guesses; the loss, `Imitation`, reads them and takes them away.
    """

    def __init__(self, base: Head, number: int, heads: int, width: int, num_classes: int) -> None:
        """base: features -> d numbers; number: k, from 1."""
        super().__init__(base)
        self.number = number
        self.state_and_guesses: list[Tensor] | None = None
        self.imitators = nn.ModuleList(nn.Linear(width, width) for _ in range(heads - number))
        self.past = nn.Linear(number * width, num_classes)
        if number < heads:
            self.gate = nn.Linear(number * width, num_classes)
            self.future = nn.Linear((heads - number) * width, num_classes)

    def answer(self, reduced: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        state = F.relu(self.base.read(reduced))
        own = state.unsqueeze(1)
        states = own if previous is None else torch.cat([previous.detach(), own], 1)
        logits = self.past(states.flatten(1))
        left = [state]
        if len(self.imitators):
            guesses = torch.stack([F.relu(imitator(state)) for imitator in self.imitators], 1)
            gate = torch.sigmoid(self.gate(states.flatten(1)))
            logits = gate * logits + (1 - gate) * self.future(guesses.flatten(1))
            left.append(guesses)
        if self.training and torch.is_grad_enabled():
            self.state_and_guesses = left
        return logits, states


class Imitation(Objective):
    """The weighted loss, and `share` times the distance of the imitated states from the real ones."""

    def __init__(self, model: MultiExit, phase: Phase, *others: Any, share: float) -> None:
        super().__init__(model, phase, *others)
        numbers = [number for number in phase.exit_numbers(model.num_exits) if number < model.num_exits]
        self.heads = [model.head(model.exit_stages[number - 1]) for number in numbers]
        self.share = share

    def __call__(self, losses: Tensor, logits: Tensor, targets: Tensor, x: Inputs, done: float) -> Tensor:
        loss = super().__call__(losses, logits, targets, x, done)
        distance = imitation_distance(self.heads)
        return loss if distance is None else loss + self.share * distance


def imitation_distance(heads: Sequence[nn.Module]) -> Tensor | None:
    """Mean over heads of the mean 1 - cos of guesses and states behind, which it takes away; None: nobody guesses."""
    states: dict[int, Tensor] = {}
    guesses: dict[int, Tensor] = {}
    for head in heads:
        assert isinstance(head, PastFutureHead)
        assert head.state_and_guesses is not None
        states[head.number], *rest = head.state_and_guesses
        if rest:
            (guesses[head.number],) = rest
        head.state_and_guesses = None
    distances = []
    for number, guess in guesses.items():
        behind = [other for other in states if other > number]
        if behind:
            real = torch.stack([states[other].detach() for other in behind], 1)
            mine = guess[:, [other - number - 1 for other in behind]]
            distances.append((1 - F.cosine_similarity(mine.float(), real.float(), dim=2)).mean())
    return torch.stack(distances).mean() if distances else None


def past_future(network: MultiExit, config: RunConfig, args: Args, phases: Sequence[Phase]) -> None:
    """Heads of its own in the place of the plain ones, which give states in the place of logits."""
    backbone, count = network.backbone, len(network.exit_stages)
    shapes = backbone.feature_shapes()
    name = (backbone.default_head or "auto") if config.head == "auto" else config.head
    for number, stage in enumerate(network.exit_stages, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(config.seed, "head", stage))
            base = build_head(
                name, backbone.kind, shapes[stage - 1], args["width"], config.head_layers, config.head_args
            )
            network.heads[str(stage)] = PastFutureHead(base, number, count, args["width"], network.num_classes)


def refused(config: RunConfig, network: MultiExit) -> str | None:
    if config.architecture == "own":
        return "makes its own heads, and a network of your own has them already"
    if config.head in CASCADING:
        return f"passes states from head to head, and head {config.head} reads logits"
    return None


METHOD = Method(
    "Global past-future early exit",
    exit_rule="entropy",
    settings={"weighting": "depth-linear"},
    arguments={"width": Argument(64, 1), "imitation": Argument(1.0)},
    change=past_future,
    hooks=lambda args: Hooks(objective=partial(Imitation, share=args["imitation"])),
    refuse=refused,
)
