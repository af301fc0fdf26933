"""Any model as a backbone: cut at nodes it has already, with its own weights, its own output as the last exit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from eestudy.config import EestudyError, nearest
from eestudy.environment import say
from eestudy.models.backbone import KINDS, Backbone, device_of, mode
from eestudy.models.cut.dry_run import as_it_was, check_module, dry_run
from eestudy.models.cut.exporting import InBothModes, export_trace
from eestudy.models.cut.splitting import (
    CannotCut,
    Step,
    cut_out,
    find,
    last_stage_end,
    record,
    split,
    trace_around,
)  # fmt: skip
from eestudy.models.cut.tracing import Tracing, Untraceable
from eestudy.models.cut.weights import load_weights
from eestudy.models.multi_exit import MultiExit

# Features whose channels come last, and the kind that heads see once they are moved to the front.
CHANNELS_LAST = {"maps-last": "maps", "sequence-last": "sequence"}


def add_exits(
    model: nn.Module, after: Iterable[str], input_shape: Iterable[int] | None = None, head: str = "auto",
    head_layers: int = 1, head_args: Mapping[str, object] | None = None, kind: str | None = None,
    classifier_after: str | None = None, output: str | int | None = None, weights: str | Path | None = None,
) -> MultiExit:  # fmt: skip
    """A network with an exit after each of the nodes `after`, from any model, in one call.

    The last exit is the model's own output, bit for bit, in evaluation and in training; the weights are the model's
    own tensors, so training one trains the other. input_shape: of one sample; without it the one `from_model` finds,
    224 pixels a side for a torchvision model. weights: a file that the model's weights are read from before, see
    `load_weights`. The other arguments are those of `MultiExit` and `from_model`.
    """
    check_module(model)
    if weights is not None:
        load_weights(model, weights)
    with mode(model, model.training), torch.inference_mode(False), as_it_was(model):
        backbone = from_model(model, after, input_shape, kind, classifier_after, output)
        network = MultiExit(backbone, head=head, layers=head_layers, head_args=head_args)
        return network.to(device_of(backbone)).train(model.training)


def from_model(
    model: nn.Module, nodes: Iterable[str], input_shape: Iterable[int] | None = None, kind: str | None = None,
    classifier_after: str | None = None, output: str | int | None = None,
) -> Backbone:  # fmt: skip
    """`model` cut after each of `nodes`: one stage up to each, one stage more, and what is left as the classifier.

    nodes: names of modules ("layer2", "features.5", "layer3.1"), or else of nodes of torch.fx.symbolic_trace(model).
    input_shape: of one sample. Without it, the model's own attribute of that name; else, for a 2-D convolution as first
    layer, its channels and the first of SIDES that goes through (FLOPs and heads belong to that size), for a
    linear one its width. A model that starts with an embedding gets whole numbers, and needs an input_shape.
    kind: of the features at the nodes, one of KINDS or of CHANNELS_LAST, found where the layer that made them tells.
    Heads for "tokens" read the first one; where the model's own classifier reads others too (no class token, or causal
    attention), heads pool them all ("sequence-last"), which is said on stderr.
    classifier_after: the node with which the last stage ends. Found: the last step with weights that gives features
    like those at the nodes, leaving at least one step with weights to the classifier.
    output: which of a model's outputs are the logits, by key, attribute or number. Found where there is one of shape
    (B, C), or one named "logits".

    The model is run on a few random samples, in training on copies, and is left as it was. Around the nodes its
    forward is followed step by step, so there neither hooks on a module nor its own train() take part.
    Raises EestudyError for a model torch.fx cannot follow, naming the node and the nearest ones that work, and
    wherever the cut would change what the model gives.
    """
    check_module(model)
    names = [nodes] if isinstance(nodes, str) else list(nodes) if isinstance(nodes, Iterable) else [nodes]
    if not names:
        raise EestudyError("nodes: the list is empty; give the names of at least one place for an exit")
    if not all(isinstance(name, str) for name in names):
        raise EestudyError(f"nodes: {names} is not valid; give the names of the places for exits, such as ['layer2']")
    training = model.training
    with mode(model, False), torch.inference_mode(False), as_it_was(model):
        whole, x, logits = dry_run(model, input_shape, output)
        places = [*names, *([classifier_after] if classifier_after else [])]
        try:
            tracing, steps, named, end = _found(trace_around(whole, places, x), names, classifier_after, x)
        except CannotCut as error:
            try:
                tracing, steps, named, end = _found(export_trace(whole, x), names, classifier_after, x)
            except (Untraceable, EestudyError):
                raise error from None
            say("model: torch.fx cannot cut it there; cut by the graph of torch.export")
        cuts = list(named)
        told, kind = kind, _kind(steps, named, kind)
        *stages, classifier = _checked_modules(whole, tracing, steps, [*cuts, end], x, logits)
        if kind == "tokens" and not told and not _first_token_alone(stages, classifier, x):
            kind = "sequence-last"
            say("model: its classifier reads more than the first token, so the heads pool all of them (sequence-last)")
        backbone = CutBackbone(stages, classifier, x.shape[1:], logits.shape[1], kind)
        backbone.input_dtype = x.dtype
        return backbone.train(training)


def _found(
    tracing: Tracing, names: list[str], classifier_after: str | None, x: Tensor
) -> tuple[Tracing, dict[fx.Node, Step], dict[fx.Node, str], fx.Node]:
    """The graph, what its nodes give, the cuts in the order they run with their names, and the last stage's end."""
    steps = record(tracing, x)
    order = list(tracing.graph.nodes).index
    given = {find(tracing, steps, name): name for name in names}
    if len(given) < len(names):
        raise EestudyError(f"nodes: {names} name one place twice; valid: different places")
    named = {cut: given[cut] for cut in sorted(given, key=order)}
    *_, last = named
    if not classifier_after:
        return tracing, steps, named, last_stage_end(tracing, steps, last, named[last])
    end = find(tracing, steps, classifier_after)
    if order(end) <= order(last):
        raise EestudyError(f"classifier_after: {classifier_after!r} does not come after the last of the nodes")
    return tracing, steps, named, end


@torch.no_grad()
def _first_token_alone(stages: Sequence[nn.Module], classifier: nn.Module, x: Tensor) -> bool:
    """Whether the classifier gives the same when all but the first token of each sample are others."""
    state: Any = x.clone()
    for stage in stages:
        state = stage(state)
    first, *others = state if isinstance(state, tuple) else (state,)
    if first.ndim != 3 or first.shape[1] < 2:
        return True  # pooled before; nothing tells
    changed = torch.cat([first[:, :1], first[:, 1:].flip(0) + 1], dim=1)
    given = [each if not others else (each, *others) for each in (first.clone(), changed)]
    return torch.equal(*(classifier(each) for each in given))


class CutBackbone(Backbone):
    """A backbone made of another model's parts. Heads see channels first, wherever the model keeps them."""

    def __init__(
        self, stages: Sequence[nn.Module], classifier: nn.Module, input_shape: Iterable[int], classes: int, kind: str
    ) -> None:
        super().__init__(stages, classifier, input_shape, classes, CHANNELS_LAST.get(kind, kind))
        self.channels_last = kind in CHANNELS_LAST

    def features(self, state: Any) -> Tensor:
        features = super().features(state)
        return features.movedim(-1, 1) if self.channels_last and features.ndim > 2 else features


def _kind(steps: dict[fx.Node, Step], cuts: dict[fx.Node, str], given: str | None) -> str:
    kinds = {**KINDS, **{name: KINDS[kind] for name, kind in CHANNELS_LAST.items()}}
    if given is not None and given not in kinds:
        raise EestudyError(f"kind: unknown name {given!r}; {nearest(given, kinds)}")
    found: dict[str, str] = {}
    for cut, name in cuts.items():
        shape = (steps[cut].shape or ())[1:]
        features = f"features of shape (B, {', '.join(map(str, shape))}) after {name!r}"
        fitting = [each for each, dims in kinds.items() if dims == len(shape) + 1]
        if given is not None and given not in fitting:
            raise EestudyError(f"kind: {given!r} does not fit {features}")
        told = given or _told(shape, steps[cut].made_by)
        if told is None:
            raise EestudyError(f"kind: cannot be told from {features}; give one of {', '.join(fitting)}")
        found.setdefault(told, name)
    if len(found) > 1:
        raise EestudyError(f"nodes: one backbone has features of one kind, found {found}; leave some nodes out")
    return next(iter(found))


def _told(shape: tuple[int, ...], made_by: nn.Module | None) -> str | None:
    """The kind of features of `shape` (without the batch) that a layer made, None if that does not tell."""
    if len(shape) == 1:
        return "vector"
    channels_first, channels_last = {3: ("maps", "maps-last"), 2: ("sequence", "tokens")}[len(shape)]
    widths = {nn.Linear: "out_features", nn.LayerNorm: "normalized_shape", nn.Embedding: "embedding_dim"}
    width = next((getattr(made_by, name) for layer, name in widths.items() if isinstance(made_by, layer)), None)
    if isinstance(made_by, nn.RNNBase):
        width = (made_by.proj_size or made_by.hidden_size) * (1 + made_by.bidirectional)
    if width is None:
        return channels_first if made_by else None
    width = width if isinstance(width, int) else width[-1]
    if (shape[0] == width) == (shape[-1] == width):
        return None
    return channels_first if shape[0] == width else channels_last


def _checked_modules(
    model: nn.Module, tracing: Tracing, steps: dict[fx.Node, Step], cuts: list[fx.Node], x: Tensor, logits: Tensor
) -> list[nn.Module]:
    """The stages and the classifier. Raises EestudyError if their last exit were not the model's own output."""
    states = split(tracing, steps, cuts)

    def modules(changed: list[set[int]]) -> list[nn.Module]:
        parts: list[nn.Module] = [*_parts(tracing, states, changed)]
        if tracing.trained is not None:
            there = tracing.in_training
            lost = [node.name for state in states for node in state if node not in there]
            if lost:
                raise EestudyError(
                    f"model: its steps in training are not those in evaluation: {lost[0]!r} is in one alone"
                )
            same = [[there[node] for node in state] for state in states]
            parts = [
                InBothModes(*both)
                for both in zip(_parts(tracing, states, changed), _parts(tracing.trained, same, changed))
            ]
        return parts

    # Heads read a state, and need it again for their gradients: what the next stage changes in place, it copies first.
    made = modules([set() for _ in range(len(states) + 1)])
    changed = _changed_in_place(model, made, x, logits)
    if any(changed):
        made = modules(changed)
        if any(_changed_in_place(model, made, x, logits)):
            raise EestudyError("model: its parts change one tensor in place; give them with Backbone.from_stages")
    return made


def _parts(tracing: Tracing, states: list[list[fx.Node]], copied: list[set[int]]) -> list[fx.GraphModule]:
    """The parts between the cuts of one graph; states: what travels over each, the cut's node first."""
    *body, output = tracing.graph.nodes
    ends = [0, *(body.index(state[0]) for state in states), len(body) - 1]
    gives = [*(tuple(state) if len(state) > 1 else state[0] for state in states), output.args[0]]
    return [
        cut_out(tracing, body[start + 1 : end + 1], given, result, changed)
        for start, end, given, result, changed in zip(ends, ends[1:], [body[:1], *states], gives, copied)
    ]


@torch.no_grad()
def _changed_in_place(model: nn.Module, modules: list[nn.Module], x: Tensor, logits: Tensor) -> list[set[int]]:
    """Which tensors of its state each module changes in place. In both modes; checks there that they are exact."""
    changed: list[set[int]] = [set() for _ in modules]
    for training in (False, True):
        # Copies: a forward pass in training moves BatchNorm's statistics, spectral norm's vectors and the like.
        chain = copy.deepcopy(nn.ModuleList(modules)).train(training)
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            wanted = _in_training(model, x) if training else logits
            torch.manual_seed(0)
            state: Any = x.clone()
            for number, step in enumerate(chain):
                given = state if isinstance(state, tuple) else (state,)
                before = [tensor._version for tensor in given]
                state = step(state)
                if number:
                    changed[number] |= {index for index, old in enumerate(before) if given[index]._version != old}
        if not torch.equal(state, wanted):
            raise EestudyError(
                f"model: cut there, its parts do not give in {'training' if training else 'evaluation'} what it gives "
                "as a whole; cut it at other nodes, or give the parts with Backbone.from_stages"
            )
    return changed


def _in_training(model: nn.Module, x: Tensor) -> Any:
    copied = copy.deepcopy(model).train()
    torch.manual_seed(0)
    try:
        return copied(x.clone())
    except Exception as error:
        raise EestudyError(f"model: its forward in training mode fails on {len(x)} samples: {error}") from error
