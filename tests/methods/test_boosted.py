"""Boosted dynamic networks against their equations."""

from __future__ import annotations

import pytest
import torch

from .tiny import assert_same, batch, cross_entropy, gradients, plan, shaken, states, step


def test_a_step_against_the_equations():
    made = plan("boosted", method_args={"reweight": 0.3})
    model = shaken(made.model)
    settings = made.phases[0].settings
    assert (settings.gradient_scaling, settings.method) == ("boosting", 'boosted {"reweight": 0.3}')
    loss, logits, found = step(made)

    x, targets = batch()
    h1, h2, h3 = states(model, x)
    weak = [model.head(1)[0](h1), model.head(2)[0](h2), model.backbone.classifier(h3)]
    before, answers, losses = torch.zeros(4, 10), [], []
    for f in weak:
        answers.append(f + 0.3 * before)
        losses.append(cross_entropy(answers[-1], targets))
        before = answers[-1].detach()
    torch.testing.assert_close(logits, torch.stack(answers).detach())
    assert loss == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-5)

    # Exit i, from 0, enters the backbone with its gradient times 1/(K-i); heads and classifier get theirs unscaled.
    expected: dict[str, torch.Tensor] = {}
    for place, each in enumerate(losses):
        model.zero_grad()
        (each / 3).backward(retain_graph=True)
        for name, gradient in gradients(model).items():
            factor = 1 / (3 - place) if name.startswith("backbone.stages") else 1.0
            expected[name] = expected.get(name, 0) + factor * gradient
    assert_same(found, expected)


def test_the_last_exit_adds_only_where_it_was_trained_so():
    x, _ = batch()
    for strategy, adds in {
        "disjoint": False,
        "joint": True,
        "mixed": True,
        "branch-wise": True,
        "gradual": True,
    }.items():
        model = plan("boosted", strategy).model.eval()
        alone, logits = model.backbone(x), model(x)
        expected = alone + 0.5 * logits[1] if adds else alone
        torch.testing.assert_close(logits[-1], expected)


def test_a_phase_of_one_exit_stands_on_those_before():
    """Branch-wise: the second exit's loss reads the first one's answer, whose head gets no gradient."""
    made = plan("boosted", "branch-wise")
    model = shaken(made.model)
    _, logits, found = step(made, 1)
    assert set(found) == {"backbone.stages.1.1.weight", "backbone.stages.1.1.bias", "heads.2.base.0.weight",
                          "heads.2.base.0.bias"}  # fmt: skip
    torch.testing.assert_close(logits[0], model(batch()[0])[1])
