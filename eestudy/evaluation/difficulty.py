"""Which samples are hard, and where they leave. K exits, N samples, S runs of one cell on the same samples.

difficulty (N,): `share_wrong`; agreement (N,): the share of the (run, exit) pairs that give the class that most of them
give. Definitions are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from .checks import ArrayLike, check_classes
from .exit_rules import ExitRule, leave_at, score_table, scores
from .rules.rule import predictions

GROUPS = (("easy", 0.1), ("middle", 0.5), ("hard", 1.0))
"""Name and the largest difficulty of each group, that of middle without its end."""


def predicted_classes(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Logits (K, N, C) -> classes (K, N). EestudyError for bad arrays, a regression, labels of one class only."""
    return predictions(check_classes(logits, labels, "difficulty")[0]).numpy()


def share_wrong(answers: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The share of the (run, exit) pairs that are wrong on a sample, (N,) in [0, 1]: its difficulty.

    answers: classes (K, N) of each run. Of a regression, predictions (K, N): those are wrong whose error is larger than
    the median of all errors.
    """
    every = np.concatenate(list(answers))
    if every.dtype.kind in "iu":
        return 1 - (every == labels).mean(axis=0)
    errors = np.abs(every - labels)
    return (errors > np.median(errors)).mean(axis=0)


def sample_table(predicted: Sequence[np.ndarray], labels: np.ndarray) -> pd.DataFrame:
    """One row a sample: sample, label, majority (of all runs' classes (K, N)), difficulty, agreement."""
    every = np.concatenate(list(predicted))
    classes = int(max(every.max(), labels.max())) + 1
    votes = np.zeros((every.shape[1], classes), dtype=np.int64)
    for given in every:
        votes[np.arange(len(given)), given] += 1
    return pd.DataFrame(
        {
            "sample": np.arange(len(labels)),
            "label": labels,
            "majority": votes.argmax(axis=1),
            "difficulty": share_wrong(predicted, labels),
            "agreement": votes.max(axis=1) / len(every),
        }
    )


def group_of(difficulty: np.ndarray) -> np.ndarray:
    """Difficulty (N,) -> the names in `GROUPS`."""
    names = [name for name, _ in GROUPS]
    return np.array(names)[np.where(difficulty <= GROUPS[0][1], 0, np.where(difficulty < GROUPS[1][1], 1, 2))]


def exit_agreement(predicted: Sequence[np.ndarray]) -> pd.DataFrame:
    """How often runs (seeds of one strategy, classes (K, N) each) agree: place (of the run), exit, with, agreement.

    with "other seeds": the same exit of the other runs, mean over them (no row with one run alone); "own last exit".
    """
    rows = []
    pairs = {(a, b): (predicted[a] == predicted[b]).mean(axis=1) for a, b in combinations(range(len(predicted)), 2)}
    for place, own in enumerate(predicted):
        others = [same for pair, same in pairs.items() if place in pair]
        for k in range(len(own)):
            row = {"place": place, "exit": k + 1}
            if others:
                rows.append(row | {"with": "other seeds", "agreement": float(np.mean([same[k] for same in others]))})
            rows.append(row | {"with": "own last exit", "agreement": (own[k] == own[-1]).mean()})
    return pd.DataFrame(rows)


def leaving(
    logits: ArrayLike, labels: np.ndarray, rule: ExitRule, group: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    """Where the samples of each group leave by a rule, and the exit of each (N,), from 1.

    group, exit, samples (in the group), left (there), right (of them).
    """
    tensor, _ = check_classes(logits, labels, "difficulty")
    score, predicted = scores(tensor, rule), score_table(tensor, rule.name)[1]
    index = leave_at(score, np.array([rule.threshold(k) for k in range(1, len(score) + 1)])) - 1
    right = predicted[index, np.arange(len(index))] == labels
    rows = [
        {"group": name, "exit": k + 1, "samples": int((group == name).sum()), "left": int(there.sum()),
         "right": int(right[there].sum())}
        for name, _ in GROUPS for k in range(len(score)) for there in [(group == name) & (index == k)]
    ]  # fmt: skip
    return pd.DataFrame(rows), index + 1


EXAMPLES = 10


def examples(samples: pd.DataFrame, exits: np.ndarray) -> pd.DataFrame:
    """Samples to look at, EXAMPLES of each kind: kind, sample. exits (N,): where each leaves in the mean over runs.

    easy: of each class the least difficult one, of equals the first to leave; hard: the most difficult, of equals those
    agreed upon most; split: those agreed upon least.
    """
    found = samples.assign(exit=exits)
    easy = found.sort_values(["difficulty", "exit", "sample"]).groupby("label").head(1).sort_values("label")
    hard = found.sort_values(["difficulty", "agreement", "sample"], ascending=[False, False, True])
    split = found.sort_values(["agreement", "sample"])
    kinds = {"easy": easy, "hard": hard, "split": split}
    return pd.concat([rows.head(EXAMPLES).assign(kind=kind) for kind, rows in kinds.items()], ignore_index=True)
