"""Out-of-distribution detection: does an exit know that a sample is of none of its classes?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from eestudy.config import EestudyError, check_name

from .checks import ArrayLike, check_logits
from .exit_rules import ExitRule
from .reliability import where_they_leave
from .score_table import score_table

SCORES: dict[str, Callable[[Tensor], np.ndarray]] = {
    "max-probability": lambda logits: score_table(logits[None], "max-probability")[0][0],
    "entropy": lambda logits: score_table(logits[None], "entropy")[0][0],
    "energy": lambda logits: torch.logsumexp(logits.double(), dim=-1).numpy(),
}
"""Name -> score (N,) of logits (N, C), larger for what looks familiar: the largest softmax probability (Hendrycks and
Gimpel 2017), minus the entropy, and minus the energy, that is log sum exp of the logits (Liu et al. 2020, T = 1)."""


def ood_detection(
    inside: ArrayLike, outside: ArrayLike, rule: ExitRule | None = None, scores: Sequence[str] = tuple(SCORES)
) -> pd.DataFrame:
    """AUROC of telling samples of the network's own data set (positive) from others, by exit and score.

    inside (K, N, C), outside (K, M, C): logits of the same network. With a rule also for the network that leaves early
    by it, every sample scored where it leaves. One row a system and score: system ("exit 1" .., "dynamic"), score,
    auroc (1: all told apart; 0.5: none). Raises EestudyError for bad arrays, other exits or classes, a regression.
    """
    first, second = check_logits(inside), check_logits(outside)
    if (first.shape[0], first.shape[2]) != (second.shape[0], second.shape[2]):
        raise EestudyError(
            f"logits: inside {tuple(first.shape)} and outside {tuple(second.shape)} differ in exits or classes"
        )
    if first.shape[2] == 1:
        raise EestudyError("logits: have 1 output, which is a regression; these scores need at least 2 classes")
    pairs = [(f"exit {number}", first[number - 1], second[number - 1]) for number in range(1, len(first) + 1)]
    if rule is not None:
        pairs.append(("dynamic", where_they_leave(first, rule), where_they_leave(second, rule)))
    truth = np.arange(first.shape[1] + second.shape[1]) < first.shape[1]
    rows = []
    for system, own, other in pairs:
        for name in scores:
            score = SCORES[check_name("scores", name, SCORES)]
            auroc = roc_auc_score(truth, np.concatenate([score(own), score(other)]))
            rows.append({"system": system, "score": name, "auroc": float(auroc)})
    return pd.DataFrame(rows)
