"""A backbone with heads: all exits at once for training, one after another for use.

`MultiExit.advance` and `MultiExit.answer` are the one definition of the way from exit to exit: every forward pass,
early exit, the count of FLOPs, the cached features of a frozen backbone and exported programs go it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.environment import say
from eestudy.models.backbone import Backbone, counted, mode, stage_flops
from eestudy.models.heads import POOLED_SIZE, Head, build_head
from eestudy.models.own_heads import CLASSIFIER, Heads, own_heads

# Which stages get a head: "all" but the last, their numbers, {"every": n} or {"flops": [per cents of the backbone's]}.
Placement = Iterable[int] | str | Mapping[str, Any]
LARGEST_SHARE = 0.1  # of the parameters of a backbone of one's own that a default head's last layer may have
# Gets the logits (b, C) of exits 1..k of the samples still inside; says who leaves at exit k, bool (b,).
Rule = Callable[[list[Tensor]], Tensor]


class MultiExit(nn.Module):
    """`backbone` with a head after each stage in `exits` (counted from 1); its own classifier is exit K, the last.

    exits: a Placement; head, layers, head_args: see `build_head`. head may also be of your own: a function of the shape
    of a sample's features and the number of classes that gives a torch module, a list of one module an exit, or one
    module that all exits share, as "classifier" is, the backbone's own. Raises EestudyError for a stage that is not
    there, for the last one (its exit is the classifier), for a backbone of one stage, which has no place for a head,
    and for a head that does not give logits (B, C), each sample's by itself.
    last_exit_boost: share of the answer before that comes on top of the classifier's (a boosted network's; 0 without).
    multi_label: whether logits (B, C) are of labels, of which a sample may have several, or of classes; None: unknown.
    frozen: names of parameters, and of modules with their statistics, that no training changes (`frozen_by_user`).
    """

    last_exit_boost: float = 0.0
    multi_label: bool | None = None
    frozen: frozenset[str] = frozenset()

    def __init__(
        self, backbone: Backbone, exits: Placement = "all", head: Heads = "auto", layers: int = 1,
        seed_of_head: Callable[[int], int] | None = None, head_args: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise EestudyError(
                f"backbone: give a Backbone, got {type(backbone).__name__}; add_exits(model, after=[...]) makes a "
                "network with exits from any model"
            )
        if exits != "all" and not isinstance(exits, Mapping):
            given: list[Any] = [exits] if isinstance(exits, str) or not isinstance(exits, Iterable) else list(exits)
            exits = given
            if not all(isinstance(stage, int | np.integer) for stage in given):
                raise EestudyError(f"exits: {given} is not valid; give 'all', or stages counted from 1, such as [2, 4]")
        self.backbone = backbone
        self.exit_stages = exit_stages(exits, backbone)
        shapes = backbone.feature_shapes()
        sides: dict[int, int] = {}
        if head == "auto":
            head = backbone.default_head or head
            sides = _smaller_sides(backbone, {stage: shapes[stage - 1] for stage in self.exit_stages}, head_args or {})
        self.heads = nn.ModuleDict()
        if not isinstance(head, str) or head == CLASSIFIER:
            if layers != 1 or head_args:
                raise EestudyError("head_layers, head_args: have no effect on heads of your own")
            made = own_heads(head, backbone, self.exit_stages)
            self.heads.update({str(stage): each for stage, each in zip(self.exit_stages, made)})
            return
        for stage in self.exit_stages:
            # A seed for each head: it starts the same whichever other heads there are.
            with torch.random.fork_rng(devices=[], enabled=seed_of_head is not None):
                if seed_of_head:
                    torch.manual_seed(seed_of_head(stage))
                self.heads[str(stage)] = build_head(
                    head, backbone.kind, shapes[stage - 1], backbone.num_classes, layers,
                    {**(head_args or {}), "side": sides[stage]} if stage in sides else head_args,
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

    def stages_to(self, exit: int) -> range:
        """The numbers of the stages between the exit before and this one, both counted from 1."""
        ends = (0, *self.exit_stages, len(self.backbone.stages))
        return range(ends[exit - 1] + 1, ends[exit] + 1)

    def advance(self, exit: int, state: Any) -> Any:
        """The state at the exit before, for exit 1 the input (B, *input_shape) -> the state at this one."""
        for stage in self.stages_to(exit):
            state = self.backbone.stages[stage - 1](state)
        return state

    def answer(self, exit: int, state: Any, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (B, C) of an exit from its state, and what it hands on to the next as `previous` (`Head.answer`)."""
        if exit == self.num_exits:
            logits = self.boosted(self.backbone.classifier(state), previous)
            return logits, logits
        head = self.head(self.exit_stages[exit - 1])
        return head.answer(head.reduce(self.backbone.features(state)), previous)

    def boosted(self, logits: Tensor, previous: Tensor | None) -> Tensor:
        """The last exit's logits (B, C) from the classifier's own and what the last head handed on."""
        if not self.last_exit_boost or previous is None:
            return logits
        return logits + self.last_exit_boost * previous.detach()

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, *input_shape) -> K logits (B, C), one an exit."""
        logits: list[Tensor] = []
        state, previous = x, None
        for exit in range(1, self.num_exits + 1):
            state = self.advance(exit, state)
            each, previous = self.answer(exit, state, previous)
            logits.append(each)
        return logits

    @torch.no_grad()
    def predict(self, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """Early-exit inference: a sample that leaves is dropped from the batch, later stages see only the rest.

        x: (B, *input_shape), a tensor, an array or a list of samples, of the backbone's own type or float64. Returns
        the logits (B, C) each sample left with and its exit_index (B,) in 1..K; a batch may be empty.
        Raises EestudyError in training mode, where BatchNorm would let a sample depend on who is still inside, for
        inputs that the network does not take, and for a rule that is none, such as a bare threshold, or that has
        thresholds for another number of exits.
        """
        if self.training:
            raise EestudyError("predict: the model is in training mode; call model.eval() first")
        if not callable(rule):
            raise EestudyError(f"rule: give a rule, as max_probability(0.9), got {rule!r}")
        if hasattr(rule, "check_exits"):
            rule.check_exits(self.num_exits)
        if hasattr(rule, "check_answers"):
            rule.check_answers(self.multi_label)
        x = self._inputs(x)
        if not len(x):
            return x.new_empty(0, self.num_classes, dtype=torch.float32), x.new_empty(0, dtype=torch.int64)
        left: list[tuple[int, Tensor, Tensor]] = []  # exit, who, their logits
        inside = torch.arange(len(x), device=x.device)
        history: list[Tensor] = []
        previous: Tensor | None = None
        state: Tensor | tuple[Tensor, ...] = x
        for exit in range(1, self.num_exits + 1):
            try:
                state = self.advance(exit, state)
                logits, previous = self.answer(exit, state, previous)
            except RuntimeError as error:
                if tuple(x.shape[1:]) == self.input_shape:
                    raise
                reason = str(error).strip().split("\n")[0]
                raise EestudyError(f"x: {self._wanted(x)}, and others do not go through it ({reason})") from error
            history.append(logits)
            leaves = None if exit == self.num_exits else rule(history)
            # The one look at the result that decides: where nobody or everybody leaves, nothing is copied.
            count = len(inside) if leaves is None else int(leaves.sum())
            if leaves is None or count == len(inside):
                left.append((exit, inside, logits))
                break
            if count:
                left.append((exit, inside[leaves], logits[leaves]))
                stays = leaves.logical_not().nonzero().squeeze(1)
                # Indexing keeps the memory format; index_select would not.
                state = tuple(part[stays] for part in state) if isinstance(state, tuple) else state[stays]
                inside = inside[stays]
                history, previous = [logits[stays] for logits in history], previous[stays]
        return _in_order(left)

    def _wanted(self, x: Tensor) -> str:
        takes = f"(B, {', '.join(map(str, self.input_shape))}) of {self.backbone.input_dtype}"
        return f"got shape {tuple(x.shape)} of {x.dtype}, but the network takes {takes}"

    @property
    def _precision(self) -> torch.dtype:
        return next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), torch.float32)

    def _inputs(self, x: Any) -> Tensor:
        """Samples as a tensor. What would need a guess, such as bytes or a sample without a batch, is refused."""
        wanted = self.backbone.input_dtype
        if not isinstance(x, Tensor):
            try:
                tensors = isinstance(x, list) and bool(x) and isinstance(x[0], Tensor)
                x = torch.stack(x) if tensors else torch.from_numpy(np.asarray(x))
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                reason = str(error).strip().split("\n")[0]
                raise EestudyError(f"x: {type(x).__name__} cannot be made one tensor of samples ({reason})") from None
        if x.is_floating_point() and wanted.is_floating_point:
            x = x.to(self._precision)
        if x.ndim != len(self.input_shape) + 1:
            hint = "; give one sample as x[None]" if x.ndim == len(self.input_shape) else ""
            raise EestudyError(f"x: {self._wanted(x)}{hint}")
        if x.is_floating_point() != wanted.is_floating_point:
            hint = ", normalized as in training" if wanted.is_floating_point else ""
            raise EestudyError(f"x: {self._wanted(x)}{hint}")
        return x if wanted.is_floating_point else x.to(wanted)


def _in_order(left: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and exit_index (B,) of who left where, in the order they came in."""
    exit_index = torch.cat([torch.full_like(who, number) for number, who, _ in left])
    # Exits may differ in precision, under autocast or by a classifier of the user's own: cat takes the widest.
    logits = torch.cat([each for _, _, each in left])
    if len(left) == 1:
        return logits, exit_index
    order = torch.cat([who for _, who, _ in left])
    final, index = torch.empty_like(logits), torch.empty_like(exit_index)
    final[order], index[order] = logits, exit_index
    return final, index


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


def _smaller_sides(
    backbone: Backbone, shapes: Mapping[int, tuple[int, ...]], args: Mapping[str, Any]
) -> dict[int, int]:
    """By stage the side of 2 or 1 that a user's default head pools to, where its last layer would be too large at 4."""
    if not backbone.own or backbone.default_head or backbone.kind not in ("maps", "sequence") or "side" in args:
        return {}
    most = LARGEST_SHARE * sum(weight.numel() for weight in backbone.parameters())
    smaller = {}
    for stage, (channels, *sides) in shapes.items():
        width = args.get("width", channels) * backbone.num_classes
        sizes = {side: width * prod(min(side, each) for each in sides) for side in (POOLED_SIZE, 2, 1)}
        side = next((side for side, size in sizes.items() if size <= most), 1)
        if sizes[side] < sizes[POOLED_SIZE]:
            smaller[stage] = side
    if smaller:
        pooled = ", ".join(f"{side} after stage {stage}" for stage, side in smaller.items())
        say(
            f"head: pools to a side of {pooled}, as with {POOLED_SIZE} a head has more than {LARGEST_SHARE:.0%} of the "
            f"backbone's parameters; head_args={{'side': {POOLED_SIZE}}} pools to {POOLED_SIZE} anyhow"
        )
    return smaller


def _at_flops(shares: Iterable[float], backbone: Backbone) -> tuple[int, ...]:
    """For each per cent of the backbone's FLOPs the stage after which nearest to it is spent (Kaya et al. 2019)."""
    *stages, classifier = stage_flops(backbone)
    whole = sum(stages) + classifier
    spent = [100 * sum(stages[:number]) / whole for number in range(1, len(stages))]
    taken: dict[int, float] = {}
    for share in shares:
        stage = 1 + min(range(len(spent)), key=lambda index: abs(spent[index] - share))
        if stage in taken:
            raise EestudyError(
                f"exits: flops: {taken[stage]:g} % and {share:g} % both fall on stage {stage} "
                f"({spent[stage - 1]:.1f} %); leave one of them out"
            )
        taken[stage] = share
    return tuple(sorted(taken))


def check_network(model: object, name: str = "model") -> None:
    """EestudyError, in which it has this name, for anything but a MultiExit."""
    if not isinstance(model, MultiExit):
        hint = "eestudy.add_exits(model, after=[...]) makes one"
        raise EestudyError(f"{name}: give a MultiExit, got {type(model).__name__}; {hint}")


@dataclass(frozen=True)
class ExitCosts:
    """FLOPs of one sample (torch's count: a multiply and an add are two) and parameters; exits counted from 1.

    stages: FLOPs of each backbone stage; classifier: of the backbone's own; heads: of each head.
    flops: (K,) cost of leaving at exit k, the backbone up to there and every head up to and including k.
    params: (K,) parameters needed up to there, counted the same way.
    """

    stages: tuple[int, ...]
    classifier: int
    heads: tuple[int, ...]
    flops: tuple[int, ...]
    params: tuple[int, ...]

    @property
    def backbone(self) -> int:
        """FLOPs of the plain backbone, without heads: the 100 % of every budget."""
        return sum(self.stages) + self.classifier


@torch.no_grad()
def exit_costs(model: MultiExit) -> ExitCosts:
    """Counted on one sample, part by part, in eval mode. The model is left as it was."""
    check_network(model)
    *stages, _ = stage_flops(model.backbone)
    answers, flops, params = [], [], []  # of each exit alone
    seen: set[int] = set()
    state: Any = model.backbone.dry_input()
    previous: Any = None
    with mode(model, False):
        for exit in range(1, model.num_exits + 1):
            state = model.advance(exit, state)
            (_, previous), answer = counted(model.answer, exit, state, previous)
            between = model.stages_to(exit)
            head = model.head(between[-1]) if exit < model.num_exits else model.backbone.classifier
            modules = [*(model.backbone.stages[stage - 1] for stage in between), head]
            answers.append(answer)
            flops.append(sum(stages[stage - 1] for stage in between) + answer)
            new = {id(weight): weight.numel() for module in modules for weight in module.parameters()}
            params.append(sum(size for weight, size in new.items() if weight not in seen))
            seen |= new.keys()  # of a head that exits share, once
    *heads, classifier = answers
    return ExitCosts(tuple(stages), classifier, tuple(heads), tuple(accumulate(flops)), tuple(accumulate(params)))
