"""Where a model can be cut: names -> nodes of its graph, or an error that names the nearest ones that work."""

from __future__ import annotations

from torch import Tensor, fx, nn

from eestudy.config import EestudyError, nearest
from eestudy.models.cut.splitting import DRY_BATCH, Step, Uncuttable, split
from eestudy.models.cut.tracing import Tracing, Untraceable, trace


def trace_around(model: nn.Module, names: list[str], x: Tensor) -> Tracing:
    """The graph in which all of `names` are nodes: modules around them are opened, all others stay whole.

    A name that is no module's must be one of a node when all modules but torch's own are opened. x: as in `trace`.
    """
    modules = [name for name, _ in model.named_modules() if name]
    unknown = [name for name in names if name not in modules]
    if not unknown:
        parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(name.count(".") + 1)}
        return _traced(model, frozenset(parents), names, x)
    try:
        tracing = trace(model, None, x)
    except Untraceable as error:
        raise EestudyError(f"nodes: unknown name {unknown[0]!r}; {nearest(unknown[0], modules)}") from error
    known = [*modules, *(node.name for node in tracing.graph.nodes)]
    for name in unknown:
        if name not in known:
            raise EestudyError(f"nodes: unknown name {name!r}; {nearest(name, known)}")
    return tracing


def _traced(model: nn.Module, opened: frozenset[str], names: list[str], x: Tensor) -> Tracing:
    try:
        return trace(model, opened, x)
    except Untraceable as error:
        failed, reason = error.name, error
    kind = type(model.get_submodule(failed)).__name__
    if not failed:
        raise EestudyError(
            f"model: {names[0]!r} cannot be cut out of it, as torch.fx cannot follow the forward of {kind}: {reason}; "
            "give its parts yourself with Backbone.from_stages"
        ) from reason
    inside = next(name for name in names if name.startswith(f"{failed}."))
    # With that module whole, which places are there?
    rest = frozenset(name for name in opened if name != failed and not name.startswith(f"{failed}."))
    places = list(_traced(model, rest, names, x).outputs)
    at = places.index(failed) if failed in places else 0
    raise EestudyError(
        f"nodes: {inside!r} cannot be cut out of {failed!r}, as torch.fx cannot follow the forward of {kind}: "
        f"{reason}; nearest: {', '.join(places[max(0, at - 1) : at + 2])}"
    ) from reason


def find(tracing: Tracing, steps: dict[fx.Node, Step], name: str) -> fx.Node:
    """The node that gives what `name` gives. EestudyError with the nearest that work if no exit can stand there."""
    calls = tracing.outputs.get(name, [])
    nodes = {node.name: node for node in tracing.graph.nodes}
    node = calls[0] if calls else nodes.get(name)
    if node is None:
        wrong = "is not called by itself in the forward pass"
    elif len(calls) > 1:
        wrong = f"is called {len(calls)} times, so it is not one place"
    else:
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
    raise EestudyError(f"nodes: {name!r} {wrong}; nearest: {', '.join(close) or '(none)'}")


def why_not(tracing: Tracing, steps: dict[fx.Node, Step], node: fx.Node) -> str:
    """Why no exit can stand after `node`; "" if one can."""
    step = steps[node]
    if step.shape is None:
        return f"gives a {step.type_name}, not the features of a tensor"
    if not step.of_samples or not 2 <= len(step.shape) <= 4 or node.op == "placeholder":
        return f"gives a tensor of shape {step.shape} for {DRY_BATCH} samples, which no head reads"
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
        owned = [
            tracing.attributes[str(each.target)] for each in (node, *node.all_input_nodes) if each.op == "get_attr"
        ]
        if node.op == "call_module":
            owned += list(tracing.attributes[str(node.target)].parameters())
        return node.op != "get_attr" and any(isinstance(tensor, nn.Parameter) for tensor in owned)

    with_weights = [node for node in nodes if has_weights(node)]
    classifier = nodes.index(with_weights[-1]) if with_weights else 0
    between = [node for node in with_weights if nodes.index(last_cut) < nodes.index(node) < classifier]
    ends = [node for node in between if not why_not(tracing, steps, node)]
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
