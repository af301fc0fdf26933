"""What every data set is, told without reading those whose files are got from elsewhere."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.data import LOADERS, SOURCES, DataSet, Split, load, text, wordnet


def catalogue() -> pd.DataFrame:
    """One row a data set, the same on every machine: name, kind, task, classes, input, sizes, how to get it.

    kind: images, lines, text, table. input: shape of one sample; classes: 0 in regression; sizes: samples; got: "comes
    with the package", or a command; debian: that of Debian and its relatives where they have a package, else "".
    """
    return pd.DataFrame([_source(name) if name in SOURCES else _bundled(load(name)) for name in LOADERS])


def _bundled(data: DataSet) -> dict[str, object]:
    kind = {1: "table", 2: "lines", 3: "images"}[len(data.input_shape)]
    sizes = {name: len(getattr(data, name)) for name in ("train", "validation", "test")}
    return _row(data.name, kind, data.task, data.num_classes, data.input_shape, sizes, "comes with the package", "")


def _source(name: str) -> dict[str, object]:
    source = SOURCES[name]
    kind = "text" if name in text.SOURCES or name in wordnet.SOURCES else "images"
    task = "classification" if source.classes > 1 else "regression"
    held_out = source.validation or -(-source.train // 10)  # a tenth, rounded up, as the split is made
    sizes = {"train": source.train - held_out, "validation": held_out, "test": source.test}
    got = source.how.get("any", f"eestudy get {name}")
    return _row(name, kind, task, source.classes, source.input_shape, sizes, got, source.how.get("debian", ""))


def _row(
    name: str, kind: str, task: str, classes: int, shape: tuple[int, ...], sizes: dict[str, int], got: str, debian: str
) -> dict[str, object]:
    about = {"name": name, "kind": kind, "task": task, "classes": classes if task == "classification" else 0}
    return {**about, "input": shape, **sizes, "got": got, "debian": debian}


def one_of_each(split: Split, classes: int) -> Tensor:
    """Numbers (classes,) of the first sample of each class. EestudyError for a class that has none."""
    found = [(split.y == label).nonzero() for label in range(classes)]
    missing = [label for label, places in enumerate(found) if not len(places)]
    if missing:
        raise EestudyError(f"classes: {classes} is not valid; the split has no sample of class {missing[0]}")
    return torch.stack([places[0, 0] for places in found])
