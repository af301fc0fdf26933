"""Cutting a traced forward pass into parts that run one after another.

A cut puts a part's end behind a node; what later parts still need travels with it as the state.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from eestudy.models.cut.tracing import Tracing

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
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.Embedding
)  # fmt: skip


class _Recorder(fx.Interpreter):
    """Runs a graph and notes of each node what it gave: its shape, its type, the last layer so far."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.given: list[tuple[tuple[int, ...] | None, str, nn.Module | None]] = []
        self.layer: nn.Module | None = None

    def note(self, layer: nn.Module, given: Any, result: Any) -> None:
        self.layer = layer if isinstance(layer, _LAYERS) else self.layer

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
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
        recorder = _Recorder(tracing.module().eval())
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
            for source in node.all_input_nodes:
                if order[source] <= order[cut]:
                    live |= carried(source, steps)
        states.append([cut, *sorted(live - {cut}, key=order.__getitem__)])
    return states


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
        load(node)
    graph.output(fx.map_arg(gives, load))
    return fx.GraphModule(tracing.attributes, graph)
