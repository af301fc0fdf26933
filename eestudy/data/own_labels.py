"""Several labels a sample, each 0 or 1 (multi-label), in data of one's own. N samples, C labels."""

from __future__ import annotations

import numpy as np

from eestudy.config import EestudyError
from eestudy.data.splits import MULTI_LABEL


def several_labels(
    labels: dict[str, np.ndarray], task: str, target: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The labels' names, and by split labels as bool (N, C). target: names, separated by commas, if there are some.

    EestudyError for anything but 0 and 1, for one label that all training samples have or none has, and for what is
    more likely a class a sample, written as one 1 among 0s.
    """
    train = labels["train"]
    if task not in ("", MULTI_LABEL):
        raise EestudyError(f"data: train labels of shape {train.shape} for {task}, which needs one a sample")
    for name, y in labels.items():
        shape = f"data: {name} labels of shape {y.shape}"
        if y.ndim != 2 or y.shape[1:] != train.shape[1:]:
            raise EestudyError(f"{shape}, those of train {train.shape}; several labels are (N, C)")
        wrong = ~np.isin(y, (0, 1)) | (y.dtype.kind not in "biuf")
        if wrong.any():
            found = y[wrong][0]
            raise EestudyError(f"{shape} must be 0 or 1 each, found {found}; one class or number a sample is (N,)")
    if not task and all((y.sum(axis=1) == 1).all() for y in labels.values()):
        raise EestudyError(
            f"data: every sample has exactly one of {train.shape[1]} labels: give classes, y.argmax(1), or, if that is "
            "by chance, dataset_args: {task: multi-label}"
        )
    told = [name.strip() for name in target.split(",")] if "," in target else range(train.shape[1])
    names, share = tuple(map(str, told)), train.mean(axis=0, dtype=np.float64)
    for name, each in zip(names, share):
        if each in (0, 1):
            raise EestudyError(f"data: label {name!r} is {each:g} for all {len(train)} training samples; leave it out")
    return names, {name: y.astype(bool) for name, y in labels.items()}
