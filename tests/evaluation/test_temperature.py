"""Temperatures that are known, and what scaling may and may not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eestudy import evaluation as ev
from eestudy.config import EestudyError
from eestudy.evaluation.reliability import TEMPERATURES

from .cases import random_run


def honest(samples, seed):
    """Logits (N, 4) and labels drawn from their own softmax: the true temperature is 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 4, generator=generator) * 2
    return logits, torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]


def test_known_temperatures_are_found_by_exit():
    logits, labels = honest(20_000, 1)
    exits = torch.stack([logits * 3, logits, logits / 2.5])
    np.testing.assert_allclose(ev.fit_temperatures(exits, labels), [3, 1, 0.4], rtol=0.05)


def test_closed_form_of_two_classes():
    # Margin z, right in 3 of 4 cases: the loss is least where sigmoid(z / T) = 3/4, that is T = z / log 3.
    logits = torch.tensor([[5.0, 0.0]] * 3 + [[0.0, 5.0]])[None]
    labels = torch.tensor([0, 0, 0, 0])
    mirrored = torch.cat([logits, logits.flip(-1)], dim=1), torch.cat([labels, 1 - labels])
    assert ev.fit_temperatures(*mirrored)[0] == pytest.approx(5 / math.log(3), rel=1e-4)


def test_no_temperature_on_a_grid_is_better():
    logits, labels = random_run(2)
    for number, temperature in enumerate(ev.fit_temperatures(logits, labels)):
        loss = [F.cross_entropy(logits[number].double() / t, labels).item() for t in np.geomspace(*TEMPERATURES, 400)]
        assert F.cross_entropy(logits[number].double() / temperature, labels).item() <= min(loss) + 1e-12


def test_never_wrong_and_always_wrong_end_at_the_limits():
    right = (torch.eye(4) * 3)[None]
    assert ev.fit_temperatures(right, torch.arange(4))[0] == pytest.approx(TEMPERATURES[0])
    assert ev.fit_temperatures(right, torch.arange(4).roll(1))[0] == pytest.approx(TEMPERATURES[1])


def test_scaling_repairs_confidences_and_keeps_predictions():
    logits, labels = honest(4000, 3)
    fresh, fresh_labels = honest(4000, 4)
    temperatures = ev.fit_temperatures(logits[None] * 4, labels)
    before, after = fresh[None] * 4, ev.apply_temperatures(fresh[None] * 4, temperatures)
    assert after.dtype == np.float32
    np.testing.assert_array_equal(after.argmax(-1), before.argmax(-1))
    metrics = [ev.reliability_metrics(each, fresh_labels).iloc[0] for each in (before, after)]
    assert metrics[0].ece > 0.15 > 0.03 > metrics[1].ece
    assert metrics[0].ks > 0.15 > 0.03 > metrics[1].ks
    assert metrics[1].nll < metrics[0].nll


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.fit_temperatures(x, y * 0 + 3), "all 120 are of class 3"),
        (lambda x, y: ev.fit_temperatures(x[:, :, :1], y.float()), "regression"),
        (lambda x, y: ev.fit_temperatures(x[:, :0], y[:0]), "0 samples"),
        (lambda x, y: ev.fit_temperatures(x * math.nan, y), "NaN"),
        (lambda x, y: ev.apply_temperatures(x, [1.0] * 4), "5 exits.*1.0"),
        (lambda x, y: ev.apply_temperatures(x, [1.0, 1.0, 0.0, 1.0, 1.0]), "above 0"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(EestudyError, match=words):
        call(*random_run(0))
