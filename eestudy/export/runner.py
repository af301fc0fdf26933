"""An exported network in use: `Runner`, which stops early, with numpy and onnxruntime alone. No torch here."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eestudy.config import EestudyError
from eestudy.extras import needed

FORMAT = 2  # 1 had neither temperatures nor exits that are left out
MANIFEST = "exits.json"
TOO_EARLY = float(np.finfo(np.float32).min)  # a regression's score before k changes were seen


class Runner:
    """An exported network on onnxruntime: `runner.predict(x)` is `MultiExit.predict(x, rule)`, up to the last bits.

    folder: what `export` wrote. threads: of the processor, onnxruntime's choice if None. Attributes: input_shape,
    num_classes, num_exits, rule (name), thresholds (K,) float64, temperatures (K,) or None, flops (K,) of leaving at
    each exit (NaN: switched off), backbone_flops.
    Raises EestudyError for a folder without an export, or with one of another version.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        runtime = needed("onnxruntime", "export")
        folder = Path(folder)
        try:
            facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EestudyError(f"folder: {folder / MANIFEST} cannot be read ({error}); make it with export()") from None
        if facts.get("format") not in (1, FORMAT):
            raise EestudyError(f"folder: {folder} has format {facts.get('format')}, this version reads {FORMAT}")
        self.input_shape = tuple(facts["input_shape"])
        self.num_classes: int = facts["num_classes"]
        self._numbers = [exit.get("exit", number) for number, exit in enumerate(facts["exits"], 1)]
        self.num_exits: int = self._numbers[-1]
        self.rule: str = facts["rule"]["name"]
        self.thresholds = np.array([float(value) for value in facts["rule"]["thresholds"]])
        self.k: int | None = facts["rule"]["k"]
        self.temperatures: list[float] | None = facts["rule"].get("temperatures")
        self.flops = np.full(self.num_exits, np.nan)
        self.flops[np.array(self._numbers) - 1] = [exit["flops"] for exit in facts["exits"]]
        self.backbone_flops: int = facts["backbone_flops"]
        self._dtype = np.dtype(facts["input_dtype"])
        self._outputs = [exit["outputs"] for exit in facts["exits"]]
        lacking = [number for number, exit in zip(self._numbers, facts["exits"]) if not exit["onnx"]]
        if lacking:
            raise EestudyError(
                f"folder: {folder} has no ONNX file of exit {lacking[0]}; use exit_k.pt2 with torch instead"
            )
        options = runtime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self._sessions = [
            runtime.InferenceSession(str(folder / exit["onnx"]), options, providers=["CPUExecutionProvider"])
            for exit in facts["exits"]
        ]
        # An input that an exit does not use is no input of its file.
        self._inputs = [[given.name for given in session.get_inputs()] for session in self._sessions]

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x (B, *input_shape) -> logits (B, C) float32 that each sample left with, exit_index (B,) int64 in 1..K.

        A sample that leaves is dropped from the batch; no exit is computed for a batch that is empty.
        Anything numpy takes for an array. Raises EestudyError for another shape or type.
        """
        try:
            x = np.asarray(x)
        except ValueError:
            raise EestudyError("x: samples of different shapes") from None
        if x.ndim != len(self.input_shape) + 1 or x.shape[1:] != self.input_shape:
            raise EestudyError(
                f"x: has shape {x.shape}; the network takes (B, {', '.join(map(str, self.input_shape))})"
            )
        if (x.dtype.kind == "f") != (self._dtype.kind == "f") or x.dtype.kind not in "fiu":
            raise EestudyError(f"x: is of {x.dtype}; the network takes {self._dtype}, normalized as in training")
        logits = np.empty((len(x), self.num_classes), np.float32)
        exit_index = np.full(len(x), self.num_exits)
        inside = np.arange(len(x))
        # By name: the state, and what the heads hand on.
        values: dict[str, np.ndarray] = {"state_0": np.ascontiguousarray(x, self._dtype)}
        history: list[np.ndarray] = []
        for number, session, inputs, outputs in zip(self._numbers, self._sessions, self._inputs, self._outputs):
            if not len(inside):
                break
            found = session.run(outputs, {name: values[name] for name in inputs})
            gives = dict(zip(outputs, found, strict=True))
            history.append(gives["logits"])
            values = handed_on(gives)
            if number == self.num_exits:
                leaves = np.ones(len(inside), dtype=bool)
            else:
                temperature = self.temperatures[number - 1] if self.temperatures else None
                leaves = score(history, self.rule, self.k, temperature) > self.thresholds[number - 1]
            if not leaves.any():
                continue
            logits[inside[leaves]], exit_index[inside[leaves]] = history[-1][leaves], number
            inside, history = inside[~leaves], [each[~leaves] for each in history]
            values = {name: value[~leaves] for name, value in values.items()}
        return logits, exit_index


def handed_on(gives: dict[str, Any]) -> dict[str, Any]:
    """The outputs of an exit, by name -> the inputs of the next one: the state's tensors, then `previous`."""
    following = {name.removeprefix("next_"): value for name, value in gives.items() if name != "logits"}
    return {**following, "previous": following.get("previous", gives["logits"])}


def score(history: list[np.ndarray], rule: str, k: int | None = None, temperature: float | None = None) -> np.ndarray:
    """Logits (b, C) of exits 1..k -> the score (b,) float64 of `evaluation.rules`, by numpy."""
    last = history[-1].astype(np.float32)
    if temperature is not None:
        last = (last.astype(np.float64) / temperature).astype(np.float32)
    if last.shape[1] == 1:
        needed_changes = 1 if k is None else k
        if len(history) <= needed_changes:
            return np.full(len(last), TOO_EARLY)
        seen = history[len(history) - 1 - needed_changes :]
        changes = [abs(after[:, 0] - before[:, 0]) for before, after in pairwise(seen)]
        return -np.max([np.zeros(len(last)), *changes], axis=0)
    if rule == "patience":
        same = np.array([logits.argmax(1) == last.argmax(1) for logits in reversed(history)])
        return np.cumprod(same, axis=0).sum(axis=0).astype(np.float64)
    if rule == "every-label":
        return (1 / (1 + np.exp(-abs(last).min(1)))).astype(np.float64)
    shifted = last - last.max(1, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(1)
    if rule == "entropy":
        return ((shifted * powers).sum(1) / total - np.log(total)).astype(np.float64)
    probabilities = powers / total[:, None]
    if rule == "margin":
        second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
        return (first - second).astype(np.float64)
    return probabilities.max(1).astype(np.float64)
