"""VGG-16 with BatchNorm: every convolution is a stage (Simonyan & Zisserman 2015, arXiv 1409.1556, table 1, D)."""

from __future__ import annotations

from torch import nn

from eestudy.models.backbone import Backbone
from eestudy.models.families.resnet import LARGE, conv_norm_relu

CONVOLUTIONS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, how many), each group before a pool
SMALLEST = 32  # pixels of the shorter side: five halvings leave one


def enlarged(input_shape: tuple[int, ...]) -> list[nn.Module]:
    """What enlarges images, bilinearly, to SMALLEST pixels on the shorter side; nothing for those that have as many."""
    least = min(input_shape[1:])
    if least >= SMALLEST:
        return []
    size = tuple(round(side * SMALLEST / least) for side in input_shape[1:])
    return [nn.Upsample(size=size, mode="bilinear", align_corners=False)]


def vgg16_bn(input_shape: tuple[int, ...], num_classes: int) -> Backbone:
    """13 stages, each a convolution with BatchNorm and ReLU, and the pool where one follows. Features: maps.

    Classifier: for images whose shorter side has at least 96 pixels torchvision's, two layers of 4,096 units with
    dropout over 7 x 7 maps; for smaller ones a linear layer over the mean of the maps. Images below 32 pixels are
    enlarged to 32.
    """
    stages: list[nn.Sequential] = []
    before = input_shape[0]
    for after, number in CONVOLUTIONS:
        for _ in range(number):
            first = [] if stages else enlarged(input_shape)
            stages.append(nn.Sequential(*first, *conv_norm_relu(before, after, 3, bias=True)))
            before = after
        stages[-1].append(nn.MaxPool2d(2))
    if min(input_shape[1:]) >= LARGE:
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten())
        for inputs in (512 * 7 * 7, 4096):
            classifier.extend([_linear(inputs, 4096), nn.ReLU(), nn.Dropout(0.5)])
        classifier.append(_linear(4096, num_classes))
    else:
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), _linear(512, num_classes))
    return Backbone(stages, classifier, input_shape, num_classes, "maps")


def _linear(before: int, after: int) -> nn.Linear:
    """Started as torchvision's: at PyTorch's default, layers this wide start too large."""
    linear = nn.Linear(before, after)
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear
