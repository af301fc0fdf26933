"""Data sets by name: whole tensors in memory, split once and for all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

from eestudy.config import EestudyError, check_name, nearest
from eestudy.data import small
from eestudy.data.splits import DataSet, Split, subset

__all__ = ["LOADERS", "DataSet", "Split", "load"]

LOADERS: dict[str, Callable[..., DataSet]] = {"digits": small.digits, "mnist1d": small.mnist1d}


def load(name: str, train_size: int | None = None, **dataset_args: object) -> DataSet:
    """The data set `name`, normalized, with fixed train, validation and test splits.

    `train_size` draws a stratified subset of the training split; validation and test stay as they are.
    Raises EestudyError for an unknown name, argument or a size that cannot be had.
    """
    loader = LOADERS[check_name("dataset", name, LOADERS)]
    known = list(inspect.signature(loader).parameters)
    for key in dataset_args:
        if key not in known:
            hint = nearest(key, known) if known else f"{name} takes none"
            raise EestudyError(f"dataset_args: unknown key {key!r} for {name}; {hint}")
    data = _loaded(loader, tuple(sorted(dataset_args.items())))
    return data if train_size is None else subset(data, train_size)


@lru_cache(maxsize=4)
def _loaded(loader: Callable[..., DataSet], arguments: tuple[tuple[str, object], ...]) -> DataSet:
    # A study asks for one data set many times over; its tensors are never changed in place.
    return loader(**dict(arguments))
