"""A model's forward pass as a graph of torch.export, where torch.fx cannot follow it: one for each mode.

torch.export runs the forward itself, so what Python does in it (conditions that do not change, caches, keyword
arguments, modules made on the way) is followed, and modules are gone: every node is one of torch's own operations.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, fx, nn

from eestudy.models.backbone import mode
from eestudy.models.cut.tracing import Tracing, Untraceable, Whole, attributes_of, no_draws, unprefixed


def export_trace(whole: Whole, x: Tensor) -> Tracing:
    """As `tracing.trace`, with another graph for training in `Tracing.trained`. Raises Untraceable.

    x: (B, ...), B at least 2.
    """
    evaluated, trained = (_exported(whole, x, training) for training in (False, True))
    evaluated.trained = trained
    evaluated.in_training = _matched(evaluated.graph, trained.graph)
    for call, nodes in evaluated.outputs.items():  # which exits read: what a module gives, however it comes to it
        if len(others := trained.outputs.get(call, [])) == len(nodes):
            evaluated.in_training.update(zip(nodes, others))
    return evaluated


def _matched(graph: fx.Graph, trained: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Node -> the one that does the same in training: the same step of the same call, giving the same shape.

    Names tell nothing: where training has a step more, "add_3" is another sum.
    """

    def keyed(of: fx.Graph) -> dict[tuple[object, ...], fx.Node]:
        seen: Counter[tuple[object, ...]] = Counter()
        found: dict[tuple[object, ...], fx.Node] = {}
        for node in of.nodes:
            step = tuple(_calls(node)), node.op, str(node.target)
            seen[step] += 1
            found[(*step, seen[step])] = node
        return found

    others = keyed(trained)
    return {
        node: others[key] for key, node in keyed(graph).items() if key in others and _sizes(node) == _sizes(others[key])
    }


def _sizes(node: fx.Node) -> list[str]:
    """Of what a node gives, without the batch, whose symbol is a graph's own."""
    given = node.meta.get("val")
    return [
        str(tuple(each.shape[1:]))
        for each in (given if isinstance(given, (tuple, list)) else [given])
        if isinstance(each, Tensor)
    ]


def _exported(whole: Whole, x: Tensor, training: bool) -> Tracing:
    try:
        with mode(whole, training), no_draws(), _silence():
            program = torch.export.export(
                whole, (x.clone(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False
            )
    except Untraceable:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Untraceable("", f"torch.export: {reason.strip()}") from error
    flat = program.module(check_guards=False)
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()

    def load(node: fx.Node) -> fx.Node:
        if node not in made:
            if node.op == "get_attr":  # next to who reads it first, so that a part holds the weights it needs
                made[node] = graph.get_attr(unprefixed(str(node.target)))
            else:
                made[node] = graph.node_copy(node, load)
        return made[node]

    for node in flat.graph.nodes:
        if node.op == "placeholder" or (node.op not in ("get_attr", "call_module") and not _is_check(node)):
            load(node)
    for node in graph.nodes:
        if node.op == "output":
            (given,) = node.args
            if not isinstance(given, (tuple, list)) or len(given) != 1:
                raise Untraceable("", "it has more than one output in training")
            node.args = (given[0],)
    stacks = {node.name: _calls(node) for node in program.graph.nodes}
    return Tracing(
        graph, attributes_of(graph, whole.model, flat), _outputs(graph, stacks), _layers(graph, stacks, whole.model)
    )


@contextmanager
def _silence() -> Iterator[None]:
    """Without what torch.export prints and logs of its own workings; errors are raised all the same."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _is_check(node: fx.Node) -> bool:
    return "_assert" in str(node.target) or "_guards" in str(node.target)


def _calls(node: fx.Node) -> list[str]:
    """The modules that a node runs in, outermost first, as "layer" or, from a module's second call on, "layer@2"."""
    found = []
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        path, _, call = str(path).partition("@")
        call = call or str(key).partition("@")[2]
        name = unprefixed(path)
        if name and name != "_empty_nn_module_stack_from_metadata_hook":
            found.append(f"{name}@{call}" if call else name)
    return found


def _outputs(graph: fx.Graph, stacks: dict[str, list[str]]) -> dict[str, list[fx.Node]]:
    """For each module the node that others read of each of its calls: the last such."""
    inside: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        for call in stacks.get(node.name, ()):
            inside.setdefault(call, []).append(node)
    outputs: dict[str, list[fx.Node]] = {}
    for call, nodes in inside.items():
        there = set(nodes)
        read = [node for node in nodes if any(user not in there for user in node.users)]
        if read:
            outputs.setdefault(call.partition("@")[0], []).append(read[-1])
    return outputs


def _layers(graph: fx.Graph, stacks: dict[str, list[str]], model: nn.Module) -> dict[fx.Node, nn.Module]:
    """The innermost module of each node."""
    modules = dict(model.named_modules())
    names = {node: (stacks.get(node.name) or [""])[-1].partition("@")[0] for node in graph.nodes}
    return {node: modules[name] for node, name in names.items() if name in modules}


class InBothModes(nn.Module):
    """A part that does one thing in evaluation and another in training, with one set of weights."""

    def __init__(self, evaluated: fx.GraphModule, trained: fx.GraphModule) -> None:
        super().__init__()
        self.part = evaluated
        self.code = trained.code  # part of a run's id
        for name, value in [*trained.named_parameters(), *trained.named_buffers()]:
            _set(evaluated, name, value)
        self.in_training: Callable[..., Any] = type(trained).forward
        self.eval()

    def forward(self, state: Any) -> Any:
        return self.in_training(self.part, state) if self.training else self.part(state)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Puts a tensor where the code of a graph looks for it, if it is not there."""
    *folders, last = name.split(".")
    for folder in folders:
        if not hasattr(module, folder):
            module.add_module(folder, nn.Module())
        module = getattr(module, folder)
    if not hasattr(module, last):
        if isinstance(value, nn.Parameter):
            module.register_parameter(last, value)
        else:
            module.register_buffer(last, value)
