"""What a stage still knows of its input, and what a linear probe can use of it about the label. All in nats.

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
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm

from eestudy.config import EestudyError, named_seed
from eestudy.dynamics.activations import (
    BLOCK,
    FEATURES,
    HELD,
    Held,
    stage_activations,
    stages_by_pass,
    widths_of,
)
from eestudy.dynamics.probes import Batches
from eestudy.models import MultiExit
from eestudy.training.losses import is_regression

Array = Tensor | np.ndarray

FINEST = 1e-6  # noise; squared distances are differences of float64 numbers near 1, known to about 1e-15
# Inverse penalties of the probe, weakest probe first; its features have a mean square norm of 1. Before them comes the
# constant predictor, which the family must hold (Xu et al. 2020, definition 1: optional ignorance).
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
FALLS = 2  # in a row end the path to larger ones


def mutual_information(activations: Array, noise: float, block: int = 512) -> tuple[float, float]:
    """Lower and upper bound on I(X; T) in nats, of activations (N, M) or (N, ...) at one noise; see the module.

    Distances come from the Gram matrix (N, N), for `block` rows at a time, in float64.
    Raises EestudyError for fewer than 2 samples, values that are not finite and noise below 1e-6.
    """
    (row,) = information_sweep(activations, [noise], block).itertuples()
    return row.lower, row.upper


def information_sweep(activations: Array, noises: Iterable[float], block: int = 512) -> pd.DataFrame:
    """`mutual_information` at each noise from one pass over the distances: columns noise, lower, upper,
    ceiling (log N).

    With equal activations, both bounds end below the ceiling as noise goes to 0: at the entropy of the distinct ones.
    """
    noises = [_checked_noise(noise) for noise in noises]
    if not noises:
        raise EestudyError("noises: none given; at least one is needed")
    if block < 1:
        raise EestudyError(f"block: {block} is not valid; at least 1 row")
    samples = _checked(activations)
    points, weights = _distinct(samples)
    scales = torch.tensor(sorted({scale for noise in noises for scale in (noise, 2 * noise)}), dtype=torch.float64)
    means = torch.zeros(len(scales), dtype=torch.float64)
    for rows, squared in _squared_distances(points, weights, block):
        for place, scale in enumerate(scales.tolist()):
            logs = torch.logsumexp(squared * (-0.5 / (scale * scale)) + weights.log(), dim=1)
            means[place] -= (weights[rows] @ logs).cpu()
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
    for place, row in enumerate(samples.cpu().numpy()):
        key = hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest()  # + 0.0: -0 is 0
        if key not in counts:
            firsts.append(place)
        counts[key] = counts.get(key, 0) + 1
    points = samples if len(firsts) == len(samples) else samples[firsts]
    return points, torch.tensor([*counts.values()], dtype=torch.float64, device=samples.device) / len(samples)


def _squared_distances(points: Tensor, weights: Tensor, block: int) -> Iterator[tuple[slice, Tensor]]:
    """(rows, squared distances (rows, G) of the standardized points (G, M)), a block of rows at a time, float64."""
    gram = torch.zeros(len(points), len(points), dtype=torch.float64, device=points.device)
    size = 0.0
    for part in points.split(BLOCK, 1):
        first = part[0].double()
        shifted = part.double() - first  # what is constant becomes exactly 0
        mean = weights @ shifted
        shifted -= mean
        gram.addmm_(shifted, shifted.T)
        size += float((first + mean).square().sum())
    norms = gram.diagonal().clone()
    variance = float(weights @ norms)
    # What varies by no more than the last bit of its numbers is a constant: there is nothing to scale up.
    scale = variance if variance > torch.finfo(points.dtype).eps ** 2 * size else math.inf
    norms /= scale
    for start in range(0, len(points), block):
        rows = slice(start, min(start + block, len(points)))
        squared = (norms[rows, None] + norms).sub_(gram[rows], alpha=2 / scale).clamp_(min=0)
        squared.diagonal(start).zero_()
        yield rows, squared


def usable_information(
    activations: Array,
    labels: Array,
    folds: int = 2,
    shuffles: int = 1,
    directions: int = 512,
    seed: int = 0,
) -> float:
    """I_V(T -> Y) = H_V(Y) - H_V(Y | T) in nats (Xu et al. 2020, definition 2), V the linear probes, less its value
    for shuffled labels (mean of `shuffles` permutations).

    activations (N, ...), labels (N,) of any integers. Both entropies are mean negative log likelihoods of held-out
    samples: H_V(Y) of the constant predictor, H_V(Y | T) of multinomial logistic regression with an L2 penalty, each
    fitted on the other folds (stratified, each fold held out once). The penalty, or the constant predictor instead, is
    chosen on a quarter of the samples fitted on. Every fitted distribution is mixed with one uniform pseudo-sample,
    so that a class not seen in fitting has a finite likelihood.

    The probe reads the standardized activation, scaled as in I(X; T) (features that are almost always off are not blown
    up), in its at most `directions` leading principal directions, found on all samples without labels. A probe with an
    L2 penalty is the same in any rotation: with N up to `directions` nothing is lost, whatever the number of features.
    Raises EestudyError for labels that are real values or of one class only, fewer than 4 samples a fold, and values
    that are not finite.
    """
    samples = _checked(activations)
    classes = _checked_labels(labels, len(samples))
    if folds < 2 or len(samples) < 4 * folds:
        raise EestudyError(f"folds: {folds} of {len(samples)} samples is not valid; at least 2 folds of 4 samples")
    if shuffles < 1 or directions < 1:
        raise EestudyError(f"shuffles: {shuffles}, directions: {directions} is not valid; at least 1 of each")
    features = _principal_features(samples, directions)
    generator = np.random.default_rng(named_seed("usable", seed))
    value = _held_out_gain(features, classes, folds, generator)
    chance = [_held_out_gain(features, generator.permutation(classes), folds, generator) for _ in range(shuffles)]
    return value - float(np.mean(chance))


def _principal_features(samples: Tensor, directions: int) -> np.ndarray:
    """Scores (N, at most `directions`) of the centred samples (N, M), with a mean square norm of 1, float64."""
    count, width = samples.shape
    if width > count:
        gram = torch.zeros(count, count, dtype=torch.float64, device=samples.device)
        for part in samples.split(BLOCK, 1):
            centred = _centred(part)
            gram.addmm_(centred, centred.T)
        spectrum, vectors = _leading(gram, directions)
        scores = vectors * spectrum.clamp(min=0).sqrt()
    else:
        scores = _centred(samples)
        if width > directions:
            scores = scores @ _leading(scores.T @ scores, directions)[1]
    size = scores.square().sum(1).mean().sqrt()
    return (scores / size if size > 0 else scores).cpu().numpy()


def _leading(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues (k,) of a Gram matrix (n, n), ascending, and their vectors (n, k); overwrites it.

    By scipy, on the processor: what finds them all holds some more matrices of that size.
    """
    size = len(gram)
    lowest = max(0, size - count)
    found = eigh(gram.T.cpu().numpy(), subset_by_index=[lowest, size - 1], overwrite_a=True, check_finite=False)
    spectrum, vectors = (torch.from_numpy(each).to(gram) for each in found)
    return spectrum, vectors


def _centred(part: Tensor) -> Tensor:
    part = part.double() - part[0].double()  # what is constant becomes exactly 0
    return part - part.mean(0)


def _held_out_gain(features: np.ndarray, classes: np.ndarray, folds: int, generator: np.random.Generator) -> float:
    """Mean over all samples, each held out once, of log p(y | t) - log p(y)."""
    fold = _stratified(classes, folds, generator)
    count, total = classes.max() + 1, 0.0
    for held in range(folds):
        fit, rest = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        inner = _stratified(classes[fit], 4, generator) == 0
        strength = _chosen_strength(features, classes, fit[~inner], fit[inner])
        if strength > 0:  # otherwise the probe is the constant predictor
            total += _log_likelihood(_probe(strength), features, classes, fit, rest, count)
            total -= _log_likelihood(None, features, classes, fit, rest, count)
    return total / len(classes)


def _chosen_strength(features: np.ndarray, classes: np.ndarray, fit: np.ndarray, chosen_on: np.ndarray) -> float:
    """The strength likeliest on `chosen_on`, 0 for the constant predictor; the path ends where FALLS fall short."""
    count, chosen, falls = classes.max() + 1, 0.0, 0
    best = _log_likelihood(None, features, classes, fit, chosen_on, count)
    probe = _probe(STRENGTHS[0], warm_start=True)
    for strength in STRENGTHS:
        likelihood = _log_likelihood(probe.set_params(C=strength), features, classes, fit, chosen_on, count)
        if likelihood > best:
            best, chosen, falls = likelihood, strength, 0
        else:
            falls += 1
            if falls == FALLS:
                break
    return chosen


def _probe(strength: float, warm_start: bool = False) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=1000, warm_start=warm_start)


def _log_likelihood(
    probe: LogisticRegression | None,
    features: np.ndarray,
    classes: np.ndarray,
    fit: np.ndarray,
    rest: np.ndarray,
    count: int,
) -> float:
    """Sum over the samples `rest` of log p(y), by the probe fitted on `fit`, or by the constant predictor (None)."""
    if probe is None or len(np.unique(classes[fit])) < 2:
        shares = np.broadcast_to(np.bincount(classes[fit], minlength=count) / len(fit), (len(rest), count))
    else:
        with warnings.catch_warnings():
            # A probe stopped after 1000 steps is one of the family all the same, and is judged held out.
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(features[fit], classes[fit])
        shares = np.zeros((len(rest), count))
        shares[:, probe.classes_] = probe.predict_proba(features[rest])
    smoothed = (len(fit) * shares + 1 / count) / (len(fit) + 1)
    return float(np.log(smoothed[np.arange(len(rest)), classes[rest]]).sum())


def _stratified(classes: np.ndarray, parts: int, generator: np.random.Generator) -> np.ndarray:
    """A part (N,) in 0 .. parts - 1 for each sample: sizes differ by at most 1, in every class too."""
    order = generator.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    part = np.empty(len(classes), dtype=np.int64)
    part[order] = np.arange(len(classes)) % parts
    return part


def stage_information(
    model: MultiExit,
    batches: Batches,
    noises: Iterable[float],
    features: int = FEATURES,
    seed: int = 0,
    directions: int = 512,
) -> pd.DataFrame:
    """Bounds and ceiling at each noise, and usable information, of every stage: stage, quantity, noise, value.

    quantity: "lower", "upper", "ceiling" (`information_sweep`) and "usable" (`usable_information`; its noise is NaN),
    which is left out in regression. features, seed, and the columns they draw: `stage_activations`. directions: of
    the probe.
    Memory: the activations (N, m) of as many stages as half of HELD allows, or of one, and its Gram matrix (N, N); then
    the batches go through again.
    Raises EestudyError as those three do.
    """
    noises = [_checked_noise(noise) for noise in noises]
    labels = torch.cat([y for _, y in batches])
    sizes = {stage: 4 * len(labels) * width for stage, width in widths_of(model, batches, features).items()}
    frames = []
    with tqdm(total=len(sizes), desc="information", unit="stage", leave=False, disable=None) as bar:
        for stages in stages_by_pass(sizes, HELD // 2):
            held = {stage: Held(len(labels)) for stage in stages}
            for taken in stage_activations(model, batches, features, seed, stages):
                for stage, part in taken.items():
                    held[stage].add(part)
            for stage in stages:
                frames.append(_quantities(held.pop(stage).rows, labels, noises, seed, directions).assign(stage=stage))
                bar.update()
    return pd.concat(frames, ignore_index=True)[["stage", "quantity", "noise", "value"]]


def _quantities(samples: Tensor, labels: Tensor, noises: list[float], seed: int, directions: int) -> pd.DataFrame:
    """quantity, noise, value of one stage's samples (N, m)."""
    sweep = information_sweep(samples, noises)
    rows = [(name, row.noise, getattr(row, name)) for row in sweep.itertuples() for name in sweep.columns[1:]]
    if not is_regression(labels):
        rows.append(("usable", math.nan, usable_information(samples, labels, directions=directions, seed=seed)))
    return pd.DataFrame(rows, columns=["quantity", "noise", "value"])


def _checked(activations: Array) -> Tensor:
    """(N, ...) -> floating (N, M)."""
    samples = torch.as_tensor(activations).detach()
    if samples.ndim < 2 or len(samples) < 2 or not samples[0].numel():
        raise EestudyError(
            f"activations: shape {tuple(samples.shape)} is not valid; expected (N, M) with at least 2 samples"
        )
    samples = samples.flatten(1)
    samples = samples if samples.dtype in (torch.float32, torch.float64) else samples.float()
    wrong = int((~samples.isfinite()).sum())
    if wrong:
        raise EestudyError(f"activations: {wrong} of {samples.numel()} values are NaN or infinite")
    return samples


def _checked_labels(labels: Array, samples: int) -> np.ndarray:
    """Labels (N,) -> classes 0 .. C - 1 (N,)."""
    array = torch.as_tensor(labels).detach().cpu().numpy()
    if array.shape != (samples,):
        raise EestudyError(f"labels: shape {array.shape} does not fit {samples} samples; expected ({samples},)")
    if array.dtype.kind not in "iu":
        raise EestudyError(f"labels: {array.dtype} is not valid; usable information is of classes, given as integers")
    found, classes = np.unique(array, return_inverse=True)
    if len(found) < 2:
        raise EestudyError(f"labels: all {samples} are {found[0]}; at least 2 classes are needed")
    return classes


def _checked_noise(noise: float) -> float:
    if not FINEST <= noise < math.inf:
        raise EestudyError(f"noise: {noise} is not valid; a number from {FINEST} on, of the root total variance")
    return float(noise)
