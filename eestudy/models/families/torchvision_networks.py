"""torchvision's own networks, untrained, cut at their blocks: every block is a stage.

The stem, and what shrinks the maps between two groups of blocks, belongs to the block that follows; a convolution after
the last block to the last stage. Dropout and stochastic depth are torchvision's. The networks shrink images 32 times:
below 32 pixels they are enlarged to 32.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchvision import models

from eestudy.models.backbone import Backbone
from eestudy.models.families.vgg import enlarged


class SwinBackbone(Backbone):
    """A Backbone whose states are maps with their channels last, (B, H, W, C)."""

    def features(self, state: Tensor) -> Tensor:
        return state.movedim(-1, 1)


def _network(name: str, blocks: tuple[str, ...], input_shape: tuple[int, ...], num_classes: int) -> Backbone:
    """name: of torchvision's constructor; blocks: of its classes of blocks."""
    model = models.get_model(name, weights=None, num_classes=num_classes)
    _take_channels(model, input_shape[0])
    stages = [enlarged(input_shape)]
    for group in model.features.children():
        grouped = any(type(inner).__name__ in blocks for inner in group.children())
        for module in group.children() if grouped else [group]:
            stages[-1].append(module)
            if type(module).__name__ in blocks:
                stages.append([])
    behind = stages.pop()
    stages[-1] += behind
    if name == "swin_v2_t":
        classifier = nn.Sequential(model.norm, model.permute, model.avgpool, model.flatten, model.head)
    else:
        flatten = [] if name == "convnext_tiny" else [nn.Flatten()]  # ConvNeXt's classifier flattens by itself
        classifier = nn.Sequential(model.avgpool, *flatten, model.classifier)
    backbone = SwinBackbone if name == "swin_v2_t" else Backbone
    return backbone([nn.Sequential(*stage) for stage in stages], classifier, input_shape, num_classes, "maps")


def _take_channels(model: nn.Module, channels: int) -> None:
    """Makes the first convolution read `channels` instead of 3, with the weights drawn for those three in turn."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if channels != first.in_channels:
        first.weight = nn.Parameter(first.weight.detach()[:, torch.arange(channels) % first.in_channels].clone())
        first.in_channels = channels


efficientnet_v2_s = partial(_network, "efficientnet_v2_s", ("FusedMBConv", "MBConv"))
convnext_tiny = partial(_network, "convnext_tiny", ("CNBlock",))
swin_v2_t = partial(_network, "swin_v2_t", ("SwinTransformerBlockV2",))
mobilenet_v3_large = partial(_network, "mobilenet_v3_large", ("InvertedResidual",))
