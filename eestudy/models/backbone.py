"""A backbone: stages in a row, a classifier at the end, and what a head reads after each stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError

# What `features` gives: maps (B, C, H, W), sequence (B, C, L), tokens (B, T, D), vector (B, D).
KINDS = {"maps": 4, "sequence": 3, "tokens": 3, "vector": 2}


class Backbone(nn.Module):
    """`stages`, each state -> state, then `classifier`, state -> logits (B, C).

    The first stage takes the input (B, *input_shape). A head after stage l (from 1) reads `features(state)`, which
    `kind` describes; the default takes the state itself.
    """

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
        self.kind = kind
        if not len(self.stages):
            raise EestudyError("stages: the list is empty; a backbone needs at least one stage")
        if kind not in KINDS:
            raise EestudyError(f"kind: unknown name {kind!r}; valid: {', '.join(KINDS)}")

    @classmethod
    def from_stages(
        cls,
        stages: Iterable[nn.Module],
        classifier: nn.Module,
        input_shape: Iterable[int],
        kind: str | None = None,
    ) -> Backbone:
        """A user's own backbone. One dry run finds the number of classes, and the kind where it is not ambiguous.

        Three-dimensional features may be a sequence (B, C, L) or tokens (B, T, D): say which with `kind`.
        Raises EestudyError when the dry run fails or gives something that is not logits (B, C).
        """
        stages, input_shape = list(stages), tuple(input_shape)
        state, kinds = _dry_input(input_shape), []
        for number, stage in enumerate(stages, 1):
            try:
                state = _evaluated(stage, state)
            except Exception as error:
                raise EestudyError(f"stages: stage {number} does not take what it is given: {error}") from error
            kinds = [name for name, dims in KINDS.items() if isinstance(state, Tensor) and state.ndim == dims]
        if kind is None:
            if len(kinds) != 1:
                raise EestudyError(f"kind: cannot be told from the last stage; give one of {', '.join(KINDS)}")
            kind = kinds[0]
        logits = _evaluated(classifier, state)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise EestudyError("classifier: expected logits of shape (B, C)")
        return cls(stages, classifier, input_shape, logits.shape[1], kind)

    def features(self, state: Any) -> Tensor:
        """What a head reads: maps (B, C, H, W), a sequence (B, C, L), tokens (B, T, D) or vectors (B, D).

        A state that is a tuple keeps its features first; a backbone for which that is not so has its own `features`.
        """
        return state[0] if isinstance(state, tuple) else state

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *input_shape) -> logits (B, C)."""
        for stage in self.stages:
            x = stage(x)
        return self.classifier(x)

    def feature_shapes(self) -> list[tuple[int, ...]]:
        """The shape of the features after each stage, without the batch, found by one dry run."""
        shapes = []
        state = _dry_input(self.input_shape)
        for stage in self.stages:
            state = _evaluated(stage, state)
            shapes.append(tuple(self.features(state).shape[1:]))
        return shapes


def _dry_input(input_shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(1, *input_shape)


@torch.no_grad()
def _evaluated(module: nn.Module, state: Tensor) -> Tensor:
    training = module.training
    try:
        return module.eval()(state)
    finally:
        module.train(training)
