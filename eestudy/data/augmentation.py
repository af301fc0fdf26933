"""Augmentation of whole training batches, with choices for each sample, without a loop over samples."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def none(x: Tensor, generator: torch.Generator) -> Tensor:
    """The batch as it is."""
    return x


def shift(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample moved by up to an eighth of each side, zeros coming in. x: (B, C, L) or (B, C, H, W)."""
    for axis in range(2, x.ndim):
        x = _shift_along(x, axis, generator)
    return x


def _shift_along(x: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    size = x.shape[axis]
    reach = max(1, size // 8)
    padding = [0, 0] * (x.ndim - 1 - axis) + [reach, reach]
    offsets = torch.randint(0, 2 * reach + 1, (len(x),), generator=generator).to(x.device)
    places = offsets[:, None] + torch.arange(size, device=x.device)
    places = places.reshape([len(x)] + [size if dim == axis else 1 for dim in range(1, x.ndim)])
    return F.pad(x, padding).gather(axis, places.expand_as(x))


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {"none": none, "shift": shift}
