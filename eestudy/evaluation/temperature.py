"""Temperature scaling: one number an exit that makes its confidences honest (Guo et al. 2017).

Logits are divided by T > 0, fitted on validation data. Predictions stay, confidences change, so thresholds fitted
before do not fit any more: scale first, then `calibrate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from eestudy.config import EestudyError

from .checks import ArrayLike, check_classes, check_logits

LIMITS = (0.01, 100.0)
"""Range of T. An exit that is never wrong on validation data has the least loss at T = 0: it gets the lower end."""


def fit_temperatures(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Temperatures (K,) that minimize the mean negative log-likelihood of validation logits (K, N, C), labels (N,).

    The loss is convex in 1/T, so it has one minimum over log T, where a bounded scalar search looks for it.
    Raises EestudyError for bad arrays, a regression, and labels of one class only.
    """
    tensor, label_array = check_classes(logits, labels, "temperature scaling")
    target = torch.from_numpy(label_array)
    return np.array([_fit(exit_logits.double(), target) for exit_logits in tensor])


def _fit(logits: torch.Tensor, target: torch.Tensor) -> float:
    def loss(log_t: float) -> float:
        return F.cross_entropy(logits / float(np.exp(log_t)), target).item()

    low, high = np.log(LIMITS)
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
    return (tensor.double() / torch.from_numpy(values)[:, None, None]).float().numpy()
