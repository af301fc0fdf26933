"""How many dimensions a stage's activations fill, and how alike two stages' activations are.

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
    Batches,
    Held,
    Moments,
    centred,
    checked,
    gather,
    sample_count,
    smaller_gram,
    stages_by_pass,
    widths_of,
)
from eestudy.models import MultiExit

THRESHOLD = 1e-3  # of the largest singular value of the covariance: Masarczyk et al. 2023, arXiv 2305.19753
# What s_i^2 may be off by rounding, as a share of s_1^2: products of so many features in float64.
ROUNDING = FEATURES * torch.finfo(torch.float64).eps
RANKS = [
    "stage", "samples", "features", "numerical_rank", "stable_rank", "effective_rank",
    "numerical_share", "stable_share", "effective_share",
]  # fmt: skip
LEAST_DEBIASED = 4  # samples
SIMILARITY = ["stage_a", "stage_b", "cka"]


def numerical_rank(activations: Activations) -> int:
    """How many singular values of the covariance are above THRESHOLD of the largest: s_i^2 > THRESHOLD * s_1^2.

    Masarczyk et al. 2023 count so. At the threshold does not count, nor above it by no more than rounding. Constant
    activations have rank 0. activations: (n, m), a tensor or an array.
    Raises EestudyError for one sample, and for values that are not finite.
    """
    return _ranks(squared_singular_values(activations))[0]


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


def stage_ranks(model: MultiExit, batches: Batches) -> pd.DataFrame:
    """The three ranks of every stage's activations, and each as a share of min(n, m): one row per stage.

    samples n, features m. Memory: a stage with n < m holds its activations, one with n >= m is summed up into an
    (m, m) matrix batch by batch; as many stages as HELD allows in one pass over the batches, so never more than that
    or one stage's. Arguments and errors: `stage_activations`, `numerical_rank`.
    """
    samples, widths = sample_count(batches), widths_of(model, batches)
    sizes = {stage: 4 * samples * width if samples < width else 8 * width**2 for stage, width in widths.items()}
    rows = []
    for stages in tqdm(stages_by_pass(sizes, HELD), desc="ranks", unit="pass", leave=False, disable=None):
        gathered = {stage: Held(samples) if samples < widths[stage] else Moments() for stage in stages}
        gather(model, batches, gathered)
        for stage in stages:
            ranks = _ranks(_eigenvalues(gathered.pop(stage).gram()))
            most = min(samples, widths[stage])
            rows.append((stage, samples, widths[stage], *ranks, *(rank / most for rank in ranks)))
    return pd.DataFrame(rows, columns=RANKS)


def _eigenvalues(gram: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(gram).flip(0)
    return torch.where(values > ROUNDING * values[0], values, 0)


def _ranks(values: Tensor) -> tuple[int, float, float]:
    """Numerical, stable and effective rank from s_i^2, largest first."""
    if not values[0] > 0:
        return 0, 0.0, 0.0
    shares = values.sqrt() / values.sqrt().sum()
    return (
        int((values > (THRESHOLD + ROUNDING) * values[0]).sum()),
        float(values.sum() / values[0]),
        float(torch.special.entr(shares).sum().exp()),
    )


# ---------------------------------------------------------------- similarity


def linear_cka(a: Activations, b: Activations, debiased: bool = False) -> float:
    """Linear centred kernel alignment |A'B|_F^2 / (|A'A|_F |B'B|_F) of centred (n, m_a) and (n, m_b), in [0, 1].

    Kornblith et al. 2019, arXiv 1905.00414, equation 5. It is 1 for activations that differ by a rotation, an isotropic
    scaling and a shift. It is biased upwards unless n is much above the number of dimensions filled: independent
    Gaussian features have m / (n + m), not 0. debiased: the unbiased estimator of each of the three terms (Song et al.
    2012), so 0 on average for independent features, and below 0 by chance; n at least 4.
    NaN where one of them is constant. Raises EestudyError where samples are too few or do not fit, or not finite.
    """
    least = LEAST_DEBIASED if debiased else 2
    rows_a, rows_b = checked("a", a, least), checked("b", b, least)
    if len(rows_a) != len(rows_b):
        raise EestudyError(f"a and b: {len(rows_a)} and {len(rows_b)} samples; they must be the same ones")
    return _cka(_Side(rows_a, debiased), _Side(rows_b, debiased))


def stage_similarity(model_a: MultiExit, model_b: MultiExit, batches: Batches, debiased: bool = False) -> pd.DataFrame:
    """`linear_cka` of every stage of one model with every stage of the other: one row per pair.

    The models may be of different shapes, and may be the same one. Memory: for each stage at hand an (n, n) matrix, or
    (n, m) with fewer features than samples; as many of each model as half of HELD allows, or one, and the batches go
    through again for the rest. Arguments and errors: `stage_activations`, `linear_cka`.
    """
    samples = sample_count(batches, LEAST_DEBIASED if debiased else 2)
    passes = []
    for model in (model_a, model_b):
        widths = widths_of(model, batches)
        sizes = {stage: samples * (4 * width + 8 * min(samples, width)) for stage, width in widths.items()}
        passes.append(stages_by_pass(sizes, HELD // 2))
    rows = []
    with tqdm(total=len(passes[0]) * len(passes[1]), desc="CKA", unit="pass", leave=False, disable=None) as bar:
        for stages_a in passes[0]:
            sides_a = _sides(model_a, batches, stages_a, debiased)
            for stages_b in passes[1]:
                same = model_a is model_b and stages_a == stages_b
                sides_b = sides_a if same else _sides(model_b, batches, stages_b, debiased)
                rows += [(a, b, _cka(sides_a[a], sides_b[b])) for a in stages_a for b in stages_b]
                bar.update()
    return pd.DataFrame(sorted(rows), columns=SIMILARITY)


class _Side:
    """One of the two that are compared: centred activations (n, m), or where m > n their Gram matrix (n, n)."""

    def __init__(self, rows: Tensor, debiased: bool) -> None:
        self.samples = len(rows)
        self.debiased = debiased
        self.is_gram = rows.shape[1] > len(rows)
        self.matrix = smaller_gram(rows) if self.is_gram else centred(rows)
        self.lengths = self.matrix.diagonal().clone() if self.is_gram else self.matrix.square().sum(1)  # squared
        self.itself = _alignment(self, self)


def _alignment(a: _Side, b: _Side) -> float:
    """|A'B|_F^2 = <AA', BB'>, or the unbiased estimate of it, times n (n - 3), which cancels in the CKA."""
    if a.is_gram and b.is_gram:
        product = a.matrix.flatten() @ b.matrix.flatten()
    elif not a.is_gram and not b.is_gram:
        product = (a.matrix.T @ b.matrix).square().sum()
    else:
        gram, rows = (a.matrix, b.matrix) if a.is_gram else (b.matrix, a.matrix)
        product = ((gram @ rows) * rows).sum()
    if a.debiased:  # Song et al. 2012, equation 5; rows of a centred Gram matrix sum to 0, which leaves its diagonal
        n = a.samples
        product = product - n / (n - 2) * (a.lengths @ b.lengths)
        product = product + a.lengths.sum() * b.lengths.sum() / ((n - 1) * (n - 2))
    return float(product)


def _cka(a: _Side, b: _Side) -> float:
    if a.itself <= 0 or b.itself <= 0:
        return float("nan")
    return _alignment(a, b) / (a.itself**0.5 * b.itself**0.5)


def _sides(model: MultiExit, batches: Batches, stages: list[int], debiased: bool) -> dict[int, _Side]:
    held = {stage: Held(sample_count(batches)) for stage in stages}
    gather(model, batches, held)
    return {stage: _Side(held.pop(stage).rows, debiased) for stage in stages}
