"""Cards of methods and strategies, made from the code's own docstrings and phases.

The docstrings are read from the source, so nothing here imports torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from eestudy.registry import METHODS, STRATEGIES

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Card:
    """What a docstring says: its first line, and what follows, in Markdown with formulas and YAML."""

    name: str
    idea: str
    body: str

    def markdown(self, cost: str = "", formula: str = "") -> str:
        """The card; `formula` comes before what follows the first line, `cost` is the last one."""
        parts = [f"**`{self.name}`.** {self.idea}", formula, self.body, f"*Cost.* {cost}" if cost else ""]
        return "\n\n".join(part for part in parts if part)

    def _repr_markdown_(self) -> str:
        return self.markdown()


def method_cards() -> dict[str, Card]:
    """Of every method, from the module that defines it."""
    return {name: _card(name, ast.get_docstring(_module(f"methods/{name}.py")) or "") for name in METHODS}


def strategy_cards() -> dict[str, Card]:
    """Of every strategy: its function's docstring, or those of the phases it is put together from."""
    module = _module("training/strategies.py")
    functions = {part.name: part for part in module.body if isinstance(part, ast.FunctionDef)}
    cards = {}
    for name, entry in STRATEGIES.entries.items():
        function = functions[entry.at.split(":")[1]]
        text = ast.get_docstring(function)
        if text is None:  # it is put together from phases
            called = [part.func for part in ast.walk(function) if isinstance(part, ast.Call)]
            phases = [ast.get_docstring(functions[phase.id]) or "" for phase in called if isinstance(phase, ast.Name)]
            text = f"{'; then '.join(phase.rstrip('.') for phase in phases)}."
        cards[name] = _card(name, f"{text}\n\n.. code-block:: yaml\n\n    strategy: {name}\n")
    return cards


def _module(path: str) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _card(name: str, docstring: str) -> Card:
    first, _, rest = docstring.partition("\n\n")
    return Card(name, markdown(first), markdown(rest).strip())


def markdown(text: str) -> str:
    """reStructuredText as docstrings here have it, with its formulas and code blocks, as Markdown."""
    made, block, kind = [], [], ""
    for line in [*text.splitlines(), "end"]:
        if kind and (line.startswith("    ") or not line.strip()):
            block.append(line.strip() if kind == "math" else line[4:])
            continue
        if kind:
            content = "\n".join(block).strip()
            made += [f"$$\n{content}\n$$" if kind == "math" else f"```{kind}\n{content}\n```", ""]
            block, kind = [], ""
        if directive := re.fullmatch(r"\.\. (math|code-block):: ?(.*)", line):
            kind = "math" if directive[1] == "math" else directive[2]
            block = [directive[2]] if directive[1] == "math" else []
        else:
            made.append(line)
    return re.sub(r":math:`([^`]*)`", r"$\1$", "\n".join(made[:-1])).strip()


class PhaseLike(Protocol):
    """What of a phase is shown; eestudy.training.phases.Phase has it."""

    @property
    def trains(self) -> tuple[str, ...]: ...
    @property
    def exits(self) -> str | tuple[int, ...]: ...
    @property
    def stages(self) -> tuple[int, int] | None: ...
    @property
    def turns(self) -> tuple[str, ...]: ...
    @property
    def keeps(self) -> str: ...


def formula(phases: Iterable[PhaseLike], exits: int) -> str:
    """What each phase minimizes, a line a phase, in a network with so many exits, one after each stage.

    b the stages, c the classifier, h the heads. A tilde: taught by what the exit said before. Omega: a penalty.
    """
    lines = [rf"&{number}.\quad {_minimum(phase, exits)}" for number, phase in enumerate(phases, 1)]
    return "$$\n\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}\n$$"


def _minimum(phase: PhaseLike, exits: int) -> str:
    if phase.turns:
        steps = {
            "last": r"\min_{\theta_b, \theta_c} L_K",
            "all": r"\min_{\theta_b, \theta_c, \theta_h} \sum_{k \leq K} w_k L_k",
        }
        return r",\quad ".join(
            rf"{steps[turn]} \;\text{{ in {place} steps}}"
            for turn, place in zip(phase.turns, ("odd", "even"), strict=True)
        )
    numbers = () if isinstance(phase.exits, str) else phase.exits
    weights = []
    if "backbone" in phase.trains:
        first, last = phase.stages or (0, 0)
        weights.append(r"\theta_b" if not last else rf"\theta_{{b,{first if first == last else f'{first}..{last}'}}}")
        if not last or exits in numbers:
            weights.append(r"\theta_c")
    heads = [str(number) for number in numbers if number < exits]
    if "heads" in phase.trains and (heads or not numbers):
        weights.append(rf"\theta_{{h,{','.join(heads)}}}" if numbers else r"\theta_h")
    losses = {"last": "L_K", "all": r"\sum_{k \leq K} w_k L_k", "internal": r"\sum_{k < K} w_k L_k"}
    if isinstance(phase.exits, str):
        loss = losses[phase.exits]
    elif phase.keeps == "lwf":
        loss = " + ".join([*(rf"\tilde L_{number}" for number in numbers[:-1]), f"L_{numbers[-1]}"])
    else:
        loss = " + ".join(f"w_{number} L_{number}" if len(numbers) > 1 else f"L_{number}" for number in numbers)
    if phase.keeps == "ewc" and numbers != (1,):
        loss += r" + \Omega"
    return rf"\min_{{{', '.join(weights)}}} {loss}"


def relative_cost(flops: Mapping[str, float], reference: str) -> dict[str, str]:
    """name -> its training FLOPs in per cent of the reference's, in words."""
    return {
        name: f"{100 * value / flops[reference]:.0f} % of the training FLOPs of `{reference}`."
        for name, value in flops.items()
    }
