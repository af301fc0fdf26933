"""All exits in one ONNX file, put together from the file of each: nothing is traced again. No torch here.

all_exits.onnx: x (B, *input_shape) -> logits_k (B, C) of every exit k. early_exit.onnx: x (1, *input_shape) -> logits
(1, C) and exit (): after each exit an If node, in whose one branch the sample leaves and in whose other it goes on.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from eestudy.config import EestudyError
from eestudy.export.runner import handed_on
from eestudy.extras import needed

FILES = {"all": "all_exits.onnx", "early": "early_exit.onnx"}
# In ONNX's own notation: z, the logits by their temperature (1, C) -> s, the score of `evaluation.rules`.
SCORES = {
    "max-probability": "p = Softmax <axis = 1> (z)  s = ReduceMax (p)",
    "margin": "p = Softmax <axis = 1> (z)  k = Constant <value_ints = [2]> ()  two, at = TopK (p, k)"
    "  high = ReduceMax (two)  low = ReduceMin (two)  s = Sub (high, low)",
    "entropy": "m = ReduceMax (z)  d = Sub (z, m)  e = Exp (d)  t = ReduceSum (e)  de = Mul (d, e)"
    "  n = ReduceSum (de)  q = Div (n, t)  l = Log (t)  s = Sub (q, l)",
}
LEAVES = """rule (float[1,C] logits, double temperature, double threshold) => (bool leaves) {{
    wide = Cast <to = 11> (logits)  scaled = Div (wide, temperature)  z = Cast <to = 1> (scaled)  {score}
    ws = Cast <to = 11> (s)  scalar = Constant <value = int64[0] {{}}> ()  one = Reshape (ws, scalar)
    leaves = Greater (one, threshold) }}"""


class _Parts:
    """The graphs of the exits in a folder, by the `facts` of exits.json, with names that do not clash."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.onnx: Any = needed("onnx", "export")
        self.compose: Any = needed("onnx.compose", "export")
        self.facts, self.make = facts, self.onnx.helper
        self.numbers = [each["exit"] for each in facts["exits"]]
        self.nodes: list[list[Any]] = []  # of each exit,
        self.weights: list[list[Any]] = []  # and its initializers
        opsets: dict[str, int] = {}
        values = {"state_0": "x"}
        for each in facts["exits"]:
            here = f"exit_{each['exit']}/"
            model = self.compose.add_prefix(self.onnx.load(folder / each["onnx"]), here)
            given = [value.name for value in model.graph.input]
            links = [self._is(values[name.removeprefix(here)], name) for name in given]
            self.nodes.append([*links, *model.graph.node])
            self.weights.append(list(model.graph.initializer))
            opsets |= {opset.domain: max(opset.version, opsets.get(opset.domain, 0)) for opset in model.opset_import}
            values = handed_on({name: here + name for name in each["outputs"]})
        self.versions = {"opset_imports": [self.make.make_opsetid(*pair) for pair in opsets.items()],
                         "ir_version": model.ir_version}  # fmt: skip

    def _is(self, what: str, name: str) -> Any:
        return self.make.make_node("Identity", [what], [name])

    def _constant(self, value: Any, name: str) -> Any:
        return self.make.make_node("Constant", [], [name], value=self.onnx.numpy_helper.from_array(np.array(value)))

    def _value(self, name: str, dtype: Any, *shape: Any) -> Any:
        return self.make.make_tensor_value_info(name, self.make.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def _model(self, nodes: list[Any], gives: list[Any], batch: Any, weights: list[Any]) -> Any:
        x = self._value("x", self.facts["input_dtype"], batch, *self.facts["input_shape"])
        return self.make.make_model(self.make.make_graph(nodes, "exits", [x], gives, weights), **self.versions)

    def all(self) -> Any:
        ends = [self._is(f"exit_{number}/logits", f"logits_{number}") for number in self.numbers]
        gives = [self._value(end.output[0], np.float32, "batch", self.facts["num_classes"]) for end in ends]
        return self._model([*chain(*self.nodes), *ends], gives, "batch", list(chain(*self.weights)))

    def early(self) -> Any:
        if self.facts["num_classes"] == 1 or self.facts["rule"]["name"] not in SCORES:
            raise EestudyError(f"the rule {self.facts['rule']['name']} is written without If nodes alone")
        graph = self._from(0, "")
        return self._model(list(graph.node), list(graph.output), 1, list(graph.initializer))

    def _from(self, at: int, to: str) -> Any:
        """The graph of the exit at that place and all after it; it gives `to`logits and `to`exit."""
        here = f"exit_{self.numbers[at]}/"
        if at == len(self.numbers) - 1:
            return self._graph([*self.nodes[at], *self._stays(here, to)], to, self.weights[at])
        rule = self.facts["rule"]
        leaves = self.onnx.parser.parse_graph(
            LEAVES.format(score=SCORES[rule["name"]]).replace("C", str(self.facts["num_classes"]), 1)
        )
        temperature = (rule["temperatures"] or {}) and rule["temperatures"][self.numbers[at] - 1]
        decision = [
            self._constant(float(temperature or 1.0), f"{here}rule/temperature"),
            self._constant(float(rule["thresholds"][self.numbers[at] - 1]), f"{here}rule/threshold"),
            self._is(f"{here}logits", f"{here}rule/logits"),
            *self.compose.add_prefix_graph(leaves, f"{here}rule/").node,
            self.make.make_node(
                "If", [f"{here}rule/leaves"], [f"{to}logits", f"{to}exit"],
                then_branch=self._graph(self._stays(here, f"{here}stays/"), f"{here}stays/", []),
                else_branch=self._from(at + 1, f"{here}goes/"),
            ),
        ]  # fmt: skip
        return self._graph([*self.nodes[at], *decision], to, self.weights[at])

    def _stays(self, here: str, to: str) -> list[Any]:
        number = int(here.removeprefix("exit_").removesuffix("/"))
        return [self._is(f"{here}logits", f"{to}logits"), self._constant(number, f"{to}exit")]

    def _graph(self, nodes: list[Any], to: str, weights: list[Any]) -> Any:
        gives = [
            self._value(f"{to}logits", np.float32, 1, self.facts["num_classes"]),
            self._value(f"{to}exit", np.int64),
        ]
        return self.make.make_graph(nodes, f"{to}graph", [], gives, weights)


def build(folder: Path, facts: dict[str, Any], form: str) -> None:
    """Writes a form of FILES into the folder of an export."""
    parts = _Parts(folder, facts)
    model = parts.all() if form == "all" else parts.early()
    parts.onnx.checker.check_model(model)
    parts.onnx.save(model, folder / FILES[form])
