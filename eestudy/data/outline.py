"""What a data set is before any of it is read: what a plan needs, and what it is known by."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from eestudy.data.sources import Source
from eestudy.data.splits import DataSet, check_train_size, held_out_size


@dataclass(frozen=True)
class Outline:
    """Facts of a data set. dtype: of its samples in memory; train, validation, test: how many samples."""

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    train: int
    validation: int
    test: int
    task: str = "classification"

    def with_train_size(self, size: int | None) -> Outline:
        """With so many training samples (None: all). EestudyError where there are fewer, or not one a class."""
        if size is None:
            return self
        check_train_size(size, self.train, self.name, self.num_classes, self.task)
        return dataclasses.replace(self, train=size)


def of_source(source: Source, arguments: dict[str, Any]) -> Outline:
    """From the published facts of a data set whose files are got from elsewhere."""
    shape = source.input_shape
    if "length" in arguments:
        shape = (arguments["length"],)
    elif "size" in arguments:
        shape = (shape[0], arguments["size"], arguments["size"])
    held_out = source.validation or held_out_size(source.train, arguments.get("validation", 0))
    task = "classification" if source.classes > 1 else "regression"
    dtype = torch.int64 if source.text else torch.uint8
    return Outline(source.name, source.classes, shape, dtype, source.train - held_out, held_out, source.test, task)


def of_data(data: DataSet) -> Outline:
    sizes = (len(data.train), len(data.validation), len(data.test))
    return Outline(data.name, data.num_classes, data.input_shape, data.train.dtype, *sizes, data.task)


def identity(
    name: str, version: int, loader: Callable[..., DataSet], train_size: int | None, arguments: dict[str, Any]
) -> dict[str, Any]:
    """What a built-in data set is known by: its name, its version, and the settings that differ from the defaults."""
    defaults = {key: each.default for key, each in inspect.signature(loader).parameters.items()}
    given = {key: value for key, value in arguments.items() if value != defaults.get(key)}
    if "content" in given:  # data of one's own, wherever they lie
        given.pop("path", None)
    return {"name": name, "version": version, **given, **({} if train_size is None else {"train_size": train_size})}
