"""A backbone with heads: all exits at once for training, one after another for use.

`MultiExit.advance` and `MultiExit.answer` are the one definition of the way from exit to exit: every forward pass,
early exit, the count of FLOPs, the cached features of a frozen backbone and exported programs go it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from eestudy.config import EestudyError, check_name
from eestudy.models.backbone import Backbone, counted, device_of, mode, stage_flops
from eestudy.models.heads import Head, build_head
from eestudy.models.own_heads import CLASSIFIER, Heads, own_heads, smaller_sides
from eestudy.models.placement import Placement, exit_stages
from eestudy.registry import imported

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
        self.backbone = backbone
        self.exit_stages = exit_stages(exits, backbone)
        shapes = backbone.feature_shapes()
        sides: dict[int, int] = {}
        if head == "auto":
            head = backbone.default_head or head
            sides = smaller_sides(backbone, {stage: shapes[stage - 1] for stage in self.exit_stages}, head_args or {})
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

    def keeping(self, exits: Iterable[int]) -> MultiExit:
        """The same modules with these exits alone, numbered anew: the heads of the others are never computed.

        exits: counted from 1; the last stays in any case. What later heads would miss is for the caller to know.
        """
        kept, wanted = copy.copy(self), set(exits)
        kept.exit_stages = tuple(stage for exit, stage in enumerate(self.exit_stages, 1) if exit in wanted)
        kept._modules = {**self._modules, "heads": nn.ModuleDict({str(at): self.head(at) for at in kept.exit_stages})}
        return kept

    def costs(self, unit: str = "flops", batch_size: int = 1, rule: Rule | None = None, repeats: int = 30) -> Any:
        """What each part costs, and leaving at each exit: "flops" counts (ExitCosts), "ms" measures (ExitTimes).

        Milliseconds are of one sample in a batch of `batch_size`, on the device where the weights are: `repeats` times,
        fewer after 20 seconds, the input is copied there and goes through all stages and heads in turn. With a rule,
        asking it counts with the head. Raises EestudyError for another unit, and a batch size that is no number.
        """
        if unit == "mJ":
            raise EestudyError("unit: 'mJ' needs counters of energy, which eestudy does not read; valid: flops, ms")
        if check_name("unit", unit, ("flops", "ms")) == "flops":
            return exit_costs(self)
        return imported("models.times:exit_times")(self, batch_size, rule, repeats)

    def deploy(self, budget: float, unit: str = "%", validation: Any = None, **settings: Any) -> Any:
        """Thresholds, temperatures and the exits worth having for a budget: `eestudy.export.deploy`, see there."""
        # By name, as the registry's are: models know nothing of what stands on them.
        return imported("export.deployed:deploy")(self, budget, unit, validation, **settings)

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

        x: (B, *input_shape), a tensor, an array or a list of samples, of the backbone's own type or float64, wherever
        it is. Returns the logits (B, C) each sample left with and its exit_index (B,) in 1..K; a batch may be empty.
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
        x = self.inputs(x)
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

    def inputs(self, x: Any) -> Tensor:
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
        return x.to(device_of(self), None if wanted.is_floating_point else wanted)


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
