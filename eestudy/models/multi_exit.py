"""A backbone with heads: all exits at once for training, one after another for use."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.heads import build_head
from eestudy.models.backbone import Backbone

# Gets the logits (b, C) of exits 1..k of the samples still inside; says who leaves at exit k, bool (b,).
Rule = Callable[[list[Tensor]], Tensor]


class MultiExit(nn.Module):
    """`backbone` with a head after each stage in `exits` (counted from 1); its own classifier is exit K, the last.

    exits: "all" (every stage but the last) or stage numbers. Raises EestudyError for a stage that is not there, for
    the last one (its exit is the classifier) and for a backbone of one stage, which has no place for a head.
    """

    def __init__(
        self,
        backbone: Backbone,
        exits: Iterable[int] | str = "all",
        head: str = "auto",
        layers: int = 1,
        seed_of_head: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.exit_stages = exit_stages(exits, len(backbone.stages))
        shapes = backbone.feature_shapes()
        self.heads = nn.ModuleDict()
        for stage in self.exit_stages:
            # A seed for each head: it starts the same whichever other heads there are.
            with torch.random.fork_rng(devices=[], enabled=seed_of_head is not None):
                if seed_of_head:
                    torch.manual_seed(seed_of_head(stage))
                self.heads[str(stage)] = build_head(
                    head, backbone.kind, shapes[stage - 1], backbone.num_classes, layers
                )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.backbone.input_shape

    @property
    def num_classes(self) -> int:
        return self.backbone.num_classes

    @property
    def num_exits(self) -> int:
        return len(self.exit_stages) + 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, *input_shape) -> K logits (B, C), one an exit."""
        logits: list[Tensor] = []
        state = x
        for number, stage in enumerate(self.backbone.stages, 1):
            state = stage(state)
            if str(number) in self.heads:
                features = self.backbone.features(state)
                logits.append(self.heads[str(number)](features, logits[-1] if logits else None))
        return [*logits, self.backbone.classifier(state)]

    def reduced_features(self, x: Tensor) -> list[Tensor]:
        """x (B, *input_shape) -> what each head reads of its stage (`Head.reduce`), K-1 tensors, batch first."""
        reduced, state = [], x
        for number, stage in enumerate(self.backbone.stages[: self.exit_stages[-1]], 1):
            state = stage(state)
            if str(number) in self.heads:
                reduced.append(self.heads[str(number)].reduce(self.backbone.features(state)))
        return reduced

    def head_logits(self, reduced: list[Tensor]) -> list[Tensor]:
        """What `reduced_features` gave -> logits (B, C) of the internal exits, K-1 of them."""
        logits: list[Tensor] = []
        for stage, features in zip(self.exit_stages, reduced, strict=True):
            logits.append(self.heads[str(stage)].read(features, logits[-1] if logits else None))
        return logits

    @torch.no_grad()
    def predict(self, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """Early-exit inference: a sample that leaves is dropped from the batch, later stages see only the rest.

        Returns the logits (B, C) each sample left with and its exit_index (B,) in 1..K. Call it in eval mode.
        """
        inside = torch.arange(len(x), device=x.device)
        exit_index = torch.full((len(x),), self.num_exits, device=x.device)
        final = torch.empty(0)
        history: list[Tensor] = []
        state: Tensor | tuple[Tensor, ...] = x
        for number, stage in enumerate(self.backbone.stages, 1):
            state = stage(state)
            if str(number) not in self.heads:
                continue
            features = self.backbone.features(state)
            history.append(self.heads[str(number)](features, history[-1] if history else None))
            if not len(final):
                final = history[-1].new_empty(len(x), self.num_classes)
            leaves = rule(history)
            final[inside[leaves]] = history[-1][leaves]
            exit_index[inside[leaves]] = len(history)
            inside, state = inside[~leaves], _kept(state, ~leaves)
            history = [logits[~leaves] for logits in history]
            if not len(inside):
                return final, exit_index
        final[inside] = self.backbone.classifier(state)
        return final, exit_index


def _kept(state: Tensor | tuple[Tensor, ...], keep: Tensor) -> Tensor | tuple[Tensor, ...]:
    return state[keep] if isinstance(state, Tensor) else tuple(part[keep] for part in state)


def exit_stages(exits: Iterable[int] | str, num_stages: int) -> tuple[int, ...]:
    """The stages that get a head, checked against how many there are."""
    if num_stages < 2:
        raise EestudyError(f"exits: the backbone has {num_stages} stage, so there is no place for an early exit")
    stages = tuple(range(1, num_stages)) if exits == "all" else tuple(sorted(int(stage) for stage in exits))
    wrong = [stage for stage in stages if not 1 <= stage < num_stages]
    if wrong or not stages or len(set(stages)) < len(stages):
        raise EestudyError(
            f"exits: {list(stages)} is not valid for {num_stages} stages; "
            f"give 'all' or different stages from 1 to {num_stages - 1} (the last exit is the backbone's classifier)"
        )
    return stages
