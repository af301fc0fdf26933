"""Metrics of single exits against cases that can be done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eestudy import evaluation as ev
from eestudy.evaluation.reliability import calibration_error


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
