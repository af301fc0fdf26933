"""Exit rules: who leaves at which exit.

Every rule is one sentence: a sample leaves at exit k when its score is strictly greater than a threshold.

| rule            | score at exit k                                         | source                      |
|-----------------|---------------------------------------------------------|-----------------------------|
| max-probability | largest softmax probability                             | Kaya et al. 2019 (SDN)      |
| entropy         | minus the softmax entropy, in nats                      | Teerapittayanon et al. 2016 |
| margin          | largest less second largest softmax probability         |                             |
| patience        | length of the run of equal predictions that ends at k,  | Zhou et al. 2020 (PBEE)     |
|                 | 1 at the first exit                                     |                             |

Thresholds are always on the score. Only `entropy(h)` takes the entropy itself: leave when H < h.
It stores -h.

Regression, that is logits with one column (the prediction), has no probabilities; patience is its only rule. A sample
leaves when each of its last k changes, from exit to exit, was smaller than a difference d, in the units of the labels
(Zhou et al. 2020). The score is minus the largest of the last k changes, so the threshold is -d; before
k changes were seen, it is `TOO_EARLY`, which no finite d reaches. k is 1 unless another is given.

Inference (`rule(history)`) and simulation (`simulate`, `scores`) call the same row-wise functions in `RULES`,
so both see the same float32 numbers, whatever the batch size. Scores are compared with thresholds in float64,
where each float32 score is exact: no threshold is rounded.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError

ArrayLike = np.ndarray | Tensor
History = Sequence[Tensor] | Tensor


# ---------------------------------------------------------------- scores


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax over classes in float32, row by row: (b, C) -> (b, C)."""
    return torch.softmax(logits.float(), dim=-1)


def _max_probability_score(history: History) -> Tensor:
    return _probabilities(history[-1]).amax(dim=-1)


def _entropy_score(history: History) -> Tensor:
    log_p = torch.log_softmax(history[-1].float(), dim=-1)
    return (log_p.exp() * log_p).sum(dim=-1)


def _margin_score(history: History) -> Tensor:
    p = _probabilities(history[-1])
    first = p.amax(dim=-1)
    p.scatter_(-1, predictions(p).unsqueeze(-1), -1.0)  # takes the winner out; topk(2) is five times slower
    return first - p.amax(dim=-1)


def predictions(logits: Tensor) -> Tensor:
    """Predicted classes (..., C) -> (...), the first one where several logits are largest."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # numpy's argmax is vectorized and several times faster than torch's; both take the first of equals.
        return torch.from_numpy(np.asarray(np.argmax(logits.detach().numpy(), axis=-1)))
    return logits.argmax(dim=-1)


def _patience_score(history: History) -> Tensor:
    last = predictions(history[-1])
    run = torch.ones_like(last)
    unbroken = torch.ones_like(last, dtype=torch.bool)
    for k in range(len(history) - 2, -1, -1):
        unbroken &= predictions(history[k]) == last
        run += unbroken
    return run.float()


TOO_EARLY = torch.finfo(torch.float32).min
"""Score of a regression's exits 1..k: above -inf alone, the threshold at which everybody leaves."""


def _steadiness_score(history: History, k: int) -> Tensor:
    """Minus the largest of the last k changes of a prediction: (b, 1) of exits 1.. -> (b,)."""
    last = [logits[:, 0].float() for logits in history[-(k + 1) :]]
    if len(last) <= k:
        return torch.full_like(last[0], TOO_EARLY)
    largest = torch.zeros_like(last[0])
    for before, after in pairwise(last):
        largest = torch.maximum(largest, (after - before).abs())
    return -largest


RULES: dict[str, Callable[[History], Tensor]] = {
    "max-probability": _max_probability_score,
    "entropy": _entropy_score,
    "margin": _margin_score,
    "patience": _patience_score,
}
"""Name -> score function of classification: logits (b, C) of exits 1..k of the samples still inside -> scores (b,)."""

# Range in which a finite threshold on the score makes sense.
_RANGES = {
    "max-probability": (0.0, 1.0),
    "entropy": (-math.inf, 0.0),
    "margin": (0.0, 1.0),
    "patience": (0.0, math.inf),
}
_REGRESSION_RANGE = (-math.inf, 0.0)


def check_rule(name: Any) -> str:
    """The name of a known rule, unchanged; ValueError with the nearest name otherwise."""
    if isinstance(name, str) and name in RULES:
        return name
    near = difflib.get_close_matches(str(name), RULES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown exit rule {name!r}; {hint}choose one of {', '.join(RULES)}")


def score_function(name: str, num_classes: int, k: int | None = None) -> Callable[[History], Tensor]:
    """The score of a rule for logits (b, C): for C = 1, which is regression, that of patience over k changes.

    Raises EestudyError for another rule in regression, and for a k without it.
    """
    if num_classes > 1:
        if k is not None:
            raise EestudyError(
                f"k: {k!r} counts changes of a prediction, which is for regression; here are {num_classes} classes"
            )
        return RULES[check_rule(name)]
    if check_rule(name) != "patience":
        raise EestudyError(
            f"rule: {name} is a score of class probabilities, and a regression has none; use patience, "
            "with a difference: patience(k, difference=...)"
        )
    return partial(_steadiness_score, k=1 if k is None else _whole("k", k))


# ---------------------------------------------------------------- rules


@dataclass(frozen=True)
class ExitRule:
    """A rule with its threshold(s): `rule(history)` says who leaves now.

    name: a key of `RULES`. thresholds: one number for all exits, or K of them (the last is ignored, because
    nobody is asked at the last exit). inf: nobody leaves; -inf: everybody leaves. k: for regression, how many
    changes in a row must be small.
    Raises ValueError for an unknown name, NaN, or a finite threshold outside the score's range.
    """

    name: str
    thresholds: float | tuple[float, ...]
    k: int | None = None

    def __post_init__(self) -> None:
        check_rule(self.name)
        if self.k is not None:
            score_function(self.name, 1, self.k)
        low, high = _RANGES[self.name] if self.k is None else _REGRESSION_RANGE
        values = self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)
        if not values:
            raise ValueError(f"{self.name}: thresholds must hold one number for each exit, got none")
        for value in values:
            _check_number(f"{self.name} threshold", value)
            if not (math.isinf(value) or low <= value <= high):
                hint = "; those of regression need k" if self.name == "patience" and self.k is None else ""
                raise ValueError(
                    f"{self.name} threshold must be in [{low:g}, {high:g}] or infinite, got {value!r}{hint}"
                )

    def __call__(self, history: History) -> Tensor:
        """history: logits (b, C) of exits 1..k -> bool (b,), True for a sample that leaves at exit k."""
        if len(history) == 0:
            raise ValueError("an exit rule needs the logits of at least one exit, got an empty history")
        return self.score_function(history[-1].shape[-1])(history).double() > self.threshold(len(history))

    def score_function(self, num_classes: int) -> Callable[[History], Tensor]:
        """What its thresholds are compared with, for logits (b, C); EestudyError when they are not of its task."""
        if num_classes == 1 and self.name == "patience" and self.k is None:
            raise EestudyError(
                "rule: predictions of a regression are never equal; give the difference that counts as none: "
                "patience(k, difference=...)"
            )
        return score_function(self.name, num_classes, self.k)

    def threshold(self, k: int) -> float:
        """The threshold of exit k (from 1)."""
        if not isinstance(self.thresholds, tuple):
            return self.thresholds
        if k > len(self.thresholds):
            raise ValueError(f"the rule has thresholds for {len(self.thresholds)} exits, the model has exit {k}")
        return self.thresholds[k - 1]


def _check_number(what: str, value: Any) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or math.isnan(value):
        raise ValueError(f"{what} must be a number, got {value!r}")


def _bounded(name: str, value: Any, low: float, high: float) -> float:
    _check_number(name, value)
    if not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
    return float(value)


def max_probability(t: float) -> ExitRule:
    """Leave when the largest softmax probability is strictly greater than t in [0, 1]."""
    return ExitRule("max-probability", _bounded("max-probability threshold t", t, 0.0, 1.0))


def entropy(h: float) -> ExitRule:
    """Leave when the softmax entropy is strictly smaller than h >= 0, in nats. The rule stores -h."""
    return ExitRule("entropy", -_bounded("entropy threshold h", h, 0.0, math.inf))


def margin(m: float) -> ExitRule:
    """Leave when the two largest softmax probabilities differ by strictly more than m in [0, 1]."""
    return ExitRule("margin", _bounded("margin threshold m", m, 0.0, 1.0))


def patience(k: int, difference: float | None = None) -> ExitRule:
    """Leave after more than k consecutive equal predictions; k = 0, 1, ... (k = 0: at the first exit).

    difference: for regression, above 0, in the units of the labels: predictions that differ by less count as equal,
    each compared with the one before. The rule stores minus the difference.
    """
    k = _whole("patience k", k)
    if difference is None:
        return ExitRule("patience", float(k))
    if _bounded("patience difference", difference, 0.0, math.inf) == 0:
        raise ValueError(f"patience difference must be above 0, got {difference!r}: no change is smaller than that")
    return ExitRule("patience", -float(difference), k)


def _whole(name: str, value: Any) -> int:
    _check_number(name, value)
    if value < 0 or not float(value).is_integer():
        raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}")
    return int(value)


def per_exit(thresholds: Sequence[float] | ArrayLike, rule: str = "max-probability", k: int | None = None) -> ExitRule:
    """One threshold on the score for each of K exits, as `calibrate` returns them; the last is ignored.

    k: for regression, the one that the thresholds were fitted for (1 by default there).
    """
    values = np.asarray(thresholds, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"thresholds must be a list with one number for each exit, got shape {values.shape}")
    return ExitRule(check_rule(rule), tuple(float(value) for value in values), k)


# ---------------------------------------------------------------- simulation on stored logits


# Numbers in a block of rows. Small blocks stay in the cache; temporaries of whole exits take twice the time,
# in page faults.
_BLOCK = 2**17


def scores(logits: ArrayLike, rule: str | ExitRule = "max-probability", k: int | None = None) -> np.ndarray:
    """Scores (K, N) float32 of stored logits (K, N, C): the numbers that the rule sees in real inference.

    k: for regression, if `rule` is a name: see above.
    """
    tensor = check_logits(logits)
    num_exits, num_samples, num_classes = tensor.shape
    score = rule.score_function(num_classes) if isinstance(rule, ExitRule) else score_function(rule, num_classes, k)
    rows = max(1, _BLOCK // num_classes)
    found = np.empty((num_exits, num_samples), dtype=np.float32)
    for start in range(0, num_samples, rows):
        block = tensor[:, start : start + rows]
        for number in range(num_exits):
            found[number, start : start + rows] = score(block[: number + 1]).numpy()
    return found


def simulate(logits: ArrayLike, rule: ExitRule) -> np.ndarray:
    """Where each sample leaves: logits (K, N, C) -> exit_index (N,) int64 in 1..K.

    The earliest exit k < K at which the score is strictly greater than the threshold, else K. Equal to what
    `MultiExit.predict` returns for the same logits.
    Raises ValueError when the rule has thresholds for another number of exits.
    """
    score = scores(logits, rule)
    own = rule.thresholds if isinstance(rule.thresholds, tuple) else (rule.thresholds,) * len(score)
    if len(own) != len(score):
        raise ValueError(f"the rule has {len(own)} thresholds, the logits have {len(score)} exits")
    return leave_at(score, np.asarray(own, dtype=np.float64))


def leave_at(score: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Scores (K, N) and thresholds (K,) -> exit_index (N,) in 1..K."""
    leaves = score.astype(np.float64) > thresholds[:, None]
    leaves[-1] = True
    return leaves.argmax(axis=0) + 1


# ---------------------------------------------------------------- checks shared by the whole room


def check_logits(logits: ArrayLike) -> Tensor:
    """Logits (K, N, C) as a contiguous float32 tensor on the CPU.

    Raises ValueError unless K >= 1, N >= 1, C >= 1 (1: regression) and every value is finite.
    """
    if isinstance(logits, np.ndarray) and not logits.flags.writeable:
        logits = logits.copy()  # torch warns about read-only memory
    tensor = torch.as_tensor(logits).detach().to("cpu", torch.float32).contiguous()
    if tensor.ndim != 3:
        raise ValueError(f"logits must have shape (exits, samples, classes), got {tuple(tensor.shape)}")
    num_exits, num_samples, num_classes = tensor.shape
    if num_exits < 1 or num_samples < 1 or num_classes < 1:
        raise ValueError(
            "logits must hold at least 1 exit, 1 sample and 2 classes, or 1 output of a regression, "
            f"got {num_exits} exits, {num_samples} samples, {num_classes} classes"
        )
    # One cheap pass: a sum with a NaN or an infinity in it is never finite.
    if not math.isfinite(tensor.sum().item()):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise ValueError(f"logits must be finite, got {bad} NaN or infinite of {tensor.numel()} values")
    return tensor


def check_predictions(logits: ArrayLike, labels: ArrayLike) -> tuple[Tensor, np.ndarray]:
    """Logits as in `check_logits` and labels (N,), int64 in 0..C-1, for C = 1 finite float32; else ValueError."""
    tensor = check_logits(logits)
    _, num_samples, num_classes = tensor.shape
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (num_samples,):
        raise ValueError(f"labels must have shape ({num_samples},) to match the logits, got {array.shape}")
    if num_classes == 1:
        if array.dtype.kind != "f":
            raise ValueError(
                f"logits of 1 class are a regression, whose labels must be real numbers, got {array.dtype}; "
                "classification needs at least 2 classes"
            )
        if bad := int((~np.isfinite(array)).sum()):
            raise ValueError(f"labels must be finite, got {bad} NaN or infinite of {num_samples} values")
        return tensor, array.astype(np.float32)
    if array.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {array.dtype}")
    if array.min() < 0 or array.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {array.min()}..{array.max()}")
    return tensor, array.astype(np.int64)


def check_costs(costs: Sequence[float] | ArrayLike, num_exits: int) -> np.ndarray:
    """Costs (K,) float64 in FLOPs, positive and never falling from exit to exit; else ValueError."""
    array = np.asarray(costs.detach().cpu() if isinstance(costs, Tensor) else costs, dtype=np.float64)
    if array.shape != (num_exits,):
        raise ValueError(f"costs must hold one number for each of {num_exits} exits, got shape {array.shape}")
    if not np.isfinite(array).all() or array[0] <= 0 or (np.diff(array) < 0).any():
        raise ValueError(f"costs must be positive, finite and never fall from exit to exit, got {array.tolist()}")
    return array
