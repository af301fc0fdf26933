"""torchvision's own networks, untrained, cut at their blocks: every block is a stage.

The stem, and what shrinks the maps between two groups of blocks, belongs to the block that follows; a convolution after
the last block to the last stage. Dropout and stochastic depth are torchvision's. The networks shrink images 32 times:
below 32 pixels they are enlarged to 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from eestudy.models.backbone import Backbone
from eestudy.models.families.vgg import enlarged

# name -> (torchvision's constructor, its classes of blocks)
NETWORKS = {
    "efficientnet-v2-s": ("efficientnet_v2_s", ("FusedMBConv", "MBConv")),
    "convnext-tiny": ("convnext_tiny", ("CNBlock",)),
    "swin-v2-t": ("swin_v2_t", ("SwinTransformerBlockV2",)),
    "mobilenet-v3-large": ("mobilenet_v3_large", ("InvertedResidual",)),
}


class SwinBackbone(Backbone):
    """A Backbone whose states are maps with their channels last, (B, H, W, C)."""

    def features(self, state: Tensor) -> Tensor:
        return state.movedim(-1, 1)


def _builder(name: str) -> Callable[..., Backbone]:
    constructor, blocks = NETWORKS[name]

    def build(input_shape: tuple[int, ...], num_classes: int) -> Backbone:
        from torchvision import models  # its import takes as long as torch's

        model = getattr(models, constructor)(weights=None, num_classes=num_classes)
        _take_channels(model, input_shape[0])
        groups: list[list[nn.Module]] = [enlarged(input_shape)]
        for module in _opened(model.features, blocks):
            groups[-1].append(module)
            if type(module).__name__ in blocks:
                groups.append([])
        *ended, behind = groups
        ended[-1] += behind
        stages = [nn.Sequential(*stage) for stage in ended]
        if name == "swin-v2-t":
            rest = nn.Sequential(model.norm, model.permute, model.avgpool, model.flatten, model.head)
            return SwinBackbone(stages, rest, input_shape, num_classes, "maps")
        flatten = [] if name == "convnext-tiny" else [nn.Flatten()]  # ConvNeXt's classifier flattens by itself
        rest = nn.Sequential(model.avgpool, *flatten, model.classifier)
        return Backbone(stages, rest, input_shape, num_classes, "maps")

    return build


def _opened(features: nn.Module, blocks: tuple[str, ...]) -> Iterator[nn.Module]:
    """The parts of `features` in the order they run: groups of blocks opened, everything else whole."""
    for group in features.children():
        if any(type(inner).__name__ in blocks for inner in group.children()):
            yield from group.children()
        else:
            yield group


def _take_channels(model: nn.Module, channels: int) -> None:
    """Makes the first convolution read `channels` instead of 3, with the weights drawn for those three in turn."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if channels != first.in_channels:
        first.weight = nn.Parameter(first.weight.detach()[:, torch.arange(channels) % first.in_channels].clone())
        first.in_channels = channels


# By the names of NETWORKS, in their order.
efficientnet_v2_s, convnext_tiny, swin_v2_t, mobilenet_v3_large = (_builder(name) for name in NETWORKS)
