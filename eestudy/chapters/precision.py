"""One study in two precisions, or other values of a setting: does that change accuracies, or what follows from them?

Seeds pair the two. Both tables hold differences "a - b" of two `Results` with the same cells (see `frames.only`), with
95 % t intervals and Holm-corrected paired t tests over all their rows.
"""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from eestudy.config import EestudyError
from eestudy.report import panels, style
from eestudy.report import statistics as st
from eestudy.report.differences import by_seed
from eestudy.report.frames import Results, in_order
from eestudy.report.tables import BUDGETS, PAIRS, Table, budget_name, by_budget, comparisons, select, table

KEYS = ["cell", "strategy", "budget"]
Accuracies = dict[tuple[Any, ...], pd.Series]  # KEYS -> seed -> accuracy


def accuracies(a: Results, b: Results, protocol: str = "calibrated", rule: str = "max-probability") -> pd.DataFrame:
    """How far accuracy at a budget is from a to b: one row per cell, strategy and budget that both reach.

    mean, low, high, sd (of a - b, fractions), n common seeds, p, note, p_holm, decision ("better": a is), verdict.
    """
    left, right = _by_seed(a, protocol, rule), _by_seed(b, protocol, rule)
    keys = _keys(a, left, right)
    return st.tested(KEYS, ((dict(zip(KEYS, key, strict=True)), left[key], right[key]) for key in keys))


def conclusions(a: Results, b: Results, protocol: str = "calibrated", rule: str = "max-probability") -> pd.DataFrame:
    """Whether one strategy's lead over another differs from a to b: one row per cell, pair and budget.

    in_a, in_b: the lead itself; decision_a, decision_b: what each study's own corrected tests say of it. mean, low,
    high, sd, n, p, note, p_holm: of the difference of the two leads, a's less b's, paired over seeds.
    change: "" where neither study, or both alike, decide; "reversed" where they decide opposite ways; "decided in one"
    where one decides and the other sees no difference, which alone is no sign that they differ.
    """
    left, right = _by_seed(a, protocol, rule), _by_seed(b, protocol, rule)
    keys = set(_keys(a, left, right))
    own = [comparisons(results, protocol, rule).set_index(["cell", "a", "b", "budget"]) for results in (a, b)]
    names, pairs = ("cell", "pair", "budget", "in_a", "in_b", "decision_a", "decision_b", "change"), []
    for cell, (first, second), budget in product(a.cells, PAIRS, BUDGETS):
        if {(cell, first, budget), (cell, second, budget)} <= keys:
            leads = [each[cell, first, budget] - each[cell, second, budget] for each in (left, right)]
            decided = [frame.loc[(cell, first, second, budget), "decision"] for frame in own]
            change = "" if decided[0] == decided[1] else "reversed" if all(decided) else "decided in one"
            facts = (cell, f"{first} − {second}", budget, leads[0].mean(), leads[1].mean(), *decided, change)
            pairs.append((dict(zip(names, facts, strict=True)), *leads))
    return st.tested(names, pairs)


def accuracy_table(frame: pd.DataFrame, a: str, b: str) -> Table:
    """`accuracies` for a reader: rows cell x strategy, columns budgets."""
    text = f"Accuracy with {a} less accuracy with {b}, points [95 % interval]. {_family(frame)}"
    frame = frame.assign(text=[_text(row) for row in frame.itertuples()])
    return table(by_budget(frame, ["cell", "strategy"]), text, "contrast-accuracy")


def conclusion_table(frame: pd.DataFrame, a: str, b: str) -> Table:
    """`conclusions` for a reader: rows cell x pair x budget; the lead with a, with b, and their difference."""
    own = [frame[f"in_{each}"].map(st.points) + np.where(frame[f"decision_{each}"] == "", "", "*") for each in "ab"]
    texts = dict(zip((a, b, "difference"), (*own, [_text(row) for row in frame.itertuples()]), strict=True))
    index = pd.MultiIndex.from_frame(frame[["cell", "pair", "budget"]].assign(budget=frame["budget"].map(budget_name)))
    made = pd.DataFrame(texts).set_index(index)
    text = (
        f"The lead of one strategy over another, points, with {a} and with {b} (* where that study's own corrected "
        f"test decides it); then the difference of the two leads [95 % interval]. {_family(frame)}"
    )
    return table(made, text, "contrast-conclusions")


def in_short(accuracy: pd.DataFrame, leads: pd.DataFrame, a: str, b: str) -> str:
    """What the corrected tests say of `accuracies` and `conclusions`, and what the intervals leave open."""
    reversed_, differ = (leads["change"] == "reversed").sum(), (leads["decision"] != "").sum()
    largest = accuracy.loc[accuracy["mean"].abs().idxmax()]
    changed = f"{reversed_ + differ} conclusions change" if reversed_ + differ else "No conclusion is seen to change"
    ends = 100 * leads[["low", "high"]].abs().max(axis=1).dropna()
    wide = f"half of the leads' intervals reach up to {ends.median():.1f} points from 0" if len(ends) else "no interval"
    return (
        f"**In short.** {changed} between {a} and {b}: of {len(leads)} comparisons of strategies {reversed_} are "
        f"decided in opposite ways, {(leads['change'] == 'decided in one').sum()} in one of the two only, and {differ} "
        f"leads differ by the corrected tests. {(accuracy['decision'] != '').sum()} of {len(accuracy)} accuracies "
        f"differ; the largest mean difference is {st.points(largest['mean'])} points ({largest['cell']}, "
        f"{largest['strategy']}, {budget_name(largest['budget'])}). What is not excluded: {wide}."
    )


@style.context()
def accuracy_plot(frame: pd.DataFrame, a: str, b: str) -> style.Plot:
    """`accuracies` with their intervals: a panel a cell, budgets from left to right, a colour a strategy."""
    strategies = in_order(frame["strategy"])
    budgets = [budget for budget in BUDGETS if budget in set(frame["budget"])]
    look: dict = {"ylabel": f"{a} − {b}, points of accuracy", "sharey": True}
    figure, shown = panels.in_a_row(frame["cell"], f"accuracy with {a} less accuracy with {b}", 3.4, **look)
    for cell, axes in shown.items():
        for number, strategy in enumerate(strategies):
            rows = frame[(frame["cell"] == cell) & (frame["strategy"] == strategy)]
            x = rows["budget"].map(budgets.index) + 0.2 * (number - (len(strategies) - 1) / 2)
            half = 100 * (rows["high"] - rows["low"]).fillna(0.0) / 2
            bars = {"linestyle": "", "capsize": 2.5, "elinewidth": 1.3, **style.look(strategy)}
            axes.errorbar(x, 100 * rows["mean"], yerr=half, **bars)
        axes.axhline(0, color=style.INK, linewidth=0.9)
        axes.set_xticks(range(len(budgets)), [budget_name(budget) for budget in budgets])
    panels.legend(figure)
    figure.supxlabel("budget, of the plain backbone's FLOPs", fontsize=10)
    return figure


def _by_seed(results: Results, protocol: str, rule: str) -> Accuracies:
    return by_seed(select(results.budgets, protocol, rule), KEYS, "value")


def _keys(a: Results, left: Accuracies, right: Accuracies) -> list[tuple[Any, ...]]:
    """What both have, in the order used everywhere. EestudyError if that is nothing."""
    keys = [key for key in product(a.cells, a.strategies, BUDGETS) if key in left and key in right]
    if not keys:
        raise EestudyError(f"contrasts: the two parts of {a.study} have no cell, strategy and budget in common")
    return keys


def _text(row: Any) -> str:
    return st.with_interval(row, star="*" if row.decision else "")


def _family(frame: pd.DataFrame) -> str:
    tested = int(frame["p"].notna().sum())
    return (
        f"Paired over {frame['n'].max()} seeds; * where the paired t test, Holm-corrected over the {tested} tests of "
        f"this table, is below {st.ALPHA}. A budget that is not reached by both is left out."
    )
