"""Whose gradient drives the backbone: each exit's share of every stage's gradient, and where exits pull apart.

Notation: K exits, S stages, P_l parameters of stage l, N batches. For exit k with weight w_k and loss L_k, and stage l
upstream of it, g_kl = d(w_k L_k) / d theta_l and G_l = sum_k g_kl, which is the gradient of the training loss. Stage 0
is the whole backbone: all stages' parameters together. The backbone's classifier belongs to its exit, not to a stage.

Scaled, every gradient g is replaced by g / (sqrt(v) + eps), which is how far AdamW moves the weights for it: v is the
mean over the batches of G^2, element by element. AdamW's own is a running mean of the same over its last steps, at
weights that have moved since; this one belongs to the weights measured.

Gradients are those of the training loss in eval mode: BatchNorm by its running statistics, no dropout. So they are a
function of the weights and the batch alone, and measuring leaves no trace in the buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from eestudy.config import EestudyError, check_name
from eestudy.dynamics.activations import Batches
from eestudy.models import MultiExit, check_network
from eestudy.models.backbone import mode
from eestudy.training.losses import FIXED, exit_losses, exit_weights

DOMINANCE = ["exit", "stage", "norm_share", "signed_share", "cosine", "norm"]
ADAM_EPS = 1e-8  # torch's own
CONFLICT = ["stage", "exit_a", "exit_b", "cosine", "negative_rate", "kind"]


@dataclass(frozen=True)
class GradientGrams:
    """Inner products of the exits' gradients, all that the tables need.

    stages: those that have parameters, 0 (the whole backbone) first; S' of them.
    exit_stages: the stage that each exit reads, (K,).
    within: <g_kl, g_jl> in each batch, (N, S', K, K) float64; 0 where stage l is not upstream of k or j.
    across: <g_kl of a batch, g_kl of the batch before>, (N - 1, S', K) float64.
    """

    stages: tuple[int, ...]
    exit_stages: tuple[int, ...]
    within: np.ndarray
    across: np.ndarray

    def exits(self, stage: int) -> list[int]:
        """The numbers, from 0, of the exits that a stage is upstream of."""
        return [index for index, of_exit in enumerate(self.exit_stages) if of_exit >= stage]


def gradient_dominance(
    model: MultiExit, batches: Batches, weighting: str = "equal", scaled: bool = False
) -> pd.DataFrame:
    """How much of each stage's gradient is each exit's: one row per exit k and stage l at or before it.

    norm_share |g_k| / sum_j |g_j|; signed_share <g_k, G> / |G|^2, negative for an exit that is pulled against its
    will; cosine cos(g_k, G); norm |g_k|. Both shares sum to 1 over a stage's exits. Each is taken per batch, then
    averaged over batches.

    An exit whose gradient is 0, such as one with zero weights, has share 0 and no cosine (NaN). Where all exits' are 0
    shares are NaN too, and signed ones where the exits cancel. Such batches are left out of the mean.

    batches: pairs of x (B, *input_shape) and labels (B,) on the model's device. weighting: of the losses, see
    `training.losses`. scaled: as AdamW scales them (see above). One forward and K backward passes a batch, each from
    its exit down; scaled, one pass more of each.
    Raises EestudyError for an unknown weighting, no batches, and a loss or gradient that is not finite.
    """
    return gradient_tables(model, batches, weighting, scaled)[0]


def gradient_conflict(model: MultiExit, batches: Batches, weighting: str = "equal") -> pd.DataFrame:
    """Cosines between gradients: mean over batches, and negative_rate, the share of batches where it is below 0.

    kind "exits": of exits a < b on the same batch. kind "noise": of the same exit (a = b) on two consecutive batches,
    which is what chance alone does to a cosine; there are none with a single batch. A cosine with a gradient of 0 is
    NaN and left out of both. Arguments, cost and errors as for `gradient_dominance`.
    """
    return gradient_tables(model, batches, weighting)[1]


def gradient_tables(
    model: MultiExit, batches: Batches, weighting: str = "equal", scaled: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(`gradient_dominance`, `gradient_conflict`) from one pass over the batches, or two."""
    grams = gradient_grams(model, batches, weighting, scaled)
    return _dominance(grams), _conflict(grams)


def gradient_grams(model: MultiExit, batches: Batches, weighting: str = "equal", scaled: bool = False) -> GradientGrams:
    """Every exit's gradient on every batch, kept as inner products only. Arguments and errors: `gradient_dominance`.

    Beside what one training step takes, this holds one gradient an exit: that of the batch before, until the new one
    replaces it. A parameter that several stages share counts in the first of them.
    """
    check_name("weighting", weighting, FIXED)
    check_network(model)
    if not len(batches):
        raise EestudyError("batches: there are none; gradients need at least one")
    names = stage_parameters(model)
    if not names:
        raise EestudyError("model: no stage of its backbone has parameters, so none has a gradient")
    held: dict[tuple[int, int], Tensor] = {}
    within, across = [], []
    with mode(model, False), torch.enable_grad():
        scales = adam_scales(model, batches, weighting, names) if scaled else None
        for number, batch in enumerate(tqdm(batches, desc="gradients", unit="batch", leave=False, disable=None), 1):
            same, before = _batch_grams(model, batch, weighting, names, held, scales)
            if not same.isfinite().all():
                bad = [index + 1 for index in range(model.num_exits) if not same[:, index, index].isfinite().all()]
                raise EestudyError(f"batch {number} of {len(batches)}: the gradient of exits {bad} is not finite")
            within.append(same.numpy())
            across.append(before.numpy())
    stages = (0, *names)
    exit_stages = (*model.exit_stages, len(model.backbone.stages))
    return GradientGrams(stages, exit_stages, np.stack(within), np.stack(across)[1:])


def stage_parameters(model: MultiExit) -> dict[int, list[str]]:
    """Stage (from 1) -> names in `model` of its parameters; stages without any are left out."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[int, list[str]] = {}
    for stage, module in enumerate(model.backbone.stages, 1):
        own = [names.pop(id(parameter)) for parameter in module.parameters() if id(parameter) in names]
        if own:
            found[stage] = own
    return found


def adam_scales(
    model: MultiExit, batches: Batches, weighting: str, names: Mapping[int, list[str]]
) -> dict[int, Tensor]:
    """What AdamW multiplies the gradient of each stage by: 1 / (sqrt(v) + eps), flattened; v the mean of G^2."""
    squares: dict[int, Tensor] = {}
    for batch in batches:
        weights, losses = _losses(model, batch, weighting)
        own = [weights[name] for stage in names for name in names[stage]]
        gradients = iter(torch.autograd.grad(torch.stack(losses).sum(), own, materialize_grads=True))
        for stage in names:
            square = torch.cat([next(gradients).flatten() for _ in names[stage]]).square() / len(batches)
            squares[stage] = squares[stage] + square if stage in squares else square
    return {stage: 1 / (square.sqrt() + ADAM_EPS) for stage, square in squares.items()}


def _losses(model: MultiExit, batch: tuple[Tensor, Tensor], weighting: str) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The parameters by name, as leaves, and each exit's weighted loss as a function of them."""
    x, targets = batch
    # The model's own memory, but leaves of their own: nothing is left on the model, and what is frozen counts too.
    weights = {name: tensor.detach().requires_grad_() for name, tensor in model.named_parameters()}
    logits = functional_call(model, weights, (x,))
    shares = exit_weights(weighting, len(logits)).tolist()
    # Each loss by itself: from a stack of all, a backward pass would go through the later exits' graph with zeros.
    return weights, [
        share * exit_losses(of_exit[None], targets).squeeze(0) for share, of_exit in zip(shares, logits, strict=True)
    ]


def _batch_grams(
    model: MultiExit,
    batch: tuple[Tensor, Tensor],
    weighting: str,
    names: Mapping[int, list[str]],
    held: dict[tuple[int, int], Tensor],
    scales: Mapping[int, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """One batch's inner products (S', K, K) and those with the batch before (S', K), on the CPU.

    held: (exit index, stage) -> that exit's gradient, flattened, of the batch before; of this one afterwards. scales:
    what gradients are multiplied by, by stage.
    """
    weights, losses = _losses(model, batch, weighting)
    within = torch.zeros(1 + len(names), len(losses), len(losses), dtype=torch.float64)
    across = torch.zeros(1 + len(names), len(losses), dtype=torch.float64)
    for index, (loss, last) in enumerate(zip(losses, (*model.exit_stages, len(model.backbone.stages)), strict=True)):
        upstream = {stage: own for stage, own in names.items() if stage <= last}
        inputs = [weights[name] for own in upstream.values() for name in own]
        if not inputs:  # no stage before this exit has parameters
            continue
        final = index == len(losses) - 1
        gradients = iter(torch.autograd.grad(loss, inputs, retain_graph=not final, materialize_grads=True))
        for row, stage in enumerate(names, 1):
            if stage not in upstream:
                continue
            new = torch.cat([next(gradients).flatten() for _ in names[stage]])
            new = new if scales is None else new * scales[stage]
            if (index, stage) in held:
                across[row, index] = _inner(new, held[index, stage])
            held[index, stage] = new
            for other in range(index + 1):
                if (other, stage) in held:
                    within[row, index, other] = within[row, other, index] = _inner(new, held[other, stage])
    # No parameter is in two stages here, so inner products over the whole backbone are sums over stages.
    within[0], across[0] = within[1:].sum(0), across[1:].sum(0)
    return within, across


def _inner(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double())


def _dominance(grams: GradientGrams) -> pd.DataFrame:
    norms = np.sqrt(np.diagonal(grams.within, axis1=2, axis2=3))  # (N, S', K)
    with_total = grams.within.sum(3)  # <g_k, G>
    total = np.clip(with_total.sum(2, keepdims=True), 0, None)  # |G|^2
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            "norm_share": _known(norms / norms.sum(2, keepdims=True)),
            "signed_share": _known(with_total / total),
            "cosine": _known(with_total / (norms * np.sqrt(total))),
            "norm": norms,
        }
    means = {name: _mean(values) for name, values in columns.items()}
    rows = [
        (index + 1, stage, *(values[row, index] for values in means.values()))
        for row, stage in enumerate(grams.stages)
        for index in grams.exits(stage)
    ]
    return pd.DataFrame(rows, columns=DOMINANCE)


def _conflict(grams: GradientGrams) -> pd.DataFrame:
    norms = np.sqrt(np.diagonal(grams.within, axis1=2, axis2=3))
    with np.errstate(divide="ignore", invalid="ignore"):
        exits = _known(grams.within / (norms[..., :, None] * norms[..., None, :]))
        noise = _known(grams.across / (norms[1:] * norms[:-1]))
    rows: list[tuple[int, int, int, float, float, str]] = []
    exits_mean, exits_negative = _mean(exits), _mean(_negative(exits))
    noise_mean, noise_negative = _mean(noise), _mean(_negative(noise))
    for row, stage in enumerate(grams.stages):
        indices = grams.exits(stage)
        for a, b in combinations(indices, 2):
            rows.append((stage, a + 1, b + 1, exits_mean[row, a, b], exits_negative[row, a, b], "exits"))
        for a in indices if len(noise) else []:
            rows.append((stage, a + 1, a + 1, noise_mean[row, a], noise_negative[row, a], "noise"))
    return pd.DataFrame(rows, columns=CONFLICT)


def _known(ratio: np.ndarray) -> np.ndarray:
    """NaN where the division was by 0."""
    return np.where(np.isfinite(ratio), ratio, np.nan)


def _negative(cosines: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(cosines), np.nan, cosines < 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over batches, the first axis, of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)
