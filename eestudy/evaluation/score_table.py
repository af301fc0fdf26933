"""Exit rules by name, and their scores of stored logits, in one pass.

Regression, that is logits with one column, has no probabilities; patience is its only rule there (`rules.patience`).
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.registry import EXIT_RULES

from .checks import check_finite, is_number
from .rules.patience import Steadiness
from .rules.rule import Rule, predictions

# Numbers in a block of rows: small enough to stay in the cache.
_BLOCK = 2**18


def check_rule(name: Any) -> str:
    """The name of a known rule, unchanged; EestudyError with the nearest name otherwise."""
    if isinstance(name, str) and name in EXIT_RULES:
        return name
    near = difflib.get_close_matches(str(name), EXIT_RULES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise EestudyError(f"rule: unknown exit rule {name!r}; {hint}choose one of {', '.join(EXIT_RULES)}")


def rule_for(name: str, num_classes: int, k: int | None = None) -> Rule:
    """The rule for logits (b, C): for C = 1, which is regression, that of patience over k changes, by default 1.

    Raises EestudyError for another rule in regression, and for a k without it.
    """
    if num_classes > 1:
        if k is not None:
            raise EestudyError(
                f"k: {k!r} counts changes of a prediction, which is for regression; here are {num_classes} classes"
            )
        return EXIT_RULES[check_rule(name)]
    if check_rule(name) != "patience":
        raise EestudyError(
            f"rule: {name} is a score of class probabilities, and a regression has none; use patience, "
            "with a difference: patience(k, difference=...)"
        )
    return Steadiness(1 if k is None else check_whole("k", k))


def check_whole(name: str, value: Any) -> int:
    """A whole number from 0 on, as an int; EestudyError otherwise."""
    if not is_number(value):
        raise EestudyError(f"{name} must be a number, got {value!r}")
    if value < 0 or not float(value).is_integer():
        raise EestudyError(f"{name} must be a whole number from 0 on, got {value!r}")
    return int(value)


def score_table(tensor: Tensor, rule: str, k: int | None = None, last: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits (K, N, C) -> scores (K, N) float32 and predicted classes (K, N) int64, in one pass.

    The predictions serve both: no score needs a second search for the largest logit. last: False leaves out the scores
    of exit K, where nobody is asked: (K - 1, N).
    Raises EestudyError for logits that are not finite.
    """
    num_exits, num_samples, num_classes = tensor.shape
    scored = rule_for(rule, num_classes, k)
    rows = max(1, _BLOCK // num_classes)
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
