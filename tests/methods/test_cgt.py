"""Confidence-gated training against its equations."""

from __future__ import annotations

import pytest
import torch

from eestudy.config import EestudyError
from eestudy.methods.cgt import LEAK, gated_weights

from .tiny import assert_same, batch, gradients, plan, shaken, states, step


def slow_weights(p: torch.Tensor, labels: list[int], gate: str, threshold: float) -> list[list[float]]:
    """Weights by sample and exit; p: (K, B, C) probabilities."""
    found = []
    for n, label in enumerate(labels):
        left, weights = 1.0, []
        for k in range(len(p)):
            weights.append(left + LEAK)
            row = p[k, n].tolist()
            hard = float(row.index(max(row)) == label and max(row) >= threshold)
            left *= 1 - (row[label] if gate == "soft" else hard)
        found.append([weight / sum(weights) for weight in weights])
    return found


@pytest.mark.parametrize(("gate", "threshold"), [("soft", 0.9), ("hard", 0.15)])
def test_a_step_against_the_equations(gate, threshold):
    made = plan("cgt", method_args={"gate": gate, "threshold": threshold})
    model = shaken(made.model)
    loss, logits, found = step(made)

    x, labels = batch()
    targets = labels.tolist()
    h1, h2, h3 = states(model, x)
    own = [model.head(1)[0](h1), model.head(2)[0](h2), model.backbone.classifier(h3)]
    torch.testing.assert_close(logits, torch.stack(own).detach())
    p = torch.stack([torch.exp(each) / torch.exp(each).sum(1, keepdim=True) for each in own])
    weights = slow_weights(p.detach(), targets, gate, threshold)
    total = torch.zeros(())
    for n, label in enumerate(targets):
        for k in range(3):
            total = total - weights[n][k] * torch.log(p[k, n, label]) / 4
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    model.zero_grad()
    total.backward()
    assert_same(found, gradients(model))


def test_the_hard_gate_shuts_and_shares_of_classes_count():
    logits = torch.tensor([[[4.0, 0.0], [4.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])  # sure of class 0 at exit 1
    weights = gated_weights(logits, torch.tensor([0, 1]), "hard", 0.9)
    torch.testing.assert_close(weights[:, 0], torch.tensor([1 + LEAK, LEAK]) / (1 + 2 * LEAK))
    torch.testing.assert_close(weights[:, 1], torch.tensor([0.5, 0.5]))  # sure, and wrong
    for gate in ("soft", "hard"):
        labels = gated_weights(logits, torch.tensor([0, 1]), gate, 0.9)
        torch.testing.assert_close(gated_weights(logits, torch.eye(2), gate, 0.9), labels)
    mixed = gated_weights(logits, torch.full((2, 2), 0.5), "soft", 0.9)
    torch.testing.assert_close(mixed, torch.tensor([[1 + LEAK] * 2, [0.5 + LEAK] * 2]) / (1.5 + 2 * LEAK))


def test_a_regression_has_no_probabilities():
    with pytest.raises(EestudyError, match="method: cgt needs the probabilities of classes"):
        plan("cgt", dataset="diabetes")
