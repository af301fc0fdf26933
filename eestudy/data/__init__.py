"""Data sets by name, split once and for all: whole tensors in memory, or files read when they are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from eestudy.config import EestudyError, check_name, nearest
from eestudy.data import imagenet, small, tabular, text, vision, wordnet
from eestudy.data import outline as outlines
from eestudy.data.outline import Outline
from eestudy.data.places import Source
from eestudy.data.splits import DataSet, Split, subset

__all__ = ["LOADERS", "SOURCES", "DataSet", "Outline", "Split", "identity", "load", "outline"]

LOADERS: dict[str, Callable[..., DataSet]] = {
    "digits": small.digits,
    "mnist1d": small.mnist1d,
    "fashion-mnist": vision.fashion_mnist,
    "cifar10": vision.cifar10,
    "cifar100": vision.cifar100,
    "svhn": vision.svhn,
    "tiny-imagenet": imagenet.tiny_imagenet,
    "imagenette": imagenet.imagenette,
    "imagenet": imagenet.imagenet,
    "20newsgroups": text.newsgroups,
    "wordnet-supersense": wordnet.wordnet_supersense,
    "stsb": text.stsb,
    "diabetes": tabular.diabetes,
}
# Of those whose files are got from elsewhere: what is known before they are read.
SOURCES: dict[str, Source] = {**vision.SOURCES, **imagenet.SOURCES, **text.SOURCES, **wordnet.SOURCES}
TEXTS = {*text.SOURCES, *wordnet.SOURCES}
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
    if name in SOURCES:
        made = outlines.of_source(SOURCES[name], name in TEXTS, dataset_args)
    elif name == "mnist1d":
        made = small.mnist1d_outline(**dataset_args)
    else:
        made = outlines.of_data(_loaded(loader, tuple(sorted(dataset_args.items()))))
    return made.with_train_size(train_size)


def identity(name: str, train_size: int | None = None, **dataset_args: Any) -> dict[str, Any]:
    """What the data set is known by in the id of what was trained on it; none of it is read."""
    loader = _loader(name, dataset_args)
    return outlines.identity(name, VERSIONS.get(name, 1), loader, train_size, dataset_args)


def _loader(name: str, dataset_args: dict[str, Any]) -> Callable[..., DataSet]:
    loader = LOADERS[check_name("dataset", name, LOADERS)]
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
