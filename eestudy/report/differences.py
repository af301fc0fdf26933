"""Paired differences in accuracy at each budget between methods or strategies: tests, table, figure, words.

A frame of `tested` has two key columns, first and second, such as strategy and method.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from eestudy.config import EestudyError
from eestudy.report import panels, style
from eestudy.report import statistics as st
from eestudy.report.frames import Results
from eestudy.report.tables import Table, budget_name, by_budget, table, usual_allocation
from eestudy.report.tables import tested as stars

REFERENCE = {"method": "sdn", "strategy": "joint"}


def at_own_rule(results: Results) -> pd.DataFrame:
    """The calibrated budgets of every run at the exit rule of its method, with the column `method`."""
    rules = results.tradeoff.groupby("run")["rule"].first()
    rows = results.budgets[results.budgets["protocol"] == "calibrated"]
    return usual_allocation(rows[rows["rule"] == rows["run"].map(rules)])


def by_seed(rows: pd.DataFrame, keys: list[str], value: str = "accuracy") -> dict[tuple[Any, ...], pd.Series]:
    """The values of `keys` -> that column by seed, without those that are missing."""
    groups = rows.dropna(subset=value).groupby(keys, sort=False)
    return {key: group.set_index("seed")[value] for key, group in groups}


def tested(keys: tuple[str, str], pairs: Iterable[tuple[str, str, str, pd.Series, pd.Series]]) -> pd.DataFrame:
    """Paired differences a - b over seeds. pairs: the values of the two keys, the budget, a and b by seed.

    One row per pair: the keys, budget, mean, low, high (95 %), n, p, note, p_holm (over all rows), decision, verdict.
    """
    names = (*keys, "budget")
    return st.tested(names, ((dict(zip(names, key, strict=True)), a, b) for *key, a, b in pairs))


def difference_table(frame: pd.DataFrame, what: str, name: str) -> Table:
    """What `tested` gives for a reader, columns budgets; what: the caption's beginning."""
    texts = [f"{st.with_interval(row, to=' to ')}{'*' if row.decision else ''}" for row in frame.itertuples()]
    made = by_budget(frame.assign(text=texts), list(frame.columns[:2]))
    return table(made, f"{what}, points of accuracy [95 % interval]; {stars(frame)}", name)


@style.context()
def difference_plot(frame: pd.DataFrame, budgets: tuple[str, ...] = ("50", "100"), label: str = "") -> style.Plot:
    """Differences with their intervals: a panel a first key, rows second keys; filled where decided.

    Raises EestudyError where there are none.
    """
    first, second = frame.columns[:2]
    if frame.empty:
        raise EestudyError(f"frame: no {first} and {second} to compare in this study")
    if set(frame[second]) == {REFERENCE["method"]}:  # strategies alone: they are the rows of one panel
        first, second = second, first
    names = list(dict.fromkeys(frame[second]))
    shades = dict(zip(budgets, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False))
    figure, shown = panels.in_a_row(frame[first], label, 1.5 + 0.32 * len(names), sharey=True, sharex=True)
    for key, axes in shown.items():
        for shift, budget in zip((-0.15, 0.15, 0.3, -0.3), budgets, strict=False):
            rows = frame[(frame[first] == key) & (frame["budget"] == budget)]
            panels.forest(axes, rows, rows[second].map(names.index) + shift, [shades[budget]] * len(rows))
        axes.axvline(0, color=style.INK, linewidth=0.9)
        axes.grid(visible=False, axis="y")
    left = figure.axes[0]
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    for budget in budgets:
        left.plot([], [], marker="o", color=shades[budget], label=f"budget {budget_name(budget)}")
    panels.legend(figure)
    figure.supxlabel(f"{label}, points of accuracy", fontsize=10)
    return figure
