"""OOD detection against pairs counted one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eestudy import evaluation as ev
from eestudy.config import EestudyError

from .cases import random_run


def by_pairs(inside, outside):
    return np.mean([(a > b) + (a == b) / 2 for a in inside for b in outside])


def slow_score(logits, name):
    if name == "energy":
        return math.log(sum(math.exp(value) for value in logits.tolist()))
    p = torch.softmax(logits, 0).tolist()
    return max(p) if name == "max-probability" else sum(q * math.log(q) for q in p)


def test_auroc_is_the_share_of_pairs_in_order():
    inside, outside = random_run(1, (3, 30, 5))[0] * 2, random_run(2, (3, 25, 5))[0]
    rule = ev.max_probability(0.6)
    frame = ev.ood_detection(inside, outside, rule).set_index(["system", "score"])["auroc"]
    assert len(frame) == 4 * 3
    first, second = ev.simulate(inside, rule) - 1, ev.simulate(outside, rule) - 1
    for name in ("max-probability", "entropy", "energy"):
        for exit_number in (1, 2, 3):
            own = [slow_score(each, name) for each in inside[exit_number - 1]]
            other = [slow_score(each, name) for each in outside[exit_number - 1]]
            assert frame[f"exit {exit_number}", name] == pytest.approx(by_pairs(own, other), abs=0.003)
        own = [slow_score(inside[k, n], name) for n, k in enumerate(first)]
        other = [slow_score(outside[k, n], name) for n, k in enumerate(second)]
        assert frame["dynamic", name] == pytest.approx(by_pairs(own, other), abs=0.003)


def test_known_ends():
    sure, unsure = (torch.eye(4) * 9)[None], torch.zeros(1, 6, 4)
    assert (ev.ood_detection(sure, unsure)["auroc"] == 1).all()
    assert (ev.ood_detection(unsure, sure)["auroc"] == 0).all()
    assert (ev.ood_detection(sure, sure)["auroc"] == 0.5).all()


def test_energy_sees_what_probabilities_cannot():
    # Adding a constant to all logits leaves the softmax as it is.
    logits = random_run(3, (1, 40, 5))[0]
    frame = ev.ood_detection(logits + 8, logits).set_index("score")["auroc"]
    assert frame["energy"] > 0.99
    assert frame["entropy"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ev.ood_detection(x, x[:4]), r"inside \(5, 120, 6\) and outside \(4, 120, 6\)"),
        (lambda x: ev.ood_detection(x, x[:, :, :5]), "differ"),
        (lambda x: ev.ood_detection(x, x[:, :0]), "0 samples"),
        (lambda x: ev.ood_detection(x, x * math.inf), "infinite"),
        (lambda x: ev.ood_detection(x[:, :, :1], x[:, :, :1]), "regression"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(EestudyError, match=words):
        call(random_run(0)[0])
