"""Weights from a file into a user's model: a state dict of torch.save, or safetensors. No code in a file is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.environment import say

WRAPPED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net", "weights")
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "backbone.")  # of DataParallel, Lightning, torch.compile, ...
SHOWN = 3  # names in a line


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """The model with the weights in a .safetensors file, or in a .pt, .pth, .bin or .ckpt file of a state dict.

    A state dict inside another one (WRAPPED), and names that all have a prefix of PREFIXES, are unwrapped, which is
    said. Raises EestudyError, and changes nothing, for a file that is missing, damaged or would run code, for names
    that are missing or too many, and for shapes that do not fit.
    """
    state = _read(Path(path).expanduser())
    wanted = model.state_dict()
    for prefix in PREFIXES:
        if not set(state) & set(wanted) and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            say(f"weights: {path}: names without their prefix {prefix!r}")
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}  # which old files lack
    problems = {
        "lacks": sorted(needed - set(state)),
        "has what the model lacks:": sorted(set(state) - set(wanted)),
        "has other shapes than the model:": [
            f"{name} {tuple(value.shape)}, not {tuple(wanted[name].shape)}"
            for name, value in state.items()
            if name in wanted and value.shape != wanted[name].shape
        ],
    }
    found = [f"{what} {_few(names)}" for what, names in problems.items() if names]
    if found:
        raise EestudyError(f"weights: {path} {'; '.join(found)}")
    model.load_state_dict(state, strict=False)
    return model


def _few(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise EestudyError(f"weights: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (readers of files raise whatever they meet)
        if type(error).__name__ == "UnpicklingError":
            raise EestudyError(
                f"weights: {path} holds more than tensors, which could run code; save model.state_dict() alone"
            ) from None
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EestudyError(f"weights: {path} cannot be read as weights ({reason})") from None
    for key in WRAPPED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            say(f"weights: {path}: what stands under {key!r}")
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()) or not found:
        raise EestudyError(f"weights: {path} holds a {type(found).__name__}; give a state dict, names to tensors")
    return dict(found)
