"""What every data set is, told without reading those whose files are got from elsewhere."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.data import Outline, Split, outline, source_of
from eestudy.registry import DATASETS


def catalogue() -> pd.DataFrame:
    """One row a data set, the same on every machine: name, kind, task, classes, input, sizes, how to get it.

    kind: images, lines, text, table. input: shape of one sample; classes: 0 in regression; sizes: samples; got: "comes
    with the package", or a command; debian: that of Debian and its relatives where they have a package, else "".
    """
    return pd.DataFrame([_row(outline(name)) for name in DATASETS])


def _row(facts: Outline) -> dict[str, object]:
    got, debian = "comes with the package", ""
    published = source_of(facts.name)
    if published:
        how = published.how
        got, debian = how.get("any", f"eestudy get {facts.name}"), how.get("debian", "")
    kind = {1: "table", 2: "lines", 3: "images"}[len(facts.input_shape)] if facts.dtype != torch.int64 else "text"
    return {
        "name": facts.name,
        "kind": kind,
        "task": facts.task,
        "classes": facts.num_classes if facts.task == "classification" else 0,
        "input": facts.input_shape,
        **{split: getattr(facts, split) for split in ("train", "validation", "test")},
        "got": got,
        "debian": debian,
    }


def one_of_each(split: Split, classes: int) -> Tensor:
    """Numbers (classes,) of the first sample of each class. EestudyError for a class that has none."""
    found = [(split.y == label).nonzero() for label in range(classes)]
    missing = [label for label, places in enumerate(found) if not len(places)]
    if missing:
        raise EestudyError(f"classes: {classes} is not valid; the split has no sample of class {missing[0]}")
    return torch.stack([places[0, 0] for places in found])
