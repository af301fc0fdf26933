"""The comparison of a study that has several methods, each with its own exit rule, or several strategies of SDN."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from eestudy.config import EestudyError
from eestudy.registry import METHODS
from eestudy.report import statistics as st
from eestudy.report import style
from eestudy.report.frames import Results, in_order
from eestudy.report.tables import BUDGETS, DASH, PAIRS, Table, budget_name, percent, table, usual_allocation

REFERENCE = {"method": "sdn", "strategy": "joint"}


def at_own_rule(results: Results) -> pd.DataFrame:
    """The calibrated budgets of every run at the exit rule of its method, with the column `method`."""
    rules = results.tradeoff.groupby("run")["rule"].first()
    rows = results.budgets[results.budgets["protocol"] == "calibrated"]
    return usual_allocation(rows[rows["rule"] == rows["run"].map(rules)])


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
    texts, index = [], []
    for key in _in_order(rows, by):
        mine = rows.set_index(keys).loc[key]
        accuracies = [percent(st.mean_interval(mine.loc[mine["budget"] == budget, "accuracy"])) for budget in BUDGETS]
        base = flops[_reference(key, by)]
        texts.append([*accuracies, f"{100 * flops[key] / base:.0f}"])
        index.append(key)
    columns = [*(budget_name(budget) for budget in BUDGETS), "FLOPs, %"]
    made = pd.DataFrame(texts, columns=columns, index=pd.MultiIndex.from_tuples(index, names=keys))
    seeds = runs.groupby(keys)["seed"].nunique().min()
    return table(
        made,
        f"Accuracy on test, %, at budgets of the plain backbone's FLOPs, thresholds from validation data, each method "
        f"with its own exit rule; mean ± half of the 95 % interval over {seeds} seeds. FLOPs: of training, in per cent "
        f"of {REFERENCE[by]}'s.",
        f"accuracy-by-{by}",
    )


def differences(results: Results, by: str) -> pd.DataFrame:
    """Paired differences in accuracy from the reference, over seeds: methods less SDN under the same strategy, or
    strategies of SDN less joint.

    One row a strategy x method x budget: mean, low, high (95 %), n, p, p_holm (over all rows), decision, verdict.
    """
    rows = _part(_cases(results), by).dropna(subset="accuracy")
    groups = {key: group.set_index("seed")["accuracy"] for key, group in rows.groupby(["strategy", "method", "budget"])}
    pairs = []
    for key in _in_order(rows, by):
        if _reference(key, by) != key:
            for budget in BUDGETS:
                here, there = (*key, budget), (*_reference(key, by), budget)
                if here in groups and there in groups:
                    pairs.append((*here, groups[here], groups[there]))
    return tested(("strategy", "method"), pairs)


def regimes(results: Results) -> pd.DataFrame:
    """As `differences`: for every method, mixed less joint and so on (`PAIRS`), in the column `pair`."""
    rows = _cases(results).dropna(subset="accuracy")
    groups = {key: group.set_index("seed")["accuracy"] for key, group in rows.groupby(["strategy", "method", "budget"])}
    pairs = [
        (f"{a} − {b}", method, budget, groups[a, method, budget], groups[b, method, budget])
        for a, b in PAIRS
        for method in METHODS
        for budget in BUDGETS
        if {(a, method, budget), (b, method, budget)} <= set(groups)
    ]
    return tested(("pair", "method"), pairs)


def tested(keys: tuple[str, str], pairs: Iterable[tuple[str, str, str, pd.Series, pd.Series]]) -> pd.DataFrame:
    """Paired differences a - b over seeds. pairs: the values of the two keys, the budget, a and b by seed.

    One row a pair: the keys, budget, mean, low, high (95 %), n, p, note, p_holm (over all rows), decision, verdict.
    """
    names = (*keys, "budget")
    return st.tested(names, ((dict(zip(names, key, strict=True)), a, b) for *key, a, b in pairs))


def difference_table(frame: pd.DataFrame, what: str, name: str) -> Table:
    """What `tested` gives for a reader, columns budgets; what: the caption's beginning."""
    keys = list(frame.columns[:2])
    texts = frame.assign(
        text=[_text(row.mean, row.low, row.high, row.note, row.decision) for row in frame.itertuples()]
    )
    order = list(dict.fromkeys(zip(*(frame[key] for key in keys), strict=True)))
    wide = texts.pivot(index=keys, columns="budget", values="text").fillna(DASH).loc[order]
    wide = wide[[budget for budget in BUDGETS if budget in wide.columns]]
    wide.columns = pd.Index([budget_name(budget) for budget in wide.columns], name="budget")
    tests = int(frame["p"].notna().sum())
    caption = f"{what}, points of accuracy [95 % interval]; * decided by Holm's correction over {tests} tests."
    return table(wide, caption, name)


def _text(mean: float, low: float, high: float, note: str, decision: str) -> str:
    interval = f"[{st.points(low)} to {st.points(high)}]" if low == low else f"({note})"
    return f"{st.points(mean)} {interval}{'*' if decision else ''}"


def findings(frame: pd.DataFrame, what: str) -> str:
    """What the corrected tests of a frame decide, and the widest interval of what they leave open; Markdown."""
    decided, tests = frame[frame["decision"] != ""], int(frame["p"].notna().sum())
    open_ = frame[(frame["decision"] == "") & frame["low"].notna()]
    lines = [f"{what}: the corrected tests decide {len(decided)} of {tests} differences."]
    first, second = frame.columns[:2]
    for place, rows in frame.groupby(first, sort=False):
        if frame[second].nunique() > 1:
            there = [set(group["decision"]) - {""} for _, group in rows.groupby(second)]
            counts = [sum(word in words for words in there) for word in ("better", "worse")]
            lines.append(
                f"{place}: higher at some budget for {counts[0]}, lower for {counts[1]} of {len(there)} {second}s."
            )
    for (place, name), rows in decided.groupby([first, second], sort=False):
        each = ", ".join(
            f"{budget_name(r.budget)}: {_text(r.mean, r.low, r.high, r.note, '')}" for r in rows.itertuples()
        )
        lines.append(f"{place}, {name}: {each}.")
    if len(open_):
        half = float(((open_["high"] - open_["low"]) / 2).median())
        lines.append(
            f"Where nothing is decided, half of the 95 % interval is {100 * half:.1f} points in the median: smaller "
            "differences cannot be seen with these seeds."
        )
    return "\n".join(f"- {line}" for line in lines)


def difference_plot(frame: pd.DataFrame, budgets: tuple[str, ...] = ("50", "100"), label: str = "") -> style.Plot:
    """Differences with their intervals: a panel a first key, rows second keys; filled where decided.

    Raises EestudyError where there are none.
    """
    first, second = frame.columns[:2]
    if frame.empty:
        raise EestudyError(f"frame: no {first} and {second} to compare in this study")
    places, names = list(dict.fromkeys(frame[first])), list(dict.fromkeys(frame[second]))
    if names == [REFERENCE["method"]]:  # strategies alone: they are the rows of one panel
        first, second, places, names = second, first, names, places
    shades = dict(zip(budgets, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=False))
    with style.context():
        figure = style.Plot(1.5 + 0.32 * len(names), f"{label}; panels: {'; '.join(places)}")
        panels = figure.subplots(1, len(places), sharey=True, sharex=True, squeeze=False)[0]
        for axes, place in zip(panels, places, strict=True):
            for shift, budget in zip((-0.15, 0.15, 0.3, -0.3), budgets, strict=False):
                rows = frame[(frame[first] == place) & (frame["budget"] == budget)]
                for row in rows.itertuples():
                    y = names.index(getattr(row, second)) + shift
                    axes.plot((100 * row.low, 100 * row.high), (y, y), color=shades[budget], linewidth=1.5)
                    fill = shades[budget] if row.decision else "white"
                    axes.plot(100 * row.mean, y, marker="o", color=shades[budget], markerfacecolor=fill)
            axes.axvline(0, color=style.INK, linewidth=0.9)
            axes.set_title(place)
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        for budget in budgets:
            panels[0].plot([], [], marker="o", color=shades[budget], label=f"budget {budget_name(budget)}")
        figure.legend(loc="outside upper center", ncols=len(budgets))
        figure.supxlabel(f"{label}, points of accuracy", fontsize=10)
    return figure


def _part(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """The rows that are compared: of strategies SDN's, of methods those under strategies that several have."""
    if by == "strategy":
        return frame[frame["method"] == REFERENCE["method"]]
    several = frame.groupby("strategy")["method"].nunique()
    return frame[frame["strategy"].map(several) > 1]


def _in_order(rows: pd.DataFrame, by: str) -> list[tuple[str, str]]:
    there = set(zip(rows["strategy"], rows["method"], strict=True))
    return [(s, m) for s in in_order(rows["strategy"]) for m in METHODS if (s, m) in there]


def _reference(key: tuple[str, str], by: str) -> tuple[str, str]:
    """What a (strategy, method) is compared with."""
    strategy, method = key
    return (strategy, REFERENCE["method"]) if by == "method" else (REFERENCE["strategy"], method)
