"""A backbone with heads: all exits at once for training, one after another for use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.heads import Head, build_head
from eestudy.models.backbone import Backbone
from eestudy.models.cost import stage_flops

# Which stages get a head: "all" but the last, their numbers, {"every": n} or {"flops": [per cents of the backbone's]}.
Placement = Iterable[int] | str | Mapping[str, Any]
# Gets the logits (b, C) of exits 1..k of the samples still inside; says who leaves at exit k, bool (b,).
Rule = Callable[[list[Tensor]], Tensor]


class MultiExit(nn.Module):
    """`backbone` with a head after each stage in `exits` (counted from 1); its own classifier is exit K, the last.

    exits: a Placement; head, layers, head_args: see `build_head`. Raises EestudyError for a stage that is not there,
    for the last one (its exit is the classifier) and for a backbone of one stage, which has no place for a head.
    """

    def __init__(
        self,
        backbone: Backbone,
        exits: Placement = "all",
        head: str = "auto",
        layers: int = 1,
        seed_of_head: Callable[[int], int] | None = None,
        head_args: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.exit_stages = exit_stages(exits, backbone)
        shapes = backbone.feature_shapes()
        if head == "auto":
            head = backbone.default_head or head
        self.heads = nn.ModuleDict()
        for stage in self.exit_stages:
            # A seed for each head: it starts the same whichever other heads there are.
            with torch.random.fork_rng(devices=[], enabled=seed_of_head is not None):
                if seed_of_head:
                    torch.manual_seed(seed_of_head(stage))
                self.heads[str(stage)] = build_head(
                    head, backbone.kind, shapes[stage - 1], backbone.num_classes, layers, head_args,
                    first=stage == self.exit_stages[0],
                )  # fmt: skip

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.backbone.input_shape

    @property
    def num_classes(self) -> int:
        return self.backbone.num_classes

    @property
    def num_exits(self) -> int:
        return len(self.exit_stages) + 1

    @property
    def memory_format(self) -> torch.memory_format:
        """Of its convolutions' weights: the one its input should have too."""
        kernels = [weight for weight in self.parameters() if weight.ndim == 4 and not weight.is_contiguous()]
        return torch.channels_last if kernels else torch.contiguous_format

    def head(self, stage: int) -> Head:
        """The head after a stage (from 1)."""
        return cast(Head, self.heads[str(stage)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, *input_shape) -> K logits (B, C), one an exit."""
        logits: list[Tensor] = []
        state = x
        for number, stage in enumerate(self.backbone.stages, 1):
            state = stage(state)
            if str(number) in self.heads:
                features = self.backbone.features(state)
                logits.append(self.head(number)(features, logits[-1] if logits else None))
        return [*logits, self.backbone.classifier(state)]

    def reduced_features(self, x: Tensor) -> list[Tensor]:
        """x (B, *input_shape) -> what each head reads of its stage (`Head.reduce`), K-1 tensors, batch first."""
        reduced, state = [], x
        for number, stage in enumerate(self.backbone.stages[: self.exit_stages[-1]], 1):
            state = stage(state)
            if str(number) in self.heads:
                reduced.append(self.head(number).reduce(self.backbone.features(state)))
        return reduced

    def head_logits(self, reduced: list[Tensor]) -> list[Tensor]:
        """What `reduced_features` gave -> logits (B, C) of the internal exits, K-1 of them."""
        logits: list[Tensor] = []
        for stage, features in zip(self.exit_stages, reduced, strict=True):
            logits.append(self.head(stage).read(features, logits[-1] if logits else None))
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
            history.append(self.head(number)(features, history[-1] if history else None))
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


def exit_stages(exits: Placement, backbone: Backbone) -> tuple[int, ...]:
    """The stages that get a head, checked against those there are."""
    num_stages = len(backbone.stages)
    if num_stages < 2:
        raise EestudyError(f"exits: the backbone has {num_stages} stage, so there is no place for an early exit")
    if isinstance(exits, Mapping) and "flops" in exits:
        return _at_flops(exits["flops"], backbone)
    if isinstance(exits, Mapping):
        stages = tuple(range(exits["every"], num_stages, exits["every"]))
    else:
        stages = tuple(range(1, num_stages)) if exits == "all" else tuple(sorted(int(stage) for stage in exits))
    wrong = [stage for stage in stages if not 1 <= stage < num_stages]
    if wrong or not stages or len(set(stages)) < len(stages):
        shown = dict(exits) if isinstance(exits, Mapping) else list(stages)
        raise EestudyError(
            f"exits: {shown} is not valid for {num_stages} stages; "
            f"give 'all' or different stages from 1 to {num_stages - 1} (the last exit is the backbone's classifier)"
        )
    return stages


def _at_flops(shares: Iterable[float], backbone: Backbone) -> tuple[int, ...]:
    """For each per cent of the backbone's FLOPs the stage after which nearest to it is spent (Kaya et al. 2019)."""
    *stages, classifier = stage_flops(backbone)
    whole = sum(stages) + classifier
    spent = [100 * sum(stages[:number]) / whole for number in range(1, len(stages))]
    taken: dict[int, float] = {}
    for share in shares:
        stage = 1 + min(range(len(spent)), key=lambda place: abs(spent[place] - share))
        if stage in taken:
            raise EestudyError(
                f"exits: flops: {taken[stage]:g} % and {share:g} % both fall on stage {stage} "
                f"({spent[stage - 1]:.1f} %); leave one of them out"
            )
        taken[stage] = share
    return tuple(sorted(taken))
