"""Points in the space of a network's parameters: what lies between models, and what its loss and error are there.

A point is a dict of tensors, used through `functional_call`: no model is copied or changed. Shapes: K exits, B batch,
C classes, D features, N samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.func import functional_call

from eestudy.config import EestudyError, check_name
from eestudy.dynamics.activations import Batches
from eestudy.models import MultiExit, check_network
from eestudy.training.losses import exit_hits, exit_losses, is_regression
from eestudy.training.phase_network import batch_norms, gathering

Tensors = dict[str, Tensor]  # parameters and buffers by their names in a network
# One set of batches, or several by the name of their split.
Data = Batches | Mapping[str, Batches]
# What the exits are along a path: "all" interpolates their parameters too, "probe" refits a linear probe at each.
EXITS_ARE = ("all", "probe")
# Of the probes: the inverse strength of their penalty |w|^2 / 2 beside the sum of losses, and most steps of L-BFGS.
PROBE_C, PROBE_STEPS = 1.0, 500


class PooledFeatures(nn.Module):
    """The stages of a model alone: x -> for each exit the pooled features (B, D) of the stage that it reads.

    Maps are averaged over H and W, sequences over L; of tokens the first is taken, as the token head does. Exit K reads
    the last stage.
    """

    def __init__(self, model: MultiExit) -> None:
        super().__init__()
        self.stages = model.backbone.stages
        self.read = {*model.exit_stages, len(self.stages)}
        self.tokens = model.backbone.kind == "tokens"
        # Of the backbone only this method: as a submodule its classifier would have parameters here.
        self.features = model.backbone.features

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled, state = [], x
        for number, stage in enumerate(self.stages, 1):
            state = stage(state)
            if number in self.read:
                features = self.features(state)
                if self.tokens and features.ndim == 3:
                    features = features[:, 0].clone()  # a view would keep all tokens
                pooled.append(features.flatten(2).mean(2) if features.ndim > 2 else features)
        return pooled


def network_of(model: MultiExit, heads: str) -> nn.Module:
    """What of a model lies in the space: all of it, or its stages alone where probes stand for the exits."""
    return model if check_name("heads", heads, EXITS_ARE) == "all" else PooledFeatures(model)


def tensors_of(network: nn.Module) -> Tensors:
    """Its parameters and buffers, detached, not copied."""
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def points_of(models: Sequence[MultiExit], heads: str = "all") -> list[Tensors]:
    """The points where `models` stand. EestudyError that names the first tensor in which they are not alike."""
    for letter, model in zip("abcdefgh", models):
        check_network(model, f"model_{letter}")
    points = [tensors_of(network_of(model, heads)) for model in models]
    for letter, model, point in zip("bcdefgh", models[1:], points[1:]):
        for name in dict.fromkeys([*points[0], *point]):
            shapes = [tuple(each[name].shape) if name in each else "absent" for each in (points[0], point)]
            if shapes[0] != shapes[1]:
                raise EestudyError(
                    f"model_{letter}: {name!r} is {shapes[1]} in it and {shapes[0]} in model_a; both must have the "
                    "same architecture"
                )
        if model.exit_stages != models[0].exit_stages:
            raise EestudyError(
                f"model_{letter}: its exits read stages {model.exit_stages}, those of model_a {models[0].exit_stages}"
            )
    return points


def combined(points: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """sum_i weights[i] points[i]. Exactly a point where its weight is 1 and the others' 0.

    Buffers that hold whole numbers are those of the first; the others' are combined too (BatchNorm's are then
    re-estimated).
    """
    chosen = [(point, weight) for point, weight in zip(points, weights, strict=True) if weight]
    result = {}
    for name, tensor in points[0].items():
        if tensor.is_floating_point():
            result[name] = sum(
                (point[name] * weight for point, weight in chosen[1:]), chosen[0][0][name] * chosen[0][1]
            )
        else:
            result[name] = tensor.clone()  # BatchNorm counts in place
    return result


def gram(points: Sequence[Tensors], names: Sequence[str]) -> np.ndarray:
    """Inner products of points[i] - points[0] over the tensors named, i from 1: float64."""
    size = len(points) - 1
    products = np.zeros((size, size))
    for name in names:
        first, *others = (point[name].cpu().double().flatten() for point in points)
        steps = torch.stack(others) - first
        products += (steps @ steps.T).numpy()
    return products


def splits_of(data: Data) -> dict[str, Batches]:
    """Batches by split; one set alone has the name "". EestudyError where there is no sample."""
    splits = dict(data) if isinstance(data, Mapping) else {"": data}
    for name, batches in splits.items():
        if not sum(len(y) for _, y in batches):
            raise EestudyError(f"data: {f'{name} ' if name else ''}has no samples")
    if not splits:
        raise EestudyError("data: no split given")
    return splits


def rows_at(network: nn.Module, tensors: Tensors, splits: dict[str, Batches], train: Batches) -> list[dict[str, Any]]:
    """Loss and error of every split's exits at a point, after BatchNorm's statistics are re-estimated on `train`.

    network: in eval mode. Exit 0 is the mean over exits. Where the network gives features, its exits are probes fitted
    to `train`.
    """
    tensors = with_statistics_of(network, tensors, train)
    read = Probes(network, tensors, train) if isinstance(network, PooledFeatures) else None
    return [row for name, batches in splits.items() for row in split_rows(name, network, tensors, batches, read)]


@torch.no_grad()
def split_rows(
    split: str,
    network: nn.Module,
    tensors: Tensors,
    batches: Batches,
    read: Callable[[list[Tensor]], list[Tensor]] | None = None,
) -> list[dict[str, Any]]:
    """One row per exit, 0 (their mean) first: [split], exit, loss, error. BatchNorm's statistics as they are.

    error: the share of wrong predictions; in regression 1 - R2, the mean squared error over the variance of the
    targets, NaN where these are all the same. Raises EestudyError for a loss that is not finite.
    """
    sums: Any = 0
    targets = np.zeros(3)
    for x, y in batches:
        outputs = functional_call(network, tensors, (x,))
        logits = torch.stack(read(outputs) if read else outputs)
        losses = exit_losses(logits, y)
        wrong = losses if is_regression(y) else 1 - exit_hits(logits, y)
        sums += torch.stack([losses, wrong]).cpu().double().numpy() * len(y)
        if is_regression(y):
            real = y.cpu().double()
            targets += [len(y), float(real.sum()), float(real.square().sum())]
    if not np.isfinite(sums).all():
        index = int(np.argmin(np.isfinite(sums).all(0)))
        raise EestudyError(f"data: the loss of exit {index + 1} is not finite at this point ({sums[0, index]})")
    losses, errors = sums / sum(len(y) for _, y in batches)
    if targets[0]:
        variance = targets[2] / targets[0] - (targets[1] / targets[0]) ** 2
        errors = errors / variance if variance > 0 else errors * np.nan
    named = {"split": split} if split else {}
    return [
        {**named, "exit": number, "loss": float(loss), "error": float(error)}
        for number, (loss, error) in enumerate(zip([losses.mean(), *losses], [errors.mean(), *errors]))
    ]


def framed(rows: list[dict[str, Any]], keys: list[str], names: Sequence[str] = ()) -> pd.DataFrame:
    """Columns names, [split], keys, loss, error."""
    split = ["split"] if "split" in rows[0] else []
    return pd.DataFrame(rows)[[*names, *split, *keys, "loss", "error"]]


@torch.no_grad()
def with_statistics_of(network: nn.Module, tensors: Tensors, batches: Batches) -> Tensors:
    """`tensors` with the BatchNorm statistics that belong to them (`gathering`); as they are without BatchNorm.

    network: in eval mode; neither it nor `tensors` is changed. Raises EestudyError as `check_sizes` does.
    """
    norms, names = batch_norms(network), {module: name for name, module in network.named_modules()}
    if not norms:
        return tensors
    check_sizes(batches)
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    statistics = {f"{names[norm]}.{kind}" for norm in norms for kind in kinds}
    fresh = {name: torch.zeros_like(given) if name in statistics else given for name, given in tensors.items()}
    with gathering(norms):
        for x, _ in batches:
            functional_call(network, fresh, (x,))
    return fresh


def check_sizes(batches: Batches) -> None:
    """EestudyError unless every batch has statistics: one sample has no variance."""
    sizes = [len(x) for x, _ in batches]
    if min(sizes, default=0) < 2:
        raise EestudyError(
            f"train: batches of {', '.join(map(str, sorted(set(sizes)))) or 'no'} samples; BatchNorm's statistics need "
            "at least one batch, and 2 samples in each"
        )


class Probes:
    """A linear probe for each exit, fitted to the pooled features of `train` at one point: features -> logits (B, C).

    Multinomial logistic regression on standardized features, penalty |w|^2 / (2 C), L-BFGS; ridge regression for real
    targets. The features of `train` (N, D) are held for one exit after another, all K of them at once in float32.
    """

    def __init__(self, network: PooledFeatures, tensors: Tensors, train: Batches) -> None:
        features: list[list[Tensor]] = []
        with torch.no_grad():
            for x, _ in train:
                features.append([each.float() for each in functional_call(network, tensors, (x,))])
        y = torch.cat([y for _, y in train])
        self.layers: list[tuple[Tensor, Tensor]] = []
        for exit_features in zip(*features, strict=True):
            found = torch.cat(exit_features)
            if not torch.isfinite(found).all():
                raise EestudyError(f"train: features of exit {len(self.layers) + 1} are not finite at this point")
            weight, bias = _fitted(found.cpu().double().numpy(), y.cpu().numpy())
            self.layers.append((torch.from_numpy(weight), torch.from_numpy(bias)))

    def __call__(self, features: list[Tensor]) -> list[Tensor]:
        return [
            (each.cpu().double() @ weight.T + bias).to(each)
            for each, (weight, bias) in zip(features, self.layers, strict=True)
        ]


def _fitted(features: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight (C, D) and bias (C,) of the probe for features (N, D) as they are; classes are 0 to max(y)."""
    scale = StandardScaler().fit(features)
    scaled = scale.transform(features)
    if is_regression(torch.from_numpy(y)):
        ridge = Ridge(alpha=1 / PROBE_C).fit(scaled, y)
        weight, bias = ridge.coef_[None], np.atleast_1d(ridge.intercept_)
    else:
        with warnings.catch_warnings():
            # What PROBE_STEPS steps reach is the definition.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=PROBE_C, max_iter=PROBE_STEPS).fit(scaled, y)
        weight, bias = np.zeros((y.max() + 1, features.shape[1])), np.full(y.max() + 1, -np.inf)
        binary = len(fitted.classes_) == 2  # the probe is the difference of the two logits
        weight[fitted.classes_] = np.concatenate([0 * fitted.coef_, fitted.coef_]) if binary else fitted.coef_
        bias[fitted.classes_] = np.append(0.0, fitted.intercept_) if binary else fitted.intercept_
    weight = weight / scale.scale_
    return weight, bias - weight @ scale.mean_


def check_labels(splits: dict[str, Batches], train: Batches) -> None:
    """EestudyError unless probes fitted to `train` know every class of the data, and there are two or more."""
    if any(y.ndim != 1 for batches in (train, *splits.values()) for _, y in batches):
        raise EestudyError("heads: 'probe' needs labels (B,), not shares of classes")
    if is_regression(train[0][1]):
        return
    known = {int(label) for _, y in train for label in y.unique()}
    wanted = {int(label) for batches in splits.values() for _, y in batches for label in y.unique()}
    if wanted - known or len(known) < 2:
        lacking = f"lacks {sorted(wanted - known)}" if wanted - known else "a probe needs two or more"
        raise EestudyError(f"train: its labels are {sorted(known)}; {lacking}")
