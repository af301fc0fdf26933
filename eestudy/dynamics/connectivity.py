"""Mode connectivity: the loss on the straight line, on a plane and on a trained curve between models.

theta is all that is interpolated: of whole models ("all", which asks for heads that started alike), or of the
backbones' stages, where a linear probe refitted at each point stands for each exit ("probe"; the backbone's classifier
is exit K, and so is replaced too). BatchNorm's statistics are re-estimated at every point, the models' own included;
dropout is off throughout.

In every frame exit 0 is the mean over exits, the joint loss; 1 to K are the exits. Loss in nats (mean squared error in
regression), error as a share (1 - R2 in regression). `data` may be batches, or batches by the name of their split, all
measured at the same points; then the frame starts with a column `split`. `train` are the batches that BatchNorm's
statistics and probes come from; without it, `data` itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.integrate import cumulative_simpson
from torch import nn
from torch.func import functional_call
from tqdm import tqdm

from eestudy.config import EestudyError, check_name, named_seed
from eestudy.dynamics.activations import Batches
from eestudy.dynamics.weight_space import (
    Data,
    Tensors,
    check_labels,
    check_sizes,
    combined,
    framed,
    gram,
    network_of,
    points_of,
    rows_at,
    splits_of,
)
from eestudy.models import MultiExit
from eestudy.models.backbone import mode
from eestudy.training.losses import exit_losses
from eestudy.training.phase_network import batch_norms, gathering

# What distances are taken over: every parameter, or those of the backbone's stages.
OVER = ("all", "backbone")
# Two directions of a plane are one if the second leaves the first by less than this share of its length.
COLLINEAR = 1e-4
MARGIN = 0.2


def linear_path(
    model_a: MultiExit,
    model_b: MultiExit,
    data: Data,
    points: int = 25,
    heads: str = "all",
    train: Batches | None = None,
) -> pd.DataFrame:
    """Loss and error at theta(alpha) = (1 - alpha) theta_a + alpha theta_b: [split], alpha, exit, loss, error.

    points: equally spaced, both ends among them. heads: "all" or "probe", see above; a probe is a multinomial logistic
    regression (ridge in regression) on standardized features, averaged over positions (of tokens: the first).
    Raises EestudyError for models of different shapes, for fewer than 2 points, for "probe" without `train`, and where
    a loss is not finite.
    """
    _check_points(points)
    network, splits = network_of(model_a, heads), splits_of(data)
    ends = points_of([model_a, model_b], heads)
    train = _train(train, splits, heads)
    rows = []
    with mode(network, False):
        for number in tqdm(range(points), desc="linear path", leave=False, disable=None):
            alpha = number / (points - 1)
            tensors = combined(ends, [1 - alpha, alpha])
            rows += [{"alpha": alpha, **row} for row in rows_at(network, tensors, splits, train)]
    return framed(rows, ["alpha", "exit"])


def barrier(frame: pd.DataFrame, column: str = "loss", exit: int = 0, above: str = "line") -> float:
    """How high a path rises between its ends.

    above "line": max over it of L(alpha) - [(1 - alpha) L(0) + alpha L(1)] (Entezari et al. 2022), 0 where there is
    none. above "mean": max over it of L(alpha), less the mean of L(0) and L(1) (Frankle et al. 2020); where the ends
    differ this is at least half of their difference, on a straight way down too.

    frame: of `linear_path` or `bezier`, one split of it. Raises EestudyError for an exit or column that is not in it,
    for more than one path and for one that lacks an end.
    """
    check_name("column", column, ("loss", "error"))
    check_name("above", above, ("line", "mean"))
    path = frame[frame["exit"] == exit].sort_values("alpha")
    if path.empty:
        raise EestudyError(f"exit: the path has none of number {exit}; valid: {sorted(set(frame['exit'].tolist()))}")
    alpha, height = path["alpha"].to_numpy(float), path[column].to_numpy(float)
    if len(np.unique(alpha)) < len(alpha) or alpha[0] != 0 or alpha[-1] != 1:
        raise EestudyError(
            f"frame: {len(alpha)} rows for exit {exit} at {len(np.unique(alpha))} alphas from {alpha[0]:g} to "
            f"{alpha[-1]:g}; give one path from 0 to 1 (one split)"
        )
    if above == "mean":
        return float(np.max(height) - (height[0] + height[-1]) / 2)
    return float(np.max(height - ((1 - alpha) * height[0] + alpha * height[-1])))


def distance(model_a: MultiExit, model_b: MultiExit, over: str = "all") -> float:
    """Euclidean distance between two models' parameters; over the stages alone with "backbone"."""
    points = points_of([model_a, model_b])
    return math.sqrt(gram(points, _measured_over(model_a, over))[0, 0])


def plane(
    model_a: MultiExit, model_b: MultiExit, model_c: MultiExit, data: Data, points: int = 15
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Loss and error on the plane through three models, with true distances on its axes (Garipov et al. 2018).

    Returns a grid of points x points, columns [split], x, y, loss, error, and where the models are, columns name,
    [split], x, y, loss, error, measured exactly there. Both are means over exits. Model a is at (0, 0), b at
    (|b - a|, 0), c at a positive y; the grid reaches MARGIN of the models' extent beyond them on every side.
    Raises EestudyError as `linear_path` does, and for models on one line.
    """
    _check_points(points)
    splits, corners = splits_of(data), points_of([model_a, model_b, model_c])
    train = _train(None, splits, "all")
    coordinates = _coordinates(gram(corners, _measured_over(model_a, "all")))
    (_, _), (b_x, _), (c_x, c_y) = coordinates

    def rows(x: float, y: float, tensors: Tensors) -> list[dict[str, Any]]:
        return [{"x": x, "y": y, **row} for row in rows_at(model_a, tensors, splits, train) if row["exit"] == 0]

    grid: list[dict[str, Any]] = []
    low, high = np.min(coordinates, 0), np.max(coordinates, 0)
    xs, ys = np.linspace(low - MARGIN * (high - low), high + MARGIN * (high - low), points).T
    with mode(model_a, False):
        own = [
            {"name": name, **row}
            for name, corner, (x, y) in zip("abc", corners, coordinates, strict=True)
            for row in rows(x, y, corner)
        ]
        for x, y in tqdm([(x, y) for y in ys for x in xs], desc="plane", leave=False, disable=None):
            t = y / c_y
            s = (x - t * c_x) / b_x
            grid += rows(float(x), float(y), combined(corners, [1 - s - t, s, t]))
    return framed(grid, ["x", "y"]), framed(own, ["x", "y"], ["name"])


def bezier(
    model_a: MultiExit, model_b: MultiExit, train: Batches, data: Data, steps: int, lr: float, points: int = 25
) -> pd.DataFrame:
    """Loss and error on a curve of low loss between two models: [split], alpha, length, exit, loss, error.

    phi(t) = (1 - t)^2 theta_a + 2 t (1 - t) theta_m + t^2 theta_b, whose middle theta_m, at first halfway on the line,
    is trained for the expected joint loss over uniform t: one t and one batch a step (Garipov et al. 2018), by Adam
    with a cosine schedule. alpha is t, length the curve's from theta_a to there. BatchNorm normalizes by its batch in
    training and is re-estimated on `train` at every point measured. Only theta_m, its gradient and Adam's two moments
    are held beside the models.
    Raises EestudyError as `linear_path` does, and where training leaves the finite numbers.
    """
    _check_points(points)
    if steps < 1 or not lr > 0:
        raise EestudyError(f"steps: {steps} at lr {lr:g} is not valid; both must be above 0")
    splits, ends = splits_of(data), points_of([model_a, model_b])
    train = _train(train, splits, "all")
    with mode(model_a, False):
        middle = _middle(model_a, ends, train, steps, lr)
        lengths = _lengths(gram([ends[0], middle, ends[1]], _measured_over(model_a, "all")), points)
        rows = []
        for number in tqdm(range(points), desc="curve", leave=False, disable=None):
            t = number / (points - 1)
            tensors = combined([ends[0], middle, ends[1]], _bernstein(t))
            rows += [{"alpha": t, "length": lengths[number], **row} for row in rows_at(model_a, tensors, splits, train)]
    return framed(rows, ["alpha", "length", "exit"])


def _lengths(products: np.ndarray, points: int) -> np.ndarray:
    """Of the curve from a to each of `points` equally spaced t, from the inner products of m - a and b - a."""
    t = np.linspace(0, 1, 100 * (points - 1) + 1)
    speed = 2 * np.stack([1 - 2 * t, t])  # phi'(t) = 2 (1 - 2 t) (m - a) + 2 t (b - a)
    squared = np.einsum("it,ij,jt->t", speed, products, speed)
    return cumulative_simpson(np.sqrt(squared.clip(min=0)), x=t, initial=0)[::100]


def _bernstein(t: float) -> list[float]:
    return [(1 - t) ** 2, 2 * t * (1 - t), t**2]


def _middle(network: nn.Module, ends: list[Tensors], train: Batches, steps: int, lr: float) -> Tensors:
    """The trained middle point of the curve. network: in eval mode."""
    middle = combined(ends, [0.5, 0.5])
    if batch_norms(network):
        check_sizes(train)
    trained = [middle[name].requires_grad_() for name, _ in network.named_parameters()]
    optimizer = torch.optim.Adam(trained, lr)
    generator = torch.Generator().manual_seed(named_seed(0, "bezier"))
    order: list[int] = []
    for step in tqdm(range(steps), desc="fitting the curve", leave=False, disable=None):
        order = order or torch.randperm(len(train), generator=generator).tolist()
        x, y = train[order.pop()]
        # Never quite an end, where the middle has no part.
        t = 1e-6 + (1 - 2e-6) * float(torch.rand((), generator=generator))
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        with gathering(batch_norms(network)), torch.enable_grad():
            logits = functional_call(network, combined([ends[0], middle, ends[1]], _bernstein(t)), (x,))
            loss = exit_losses(torch.stack(logits), y).mean()
        if not torch.isfinite(loss):
            raise EestudyError(
                f"bezier: the loss is {loss.item()} in step {step + 1} of {steps}; try an lr below {lr:g}"
            )
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        for tensor, gradient in zip(trained, gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
    return {name: tensor.detach() for name, tensor in middle.items()}


def _coordinates(products: np.ndarray) -> list[tuple[float, float]]:
    """Where a, b and c are on their plane, from the inner products of b - a and c - a."""
    (bb, bc), (_, cc) = products
    across = cc - bc**2 / bb if bb > 0 else 0.0
    if not bb > 0 or not across > COLLINEAR**2 * cc:
        raise EestudyError(
            f"model_c: the three models lie on one line: |b - a| = {math.sqrt(bb):.3g}, |c - a| = {math.sqrt(cc):.3g}, "
            f"distance of c from the line {math.sqrt(max(across, 0)):.3g}"
        )
    return [(0.0, 0.0), (math.sqrt(bb), 0.0), (bc / math.sqrt(bb), math.sqrt(across))]


def _measured_over(model: MultiExit, over: str) -> list[str]:
    start = "" if check_name("over", over, OVER) == "all" else "backbone.stages."
    return [name for name, _ in model.named_parameters() if name.startswith(start)]


def _train(train: Batches | None, splits: dict[str, Batches], heads: str) -> Batches:
    if train is None:
        if heads == "probe":
            raise EestudyError("train: heads 'probe' fits its probes to train batches; give some")
        return [batch for batches in splits.values() for batch in batches]
    train = splits_of({"train": train})["train"]
    if heads == "probe":
        check_labels(splits, train)
    return train


def _check_points(points: int) -> None:
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise EestudyError(f"points: {points!r} is not valid; it must be a whole number of at least 2")
