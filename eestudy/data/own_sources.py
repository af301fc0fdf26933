"""What is accepted as data of one's own, as arrays of inputs and labels by split; see `data.own`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eestudy.config import EestudyError, check_name

SPLITS = ("train", "validation", "test")
# Names of folders and arrays -> the split they are.
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train", "testing": "test"}

Pair = tuple[np.ndarray, np.ndarray]


def parts_of(data: Any, target: str, features: str) -> dict[str, Pair]:
    """Inputs and labels as arrays, by split."""
    if isinstance(data, Mapping):
        named = {ALIASES.get(str(name), str(name)): each for name, each in data.items()}
        for name in named:
            check_name("data: split", name, SPLITS)
        if "train" not in named:
            raise EestudyError(f"data: no split 'train' among {', '.join(named) or 'none'}")
        return {name: _pair(named[name], name, target, features) for name in SPLITS if name in named}
    return {"train": _pair(data, "train", target, features)}


def _pair(data: Any, name: str, target: str, features: str) -> Pair:
    if isinstance(data, pd.DataFrame):
        return _columns(data, target, features)
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data, torch.utils.data.Dataset):
        return _array(data[0], f"{name} inputs"), _array(data[1], f"{name} labels")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _of_dataset(data, name)
    raise EestudyError(
        f"data: {type(data).__name__} is not valid; give (x, y), a torch Dataset with a length, a data frame, "
        "a mapping from train, validation, test to these, or a path"
    )


def _array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    try:
        made = np.asarray(values)
    except ValueError:
        raise EestudyError(f"data: {what}: samples of different shapes") from None
    if made.dtype == object and made.ndim == 1 and all(isinstance(each, str) for each in made):
        made = made.astype(str)
    if made.dtype == object:
        raise EestudyError(
            f"data: {what}: {type(made.flat[0]).__name__ if made.size else 'nothing'}, which are no numbers"
        )
    return made


def _of_dataset(data: Any, name: str) -> Pair:
    """All pairs of a torch Dataset (or of anything with a length and numbered items)."""
    xs, ys = [], []
    for number in range(len(data)):
        sample = data[number]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise EestudyError(f"data: {name} sample {number}: expected a pair (x, y), found {type(sample).__name__}")
        x = np.asarray(sample[0])
        xs.append(x.transpose(2, 0, 1) if x.ndim == 3 and x.dtype == np.uint8 and _is_image(sample[0]) else x)
        ys.append(np.asarray(sample[1]))
        if xs[-1].shape != xs[0].shape:
            raise EestudyError(f"data: {name} sample {number} has shape {xs[-1].shape}, the first {xs[0].shape}")
    if not xs:
        raise EestudyError(f"data: the {name} split is empty")
    return _array(np.stack(xs), f"{name} inputs"), _array(np.stack(ys), f"{name} labels")


def _is_image(sample: Any) -> bool:
    return hasattr(sample, "getbands")  # PIL's; its rows are first, its channels last


def _columns(frame: pd.DataFrame, target: str, features: str) -> Pair:
    targets = [target] if target in frame else [name.strip() for name in target.split(",")]
    for each in targets:
        if each not in frame:
            raise EestudyError(
                f"dataset_args: target: {each!r} is no column of the data frame; columns: {', '.join(map(str, frame))}"
            )
    named = [name.strip() for name in features.split(",")] if features else frame
    names = [name for name in named if features or name not in targets]
    for name in names:
        check_name("dataset_args: features", name, frame)
        if not (pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_bool_dtype(frame[name])):
            raise EestudyError(
                f"data: column {name!r} holds {frame[name].dtype}, not numbers; encode it, or name the columns to "
                "use in dataset_args: {features: 'a,b'}"
            )
    if not names:
        raise EestudyError(f"data: no column beside the target {target!r}")
    labels = frame[targets if len(targets) > 1 else target].to_numpy()
    return frame[names].to_numpy(np.float32), _array(labels, f"column {target!r}")


def read_file(path: Path) -> Any:
    """A file's data, as `parts_of` takes it."""
    readers: dict[str, Callable[[Path], Any]] = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".npz": _npz}
    if path.suffix not in readers:
        raise EestudyError(
            f"dataset_args: path: {str(path)!r}: give a folder of images, or a {', '.join(readers)} file"
        )
    try:
        return readers[path.suffix](path)
    except EestudyError:
        raise
    except (OSError, ValueError, KeyError, ImportError, pd.errors.ParserError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EestudyError(f"dataset_args: path: {str(path)!r} cannot be read ({reason})") from None


def _npz(path: Path) -> dict[str, Pair]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if {"x", "y"} <= set(arrays):
        return {"train": (arrays["x"], arrays["y"])}
    names = {name.removeprefix("x_") for name in arrays if name.startswith("x_") and f"y_{name[2:]}" in arrays}
    if not names:
        raise EestudyError(
            f"{path}: expected arrays x and y, or x_train, y_train, x_test, ...; found {', '.join(arrays)}"
        )
    return {name: (arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in sorted(names)}
