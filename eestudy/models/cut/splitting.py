"""Where a model can be cut, and its forward pass cut there into parts that run one after another.

Names become nodes of its graph, or an error that names the nearest ones that work. A cut puts a part's end behind a
node; what later parts still need travels with it as the state.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eestudy.config import EestudyError, nearest
from eestudy.models.cut.tracing import Tracing, Untraceable, Whole, trace

DRY_BATCH = 2  # samples of the runs that find what each node gives


@dataclass(frozen=True)
class Step:
    """What one node gave in the dry run.

    shape: None if it is no tensor; made_by: the last layer with weights so far; of_samples: whether it is a tensor
    with one row a sample, which early exit can drop.
    """

    shape: tuple[int, ...] | None
    type_name: str
    made_by: nn.Module | None
    of_samples: bool


# Layers that tell where the channels of what they give stand; see `any_model._told`.
_LAYERS = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.Embedding,
    nn.RNNBase,
)  # fmt: skip


class _Recorder(fx.Interpreter):
    """Runs a graph and notes of each node what it gave."""

    def __init__(self, module: fx.GraphModule, layers: dict[str, nn.Module]) -> None:
        super().__init__(module)
        self.layers = layers
        self.given: list[tuple[tuple[int, ...] | None, str, nn.Module | None]] = []
        self.layer: nn.Module | None = None

    def note(self, layer: nn.Module, given: Any, result: Any) -> None:
        self.layer = layer if isinstance(layer, _LAYERS) else self.layer

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(self.layers.get(n.name), _LAYERS):
            self.layer = self.layers[n.name]
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        self.given.append((shape, type(value).__name__, self.layer))
        return value


@torch.no_grad()
def record(tracing: Tracing, x: Tensor) -> dict[fx.Node, Step]:
    """What every node gives for x (B, ...), B at least 2, in evaluation mode.

    A second pass with one sample less shows which tensors have a row a sample: those that come from the input and
    whose first dimension is the batch both times.
    """
    passes = []
    for inputs in (x, x[:-1]):
        recorder = _Recorder(tracing.module().eval(), {node.name: layer for node, layer in tracing.layers.items()})
        hook = nn.modules.module.register_module_forward_hook(recorder.note)
        try:
            recorder.run(inputs.clone())
        finally:
            hook.remove()
        passes.append(recorder.given)
    steps: dict[fx.Node, Step] = {}
    from_input: set[fx.Node] = set()
    for node, (shape, type_name, made_by), (fewer, *_) in zip(tracing.graph.nodes, *passes):
        if node.op == "placeholder" or from_input & set(node.all_input_nodes):
            from_input.add(node)
        rows = (shape[0], fewer[0]) if shape and fewer else None
        steps[node] = Step(shape, type_name, made_by, node in from_input and rows == (len(x), len(x) - 1))
    return steps


class CannotCut(EestudyError):
    """No exit can stand where one was asked for, as torch.fx follows the forward."""


class Uncuttable(Exception):
    """What `node` gives is needed after a cut and can neither travel with the samples nor be computed again."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


def carried(node: fx.Node, steps: dict[fx.Node, Step]) -> set[fx.Node]:
    """The tensors that must travel with the state for a later part to have `node`.

    A sample's tensor travels itself. Anything else, such as a batch size, is computed again from what it was computed
    from: the batch may be smaller by then.
    """
    if steps[node].of_samples:
        return {node}
    if node.op == "get_attr":
        return set()
    if node.op not in ("call_function", "call_method"):
        raise Uncuttable(node)
    return {tensor for source in node.all_input_nodes for tensor in carried(source, steps)}


def split(tracing: Tracing, steps: dict[fx.Node, Step], cuts: Iterable[fx.Node]) -> list[list[fx.Node]]:
    """What travels over each cut, the cut's own node first. Raises Uncuttable. `cuts` are in the order they run."""
    nodes = list(tracing.graph.nodes)
    order = {node: number for number, node in enumerate(nodes)}
    states = []
    for cut in cuts:
        live: set[fx.Node] = set()
        for node in nodes[order[cut] + 1 :]:
            for source in () if _dropped(node) else node.all_input_nodes:
                if order[source] <= order[cut]:
                    live |= carried(source, steps)
        states.append([cut, *sorted(live - {cut}, key=order.__getitem__)])
    return states


def _dropped(node: fx.Node) -> bool:
    """Whether it is what nobody uses of an unpacked tuple, as in `x, _ = lstm(x)`."""
    return node.target is operator.getitem and not node.users


def cut_out(
    tracing: Tracing, nodes: list[fx.Node], given: list[fx.Node], gives: Any, copied: Iterable[int] = ()
) -> fx.GraphModule:
    """The module that runs `nodes` on a state of `given` and returns `gives`.

    copied: numbers of the tensors of the state that it would change in place; it works on a copy, as heads read them.
    """
    graph = fx.Graph()
    state = graph.placeholder("state")
    made: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate(given):
        made[node] = graph.call_function(operator.getitem, (state, number)) if len(given) > 1 else state
        if number in copied:
            made[node] = graph.call_method("clone", (made[node],))

    def load(node: fx.Node) -> fx.Node:
        if node not in made:
            made[node] = graph.node_copy(node, load)
        return made[node]

    for node in nodes:
        if not _dropped(node) or node.all_input_nodes[0] in made:
            load(node)
    graph.output(fx.map_arg(gives, load))
    return fx.GraphModule(tracing.attributes, graph)


def trace_around(whole: Whole, names: list[str], x: Tensor) -> Tracing:
    """The graph in which all of `names` are nodes: modules around them are opened, all others stay whole.

    A name that is no module's must be one of a node when all modules but torch's own are opened. x: as in `trace`.
    """
    modules = [name for name, _ in whole.model.named_modules() if name]
    unknown = [name for name in names if module_of(name) not in modules]
    if not unknown:
        inner = [module_of(name) for name in names]
        parents = {".".join(name.split(".")[:depth]) for name in inner for depth in range(name.count(".") + 1)}
        return _traced(whole, frozenset(parents), names, x)
    try:
        tracing = trace(whole, None, x)
    except Untraceable as error:
        raise EestudyError(f"nodes: unknown name {unknown[0]!r}; {nearest(unknown[0], modules)}") from error
    known = [*modules, *(node.name for node in tracing.graph.nodes)]
    for name in unknown:
        if name not in known:
            raise EestudyError(f"nodes: unknown name {name!r}; {nearest(name, known)}")
    return tracing


def module_of(name: str) -> str:
    """A place such as "block@2", after the second call of a module -> the module's name."""
    return name.partition("@")[0]


def _traced(whole: Whole, opened: frozenset[str], names: list[str], x: Tensor) -> Tracing:
    try:
        return trace(whole, opened, x)
    except Untraceable as error:
        failed, reason = error.name, error
    why = f"as torch.fx cannot follow the forward of {type(whole.model.get_submodule(failed)).__name__}: {reason}"
    if not failed:
        raise CannotCut(
            f"model: {names[0]!r} cannot be cut out of it, {why}; give its parts yourself with Backbone.from_stages"
        ) from reason
    inside = next((name for name in names if name.startswith(f"{failed}.")), None)
    if inside is None:
        raise CannotCut(
            f"model: {names[0]!r} cannot be cut out of it, as torch.fx cannot write down the call of {failed!r}: "
            f"{reason}; give its parts yourself with Backbone.from_stages"
        ) from reason
    # With that module whole, which places are there?
    rest = frozenset(name for name in opened if name != failed and not name.startswith(f"{failed}."))
    places = list(_traced(whole, rest, names, x).outputs)
    at = places.index(failed) if failed in places else 0
    raise CannotCut(
        f"nodes: {inside!r} cannot be cut out of {failed!r}, {why}; "
        f"nearest: {', '.join(places[max(0, at - 1) : at + 2])}"
    ) from reason


def find(tracing: Tracing, steps: dict[fx.Node, Step], name: str) -> fx.Node:
    """The node that gives what `name` gives. EestudyError with the nearest that work if no exit can stand there."""
    of, _, number = name.partition("@")
    calls = tracing.outputs.get(of, [])
    if number and not (number.isdigit() and 1 <= int(number) <= len(calls)):
        raise EestudyError(
            f"nodes: {name!r} is no call of {of!r}; valid: {', '.join(_numbered(of, calls)) or '(none)'}"
        )
    if number:
        calls = [calls[int(number) - 1]]
    nodes = {node.name: node for node in tracing.graph.nodes}
    node = calls[0] if calls else nodes.get(name)
    if node is None:
        wrong = "is not called by itself in the forward pass"
    elif len(calls) > 1:
        raise EestudyError(
            f"nodes: {name!r} is called {len(calls)} times, so it is not one place; "
            f"valid: {', '.join(_numbered(of, calls))}"
        )
    else:
        node = _read(steps, node)
        wrong = why_not(tracing, steps, node)
        if not wrong:
            return node
    working = {
        place: given[0] for place, given in tracing.outputs.items()
        if place and len(given) == 1 and not why_not(tracing, steps, given[0])
    }  # fmt: skip
    if node is None:
        raise EestudyError(f"nodes: {name!r} {wrong}; {nearest(name, working)}")
    order = list(tracing.graph.nodes)
    close = sorted(working, key=lambda place: abs(order.index(working[place]) - order.index(node)))[:3]
    raise CannotCut(f"nodes: {name!r} {wrong}; nearest: {', '.join(close) or '(none)'}")


def _read(steps: dict[fx.Node, Step], node: fx.Node) -> fx.Node:
    """What the model goes on with of a tuple, which a recurrent layer gives; any other node itself."""
    if steps[node].type_name != "tuple":
        return node
    return next((each for each in node.users if each.target is operator.getitem and each.users), node)


def _numbered(module: str, calls: list[fx.Node]) -> list[str]:
    return [f"{module}@{number}" for number in range(1, len(calls) + 1)]


def why_not(tracing: Tracing, steps: dict[fx.Node, Step], node: fx.Node) -> str:
    """Why no exit can stand after `node`; "" if one can."""
    step = steps[node]
    if step.shape is None:
        return f"gives a {step.type_name}, not the features of a tensor"
    if not step.of_samples or not 2 <= len(step.shape) <= 4 or node.op == "placeholder":
        return f"gives a tensor of shape {step.shape} for {DRY_BATCH} samples, which no head reads"
    if tracing.trained is not None and node not in tracing.in_training:
        return "is a step of evaluation alone, training has others there"
    try:
        split(tracing, steps, [node])
    except Uncuttable as error:
        return f"stands before a use of {error.node.name!r}, which cannot travel over a cut, as it has no row a sample"
    return ""


def last_stage_end(tracing: Tracing, steps: dict[fx.Node, Step], last_cut: fx.Node, name: str) -> fx.Node:
    """Where the stage after `last_cut`, named `name`, ends, so that a step with weights is left for the classifier.

    The last step with weights that gives features like those at `last_cut`, or any features if there is none, and
    what follows without a change of shape: an activation or a sum still gives a stage's features, pooling does not.
    """
    nodes = list(tracing.graph.nodes)

    def has_weights(node: fx.Node) -> bool:
        if node.op == "call_module":
            return any(True for _ in tracing.attributes[str(node.target)].parameters())
        given = [tracing.attributes[str(each.target)] for each in node.all_input_nodes if each.op == "get_attr"]
        return any(isinstance(tensor, nn.Parameter) for tensor in given)

    with_weights = [node for node in nodes if has_weights(node)]
    classifier = nodes.index(with_weights[-1]) if with_weights else 0
    between = [node for node in with_weights if nodes.index(last_cut) < nodes.index(node) < classifier]
    ends = [node for each in between if not why_not(tracing, steps, node := _read(steps, each))]
    if not ends:
        raise EestudyError(
            f"nodes: between {name!r} and the classifier there is no layer, so its exit would read what the "
            "classifier reads; leave it out, or name with classifier_after where the classifier begins"
        )
    alike = [node for node in ends if len(steps[node].shape or ()) == len(steps[last_cut].shape or ())]
    end = (alike or ends)[-1]
    for node in nodes[nodes.index(end) + 1 : classifier]:
        if steps[node].shape != steps[end].shape or why_not(tracing, steps, node):
            break
        end = node
    return end
