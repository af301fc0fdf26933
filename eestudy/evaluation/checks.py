"""What every function of the room asks of its arrays, and what it says when they are not that.

Every refusal is an EestudyError (a ValueError) of one line with the numbers in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError

ArrayLike = np.ndarray | Tensor
Predictions = tuple[ArrayLike, ArrayLike]
"""Logits (K, N, C) and labels (N,)."""
Costs = Sequence[float] | ArrayLike


def check_logits(logits: ArrayLike | Sequence[Tensor], finite: bool = True) -> Tensor:
    """Logits (K, N, C) as a contiguous float32 tensor on the CPU.

    Raises EestudyError unless K >= 1, N >= 1, C >= 1 (1: regression) and, if `finite`, every value is.
    """
    if isinstance(logits, np.ndarray) and not logits.flags.writeable:
        logits = logits.copy()  # torch warns about read-only memory
    try:
        each = isinstance(logits, list | tuple) and bool(logits) and isinstance(logits[0], Tensor)  # as a network gives
        tensor = (torch.stack(list(logits)) if each else torch.as_tensor(logits)).detach()
    except (TypeError, ValueError, RuntimeError):
        raise EestudyError(f"logits: {type(logits).__name__} is not one array (exits, samples, classes)") from None
    tensor = tensor.to("cpu", torch.float32).contiguous()
    if tensor.ndim != 3:
        raise EestudyError(f"logits: must have shape (exits, samples, classes), got {tuple(tensor.shape)}")
    num_exits, num_samples, num_classes = tensor.shape
    if num_exits < 1 or num_samples < 1 or num_classes < 1:
        raise EestudyError(
            "logits: must hold at least 1 exit, 1 sample and 2 classes, or 1 output of a regression, "
            f"got {num_exits} exits, {num_samples} samples, {num_classes} classes"
        )
    if finite:
        check_finite(tensor, tensor)
    return tensor


def check_finite(part: Tensor, whole: Tensor) -> None:
    """EestudyError that counts the NaN and infinite values of the `whole` logits, if there are any in this part."""
    # One cheap pass: a sum with a NaN or an infinity in it is never finite.
    if not math.isfinite(part.sum().item()):
        bad = int((~torch.isfinite(whole)).sum())
        if bad:
            raise EestudyError(f"logits: must be finite, got {bad} NaN or infinite of {whole.numel()} values")


def check_predictions(
    logits: ArrayLike, labels: ArrayLike, finite: bool = True, several: bool = False
) -> tuple[Tensor, np.ndarray]:
    """Logits as in `check_logits` and labels (N,), int64 in 0..C-1, for C = 1 finite float32; else EestudyError.

    several: labels may also be (N, C), each 0 or 1 (multi-label); given back as bool.
    """
    tensor = check_logits(logits, finite)
    _, num_samples, num_classes = tensor.shape
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if is_multi_label(array) and array.shape == (num_samples, num_classes) and num_classes > 1:
        if not several:
            raise EestudyError("labels: are several a sample (multi-label); this is defined for one a sample")
        if not np.isin(array, (0, 1)).all():
            raise EestudyError("labels: several a sample must be 0 or 1 each")
        return tensor, array.astype(bool)
    if array.shape != (num_samples,):
        raise EestudyError(f"labels: must have shape ({num_samples},) to match the logits, got {array.shape}")
    if num_classes == 1:
        if array.dtype.kind != "f":
            raise EestudyError(
                f"logits: 1 class is a regression, whose labels must be real numbers, got {array.dtype}; "
                "classification needs at least 2 classes"
            )
        if bad := int((~np.isfinite(array)).sum()):
            raise EestudyError(f"labels must be finite, got {bad} NaN or infinite of {num_samples} values")
        return tensor, array.astype(np.float32)
    if array.dtype.kind not in "iu":
        raise EestudyError(f"labels: must be integers, got {array.dtype}")
    if array.min() < 0 or array.max() >= num_classes:
        raise EestudyError(f"labels: must be in 0..{num_classes - 1}, got {array.min()}..{array.max()}")
    return tensor, array.astype(np.int64)


def is_multi_label(labels: ArrayLike) -> bool:
    """Whether labels are (N, C), several a sample."""
    return np.ndim(labels) == 2


def check_classes(logits: ArrayLike, labels: ArrayLike, what: str) -> tuple[Tensor, np.ndarray]:
    """`check_predictions` for what learns from labels of classes: C >= 2, and more than one class among the labels."""
    if is_multi_label(labels):
        raise EestudyError(f"{what}: is for one class a sample, and the labels are several a sample (multi-label)")
    tensor, array = check_predictions(logits, labels)
    if tensor.shape[2] == 1:
        raise EestudyError(f"{what}: is for classification, the logits have 1 output, which is a regression")
    if (array == array[0]).all():
        raise EestudyError(
            f"labels: all {len(array)} are of class {array[0]}; {what} learns from labels and needs at least 2 classes"
        )
    return tensor, array


def check_costs(costs: Costs, num_exits: int) -> np.ndarray:
    """Costs (K,) float64 in FLOPs, positive and never falling from exit to exit; else EestudyError."""
    array = np.asarray(costs.detach().cpu() if isinstance(costs, Tensor) else costs, dtype=np.float64)
    if array.shape != (num_exits,):
        raise EestudyError(f"costs: must hold one number for each of {num_exits} exits, got shape {array.shape}")
    if not np.isfinite(array).all() or array[0] <= 0 or (np.diff(array) < 0).any():
        raise EestudyError(f"costs: must be positive, finite and never fall from exit to exit, got {array.tolist()}")
    return array


def check_alike(one: Tensor, other: Tensor, names: tuple[str, str] = ("validation", "test")) -> None:
    """EestudyError when checked logits (K, N, C) differ in exits or classes."""
    first, second = tuple(one.shape), tuple(other.shape)
    if (first[0], first[2]) != (second[0], second[2]):
        raise EestudyError(f"logits: {names[0]} {first} and {names[1]} {second} differ in exits or classes")


def is_number(value: Any) -> bool:
    """Whether it is a number, not a bool and not NaN."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and not math.isnan(value)


def check_between(field: str, value: Any, low: float, high: float) -> float:
    """The number as a float if it is between `low` and `high`, without them; else EestudyError."""
    if not is_number(value) or not low < value < high:
        raise EestudyError(f"{field}: must be a number in ({low:g}, {high:g}), got {value!r}")
    return float(value)
