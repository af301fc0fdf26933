"""What a linear probe can use of a representation about the label, in nats."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.linalg import eigh
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from eestudy.config import EestudyError, named_seed
from eestudy.dynamics.activations import Activations, centred, flattened, smaller_gram

# Inverse penalties of the probe, weakest probe first; its features have a mean square norm of 1. Before them comes the
# constant predictor, which the family must hold (Xu et al. 2020, definition 1: optional ignorance).
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
FOLDS = 2
FALLS = 2  # in a row end the path to larger ones


def usable_information(activations: Activations, labels: Activations, directions: int = 512) -> float:
    """I_V(T -> Y) = H_V(Y) - H_V(Y | T) in nats (Xu et al. 2020, definition 2), V the linear probes, less its value
    for shuffled labels (one permutation, by a fixed seed).

    activations (N, ...), labels (N,) of any integers. Both entropies are mean negative log likelihoods of held-out
    samples: H_V(Y) of the constant predictor, H_V(Y | T) of multinomial logistic regression with an L2 penalty, each
    fitted on the other half (stratified, each half held out once). The penalty, or the constant predictor instead, is
    chosen on a quarter of the samples fitted on. Every fitted distribution is mixed with one uniform pseudo-sample,
    so that a class not seen in fitting has a finite likelihood.

    The probe reads the standardized activation, scaled as in I(X; T) (features that are almost always off are not blown
    up), in its at most `directions` leading principal directions, found on all samples without labels. A probe with an
    L2 penalty is the same in any rotation: with N up to `directions` nothing is lost, whatever the number of features.
    Raises EestudyError for labels that are real values or of one class only, fewer than 4 samples a half, and values
    that are not finite.
    """
    samples = flattened(activations)
    classes = _checked_labels(labels, len(samples))
    if len(samples) < 4 * FOLDS or directions < 1:
        raise EestudyError(
            f"activations: {len(samples)} samples, directions: {directions} is not valid; at least {4 * FOLDS} and 1"
        )
    features = _principal_features(samples, directions)
    generator = np.random.default_rng(named_seed("usable", 0))
    value = _held_out_gain(features, classes, generator)
    return value - _held_out_gain(features, generator.permutation(classes), generator)


def _principal_features(samples: Tensor, directions: int) -> np.ndarray:
    """Scores (N, at most `directions`) of the centred samples (N, M), with a mean square norm of 1, float64."""
    count, width = samples.shape
    if width > count:
        spectrum, vectors = _leading(smaller_gram(samples), directions)
        scores = vectors * spectrum.clamp(min=0).sqrt()
    else:
        scores = centred(samples)
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


def _held_out_gain(features: np.ndarray, classes: np.ndarray, generator: np.random.Generator) -> float:
    """Mean over all samples, each held out once, of log p(y | t) - log p(y)."""
    fold = _stratified(classes, FOLDS, generator)
    count, total = classes.max() + 1, 0.0
    for held in range(FOLDS):
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


def _stratified(classes: np.ndarray, folds: int, generator: np.random.Generator) -> np.ndarray:
    """A fold (N,) in 0 .. folds - 1 for each sample: sizes differ by at most 1, in every class too."""
    order = generator.permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    fold = np.empty(len(classes), dtype=np.int64)
    fold[order] = np.arange(len(classes)) % folds
    return fold


def _checked_labels(labels: Activations, samples: int) -> np.ndarray:
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
