"""A plain multilayer perceptron: every hidden layer is a stage."""

from __future__ import annotations

from itertools import pairwise
from math import prod

from torch import nn

from eestudy.models.backbone import Backbone


def mlp(input_shape: tuple[int, ...], num_classes: int, width: int = 64, depth: int = 5) -> Backbone:
    """`depth` hidden layers of `width` units with ReLU. Features: vectors (B, width)."""
    widths = [prod(input_shape), *[width] * depth]
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(before, after), nn.ReLU()) for before, after in pairwise(widths)]
    return Backbone(stages, nn.Linear(width, num_classes), input_shape, num_classes, "vector")
