"""Choosing thresholds: what three ways to spend a budget cost and gain on test, curves in two numbers, and guarantees.

All take frames of `Results.evaluation`: "allocation", "curves"; "risk" and "draws" of risk control. Within a seed, runs
of different strategies share data and first weights, so a seed is one value (the mean over strategies) where
strategies are pooled.
"""

import math
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from eestudy.report import panels, style
from eestudy.report import statistics as st
from eestudy.report.effects import counted, effects
from eestudy.report.frames import is_regression, valued
from eestudy.report.tables import DASH, Table, budget_name, by_budget, ordered, plus_minus, rows, table, tested, why

METHODS = ("geometric", "shared", "optimized")
METHOD_PAIRS = (("optimized", "geometric"), ("optimized", "shared"), ("shared", "geometric"))
LOOKS = {"geometric": ("#0072B2", "o"), "shared": ("#E69F00", "s"), "optimized": ("#CC79A7", "D")}
RULE_PAIRS = (("entropy", "max-probability"), ("margin", "max-probability"), ("patience", "max-probability"))


def of_rule(allocation: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The rows of one exit rule that have an answer; in regression those of its only rule."""
    chosen = allocation[(allocation["rule"] == rule) | is_regression(allocation)]
    return valued(chosen).dropna(subset="value")


def miss_table(allocation: pd.DataFrame, rule: str) -> Table:
    """Rows cell x allocation, columns budgets: mean miss on test, % of the budget, and how many runs spend more."""
    chosen = of_rule(allocation, rule)
    keys = ["cell", "allocation"]

    def text(runs: pd.DataFrame) -> str:
        mean = st.mean_interval(runs.groupby("seed")["miss"].mean())
        return f"{plus_minus(mean, st.signed)} ({(runs['miss'] > 0).sum()} of {len(runs)})"

    texts = chosen.groupby([*keys, "budget"])[["seed", "miss"]].apply(text).rename("text")
    made = by_budget(texts.reset_index(), keys)
    made = made.loc[[key for key in product(dict.fromkeys(allocation["cell"]), METHODS) if key in made.index]]
    caption = (
        f"Realised mean cost on test less the budget, % of the budget: mean ± half of the 95 % interval over seeds "
        f"(how many of the runs spend more than the budget). Exit rule {rule}; thresholds from validation data, on "
        f"which no run exceeds its budget.{why(allocation[allocation['rule'] == rule], 'accuracy')}"
    )
    return table(made, caption, "misses")


@style.context()
def miss_plot(allocation: pd.DataFrame, rule: str) -> style.Plot:
    """The same, a dot a run, a panel a cell."""
    chosen = of_rule(allocation, rule)
    budgets = sorted(chosen["budget"].unique(), key=float)
    shows = "cost on test less the budget, % of the budget"
    figure, shown = panels.in_a_row(chosen["cell"], shows, 3.2, ylabel="miss, % of the budget", dpi=130)
    for cell, axes in shown.items():
        for number, method in enumerate(METHODS):
            here = chosen[(chosen["cell"] == cell) & (chosen["allocation"] == method)]
            shade, mark = LOOKS[method]
            x = here["budget"].map(budgets.index) + 0.24 * (number - 1)
            jitter = 0.05 * (here["seed"] % 4 - 1.5)
            axes.scatter(x + jitter, 100 * here["miss"], s=14, color=shade, marker=mark, alpha=0.6, label=method)
        axes.axhline(0, color=style.INK, linewidth=0.9)
        axes.set_xticks(range(len(budgets)), [budget_name(budget) for budget in budgets])
        # Linear within 5 %: who leaves a budget unspent on purpose lies far below those who mean to meet it.
        axes.set_yscale("symlog", linthresh=5, linscale=2)
        axes.set_yticks([-50, -20, -5, -2, 0, 2, 5], ["−50", "−20", "−5", "−2", "0", "2", "5"])
        axes.yaxis.minorticks_off()
    panels.legend(figure)
    figure.supxlabel("budget, of the plain backbone's FLOPs", fontsize=10)
    return figure


def in_short(allocation: pd.DataFrame, rule: str, ways: pd.DataFrame, draws: pd.DataFrame) -> str:
    """How far one shared threshold misses the budget, what other ways gain (`method_effects`), and the guarantee."""
    chosen = of_rule(allocation, rule)
    miss = 100 * chosen[chosen["allocation"] == "shared"]["miss"]
    low, high = (st.signed(value) for value in miss.quantile([0.05, 0.95]))
    return (
        f"**In short.** With one shared threshold the cost on test is above the budget in {(miss > 0).sum()} of "
        f"{len(miss)} cases; nine in ten misses lie between {low} and {high} % of it. Accuracy of another way to spend "
        f"the budget: {counted(ways, 'pair')} comparisons. {guarantee(draws)}"
    )


def method_effects(allocation: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Accuracy of one way to spend a budget less another's, by cell and budget: `effects`."""
    return effects(of_rule(allocation, rule), "value", METHOD_PAIRS, ("budget",), of="allocation")


def rule_effects(allocation: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each exit rule less max-probability's, all with one shared threshold: `effects`."""
    chosen = valued(allocation[allocation["allocation"] == "shared"]).dropna(subset="value")
    return effects(chosen, "value", RULE_PAIRS, ("budget",), of="rule")


def effects_table(frame: pd.DataFrame, caption: str, name: str) -> Table:
    """`method_effects` or `rule_effects` for a reader: rows cell x pair, columns budgets, in points."""
    texts = [st.with_interval(row, star="*" if row.decision else "") for row in frame.itertuples()]
    made = by_budget(frame.assign(text=texts), ["cell", "pair"])
    return table(made, f"{caption} Points [95 % interval]; {tested(frame)}", name)


def curve_table(curves: pd.DataFrame) -> Table:
    """Rows cell x strategy: area under the curve, and the cost of 99 % of the own and of the best last exit."""

    def text(values: pd.Series) -> str:
        found = st.mean_interval(values)
        missing = f" ({found.n} of {len(values)})" if 0 < found.n < len(values) else ""
        return plus_minus(found) + missing

    found = {}
    for key, here in curves.groupby(["cell", "strategy"], sort=False):
        own, best = (here[here["goal_of"] == goal] for goal in ("own", "best"))
        costs = {"its own": text(own["cost"]), "the best": text(best["cost"])}
        found[key] = {"area": text(own["area"])} | {f"cost of 99 % of {k} last exit": v for k, v in costs.items()}
    caption = (
        "Area: mean accuracy on test, %, over budgets drawn evenly between the costs of the first and the last exit. "
        "Costs on test, % of the plain backbone's FLOPs, at the cheapest shared threshold that reaches the goal on "
        "validation data. Best: of all strategies with the same seed; in brackets: how many seeds reach it."
    )
    return table(ordered(rows(found, "cell", "strategy"), curves["cell"]), caption + why(curves, "area"), "curves")


def cost_effects(curves: pd.DataFrame) -> pd.DataFrame:
    """`effects` of the cost of 99 % of the best last exit, all means over the seeds in which both reach it."""
    best = curves[curves["goal_of"] == "best"]
    frame = effects(best, "cost", by=())
    costs = best.groupby(["cell", "seed", "strategy"])["cost"].mean().unstack()
    common = [costs.loc[row.cell][[row.a, row.b]].dropna().mean() for row in frame.itertuples()]
    return frame.assign(mean_a=[mean.iloc[0] for mean in common], mean_b=[mean.iloc[1] for mean in common])


# Guarantees


def risk_table(risk: pd.DataFrame, confidence: float) -> Table:
    """Rows cell x strategy, columns tolerances: speed-up, how many seeds are certified, the largest loss on test."""
    chosen = risk[np.isclose(risk["confidence"].astype(float), confidence)]
    texts: dict[tuple[str, ...], dict[str, str]] = {}
    for (*key, tolerance), here in chosen.groupby(["cell", "strategy", "tolerance"], sort=False):
        held = here[here["certified"].eq(True)]
        lost = st.signed(100 * held["test_risk"].max())
        text = f"{held['speed_up'].mean():.2f}x ({len(held)} of {len(here)}), {lost}" if len(held) else DASH
        texts.setdefault(tuple(key), {})[f"{100 * tolerance:g} points"] = text
    made = ordered(rows(texts, "cell", "strategy"), risk["cell"]).rename_axis(columns="tolerated loss")
    text = (
        f"Risk control at confidence {confidence:g}: mean speed-up in FLOPs against the plain backbone (seeds with a "
        "certified threshold), and the largest loss of accuracy on test, points, against the last exit. "
        f"{DASH}: none is certified, because too few samples or too much loss leave no threshold."
    )
    return table(made, text, "risk")


def certified(risk: pd.DataFrame) -> str:
    """How many runs have a certified threshold for each tolerance and confidence, and why others have none."""
    lines = []
    for (tolerance, confidence), here in risk.groupby(["tolerance", "confidence"], sort=False):
        refused = here[~here["certified"].eq(True)]
        why_not = f"; {refused['cell'].iloc[0]}: {refused['reason'].iloc[0]}" if len(refused) else ""
        share = f"{len(here) - len(refused)} of {len(here)} runs"
        lines.append(f"- {100 * tolerance:g} points at confidence {confidence:g}: {share}{why_not}.")
    return "\n".join(lines)


def draws_table(draws: pd.DataFrame) -> Table:
    """Rows cell x strategy: share of simulated draws in which the certified threshold's true risk is too high."""
    frame = exceedance(draws)
    high = [st.Interval(r.share, r.low, r.high, r.draws) for r in frame.itertuples()]
    columns = {
        "draws": frame["draws"].astype(str),
        "certified, %": (100 * frame["certified"]).map("{:.0f}".format),
        "risk too high, %": [st.with_interval(each, lambda share: f"{100 * share:.1f}") for each in high],
        "mean speed-up": [DASH if math.isnan(value) else f"{value:.2f}x" for value in frame["speed_up"]],
    }
    made = pd.DataFrame(columns).set_index(pd.MultiIndex.from_frame(frame[["cell", "strategy"]]))
    first = draws.iloc[0]
    text = (
        f"Simulation on the study's own networks: {100 * first['tolerance']:g} points tolerated at confidence "
        f"{first['confidence']:g}, so at most {100 * (1 - first['confidence']):.0f} % of draws may have a true risk "
        "above it [95 % Clopper-Pearson interval]. A draw without a certified threshold risks nothing."
    )
    return table(made, text, "draws")


def exceedance(draws: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and strategy: draws, certified (share), exceeded, share, low, high, p (of too high a share)."""
    found = {}
    known = draws[draws["exceeded"].notna()]
    for key, here in known.groupby(["cell", "strategy"], sort=False):
        n, over = len(here), int(here["exceeded"].eq(True).sum())
        allowed = 1 - float(here["confidence"].iloc[0])
        interval = stats.binomtest(over, n).proportion_ci(0.95)
        found[key] = {
            "draws": n, "certified": here["certified"].eq(True).mean(), "exceeded": over, "share": over / n,
            "low": interval.low, "high": interval.high, "speed_up": here["speed_up"].astype(float).mean(),
            "allowed": allowed, "p": stats.binomtest(over, n, allowed, alternative="greater").pvalue,
        }  # fmt: skip
    if not found:
        return pd.DataFrame()
    frame = ordered(rows(found, "cell", "strategy"), known["cell"]).reset_index()
    return frame.assign(p_holm=st.holm(frame["p"]))


def guarantee(draws: pd.DataFrame) -> str:
    """Whether the stated level of risk control holds in the simulation, by the corrected tests."""
    frame = exceedance(draws)
    if frame.empty:
        return f"The guarantee was not simulated: {draws['reason'].iloc[0]}."
    broken = frame[frame["p_holm"] < st.ALPHA]
    words = "; ".join(f"{row.cell}, {row.strategy}" for row in broken.itertuples()) or "none"
    over, total = int(frame["exceeded"].sum()), int(frame["draws"].sum())
    return (
        f"A guaranteed loss is exceeded in {over} of {total} simulated draws ({100 * over / total:.1f} %; allowed: "
        f"{100 * frame['allowed'].iloc[0]:.0f} %); networks above the allowed share: {words}."
    )
