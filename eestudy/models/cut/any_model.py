"""Any model as a backbone: cut at nodes it has already, with its own weights, its own output as the last exit."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from eestudy.config import EestudyError, nearest
from eestudy.environment import say
from eestudy.models.backbone import KINDS, Backbone, device_of, mode
from eestudy.models.cut.splitting import (
    DRY_BATCH,
    Step,
    cut_out,
    find,
    last_stage_end,
    record,
    split,
    trace_around,
)  # fmt: skip
from eestudy.models.cut.tracing import Tracing
from eestudy.models.multi_exit import MultiExit

# Features whose channels come last, and the kind that heads see once they are moved to the front.
CHANNELS_LAST = {"maps-last": "maps", "sequence-last": "sequence"}
# Sides of an image tried in this order when nothing tells: ImageNet's, CIFAR's, MNIST's, Tiny-ImageNet's and on.
SIDES = (224, 32, 28, 64, 96, 128, 256, 384, 16, 8)


def add_exits(
    model: nn.Module, after: Iterable[str], input_shape: Iterable[int] | None = None, head: str = "auto",
    head_layers: int = 1, head_args: Mapping[str, object] | None = None, kind: str | None = None,
    classifier_after: str | None = None,
) -> MultiExit:  # fmt: skip
    """A network with an exit after each of the nodes `after`, from any model, in one call.

    The last exit is the model's own output, bit for bit, in evaluation and in training; the weights are the model's
    own tensors, so training one trains the other. input_shape: of one sample; without it the one `from_model` finds,
    224 pixels a side for a torchvision model. The other arguments are those of `MultiExit` and `from_model`.
    """
    _check_module(model)
    with mode(model, model.training):
        backbone = from_model(model, after, input_shape, kind, classifier_after)
        network = MultiExit(backbone, head=head, layers=head_layers, head_args=head_args)
        return network.to(device_of(backbone)).train(model.training)


def from_model(
    model: nn.Module, nodes: Iterable[str], input_shape: Iterable[int] | None = None, kind: str | None = None,
    classifier_after: str | None = None,
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

    The model is run on a few random samples, in training on copies, and is left as it was. Around the nodes its
    forward is followed step by step, so there neither hooks on a module nor its own train() take part.
    Raises EestudyError for a model torch.fx cannot follow, naming the node and the nearest ones that work, and
    wherever the cut would change what the model gives.
    """
    _check_module(model)
    names = [nodes] if isinstance(nodes, str) else list(nodes) if isinstance(nodes, Iterable) else [nodes]
    if not names:
        raise EestudyError("nodes: the list is empty; give the names of at least one place for an exit")
    if not all(isinstance(name, str) for name in names):
        raise EestudyError(f"nodes: {names} is not valid; give the names of the places for exits, such as ['layer2']")
    training = model.training
    with mode(model, False):
        x, logits = _dry_run(model, input_shape)
        tracing = trace_around(model, [*names, *([classifier_after] if classifier_after else [])], x)
        steps = record(tracing, x)
        order = list(tracing.graph.nodes).index
        named = {find(tracing, steps, name): name for name in names}
        cuts = sorted(named, key=order)
        if len(cuts) < len(names):
            raise EestudyError(f"nodes: {names} name one place twice; valid: different places")
        if classifier_after:
            end = find(tracing, steps, classifier_after)
            if order(end) <= order(cuts[-1]):
                raise EestudyError(f"classifier_after: {classifier_after!r} does not come after the last of the nodes")
        else:
            end = last_stage_end(tracing, steps, cuts[-1], named[cuts[-1]])
        told, kind = kind, _kind(steps, named, kind)
        *stages, classifier = _checked_modules(model, tracing, steps, [*cuts, end], x, logits)
        if kind == "tokens" and not told and not _first_token_alone(stages, classifier, x):
            kind = "sequence-last"
            say("model: its classifier reads more than the first token, so the heads pool all of them (sequence-last)")
        backbone = CutBackbone(stages, classifier, x.shape[1:], logits.shape[1], kind)
        backbone.input_dtype = x.dtype
        return backbone.train(training)


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise EestudyError(f"model: give a torch.nn.Module, got {type(model).__name__}")


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


def _dry_run(model: nn.Module, given: Iterable[int] | None) -> tuple[Tensor, Tensor]:
    """An input (DRY_BATCH, ...) that goes through the model, and the logits (DRY_BATCH, C) it gives for it."""
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
            return x, _logits(model, x)
        except _DoesNotGoThrough as error:
            failed = failed or error
    if given is not None:
        raise EestudyError(f"input_shape: {shapes[0]} does not go through the model: {failed}") from failed
    tried = f"; {', '.join(map(str, shapes))} do not go through the model ({failed})" if shapes else ""
    raise EestudyError(f"input_shape: missing{tried}; give the shape of one sample, most likely {likely}") from failed


class _DoesNotGoThrough(Exception):
    """The model cannot take an input of that shape."""


@torch.no_grad()
def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """x (B, ...) -> logits (B, C), checked to be logits, one sample's independent of the others."""
    try:
        logits, alone = model(x.clone()), model(x[:1].clone())  # it may change its input in place
    except Exception as error:
        raise _DoesNotGoThrough(str(error).strip().split("\n")[0] or type(error).__name__) from error
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
    if width is None:
        return channels_first if made_by else None
    width = width if isinstance(width, int) else width[-1]
    if (shape[0] == width) == (shape[-1] == width):
        return None
    return channels_first if shape[0] == width else channels_last


def _checked_modules(
    model: nn.Module, tracing: Tracing, steps: dict[fx.Node, Step], cuts: list[fx.Node], x: Tensor, logits: Tensor
) -> list[fx.GraphModule]:
    """The stages and the classifier. Raises EestudyError if their last exit were not the model's own output."""
    states = split(tracing, steps, cuts)
    *body, output = tracing.graph.nodes
    ends = [0, *(body.index(cut) for cut in cuts), len(body) - 1]
    gives = [*(tuple(state) if len(state) > 1 else state[0] for state in states), output.args[0]]

    def modules(changed: list[set[int]]) -> list[fx.GraphModule]:
        return [
            cut_out(tracing, body[start + 1 : end + 1], given, result, copied)
            for start, end, given, result, copied in zip(ends, ends[1:], [body[:1], *states], gives, changed)
        ]

    # Heads read a state, and need it again for their gradients: what the next stage changes in place, it copies first.
    made = modules([set() for _ in gives])
    changed = _changed_in_place(model, made, x, logits)
    if any(changed):
        made = modules(changed)
        if any(_changed_in_place(model, made, x, logits)):
            raise EestudyError("model: its parts change one tensor in place; give them with Backbone.from_stages")
    return made


@torch.no_grad()
def _changed_in_place(model: nn.Module, modules: list[fx.GraphModule], x: Tensor, logits: Tensor) -> list[set[int]]:
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
