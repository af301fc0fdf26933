"""How sure an exit is: the scores that exit rules compare with thresholds.

| rule            | score at exit k                                         | source                      |
|-----------------|---------------------------------------------------------|-----------------------------|
| max-probability | largest softmax probability                             | Kaya et al. 2019 (SDN)      |
| entropy         | minus the softmax entropy, in nats                      | Teerapittayanon et al. 2016 |
| margin          | largest less second largest softmax probability         |                             |
| patience        | length of the run of equal predictions that ends at k,  | Zhou et al. 2020 (PBEE)     |
|                 | 1 at the first exit                                     |                             |

Regression, that is logits with one column (the prediction), has no probabilities; patience is its only rule. A sample
leaves when each of its last k changes, from exit to exit, was smaller than a difference d, in the units of the labels
(Zhou et al. 2020). The score is minus the largest of the last k changes, so the threshold is -d; before
k changes were seen, it is `TOO_EARLY`, which no finite d reaches. k is 1 unless another is given.

Inference (`rule(history)`) and simulation (`simulate`, `scores`) call the same row-wise functions, so both see the
same float32 numbers, whatever the batch size.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError

from .checks import check_finite, is_number

History = Sequence[Tensor] | Tensor


def predictions(logits: Tensor) -> Tensor:
    """Predicted classes (..., C) -> (...), the first one where several logits are largest in float32."""
    logits = logits.float()  # as they are stored: two that differ in float64 alone are equal
    if logits.device.type == "cpu":
        # numpy's argmax is vectorized and several times faster than torch's; both take the first of equals.
        return torch.from_numpy(np.asarray(np.argmax(logits.detach().numpy(), axis=-1)))
    return logits.argmax(dim=-1)


# ---------------------------------------------------------------- of one exit: logits (b, C) -> (b,)
# `predicted` (b,), where it is known already, saves the search for the largest logit; `spare` (2, b or more, C) is
# memory to work in, as fresh memory would cost as much as the arithmetic. Neither changes a number.


def _probabilities(logits: Tensor, spare: Tensor | None) -> Tensor:
    """Softmax over classes in float32, row by row: (b, C) -> (b, C)."""
    return torch.softmax(logits.float(), dim=-1, out=_piece(spare, 0, logits))


def _piece(spare: Tensor | None, number: int, logits: Tensor) -> Tensor | None:
    return None if spare is None else spare[number, : len(logits)]


def _max_probability(logits: Tensor, predicted: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
    p = _probabilities(logits, spare)
    # The largest logit has the largest probability, rounding never changes an order.
    return p.amax(dim=-1) if predicted is None else p.gather(-1, predicted.unsqueeze(-1)).squeeze(-1)


def _entropy(logits: Tensor, predicted: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
    """sum p log p = sum(e d) / S - log S, with d = logits - largest, e = exp(d), S = sum(e).

    Neither term is above 0, so nothing cancels and the score never is; and there is one exponential for each logit.
    """
    logits = logits.float()
    largest = logits.amax(dim=-1, keepdim=True) if predicted is None else logits.gather(-1, predicted.unsqueeze(-1))
    d = torch.sub(logits, largest, out=_piece(spare, 0, logits))
    e = torch.exp(d, out=_piece(spare, 1, logits))
    total = e.sum(dim=-1)
    return _row_products(d, e) / total - total.log()


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """sum(left * right) of each row: two (b, C) -> (b,). The sum of a row is the same in any batch."""
    if left.device.type == "cpu":  # one pass where torch takes two
        return torch.from_numpy(np.vecdot(left.detach().numpy(), right.detach().numpy()))
    return (left * right).sum(dim=-1)


def _margin(logits: Tensor, predicted: Tensor | None = None, spare: Tensor | None = None) -> Tensor:
    p = _probabilities(logits, spare)
    winner = (predictions(p) if predicted is None else predicted).unsqueeze(-1)
    first = p.gather(-1, winner).squeeze(-1)
    p.scatter_(-1, winner, -1.0)  # takes the winner out; topk(2) is five times slower
    return first - p.amax(dim=-1)


_OF_ONE_EXIT: dict[str, Callable[[Tensor, Tensor | None, Tensor | None], Tensor]] = {
    "max-probability": _max_probability,
    "entropy": _entropy,
    "margin": _margin,
}

# ---------------------------------------------------------------- of all exits so far


def _last(score: Callable[[Tensor, Tensor | None, Tensor | None], Tensor], history: History) -> Tensor:
    return score(history[-1], None, None)


def _patience_score(history: History) -> Tensor:
    """How many predictions in a row, back from the last, are the same; one search for all exits."""
    predicted = predictions(history if isinstance(history, Tensor) else torch.stack(list(history)))
    return (predicted == predicted[-1]).flip(0).float().cumprod(0).sum(0)


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
    **{name: partial(_last, score) for name, score in _OF_ONE_EXIT.items()},
    "patience": _patience_score,
}
"""Name -> score function of classification: logits (b, C) of exits 1..k of the samples still inside -> scores (b,)."""


def check_rule(name: Any) -> str:
    """The name of a known rule, unchanged; EestudyError with the nearest name otherwise."""
    if isinstance(name, str) and name in RULES:
        return name
    near = difflib.get_close_matches(str(name), RULES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise EestudyError(f"rule: unknown exit rule {name!r}; {hint}choose one of {', '.join(RULES)}")


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
    return partial(_steadiness_score, k=1 if k is None else check_whole("k", k))


def check_whole(name: str, value: Any) -> int:
    """A whole number from 0 on, as an int; EestudyError otherwise."""
    if not is_number(value):
        raise EestudyError(f"{name} must be a number, got {value!r}")
    if value < 0 or not float(value).is_integer():
        raise EestudyError(f"{name} must be a whole number from 0 on, got {value!r}")
    return int(value)


# ---------------------------------------------------------------- of stored logits


# Numbers in a block of rows: small enough to stay in the cache.
_BLOCK = 2**18


def score_table(tensor: Tensor, rule: str, k: int | None = None, last: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits (K, N, C) -> scores (K, N) float32 and predicted classes (K, N) int64, in one pass.

    The predictions serve both: no score needs a second search for the largest logit. last: False leaves out the scores
    of exit K, where nobody is asked: (K - 1, N).
    Raises EestudyError for logits that are not finite.
    """
    num_exits, num_samples, num_classes = tensor.shape
    score = score_function(rule, num_classes, k)
    own = _OF_ONE_EXIT.get(rule) if num_classes > 1 else None
    rows = max(1, _BLOCK // num_classes)
    spare = torch.empty(2, min(rows, num_samples), num_classes)
    predicted = torch.empty((num_exits, num_samples), dtype=torch.int64)
    found = torch.empty((num_exits if last else num_exits - 1, num_samples), dtype=torch.float32)
    for start in range(0, num_samples, rows):
        block = tensor[:, start : start + rows]
        for number, logits in enumerate(block):
            here = slice(start, start + rows)
            check_finite(logits, tensor)  # while they are in the cache
            predicted[number, here] = predictions(logits)
            if number == len(found):
                continue
            if own is not None:
                found[number, here] = own(logits, predicted[number, here], spare)
            elif num_classes == 1:
                found[number, here] = score(block[: number + 1])
    if num_classes > 1 and own is None:
        found = _runs(predicted[: len(found)])
    return found.numpy(), predicted.numpy()


def _runs(predicted: Tensor) -> Tensor:
    """Predicted classes (K, N) -> how many exits in a row agree, up to and with each: float32 (K, N)."""
    runs = torch.ones(predicted.shape, dtype=torch.float32)
    for number in range(1, len(predicted)):
        runs[number] += runs[number - 1] * (predicted[number] == predicted[number - 1])
    return runs
