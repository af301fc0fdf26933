"""How many dimensions a stage's activations fill.

Notation: n samples, m features; s_1 >= s_2 >= ... are the singular values of the centred activations (n, m), and
s_i^2 / (n - 1) those of their covariance matrix.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from eestudy.config import EestudyError
from eestudy.dynamics.activations import (
    FEATURES,
    HELD,
    Activations,
    Held,
    Moments,
    checked,
    gather,
    sample_count,
    smaller_gram,
    stages_by_pass,
    widths_of,
)
from eestudy.dynamics.probes import Batches
from eestudy.models import MultiExit

THRESHOLD = 1e-3  # of the largest singular value of the covariance: Masarczyk et al. 2023, arXiv 2305.19753
# What s_i^2 may be off by rounding, as a share of s_1^2: products of so many features in float64.
ROUNDING = FEATURES * torch.finfo(torch.float64).eps
RANKS = [
    "stage", "samples", "features", "numerical_rank", "stable_rank", "effective_rank",
    "numerical_share", "stable_share", "effective_share",
]  # fmt: skip


def numerical_rank(activations: Activations, threshold: float = THRESHOLD) -> int:
    """How many singular values of the covariance are above `threshold` of the largest: s_i^2 > threshold * s_1^2.

    Masarczyk et al. 2023 count so. At the threshold does not count, nor above it by no more than rounding. Constant
    activations have rank 0. activations: (n, m), a tensor or an array.
    Raises EestudyError for one sample, values that are not finite, or a threshold outside [0, 1).
    """
    _check_threshold(threshold)
    return _ranks(squared_singular_values(activations), threshold)[0]


def stable_rank(activations: Activations) -> float:
    """sum_i s_i^2 / s_1^2 (Rudelson & Vershynin 2007); 0 for constant activations. Arguments: `numerical_rank`."""
    return _ranks(squared_singular_values(activations))[1]


def effective_rank(activations: Activations) -> float:
    """exp(-sum_i p_i log p_i) with p_i = s_i / sum_j s_j, as Roy & Vetterli 2007 define it; 0 for constant ones.

    So of the singular values themselves; some authors put their squares, the covariance's, in the place of p, which
    gives less. Arguments: `numerical_rank`.
    """
    return _ranks(squared_singular_values(activations))[2]


def squared_singular_values(activations: Activations) -> Tensor:
    """s_i^2 of the centred activations (n, m), largest first, (min(n, m),) float64; 0 where not above rounding."""
    return _eigenvalues(smaller_gram(checked("activations", activations, 2)))


def stage_ranks(
    model: MultiExit, batches: Batches, threshold: float = THRESHOLD, features: int = FEATURES, seed: int = 0
) -> pd.DataFrame:
    """The three ranks of every stage's activations, and each as a share of min(n, m): one row per stage.

    samples n, features m. Memory: a stage with n < m holds its activations, one with n >= m is summed up into an
    (m, m) matrix batch by batch; as many stages as HELD allows in one pass over the batches, so never more than that
    or one stage's. Arguments and errors: `stage_activations`, `numerical_rank`.
    """
    _check_threshold(threshold)
    samples = sample_count(batches)
    widths = widths_of(model, batches, features)
    sizes = {stage: 4 * samples * width if samples < width else 8 * width**2 for stage, width in widths.items()}
    rows = []
    for stages in tqdm(stages_by_pass(sizes, HELD), desc="ranks", unit="pass", leave=False, disable=None):
        gathered = {stage: Held(samples) if samples < widths[stage] else Moments() for stage in stages}
        gather(model, batches, features, seed, gathered)
        for stage in stages:
            ranks = _ranks(_eigenvalues(gathered.pop(stage).gram()), threshold)
            most = min(samples, widths[stage])
            rows.append((stage, samples, widths[stage], *ranks, *(rank / most for rank in ranks)))
    return pd.DataFrame(rows, columns=RANKS)


def _eigenvalues(gram: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(gram).flip(0)
    return torch.where(values > ROUNDING * values[0], values, 0)


def _ranks(values: Tensor, threshold: float = THRESHOLD) -> tuple[int, float, float]:
    """Numerical, stable and effective rank from s_i^2, largest first."""
    if not values[0] > 0:
        return 0, 0.0, 0.0
    shares = values.sqrt() / values.sqrt().sum()
    return (
        int((values > (threshold + ROUNDING) * values[0]).sum()),
        float(values.sum() / values[0]),
        float(torch.special.entr(shares).sum().exp()),
    )


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise EestudyError(f"threshold: {threshold} is out of range; it must be at least 0 and below 1")
