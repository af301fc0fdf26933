"""Zero Time Waste against its equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from eestudy.config import EestudyError, RunConfig
from eestudy.methods import with_method_settings
from eestudy.methods.ztw import EnsembleHead

from .tiny import assert_same, batch, cross_entropy, gradients, plan, shaken, states, step


def slow_ensemble(rows: list[Tensor], log_weights: Tensor, log_bias: Tensor, geometric: bool) -> Tensor:
    """Probabilities of the ensemble: logits (B, C) of each head -> (B, C), one number at a time."""
    samples, classes = rows[0].shape
    found = []
    for n in range(samples):
        q = []
        for c in range(classes):
            p = [torch.exp(row[n, c]) / torch.exp(row[n]).sum() for row in rows]
            w = [torch.exp(value) for value in log_weights]
            value = torch.ones(()) if geometric else torch.zeros(())
            for p_j, w_j in zip(p, w, strict=True):
                value = value * p_j**w_j if geometric else value + w_j * p_j
            q.append(torch.exp(log_bias[c]) * value)
        found.append(torch.stack(q) / sum(q))
    return torch.stack(found)


@pytest.mark.parametrize("ensemble", ["geometric", "arithmetic"])
def test_a_step_against_the_equations(ensemble):
    """Three heads: the third reads the second's logits, not the first's."""
    made = plan("ztw", architecture_args={"width": 8, "depth": 4}, method_args={"ensemble": ensemble})
    model = shaken(made.model)
    loss, logits, found = step(made)

    x, targets = batch()
    *read, last_read = states(model, x)
    raw: list[Tensor] = []
    q: list[Tensor] = []
    for stage, h in enumerate(read, 1):
        head: Any = model.head(stage)
        if raw:
            known = raw[-1].detach()  # layer-normed without weights
            spread = torch.sqrt(known.var(1, correction=0, keepdim=True) + 1e-5)
            linear = head.base[-1].linear
            raw.append(
                torch.cat([h, (known - known.mean(1, keepdim=True)) / spread], 1) @ linear.weight.T + linear.bias
            )
        else:
            raw.append(h @ head.base[-1].weight.T + head.base[-1].bias)
        members = [*(each.detach() for each in raw[:-1]), raw[-1]]
        q.append(slow_ensemble(members, head.log_weights, head.log_bias, ensemble == "geometric"))
    last = model.backbone.classifier(last_read)
    expected = torch.stack([*q, last.softmax(1)]).detach()
    torch.testing.assert_close(logits.softmax(2), expected, rtol=1e-4, atol=1e-6)
    terms = [-torch.log(each[range(4), targets]).mean() for each in q]
    total = torch.stack([*terms, cross_entropy(last, targets)]).mean()
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    model.zero_grad()
    total.backward()
    assert_same(found, gradients(model))


def test_an_ensemble_starts_as_the_mean():
    """Of log probabilities, or of probabilities."""
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    base = plan("sdn").model.head(1)
    mean = logits.log_softmax(2).mean(1).softmax(1)
    torch.testing.assert_close(EnsembleHead(base, 3, 4, True).ensemble(logits).softmax(1), mean)
    mean = logits.softmax(2).mean(1)
    torch.testing.assert_close(EnsembleHead(base, 3, 4, False).ensemble(logits).softmax(1), mean)


@pytest.mark.parametrize(("kind", "head"), [("tokens", "token"), ("maps", "pooled"), ("vector", "vector")])
def test_it_cascades(kind, head):
    config = RunConfig(architecture="mlp", dataset="digits", strategy="joint", method="ztw")
    assert with_method_settings(config, kind).head == f"cascading-{head}"


def test_a_regression_has_no_probabilities():
    with pytest.raises(EestudyError, match="method: ztw needs the probabilities of classes, and a regression has none"):
        plan("ztw", dataset="diabetes")
