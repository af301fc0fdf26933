"""What a model takes and gives, found by running it, and checked with real numbers before it is cut."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError, nearest
from eestudy.environment import say
from eestudy.models.backbone import device_of
from eestudy.models.cut.splitting import DRY_BATCH
from eestudy.models.cut.tracing import Whole

# Sides of an image tried in this order when nothing tells: ImageNet's, CIFAR's, MNIST's, Tiny-ImageNet's and on.
SIDES = (224, 32, 28, 64, 96, 128, 256, 384, 16, 8)


def check_module(model: object) -> None:
    """EestudyError for what is no module, or cannot be run on one tensor, copied or trained."""
    if not isinstance(model, nn.Module):
        raise EestudyError(f"model: give a torch.nn.Module, got {type(model).__name__}")
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [each for each in inspect.signature(model.forward).parameters.values() if each.kind in kinds]
    needed = [each.name for each in given if each.default is inspect.Parameter.empty]
    if len(needed) > 1:
        raise EestudyError(
            f"model: its forward needs {', '.join(needed)}; wrap it in a module whose forward takes one tensor"
        )
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise EestudyError("model: it was made inside torch.inference_mode, so nothing of it trains; make it outside")
    try:
        copy.deepcopy(model)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise EestudyError(f"model: it cannot be copied, as looking at it takes ({reason})") from error


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """The model's buffers are afterwards what they were: a counter does not count who looks at the model."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def dry_run(model: nn.Module, given: Iterable[int] | None, output: str | int | None) -> tuple[Whole, Tensor, Tensor]:
    """The model with its logits as output, an input (DRY_BATCH, ...) that goes through, its logits (DRY_BATCH, C)."""
    given = getattr(model, "input_shape", None) if given is None else given
    layers = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
    first = next((module for module in model.modules() if isinstance(module, layers)), None)
    shapes, likely = _likely_shapes(first)
    if given is not None:
        shapes = [tuple(given)] if isinstance(given, Iterable) else []
        if not shapes or not all(isinstance(side, int) and side > 0 for side in shapes[0]):
            raise EestudyError(f"input_shape: {given!r} is not valid; give one sample's, such as {likely}")
    generator = torch.Generator().manual_seed(0)
    failed = None
    for shape in shapes:
        if isinstance(first, nn.Embedding):
            x = torch.randint(first.num_embeddings, (DRY_BATCH, *shape), generator=generator)
        else:
            x = torch.randn(DRY_BATCH, *shape, generator=generator)
        x = x.to(device_of(model))
        try:
            whole = Whole(model, _output_of(model, x, output)).train(model.training)
            return whole, x, _logits(whole, x)
        except _DoesNotGoThrough as error:
            failed = failed or error
    if given is not None:
        raise EestudyError(f"input_shape: {shapes[0]} does not go through the model: {failed}") from failed
    tried = f"; {', '.join(map(str, shapes))} do not go through the model ({failed})" if shapes else ""
    raise EestudyError(f"input_shape: missing{tried}; give the shape of one sample, most likely {likely}") from failed


class _DoesNotGoThrough(Exception):
    """The model cannot take an input of that shape."""


@torch.no_grad()
def _run(model: nn.Module, x: Tensor) -> Any:
    try:
        return model(x.clone())  # it may change its input in place
    except Exception as error:
        raise _DoesNotGoThrough(str(error).strip().split("\n")[0] or type(error).__name__) from error


def _output_of(model: nn.Module, x: Tensor, given: str | int | None) -> str | int | None:
    """`output`, found where it is not given; None of a model that gives a tensor."""
    made = _run(model, x)
    if isinstance(made, Tensor):
        if given is not None:
            raise EestudyError(f"output: {given!r} is not valid: the model gives one tensor; leave output out")
        return None
    if isinstance(made, Mapping):
        there: dict[str | int, Any] = dict(made)
    elif isinstance(made, (tuple, list)):
        names = getattr(made, "_fields", range(len(made)))
        there = dict(zip(names, made, strict=True))
    elif hasattr(made, "__dict__"):
        there = dict(vars(made))
    else:
        return None
    if given is not None:
        if given not in there:
            raise EestudyError(f"output: unknown name {given!r}; {nearest(given, map(str, there))}")
        return given
    fitting = [
        name for name, value in there.items() if isinstance(value, Tensor) and value.ndim == 2 and len(value) == len(x)
    ]
    chosen = "logits" if "logits" in there else fitting[0] if len(fitting) == 1 else None
    if chosen is None:
        shown = ", ".join(f"{name!r} {_shape(value)}" for name, value in there.items())
        raise EestudyError(f"output: name which of the model's outputs are the logits: {shown}")
    say(f"model: of its outputs {chosen!r} is taken for the logits")
    return chosen


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """x (B, ...) -> logits (B, C), checked to be logits, one sample's independent of the others."""
    logits, alone = _run(model, x), _run(model, x[:1])
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EestudyError(f"model: expected logits of shape (B, C) from its forward, found {found} for B = {len(x)}")
    if alone.shape != logits[:1].shape:
        raise EestudyError(
            f"model: gives {tuple(alone.shape)} for one sample where {tuple(logits[:1].shape)} is needed, as all but "
            "one may have left; squeeze(dim) or flatten(1) keeps the batch where squeeze() does not"
        )
    _check_logits(model, x, logits)
    if not torch.allclose(logits[:1], alone, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise EestudyError(
            "model: what it gives for a sample is random or depends on the others in the batch, so none can leave early"
        )
    return logits


def _check_logits(model: nn.Module, x: Tensor, logits: Tensor) -> None:
    """EestudyError for probabilities, which a loss and every exit rule would take for logits."""
    if logits.shape[1] == 1 or logits.min() < 0 or logits.max() > 1:
        return
    if torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        raise EestudyError("model: gives probabilities that sum to 1; exits need logits: leave the last softmax out")
    with torch.enable_grad():  # what autograd notes tells a sigmoid from logits that happen to lie between 0 and 1
        node = model(1 * x.clone().requires_grad_(x.is_floating_point())).grad_fn
    for _ in range(4):  # behind a view or two
        if node is not None and node.name().startswith("Sigmoid"):
            raise EestudyError("model: gives numbers from 0 to 1, of a sigmoid; exits need logits: leave it out")
        node = node.next_functions[0][0] if node is not None and node.next_functions else None


def _likely_shapes(first: nn.Module | None) -> tuple[list[tuple[int, ...]], str]:
    """Shapes to try for a model with that first layer, and how to write one. A sequence has no usual length."""
    if isinstance(first, nn.Conv2d):
        return [(first.in_channels, side, side) for side in SIDES], f"({first.in_channels}, height, width)"
    if isinstance(first, nn.Conv1d):
        return [], f"({first.in_channels}, length)"
    if isinstance(first, nn.Linear):
        return [(first.in_features,)], f"({first.in_features},) or (tokens, {first.in_features})"
    return [], "(tokens,)" if isinstance(first, nn.Embedding) else "(channels, height, width)"
