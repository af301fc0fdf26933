"""How good predictions of real values are. N samples; predictions and labels (N,) in the units of the labels."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats
from sklearn.metrics import mean_squared_error, r2_score

SCORES = ("r2", "pearson", "spearman", "mse")
"""R2 = 1 - mse / variance of the labels; the correlations of Pearson and of Spearman (ranks); mean squared error."""


def regression_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The `SCORES` of predictions (N,). NaN where one is not defined, and no warning.

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
