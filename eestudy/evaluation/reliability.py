"""How honest about it each exit is, and the network that leaves early.

And what mends or tests that: temperatures, and samples of no class of the network's. K exits, N samples, C classes;
confidence (N,): the largest softmax probability of the exit where a sample leaves; correct (N,) bool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch import Tensor

from eestudy.config import EestudyError

from .checks import ArrayLike, check_alike, check_classes, check_logits, check_predictions
from .exit_rules import ExitRule, scaled, score_table, simulate
from .quality import BINS, bin_edges, bin_of, calibration_error

TEMPERATURES = (0.01, 100.0)
"""Range of T. An exit that is never wrong on validation data has the least loss at T = 0: it gets the lower end."""


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
    edges = bin_edges(bins)
    tables = []
    for name, left, label_array in _systems(logits, labels, rule):
        confidence, predicted = score_table(left, "max-probability")
        correct = predicted[0] == label_array
        index = bin_of(confidence[0], edges)
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
        answers = f"all {len(correct)} answers are {'right' if right else 'wrong'}"
        return math.nan, f"{answers}, so there is nothing to tell apart"
    return float(roc_auc_score(correct, confidence)), ""


# ---------------------------------------------------------------- temperatures: Guo et al. 2017


def fit_temperatures(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Temperatures (K,) that minimize the mean negative log-likelihood of validation logits (K, N, C), labels (N,).

    Logits are divided by T > 0: predictions stay, confidences change, so scale first, then `calibrate`. The loss is
    convex in 1/T, so it has one minimum over log T, where a bounded scalar search looks for it.
    Raises EestudyError for bad arrays, a regression, and labels of one class only.
    """
    tensor, label_array = check_classes(logits, labels, "temperature scaling")
    target = torch.from_numpy(label_array)
    return np.array([_fit_temperature(exit_logits.double(), target) for exit_logits in tensor])


def _fit_temperature(logits: Tensor, target: Tensor) -> float:
    def loss(log_t: float) -> float:
        return F.cross_entropy(logits / float(np.exp(log_t)), target).item()

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    # The search never touches the ends of its range. Of equals, which a loss of 0 has many, the lower end.
    return float(np.exp(min((low, found.x, high), key=loss)))


def apply_temperatures(logits: ArrayLike, temperatures: Sequence[float] | ArrayLike) -> np.ndarray:
    """Logits (K, N, C) divided by temperatures (K,): float32, for everything that takes logits.

    Raises EestudyError unless there is one finite temperature above 0 for each exit.
    """
    tensor = check_logits(logits)
    values = np.asarray(temperatures, dtype=np.float64)
    if values.shape != (len(tensor),) or not np.isfinite(values).all() or (values <= 0).any():
        raise EestudyError(
            f"temperatures: must be one finite number above 0 for each of {len(tensor)} exits, got {values.tolist()}"
        )
    return scaled(tensor, torch.from_numpy(values)[:, None, None]).numpy()


# ---------------------------------------------------------------- samples of no class


SCORES: dict[str, Callable[[Tensor], np.ndarray]] = {
    "max-probability": lambda logits: score_table(logits[None], "max-probability")[0][0],
    "entropy": lambda logits: score_table(logits[None], "entropy")[0][0],
    "energy": lambda logits: torch.logsumexp(logits.double(), dim=-1).numpy(),
}
"""Name -> score (N,) of logits (N, C), larger for what looks familiar: the largest softmax probability (Hendrycks and
Gimpel 2017), minus the entropy, and minus the energy, that is log sum exp of the logits (Liu et al. 2020, T = 1)."""


def ood_detection(inside: ArrayLike, outside: ArrayLike, rule: ExitRule | None = None) -> pd.DataFrame:
    """AUROC of telling samples of the network's own data set (positive) from others, by exit and score.

    inside (K, N, C), outside (K, M, C): logits of the same network. With a rule also for the network that leaves early
    by it, every sample scored where it leaves. One row a system and score: system ("exit 1" .., "dynamic"), score,
    auroc (1: all told apart; 0.5: none). Raises EestudyError for bad arrays, other exits or classes, a regression.
    """
    first, second = check_logits(inside), check_logits(outside)
    check_alike(first, second, ("inside", "outside"))
    if first.shape[2] == 1:
        raise EestudyError("logits: have 1 output, which is a regression; these scores need at least 2 classes")
    pairs = [(f"exit {number}", first[number - 1], second[number - 1]) for number in range(1, len(first) + 1)]
    if rule is not None:
        pairs.append(("dynamic", where_they_leave(first, rule), where_they_leave(second, rule)))
    truth = np.arange(first.shape[1] + second.shape[1]) < first.shape[1]
    rows = []
    for system, own, other in pairs:
        for name, score in SCORES.items():
            auroc = roc_auc_score(truth, np.concatenate([score(own), score(other)]))
            rows.append({"system": system, "score": name, "auroc": float(auroc)})
    return pd.DataFrame(rows)
