"""Augmentation of whole training batches on their device: choices for each sample, no loop over samples.

What moves pixels works on the batch as it lies in memory (uint8 images are a quarter of the bytes), what blends or
blots on the normalized one, where zero is the mean. B batch, C channels, H height, W width, L length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eestudy.config import EestudyError

Args = Mapping[str, float]


def shift(x: Tensor, generator: torch.Generator, args: Args) -> Tensor:
    """Each sample moved by up to an eighth of each side, zeros coming in. x: (B, C, L) or (B, C, H, W)."""
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        reach = int(args.get("shift", max(1, size // 8)))
        offsets = torch.randint(0, 2 * reach + 1, (len(x),), generator=generator).to(x.device)
        places = offsets[:, None] + torch.arange(size, device=x.device)
        places = places.reshape([len(x)] + [size if dim == axis else 1 for dim in range(1, x.ndim)]).expand_as(x)
        x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [reach, reach]).gather(axis, places)
    return x


def crop(x: Tensor, generator: torch.Generator, args: Args) -> Tensor:
    """Images padded by an eighth of their height (4 pixels at 32) and cut out at a random place (He et al. 2016)."""
    height, width = x.shape[2:]
    reach = int(args.get("crop", max(1, height // 8)))
    top, left = torch.randint(0, 2 * reach + 1, (2, len(x)), generator=generator).to(x.device)
    # Every cut is a view of the padded batch, (B, C, 2 * reach + 1, 2 * reach + 1, H, W); indexing copies the chosen.
    cuts = F.pad(x, [reach] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return cuts[torch.arange(len(x), device=x.device), :, top, left]


def flip(x: Tensor, generator: torch.Generator, args: Args) -> Tensor:
    """Half of the images mirrored left to right."""
    chosen = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return torch.where(chosen[:, None, None, None], x.flip(3), x)


def cutout(x: Tensor, generator: torch.Generator, args: Args) -> Tensor:
    """A square at a random place set to the mean, half the height (DeVries and Taylor 2017: 16 pixels at 32).

    Its centre is anywhere in the image, so that it may be cut off at the border.
    """
    side = int(args.get("cutout", x.shape[2] // 2))
    sides = torch.full((len(x),), side, device=x.device)
    return x.masked_fill(_boxes(x, sides, sides, generator), 0.0)


def _boxes(x: Tensor, heights: Tensor, widths: Tensor, generator: torch.Generator) -> Tensor:
    """True inside a box of the given sides (B,) around a random centre: (B, 1, H, W)."""
    inside = []
    for axis, sides in ((2, heights), (3, widths)):
        size = x.shape[axis]
        start = torch.randint(0, size, (len(x),), generator=generator).to(x.device) - sides // 2
        places = torch.arange(size, device=x.device)
        inside.append((places >= start[:, None]) & (places < (start + sides)[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


Change = Callable[[Tensor, torch.Generator, Args], Tensor]
# What works on the batch as it lies in memory, and on the normalized one; each in this order.
ON_RAW: dict[str, Change] = {"shift": shift, "crop": crop, "flip": flip}
ON_NORMAL: dict[str, Change] = {"cutout": cutout}
BLENDS = ("mixup", "cutmix")
# The least number of dimensions of one sample that an augmentation works on.
_NEEDS = {"shift": 2, "crop": 3, "flip": 3, "cutout": 3, "mixup": 1, "cutmix": 3}


def names(augmentation: str) -> tuple[str, ...]:
    """ "crop+flip" -> ("crop", "flip"); "none" -> ()."""
    return () if augmentation == "none" else tuple(augmentation.split("+"))


def check(augmentation: str, input_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """EestudyError if one of the augmentations does not fit inputs of this shape and type."""
    fitting = [name for name, dims in _NEEDS.items() if dtype != torch.int64 and len(input_shape) >= dims]
    for name in names(augmentation):
        if name not in fitting:
            valid = ", ".join(["none", *fitting])
            raise EestudyError(f"augmentation: {name} does not take inputs of shape {input_shape}; valid: {valid}")


def augment(
    raw: Tensor, labels: Tensor, normalize: Callable[[Tensor], Tensor] | None, num_classes: int,
    augmentation: str, args: Args, generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A batch as it lies in memory (B, ...) and its labels (B,) -> inputs of the network and targets.

    Targets are the labels; with a blend the classes' shares (B, num_classes), or for real labels their mix (B,).
    """
    chosen = names(augmentation)
    for name, change in ON_RAW.items():
        raw = change(raw, generator, args) if name in chosen else raw
    x = normalize(raw) if normalize else raw
    for name, change in ON_NORMAL.items():
        x = change(x, generator, args) if name in chosen else x
    blends = [name for name in chosen if name in BLENDS]
    return _blended(x, labels, num_classes, blends, args, generator) if blends else (x, labels)


def _blended(
    x: Tensor, labels: Tensor, num_classes: int, blends: list[str], args: Args, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each sample mixed with another one of the batch: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    With both, each sample is given one of them by chance. The share of a sample's own label is Beta(a, a), a = 1
    unless given; in cutmix that of its own pixels.
    """
    count = len(x)
    other = torch.randperm(count, generator=generator).to(x.device)
    random = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    alpha = {name: float(args.get(name, 1.0)) for name in blends}
    shares = {name: torch.from_numpy(random.beta(a, a, count)).float().to(x.device) for name, a in alpha.items()}
    if "mixup" in shares:
        own = shares["mixup"].view(-1, *[1] * (x.ndim - 1))  # the weight of a sample's own pixels, (B, 1, ...)
    if "cutmix" in shares:
        cut = (1 - shares["cutmix"]).sqrt()
        heights, widths = ((cut * size).round().long() for size in x.shape[2:])
        outside = (~_boxes(x, heights, widths, generator)).float()
        if "mixup" in shares:
            mixes = torch.rand(count, generator=generator).to(x.device) < 0.5
            own = torch.where(mixes.view(-1, 1, 1, 1), own, outside)
        else:
            own = outside
    share = own.flatten(1).mean(1)
    x = torch.lerp(x[other], x, own)
    if labels.is_floating_point():
        return x, torch.lerp(labels[other], labels, share)
    one_hot = F.one_hot(labels, num_classes).float()
    return x, torch.lerp(one_hot[other], one_hot, share[:, None])
