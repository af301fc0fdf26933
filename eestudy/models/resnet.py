"""Residual networks for small images and for sequences: every residual block is a stage (He et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from eestudy.models.backbone import Backbone


class Block(nn.Module):
    """Two 3-wide convolutions with BatchNorm, and a shortcut that is projected where the shape changes."""

    def __init__(self, conv: Callable[..., nn.Module], norm: type[nn.Module], before: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            conv(before, after, 3, stride=stride, padding=1, bias=False),
            norm(after),
            nn.ReLU(),
            conv(after, after, 3, padding=1, bias=False),
            norm(after),
        )
        same = before == after and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(conv(before, after, 1, stride=stride, bias=False), norm(after))
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def resnet_tiny(input_shape: tuple[int, ...], num_classes: int, width: int = 16, blocks: int = 2) -> Backbone:
    """Three groups of `blocks` blocks, `width`, 2 and 4 times as wide, each half the size. Features: maps."""
    return _resnet(input_shape, num_classes, width, blocks, nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, "maps")


def resnet1d(input_shape: tuple[int, ...], num_classes: int, width: int = 16, blocks: int = 2) -> Backbone:
    """The same over a sequence (C, L). Features: sequences."""
    return _resnet(input_shape, num_classes, width, blocks, nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d, "sequence")


def _resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    width: int,
    blocks: int,
    conv: Callable[..., nn.Module],
    norm: type[nn.Module],
    pool: Callable[[int], nn.Module],
    kind: str,
) -> Backbone:
    stem = nn.Sequential(conv(input_shape[0], width, 3, padding=1, bias=False), norm(width), nn.ReLU())
    stages: list[nn.Module] = []
    before = width
    for group in range(3):
        after = width * 2**group
        for block in range(blocks):
            stages.append(Block(conv, norm, before, after, stride=2 if group and not block else 1))
            before = after
    stages[0] = nn.Sequential(stem, stages[0])
    classifier = nn.Sequential(pool(1), nn.Flatten(), nn.Linear(before, num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, kind)
