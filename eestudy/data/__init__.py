"""Data sets by name, split once and for all: whole tensors in memory, or files read when they are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

from eestudy.config import EestudyError, check_name, nearest
from eestudy.data import imagenet, small, tabular, text, vision, wordnet
from eestudy.data.places import Source
from eestudy.data.splits import DataSet, Split, subset

__all__ = ["LOADERS", "SOURCES", "DataSet", "Split", "load"]

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
