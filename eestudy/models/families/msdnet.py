"""MSDNet: features at several scales in every layer, densely connected (Huang et al. 2018, arXiv 1703.09844).

A stage is one of the paper's blocks: the layers between two classifiers. Its state is a tuple with one tensor a scale,
finest first, coarsest last. Classifiers read the coarsest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice, pairwise
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError, check_name
from eestudy.models.backbone import Backbone
from eestudy.models.families.resnet import LARGE
from eestudy.models.heads import build_head

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Layout:
    """blocks: one classifier each. The first holds `base` layers; a later one `step` layers ("even"), or the i-th of
    them, i from 1, step * i + 1 layers ("linear-growth"). growth, channels: of a layer and of the stem at the finest
    scale. scales: how many. head: what reads the coarsest scale.
    """

    blocks: int
    base: int
    step: int
    step_mode: str
    growth: int
    channels: int
    scales: int
    head: str

    def layers(self) -> list[int]:
        """How many layers each block holds."""
        later = range(1, self.blocks)
        return [self.base, *(self.step if self.step_mode == "even" else self.step * i + 1 for i in later)]

    def finest(self) -> list[int]:
        """The finest scale (from 0) that each layer still gives.

        As published ("max" in the authors' code), the layers are shared out evenly between having all scales, all but
        the finest, and so on. A short network loses them sooner where no later layer would read them.
        """
        layers = sum(self.layers())
        share = ceil(layers / self.scales)
        return [max(layer // share, self.scales - (layers - layer)) for layer in range(layers)]


# The models that the authors' repositories (gaohuang/MSDNet, kalviny/MSDNet-PyTorch) train for each purpose.
_CIFAR = Layout(5, 1, 1, "linear-growth", growth=6, channels=16, scales=3, head="msdnet")
_IMAGENET = Layout(5, 4, 4, "even", growth=16, channels=32, scales=4, head="msdnet-wide")
LAYOUTS = {
    "cifar": {"budgeted": _CIFAR, "anytime": replace(_CIFAR, blocks=7, base=4, step=2, step_mode="even")},
    "imagenet": {"budgeted": _IMAGENET, "anytime": _IMAGENET},
}


class MSDNet(Backbone):
    """A Backbone whose heads read the coarsest scale, and are by default the published ones."""

    def __init__(
        self, stages: list[nn.Module], classifier: nn.Module, input_shape: tuple[int, ...], classes: int, head: str
    ) -> None:
        super().__init__(stages, classifier, input_shape, classes, "maps")
        self.default_head = head

    def features(self, state: State) -> Tensor:
        return state[-1]


class Coarsest(nn.Module):
    """A state -> its coarsest scale (B, C, H, W)."""

    def forward(self, state: State) -> Tensor:
        return state[-1]


class Stem(nn.Module):
    """The first layer: images (B, C, H, W) -> all scales, each a strided convolution of the finer one."""

    def __init__(self, first: nn.Module, channels: int, scales: int) -> None:
        super().__init__()
        self.first = first
        self.coarser = nn.ModuleList(
            conv(channels * factor(scale - 1), channels * factor(scale), 3, stride=2) for scale in range(1, scales)
        )

    def forward(self, x: Tensor) -> State:
        state = [self.first(x)]
        for down in self.coarser:
            state.append(down(state[-1]))
        return tuple(state)


class Squeeze(nn.Module):
    """One scale's bottlenecks, which all read the same maps, as a single 1 x 1 convolution.

    (B, before, H, W) -> for each width in `after` maps of width * bottleneck channels, never more than `before`.
    """

    def __init__(self, before: int, after: list[int], bottleneck: int) -> None:
        super().__init__()
        self.widths = [min(before, bottleneck * width) for width in after]
        self.body = conv(before, sum(self.widths), 1, several=self.widths)

    def forward(self, x: Tensor) -> State:
        return self.body(x).split(self.widths, 1)


class Layer(nn.Module):
    """One layer: to each scale from `finest` on it adds channels made of that scale and of the next finer one.

    The finer scale gives half of them, by a strided convolution; the finest that comes in gets all from itself. drop:
    what comes in has one finer scale still, read here for the last time. before: channels of the finest scale.
    """

    def __init__(self, before: int, growth: int, finest: int, scales: int, drop: bool) -> None:
        super().__init__()
        self.drop = drop
        first = finest - drop
        width = {s: growth * factor(s) // (1 if s == first else 2) for s in range(finest, scales)}
        self.squeeze, self.same, self.down = nn.ModuleList(), nn.ModuleDict(), nn.ModuleDict()
        for scale in range(first, scales):
            readers = [s for s in (scale, scale + 1) if s in width]
            squeeze = Squeeze(before * factor(scale), [width[s] for s in readers], factor(scale))
            self.squeeze.append(squeeze)
            for reader, narrow in zip(readers, squeeze.widths, strict=True):
                if reader == scale:
                    self.same[str(reader - finest)] = conv(narrow, width[reader], 3)
                else:
                    self.down[str(reader - finest)] = conv(narrow, width[reader], 3, stride=2)

    def forward(self, state: State) -> State:
        narrow = [squeeze(x) for squeeze, x in zip(self.squeeze, state, strict=True)]
        added = [[x] for x in state[self.drop :]]
        for scale, down in self.down.items():
            added[int(scale)].append(down(narrow[int(scale) + self.drop - 1][-1]))
        for scale, same in self.same.items():
            added[int(scale)].append(same(narrow[int(scale) + self.drop][0]))
        return tuple(torch.cat(maps, 1) for maps in added)


class Transition(nn.Module):
    """Each scale to half its channels by a 1 x 1 convolution, where the network loses its finest scale."""

    def __init__(self, before: int, after: int, finest: int, scales: int) -> None:
        super().__init__()
        self.halve = nn.ModuleList(conv(before * factor(s), after * factor(s), 1) for s in range(finest, scales))

    def forward(self, state: State) -> State:
        return tuple(halve(x) for halve, x in zip(self.halve, state, strict=True))


def factor(scale: int) -> int:
    """How much wider than the finest a scale (from 0) is, 1-2-4-4; its bottlenecks have the same factor."""
    return min(2**scale, 4)


def conv(
    before: int, after: int, kernel: int, stride: int = 1, bias: bool = False, several: list[int] | None = None
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; started as published, normal with variance 2 / (kernel^2 * channels given).

    several: the convolution stands for several of so many channels; each starts as it would alone.
    """
    layer = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=bias)
    for weight in layer.weight.detach().split(several or [after]):
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


def msdnet(
    input_shape: tuple[int, ...], num_classes: int, mode: str = "budgeted", blocks: int | None = None,
    base: int | None = None, step: int | None = None, step_mode: str = "auto", growth: int | None = None,
    channels: int | None = None, scales: int | None = None,
) -> Backbone:  # fmt: skip
    """MSDNet for budgeted or anytime prediction (`mode`); features: the coarsest maps (B, C, H, W).

    The other arguments are those of Layout. Default: what the authors' code trains, for ImageNet if the shorter side of
    the images has at least 96 pixels, else for CIFAR. The paper's anytime network for CIFAR has 11 blocks, its budgeted
    ones 4 to 8.
    Raises EestudyError for an unknown mode or step mode, and for fewer layers than scales.
    """
    check_name("architecture_args: mode", mode, LAYOUTS["cifar"])
    check_name("architecture_args: step_mode", step_mode, ["auto", "even", "linear-growth"])
    large = min(input_shape[1:]) >= LARGE
    sizes = {"blocks": blocks, "base": base, "step": step, "growth": growth, "channels": channels, "scales": scales}
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    if step_mode != "auto":
        given["step_mode"] = step_mode
    layout = replace(LAYOUTS["imagenet" if large else "cifar"][mode], **given)
    if layout.scales > sum(layout.layers()):
        raise EestudyError(
            f"architecture_args: scales: {layout.scales} is more than the {sum(layout.layers())} layers; "
            "give fewer scales, or more layers with base, step or blocks"
        )
    width = layout.channels
    if large:  # as published: 7 x 7 of stride 2 (with a bias) and max pooling for ImageNet, 3 x 3 for CIFAR
        first = conv(input_shape[0], width, 7, stride=2, bias=True).append(nn.MaxPool2d(3, stride=2, padding=1))
    else:
        first = conv(input_shape[0], width, 3)
    layers: list[nn.Module] = [Stem(first, width, layout.scales)]
    stages: list[nn.Module] = []
    finest = iter(pairwise([0, *layout.finest()]))  # scales of what comes in to a layer, and of what it gives
    for size in layout.layers():
        for before, after in islice(finest, size):
            layers.append(Layer(width, layout.growth, after, layout.scales, drop=after > before))
            width += layout.growth
            if after > before:
                layers.append(Transition(width, width // 2, after, layout.scales))
                width //= 2
        stages.append(nn.Sequential(*layers))
        layers = []
    coarsest = width * factor(layout.scales - 1)
    # No head reads anything but the coarsest maps' channels, so their height and width do not matter here.
    head = build_head(layout.head, "maps", (coarsest, 1, 1), num_classes)
    return MSDNet(stages, nn.Sequential(Coarsest(), head), input_shape, num_classes, layout.head)
