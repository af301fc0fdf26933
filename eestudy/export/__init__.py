"""A network for use elsewhere: one file an exit, and a runner that stops early and needs no torch.

`export` writes, for each exit k from 1 to K, what computes it from the state that the exit before left: the stages in
between and the head (at exit K the classifier), as a torch.export program (exit_k.pt2) and as ONNX (exit_k.onnx); and
exits.json: rule, thresholds, temperatures, shapes, names of inputs and outputs, FLOPs. The batch is free, a batch of
one included. `Runner` reads the folder with numpy and onnxruntime alone. `one_file` puts the exits into one ONNX file;
`deploy` chooses thresholds, temperatures and exits for a budget.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eestudy.config import check_name
from eestudy.export.one_file import FILES
from eestudy.export.runner import MANIFEST, Runner

if TYPE_CHECKING:
    from eestudy.evaluation import ExitRule
    from eestudy.export.deployed import Deployed, deploy
    from eestudy.models import MultiExit

FORMS = ("each", *FILES)

__all__ = ["FORMS", "MANIFEST", "Deployed", "Runner", "deploy", "export"]


def __getattr__(name: str) -> Any:
    if name in ("Deployed", "deploy"):  # with torch, so imported when it is first used
        return getattr(importlib.import_module(f"{__name__}.deployed"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def export(model: MultiExit, folder: str | Path, rule: ExitRule, onnx: str | Iterable[str] = "each") -> Path:
    """Writes the network and its rule to a folder, which is made; files of an earlier export are replaced.

    model: float32, in eval mode, left as it is. rule: an ExitRule with a threshold for each exit, or one for all.
    onnx: which files beside the torch programs, of FORMS: "each" (one an exit, for `Runner`; the others are made of
    them), "all" (all_exits.onnx, with the logits of every exit), "early" (early_exit.onnx, with the decisions inside,
    for one sample at a time); () for none, without the packages. What cannot be written is said, and stops no other.
    Raises EestudyError for a model in training mode or of another precision, for a rule that does not fit it, and for
    a package that is missing.
    """
    forms = [check_name("onnx", form, FORMS) for form in ([onnx] if isinstance(onnx, str) else onnx)]
    from eestudy.export.writer import write

    return write(model, Path(folder), rule, forms)
