"""What every backbone costs with every head that reads it, exit by exit: the table behind a chapter of the book."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from eestudy.config import check_name
from eestudy.models import MultiExit, build_backbone, exit_costs
from eestudy.models.heads import heads_for
from eestudy.registry import ARCHITECTURES

# Exits after all stages but the last up to so many of them; deeper backbones have theirs at these shares of the FLOPs.
MOST_STAGES = 12
SHARES = {"flops": [15, 30, 45, 60, 75, 90]}

BOTH = ("resnet18", "resnet34", "resnet50", "resnet101", "vit-tiny", "vit-small", "vit-base")
# (architectures, input shape, classes): what each was made for, or is mostly used with here.
USUAL = (
    (("mlp", "resnet-tiny"), (1, 8, 8), 10),  # digits
    (("resnet1d", "vit1d"), (1, 40), 10),  # MNIST-1D
    (("resnet20", "resnet32", "resnet56", "resnet110", "wrn-28-10", "vgg16-bn", "msdnet"), (3, 32, 32), 100),
    (BOTH, (3, 32, 32), 100),
    ((*BOTH, "msdnet", "efficientnet-v2-s", "convnext-tiny", "swin-v2-t", "mobilenet-v3-large"), (3, 224, 224), 1000),
    (("minilm",), (32,), 45),  # WordNet's supersenses
)


def catalogue(names: Iterable[str] = tuple(ARCHITECTURES)) -> pd.DataFrame:
    """One row a backbone x input x head x exit, with heads of one layer.

    Columns: architecture, input ("3x32x32"), classes, head, default (whether `head: auto` takes it), exit, stage; flops
    of one sample that leaves there and params needed for it, both of the backbone so far and the heads so far;
    head_flops, head_params: of the heads alone; head_flops_share: per cent of the plain backbone's FLOPs.
    Raises EestudyError for an unknown name.
    """
    names = [check_name("architecture", name, ARCHITECTURES) for name in names]
    frames = [_with_heads(name, shape, classes) for usual, shape, classes in USUAL for name in usual if name in names]
    return pd.concat(frames, ignore_index=True)


def _with_heads(name: str, shape: tuple[int, ...], classes: int) -> pd.DataFrame:
    backbone = build_backbone(name, shape, classes)
    placement: Any = "all" if len(backbone.stages) <= MOST_STAGES else SHARES
    heads = heads_for(backbone.kind)
    default = backbone.default_head or heads[0]
    frames = []
    for head in heads:
        model = MultiExit(backbone, placement, head)
        costs = exit_costs(model)
        sizes = [sum(weight.numel() for weight in model.head(stage).parameters()) for stage in model.exit_stages]
        frame = pd.DataFrame(
            {
                "architecture": name,
                "input": "x".join(map(str, shape)),
                "classes": classes,
                "head": head,
                "default": head == default,
                "exit": range(1, model.num_exits + 1),
                "stage": [*model.exit_stages, len(backbone.stages)],
                "flops": costs.flops,
                "params": costs.params,
                "head_flops": pd.Series([*costs.heads, 0]).cumsum(),
                "head_params": pd.Series([*sizes, 0]).cumsum(),
            }
        )
        frame["head_flops_share"] = (100 * frame["head_flops"] / costs.backbone).round(3)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
