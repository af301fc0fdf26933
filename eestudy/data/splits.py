"""What a data set is, and how it is split: stratified, by a seed that never changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from eestudy.config import EestudyError

SPLIT_SEED = 42
MULTI_LABEL = "multi-label"


@dataclass(frozen=True)
class Normalization:
    """Mean and deviation of each channel, on the scale of uint8 pixels: 0 to 255."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> float32, normalized; on the device they are on, in their memory layout."""
        mean = torch.tensor(self.mean, device=x.device).view(-1, 1, 1)
        deviation = torch.tensor(self.deviation, device=x.device).view(-1, 1, 1)
        return x.to(torch.float32).sub_(mean).div_(deviation)


@dataclass(frozen=True)
class Split:
    """Labels y (N,), int64 (float32 for regression; several a sample: bool (N, C)), and inputs x (N, ...).

    x is float32 and normalized already; or uint8 images, for which `normalization` is given; or int64 token ids.
    """

    x: Tensor
    y: Tensor
    normalization: Normalization | None = None

    streamed: ClassVar[bool] = False  # True: x does not hold the samples, they are read when they are asked for

    def __len__(self) -> int:
        return len(self.y)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the samples as they lie in memory."""
        return self.x.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.x.shape[1:])

    def raw(self, chosen: Tensor | slice) -> Tensor:
        """The samples `chosen` as they lie in memory: what augmentation works on."""
        return self.x[chosen]

    def inputs(self, chosen: Tensor | slice = slice(None)) -> Tensor:
        """What a network takes of the samples `chosen`: float32, normalized (token ids: int64)."""
        raw = self.raw(chosen)
        return self.normalization(raw) if self.normalization else raw

    def batches(self, order: Sequence[Tensor], workers: int = 0) -> Iterator[Tensor]:
        """`raw` of each of the batches of sample numbers in `order`; samples in memory need no `workers`."""
        return (self.raw(chosen) for chosen in order)

    def part(self, chosen: Tensor) -> Split:
        """The samples `chosen` (numbers, int64) as a split of their own."""
        return dataclasses.replace(self, x=self.x[chosen], y=self.y[chosen])


@dataclass(frozen=True)
class DataSet:
    """Facts and tensors of a data set. Only `train` is ever augmented.

    task: "classification", "regression" with num_classes 1 and real labels, or "multi-label", several 0 or 1 a sample.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    train: Split
    validation: Split
    test: Split
    task: str = "classification"
    classes: tuple[str, ...] = ()  # their names, where the data set has some


def held_out_size(samples: int, validation: int = 0) -> int:
    """How many of so many training samples are held out: `validation`, or with 0 a tenth of them, rounded up."""
    return validation or -(-samples // 10)


def hold_out(y: np.ndarray, validation: int = 0, task: str = "classification") -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples that stay in training, and of those held out for validation: stratified, fixed.

    y: whole numbers (N,); for regression real ones, which have no strata. validation: how many; 0: a tenth, rounded up.
    EestudyError for a number that leaves a split without a sample of each class.
    """
    strata = None if task == "regression" else y
    least = 1 if strata is None else len(np.unique(y))
    if isinstance(validation, bool) or not isinstance(validation, int):
        raise EestudyError(f"dataset_args: validation: {validation!r} is not valid; it must be a whole number")
    if validation and not least <= validation <= len(y) - least:
        raise EestudyError(
            f"dataset_args: validation: {validation} is not valid; it must be from {least} to {len(y) - least}, or 0 "
            f"for a tenth of the {len(y)} training samples"
        )
    return tuple(
        train_test_split(np.arange(len(y)), test_size=validation or 0.1, random_state=SPLIT_SEED, stratify=strata)
    )


def with_validation(
    name: str, train: Split, test: Split, validation: int = 0, classes: Sequence[str] = (), num_classes: int = 0
) -> DataSet:
    """A data set for classification, with some of the training samples held out for validation (`hold_out`).

    classes: their names; num_classes: how many, where they have none.
    """
    rest, held_out = (torch.from_numpy(numbers) for numbers in hold_out(train.y.numpy(), validation))
    return DataSet(
        name, num_classes or len(classes), train.shape, train.part(rest), train.part(held_out), test,
        classes=tuple(classes),
    )  # fmt: skip


def split_and_normalize(
    name: str, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, validation: int = 0
) -> DataSet:
    """`with_validation`, normalized by the mean and deviation of the training samples that are left.

    x: (N, C, ...) of any real type, y: (N,) whole numbers from 0.
    """
    rest, _ = hold_out(y, validation)
    mean, deviation = x[rest].mean(), x[rest].std()
    train, test = (
        Split(torch.from_numpy(((inputs - mean) / deviation).astype(np.float32)), torch.from_numpy(labels.astype(int)))
        for inputs, labels in ((x, y), (x_test, y_test))
    )
    return with_validation(name, train, test, validation, num_classes=int(y.max()) + 1)


def channel_normalization(x: Tensor) -> Normalization:
    """Mean and deviation of each channel over all images and pixels. x: uint8 (N, C, H, W)."""
    # From counts of the 256 values, which are exact; and a float copy of the images would be four times their size.
    counts = np.zeros((x.shape[1], 256))
    for images in x.split(1000):
        for channel, pixels in enumerate(images.unbind(1)):
            counts[channel] += torch.bincount(pixels.flatten(), minlength=256).numpy()
    shares = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256)
    mean = (shares * values).sum(axis=1)
    deviation = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return Normalization(tuple(mean.tolist()), tuple(deviation.tolist()))


def check_train_size(size: int, have: int, name: str, num_classes: int, task: str) -> None:
    """EestudyError where a training split of `have` samples has no subset of `size` with every class in it."""
    if not (num_classes if task == "classification" else 1) <= size <= have:
        classes = f"{num_classes} classes and " if task == "classification" else ""
        raise EestudyError(
            f"train_size: {size} is not valid for {name}; it has {classes}"
            f"{have} training samples after validation was split off"
        )


def subset(data: DataSet, train_size: int) -> DataSet:
    """`data` with `train_size` of its training samples, for classification stratified. EestudyError if it has fewer."""
    have = len(data.train)
    check_train_size(train_size, have, data.name, data.num_classes, data.task)
    if train_size == have:
        return data
    # A class could be missed by the stratified draw when fewer samples are left out than there are classes.
    left_out = max(have - train_size, data.num_classes) if data.task == "classification" else have - train_size
    strata = data.train.y.numpy() if data.task == "classification" else None
    kept, _ = train_test_split(np.arange(have), test_size=left_out, random_state=SPLIT_SEED, stratify=strata)
    missing = np.setdiff1d(np.arange(have), kept)[: train_size - len(kept)]
    chosen = np.sort(np.concatenate([kept, missing]))
    return dataclasses.replace(data, train=data.train.part(torch.from_numpy(chosen)))
