"""Exit heads (internal classifiers): what turns a stage's features into logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import EestudyError, check_name

POOLED_SIZE = 4  # each side of what an SDN head pools to


class Head(nn.Sequential):
    """Features -> logits (B, C), in two steps: `reduce`, which has no parameters, and `read`, which trains.

    A phase that trains heads alone runs `reduce` once for all its epochs and keeps what it gives.
    """

    def reduce(self, features: Tensor) -> Tensor:
        """What of the features the head reads at all, batch first. No parameters, no randomness."""
        first = self[0]
        return first.reduce(features) if isinstance(first, Reader) else features

    def read(self, reduced: Tensor, previous: Tensor | None = None) -> Tensor:
        """What `reduce` gave and the logits (B, C) of the exit before, if there is one -> logits (B, C)."""
        first = self[0]
        x = first.read(reduced) if isinstance(first, Reader) else first(reduced)
        for module in self[1:]:
            x = module(x)
        return x

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.read(self.reduce(features), previous)


class Reader(nn.Module):
    """What stands first in a head: `reduce`, without parameters, then `read`."""

    def reduce(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def read(self, reduced: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.reduce(x))


class SDNPool(Reader):
    """a * maxpool + (1 - a) * avgpool with a learned share a (Kaya et al. 2019, SDN).

    (B, C, L) -> (B, C * size), (B, C, H, W) -> (B, C * size^2), with size at most 4. Features that are no larger than
    that have nothing to pool; there is no share then.
    """

    def __init__(self, feature_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size = tuple(min(POOLED_SIZE, side) for side in feature_shape[1:])
        self.share = nn.Parameter(torch.tensor(0.5)) if self.size != tuple(feature_shape[1:]) else None

    def reduce(self, x: Tensor) -> Tensor:
        """Both pooled maps, (B, 2, C * size^2); or x, flattened, where there is nothing to pool."""
        if self.share is None:
            return x.flatten(1)
        if x.ndim == 3:
            size = self.size[0]
            most, mean = F.adaptive_max_pool1d(x, size), F.adaptive_avg_pool1d(x, size)
        else:
            height, width = self.size
            most, mean = F.adaptive_max_pool2d(x, (height, width)), F.adaptive_avg_pool2d(x, (height, width))
        return torch.stack([most.flatten(1), mean.flatten(1)], 1)

    def read(self, reduced: Tensor) -> Tensor:
        """What `reduce` gave -> (B, C * size^2)."""
        if self.share is None:
            return reduced
        return self.share * reduced[:, 0] + (1 - self.share) * reduced[:, 1]


class FirstToken(Reader):
    """The class token, layer-normed: (B, T, D) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def reduce(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def read(self, reduced: Tensor) -> Tensor:
        return self.norm(reduced)


def pooled(feature_shape: tuple[int, ...], num_classes: int, layers: int) -> Head:
    """SDN pooling, then linear; a second layer puts a 3-wide convolution with BatchNorm and ReLU in front."""
    channels, sides = feature_shape[0], feature_shape[1:]
    pool = SDNPool(feature_shape)
    last = nn.Linear(channels * int(torch.tensor(pool.size).prod()), num_classes)
    if layers == 1:
        return Head(pool, last)
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if len(sides) == 1 else (nn.Conv2d, nn.BatchNorm2d)
    first = nn.Sequential(conv(channels, channels, 3, padding=1, bias=False), norm(channels), nn.ReLU())
    return Head(first, pool, last)


def token(feature_shape: tuple[int, ...], num_classes: int, layers: int) -> Head:
    """The layer-normed class token, then linear, or an MLP as wide as the token."""
    width = feature_shape[1]
    return Head(FirstToken(width), *_mlp(width, num_classes, layers))


def vector(feature_shape: tuple[int, ...], num_classes: int, layers: int) -> Head:
    """Linear, or an MLP as wide as the features."""
    return Head(*_mlp(feature_shape[0], num_classes, layers))


def _mlp(width: int, num_classes: int, layers: int) -> list[nn.Module]:
    hidden: list[nn.Module] = [nn.Linear(width, width), nn.GELU()] if layers == 2 else []
    return [*hidden, nn.Linear(width, num_classes)]


# name -> (kinds of features it reads, builder)
HEADS: dict[str, tuple[tuple[str, ...], Callable[[tuple[int, ...], int, int], Head]]] = {
    "pooled": (("maps", "sequence"), pooled),
    "token": (("tokens",), token),
    "vector": (("vector",), vector),
}


def build_head(name: str, kind: str, feature_shape: tuple[int, ...], num_classes: int, layers: int = 1) -> Head:
    """The head `name` for features of `kind` and shape (without the batch). "auto" takes the one made for the kind.

    Raises EestudyError for an unknown name, a head that cannot read the kind, or layers other than 1 and 2.
    """
    fitting = [head for head, (kinds, _) in HEADS.items() if kind in kinds]
    if name != "auto" and check_name("head", name, ["auto", *HEADS]) not in fitting:
        raise EestudyError(f"head: {name!r} does not read {kind}; valid: auto, {', '.join(fitting)}")
    if layers not in (1, 2):
        raise EestudyError(f"head_layers: {layers} is out of range; it must be 1 or 2")
    _, build = HEADS[fitting[0] if name == "auto" else name]
    return build(feature_shape, num_classes, layers)
