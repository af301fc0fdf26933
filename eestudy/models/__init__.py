"""Backbones by name, and MultiExit, which gives them exits."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from eestudy.config import EestudyError, check_name, nearest
from eestudy.models.backbone import Backbone
from eestudy.models.cost import ExitCosts, exit_costs
from eestudy.models.cut.any_model import add_exits, from_model
from eestudy.models.families.encoder import minilm
from eestudy.models.families.mlp import mlp
from eestudy.models.families.msdnet import msdnet
from eestudy.models.families.resnet import RESNETS, small_resnet
from eestudy.models.families.torchvision_networks import TORCHVISION
from eestudy.models.families.vgg import vgg16_bn
from eestudy.models.families.vit import vit, vit1d, vit_base, vit_small
from eestudy.models.heads import HEADS
from eestudy.models.multi_exit import MultiExit

__all__ = [
    "BACKBONES", "HEADS", "Backbone", "ExitCosts", "MultiExit", "add_exits", "build_backbone", "exit_costs",
    "from_model",
]  # fmt: skip

# name -> (builder, number of input dimensions without the batch; None: any)
BACKBONES: dict[str, tuple[Callable[..., Backbone], int | None]] = {
    "mlp": (mlp, None),
    "resnet1d": (small_resnet, 2),
    "vit1d": (vit1d, 2),
    "resnet-tiny": (small_resnet, 3),
    **{name: (build, 3) for name, build in RESNETS.items()},
    "vgg16-bn": (vgg16_bn, 3),
    "msdnet": (msdnet, 3),
    **{name: (build, 3) for name, build in TORCHVISION.items()},
    "vit-tiny": (vit, 3),
    "vit-small": (vit_small, 3),
    "vit-base": (vit_base, 3),
    "minilm": (minilm, 1),
}


def build_backbone(name: str, input_shape: tuple[int, ...], num_classes: int, **architecture_args: object) -> Backbone:
    """The backbone `name` for inputs (B, *input_shape) and `num_classes` classes.

    Raises EestudyError for an unknown name or argument, an argument that is not a whole number above 0, or an input
    the backbone cannot take.
    """
    build, dims = BACKBONES[check_name("architecture", name, BACKBONES)]
    known = list(inspect.signature(build).parameters)[2:]
    for key, value in architecture_args.items():
        if key not in known:
            raise EestudyError(f"architecture_args: unknown key {key!r} for {name}; {nearest(key, known)}")
        wanted = inspect.signature(build).parameters[key].annotation
        if wanted in ("str", str):  # the builder knows which names are valid
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise EestudyError(f"architecture_args: {key}: {value!r} is not valid; it must be a whole number above 0")
    if dims is not None and len(input_shape) != dims:
        fitting = [other for other, (_, wanted) in BACKBONES.items() if wanted in (None, len(input_shape))]
        raise EestudyError(
            f"architecture: {name} does not take inputs of shape {tuple(input_shape)}; valid: {', '.join(fitting)}"
        )
    return build(tuple(input_shape), num_classes, **architecture_args)
