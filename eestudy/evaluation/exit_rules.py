"""Exit rules: who leaves at which exit.

Every rule is one sentence: a sample exits at exit k when its score is strictly greater than a threshold. The scores are
those of `rules`, a file each. They are compared with thresholds in float64, where each float32 score is exact: no
threshold is rounded.

Thresholds are always on the score. Only `entropy(h)` takes the entropy itself: leave when H < h.
It stores -h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from eestudy.config import EestudyError

from .checks import ArrayLike, check_logits, is_number
from .rules.rule import History, Rule
from .score_table import check_rule, check_whole, rule_for, score_table


@dataclass(frozen=True)
class ExitRule:
    """A rule with its threshold(s): `rule(history)` says who leaves now.

    name: of `registry.EXIT_RULES`. thresholds: one number for all exits, or K of them (the last is ignored, because
    nobody is asked at the last exit). inf: nobody leaves; -inf: everybody leaves. k: for regression, how many
    changes in a row must be small.
    Raises EestudyError for an unknown name, NaN, or a finite threshold outside the score's range.
    """

    name: str
    thresholds: float | tuple[float, ...]
    k: int | None = None

    def __post_init__(self) -> None:
        rule = rule_for(self.name, 2 if self.k is None else 1, self.k)
        low, high = rule.low, rule.high
        values = self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)
        if not values:
            raise EestudyError(f"{self.name}: thresholds must hold one number for each exit, got none")
        for value in values:
            _check_number(f"{self.name} threshold", value)
            if not (math.isinf(value) or low <= value <= high):
                hint = "; those of regression need k" if self.name == "patience" and self.k is None else ""
                raise EestudyError(
                    f"{self.name} threshold must be in [{low:g}, {high:g}] or infinite, got {value!r}{hint}"
                )

    def __call__(self, history: History) -> Tensor:
        """history: logits (b, C) of exits 1..k -> bool (b,), True for a sample that leaves at exit k."""
        if len(history) == 0:
            raise EestudyError("an exit rule needs the logits of at least one exit, got an empty history")
        return self.rule_for(history[-1].shape[-1]).score(history).double() > self.threshold(len(history))

    def rule_for(self, num_classes: int) -> Rule:
        """Whose score its thresholds are compared with, for logits (b, C); EestudyError where it is of another task."""
        if num_classes == 1 and self.name == "patience" and self.k is None:
            raise EestudyError(
                "rule: predictions of a regression are never equal; give the difference that counts as none: "
                "patience(k, difference=...)"
            )
        return rule_for(self.name, num_classes, self.k)

    def check_exits(self, num_exits: int) -> None:
        """EestudyError when it has thresholds for another number of exits."""
        if isinstance(self.thresholds, tuple) and len(self.thresholds) != num_exits:
            raise EestudyError(f"rule: it has {len(self.thresholds)} thresholds, the model has {num_exits} exits")

    def threshold(self, k: int) -> float:
        """The threshold of exit k (from 1)."""
        if not isinstance(self.thresholds, tuple):
            return self.thresholds
        if k > len(self.thresholds):
            raise EestudyError(f"the rule has thresholds for {len(self.thresholds)} exits, the model has exit {k}")
        return self.thresholds[k - 1]


def _check_number(what: str, value: Any) -> None:
    if not is_number(value):
        raise EestudyError(f"{what} must be a number, got {value!r}")


def _bounded(name: str, value: Any, low: float, high: float) -> float:
    _check_number(name, value)
    if not low <= value <= high or math.isinf(value):
        raise EestudyError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
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
    k = check_whole("patience k", k)
    if difference is None:
        return ExitRule("patience", float(k))
    if _bounded("patience difference", difference, 0.0, math.inf) == 0:
        raise EestudyError(f"patience difference must be above 0, got {difference!r}: no change is smaller than that")
    return ExitRule("patience", -float(difference), k)


def per_exit(thresholds: Sequence[float] | ArrayLike, rule: str = "max-probability", k: int | None = None) -> ExitRule:
    """One threshold on the score for each of K exits, as `calibrate` returns them; the last is ignored.

    k: for regression, the one that the thresholds were fitted for (1 by default there).
    """
    values = np.asarray(thresholds, dtype=np.float64)
    if values.ndim != 1:
        raise EestudyError(f"thresholds must be a list with one number for each exit, got shape {values.shape}")
    return ExitRule(check_rule(rule), tuple(float(value) for value in values), k)


# ---------------------------------------------------------------- simulation on stored logits


def scores(logits: ArrayLike, rule: str | ExitRule = "max-probability", k: int | None = None) -> np.ndarray:
    """Scores (K, N) float32 of stored logits (K, N, C): the numbers that the rule sees in real inference.

    k: for regression, if `rule` is a name: see `rules.patience`.
    """
    tensor = check_logits(logits)
    if isinstance(rule, ExitRule):
        rule.rule_for(tensor.shape[2])  # refuses a rule of the other task
        k = rule.k
        rule = rule.name
    return score_table(tensor, rule, k)[0]


def simulate(logits: ArrayLike, rule: ExitRule) -> np.ndarray:
    """Where each sample leaves: logits (K, N, C) -> exit_index (N,) int64 in 1..K.

    The earliest exit k < K at which the score is strictly greater than the threshold, else K. Equal to what
    `MultiExit.predict` returns for the same logits.
    Raises EestudyError when the rule has thresholds for another number of exits.
    """
    score = scores(logits, rule)
    own = rule.thresholds if isinstance(rule.thresholds, tuple) else (rule.thresholds,) * len(score)
    if len(own) != len(score):
        raise EestudyError(f"the rule has {len(own)} thresholds, the logits have {len(score)} exits")
    return leave_at(score, np.asarray(own, dtype=np.float64))


def leave_at(score: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Scores (K, N) and thresholds (K,) -> exit_index (N,) in 1..K."""
    leaves = score.astype(np.float64) > thresholds[:, None]
    leaves[-1] = True
    return leaves.argmax(axis=0) + 1
