"""The loss around a model, on two random directions that are as long as its filters are (Li et al. 2018)."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from eestudy.config import EestudyError, named_seed
from eestudy.dynamics.weight_space import Data, Tensors, framed, split_rows, splits_of, tensors_of
from eestudy.models import MultiExit, check_network
from eestudy.models.backbone import mode


def landscape(model: MultiExit, data: Data, span: float = 1.0, points: int = 21) -> pd.DataFrame:
    """L(theta + x d_1 + y d_2) on a square grid: [split], x, y, exit (0: mean over exits; 1 to K), loss, error.

    x and y take `points` values, an odd number, from -span to span: the same to both sides and 0 in the middle, where
    the model's own loss stands. One unit is the length of the weights themselves (see `filter_directions`). BatchNorm
    keeps the model's statistics. Loss in nats, or mean squared error; error a share, or 1 - R2. data: batches, or
    batches by the name of their split, which is then a column.
    Raises EestudyError for an even number of points, a span that is not above 0, and where a loss is not finite.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise EestudyError(
            f"points: {points!r} is not valid; it must be odd and at least 3, so that the model is in the middle"
        )
    if not span > 0:
        raise EestudyError(f"span: {span:g} is not valid; it must be above 0")
    check_network(model)
    splits = splits_of(data)
    own = tensors_of(model)
    first, second = (filter_directions(model, named_seed(0, "landscape", axis)) for axis in ("x", "y"))
    half = points // 2
    steps = [span * index / half for index in range(-half, half + 1)]
    rows: list[dict[str, Any]] = []
    with mode(model, False):
        for x, y in tqdm([(x, y) for y in steps for x in steps], desc="landscape", leave=False, disable=None):
            moved = {name: own[name] + x * first[name] + y * second[name] for name in first}
            for split, batches in splits.items():
                rows += [{"x": x, "y": y, **row} for row in split_rows(split, model, {**own, **moved}, batches)]
    return framed(rows, ["x", "y", "exit"])


def filter_directions(model: MultiExit, seed: int) -> Tensors:
    """A random direction, by the names of the parameters that move.

    Normal numbers, scaled so that each filter of the direction is as long as the model's own (Li et al. 2018): of a
    convolution the weights of one output channel, of a linear layer those of one unit, of an embedding those of one
    token. Parameters of fewer than two dimensions (biases, what BatchNorm and LayerNorm scale by, the share of SDN
    pooling) stay. Drawn on the CPU, in the order of the parameters: the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = {}
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        drawn = torch.empty_like(weight, requires_grad=False).copy_(torch.randn(weight.shape, generator=generator))
        lengths = [tensor.detach().flatten(1).norm(dim=1) for tensor in (weight, drawn)]
        scale = lengths[0] / lengths[1]
        directions[name] = drawn * scale.view(-1, *[1] * (weight.ndim - 1))
    return directions
