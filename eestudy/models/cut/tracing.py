"""A model's forward pass written down as a graph, in training and in evaluation at once.

torch.fx makes the graph: each node one step, in the order they run. Modules that need not be cut stay whole, so they
keep their names, their hooks and what they do in training.
"""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn


@dataclass
class Tracing:
    """The forward pass as a graph, what its targets name, and what each call of a module gave.

    layers: the module that a node is of, where no hook on a module can tell. trained: the graph in training, if the
    first one is that of evaluation alone; in_training: the same step in it.
    """

    graph: fx.Graph
    attributes: dict[str, Any]
    outputs: dict[str, list[fx.Node]]
    layers: dict[fx.Node, nn.Module] = field(default_factory=dict)
    trained: Tracing | None = None
    in_training: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def module(self) -> fx.GraphModule:
        return fx.GraphModule(self.attributes, self.graph)


DRAWS = "it draws random numbers, which would be drawn once and for all"


class Untraceable(Exception):
    """torch.fx could not follow the forward of the module `name` ("" for the model itself)."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class Whole(nn.Module):
    """A model called with its input alone: other arguments of its forward keep their defaults.

    output: the key, attribute or number of what is taken of its output; None: all of it.
    """

    def __init__(self, model: nn.Module, output: str | int | None = None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Any:
        given = self.model(x)
        if self.output is None:
            return given
        if isinstance(self.output, str) and not isinstance(given, dict) and hasattr(given, self.output):
            return getattr(given, self.output)
        return given[self.output]


class _Tracer(fx.Tracer):
    """Steps into the modules named in `opened`; None: into all but torch's own, as torch.fx.symbolic_trace does."""

    def __init__(self, opened: frozenset[str] | None, model: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.opened, self.model, self.x = opened, model, x
        self.running = False
        self.outputs: dict[str, list[fx.Node]] = {}
        self.inside: list[str] = []

    def path_of_module(self, mod: nn.Module) -> str:
        return unprefixed(super().path_of_module(mod))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.opened is None and module_qualified_name:
            return super().is_leaf_module(m, module_qualified_name)
        return bool(module_qualified_name) and module_qualified_name not in (self.opened or ())

    def create_node(self, kind: str, target: Any, *others: Any, **more: Any) -> fx.Node:
        return super().create_node(kind, unprefixed(target) if kind == "get_attr" else target, *others, **more)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A condition on shapes takes one way only, if it does so for any batch: the steps so far are run on x."""
        if _of_values(obj.node):
            return super().to_bool(obj)
        graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.graph.nodes:
            made[node] = graph.node_copy(node, made.__getitem__)
        graph.output(made[obj.node])
        steps = fx.GraphModule(attributes_of(graph, self.model, self.root), graph)
        self.running = True
        try:
            with torch.no_grad():
                found = {bool(steps(x)) for x in (self.x, self.x[:1])}
        finally:
            self.running = False
        return found.pop() if len(found) == 1 else super().to_bool(obj)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        self.inside.append(name)
        given = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not in a finally: after an error it names the module that stopped the tracing
        if isinstance(given, fx.Proxy):
            self.outputs.setdefault(name, []).append(given.node)
        return given


def unprefixed(target: str) -> str:
    """A name inside `Whole` -> the name inside the model."""
    return target.removeprefix("model").removeprefix(".")


def _of_values(node: fx.Node) -> bool:
    """Whether what `node` gives depends on a tensor's values, not only on its shape and the like."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel", "is_floating_point"):
        return False
    if node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda"):
        return False
    return node.op not in ("call_function", "call_method") or any(map(_of_values, node.all_input_nodes))


def trace(whole: Whole, opened: frozenset[str] | None, x: Tensor) -> Tracing:
    """The forward pass in training and in evaluation as one graph. Raises Untraceable, naming the module.

    x: (B, ...), B at least 2, decides conditions on its shape. Call it in evaluation mode.
    """
    evaluated, trained = (_traced(whole, opened, x, training) for training in (False, True))
    _join(evaluated.graph, trained.graph)
    if any(node.target == "training" for node in evaluated.graph.nodes if node.op == "get_attr"):
        evaluated.attributes["training"] = whole.model.training
    return evaluated


def _traced(of: Whole, opened: frozenset[str] | None, x: Tensor, training: bool) -> Tracing:
    # A copy is traced: what a forward keeps on `self`, such as its last features, would be left there as a symbol.
    tracer, whole = _Tracer(opened, of.model, x), copy.deepcopy(of).train(training)
    before = {name: (buffer, buffer._version) for name, buffer in whole.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        try:
            with no_draws():
                graph = tracer.trace(whole)
        except Untraceable:
            raise
        except Exception as error:
            module = tracer.inside[-1] if tracer.inside else ""
            raise Untraceable(module, str(error).strip().split("\n")[0]) from error
        if not torch.equal(state, torch.get_rng_state()):
            raise Untraceable("", DRAWS)
    for name, buffer in whole.named_buffers():
        if name not in before or buffer is not before[name][0] or buffer._version != before[name][1]:
            raise Untraceable("", f"it changes its buffer {unprefixed(name)!r}, which would change once and for all")
    return Tracing(graph, attributes_of(graph, of.model, whole), tracer.outputs)


@contextmanager
def no_draws() -> Iterator[None]:
    """Raises Untraceable if random numbers of Python or numpy are drawn within; they are given back."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
        if random.getstate() != python or str(np.random.get_state()) != str(numpy):
            raise Untraceable("", DRAWS)
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def attributes_of(graph: fx.Graph, model: nn.Module, whole: Any) -> dict[str, Any]:
    """What the targets of `graph` name: in the model, or else a constant that the tracer keeps in `whole`."""
    found = {}
    for target in (str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")):
        for root, name in ((model, target), (whole, target), (whole, f"model.{target}")):
            try:
                found[target] = operator.attrgetter(name)(root)
                break
            except AttributeError:
                continue
    return found


def either(training: bool, in_training: Any, otherwise: Any) -> Any:
    """A setting that is not the same in training and in evaluation, such as functional dropout's."""
    return in_training if training else otherwise


# Its full name stands in the code of what is cut out, which is part of a run's id: it stays what it was first.
either.__module__ = "eestudy.models.tracing"


def _join(graph: fx.Graph, trained: fx.Graph) -> None:
    """Makes `graph` (traced in evaluation) also do what `trained` does, by asking for the mode when it runs."""
    nodes, others = list(graph.nodes), list(trained.nodes)
    flag: list[fx.Node] = []

    def differ(node: fx.Node) -> Untraceable:
        return Untraceable("", f"its steps in training are not those in evaluation, from {node.name!r} on")

    def joined(node: fx.Node, mine: Any, other: Any) -> Any:
        if isinstance(mine, fx.Node) and isinstance(other, fx.Node) and mine.name == other.name:
            return mine
        if isinstance(mine, (tuple, list)) and isinstance(other, type(mine)) and len(mine) == len(other):
            return type(mine)(joined(node, *pair) for pair in zip(mine, other))
        if isinstance(mine, slice) and isinstance(other, slice):
            ends = ((mine.start, other.start), (mine.stop, other.stop), (mine.step, other.step))
            return slice(*(joined(node, *pair) for pair in ends))
        if isinstance(mine, dict) and isinstance(other, dict) and mine.keys() == other.keys():
            return {key: joined(node, value, other[key]) for key, value in mine.items()}
        if isinstance(mine, fx.Node) or isinstance(other, fx.Node):
            raise differ(node)
        if type(mine) is type(other) and mine == other:
            return mine
        with graph.inserting_before(nodes[1]):
            if not flag:
                flag.append(graph.create_node("get_attr", "training"))
        with graph.inserting_before(node):
            return graph.call_function(either, (flag[0], other, mine))

    for node, other in zip(nodes, others):
        if (node.op, node.target) != (other.op, other.target):
            raise differ(node)
        node.args = joined(node, node.args, other.args)
        node.kwargs = joined(node, node.kwargs, other.kwargs)
