"""Data sets by name, split once and for all: whole tensors in memory, or files read when they are asked for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from eestudy.config import EestudyError, check_name, nearest
from eestudy.data.sources import Source
from eestudy.data.splits import DataSet, Split, check_train_size, held_out_size, subset
from eestudy.registry import DATASETS, imported

__all__ = ["DataSet", "Outline", "Split", "identity", "load", "outline", "source_of", "sources_by_name"]

# Raised when a loader gives other samples than before; 1 where it is not named. Part of what was trained on them.
VERSIONS: dict[str, int] = {}


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


def load(name: str, train_size: int | None = None, **dataset_args: object) -> DataSet:
    """The data set `name`, normalized, with fixed train, validation and test splits.

    `train_size` draws a stratified subset of the training split; validation and test stay as they are.
    Raises EestudyError for an unknown name, argument or a size that cannot be had.
    """
    data = _loaded(_loader(name, dataset_args), tuple(sorted(dataset_args.items())))
    return data if train_size is None else subset(data, train_size)


def outline(name: str, train_size: int | None = None, **dataset_args: Any) -> Outline:
    """Facts of what `load` would give: nothing is generated, and of files got from elsewhere none is read.

    Raises EestudyError for an unknown name or argument, and a train_size that cannot be had.
    """
    loader = _loader(name, dataset_args)
    published = source_of(name) if name in DATASETS else None
    if published:
        made = _published(published, **dataset_args)
    elif name in DATASETS and DATASETS.entries[name].outline:
        made = imported(DATASETS.entries[name].outline)(**dataset_args)
    else:
        data = _loaded(loader, tuple(sorted(dataset_args.items())))
        sizes = (len(data.train), len(data.validation), len(data.test))
        made = Outline(name, data.num_classes, data.input_shape, data.train.dtype, *sizes, data.task)
    if train_size is None:
        return made
    check_train_size(train_size, made.train, name, made.num_classes, made.task)
    return dataclasses.replace(made, train=train_size)


def _published(source: Source, validation: int = 0, length: int = 0, size: int = 0, **_: object) -> Outline:
    shape = (length,) if length else (source.input_shape[0], size, size) if size else source.input_shape
    held_out = source.validation or held_out_size(source.train, validation)
    task = "classification" if source.classes > 1 else "regression"
    dtype = torch.int64 if source.text else torch.uint8
    return Outline(source.name, source.classes, shape, dtype, source.train - held_out, held_out, source.test, task)


def source_of(name: str) -> Source | None:
    """What is known of a data set whose files are got from elsewhere, before they are read; None for the others."""
    return getattr(DATASETS.module(name), "SOURCES", {}).get(name)


def sources_by_name() -> dict[str, Source]:
    """All of them, by name."""
    return {name: found for name in DATASETS if (found := source_of(name))}


def identity(name: str, train_size: int | None = None, **dataset_args: Any) -> dict[str, Any]:
    """What a data set is known by in the id of what was trained on it: its version, settings that are not the default.

    None of it is read.
    """
    parameters = inspect.signature(_loader(name, dataset_args)).parameters
    given = {key: value for key, value in dataset_args.items() if value != parameters[key].default}
    if "content" in given:  # data of one's own, wherever they lie
        given.pop("path", None)
    size = {} if train_size is None else {"train_size": train_size}
    return {"name": name, "version": VERSIONS.get(name, 1), **given, **size}


def _loader(name: str, dataset_args: dict[str, Any]) -> Callable[..., DataSet]:
    check_name("dataset", name, (*DATASETS, "own"))
    loader = imported("data.own:own") if name == "own" else DATASETS[name]
    known = list(inspect.signature(loader).parameters)
    for key in dataset_args:
        if key not in known:
            raise EestudyError(f"dataset_args: unknown key {key!r} for {name}; {nearest(key, known)}")
    return loader


@lru_cache(maxsize=4)
def _loaded(loader: Callable[..., DataSet], arguments: tuple[tuple[str, object], ...]) -> DataSet:
    # A study asks for one data set many times over; its tensors are never changed in place.
    return loader(**dict(arguments))
