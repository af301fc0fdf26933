"""Where a model can get exits, found by cutting it: for who does not know its modules' names."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.models.backbone import flop_counter, mode
from eestudy.models.cut.any_model import add_exits, from_model
from eestudy.models.cut.dry_run import as_it_was, check_module, dry_run
from eestudy.models.multi_exit import MultiExit

TRIES = 6  # places near a share that are tried
NEAR = 0.08  # of the model: places so near to each other are told apart by what they are
PASSES = 5  # that are timed
EARLY = 0.03  # less of a model behind a place than this leaves nothing to save


def exits_at(
    model: nn.Module, shares: Iterable[float], by: str = "flops", input_shape: Iterable[int] | None = None,
) -> tuple[MultiExit, list[str]]:  # fmt: skip
    """`add_exits` near these shares (0 to 1) of the model's FLOPs, or of its time here (by="time"); and the names.

    Of the modules that end near a share, the outermost that can be cut is taken, all of one kind of features. Raises
    EestudyError where no place can be cut, with the reason of the last one.
    """
    check_module(model)
    ends = _ends(model, by, input_shape)
    blocks = {name for name, module in model.named_modules() if any(True for _ in module.children())}

    def near(share: float) -> list[str]:
        """A block's end before a layer's inside it, unless that is much nearer."""
        apart = {name: abs(end - share) for name, end in ends.items()}
        order = sorted(
            ends, key=lambda name: (int(apart[name] / NEAR), name not in blocks, name.count("."), apart[name])
        )
        return order[:TRIES]

    wanted = [near(share) for share in shares]
    taken, reason = list(dict.fromkeys(names[0] for names in wanted if names)), "no module of it is called once"
    if len(taken) < len(wanted) or _fails(model, taken, input_shape):
        taken = []
        for names in wanted:
            for name in names:
                if name not in taken and not (failed := _fails(model, [*taken, name], input_shape)):
                    taken.append(name)
                    break
                reason = failed or reason
    if not taken:
        raise EestudyError(
            f"model: no place for an exit was found ({reason}); name some: add_exits(model, after=[...])"
        )
    taken.sort(key=ends.__getitem__)
    return add_exits(model, taken, input_shape), taken


def _fails(model: nn.Module, names: list[str], input_shape: Iterable[int] | None) -> str:
    """Why it cannot be cut at these places; empty if it can."""
    try:
        from_model(model, names, input_shape)
    except EestudyError as error:
        return str(error)
    return ""


@torch.no_grad()
def _ends(model: nn.Module, by: str, input_shape: Iterable[int] | None) -> dict[str, float]:
    """Modules that are called once and give a tensor: the share of all FLOPs, or of the time, that is spent then."""
    with mode(model, False), as_it_was(model):
        whole, x, _ = dry_run(model, input_shape, None)
        names = {module: name for name, module in model.named_modules(remove_duplicate=True) if name}
        spent: dict[str, list[float]] = {}
        totals: list[float] = []
        counter = flop_counter()

        def note(module: nn.Module, given: object, result: object) -> None:
            first = result[0] if isinstance(result, tuple) and result else result  # of a recurrent layer
            if isinstance(first, Tensor) and first.ndim > 1:
                now = time.perf_counter() - began if by == "time" else float(counter.get_total_flops())
                spent.setdefault(names[module], []).append(now)

        hooks = [module.register_forward_hook(note) for module in names]
        passes = PASSES if by == "time" else 1
        try:
            for _ in range(passes):
                began = time.perf_counter()
                if by == "time":
                    whole(x[:1])
                    totals.append(time.perf_counter() - began)
                else:
                    with counter:
                        whole(x[:1])
                    totals.append(float(counter.get_total_flops()))
        finally:
            for hook in hooks:
                hook.remove()
    total = float(np.median(totals))
    shares = {name: float(np.median(values)) / total for name, values in spent.items() if len(values) == passes}
    return {name: share for name, share in shares.items() if EARLY <= share <= 1 - EARLY}
