"""Data of one's own: arrays, torch Datasets, a data frame, or files; checked, split, normalized.

What is accepted as `data=` of `eestudy.run`, and as `dataset_args: {path: ...}` of `dataset: own`:

- inputs and labels (x, y), as arrays, tensors or lists; a torch Dataset of such pairs; a data frame with `target`, the
  name of its column of labels; or a mapping from "train", "validation", "test" to these;
- a folder of images by class (class/name.png), or of such folders train, validation and test;
- a .csv or .parquet file, read as a data frame; an .npz file of x and y, or x_train, y_train, x_test, ...

What is not given is split off the training data, stratified and always alike: a fifth for test, a tenth of the rest for
validation. N samples, C classes or channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from eestudy.config import DIGITS, EestudyError, RunConfig, check_name
from eestudy.content import content_of, settled
from eestudy.data.own_folder import ImageFolder
from eestudy.data.own_labels import several_labels
from eestudy.data.own_sources import SPLITS, Pair, parts_of, read_file
from eestudy.data.own_splits import NORMALIZATIONS, check_counts, normalized, split_off
from eestudy.data.splits import MULTI_LABEL, DataSet, Split

TASKS = ("classification", "regression", MULTI_LABEL)
NOTHING = "data: dataset is 'own'; give eestudy.run(config, data=...), or dataset_args: {path: ...}"
_GIVEN: dict[str, dict[str, Pair]] = {}  # content -> what was given in this process


def given(config: RunConfig, data: object) -> RunConfig:
    """The config whose data set is `data`, known by its content: relabelled or reordered data are another run."""
    if data is None:
        if config.dataset == "own" and not ({"path", "content"} & set(config.dataset_args)):
            raise EestudyError(NOTHING)
        return settled(config)
    if config.dataset != "own":
        raise EestudyError(f"data: dataset is {config.dataset!r}; RunConfig(dataset='own') trains on what is given")
    if isinstance(data, str | Path):
        return settled(config.replace(dataset_args={**config.dataset_args, "path": str(data)}))
    parts = parts_of(data, str(config.dataset_args.get("target", "")), str(config.dataset_args.get("features", "")))
    digest = hashlib.sha256()
    for name, (x, y) in parts.items():
        for kind, values in (("x", x), ("y", y)):
            digest.update(f"{name} {kind} {values.dtype} {values.shape}".encode())
            digest.update(
                str(values.tolist()).encode() if values.dtype == object else np.ascontiguousarray(values).data
            )
    content = digest.hexdigest()[:DIGITS]
    _GIVEN[content] = parts
    return config.replace(dataset_args={**config.dataset_args, "content": content})


def own(
    path: str = "", content: str = "", target: str = "", features: str = "", task: str = "", classes: int = 0,
    size: int = 0, normalization: str = "train", tokens: int = 0, validation: int = 0, test: int = 0,
) -> DataSet:  # fmt: skip
    """The data set that lies at `path`, or was given in this process and has this `content`.

    target: a data frame's column of labels, or several, separated by commas; features: those of inputs (all others).
    task: "classification", "regression" or "multi-label" (labels (N, C) of 0 and 1); read off the labels where they
    leave no doubt. classes: how many there are, where
    labels 0 to C - 1 do not all occur. size: side of the square that images are resized and cut to (their own where all
    have one, else 224). normalization: by mean and deviation of each channel or feature of the training split, "none",
    "unit" (pixels / 255), or "imagenet". tokens: 1 if whole numbers are token ids. validation, test: how many are
    split off (a tenth, a fifth) where none are given.
    EestudyError, one line, for data that cannot be what they are meant to be.
    """
    check_name("dataset_args: normalization", normalization, NORMALIZATIONS)
    if task:
        check_name("dataset_args: task", task, TASKS)
    root = Path(path).expanduser()
    if path:
        if content and content_of(root) != content:
            raise EestudyError(f"dataset: {root} holds other data than when this run was planned")
        if root.is_dir():
            return ImageFolder(root, size, normalization).data_set(validation, test)
        parts = parts_of(read_file(root), target, features)
    elif content in _GIVEN:
        parts = _GIVEN[content]
    elif not content:
        raise EestudyError(NOTHING)
    else:
        raise EestudyError(f"data: what was given with content {content} is not in this process; give data= again")
    return _in_memory(parts, task, target, classes, normalization, bool(tokens), validation, test)


def _in_memory(
    parts: dict[str, Pair], task: str, target: str, classes: int, normalization: str, tokens: bool, validation: int,
    test: int,
) -> DataSet:  # fmt: skip
    for name, (x, y) in parts.items():
        _check_inputs(x, y, name)
    names: tuple[str, ...] = ()
    labels = {name: y for name, (_, y) in parts.items()}
    told = task
    several = any(y.ndim == 2 for y in labels.values()) or task == MULTI_LABEL
    task = MULTI_LABEL if several else task or _task_of(parts["train"][1])
    if several:
        names, labels = several_labels(labels, told, target)
    elif task == "classification":
        names, labels = _classes(labels, classes)
    else:
        labels = {name: _real(y, name) for name, y in labels.items()}
    inputs = {name: _channels_first(x) for name, (x, _) in parts.items()}
    for name, x in inputs.items():
        if x.shape[1:] != inputs["train"].shape[1:]:
            raise EestudyError(
                f"data: {name} samples have shape {x.shape[1:]}, those of train {inputs['train'].shape[1:]}"
            )
    inputs, labels = split_off(inputs, labels, task, validation, test)
    if tokens:
        if inputs["train"].dtype.kind not in "iu" or min(x.min() for x in inputs.values()) < 0:
            raise EestudyError("dataset_args: tokens: the inputs are no token ids, whole numbers from 0")
        made, lazily = {name: torch.from_numpy(x.astype(np.int64)) for name, x in inputs.items()}, None
    else:
        made, lazily = normalized(inputs, normalization)
    splits = {name: Split(made[name], torch.from_numpy(labels[name]), lazily) for name in SPLITS}
    shape = tuple(made["train"].shape[1:])
    return DataSet("own", len(names) if names else 1, shape, **splits, task=task, classes=names)


def _check_inputs(x: np.ndarray, y: np.ndarray, name: str) -> None:
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise EestudyError(
            f"data: {name} inputs of shape {x.shape} and type {x.dtype}; numbers of shape (N, ...) are needed"
        )
    if not len(x):
        raise EestudyError(f"data: the {name} split is empty")
    if len(x) != len(y):
        raise EestudyError(f"data: {len(x)} {name} inputs but {len(y)} labels")
    if y.ndim == 2 and y.shape[1] == 1:
        raise EestudyError(f"data: {name} labels of shape {y.shape}; give {(len(y),)}, one a sample")
    if y.ndim not in (1, 2):
        raise EestudyError(f"data: {name} labels of shape {y.shape}; one a sample (N,) is needed, or several (N, C)")
    for what, values in (("inputs", x), ("labels", y)):
        if values.dtype.kind == "f":
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if bad.any():
                raise EestudyError(
                    f"data: {name} {what}: {bad.sum()} samples with NaN or infinity, the first is number {bad.argmax()}"
                )


def _task_of(y: np.ndarray) -> str:
    if y.dtype.kind != "f":
        return "classification"
    if (y == np.round(y)).all():
        raise EestudyError(
            "dataset_args: task: the labels are real numbers that are all whole; give classification or regression"
        )
    return "regression"


def _real(y: np.ndarray, name: str) -> np.ndarray:
    if y.dtype.kind not in "iuf":
        raise EestudyError(f"data: {name} labels of type {y.dtype}; regression needs numbers")
    if np.ptp(y) == 0:
        raise EestudyError(f"data: all {name} labels are {y[0]}; there is nothing to learn")
    return y.astype(np.float32)


def _classes(labels: dict[str, np.ndarray], count: int) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Names of the classes, and labels as numbers of them from 0: whole numbers as they are, anything else in order."""
    if all(y.dtype.kind in "iuf" for y in labels.values()):
        for name, y in labels.items():
            if (y != np.round(y)).any():
                raise EestudyError(
                    f"data: {name} label {y[(y != np.round(y)).argmax()]} is no class, which are whole numbers"
                )
        labels = {name: y.astype(np.int64) for name, y in labels.items()}
        found, told = np.unique(labels["train"]), count > 0
        count = count or int(found.max()) + 1
        for name, y in labels.items():
            outside = (y < 0) | (y >= count)
            if outside.any():
                raise EestudyError(
                    f"data: {name} label {y[outside.argmax()]} (sample {outside.argmax()}) is out of range; labels are "
                    f"0 to {count - 1}"
                )
        absent = np.setdiff1d(np.arange(count), found)
        if len(absent) and not told:
            raise EestudyError(
                f"data: no training sample of class {absent[0]}; labels are 0 to {count - 1} (for a network with more "
                "classes than the data say so by dataset_args: {classes: C}, or renumber them)"
            )
        names = tuple(map(str, range(count)))
    else:
        found = np.unique(labels["train"].astype(str))
        names = tuple(found.tolist())
        for name, y in labels.items():
            unknown = ~np.isin(y.astype(str), found)
            if unknown.any():
                raise EestudyError(
                    f"data: {name} label {str(y[unknown.argmax()])!r} does not occur among the training labels"
                )
        labels = {name: np.searchsorted(found, y.astype(str)).astype(np.int64) for name, y in labels.items()}
    check_counts(names, labels["train"], needed=4 - len(labels))
    return names, labels


def _channels_first(x: np.ndarray) -> np.ndarray:
    """Pictures as (N, C, H, W)."""
    if x.ndim == 3 and x.dtype == np.uint8:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.transpose(0, 3, 1, 2)
    return x
