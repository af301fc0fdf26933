"""How good, and how honest about it, each exit is by itself, and the network that leaves early.

confidence (N,): the largest softmax probability of the exit where a sample leaves; correct (N,) bool.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from eestudy.config import EestudyError

from .checks import ArrayLike, check_predictions
from .curves import is_correct
from .exit_rules import ExitRule, simulate
from .regression import regression_scores
from .score_table import score_table

BINS = 15
"""Guo et al. 2017 use 15 bins."""


def exit_metrics(logits: ArrayLike, labels: ArrayLike) -> pd.DataFrame:
    """One row an exit: exit (from 1), accuracy, nll (mean, nats), ece; every sample counted at every exit.

    In regression (C = 1): exit and `regression.SCORES`.
    logits (K, N, C), labels (N,). Raises EestudyError for shapes that do not match, labels out of range, NaN.
    """
    tensor, label_array = check_predictions(logits, labels)
    if tensor.shape[2] == 1:
        predicted = tensor[:, :, 0].numpy()
        return pd.DataFrame(
            [{"exit": k, **regression_scores(values, label_array)} for k, values in enumerate(predicted, 1)]
        )
    correct = is_correct(tensor, label_array)
    confidence, _ = score_table(tensor, "max-probability")
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


def reliability_metrics(
    logits: ArrayLike, labels: ArrayLike, rule: ExitRule | None = None, bins: int = BINS
) -> pd.DataFrame:
    """Calibration and failure prediction of every exit and, with a rule, of the network that leaves early by it.

    logits (K, N, C), labels (N,), C >= 2. One row a system, "exit 1" .. "exit K" and "dynamic": system, accuracy, nll
    (nats), brier, ece, ks, auroc (failure prediction: is a right answer more confident than a wrong one), reason (why
    auroc is NaN; empty otherwise). In the dynamic system every sample counts where it leaves.
    Raises EestudyError as `exit_metrics` does, for a regression, and for less than 1 bin.
    """
    rows = []
    for name, left, label_array in _systems(logits, labels, rule):
        confidence, predicted = score_table(left, "max-probability")
        correct = predicted[0] == label_array
        auroc, reason = failure_auroc(confidence[0], correct)
        rows.append(
            {
                "system": name,
                "accuracy": correct.mean(),
                "nll": F.cross_entropy(left[0], torch.from_numpy(label_array)).item(),
                "brier": brier_score(left[0], label_array),
                "ece": calibration_error(confidence[0], correct, bins),
                "ks": ks_error(confidence[0], correct),
                "auroc": auroc,
                "reason": reason,
            }
        )
    return pd.DataFrame(rows)


def reliability_table(
    logits: ArrayLike, labels: ArrayLike, rule: ExitRule | None = None, bins: int = BINS
) -> pd.DataFrame:
    """The reliability diagram of each system of `reliability_metrics` as a table, one row a system and bin.

    system, bin (from 1), low, high (the bin holds confidences in (low, high], the first also 0), count, confidence and
    accuracy (means in the bin; NaN in an empty one). Equal widths, as in Guo et al. 2017.
    """
    edges = _edges(bins)
    tables = []
    for name, left, label_array in _systems(logits, labels, rule):
        confidence, predicted = score_table(left, "max-probability")
        correct = predicted[0] == label_array
        index = _bin_of(confidence[0], edges)
        count = np.bincount(index, minlength=bins)
        sums = [np.bincount(index, weights=values, minlength=bins) for values in (confidence[0], correct)]
        means = [np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums]
        columns = {"system": name, "bin": np.arange(1, bins + 1), "low": edges[:-1], "high": edges[1:], "count": count}
        tables.append(pd.DataFrame({**columns, "confidence": means[0], "accuracy": means[1]}))
    return pd.concat(tables, ignore_index=True)


def _systems(logits: ArrayLike, labels: ArrayLike, rule: ExitRule | None) -> list[tuple[str, Tensor, np.ndarray]]:
    """Name, logits (1, N, C) where samples leave, and labels of each exit, then of the dynamic network."""
    tensor, label_array = check_predictions(logits, labels)
    if tensor.shape[2] == 1:
        raise EestudyError("logits: have 1 output, which is a regression; confidences need at least 2 classes")
    systems = [(f"exit {number}", tensor[number - 1 : number], label_array) for number in range(1, len(tensor) + 1)]
    if rule is not None:
        systems.append(("dynamic", where_they_leave(tensor, rule)[None], label_array))
    return systems


def where_they_leave(tensor: Tensor, rule: ExitRule) -> Tensor:
    """Checked logits (K, N, C) -> those (N, C) of the exit that each sample takes."""
    index = torch.from_numpy(simulate(tensor, rule) - 1)
    return tensor[index, torch.arange(len(index))]


# ---------------------------------------------------------------- one system


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of confidences (N,) in [0, 1] and correctness (N,) bool.

    Guo et al. 2017, eq. 3: sum over equal-width bins ((m-1)/M, m/M] of |B_m| / N * |accuracy - mean
    confidence|.
    """
    index = _bin_of(confidence, _edges(bins))
    gap = np.bincount(index, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def _edges(bins: int) -> np.ndarray:
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise EestudyError(f"bins: must be a whole number from 1 on, got {bins!r}")
    return np.linspace(0.0, 1.0, bins + 1)


def _bin_of(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.digitize(confidence.astype(np.float64), edges[1:-1], right=True)


def ks_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Kolmogorov-Smirnov calibration error of confidences (N,) and correctness (N,) bool; needs no bins.

    Gupta et al. 2021: the largest difference, over confidences c, between the sums over samples with confidence up to c
    of confidence and of correctness, divided by N.
    """
    order = np.argsort(confidence, kind="stable")
    ordered = confidence[order].astype(np.float64)
    gap = np.abs(np.cumsum(ordered - correct[order]))
    last_of_equals = np.append(ordered[1:] != ordered[:-1], True)
    return float(gap[last_of_equals].max() / len(ordered))


def brier_score(logits: ArrayLike, labels: np.ndarray) -> float:
    """Mean over samples of sum_c (p_c - [label = c])^2, from 0 to 2 (Brier 1950): logits (N, C), labels (N,)."""
    p = torch.softmax(torch.as_tensor(logits).double(), dim=-1).numpy()
    right = p[np.arange(len(p)), labels]
    return float(((p**2).sum(axis=1) - 2 * right + 1).mean())


def failure_auroc(confidence: np.ndarray, correct: np.ndarray) -> tuple[float, str]:
    """Failure prediction: AUROC of right (positive) against wrong answers by confidence, and a reason if it is NaN."""
    right = int(correct.sum())
    if right in (0, len(correct)):
        return (
            math.nan,
            f"all {len(correct)} answers are {'right' if right else 'wrong'}, so there is nothing to tell apart",
        )
    return float(roc_auc_score(correct, confidence)), ""
