"""How good each exit is by itself: accuracy, loss and calibration error; in regression and of several labels their own.

K exits, N samples, C classes; confidence (N,): the largest softmax probability; correct (N,) bool.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, mean_squared_error, r2_score

from eestudy.config import EestudyError

from .checks import ArrayLike, check_predictions, is_multi_label
from .exit_rules import score_table

BINS = 15
"""Guo et al. 2017 use 15 bins."""
REGRESSION_SCORES = ("r2", "pearson", "spearman", "mse")
"""R2 = 1 - mse / variance of the labels; the correlations of Pearson and of Spearman (ranks); mean squared error."""
LABEL_SCORES = ("exact_match", "macro_f1", "mean_average_precision")
"""Of several labels a sample: the share with all of them right; means over labels of F1 (at probability 0.5) and of the
average precision, without labels that no sample has."""


def exit_metrics(logits: ArrayLike, labels: ArrayLike) -> pd.DataFrame:
    """One row an exit: exit (from 1), accuracy, nll (mean, nats), ece; every sample counted at every exit.

    In regression (C = 1): exit and `REGRESSION_SCORES`; of several labels a sample, labels (N, C): `LABEL_SCORES`.
    logits (K, N, C), labels (N,). Raises EestudyError for shapes that do not match, labels out of range, NaN.
    """
    tensor, label_array = check_predictions(logits, labels, several=True)
    if is_multi_label(label_array):
        return pd.DataFrame(
            [{"exit": k, **label_scores(each, label_array)} for k, each in enumerate(tensor.numpy(), 1)]
        )
    if tensor.shape[2] == 1:
        values = enumerate(tensor[:, :, 0].numpy(), 1)
        return pd.DataFrame([{"exit": k, **regression_scores(predicted, label_array)} for k, predicted in values])
    confidence, predicted = score_table(tensor, "max-probability")
    correct = predicted == label_array
    target = torch.from_numpy(label_array)
    return pd.DataFrame(
        {
            "exit": range(1, len(tensor) + 1),
            "accuracy": correct.mean(axis=1),
            "nll": [F.cross_entropy(logits, target).item() for logits in tensor],
            "ece": [calibration_error(*exit) for exit in zip(confidence, correct)],
        }
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of confidences (N,) in [0, 1] and correctness (N,) bool.

    Guo et al. 2017, eq. 3: sum over equal-width bins ((m-1)/M, m/M] of |B_m| / N * |accuracy - mean confidence|.
    """
    index = bin_of(confidence, bin_edges(bins))
    gap = np.bincount(index, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def bin_edges(bins: int) -> np.ndarray:
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise EestudyError(f"bins: must be a whole number from 1 on, got {bins!r}")
    return np.linspace(0.0, 1.0, bins + 1)


def bin_of(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.digitize(confidence.astype(np.float64), edges[1:-1], right=True)


def regression_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The `REGRESSION_SCORES` of predictions (N,). NaN where one is not defined, and no warning.

    R2 is not defined for labels that are all the same, a correlation neither for such labels nor for predictions that
    are all the same.
    """
    predicted, labels = predicted.astype(np.float64), labels.astype(np.float64)
    spread = np.ptp(labels) > 0
    varied = spread and np.ptp(predicted) > 0
    return {
        "r2": float(r2_score(labels, predicted)) if spread else math.nan,
        "pearson": float(stats.pearsonr(labels, predicted).statistic) if varied else math.nan,
        "spearman": float(stats.spearmanr(labels, predicted).statistic) if varied else math.nan,
        "mse": float(mean_squared_error(labels, predicted)),
    }


def label_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The `LABEL_SCORES` of logits (N, C) and labels (N, C), bool. NaN where no sample has a label."""
    predicted, there = logits > 0, labels.any(axis=0)
    f1 = f1_score(labels, predicted, average="macro", zero_division=np.nan) if (labels | predicted).any() else math.nan
    precision = average_precision_score(labels[:, there], logits[:, there], average=None) if there.any() else math.nan
    return {
        "exact_match": float((predicted == labels).all(axis=1).mean()),
        "macro_f1": float(f1),
        "mean_average_precision": float(np.mean(precision)),
    }
