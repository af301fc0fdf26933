"""How many dimensions a stage's activations fill, and how alike two stages' activations are.

Notation: n samples, m features; activations (n, m) are centred, each feature at its mean over the samples, and
s_1 >= s_2 >= ... are the singular values of what is left. s_i^2 / (n - 1) are those of the covariance matrix. All of it
is computed in float64 from the smaller Gram matrix, (n, n) or (m, m).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from eestudy.config import EestudyError, named_seed
from eestudy.models import MultiExit
from eestudy.models.tracing import mode

Batches = Sequence[tuple[Tensor, Tensor]]
Activations = Tensor | np.ndarray
FEATURES = 8000  # of a stage, at most: drawn by a fixed seed where it has more
THRESHOLD = 1e-3  # of the largest singular value of the covariance: Masarczyk et al. 2023, arXiv 2305.19753
HELD = 8 * FEATURES**2  # bytes: what one pass over the batches may hold, one Gram matrix of the most features
# What s_i^2 may be off by rounding, as a share of s_1^2: products of so many features in float64.
ROUNDING = FEATURES * torch.finfo(torch.float64).eps
BLOCK = 1000  # features turned to float64 at a time
RANKS = [
    "stage", "samples", "features", "numerical_rank", "stable_rank", "effective_rank",
    "numerical_share", "stable_share", "effective_share",
]  # fmt: skip
LEAST_DEBIASED = 4  # samples
SIMILARITY = ["stage_a", "stage_b", "cka"]


def numerical_rank(activations: Activations, threshold: float = THRESHOLD) -> int:
    """How many singular values of the covariance are above `threshold` of the largest: s_i^2 > threshold * s_1^2.

    Masarczyk et al. 2023 count so. At the threshold does not count, nor above it by no more than rounding. Constant
    activations have rank 0. activations: (n, m), a tensor or an array.
    Raises EestudyError for one sample, values that are not finite, or a threshold outside [0, 1).
    """
    return _numerical_rank(squared_singular_values(activations), threshold)


def stable_rank(activations: Activations) -> float:
    """sum_i s_i^2 / s_1^2 (Rudelson & Vershynin 2007); 0 for constant activations. Arguments: `numerical_rank`."""
    return _stable_rank(squared_singular_values(activations))


def effective_rank(activations: Activations) -> float:
    """exp(-sum_i p_i log p_i) with p_i = s_i / sum_j s_j, as Roy & Vetterli 2007 define it; 0 for constant ones.

    So of the singular values themselves; some authors put their squares, the covariance's, in the place of p, which
    gives less. Arguments: `numerical_rank`.
    """
    return _effective_rank(squared_singular_values(activations))


def squared_singular_values(activations: Activations) -> Tensor:
    """s_i^2 of the centred activations (n, m), largest first, (min(n, m),) float64; 0 where not above rounding."""
    return _eigenvalues(_gram(_checked("activations", activations, 2)))


def stage_activations(
    model: MultiExit,
    batches: Batches,
    features: int = FEATURES,
    seed: int = 0,
    stages: Sequence[int] | None = None,
) -> Iterator[dict[int, Tensor]]:
    """For each batch {stage: what heads can read of it, flattened, (B, m) float32}, in eval mode.

    A stage of more than `features` features gives that many of them, the same for every model of its shapes: drawn by
    `seed` and the stage's number. stages: some of them, from 1; default all. batches: pairs of x (B, *input_shape) and
    labels (B,) on the model's device.
    Raises EestudyError for a stage that is not there, features below 1, and activations that are not finite.
    """
    wanted = _wanted(model, stages)
    if features < 1:
        raise EestudyError(f"features: {features} is out of range; it must be at least 1")
    columns: dict[int, Tensor] = {}
    for x, _ in batches:
        taken: dict[int, Tensor] = {}
        with mode(model, False), torch.no_grad():
            state = x
            for stage, module in enumerate(model.backbone.stages[: max(wanted)], 1):
                state = module(state)
                if stage not in wanted:
                    continue
                rows = model.backbone.features(state).flatten(1).float()
                _check_finite(f"activations of stage {stage}", rows)
                if rows.shape[1] > features:
                    if stage not in columns:
                        columns[stage] = _drawn(rows.shape[1], features, seed, stage).to(rows.device)
                    rows = rows[:, columns[stage]]
                taken[stage] = rows
        yield taken


def stage_ranks(
    model: MultiExit,
    batches: Batches,
    threshold: float = THRESHOLD,
    features: int = FEATURES,
    seed: int = 0,
) -> pd.DataFrame:
    """The three ranks of every stage's activations, and each as a share of min(n, m): one row a stage.

    samples n, features m. Memory: a stage with n < m holds its activations, one with n >= m is summed up into an
    (m, m) matrix batch by batch; as many stages as HELD allows in one pass over the batches, so never more than that
    or one stage's. Arguments and errors: `stage_activations`, `numerical_rank`.
    """
    _check_threshold(threshold)
    samples = _samples(batches)
    widths = _widths(model, batches, features)
    sizes = {stage: 4 * samples * width if samples < width else 8 * width**2 for stage, width in widths.items()}
    rows = []
    for stages in tqdm(_passes(sizes, HELD), desc="ranks", unit="pass", leave=False, disable=None):
        gathered: dict[int, _Rows | _Moments] = {
            stage: _Rows(samples) if samples < widths[stage] else _Moments() for stage in stages
        }
        for taken in stage_activations(model, batches, features, seed, stages):
            for stage, part in taken.items():
                gathered[stage].add(part)
        for stage in stages:
            values = _eigenvalues(gathered.pop(stage).gram())
            ranks = (_numerical_rank(values, threshold), _stable_rank(values), _effective_rank(values))
            most = min(samples, widths[stage])
            rows.append((stage, samples, widths[stage], *ranks, *(rank / most for rank in ranks)))
    return pd.DataFrame(rows, columns=RANKS)


def linear_cka(a: Activations, b: Activations, debiased: bool = False) -> float:
    """Linear centred kernel alignment |A'B|_F^2 / (|A'A|_F |B'B|_F) of centred (n, m_a) and (n, m_b), in [0, 1].

    Kornblith et al. 2019, arXiv 1905.00414, equation 5. It is 1 for activations that differ by a rotation, an isotropic
    scaling and a shift. It is biased upwards unless n is much above the number of dimensions filled: independent
    Gaussian features have m / (n + m), not 0. debiased: the unbiased estimator of each of the three terms (Song et al.
    2012), so 0 on average for independent features, and below 0 by chance; n at least 4.
    NaN where one of them is constant. Raises EestudyError where samples are too few or do not fit, or not finite.
    """
    least = LEAST_DEBIASED if debiased else 2
    rows_a, rows_b = _checked("a", a, least), _checked("b", b, least)
    if len(rows_a) != len(rows_b):
        raise EestudyError(f"a and b: {len(rows_a)} and {len(rows_b)} samples; they must be the same ones")
    return _cka(_Side(rows_a, debiased), _Side(rows_b, debiased))


def stage_similarity(
    model_a: MultiExit,
    model_b: MultiExit,
    batches: Batches,
    features: int = FEATURES,
    seed: int = 0,
    debiased: bool = False,
) -> pd.DataFrame:
    """`linear_cka` of every stage of one model with every stage of the other: one row a pair.

    The models may be of different shapes, and may be the same one. Memory: for each stage at hand an (n, n) matrix, or
    (n, m) with fewer features than samples; as many of each model as half of HELD allows, or one, and the batches go
    through again for the rest. Arguments and errors: `stage_activations`, `linear_cka`.
    """
    samples = _samples(batches, LEAST_DEBIASED if debiased else 2)
    passes = []
    for model in (model_a, model_b):
        widths = _widths(model, batches, features)
        sizes = {stage: samples * (4 * width + 8 * min(samples, width)) for stage, width in widths.items()}
        passes.append(_passes(sizes, HELD // 2))
    rows = []
    with tqdm(total=len(passes[0]) * len(passes[1]), desc="CKA", unit="pass", leave=False, disable=None) as bar:
        for stages_a in passes[0]:
            sides_a = _sides(model_a, batches, features, seed, stages_a, debiased)
            for stages_b in passes[1]:
                same = model_a is model_b and stages_a == stages_b
                sides_b = sides_a if same else _sides(model_b, batches, features, seed, stages_b, debiased)
                rows += [(a, b, _cka(sides_a[a], sides_b[b])) for a in stages_a for b in stages_b]
                bar.update()
    return pd.DataFrame(sorted(rows), columns=SIMILARITY)


class _Rows:
    """Activations of all batches, held: (n, m) float32."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.filled = 0
        self.rows = torch.empty(0)

    def add(self, part: Tensor) -> None:
        if not self.filled:
            self.rows = part.new_empty(self.samples, part.shape[1])
        self.rows[self.filled : self.filled + len(part)] = part
        self.filled += len(part)

    def gram(self) -> Tensor:
        return _gram(self.rows)


class _Moments:
    """Activations of all batches, summed up into the Gram matrix of their features, (m, m) float64.

    Relative to the first sample: sums of what is far from 0 would lose the digits in which samples differ.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, part: Tensor) -> None:
        part = part.double()
        if not self.count:
            self.shift, self.sums = part[0].clone(), torch.zeros_like(part[0])
            self.products = part.new_zeros(part.shape[1], part.shape[1])
        part = part - self.shift
        self.count += len(part)
        self.sums += part.sum(0)
        self.products.addmm_(part.T, part)

    def gram(self) -> Tensor:
        return self.products.addr_(self.sums, self.sums, alpha=-1 / self.count)


class _Side:
    """One of the two that are compared: centred activations (n, m), or where m > n their Gram matrix (n, n)."""

    def __init__(self, rows: Tensor, debiased: bool) -> None:
        self.samples = len(rows)
        self.debiased = debiased
        self.is_gram = rows.shape[1] > len(rows)
        self.matrix = _gram(rows) if self.is_gram else _centred(rows)
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


def _sides(
    model: MultiExit, batches: Batches, features: int, seed: int, stages: list[int], debiased: bool
) -> dict[int, _Side]:
    gathered = {stage: _Rows(_samples(batches)) for stage in stages}
    for taken in stage_activations(model, batches, features, seed, stages):
        for stage, part in taken.items():
            gathered[stage].add(part)
    return {stage: _Side(gathered.pop(stage).rows, debiased) for stage in stages}


def _centred(rows: Tensor) -> Tensor:
    """float64. Taken relative to the first sample, a constant feature is exactly 0, and not a rounded mean off it."""
    rows = rows.double()
    rows = rows - rows[0]
    return rows - rows.mean(0)


def _gram(rows: Tensor) -> Tensor:
    """The smaller Gram matrix of the centred rows (n, m): (m, m), or (n, n) added up over blocks of features."""
    if rows.shape[1] <= len(rows):
        centred = _centred(rows)
        return centred.T @ centred
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(BLOCK, 1):
        centred = _centred(block)
        gram.addmm_(centred, centred.T)
    return gram


def _eigenvalues(gram: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(gram).flip(0)
    return torch.where(values > ROUNDING * values[0], values, 0)


def _numerical_rank(values: Tensor, threshold: float) -> int:
    _check_threshold(threshold)
    return int((values > (threshold + ROUNDING) * values[0]).sum())


def _stable_rank(values: Tensor) -> float:
    return float(values.sum() / values[0]) if values[0] > 0 else 0.0


def _effective_rank(values: Tensor) -> float:
    if not values[0] > 0:
        return 0.0
    shares = values.sqrt() / values.sqrt().sum()
    return float(torch.special.entr(shares).sum().exp())


def _passes(sizes: Mapping[int, int], limit: int) -> list[list[int]]:
    """Stages in a row, cut so that each piece holds at most `limit` bytes, or is one stage. sizes: bytes by stage."""
    passes: list[list[int]] = []
    held = 0
    for stage, size in sizes.items():
        if not passes or held + size > limit:
            passes.append([])
            held = 0
        passes[-1].append(stage)
        held += size
    return passes


def _widths(model: MultiExit, batches: Batches, features: int) -> dict[int, int]:
    """How many features are taken of each stage, from one sample."""
    x, y = batches[0]
    taken = next(stage_activations(model, [(x[:1], y[:1])], features))
    return {stage: part.shape[1] for stage, part in taken.items()}


def _drawn(total: int, features: int, seed: int, stage: int) -> Tensor:
    generator = torch.Generator().manual_seed(named_seed("representation", seed, stage))
    return torch.randperm(total, generator=generator)[:features].sort().values


def _wanted(model: MultiExit, stages: Sequence[int] | None) -> list[int]:
    valid = range(1, len(model.backbone.stages) + 1)
    wanted = list(valid) if stages is None else list(stages)
    if not wanted or not set(wanted) <= set(valid):
        raise EestudyError(f"stages: {wanted} is not valid; give some of 1 to {len(valid)}")
    return wanted


def _samples(batches: Batches, least: int = 2) -> int:
    samples = sum(len(x) for x, _ in batches)
    if samples < least:
        raise EestudyError(
            f"batches: {samples} sample{'' if samples == 1 else 's'} in all; at least {least} are needed"
        )
    return samples


def _checked(name: str, given: Activations, least: int) -> Tensor:
    rows = given.detach() if isinstance(given, Tensor) else torch.tensor(given)
    if rows.ndim != 2 or len(rows) < least or not rows.shape[1]:
        raise EestudyError(f"{name}: shape {tuple(rows.shape)} is not valid; (n, m) with n at least {least} is needed")
    _check_finite(name, rows)
    return rows


def _check_finite(name: str, rows: Tensor) -> None:
    finite = torch.isfinite(rows)
    if not finite.all():
        raise EestudyError(f"{name}: {int((~finite).sum())} of {rows.numel()} values are not finite")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise EestudyError(f"threshold: {threshold} is out of range; it must be at least 0 and below 1")
