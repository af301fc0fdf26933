"""Exit rules: who leaves at which exit.

Every rule is one sentence: a sample exits at exit k when its score is strictly greater than a threshold. The scores are
those of `rules`, a file each. They are compared with thresholds in float64, where each float32 score is exact: no
threshold is rounded.

Thresholds are always on the score. Only `entropy(h)` takes the entropy itself: leave when H < h. It stores -h.
Regression, that is logits with one column, has no probabilities; patience is its only rule (`rules.patience`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError, check_name
from eestudy.registry import EXIT_RULES, LABEL_RULES

from .checks import ArrayLike, check_finite, check_logits, is_number
from .rules.patience import Steadiness
from .rules.rule import History, OfOneExit, Rule, predictions

BLOCK = 2**18  # numbers in a block of rows: small enough to stay in the cache


def rule_for(name: str, num_classes: int, k: int | None = None) -> Rule:
    """The rule for logits (b, C): for C = 1, which is regression, that of patience over k changes, by default 1.

    Raises EestudyError for another rule in regression, and for a k without it.
    """
    if name in LABEL_RULES and k is None:
        return LABEL_RULES[name]
    if num_classes > 1:
        if k is not None:
            raise EestudyError(
                f"k: {k!r} counts changes of a prediction, which is for regression; here are {num_classes} classes"
            )
        return EXIT_RULES[check_name("rule", name, EXIT_RULES)]
    if check_name("rule", name, EXIT_RULES) != "patience":
        raise EestudyError(
            f"rule: {name} is a score of class probabilities, and a regression has none; use patience, "
            "with a difference: patience(k, difference=...)"
        )
    return Steadiness(1 if k is None else check_whole("k", k))


def check_rule(name: str, several: bool) -> None:
    """EestudyError for a rule that is unknown, or of classes where a sample has several labels, or of labels else."""
    answers, valid = ("several labels a sample", LABEL_RULES) if several else ("classes", EXIT_RULES)
    if name not in valid and name in (*EXIT_RULES, *LABEL_RULES):
        raise EestudyError(f"rule: {name} is not for logits of {answers}; valid: {', '.join(valid)}")
    check_name("rule", name, valid)


def check_number(name: str, value: Any) -> None:
    if not is_number(value):
        raise EestudyError(f"{name} must be a number, got {value!r}")


def check_whole(name: str, value: Any) -> int:
    check_number(name, value)
    if value < 0 or not float(value).is_integer():
        raise EestudyError(f"{name} must be a whole number from 0 on, got {value!r}")
    return int(value)


@dataclass(frozen=True)
class ExitRule:
    """A rule with its threshold(s): `rule(history)` says who leaves now.

    name: of `registry.EXIT_RULES`. thresholds: one number for all exits, or K of them (the last is ignored, because
    nobody is asked at the last exit). inf: nobody leaves; -inf: everybody leaves. k: for regression, how many
    changes in a row must be small. temperatures: K of them; an exit's logits are divided by its own before they are
    scored, as `fit_temperatures` found them.
    Raises EestudyError for an unknown name, NaN, a finite threshold outside the score's range, and temperatures that
    are not above 0 or of a rule that reads no probabilities.
    """

    name: str
    thresholds: float | tuple[float, ...]
    k: int | None = None
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        rule = rule_for(self.name, 2 if self.k is None else 1, self.k)
        values = self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)
        if not values:
            raise EestudyError(f"{self.name}: thresholds must hold one number for each exit, got none")
        for value in values:
            check_number(f"{self.name} threshold", value)
            if not (math.isinf(value) or rule.low <= value <= rule.high):
                hint = "; those of regression need k" if self.name == "patience" and self.k is None else ""
                raise EestudyError(
                    f"{self.name} threshold must be in [{rule.low:g}, {rule.high:g}] or infinite, got {value!r}{hint}"
                )
        if self.temperatures is not None and not isinstance(rule, OfOneExit):
            raise EestudyError(f"temperatures: {self.name} reads no probabilities, so they have no effect on it")
        for value in self.temperatures or ():
            if not is_number(value) or not 0 < value < math.inf:
                raise EestudyError(f"temperatures: must be finite numbers above 0, got {value!r}")

    def __call__(self, history: History) -> Tensor:
        """history: logits (b, C) of exits 1..k -> bool (b,), True for a sample that leaves at exit k."""
        if len(history) == 0:
            raise EestudyError("an exit rule needs the logits of at least one exit, got an empty history")
        rule, k = self.rule_for(history[-1].shape[-1]), len(history)
        if self.temperatures:
            history = [scaled(history[-1], self.temperatures[k - 1])]  # all that a rule of one exit looks at
        return rule.score(history).double() > self.threshold(k)

    def rule_for(self, num_classes: int) -> Rule:
        """Whose score its thresholds are compared with, for logits (b, C); EestudyError where it is of another task."""
        if num_classes == 1 and self.name == "patience" and self.k is None:
            raise EestudyError(
                "rule: predictions of a regression are never equal; give the difference that counts as none: "
                "patience(k, difference=...)"
            )
        return rule_for(self.name, num_classes, self.k)

    def check_answers(self, multi_label: bool | None) -> None:
        """EestudyError when it is of classes where a sample has several labels, or the other way; None: not known."""
        if multi_label is not None:
            check_rule(self.name, multi_label)

    def check_exits(self, num_exits: int) -> None:
        """EestudyError when it has thresholds for another number of exits."""
        for name in ("thresholds", "temperatures"):
            values = getattr(self, name)
            if isinstance(values, tuple) and len(values) != num_exits:
                raise EestudyError(f"rule: it has {len(values)} {name}, the model has {num_exits} exits")

    def threshold(self, k: int) -> float:
        """The threshold of exit k (from 1)."""
        if not isinstance(self.thresholds, tuple):
            return self.thresholds
        if k > len(self.thresholds):
            raise EestudyError(f"the rule has thresholds for {len(self.thresholds)} exits, the model has exit {k}")
        return self.thresholds[k - 1]


def scaled(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits of an exit by its temperature: float32, the same in any batch."""
    return (logits.double() / temperature).float()


def _bounded(name: str, value: Any, low: float, high: float) -> float:
    check_number(name, value)
    if not low <= value <= high or math.isinf(value):
        raise EestudyError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
    return float(value)


def max_probability(t: float) -> ExitRule:
    """Leave when the largest softmax probability is strictly greater than t in [0, 1]."""
    return ExitRule("max-probability", _bounded("max-probability threshold t", t, 0.0, 1.0))


def every_label(t: float) -> ExitRule:
    """Several labels a sample: leave when max(p, 1 - p) of each is strictly greater than t in [0.5, 1], by sigmoid."""
    return ExitRule("every-label", _bounded("every-label threshold t", t, 0.5, 1.0))


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


def per_exit(
    thresholds: Sequence[float] | ArrayLike, rule: str = "max-probability", k: int | None = None,
    temperatures: Sequence[float] | ArrayLike | None = None,
) -> ExitRule:  # fmt: skip
    """One threshold on the score for each of K exits, as `calibrate` returns them; the last is ignored.

    k: for regression, the one that the thresholds were fitted for (1 by default there). temperatures (K,): those of
    `fit_temperatures`, if thresholds were fitted to logits that `apply_temperatures` gave.
    """
    values = np.asarray(thresholds, dtype=np.float64)
    if values.ndim != 1:
        raise EestudyError(f"thresholds must be a list with one number for each exit, got shape {values.shape}")
    by = None if temperatures is None else tuple(float(value) for value in np.asarray(temperatures).reshape(-1))
    return ExitRule(rule, tuple(float(value) for value in values), k, by)


# ---------------------------------------------------------------- simulation on stored logits


def score_table(tensor: Tensor, rule: str, k: int | None = None, last: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits (K, N, C) -> scores (K, N) float32 and predicted classes (K, N) int64, in one pass.

    The predictions serve both: no score needs a second search for the largest logit. last: False leaves out the scores
    of exit K, where nobody is asked: (K - 1, N).
    Raises EestudyError for logits that are not finite.
    """
    num_exits, num_samples, num_classes = tensor.shape
    scored = rule_for(rule, num_classes, k)
    rows = max(1, BLOCK // num_classes)
    spare = torch.empty(2, min(rows, num_samples), num_classes)
    predicted = torch.empty((num_exits, num_samples), dtype=torch.int64)
    found = torch.empty((num_exits if last else num_exits - 1, num_samples), dtype=torch.float32)
    for start in range(0, num_samples, rows):
        here = slice(start, start + rows)
        block = tensor[:, here]
        for number, logits in enumerate(block):
            check_finite(logits, tensor)  # while they are in the cache
            predicted[number, here] = predictions(logits)
            if number < len(found):
                before = found[number - 1, here] if number else None
                found[number, here] = scored.of_stored(
                    block[: number + 1], predicted[: number + 1, here], before, spare
                )
    return found.numpy(), predicted.numpy()


def scores(logits: ArrayLike, rule: str | ExitRule = "max-probability") -> np.ndarray:
    """Scores (K, N) float32 of stored logits (K, N, C): the numbers that the rule sees in real inference."""
    tensor = check_logits(logits)
    if not isinstance(rule, ExitRule):
        return score_table(tensor, rule)[0]
    rule.rule_for(tensor.shape[2])  # refuses a rule of the other task
    if rule.temperatures:
        rule.check_exits(len(tensor))
        tensor = scaled(tensor, torch.tensor(rule.temperatures, dtype=torch.float64)[:, None, None])
    return score_table(tensor, rule.name, rule.k)[0]


def simulate(logits: ArrayLike, rule: ExitRule) -> np.ndarray:
    """Where each sample leaves: logits (K, N, C) -> exit_index (N,) int64 in 1..K.

    The earliest exit k < K at which the score is strictly greater than the threshold, else K. Equal to what
    `MultiExit.predict` returns for the same logits.
    Raises EestudyError when the rule has thresholds for another number of exits.
    """
    score = scores(logits, rule)
    rule.check_exits(len(score))
    return leave_at(score, np.array([rule.threshold(k) for k in range(1, len(score) + 1)]))


def leave_at(score: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Scores (K, N) and thresholds (K,) -> exit_index (N,) in 1..K."""
    leaves = score.astype(np.float64) > thresholds[:, None]
    leaves[-1] = True
    return leaves.argmax(axis=0) + 1
