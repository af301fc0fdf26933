"""Metrics of exits, and of networks that leave early, against cases that can be done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss

from eestudy import evaluation as ev
from eestudy.config import EestudyError
from eestudy.evaluation.quality import calibration_error
from eestudy.evaluation.reliability import brier_score, failure_auroc, ks_error

from .cases import random_run


def test_calibration_error_by_hand():
    # Width 1/15: 0.50 and 0.52 share the bin (7/15, 8/15]; 0.95 and 0.99 the last one, (14/15, 1].
    confidence = np.array([0.50, 0.52, 0.95, 0.99, 0.70], dtype=np.float32)
    correct = np.array([True, False, True, True, False])
    expected = (abs(1 - 1.02) + abs(2 - 1.94) + 0.70) / 5
    assert calibration_error(confidence, correct) == pytest.approx(expected, rel=1e-6)


def test_a_bin_holds_its_upper_edge():
    # With 2 bins, 0.5 is in the lower one; in the upper one it would share a bin with 0.75.
    confidence, correct = np.array([0.5, 0.75], dtype=np.float32), np.array([True, False])
    assert calibration_error(confidence, correct, bins=2) == pytest.approx((0.5 + 0.75) / 2)


def test_metrics_of_two_exits_by_hand():
    p = torch.tensor([[[0.8, 0.2], [0.6, 0.4]], [[0.5, 0.5], [0.1, 0.9]]])
    frame = ev.exit_metrics(p.log(), np.array([0, 1]))
    assert frame.columns.tolist() == ["exit", "accuracy", "nll", "ece"]
    assert frame.exit.tolist() == [1, 2]
    assert frame.accuracy.tolist() == [0.5, 1.0]
    nll = [-(math.log(0.8) + math.log(0.4)) / 2, -(math.log(0.5) + math.log(0.9)) / 2]
    np.testing.assert_allclose(frame.nll, nll, rtol=1e-6)
    np.testing.assert_allclose(frame.ece, [(0.2 + 0.6) / 2, (0.5 + 0.1) / 2], rtol=1e-5)


def test_confident_and_right_is_perfect():
    labels = torch.arange(4)
    logits = (torch.eye(4) * 200)[None]
    frame = ev.exit_metrics(logits, labels)
    assert frame.iloc[0].tolist() == [1, 1.0, 0.0, 0.0]


# ---------------------------------------------------------------- more than one number


def test_ks_by_hand():
    # Sorted: 0.5 wrong, 0.6 right, 0.9 right, 0.9 wrong; sums of confidence - correct: 0.5, 0.1, (0), 0.9.
    confidence, correct = np.array([0.9, 0.6, 0.9, 0.5]), np.array([True, True, False, False])
    assert ks_error(confidence, correct) == pytest.approx(0.9 / 4)
    assert ks_error(confidence[::-1], correct[::-1]) == pytest.approx(0.9 / 4)
    # Equal confidences count together: the order within them says nothing.
    assert ks_error(np.full(4, 0.5), np.array([True, True, False, False])) == 0


def test_ks_equals_a_slow_search_and_finds_what_bins_average_away():
    generator = np.random.default_rng(0)
    confidence = generator.random(200).round(2)
    correct = generator.random(200) < confidence**2
    slow = max(abs((confidence - correct)[confidence <= c].sum()) for c in confidence) / 200
    assert ks_error(confidence, correct) == pytest.approx(slow)
    # In one bin, 0.50 is always right and 0.52 never: their mean is 0.51, their accuracy 0.5.
    confidence, correct = np.repeat([0.50, 0.52], 50), np.repeat([True, False], 50)
    assert calibration_error(confidence, correct) == pytest.approx(0.01)
    assert ks_error(confidence, correct) == pytest.approx(0.25)


def test_brier_by_hand_and_by_scikit_learn():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    by_hand = (0.3**2 + 0.2**2 + 0.1**2 + 0.1**2 + 0.9**2 + 0.8**2) / 2
    assert brier_score(p.log(), np.array([0, 1])) == pytest.approx(by_hand, rel=1e-6)
    logits, labels = random_run(1)
    two = logits[0][:, :2]
    expected = 2 * brier_score_loss((labels % 2).numpy(), torch.softmax(two.double(), -1)[:, 1].numpy())
    assert brier_score(two, (labels % 2).numpy()) == pytest.approx(expected)


def test_failure_prediction_counts_pairs():
    generator = np.random.default_rng(2)
    confidence, correct = generator.random(60).round(1), generator.random(60) < 0.7
    right, wrong = confidence[correct][:, None], confidence[~correct]
    pairs = (right > wrong).mean() + (right == wrong).mean() / 2
    assert failure_auroc(confidence, correct) == (pytest.approx(pairs), "")
    for all_of, word in ((np.ones(60, bool), "right"), (np.zeros(60, bool), "wrong")):
        auroc, reason = failure_auroc(confidence, all_of)
        assert math.isnan(auroc)
        assert reason.startswith(f"all 60 answers are {word}")


def test_the_dynamic_system_counts_samples_where_they_leave():
    logits, labels = random_run(3, (4, 150, 5))
    rule = ev.per_exit([0.6, 0.5, 0.7, 1.0])
    frame = ev.reliability_metrics(logits, labels, rule).set_index("system")
    assert frame.index.tolist() == ["exit 1", "exit 2", "exit 3", "exit 4", "dynamic"]
    where = ev.simulate(logits, rule) - 1
    assert len(set(where.tolist())) == 4
    left = logits[torch.from_numpy(where), torch.arange(150)]
    alone = ev.reliability_metrics(left[None], labels).iloc[0]
    numbers = ["accuracy", "nll", "brier", "ece", "ks", "auroc"]
    assert frame.loc["dynamic", numbers].tolist() == alone[numbers].tolist()
    exits = ev.exit_metrics(logits, labels)
    for column in ("accuracy", "nll", "ece"):
        np.testing.assert_array_equal(frame[column].iloc[:4], exits[column])


def test_an_exit_that_is_always_right_has_no_auroc_and_says_why():
    frame = ev.reliability_metrics((torch.eye(4) * 9)[None], torch.arange(4))
    assert frame["auroc"].isna().all()
    assert frame["reason"].tolist() == ["all 4 answers are right, so there is nothing to tell apart"]


def test_the_table_of_the_diagram_adds_up_to_the_ece():
    logits, labels = random_run(4, (3, 200, 5))
    table = ev.reliability_table(logits, labels, ev.max_probability(0.5), bins=10)
    metrics = ev.reliability_metrics(logits, labels, ev.max_probability(0.5), bins=10).set_index("system")
    assert len(table) == 4 * 10
    for system, rows in table.groupby("system"):
        assert rows["count"].sum() == 200
        assert rows["bin"].tolist() == list(range(1, 11))
        inside = rows[rows["count"] > 0]
        assert inside["confidence"].between(inside["low"], inside["high"]).all()
        assert rows.loc[rows["count"] == 0, ["confidence", "accuracy"]].isna().all(axis=None)
        gap = (inside["count"] * (inside["confidence"] - inside["accuracy"]).abs()).sum() / 200
        assert gap == pytest.approx(metrics.loc[system, "ece"])
        assert (inside["count"] * inside["accuracy"]).sum() / 200 == pytest.approx(metrics.loc[system, "accuracy"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.reliability_metrics(x[:, :, :1], y.float()), "regression"),
        (lambda x, y: ev.reliability_metrics(x, y[:3]), r"\(120,\).*\(3,\)"),
        (lambda x, y: ev.reliability_table(x, y, bins=0), "bins: .*0"),
        (lambda x, y: ev.reliability_table(x, y, ev.per_exit([0.5, 0.5])), "2 thresholds.*5 exits"),
        (lambda x, y: ev.reliability_metrics(x / 0.0, y), "NaN"),
        (lambda x, y: ev.exit_metrics(x[:, :0], y[:0]), "0 samples"),
    ],
)
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(EestudyError, match=words):
        call(*random_run(0))
