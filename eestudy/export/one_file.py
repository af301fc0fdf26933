"""All exits in one ONNX file, put together from the file of each: no program is traced again. No torch here.

all_exits.onnx: x (B, *input_shape) -> logits_k (B, C) of every exit k. early_exit.onnx: x (1, *input_shape) -> logits
(1, C) and exit (): after each exit an If node, in whose one branch the sample leaves and in whose other it goes on.
"""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eestudy.export.runner import TOO_EARLY, handed_on
from eestudy.extras import needed

RESULTS = ("logits", "exit")
FILES = {"all": "all_exits.onnx", "early": "early_exit.onnx"}


class Parts:
    """The graphs of the exits in a folder, by their `facts` (of exits.json), with names that do not clash."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.onnx: Any = needed("onnx", "export")
        self.facts, self.exits = facts, facts["exits"]
        self.nodes: list[list[Any]] = []  # of each exit,
        self.weights: list[list[Any]] = []  # and its initializers
        opsets: dict[str, int] = {}
        values = {"state_0": "x"}
        compose = needed("onnx.compose", "export")
        for each in self.exits:
            here = f"exit_{each['exit']}/"
            model = compose.add_prefix(self.onnx.load(folder / each["onnx"]), here)
            links = [self.node("Identity", [values[given.name.removeprefix(here)]], given.name)
                     for given in model.graph.input]  # fmt: skip
            self.nodes.append([*links, *model.graph.node])
            self.weights.append(list(model.graph.initializer))
            opsets |= {opset.domain: max(opset.version, opsets.get(opset.domain, 0)) for opset in model.opset_import}
            values = handed_on({name: here + name for name in each["outputs"]})
        self.head = {
            "opset_imports": [self.onnx.helper.make_opsetid(*pair) for pair in opsets.items()],
            "ir_version": model.ir_version,
        }

    def node(self, kind: str, given: list[str], gives: str, **attributes: Any) -> Any:
        return self.onnx.helper.make_node(kind, given, [gives], **attributes)

    def constant(self, value: Any, dtype: Any, name: str) -> Any:
        return self.node("Constant", [], name, value=self.onnx.numpy_helper.from_array(np.array(value, dtype), name))

    def value(self, name: str, dtype: Any, shape: list[Any]) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def model(self, nodes: list[Any], weights: list[Any], batch: Any, gives: list[Any]) -> Any:
        x = self.value("x", self.facts["input_dtype"], [batch, *self.facts["input_shape"]])
        graph = self.onnx.helper.make_graph(nodes, "exits", [x], gives, weights)
        return self.onnx.helper.make_model(graph, **self.head)

    def all(self) -> Any:
        """Every exit's logits."""
        names = {f"exit_{each['exit']}/logits": f"logits_{each['exit']}" for each in self.exits}
        ends = [self.node("Identity", [inner], name) for inner, name in names.items()]
        gives = [self.value(name, np.float32, ["batch", self.facts["num_classes"]]) for name in names.values()]
        return self.model([*chain(*self.nodes), *ends], list(chain(*self.weights)), "batch", gives)

    def early(self) -> Any:
        """One sample, which leaves where the rule lets it."""
        nodes, weights = self._from(0)
        ends = [self.node("Identity", [f"exit_{self.exits[0]['exit']}/final_{name}"], name) for name in RESULTS]
        return self.model([*nodes, *ends], weights, 1, self._results(""))

    def _results(self, before: str) -> list[Any]:
        logits = self.value(f"{before}logits", np.float32, [1, self.facts["num_classes"]])
        return [logits, self.value(f"{before}exit", np.int64, [])]

    def _from(self, at: int) -> tuple[list[Any], list[Any]]:
        """Nodes and weights of exits[at] and all after it; they give exit_k/final_logits and exit_k/final_exit."""
        number = self.exits[at]["exit"]
        here = f"exit_{number}/"

        def leaves(to: str) -> list[Any]:
            logits = self.node("Identity", [f"{here}logits"], f"{here}{to}_logits")
            return [logits, self.constant(number, np.int64, f"{here}{to}_exit")]

        if at == len(self.exits) - 1:
            return [*self.nodes[at], *leaves("final")], self.weights[at]
        make = self.onnx.helper.make_graph
        there = f"exit_{self.exits[at + 1]['exit']}/final_"
        nodes, weights = self._from(at + 1)
        goes = make(nodes, "goes_on", [], self._results(there), weights)
        stays = make(leaves("here"), "leaves", [], self._results(f"{here}here_"))
        decision = self.onnx.helper.make_node(
            "If", [f"{here}leaves"], [f"{here}final_{name}" for name in RESULTS], then_branch=stays, else_branch=goes
        )
        return [*self.nodes[at], *self._score(at), decision], self.weights[at]

    def _score(self, at: int) -> list[Any]:
        """Nodes that give exit_k/leaves (), bool: `runner.score` of one sample, against the threshold."""
        rule, number = self.facts["rule"], self.exits[at]["exit"]
        here = f"exit_{number}/rule_"
        nodes: list[Any] = []

        def add(kind: str, *given: str, **attributes: Any) -> str:
            nodes.append(self.node(kind, list(given), f"{here}{len(nodes)}", **attributes))
            return nodes[-1].output[0]

        def constant(value: Any, dtype: Any = np.float32) -> str:
            nodes.append(self.constant(value, dtype, f"{here}{len(nodes)}"))
            return nodes[-1].output[0]

        proto = self.onnx.TensorProto
        logits = [f"exit_{each['exit']}/logits" for each in self.exits[: at + 1]]
        last = logits[-1]
        if rule.get("temperatures"):
            wide = add(
                "Div", add("Cast", last, to=proto.DOUBLE), constant(rule["temperatures"][number - 1], np.float64)
            )
            last = add("Cast", wide, to=proto.FLOAT)
        if self.facts["num_classes"] == 1:
            changes = 1 if rule["k"] is None else rule["k"]
            seen = [add("Abs", add("Sub", *pair)) for pair in pairwise(logits[-changes - 1 :])]
            found = add("Neg", add("Max", constant(0), *seen)) if at >= changes else constant(TOO_EARLY)
        elif rule["name"] == "patience":
            classes = [add("ArgMax", each, axis=1) for each in reversed(logits)]
            found = same = constant(1)
            for other in classes[1:]:
                same = add("Mul", same, add("Cast", add("Equal", classes[0], other), to=proto.FLOAT))
                found = add("Add", found, same)
        elif rule["name"] == "entropy":
            shifted = add("Sub", last, add("ReduceMax", last))
            powers = add("Exp", shifted)
            total = add("ReduceSum", powers)
            found = add("Sub", add("Div", add("ReduceSum", add("Mul", shifted, powers)), total), add("Log", total))
        else:
            p = add("Softmax", last, axis=1)
            found = add("ReduceMax", p)
            if rule["name"] == "margin":
                nodes.append(
                    self.onnx.helper.make_node("TopK", [p, constant([2], np.int64)], [f"{here}two", f"{here}at"])
                )
                found = add("Sub", found, add("ReduceMin", f"{here}two"))
        wide = add("Reshape", add("Cast", found, to=proto.DOUBLE), constant([], np.int64))
        threshold = constant(float(rule["thresholds"][number - 1]), np.float64)
        return [*nodes, self.node("Greater", [wide, threshold], f"exit_{number}/leaves")]


def build(folder: Path, facts: dict[str, Any], form: str) -> str:
    """Writes a form of FILES into the folder of an export; returns the file's name."""
    parts = Parts(folder, facts)
    model = parts.all() if form == "all" else parts.early()
    parts.onnx.checker.check_model(model)
    parts.onnx.save(model, folder / FILES[form])
    return FILES[form]
