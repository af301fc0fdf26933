"""Residual networks for images and sequences: every residual block is a stage (He et al. 2016, arXiv 1512.03385).

The stem belongs to the first stage. Heads read what a block gives: after its ReLU, in a wide network before it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.models.backbone import Backbone

LARGE = 96  # pixels of the shorter side from which on an image is taken as ImageNet's are


class Residual(nn.Module):
    """ReLU(body + shortcut)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


class Block(Residual):
    """Two 3-wide convolutions with BatchNorm, and a shortcut that is projected where the shape changes."""

    def __init__(self, conv: Callable[..., nn.Module], norm: type[nn.Module], before: int, after: int, stride: int):
        body = nn.Sequential(
            conv(before, after, 3, stride=stride, padding=1, bias=False), norm(after), nn.ReLU(),
            conv(after, after, 3, padding=1, bias=False), norm(after),
        )  # fmt: skip
        shortcut: nn.Module = nn.Identity()
        if before != after or stride > 1:
            shortcut = nn.Sequential(conv(before, after, 1, stride=stride, bias=False), norm(after))
        super().__init__(body, shortcut)


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, and zeros for the channels that are new: no parameters (option A of He et al.)."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3 x 3 convolutions; nothing after the sum (Zagoruyko & Komodakis 2016).

    Where the shape changes, the shortcut is a 1 x 1 convolution of what the first ReLU gives.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.open = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.body = nn.Sequential(*conv_norm_relu(before, after, 3, stride), conv2d(after, after, 3))
        same = before == after and stride == 1
        self.shortcut = None if same else conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        opened = self.open(x)
        return self.body(opened) + (x if self.shortcut is None else self.shortcut(opened))


def conv2d(before: int, after: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size but for its stride; weights drawn as by He et al. 2015, by what they give."""
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def conv_norm_relu(before: int, after: int, kernel: int, stride: int = 1, bias: bool = False) -> list[nn.Module]:
    return [conv2d(before, after, kernel, stride, bias), nn.BatchNorm2d(after), nn.ReLU()]


def projection(before: int, after: int, stride: int) -> nn.Module:
    """The shortcut of option B: a 1 x 1 convolution with BatchNorm where the shape changes."""
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(conv2d(before, after, 1, stride), nn.BatchNorm2d(after))


def padding(before: int, after: int, stride: int) -> nn.Module:
    """The shortcut of option A."""
    return nn.Identity() if before == after and stride == 1 else PadShortcut(after - before, stride)


def basic(before: int, after: int, stride: int, shortcut: Callable[..., nn.Module] = projection) -> Residual:
    """Two 3 x 3 convolutions."""
    body = [*conv_norm_relu(before, after, 3, stride), conv2d(after, after, 3), nn.BatchNorm2d(after)]
    return Residual(nn.Sequential(*body), shortcut(before, after, stride))


def bottleneck(before: int, after: int, stride: int) -> Residual:
    """1 x 1, 3 x 3 and 1 x 1, a quarter as wide inside. The stride is in the middle, as in torchvision."""
    inner = after // 4
    body = [*conv_norm_relu(before, inner, 1), *conv_norm_relu(inner, inner, 3, stride)]
    body += [conv2d(inner, after, 1), nn.BatchNorm2d(after)]
    return Residual(nn.Sequential(*body), projection(before, after, stride))


def small_resnet(input_shape: tuple[int, ...], num_classes: int, width: int = 16, blocks: int = 2) -> Backbone:
    """Three groups of `blocks` blocks, `width`, 2 and 4 times as wide, each half the size, with PyTorch's own weights.

    Features: maps of images (C, H, W), sequences of sequences (C, L).
    """
    conv, norm, pool, kind = {
        2: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d, "sequence"),
        3: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, "maps"),
    }[len(input_shape)]
    stem = nn.Sequential(conv(input_shape[0], width, 3, padding=1, bias=False), norm(width), nn.ReLU())
    groups = [(blocks, width * 2**group) for group in range(3)]
    stages = _stages([stem], width, groups, partial(Block, conv, norm))
    classifier = nn.Sequential(pool(1), nn.Flatten(), nn.Linear(4 * width, num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, kind)


def _stages(
    stem: list[nn.Module], width: int, groups: list[tuple[int, int]], block: Callable[..., nn.Module]
) -> list[nn.Module]:
    """Blocks in groups of (how many, how wide), each group but the first half the size; the stem in the first stage."""
    widths = [width] + [after for blocks, after in groups for _ in range(blocks)]
    halving = {sum(blocks for blocks, _ in groups[:group]) for group in range(1, len(groups))}
    stages = [
        block(before, after, 2 if number in halving else 1) for number, (before, after) in enumerate(pairwise(widths))
    ]
    return [nn.Sequential(*stem, stages[0]), *stages[1:]]


def _pooled_classifier(width: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]


def cifar_resnet(input_shape: tuple[int, ...], num_classes: int, width: int = 16, blocks: int = 3) -> Backbone:
    """He et al.'s networks for CIFAR: 3 x 3 stem, three groups `width`, 2 and 4 times as wide, no projections.

    blocks: of each group; 6 * blocks + 2 layers.
    """
    groups = [(blocks, width * 2**group) for group in range(3)]
    stages = _stages(conv_norm_relu(input_shape[0], width, 3), width, groups, partial(basic, shortcut=padding))
    classifier = nn.Sequential(*_pooled_classifier(4 * width, num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, "maps")


def imagenet_resnet(
    block: Callable[..., nn.Module], blocks: tuple[int, ...], input_shape: tuple[int, ...], num_classes: int,
    stem: int | None = None,
) -> Backbone:  # fmt: skip
    """He et al.'s networks for ImageNet, as torchvision has them.

    stem: 7 is the published 7 x 7 convolution of stride 2 with max pooling, 3 a 3 x 3 one that keeps the size.
    Default: 7 for images whose shorter side has at least 96 pixels.
    """
    stem = stem or (7 if min(input_shape[1:]) >= LARGE else 3)
    if stem not in (3, 7):
        raise EestudyError(f"architecture_args: stem: {stem} is not valid; valid: 3, 7")
    layers = conv_norm_relu(input_shape[0], 64, stem, stride=1 if stem == 3 else 2)
    if stem == 7:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    widths = [(4 if block is bottleneck else 1) * 64 * 2**group for group in range(4)]
    stages = _stages(layers, 64, list(zip(blocks, widths, strict=True)), block)
    classifier = nn.Sequential(*_pooled_classifier(widths[-1], num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, "maps")


def wide_resnet(input_shape: tuple[int, ...], num_classes: int, depth: int = 28, width: int = 10) -> Backbone:
    """WRN-`depth`-`width` (Zagoruyko & Komodakis 2016, arXiv 1605.07146), without dropout.

    Raises EestudyError for a depth that is not 6 n + 4 with n at least 1.
    """
    if depth < 10 or depth % 6 != 4:
        close = 6 * max(1, round((depth - 4) / 6)) + 4
        raise EestudyError(f"architecture_args: depth: {depth} is not valid; it must be 6 n + 4; nearest: {close}")
    groups = [((depth - 4) // 6, 16 * width * 2**group) for group in range(3)]
    stages = _stages([conv2d(input_shape[0], 16, 3)], 16, groups, WideBlock)
    last = groups[-1][1]
    classifier = nn.Sequential(nn.BatchNorm2d(last), nn.ReLU(), *_pooled_classifier(last, num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, "maps")


resnet20, resnet32, resnet56, resnet110 = (partial(cifar_resnet, blocks=blocks) for blocks in (3, 5, 9, 18))
resnet18 = partial(imagenet_resnet, basic, (2, 2, 2, 2))
resnet34 = partial(imagenet_resnet, basic, (3, 4, 6, 3))
resnet50 = partial(imagenet_resnet, bottleneck, (3, 4, 6, 3))
resnet101 = partial(imagenet_resnet, bottleneck, (3, 4, 23, 3))
