"""What a stage still knows of its input; with what a linear probe can use of it about the label. All in nats.

I(X; T): T = standardized activation + N(0, noise^2 I), X uniform over the N samples, so T is a mixture of N equal
Gaussians and I(X; T) = h(T) - h(T | X) lies in [0, log N]. Bounds: Kolchinsky and Tracey 2017, "Estimating mixture
entropy with pairwise distances", section 4 (used so by Saxe et al. 2018 and by Kolchinsky, Tracey and Wolpert 2019,
"Nonlinear information bottleneck"). With D_ij the distance of samples i and j, and

    F(s) = -1/N sum_i log 1/N sum_j exp(-D_ij^2 / (2 s^2)),

the upper bound is F(noise), by the Kullback-Leibler divergence of two components, and the lower bound F(2 noise), by
their Bhattacharyya distance D_ij^2 / (8 noise^2): the tightest of Chernoff's for components that are shifted copies.

Standardized means: each feature centred, then the whole divided by one number, the root of its total variance. So noise
is relative to the root mean square distance of a sample from the mean, and the value depends on the shape of the cloud
of samples alone: not on its scale, its rotation, the number of features, copies of a feature or constant ones. Stages
of any width can be compared, and a random draw of columns estimates the same thing. (With each feature at unit variance
the squared distances grow with the width, and wide stages sit at log N whatever they hold.) Noise of r times the root
mean square deviation of a single feature is noise r / sqrt(M).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from eestudy.config import EestudyError
from eestudy.dynamics.activations import (
    BLOCK,
    HELD,
    Activations,
    Batches,
    Held,
    flattened,
    gather,
    stages_by_pass,
    widths_of,
)
from eestudy.dynamics.label_information import usable_information
from eestudy.models import MultiExit
from eestudy.training.losses import is_regression

ROWS = 512  # of the distances at hand at a time
FINEST = 1e-6  # noise; squared distances are differences of float64 numbers near 1, known to about 1e-15


def mutual_information(activations: Activations, noise: float) -> tuple[float, float]:
    """Lower and upper bound on I(X; T) in nats, of activations (N, M) or (N, ...) at one noise; see the module.

    Distances come from the Gram matrix (N, N), for ROWS at a time, in float64.
    Raises EestudyError for fewer than 2 samples, values that are not finite and noise below 1e-6.
    """
    (row,) = information_sweep(activations, [noise]).itertuples()
    return row.lower, row.upper


def information_sweep(activations: Activations, noises: Iterable[float]) -> pd.DataFrame:
    """`mutual_information` at each noise from one pass over the distances: columns noise, lower, upper,
    ceiling (log N).

    With equal activations, both bounds end below the ceiling as noise goes to 0: at the entropy of the distinct ones.
    """
    noises = [_checked_noise(noise) for noise in noises]
    if not noises:
        raise EestudyError("noises: none given; at least one is needed")
    samples = flattened(activations)
    points, weights = _distinct(samples)
    scales = torch.tensor(sorted({scale for noise in noises for scale in (noise, 2 * noise)}), dtype=torch.float64)
    means = torch.zeros(len(scales), dtype=torch.float64)
    for rows, squared in _squared_distances(points, weights):
        for number, scale in enumerate(scales.tolist()):
            logs = torch.logsumexp(squared * (-0.5 / (scale * scale)) + weights.log(), dim=1)
            means[number] -= (weights[rows] @ logs).cpu()
    # F is in [0, log N]; rounding may leave it by 1e-16.
    found = dict(zip(scales.tolist(), means.clamp(0, math.log(len(samples))).tolist(), strict=True))
    lower, upper = ([found[factor * noise] for noise in noises] for factor in (2, 1))
    return pd.DataFrame({"noise": noises, "lower": lower, "upper": upper, "ceiling": math.log(len(samples))})


def _distinct(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The different ones of samples (N, M), and the share of each, float64; without a copy where all differ.

    Equal samples are one component of a larger weight: their distance is exactly 0, whatever rounding does.
    """
    counts: dict[bytes, int] = {}
    firsts = []
    for number, row in enumerate(samples.cpu().numpy()):
        key = hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest()  # + 0.0: -0 is 0
        if key not in counts:
            firsts.append(number)
        counts[key] = counts.get(key, 0) + 1
    points = samples if len(firsts) == len(samples) else samples[firsts]
    return points, torch.tensor([*counts.values()], dtype=torch.float64, device=samples.device) / len(samples)


def _squared_distances(points: Tensor, weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, squared distances (rows, G) of the standardized points (G, M)), a block of rows at a time, float64."""
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=points.device)
    size = 0.0
    for columns in points.split(BLOCK, 1):
        first = columns[0].double()
        shifted = columns.double() - first  # what is constant becomes exactly 0
        mean = weights @ shifted
        shifted -= mean
        gram.addmm_(shifted, shifted.T)
        size += float((first + mean).square().sum())
    norms = gram.diagonal().clone()
    variance = float(weights @ norms)
    # What varies by no more than the last bit of its numbers is a constant: there is nothing to scale up.
    scale = variance if variance > torch.finfo(points.dtype).eps ** 2 * size else math.inf
    norms /= scale
    for start in range(0, len(points), ROWS):
        rows = slice(start, min(start + ROWS, len(points)))
        squared = (norms[rows, None] + norms).sub_(gram[rows], alpha=2 / scale).clamp_(min=0)
        squared.diagonal(start).zero_()
        yield rows, squared


def stage_information(
    model: MultiExit, batches: Batches, noises: Iterable[float], directions: int = 512
) -> pd.DataFrame:
    """Bounds and ceiling at each noise, and usable information, of every stage: stage, quantity, noise, value.

    quantity: "lower", "upper", "ceiling" (`information_sweep`) and "usable" (`usable_information`; its noise is NaN),
    which is left out in regression. directions: of the probe.
    Memory: the activations (N, m) of as many stages as half of HELD allows, or of one, and its Gram matrix (N, N); then
    the batches go through again.
    Raises EestudyError as those three do.
    """
    noises = [_checked_noise(noise) for noise in noises]
    labels = torch.cat([y for _, y in batches])
    sizes = {stage: 4 * len(labels) * width for stage, width in widths_of(model, batches).items()}
    frames = []
    with tqdm(total=len(sizes), desc="information", unit="stage", leave=False, disable=None) as bar:
        for stages in stages_by_pass(sizes, HELD // 2):
            held = {stage: Held(len(labels)) for stage in stages}
            gather(model, batches, held)
            for stage in stages:
                frames.append(_quantities(held.pop(stage).rows, labels, noises, directions).assign(stage=stage))
                bar.update()
    return pd.concat(frames, ignore_index=True)[["stage", "quantity", "noise", "value"]]


def _quantities(samples: Tensor, labels: Tensor, noises: list[float], directions: int) -> pd.DataFrame:
    """quantity, noise, value of one stage's samples (N, m)."""
    sweep = information_sweep(samples, noises)
    rows = [(name, row.noise, getattr(row, name)) for row in sweep.itertuples() for name in sweep.columns[1:]]
    if labels.ndim == 1 and not is_regression(labels):  # of one class a sample
        rows.append(("usable", math.nan, usable_information(samples, labels, directions)))
    return pd.DataFrame(rows, columns=["quantity", "noise", "value"])


def _checked_noise(noise: float) -> float:
    if not FINEST <= noise < math.inf:
        raise EestudyError(f"noise: {noise} is not valid; a number from {FINEST} on, of the root total variance")
    return float(noise)
