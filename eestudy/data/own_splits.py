"""Splitting and normalizing data of one's own. N samples; what is learnt comes from the training split alone."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.data.splits import SPLIT_SEED, Normalization, channel_normalization

NORMALIZATIONS = ("train", "none", "unit", "imagenet")
IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # of torchvision's trained weights


def check_counts(names: tuple[str, ...], y: np.ndarray, needed: int) -> None:
    counts = np.bincount(y, minlength=len(names))
    there = counts[counts > 0]
    if len(there) < 2:
        raise EestudyError(
            f"data: all training labels are {names[int(counts.argmax())]!r}; a classifier needs two classes"
        )
    if there.min() < needed:
        rare = int(np.flatnonzero(counts == there.min())[0])
        raise EestudyError(
            f"data: class {names[rare]!r} has {there.min()} training samples; {needed} are needed, one for each split"
        )


SHARES = {"test": 5, "validation": 10}  # one in so many samples is set apart


def split_off(
    inputs: dict[str, np.ndarray], labels: dict[str, np.ndarray], task: str, validation: int, test: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """With the splits that were not given, taken from train; of every class some in each."""
    inputs, labels = dict(inputs), dict(labels)
    for name, count in (("test", test), ("validation", validation)):
        if name in inputs:
            if count:
                raise EestudyError(f"dataset_args: {name}: {count} would be split off, but a {name} split is given")
            continue
        y = labels["train"]
        strata, classes = (y, len(np.unique(y))) if task == "classification" else (None, 1)
        count = count or max(classes, -(-len(y) // SHARES[name]))
        if not classes <= count <= len(y) - classes:
            raise EestudyError(
                f"dataset_args: {name}: {count} of {len(y)} samples is not valid; {classes} to {len(y) - classes} are"
            )
        kept, out = train_test_split(np.arange(len(y)), test_size=count, random_state=SPLIT_SEED, stratify=strata)
        inputs |= {"train": inputs["train"][kept], name: inputs["train"][out]}
        labels |= {"train": y[kept], name: y[out]}
    return inputs, labels


def normalized(inputs: dict[str, np.ndarray], how: str) -> tuple[dict[str, Tensor], Normalization | None]:
    """The inputs as tensors, and what is still to be done when they are asked for (pictures of bytes)."""
    train = inputs["train"]
    if train.dtype == np.uint8 and train.ndim == 4:
        made = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()}
        return made, pixels(made["train"], how)
    if how in ("unit", "imagenet"):
        raise EestudyError(
            f"dataset_args: normalization: {how} is for pictures of bytes, not for {train.dtype} {train.shape[1:]}"
        )
    if how == "none":
        return {name: torch.from_numpy(x.astype(np.float32)) for name, x in inputs.items()}, None
    axes = (0, *range(2, train.ndim))  # each feature of vectors, each channel of anything else
    mean = train.mean(axis=axes, keepdims=True, dtype=np.float64)
    deviation = train.std(axis=axes, keepdims=True, dtype=np.float64)
    deviation[deviation == 0] = 1  # constant: nothing to scale
    return {name: torch.from_numpy(((x - mean) / deviation).astype(np.float32)) for name, x in inputs.items()}, None


def pixels(train: Tensor | None, how: str) -> Normalization:
    channels = 3 if train is None else train.shape[1]
    if how == "imagenet" and channels != 3:
        raise EestudyError(f"dataset_args: normalization: imagenet is for 3 channels, not {channels}")
    if how == "imagenet":
        return IMAGENET
    if how in ("none", "unit"):
        return Normalization((0.0,) * channels, (255.0 if how == "unit" else 1.0,) * channels)
    assert train is not None
    found = channel_normalization(train)
    return Normalization(found.mean, tuple(each or 1.0 for each in found.deviation))
