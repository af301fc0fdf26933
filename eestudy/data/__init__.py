"""Data sets by name, split once and for all: whole tensors in memory, or files read when they are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from eestudy.config import EestudyError, check_name, nearest
from eestudy.data import outline as outlines
from eestudy.data.outline import Outline
from eestudy.data.sources import Source
from eestudy.data.splits import DataSet, Split, subset
from eestudy.registry import DATASETS, imported

__all__ = ["DataSet", "Outline", "Split", "identity", "load", "outline", "source_of", "sources_by_name"]

# Raised when a loader gives other samples than before; 1 where it is not named. Part of what was trained on them.
VERSIONS: dict[str, int] = {}


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
        made = outlines.of_source(published, dataset_args)
    elif name in DATASETS and DATASETS.entries[name].outline:
        made = imported(DATASETS.entries[name].outline)(**dataset_args)
    else:
        made = outlines.of_data(_loaded(loader, tuple(sorted(dataset_args.items()))))
    return made.with_train_size(train_size)


def source_of(name: str) -> Source | None:
    """What is known of a data set whose files are got from elsewhere, before they are read; None for the others."""
    return getattr(DATASETS.module(name), "SOURCES", {}).get(name)


def sources_by_name() -> dict[str, Source]:
    """All of them, by name."""
    return {name: found for name in DATASETS if (found := source_of(name))}


def identity(name: str, train_size: int | None = None, **dataset_args: Any) -> dict[str, Any]:
    """What the data set is known by in the id of what was trained on it; none of it is read."""
    loader = _loader(name, dataset_args)
    return outlines.identity(name, VERSIONS.get(name, 1), loader, train_size, dataset_args)


def _loader(name: str, dataset_args: dict[str, Any]) -> Callable[..., DataSet]:
    check_name("dataset", name, (*DATASETS, "own"))
    loader = imported("data.own:own") if name == "own" else DATASETS[name]
    known = list(inspect.signature(loader).parameters)
    for key in dataset_args:
        if key not in known:
            hint = nearest(key, known) if known else f"{name} takes none"
            raise EestudyError(f"dataset_args: unknown key {key!r} for {name}; {hint}")
    return loader


@lru_cache(maxsize=4)
def _loaded(loader: Callable[..., DataSet], arguments: tuple[tuple[str, object], ...]) -> DataSet:
    # A study asks for one data set many times over; its tensors are never changed in place.
    return loader(**dict(arguments))
