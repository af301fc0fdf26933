"""How good, and how honest about it, each exit is by itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from .curves import is_correct
from .exit_rules import ArrayLike, check_predictions, scores
from .regression import regression_scores

BINS = 15
"""Guo et al. 2017 use 15 bins."""


def exit_metrics(logits: ArrayLike, labels: ArrayLike) -> pd.DataFrame:
    """One row an exit: exit (from 1), accuracy, nll (mean, nats), ece; every sample counted at every exit.

    In regression (C = 1): exit and `regression.SCORES`.
    logits (K, N, C), labels (N,). Raises ValueError for shapes that do not match, labels out of range, NaN.
    """
    tensor, label_array = check_predictions(logits, labels)
    if tensor.shape[2] == 1:
        predicted = tensor[:, :, 0].numpy()
        return pd.DataFrame(
            [{"exit": k, **regression_scores(values, label_array)} for k, values in enumerate(predicted, 1)]
        )
    correct = is_correct(tensor, label_array)
    confidence = scores(tensor, "max-probability")
    target = torch.from_numpy(label_array)
    rows = [
        {
            "exit": k + 1,
            "accuracy": correct[k].mean(),
            "nll": F.cross_entropy(tensor[k], target).item(),
            "ece": calibration_error(confidence[k], correct[k]),
        }
        for k in range(len(tensor))
    ]
    return pd.DataFrame(rows)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of confidences (N,) in [0, 1] and correctness (N,) bool.

    Guo et al. 2017, eq. 3: sum over equal-width bins ((m-1)/M, m/M] of |B_m| / N * |accuracy - mean
    confidence|.
    """
    inner_edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    index = np.digitize(confidence.astype(np.float64), inner_edges, right=True)
    gap = np.bincount(index, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
