"""Exit heads (internal classifiers): what turns a stage's features into logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import MOST_HEAD_LAYERS, EestudyError, check_name, nearest

POOLED_SIZE = 4  # each side of what an SDN head pools to


class Head(nn.Sequential):
    """Features -> logits (B, C), in two steps: `reduce`, which has no parameters, and `read`, which trains.

    A phase that trains heads alone runs `reduce` once for all its epochs and keeps what it gives.
    """

    @property
    def reads_previous(self) -> bool:
        """Whether its logits depend on what the head before hands on."""
        return any(isinstance(module, Cascade) for module in self)

    def reduce(self, features: Tensor) -> Tensor:
        """What of the features the head reads at all, batch first. No parameters, no randomness."""
        first = self[0]
        return first.reduce(features) if isinstance(first, Reader) else features

    def read(self, reduced: Tensor, previous: Tensor | None = None) -> Tensor:
        """What `reduce` gave and what the head before handed on, if there is one -> logits (B, C)."""
        x = reduced
        for module in self:
            if isinstance(module, Cascade):
                x = module(x, previous)
            else:
                x = module.read(x) if module is self[0] and isinstance(module, Reader) else module(x)
        return x

    def answer(self, reduced: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`read`, and what the next head gets as `previous`, batch first: the logits, unless a method says else."""
        logits = self.read(reduced, previous)
        return logits, logits

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.answer(self.reduce(features), previous)[0]


class WrappedHead(Head):
    """A head that makes its answer of another's, `base`, and of what the head before handed on: see `methods`."""

    reads_previous = True

    def __init__(self, base: Head) -> None:
        super().__init__()
        self.base = base

    def reduce(self, features: Tensor) -> Tensor:
        return self.base.reduce(features)


class Reader(nn.Module):
    """What stands first in a head: `reduce`, without parameters, then `read`."""

    reduce: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.reduce(x))


class SDNPool(Reader):
    """a * maxpool + (1 - a) * avgpool with a learned share a (Kaya et al. 2019, SDN).

    (B, C, L) -> (B, C * size), (B, C, H, W) -> (B, C * size^2), with size at most `side`. Features that are no larger
    than that have nothing to pool, and no share.
    """

    def __init__(self, feature_shape: tuple[int, ...], side: int = POOLED_SIZE) -> None:
        super().__init__()
        self.size = tuple(min(side, each) for each in feature_shape[1:])
        self.share = nn.Parameter(torch.tensor(0.5)) if self.size != tuple(feature_shape[1:]) else None

    def reduce(self, x: Tensor) -> Tensor:
        """Both pooled maps, (B, 2, C * size^2); or x, flattened, where there is nothing to pool."""
        if self.share is None:
            return x.flatten(1)
        pools: Any = (F.adaptive_max_pool2d, F.adaptive_avg_pool2d)
        if x.ndim == 3:
            pools = (F.adaptive_max_pool1d, F.adaptive_avg_pool1d)
        return torch.stack([pool(x, self.size).flatten(1) for pool in pools], 1)

    def read(self, reduced: Tensor) -> Tensor:
        return reduced if self.share is None else self.share * reduced[:, 0] + (1 - self.share) * reduced[:, 1]


class FirstToken(Reader):
    """The class token, layer-normed: (B, T, D) -> (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def reduce(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def read(self, reduced: Tensor) -> Tensor:
        return self.norm(reduced)


class Cascade(nn.Module):
    """The last layer of a head that also reads the exit before (Wołczyk et al. 2021, ZTW): (B, width) -> (B, C).

    The logits of the exit before are layer-normed, so that exits of different confidence look alike, and detached, so
    that no loss reaches an exit through a later one. The norm has no weights of its own; the linear layer has them. A
    single output, as in regression, is taken as it is: normed, it would be 0 for every sample.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_classes, elementwise_affine=False) if num_classes > 1 else nn.Identity()
        self.linear = nn.Linear(width + num_classes, num_classes)

    def forward(self, x: Tensor, previous: Tensor | None) -> Tensor:
        if previous is None:
            raise EestudyError("head: a cascading head after the first exit needs the logits of the exit before")
        return self.linear(torch.cat([x, self.norm(previous.detach())], 1))


def pooled(
    feature_shape: tuple[int, ...], num_classes: int, layers: int, width: int | None = None, side: int = POOLED_SIZE
) -> Head:
    """SDN pooling, then linear; layers - 1 3-wide convolutions with BatchNorm and ReLU in front (Kaya et al. 2019).

    width: channels of the convolutions; default: as many as the features have. side: of what is pooled to, at most.
    """
    pool = SDNPool(feature_shape, side)
    channels = [feature_shape[0]] + [width or feature_shape[0]] * (layers - 1)
    # Made first: what the weights start as depends on the order.
    last = nn.Linear(channels[-1] * prod(pool.size), num_classes)
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if len(feature_shape) == 2 else (nn.Conv2d, nn.BatchNorm2d)
    front = [
        nn.Sequential(conv(before, after, 3, padding=1, bias=False), norm(after), nn.ReLU())
        for before, after in pairwise(channels)
    ]
    return Head(*front, pool, last)


def token(feature_shape: tuple[int, ...], num_classes: int, layers: int, width: int | None = None) -> Head:
    """The layer-normed class token, then linear, or an MLP with GELU of `width` units, as wide as the token if None."""
    return Head(FirstToken(feature_shape[1]), *_mlp(feature_shape[1], num_classes, layers, width))


def vector(feature_shape: tuple[int, ...], num_classes: int, layers: int, width: int | None = None) -> Head:
    """Linear, or an MLP with GELU of `width` units, as wide as the features if None."""
    return Head(*_mlp(feature_shape[0], num_classes, layers, width))


def msdnet(feature_shape: tuple[int, ...], num_classes: int, layers: int) -> Head:
    """The classifier of MSDNet for CIFAR (Huang et al. 2018): two strided convolutions (128 channels), pool, linear."""
    return _strided(feature_shape[0], 128, num_classes, layers)


def msdnet_wide(feature_shape: tuple[int, ...], num_classes: int, layers: int) -> Head:
    """The classifier of MSDNet for ImageNet (Huang et al. 2018, appendix A): as wide as what it reads."""
    return _strided(feature_shape[0], feature_shape[0], num_classes, layers)


def _strided(channels: int, width: int, num_classes: int, layers: int) -> Head:
    """Maps of 7 or 8 pixels a side, as published, reach the average pooling as 2 x 2; others are pooled whole too."""
    body: list[nn.Module] = []
    for before in (channels, width):
        conv = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        body += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return Head(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *_mlp(width, num_classes, layers))


def _mlp(features: int, num_classes: int, layers: int, width: int | None = None) -> list[nn.Module]:
    widths = [features] + [width or features] * (layers - 1)
    hidden: list[nn.Module] = []
    for before, after in pairwise(widths):
        hidden += [nn.Linear(before, after), nn.GELU()]
    return [*hidden, nn.Linear(widths[-1], num_classes)]


# name -> (kinds of features it reads, builder)
HEADS: dict[str, tuple[tuple[str, ...], Callable[..., Head]]] = {
    "pooled": (("maps", "sequence"), pooled),
    "token": (("tokens",), token),
    "vector": (("vector",), vector),
    "msdnet": (("maps",), msdnet),
    "msdnet-wide": (("maps",), msdnet_wide),
}
# Those whose last layer is a Cascade, but at the first exit, which has none before it.
CASCADING = ("cascading-pooled", "cascading-token", "cascading-vector")
HEADS |= {name: HEADS[name.removeprefix("cascading-")] for name in CASCADING}


def build_head(
    name: str, kind: str, feature_shape: tuple[int, ...], num_classes: int, layers: int = 1,
    head_args: Mapping[str, Any] | None = None, first: bool = True,
) -> Head:  # fmt: skip
    """The head `name` for features of `kind` and shape (without the batch). "auto" takes the one made for the kind.

    layers: how many with weights, 1 to 5; of msdnet's, those after its convolutions. head_args: `width` of the hidden
    layers; `side` that pooled heads pool to, 4. first: whether it is the network's first exit.
    Raises EestudyError for an unknown name or argument, a head that cannot read the kind, layers out of range, and a
    width where nothing is hidden.
    """
    fitting = heads_for(kind)
    if name != "auto" and check_name("head", name, ["auto", *HEADS]) not in fitting:
        raise EestudyError(f"head: {name!r} does not read {kind}; valid: auto, {', '.join(fitting)}")
    name = fitting[0] if name == "auto" else name
    if layers not in range(1, MOST_HEAD_LAYERS + 1):
        raise EestudyError(f"head_layers: {layers} is out of range; it must be 1 to {MOST_HEAD_LAYERS}")
    _, build = HEADS[name]
    head_args = head_args or {}
    check_args("head_args", name, list(inspect.signature(build).parameters.values())[3:], head_args)
    for key, value in head_args.items():
        if layers == 1 and key == "width":
            raise EestudyError(f"head_args: {key}: {value} has no effect on one layer; set head_layers to 2 or more")
    head = build(feature_shape, num_classes, layers, **head_args)
    if name in CASCADING and not first:
        head[-1] = Cascade(cast(nn.Linear, head[-1]).in_features, num_classes)
    return head


def check_args(field: str, name: str, parameters: Iterable[inspect.Parameter], args: Mapping[str, Any]) -> None:
    """EestudyError for an argument that is not one of a builder's own `parameters`, or no whole number above 0."""
    known = {parameter.name: parameter for parameter in parameters}
    for key, value in args.items():
        if key not in known:
            hint = nearest(key, known) if known else f"{name} takes none"
            raise EestudyError(f"{field}: unknown key {key!r} for {name}; {hint}")
        named = known[key].annotation in ("str", str)  # the builder knows which names are valid
        if not named and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise EestudyError(f"{field}: {key}: {value!r} is not valid; it must be a whole number above 0")


def heads_for(kind: str) -> list[str]:
    """The names of the heads that read features of `kind`; the first is what "auto" takes."""
    return [name for name, (kinds, _) in HEADS.items() if kind in kinds]
