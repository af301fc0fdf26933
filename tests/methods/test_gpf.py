"""The global past-future method against its equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.methods.gpf import PastFutureHead, imitation_distance

from .tiny import assert_same, batch, cross_entropy, gradients, plan, shaken, states, step


def distance(mine: Tensor, real: Tensor) -> Tensor:
    """Mean over samples of 1 - cos, one sample at a time."""
    total = mine.new_zeros(())
    for a, b in zip(mine, real, strict=True):
        total = total + 1 - (a * b).sum() / (torch.sqrt((a * a).sum()) * torch.sqrt((b * b).sum()))
    return total / len(mine)


def part(head: PastFutureHead, name: str, values: list[Tensor]) -> Tensor:
    """A linear layer on values side by side."""
    layer = getattr(head, name)
    return (
        sum(value @ weight.T for value, weight in zip(values, layer.weight.split(values[0].shape[1], 1), strict=True))
        + layer.bias
    )


def test_a_step_against_the_equations():
    """Four exits: heads 1, 2 and 3, of which 1 imitates two states, 2 one, 3 none."""
    args = {"width": 5, "imitation": 0.7}
    made = plan("gpf", architecture_args={"width": 8, "depth": 4}, method_args=args)
    model = shaken(made.model)
    loss, logits, found = step(made)

    x, targets = batch()
    *read, last = states(model, x)
    heads: list[Any] = [model.head(stage) for stage in (1, 2, 3)]
    s = [torch.relu(head.base[0](h)) for head, h in zip(heads, read, strict=True)]
    losses, guesses = [], {}
    for place, head in enumerate(heads):
        past = [*(state.detach() for state in s[:place]), s[place]]
        z = part(head, "past", past)
        future = [torch.relu(layer(s[place])) for layer in head.imitators]
        if future:
            gate = 1 / (1 + torch.exp(-part(head, "gate", past)))
            z = gate * z + (1 - gate) * part(head, "future", future)
            guesses[place] = future
        torch.testing.assert_close(logits[place], z.detach())
        losses.append(cross_entropy(z, targets))
    losses.append(cross_entropy(model.backbone.classifier(last), targets))
    assert sorted(guesses) == [0, 1]
    total = torch.zeros(())
    for k, each in enumerate(losses, 1):
        total = total + k / 10 * each
    for place, future in guesses.items():
        for n, guess in enumerate(future):
            total = total + 0.7 / 2 / len(future) * distance(guess, s[place + 1 + n].detach())
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    model.zero_grad()
    total.backward()
    assert_same(found, gradients(model))


def test_a_phase_of_few_exits_imitates_only_their_states():
    made = plan("gpf", "separate", architecture_args={"width": 8, "depth": 4})
    for place, heads in ((0, 1), (1, 2), (2, 3)):
        _, _, found = step(made, place)
        trained = {name.split(".")[1] for name in found if name.startswith("heads")}
        assert trained == {str(stage) for stage in range(1, heads + 1)}


def test_the_loss_takes_what_the_heads_left():
    model = plan("gpf").model.train()
    model(batch()[0])
    heads = [model.head(1), model.head(2)]
    assert imitation_distance(heads) is not None
    assert [head.state_and_guesses for head in heads] == [None, None]
    with torch.no_grad():
        model(batch()[0])
    model.eval()(batch()[0])
    assert [head.state_and_guesses for head in heads] == [None, None]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"head": "cascading-vector"}, "passes states from head to head, and head cascading-vector reads logits"),
        ({"method_args": {"witdh": 3}}, "method_args: unknown key 'witdh' for gpf; nearest: width"),
        ({"method_args": {"width": 0}}, "method_args: width: 0 is not valid; it must be a whole number, at least 1"),
        ({"method_args": {"imitation": "much"}}, "method_args: imitation: 'much' is not valid; it must be a number"),
    ],
)
def test_what_cannot_work(settings, wanted):
    with pytest.raises(EestudyError) as caught:
        plan("gpf", **settings)
    assert wanted in str(caught.value)
