"""Cards of methods and strategies, made from the code's own docstrings and phases; and methods and strategies compared.

Each method has its own exit rule. The docstrings are read from the source, so nothing here imports torch.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from eestudy.registry import METHODS, STRATEGIES
from eestudy.report import statistics as st
from eestudy.report.differences import REFERENCE, at_own_rule, by_seed, tested
from eestudy.report.effects import counted
from eestudy.report.frames import Results, in_order
from eestudy.report.tables import BUDGETS, PAIRS, Table, budget_name, percent, table

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


def relative_cost(flops: Mapping[str, float], reference: str) -> dict[str, str]:
    """name -> its training FLOPs in per cent of the reference's, in words."""
    return {
        name: f"{100 * value / flops[reference]:.0f} % of the training FLOPs of `{reference}`."
        for name, value in flops.items()
    }


# Comparisons


def same_as_reference(results: Results) -> list[str]:
    """The methods that have SDN's accuracy in every run and at every budget: one training, one rule. They are no cases
    of their own, so they are in the table of accuracies alone.
    """
    rows = at_own_rule(results)
    wide = rows.pivot(index=["strategy", "seed", "budget"], columns="method", values="accuracy")
    mine = wide[REFERENCE["method"]]
    several = wide.loc[wide.drop(columns=REFERENCE["method"]).notna().any(axis=1)]
    return [m for m in METHODS if m in wide and m != REFERENCE["method"] and several[m].equals(mine[several.index])]


def _cases(results: Results) -> pd.DataFrame:
    rows = at_own_rule(results)
    return rows[~rows["method"].isin(same_as_reference(results))]


def accuracy_table(results: Results, by: str) -> Table:
    """Accuracy at every budget and what the training cost; by "method": rows strategy x method; by "strategy": rows
    strategy, of SDN alone.
    """
    keys = ["strategy", "method"]
    rows, runs = _part(at_own_rule(results), by), _part(results.runs, by)
    flops = runs.groupby(keys)["training_flops"].mean()
    texts = rows.groupby([*keys, "budget"])["accuracy"].agg(lambda seeds: percent(st.mean_interval(seeds)))
    made = texts.unstack()[list(BUDGETS)].loc[_in_order(flops.index)].rename(columns=budget_name)
    made["FLOPs, %"] = [f"{100 * flops[key] / flops[_reference(key, by)]:.0f}" for key in made.index]
    seeds = runs.groupby(keys)["seed"].nunique().min()
    caption = (
        f"Accuracy on test, %, at budgets of the plain backbone's FLOPs, thresholds from validation data, each method "
        f"with its own exit rule; mean ± half of the 95 % interval over {seeds} seeds. FLOPs: of training, in per cent "
        f"of {REFERENCE[by]}'s."
    )
    return table(made.rename_axis(columns=None), caption, f"accuracy-by-{by}")


def differences(results: Results, by: str) -> pd.DataFrame:
    """Paired differences in accuracy from the reference, over seeds: methods less SDN under the same strategy, or
    strategies of SDN less joint.

    One row per strategy, method and budget: mean, low, high (95 %), n, p, p_holm (over all rows), decision, verdict.
    """
    groups = by_seed(_part(_cases(results), by), ["strategy", "method", "budget"])
    pairs = []
    for key, budget in product(_in_order((strategy, method) for strategy, method, _ in groups), BUDGETS):
        here, there = (*key, budget), (*_reference(key, by), budget)
        if here != there and here in groups and there in groups:
            pairs.append((*here, groups[here], groups[there]))
    return tested(("strategy", "method"), pairs)


def regimes(results: Results) -> pd.DataFrame:
    """As `differences`: for every method, mixed less joint and so on (`PAIRS`), in the column `pair`."""
    groups = by_seed(_cases(results), ["strategy", "method", "budget"])
    pairs = [
        (f"{a} − {b}", method, budget, groups[a, method, budget], groups[b, method, budget])
        for (a, b), method, budget in product(PAIRS, METHODS, BUDGETS)
        if {(a, method, budget), (b, method, budget)} <= set(groups)
    ]
    return tested(("pair", "method"), pairs)


def in_short(methods: pd.DataFrame, regimes: pd.DataFrame, strategies: pd.DataFrame) -> str:
    """What the corrected tests decide of `differences` by method and by strategy, and of `regimes`."""

    def told(frame: pd.DataFrame, by: str) -> str:
        words = {"better": "higher", "worse": "lower"}
        return counted(frame.assign(decision=frame["decision"].replace(words)), by)

    return (
        f"**In short.** Each method less SDN under the same strategy: {told(methods, 'strategy')} comparisons. Within "
        f"a method, {told(regimes, 'pair')}. SDN under another strategy less joint: {told(strategies, 'method')}."
    )


def _part(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """The rows that are compared: of strategies SDN's, of methods those under strategies that several have."""
    if by == "strategy":
        return frame[frame["method"] == REFERENCE["method"]]
    several = frame.groupby("strategy")["method"].nunique()
    return frame[frame["strategy"].map(several) > 1]


def _in_order(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    there = list(keys)
    return [(s, m) for s in in_order(strategy for strategy, _ in there) for m in METHODS if (s, m) in there]


def _reference(key: tuple[str, str], by: str) -> tuple[str, str]:
    """What a (strategy, method) is compared with."""
    strategy, method = key
    return (strategy, REFERENCE["method"]) if by == "method" else (REFERENCE["strategy"], method)
