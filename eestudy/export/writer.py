"""What `export` writes: each exit of a network as a torch.export program and as ONNX, and what to know of them."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from eestudy.config import EestudyError
from eestudy.environment import say
from eestudy.evaluation import ExitRule
from eestudy.export.one_file import FILES, build
from eestudy.export.runner import FORMAT, MANIFEST, handed_on
from eestudy.extras import needed
from eestudy.models import MultiExit, exit_costs
from eestudy.models.times import noise

# What an export puts into its folder, and takes away from it before.
OURS = (MANIFEST, "exit_*.pt2", "exit_*.onnx", *FILES.values(), "deployed.json", "weights.safetensors")
EXAMPLE = 3  # samples in the batch that is traced: sizes 0 and 1 would be taken for constants


class ExitProgram(nn.Module):
    """What computes an exit from where the one before left: state in, next state and logits out.

    Tensors in and out stand in a row: those of the state, then `previous` if there was a head before. `outputs` names
    what comes out, "next_" before what is an input of the next program; what the head hands on is left out where it is
    the logits themselves. The last exit gives logits alone.
    """

    def __init__(self, model: MultiExit, exit: int) -> None:
        super().__init__()
        self.model = _needed(model, exit)
        self.exit = exit
        self.stages = model.stages_to(exit)
        self.outputs: list[str] = []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given, previous = (tensors, None) if self.exit == 1 else (tensors[:-1], tensors[-1])
        state = self.model.advance(self.exit, given[0] if len(given) == 1 else given)
        logits, for_next = self.model.answer(self.exit, state, previous)
        if self.exit == self.model.num_exits:
            self.outputs = ["logits"]
            return (logits,)
        flat = (state,) if isinstance(state, Tensor) else tuple(state)
        self.outputs = [*(f"next_state_{number}" for number in range(len(flat))), "logits"]
        if for_next is logits:
            return (*flat, logits)
        self.outputs.append("next_previous")
        return (*flat, logits, for_next)


def _needed(model: MultiExit, exit: int) -> MultiExit:
    """The same modules, without those that an exit does not run: a program holds the weights of all it is given."""
    kept, backbone, stages = copy.copy(model), copy.copy(model.backbone), model.stages_to(exit)
    kept._modules, backbone._modules = dict(model._modules), dict(model.backbone._modules)
    backbone.stages = nn.ModuleList(
        stage if number in stages else nn.Identity() for number, stage in enumerate(model.backbone.stages, 1)
    )
    if exit < model.num_exits:
        backbone.classifier = nn.Identity()
    kept.backbone = backbone
    kept.heads = nn.ModuleDict({name: head for name, head in model.heads.items() if int(name) in stages})
    return kept


def programs(model: MultiExit) -> list[ExitProgram]:
    """One an exit, in order."""
    return [ExitProgram(model, exit) for exit in range(1, model.num_exits + 1)]


def write(
    model: MultiExit, folder: Path, rule: ExitRule, forms: Sequence[str], kept: Sequence[int] | None = None
) -> Path:
    """See `eestudy.export.export`. kept: which exits of a larger network, whose rule it is, the model's own are."""
    for package in ("onnx", "onnxscript") if forms else ():
        needed(package, "export")
    _check(model, rule, folder, kept)
    kept = kept or range(1, model.num_exits + 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EestudyError(f"folder: {folder} cannot be made ({error.strerror})") from None
    for pattern in OURS:
        for old in folder.glob(pattern):
            old.unlink()
    plain = copy.deepcopy(model).cpu().requires_grad_(False).to(memory_format=torch.contiguous_format)
    costs = exit_costs(plain)
    example = noise(plain.backbone.dry_input(EXAMPLE))
    given: tuple[Tensor, ...] = (example,)
    names, exits = ["state_0"], []
    for exit, number, program in zip(range(model.num_exits), kept, programs(plain), strict=True):
        with torch.no_grad():
            gives = program(*given)
        onnx = _save(program, given, names, folder / f"exit_{number}", bool(forms))
        exits.append({
            "exit": number, "onnx": onnx, "program": f"exit_{number}.pt2", "stages": list(program.stages),
            "inputs": names, "outputs": list(program.outputs),
            "flops": costs.flops[exit], "params": costs.params[exit],
        })  # fmt: skip
        following = handed_on(dict(zip(program.outputs, gives, strict=True)))
        names, given = list(following), tuple(following.values())
    thresholds = [rule.threshold(k) for k in range(1, kept[-1] + 1)]
    facts: dict[str, Any] = {
        "format": FORMAT,
        "input_shape": list(model.input_shape),
        "input_dtype": str(model.backbone.input_dtype).removeprefix("torch."),
        "num_classes": model.num_classes,
        # JSON has no infinity: "inf" and "-inf" as text.
        "rule": {"name": rule.name, "thresholds": [t if math.isfinite(t) else str(t) for t in thresholds], "k": rule.k,
                 "temperatures": rule.temperatures},
        "backbone_flops": costs.backbone,
        "exits": exits,
        "torch": torch.__version__,
    }  # fmt: skip
    facts["one_file"] = [_one_file(form, folder, facts, plain, example) for form in forms if form != "each"]
    # Last: a folder with it is whole.
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return folder


@torch.no_grad()
def _one_file(form: str, folder: Path, facts: dict[str, Any], model: MultiExit, example: Tensor) -> str | None:
    """The name of the file, None (said aloud) where it cannot be written or gives another answer than PyTorch."""
    lacking = [each["exit"] for each in facts["exits"] if not each["onnx"]]
    file = folder / FILES[form]
    try:
        if lacking:
            raise EestudyError(f"exit {lacking[0]} has no ONNX file")
        build(folder, facts, form)
        if form == "all" and find_spec("onnxruntime"):
            session = needed("onnxruntime", "export").InferenceSession(str(file), providers=["CPUExecutionProvider"])
            for number, found, logits in zip(facts["exits"], session.run(None, {"x": example.numpy()}), model(example)):
                if not np.allclose(found, logits, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
                    raise EestudyError(f"exit {number['exit']} gives other logits in it than in PyTorch")
    except Exception as error:  # noqa: BLE001 - what is written already is of use without
        file.unlink(missing_ok=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        say(f"export: {file.name} was not written ({reason})")
        return None
    return file.name


def _check(model: MultiExit, rule: ExitRule, folder: Path, kept: Sequence[int] | None) -> None:
    if not isinstance(model, MultiExit):
        raise EestudyError(
            f"export: give a MultiExit, got {type(model).__name__}; add_exits(model, after=[...]) makes one"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise EestudyError(f"folder: {folder} holds other files than an export; give a new one")
    if model.training:
        raise EestudyError("export: the model is in training mode; call model.eval() first")
    if not isinstance(rule, ExitRule):
        raise EestudyError(f"rule: {rule!r} cannot be written down; give one of eestudy.evaluation's, as per_exit(...)")
    rule.check_exits(kept[-1] if kept else model.num_exits)
    rule.check_answers(model.multi_label)
    rule.rule_for(model.num_classes)
    other = {str(tensor.dtype) for tensor in model.parameters() if tensor.dtype != torch.float32}
    if other:
        raise EestudyError(f"export: weights are {', '.join(sorted(other))}; export float32: model.float()")


def _pooled(x: Tensor, sizes: Sequence[int], reduce: Callable[[Tensor, int, bool], Tensor]) -> Tensor:
    """Adaptive pooling of the last dimensions to `sizes` by windows: ONNX has none where a side is no multiple."""
    for dim, size in enumerate(sizes, x.ndim - len(sizes)):
        side = x.shape[dim]
        if side % size == 0:
            x = reduce(x.unflatten(dim, (size, side // size)), dim + 1, False)
            continue
        ends = [(number * side // size, -(-(number + 1) * side // size)) for number in range(size)]
        x = torch.cat([reduce(x.narrow(dim, first, end - first), dim, True) for first, end in ends], dim)
    return x


def _max_pooled(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    values = _pooled(x, sizes, torch.amax)
    return values, torch.zeros_like(values, dtype=torch.int64)  # where each was: nobody reads it


def _mean_pooled(x: Tensor, sizes: Sequence[int]) -> Tensor:
    return _pooled(x, sizes, torch.mean)


IN_WINDOWS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.adaptive_max_pool2d.default: _max_pooled,
    torch.ops.aten.adaptive_max_pool1d.default: _max_pooled,
    torch.ops.aten.adaptive_avg_pool2d.default: _mean_pooled,
    torch.ops.aten.adaptive_avg_pool1d.default: _mean_pooled,
}


def _save(
    exit_program: ExitProgram, given: tuple[Tensor, ...], inputs: list[str], path: Path, onnx: bool
) -> str | None:
    """Writes both forms of an exit; returns the name of the ONNX file, None (said aloud) where it cannot be written."""
    batch, outputs = torch.export.Dim("batch", min=1), list(exit_program.outputs)
    with _quiet():
        try:
            program = torch.export.export(
                exit_program, given, dynamic_shapes={"tensors": tuple({0: batch} for _ in given)}
            )
        except (UserError, ConstraintViolationError) as error:
            stages = ", ".join(map(str, exit_program.stages))
            raise EestudyError(
                f"export: {path.name} (stages {stages}) cannot be followed with a free batch; write x.shape[0] for "
                f"len(x), no Python if on values ({str(error).splitlines()[0]})"
            ) from error
        torch.export.save(program, path.with_suffix(".pt2"))
        if not onnx:
            return None
        try:
            torch.onnx.export(
                program.run_decompositions(IN_WINDOWS), (), path.with_suffix(".onnx"), input_names=inputs,
                output_names=outputs, dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001 - whatever the exporter lacks; the other exits are still of use
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
            say(f"export: {path.name}.onnx was not written ({reason.strip()}); {path.name}.pt2 was")
            return None
    return f"{path.name}.onnx"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on their own workings; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
