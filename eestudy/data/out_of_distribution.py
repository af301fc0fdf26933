"""Samples that a network was not trained for, in the shape of its own data: for out-of-distribution detection.

Ours, and simple on purpose: another data set; the test samples inverted, and turned by 180 degrees (lines: read
backwards), which many networks take for out-of-distribution though a turned shirt is still a shirt; and noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.data import load
from eestudy.data.splits import DataSet, Split

OTHERS = {
    "digits": "fashion-mnist", "fashion-mnist": "digits", "mnist1d": "digits", "cifar10": "svhn", "cifar100": "svhn",
    "svhn": "cifar10",
}  # fmt: skip
"""Data set -> the one whose samples are out-of-distribution for it."""

KINDS = ("another data set", "inverted", "turned", "noise")
SEED = 0


def outside(data: DataSet, samples: int) -> dict[str, tuple[Split | None, str]]:
    """Kind -> at most `samples` inputs as a network for `data` takes them (labels 0), or None and why there are none.

    Images (C, H, W) and lines (C, L) are float32 and normalized like `data`; of other inputs there are none here.
    """
    if data.train.dtype == torch.int64 or len(data.input_shape) not in (2, 3):
        what = "token ids" if data.train.dtype == torch.int64 else "no pictures"
        return dict.fromkeys(KINDS, (None, f"{data.name}: its inputs are {what}, of which no OOD samples are made"))
    own = data.test.inputs(slice(samples))
    low, high = _range(data)
    turned = own.flip(-1) if len(data.input_shape) == 2 else own.flip(-1, -2)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.rand(own.shape, generator=generator) * (high - low) + low
    made = {"inverted": low + high - own, "turned": turned, "noise": noise}
    found: dict[str, tuple[Split | None, str]] = {}
    for kind in KINDS:
        x, reason = (made[kind], "") if kind in made else _another(data, samples, low, high)
        found[kind] = (None if x is None else Split(x.contiguous(), torch.zeros(len(x), dtype=torch.int64)), reason)
    return found


def _range(data: DataSet) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each channel, (C, 1, ..), after normalization."""
    channels, *sides = data.input_shape
    if data.train.normalization:
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, channels, 1, 1)
        low, high = data.train.normalization(ends)
    else:
        low, high = data.train.x.transpose(0, 1).flatten(1).aminmax(dim=1)
    return low.view(-1, *[1 for _ in sides]), high.view(-1, *[1 for _ in sides])


def _another(data: DataSet, samples: int, low: Tensor, high: Tensor) -> tuple[Tensor | None, str]:
    """Samples of another data set, brought to the shape and the range of `data`; or None and why."""
    if data.name not in OTHERS:
        return None, f"{data.name}: no other data set is named for it"
    try:
        other = load(OTHERS[data.name])
    except EestudyError as error:
        return None, str(error)
    x = other.train.inputs(slice(samples))
    darkest, brightest = _range(other)
    x = (x - darkest) / (brightest - darkest)
    if len(data.input_shape) == 2:  # a picture as a line: row after row
        x = x.mean(1, keepdim=True).flatten(2)
        x = F.interpolate(x, data.input_shape[-1], mode="linear", align_corners=False)
    else:
        x = F.interpolate(x, data.input_shape[1:], mode="bilinear", align_corners=False, antialias=True)
    if x.shape[1] != data.input_shape[0]:
        x = x.mean(1, keepdim=True).expand(-1, data.input_shape[0], *x.shape[2:])
    return x * (high - low) + low, ""
