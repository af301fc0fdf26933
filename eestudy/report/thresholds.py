"""Choosing thresholds: what three ways to spend a budget cost and gain on test, curves in two numbers.

All take frames of `Results.evaluation`: "allocation", "curves". Within a seed, runs of different
strategies share data and first weights, so a seed is one value (the mean over strategies) where strategies are pooled.
"""

from __future__ import annotations

import math

import pandas as pd

from eestudy.report import statistics as st
from eestudy.report import style
from eestudy.report.dynamics import effects
from eestudy.report.frames import in_order
from eestudy.report.scores import is_regression, valued
from eestudy.report.tables import DASH, Table, budget_name, table

METHODS = ("geometric", "shared", "optimized")
METHOD_PAIRS = (("optimized", "geometric"), ("optimized", "shared"), ("shared", "geometric"))
LOOKS = {"geometric": ("#0072B2", "o"), "shared": ("#E69F00", "s"), "optimized": ("#CC79A7", "D")}
RULE_PAIRS = (("entropy", "max-probability"), ("margin", "max-probability"), ("patience", "max-probability"))


def why(frame: pd.DataFrame, value: str) -> str:
    """The reasons of the rows without a `value`, each once, for a caption; "" when every row has one."""
    reasons = dict.fromkeys(str(reason) for reason in frame[frame[value].isna()]["reason"] if reason)
    return f" {DASH}: {'; '.join(reasons)}." if reasons else ""


def of_rule(allocation: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows of one exit rule that have an answer; in regression those of its only rule."""
    chosen = allocation[(allocation["rule"] == rule) | is_regression(allocation)]
    return valued(chosen).dropna(subset="value")


# ---------------------------------------------------------------- budgets


def miss_table(allocation: pd.DataFrame, rule: str) -> Table:
    """Rows cell x allocation, columns budgets: mean miss on test, % of the budget, and how many runs spend more."""
    chosen = of_rule(allocation, rule)
    texts = {}
    for (cell, method, budget), here in chosen.groupby(["cell", "allocation", "budget"], sort=False):
        mean = st.mean_interval(here.groupby("seed")["miss"].mean())
        over = int((here["miss"] > 0).sum())
        width = "" if math.isnan(mean.low) else f" ± {100 * mean.half:.1f}"
        texts[cell, method, budget] = f"{signed(100 * mean.mean)}{width} ({over} of {len(here)})"
    made = pd.Series(texts).unstack().fillna(DASH)
    cells = dict.fromkeys(allocation["cell"])
    order = [(cell, method) for cell in cells for method in METHODS if (cell, method) in made.index]
    made = made.loc[order, sorted(made.columns, key=float)].rename_axis(["cell", "allocation"])
    made.columns = pd.Index([budget_name(budget) for budget in made.columns], name="budget")
    text = (
        f"Realised mean cost on test less the budget, % of the budget: mean ± half of the 95 % interval over seeds "
        f"(how many of the runs spend more than the budget). Exit rule {rule}; thresholds from validation data, on "
        f"which no run exceeds its budget.{why(allocation[allocation['rule'] == rule], 'accuracy')}"
    )
    return table(made, text, "misses")


def miss_plot(allocation: pd.DataFrame, rule: str) -> style.Plot:
    """The same, a dot a run, a panel a cell."""
    chosen = of_rule(allocation, rule)
    cells, budgets = list(dict.fromkeys(chosen["cell"])), sorted(chosen["budget"].unique(), key=float)
    with style.context():
        figure = style.Plot(3.2, f"cost on test less the budget, % of the budget; panels: {'; '.join(cells)}", dpi=130)
        panels = figure.subplots(1, len(cells), squeeze=False)[0]
        for axes, cell in zip(panels, cells, strict=True):
            for place, method in enumerate(METHODS):
                here = chosen[(chosen["cell"] == cell) & (chosen["allocation"] == method)]
                shade, mark = LOOKS[method]
                x = here["budget"].map(budgets.index) + 0.24 * (place - 1)
                jitter = 0.05 * (here["seed"] % 4 - 1.5)
                axes.scatter(x + jitter, 100 * here["miss"], s=14, color=shade, marker=mark, alpha=0.6, label=method)
            axes.axhline(0, color=style.INK, linewidth=0.9)
            axes.set_xticks(range(len(budgets)), [budget_name(budget) for budget in budgets])
            # Linear within 5 %: who leaves a budget unspent on purpose lies far below those who mean to meet it.
            axes.set_yscale("symlog", linthresh=5, linscale=2)
            axes.set_yticks([-50, -20, -5, -2, 0, 2, 5], ["−50", "−20", "−5", "−2", "0", "2", "5"])
            axes.yaxis.minorticks_off()
            axes.set_title(cell)
        panels[0].set_ylabel("miss, % of the budget")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        figure.supxlabel("budget, of the plain backbone's FLOPs", fontsize=10)
    return figure


def miss_findings(allocation: pd.DataFrame, rule: str) -> str:
    """How often and how far the budget is exceeded, by method, over all runs and budgets."""
    chosen = of_rule(allocation, rule)
    lines = []
    for method in METHODS:
        miss = chosen[chosen["allocation"] == method]["miss"]
        if len(miss):
            lines.append(
                f"- **{method}**: spends more than the budget in {int((miss > 0).sum())} of {len(miss)} cases; the "
                f"median miss is {signed(100 * miss.median())} % of the budget, nine in ten lie between "
                f"{signed(100 * miss.quantile(0.05))} and {signed(100 * miss.quantile(0.95))} %, the worst is "
                f"{signed(100 * miss.max())} %."
            )
    return "\n".join(lines)


def method_effects(allocation: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Accuracy of one way to spend a budget less another's: `dynamics.effects` by cell and budget, pairs of methods."""
    chosen = of_rule(allocation, rule)
    return effects(chosen.assign(strategy=chosen["allocation"]), "value", METHOD_PAIRS, ("budget",))


def rule_effects(allocation: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each exit rule less max-probability's, all with one shared threshold."""
    chosen = valued(allocation[allocation["allocation"] == "shared"]).dropna(subset="value")
    return effects(chosen.assign(strategy=chosen["rule"]), "value", RULE_PAIRS, ("budget",))


def effects_table(frame: pd.DataFrame, caption: str, name: str) -> Table:
    """`method_effects` or `rule_effects` for a reader: rows cell x pair, columns budgets, in points."""
    frame = frame.assign(text=[_effect(row) for row in frame.itertuples()])
    wide = frame.pivot(index=["cell", "pair"], columns="budget", values="text").fillna(DASH)
    order = list(dict.fromkeys(zip(frame["cell"], frame["pair"], strict=True)))
    wide = wide.loc[order, sorted(wide.columns, key=float)]
    wide.columns = pd.Index([budget_name(budget) for budget in wide.columns], name="budget")
    tested = int(frame["p"].notna().sum())
    return table(wide, f"{caption} Points [95 % interval]; * decided by Holm's correction over {tested} tests.", name)


def effect_findings(frame: pd.DataFrame, what: str, scale: float = 100, unit: str = "points") -> str:
    """What the corrected tests of effects decide, pair by pair, with the largest effect that was tested."""
    lines = []
    for pair, here in frame.groupby("pair", sort=False):
        tested, found = here[here["p"].notna()], here[here["decision"] != ""]
        untested = here[here["p"].isna()]["note"].str.removesuffix(": no interval").value_counts(sort=False)
        notes = ", ".join(f"{note} in {many}" for note, many in untested.items())
        missing = f"not tested ({untested.sum()} of {len(here)}: {notes})"
        if tested.empty:
            lines.append(f"- {what}, {pair}: {missing}.")
            continue
        largest = tested.loc[tested["mean"].abs().idxmax()]
        words = "; ".join(
            f"{_where(row)}: {row['decision']} by {scale * abs(row['mean']):.2g} {unit} "
            f"[{signed(scale * row['low'])} to {signed(scale * row['high'])}]"
            for row in found.to_dict("records")
        )
        lines.append(
            f"- {what}, {pair}: {words or 'no difference seen'} ({len(found)} of {len(tested)} tests decide; the "
            f"largest mean is {signed(scale * largest['mean'])} {unit}, {_where(largest.to_dict())})"
            f"{f'; {missing}' if len(untested) else ''}."
        )
    return "\n".join(lines)


def _where(row: dict) -> str:
    return ", ".join([row["cell"], *([budget_name(row["budget"])] if "budget" in row else [])])


def _effect(row: object) -> str:
    mean, low, high = (getattr(row, name) for name in ("mean", "low", "high"))
    if math.isnan(low):
        return f"{st.points(mean)} ({getattr(row, 'note', '') or 'no interval'})"
    return f"{st.points(mean)}{'*' if getattr(row, 'decision', '') else ''} [{st.points(low)}, {st.points(high)}]"


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


# ---------------------------------------------------------------- curves in two numbers


def curve_table(curves: pd.DataFrame) -> Table:
    """Rows cell x strategy: area under the curve, and the cost of 99 % of the own and of the best last exit."""
    rows = {}
    for (cell, strategy), here in curves.groupby(["cell", "strategy"], sort=False):
        own, best = (here[here["goal_of"] == goal] for goal in ("own", "best"))
        rows[cell, strategy] = {
            "area": _percent(own["area"]),
            "cost of 99 % of its own last exit": _percent(own["cost"]),
            "cost of 99 % of the best last exit": _percent(best["cost"]),
        }
    made = pd.DataFrame.from_dict(rows, orient="index")
    made.index = pd.MultiIndex.from_tuples(made.index, names=["cell", "strategy"])
    made = made.loc[
        [(c, s) for c in dict.fromkeys(curves["cell"]) for s in in_order(curves["strategy"]) if (c, s) in rows]
    ]
    text = (
        "Area: mean accuracy on test, %, over budgets drawn evenly between the costs of the first and the last exit. "
        "Costs on test, % of the plain backbone's FLOPs, at the cheapest shared threshold that reaches the goal on "
        "validation data. Best: of all strategies with the same seed; in brackets: how many seeds reach it."
    )
    return table(made, text + why(curves, "area"), "curves")


def cost_effects(curves: pd.DataFrame) -> pd.DataFrame:
    """`dynamics.effects` of the cost of 99 % of the best last exit, all means over the seeds in which both reach it."""
    best = curves[curves["goal_of"] == "best"]
    frame = effects(best, "cost", by=())
    costs = best.groupby(["cell", "seed", "strategy"])["cost"].mean().unstack()
    common = [costs.loc[row.cell][[row.a, row.b]].dropna().mean() for row in frame.itertuples()]
    return frame.assign(mean_a=[mean.iloc[0] for mean in common], mean_b=[mean.iloc[1] for mean in common])


def reached(curves: pd.DataFrame) -> str:
    """In how many seeds each strategy reaches 99 % of the best last exit, a line a cell."""
    best = curves[curves["goal_of"] == "best"]
    lines = []
    for cell, here in best.groupby("cell", sort=False):
        seeds = here.groupby("strategy")["cost"].agg(["count", "size"])
        words = (f"{name} in {seeds['count'][name]} of {seeds['size'][name]} seeds" for name in in_order(seeds.index))
        lines.append(f"- {cell}: reached by {', '.join(words)}.")
    return "\n".join(lines)


def _percent(values: pd.Series) -> str:
    found = st.mean_interval(values)
    if not found.n:
        return DASH
    text = f"{100 * found.mean:.1f}" + ("" if math.isnan(found.low) else f" ± {100 * found.half:.1f}")
    return text if found.n == len(values) else f"{text} ({found.n} of {len(values)})"
