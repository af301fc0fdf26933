"""A backbone: stages in a row, a classifier at the end, and what a head reads after each stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eestudy.config import EestudyError, check_name

# What `features` gives: maps (B, C, H, W), sequence (B, C, L), tokens (B, T, D), vector (B, D).
KINDS = {"maps": 4, "sequence": 3, "tokens": 3, "vector": 2}


class Backbone(nn.Module):
    """`stages`, each state -> state, then `classifier`, state -> logits (B, C).

    The first stage takes the input (B, *input_shape). A head after stage l (from 1) reads `features(state)`, which
    `kind` describes; the default takes the state itself. `default_head` names the head that belongs to the backbone
    where it is not the one of its kind.
    """

    default_head: str | None = None
    # Whether it is a user's, whose default heads may not outweigh it; those by name keep their published heads.
    own: bool = True
    # Of what the first stage takes: torch.int64 for token ids.
    input_dtype: torch.dtype = torch.float32

    def __init__(
        self,
        stages: Iterable[nn.Module],
        classifier: nn.Module,
        input_shape: Iterable[int],
        num_classes: int,
        kind: str,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.classifier = classifier
        self.input_shape = tuple(input_shape)
        self.num_classes = num_classes
        self.kind = check_name("kind", kind, KINDS)
        if not len(self.stages):
            raise EestudyError("stages: the list is empty; a backbone needs at least one stage")

    @classmethod
    def from_stages(
        cls, stages: Iterable[nn.Module], classifier: nn.Module, input_shape: Iterable[int], kind: str | None = None,
        input_dtype: torch.dtype = torch.float32,
    ) -> Backbone:  # fmt: skip
        """A user's own backbone. One dry run finds the number of classes, and the kind where it is not ambiguous.

        A stage may give a tuple of tensors, batch first in each; heads read the first. Three-dimensional features may
        be a sequence (B, C, L) or tokens (B, T, D): say which with `kind`. What the last stage gives, which only the
        classifier reads, may be of another kind. input_dtype: torch.int64 for token ids.
        Raises EestudyError when the dry run fails, when stages give features of different kinds or none, and when the
        classifier gives something that is not logits (B, C).
        """
        stages, input_shape, shapes = list(stages), tuple(input_shape), []
        if not stages:
            raise EestudyError("stages: the list is empty; a backbone needs at least one stage")
        state: Any = torch.zeros(1, *input_shape, dtype=input_dtype, device=device_of(nn.ModuleList(stages)))
        for number, stage in enumerate(stages, 1):
            state = _tried(stage, state, f"stages: stage {number}")
            features = state[0] if isinstance(state, tuple) else state
            if not isinstance(features, Tensor):
                given = type(features).__name__
                raise EestudyError(f"stages: stage {number} gives a {given}; expected a tensor or a tuple of them")
            shapes.append(tuple(features.shape))
        read = shapes[:-1] or shapes
        fitting = [name for name, dims in KINDS.items() if all(len(shape) == dims for shape in read)]
        if not fitting:
            raise EestudyError(f"stages: expected features of one kind ({', '.join(KINDS)}), found shapes {read}")
        if kind is None and len(fitting) > 1:
            raise EestudyError(f"kind: cannot be told from features of shape {read[0]}; give {' or '.join(fitting)}")
        if kind is not None and check_name("kind", kind, KINDS) not in fitting:
            raise EestudyError(f"kind: {kind!r} does not fit features of shape {read[0]}; valid: {', '.join(fitting)}")
        logits = _tried(classifier, state, "classifier: it")
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise EestudyError("classifier: expected logits of shape (B, C)")
        backbone = cls(stages, classifier, input_shape, logits.shape[1], kind or fitting[0])
        backbone.input_dtype = input_dtype
        return backbone

    def dry_input(self, batch: int = 1) -> Tensor:
        """Zeros (batch, *input_shape) of the type the first stage takes, on the backbone's device."""
        return torch.zeros(batch, *self.input_shape, dtype=self.input_dtype, device=device_of(self))

    def features(self, state: Any) -> Tensor:
        """What a head reads, see KINDS. A state that is a tuple has it first, or the backbone its own `features`."""
        return state[0] if isinstance(state, tuple) else state

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *input_shape) -> logits (B, C)."""
        for stage in self.stages:
            x = stage(x)
        return self.classifier(x)

    def feature_shapes(self) -> list[tuple[int, ...]]:
        """The shape of the features after each stage, without the batch."""
        shapes = []
        state: Any = self.dry_input()
        with mode(self, False), torch.no_grad():
            for stage in self.stages:
                state = stage(state)
                shapes.append(tuple(self.features(state).shape[1:]))
        return shapes


def device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def stage_flops(backbone: Backbone) -> list[int]:
    """FLOPs of one sample in each stage, and in the classifier, which comes last."""
    state: Any = backbone.dry_input()
    counts = []
    with mode(backbone, False):
        for module in (*backbone.stages, backbone.classifier):
            state, flops = counted(module, state)
            counts.append(flops)
    return counts


@torch.no_grad()
def counted(call: Callable[..., Any], *inputs: Any) -> tuple[Any, int]:
    """What a call gives, and its FLOPs by torch's own counter: a multiply and an add count as two."""
    with flop_counter() as counter:
        result = call(*inputs)
    return result, counter.get_total_flops()


def flop_counter() -> FlopCounterMode:
    """torch's counter, which leaves out the fused LSTM that a processor runs; here it counts, its backward twice.

    Of the whole alone: to tell modules apart it hooks on their inputs' gradients, which fails without gradients where a
    module is given a parameter.
    """
    layers = torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten.mkldnn_rnn_layer_backward
    mapping = {layers[0]: _lstm_flops, layers[1]: _lstm_backward_flops}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    return counter


class _Whole(nullcontext[None]):
    parents = frozenset({"Global"})


def _lstm_flops(x: tuple[int, int, int], weight: tuple[int, int], *_: Any, **__: Any) -> int:
    """x: shape (T, B, inputs); weight: (4 x width, inputs), of the gates' inputs."""
    steps, batch, inputs = x
    return 2 * steps * batch * weight[0] * (inputs + weight[0] // 4)


def _lstm_backward_flops(*given: Any, **__: Any) -> int:
    return 2 * _lstm_flops(*given)


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All of `model` in one mode; afterwards each module in the one it had."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


@torch.no_grad()
def _tried(module: nn.Module, state: Any, name: str) -> Any:
    try:
        with mode(module, False):
            return module(state)
    except Exception as error:
        raise EestudyError(f"{name} does not take what it is given: {error}") from error
