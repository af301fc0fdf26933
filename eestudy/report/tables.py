"""The tables of the book, from the tidy frames of a study.

Numbers come first (`comparisons`, ...: DataFrames of fractions), then the same as a reader sees them
(`*_table`: accuracies in %, mean +- half of the 95 % interval over seeds, protocol and rule in the caption).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from eestudy.config import EestudyError, check_name
from eestudy.report import statistics as st
from eestudy.report.frames import Results, in_order, is_regression, score_name

PROTOCOLS = {
    "calibrated": "thresholds fitted on validation data for each budget, applied once to test",
    "paper": "one threshold for all seeds, swept on the test set, as in Kubaty et al. (2025)",
}
BUDGETS = ("25", "50", "75", "100", "max")
# The exit rule of a table that is not asked for another one: of classification, of regression.
RULES = ("max-probability", "patience")
ALLOCATION = "shared"  # one threshold for all exits: what tables show
DASH = "–"
# What is compared with what, in this order.
PAIRS = (("mixed", "joint"), ("mixed", "disjoint"), ("joint", "disjoint"))


class Table(Styler):
    """A Styler whose HTML and text are the same at every run (no random ids), for books and nbval."""

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.data.to_string()}"


def table(frame: pd.DataFrame, caption: str, name: str) -> Table:
    """`frame` (texts, as they shall read) as a Table; `name` makes its id, which is unique on a page."""
    styled = Table(frame, uuid=f"eestudy-{name}", cell_ids=False, caption=caption)
    # The book's theme knows this class and colours it for light and dark pages.
    styled.set_table_attributes('class="dataframe"')
    styled.set_table_styles([{"selector": "caption", "props": "caption-side: top; text-align: left;"}])
    styled.format(escape="html")
    for axis in (0, 1):
        styled.format_index(escape="html", axis=axis)
    return styled


def texts(frame: pd.DataFrame, caption: str, name: str) -> Table:
    """A `table` of words: to the left, and on several lines where they are long."""
    made = table(frame, caption, name)
    words = [("text-align", "left"), ("white-space", "normal")]
    made.set_table_styles([{"selector": "td, th", "props": words}], overwrite=False)
    return made


def plus_minus(interval: st.Interval, write: Callable[[float], str] = "{:.1f}".format) -> str:
    """A mean x 100 and half of its interval: "81.3 ± 0.8", "81.3" where there is no interval, or a dash."""
    if interval.n == 0:
        return DASH
    return write(100 * interval.mean) + ("" if math.isnan(interval.low) else f" ± {100 * interval.half:.1f}")


def percent(interval: st.Interval, expected: int | None = None) -> str:
    """Accuracy in %: "81.3 ± 0.8", "81.3 (one seed)", "81.3 (1 of 2 seeds)" or a dash."""
    text = plus_minus(interval)
    if 0 < interval.n < (expected or 0):
        return f"{text} ({interval.n} of {expected} seeds)"
    return f"{text} (one seed)" if interval.n == 1 else text


def why(frame: pd.DataFrame, value: str) -> str:
    """The reasons of the rows without a `value`, each once, for a caption; "" when every row has one."""
    reasons = dict.fromkeys(str(reason) for reason in frame[frame[value].isna()]["reason"] if reason)
    return f" {DASH}: {'; '.join(reasons)}." if reasons else ""


def select(frame: pd.DataFrame, protocol: str, rule: str | None) -> pd.DataFrame:
    """The rows of one protocol and exit rule; EestudyError with the nearest name when there are none.

    rule: None takes `RULES`, of classification and of regression. Of allocations, `usual_allocation`.
    """
    check_name("protocol", protocol, frame["protocol"].unique())
    rows = frame[frame["protocol"] == protocol]
    regression = is_regression(rows)
    chosen = rows[rows["rule"] == np.where(regression, RULES[1], RULES[0])] if rule is None else rows[:0]
    if chosen.empty:
        rule = rule or RULES[int(regression.all())]
        check_name("rule", rule, rows["rule"].unique())
        chosen = rows[rows["rule"] == rule]
    return usual_allocation(chosen)


def usual_allocation(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of ALLOCATION; of a rule without any, as in tables from before it was named, all that it has."""
    usual = rows["allocation"] == ALLOCATION
    return rows[usual | ~usual.groupby(rows["rule"]).transform("any").astype(bool)]


def budget_name(budget: str) -> str:
    return budget if budget == "max" else f"{budget} %"


def ordered(frame: pd.DataFrame, cells: Iterable[str]) -> pd.DataFrame:
    """Rows (cell, strategy) in the order used everywhere."""
    strategies = in_order(frame.index.get_level_values("strategy"))
    return frame.loc[[(c, s) for c in dict.fromkeys(cells) for s in strategies if (c, s) in frame.index]]


def rows(found: Mapping[Any, Mapping[str, Any]], *names: str) -> pd.DataFrame:
    """Key -> its row, as a frame; names: of the parts of a key."""
    return pd.DataFrame(list(found.values()), index=pd.MultiIndex.from_tuples(found, names=names))


def by_budget(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The column `text` with a row for each of `keys`, as they come, and a column for each `budget`."""
    wide = frame.pivot(index=keys, columns="budget", values="text").fillna(DASH)
    wide = wide.loc[list(frame[keys].drop_duplicates().itertuples(index=False, name=None))]
    wide = wide[[budget for budget in BUDGETS if budget in wide.columns]]
    wide.columns = pd.Index([budget_name(budget) for budget in wide.columns], name="budget")
    return wide


def tested(frame: pd.DataFrame) -> str:
    """In how many tests a table's stars were decided, for its caption."""
    return f"* decided by Holm's correction over {int(frame['p'].notna().sum())} tests."


def budget_means(results: Results, protocol: str, rule: str | None) -> pd.DataFrame:
    """One row per cell, strategy and budget: mean, low, high (fractions, over seeds), n of `seeds` that reach it."""
    groups = select(results.budgets, protocol, rule).groupby(["cell", "strategy", "budget"], sort=False)
    seeds = groups["seed"].nunique().rename("seeds")
    return st.intervals(groups["value"]).rename_axis(seeds.index.names).join(seeds).reset_index()


def budget_table(results: Results, protocol: str = "calibrated", rule: str | None = None) -> Table:
    """Accuracy (R2 in regression) at matched budgets: rows cell x strategy, columns % of the plain backbone's FLOPs."""
    means = budget_means(results, protocol, rule)
    means["text"] = [percent(st.Interval(r.mean, r.low, r.high, r.n), r.seeds) for r in means.itertuples()]
    frame = ordered(by_budget(means, ["cell", "strategy"]), results.cells)
    text = f"{_score(select(results.budgets, protocol, rule))} on test, %, at a mean cost within the budget. "
    text += f"{_protocol(results, protocol, rule)} {_seeds(results)}"
    if (frame == DASH).any(axis=None):
        text += f" {DASH}: no threshold keeps the mean cost within this budget (exit 1 alone may cost more)."
    if frame.map(lambda t: " of " in t).any(axis=None):
        text += ' "1 of 2 seeds": the mean is over the seeds that reach the budget, so it is not comparable.'
    return table(frame, text, f"budgets-{protocol}")


def exit_table(results: Results) -> Table:
    """Accuracy (R2 in regression) of every exit when all samples take it: rows cell x strategy, columns exits."""
    groups = results.exits.groupby(["cell", "strategy", "exit"])["value"]
    texts = groups.agg(lambda seeds: percent(st.mean_interval(seeds), len(seeds)))
    frame = ordered(texts.unstack("exit"), results.cells)
    frame.columns = pd.Index([f"exit {k}" for k in frame.columns], name="all samples take")
    empty = " Empty: the backbone has fewer exits." if frame.isna().any(axis=None) else ""
    name = f"{_score(results.exits)} on test, %, of each exit by itself"
    return table(frame.fillna(""), f"{name}; no rule, no threshold. {_seeds(results)}{empty}", "exits")


def comparisons(results: Results, protocol: str = "calibrated", rule: str | None = None) -> pd.DataFrame:
    """Paired differences between strategies at each budget, Holm-corrected over all rows.

    One row per cell, pair and budget: `a`, `b`, mean, low, high, sd (of a - b, fractions of accuracy), n common
    seeds, unpaired seeds, p, p_holm, `decision` ("better": a is; "worse"; "" undecided), `verdict` in words.
    A budget that neither strategy reaches makes no row. With regression, the column `score` of its cells is "r2".
    """
    rows = select(results.budgets, protocol, rule)
    pairs = []
    for cell, (a, b), budget in product(results.cells, _pairs(results.strategies), BUDGETS):
        at = rows[(rows["cell"] == cell) & (rows["budget"] == budget)].dropna(subset="value")
        left, right = (at[at["strategy"] == s].set_index("seed")["value"] for s in (a, b))
        if len(left) or len(right):
            score = {"score": at["score"].iloc[0]} if "score" in at else {}
            pairs.append(({"cell": cell, "a": a, "b": b, "pair": f"{a} − {b}", "budget": budget, **score}, left, right))
    if not pairs:
        raise EestudyError(f"comparisons: needs two strategies, the study {results.study!r} has {results.strategies}")
    return st.tested((), pairs)


def comparison_table(results: Results, protocol: str = "calibrated", rule: str | None = None) -> Table:
    """`comparisons` for a reader: rows cell x pair, columns budgets: points, interval, corrected p."""
    frame = comparisons(results, protocol, rule)
    frame["text"] = [_difference(r) for r in frame.itertuples()]
    tests = int(frame["p"].notna().sum())
    text = (
        f"Difference in {score_name(frame)}, points [95 % interval], paired over seeds; p of the paired t test, "
        f"Holm-corrected over the {tests} tests of this table; * where it is below {st.ALPHA}. "
        f"{_protocol(results, protocol, rule)} "
        f"{DASH}: not compared (budget out of reach for one of the two, or no common seed)."
    )
    if frame["text"].str.contains("no spread").any():
        text += " No spread: the difference is the same in all seeds, so there is neither interval nor test."
    return table(by_budget(frame, ["cell", "pair"]), text, f"comparisons-{protocol}")


def runs_table(results: Results) -> Table:
    """Provenance: what ran, how long, with how much arithmetic and on what; rows cell x strategy."""
    runs = results.runs
    frame = runs.groupby(["cell", "strategy"], sort=False).agg(
        runs=("run", "count"),
        seeds=("seed", lambda s: ", ".join(str(v) for v in sorted(s))),
        seconds=("seconds", lambda s: f"{s.sum():.1f}"),
        training=("training_flops", lambda s: engineering(s.sum())),
        backbone=("backbone_flops", lambda s: engineering(s.mean())),
        hardware=("hardware", lambda s: "; ".join(sorted(set(s.astype(str))))),
        commit=("commit", lambda s: ", ".join(sorted({str(v)[:10] for v in s}))),
    )
    names = {"training": "training FLOPs", "backbone": "backbone FLOPs a sample"}
    frame = ordered(frame, results.cells).rename(columns=names)
    text = f"{len(runs)} runs. Seconds and training FLOPs are sums over seeds. FLOPs: multiply and add apart."
    return table(frame, text, "runs")


def engineering(value: float) -> str:
    """A count with its SI prefix: 12345678 -> "12.3 M"."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def cost_table(results: Results) -> Table:
    """What exiting at each exit of the first run costs: stage, FLOPs, share of the backbone, parameters."""
    first = results.runs.iloc[0]
    exits = results.exits[results.exits["run"] == first["run"]].sort_values("exit")
    columns = {
        "after stage": exits["stage"].astype(str),
        "FLOPs a sample": exits["flops"].map(engineering),
        "of the plain backbone": exits["flops"].map(lambda f: f"{100 * f / first['backbone_flops']:.1f} %"),
        "parameters": exits["params"].map(engineering),
    }
    frame = pd.DataFrame(columns).set_index(exits["exit"])
    text = f"Cost of each exit, {first['cell']}: the backbone up to there and all heads on the way."
    return table(frame, text, "costs")


def described(results: Results) -> str:
    """What a chapter's tables are of, as a sentence."""
    seeds, runs = results.runs.groupby(["cell", "strategy"])["seed"].nunique().min(), results.runs
    return (
        f"Study **{results.study}**: {len(runs)} runs in {len(results.cells)} cells, strategies "
        f"{', '.join(results.strategies)}, {seeds} {'paired seeds' if seeds > 1 else 'seed'} each."
    )


def _pairs(strategies: list[str]) -> list[tuple[str, str]]:
    named = [pair for pair in PAIRS if set(pair) <= set(strategies)]
    others = [(a, b) for b, a in combinations(strategies, 2) if (a, b) not in PAIRS and (b, a) not in PAIRS]
    return named + others


def _difference(row: Any) -> str:
    if math.isnan(row.mean):
        return DASH
    if math.isnan(row.p):
        return f"{st.points(row.mean)} {'(no spread)' if row.n > 1 else '(one seed)'}"
    text = f"{st.with_interval(row, star='*' if row.decision else '')} p {row.p_holm:.2g}"
    return f"{text}, {row.n} of {row.n + row.unpaired} seeds" if row.unpaired else text


def _score(frame: pd.DataFrame) -> str:
    name = score_name(frame)
    return f"{name[0].upper()}{name[1:]}"


def _protocol(results: Results, protocol: str, rule: str | None) -> str:
    if rule is None:
        regression = is_regression(select(results.budgets, protocol, rule))
        both = f"{RULES[0]} (regression: {RULES[1]})"
        rule = RULES[1] if regression.all() else both if regression.any() else RULES[0]
    return f"Protocol {protocol} ({PROTOCOLS.get(protocol, 'as named')}), exit rule {rule}."


def _seeds(results: Results) -> str:
    counts = sorted(set(results.runs.groupby(["cell", "strategy"])["seed"].nunique()))
    if counts[-1] == 1:
        return "One seed: no interval."
    number = " to ".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
    return f"Mean ± half of the 95 % t interval over {number} seeds."
