"""Smaller plain networks beside early-exit networks: accuracy at the same mean cost.

A plain network has no exits: its accuracy is its last exit's, its cost its backbone's, without the untrained heads.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from eestudy.config import EestudyError
from eestudy.report import panels, style
from eestudy.report import statistics as st
from eestudy.report.frames import Results, in_order
from eestudy.report.plots import tradeoff_lines, value_limits
from eestudy.report.tables import DASH, Table, select, table

WHOLE = "whole"
PLAIN: dict[str, Any] = {"color": style.INK, "marker": "X", "linestyle": "", "label": "plain network"}


def plain_networks(results: Results) -> pd.DataFrame:
    """One row per run of plain networks: cell (architecture / data set), name, seed, flops (its backbone's), accuracy.

    name: what makes it smaller, such as "width 24", or "whole".
    """
    last = results.exits.groupby("run")["exit"].transform("max") == results.exits["exit"]
    accuracy = results.exits[last].set_index("run")["value"]
    runs = results.runs
    names = [named(json.loads(text).get("architecture_args", {})) for text in runs["config"]]
    kept = runs[["run", "seed"]].assign(cell=_cell(runs), name=names, flops=runs["backbone_flops"])
    return kept.assign(accuracy=runs["run"].map(accuracy))


def _cell(frame: pd.DataFrame) -> pd.Series:
    return frame["architecture"] + " / " + frame["dataset"]


def named(architecture_args: Mapping[str, Any]) -> str:
    """What makes a network smaller than its family's, such as "width 24", or WHOLE."""
    return ", ".join(f"{key} {value}" for key, value in sorted(architecture_args.items())) or WHOLE


def finest_curves(results: Results, protocol: str, rule: str) -> pd.DataFrame:
    """Early exits' curves with the smallest steps that there are, for `at_equal_cost`.

    Thresholds of the study's own protocol and rule: those of the explorer, geometric. Any others: `Results.tradeoff`.
    """
    if (protocol, rule) != ("calibrated", "max-probability"):
        return select(results.tradeoff, protocol, rule)
    rows = results.evaluation("explorer").query("allocation == 'geometric'")
    return rows.assign(flops=rows["cost"] * rows["run"].map(results.runs.set_index("run")["backbone_flops"]))


def at_equal_cost(fine: pd.DataFrame, plain: pd.DataFrame) -> pd.DataFrame:
    """Each strategy at each plain network's cost, paired by seed: early exits less the plain network.

    fine: of `finest_curves`. The point taken of each seed's curve is the last whose mean cost on test is not above the
    plain network's, so early exits are given no more than that cost, and up to one step of the curve less.
    Columns: cell, strategy, name, flops, spent (the point's share of the plain network's cost, mean over seeds),
    early, plain (accuracies), and those of `statistics.tested` ("better": early exits), one family.
    EestudyError where the two studies have no cell in common.
    """
    curves = fine.assign(cell=_cell(fine)).dropna(subset="accuracy")
    tests = []
    for (cell, name), networks in plain.groupby(["cell", "name"], sort=False):
        own = curves[curves["cell"] == cell]
        for strategy in in_order(own["strategy"]):
            cost = float(networks["flops"].iloc[0])
            within = own[(own["strategy"] == strategy) & (own["flops"] <= cost)].sort_values("flops")
            point = within.groupby("seed")[["accuracy", "flops"]].last()
            early, alone = point["accuracy"], networks.set_index("seed")["accuracy"]
            names = {"cell": cell, "strategy": strategy, "name": name, "flops": cost}
            means = {"spent": point["flops"].mean() / cost, "early": early.mean(), "plain": alone.mean()}
            tests.append((names | means, early, alone))
    if not tests:
        raise EestudyError("study: plain and early-exit networks have no architecture and data set in common")
    return st.tested((), tests).sort_values(["cell", "flops"], kind="stable", ignore_index=True)


def equal_cost_table(frame: pd.DataFrame, whole: dict[str, float]) -> Table:
    """`at_equal_cost` as a reader sees it. whole: FLOPs of the whole backbone by cell."""
    rows = list(frame.itertuples())
    plain = {
        "plain network": frame["name"],
        "cost": [f"{100 * row.flops / whole[row.cell]:.0f} %" for row in rows],
        "accuracy, %": [f"{100 * row.plain:.1f}" for row in rows],
    }
    texts = frame[["cell", "flops", "strategy"]].assign(**plain, text=[_difference(row) for row in rows])
    wide = texts.pivot(index=["cell", "flops", *plain], columns="strategy", values="text")
    wide = wide[in_order(wide.columns)].droplevel("flops").rename_axis(columns=None)
    return table(
        wide,
        "Early exits less the plain network at the same mean cost, points [95 % interval over seeds]; * where Holm's "
        f"correction over these {len(frame)} comparisons leaves a difference. In round brackets: the share of the "
        "plain network's cost that early exits really spend. Cost: of the whole backbone.",
        "equal-cost",
    )


def _difference(row: Any) -> str:
    if math.isnan(row.mean):
        return DASH
    return f"{st.with_interval(row, star='*' if row.decision else '', to=' to ')} ({row.spent:.0%})"


def in_short(frame: pd.DataFrame) -> str:
    """`at_equal_cost` over all cells."""
    words, spent = frame["decision"].value_counts(), frame["spent"]
    return (
        f"**In short.** Of {len(frame)} comparisons at equal cost, a smaller plain network wins "
        f"{words.get('worse', 0)}, early exits win {words.get('better', 0)}, and the rest are inconclusive. "
        f"Early exits spend {spent.min():.0%} to {spent.max():.0%} of the plain network's cost."
    )


@style.context()
def plot(tradeoff: pd.DataFrame, plain: pd.DataFrame, whole: dict[str, float]) -> style.Plot:
    """The trade-off curves of every cell with the plain networks on them: crosses, with seeds' 95 % intervals."""
    tradeoff = tradeoff.assign(cell=_cell(tradeoff))
    cells = [cell for cell in dict.fromkeys(tradeoff["cell"]) if cell in set(plain["cell"])]
    shows = "accuracy against mean cost; plain networks beside early exits"
    figure, shown = panels.of_cells(cells, shows, (0.7, 3.3), columns=1)
    for cell, axes in shown.items():
        rows = tradeoff[tradeoff["cell"] == cell]
        tradeoff_lines(axes, rows, whole[cell] / 100)
        own = plain[plain["cell"] == cell]
        by_cost = sorted(own.groupby("name"), key=lambda pair: pair[1]["flops"].iloc[0])
        for number, (name, group) in enumerate(by_cost):
            x = 100 * group["flops"] / whole[cell]
            panels.bars(axes, group["accuracy"].groupby(x), markersize=7, capsize=3, zorder=5, **PLAIN)
            at, beside = (x.iloc[0], group["accuracy"].mean()), (6, (-14, 8)[number % 2])
            axes.annotate(str(name), at, textcoords="offset points", xytext=beside, fontsize=8)
        axes.set_ylim(*value_limits(pd.concat([rows["accuracy"], own["accuracy"]])))
        axes.set_xlim(left=0)
        style.percent_axis(axes)
    figure.axes[-1].set_xlabel("mean cost of a sample, % of the whole plain backbone")
    return panels.legend(figure)


def on_the_clock(tradeoff: pd.DataFrame, plain: pd.DataFrame, milliseconds: dict[str, Any], batch: int) -> pd.DataFrame:
    """Accuracy beside measured time: one row per network, or strategy at a budget.

    milliseconds: of `benchmarks/static.json`. Columns: cell, kind ("plain" or the strategy), name (the network, or the
    budget in %), ms (a sample, in batches of `batch`), accuracy (mean over seeds).
    """
    curves = tradeoff.assign(cell=_cell(tradeoff)).dropna(subset="accuracy")
    found = []
    for cell, measured in milliseconds.items():
        for name, group in plain[plain["cell"] == cell].groupby("name", sort=False):
            found.append((cell, "plain", str(name), measured["plain"][name][str(batch)], group["accuracy"].mean()))
        for strategy, budgets in measured["early"].items():
            own = curves[(curves["cell"] == cell) & (curves["strategy"] == strategy)]
            for budget, times in budgets.items():
                at = own[(own["budget"] - float(budget)).abs() < 1e-6]["accuracy"]
                if len(at):
                    found.append((cell, strategy, f"{100 * float(budget):.0f} %", times[str(batch)], at.mean()))
    return pd.DataFrame(found, columns=["cell", "kind", "name", "ms", "accuracy"])


@style.context()
def clock_plot(frames: dict[int, pd.DataFrame]) -> style.Plot:
    """`on_the_clock` by batch size: a row a cell, a column a batch size; crosses are plain networks."""
    cells = next(iter(frames.values()))["cell"]
    shows = "accuracy against measured time; plain networks and early exits"
    look: dict = {"xlabel": "milliseconds a sample", "sharey": "row"}
    figure, shown = panels.of_pairs(cells, {batch: f"batch {batch}" for batch in frames}, shows, (0.7, 2.9), **look)
    for (cell, batch), axes in shown.items():
        here = frames[batch][frames[batch]["cell"] == cell]
        plain, early = here[here["kind"] == "plain"], here[here["kind"] != "plain"]
        for strategy, own in panels.by_strategy(early.sort_values("ms").rename(columns={"kind": "strategy"})):
            axes.plot(own["ms"], own["accuracy"], **style.look(strategy))
        axes.plot(plain["ms"], plain["accuracy"], **PLAIN)
        axes.set_xlim(left=0)
        style.percent_axis(axes, "accuracy, %" if axes.get_subplotspec().is_first_col() else "")
    return panels.legend(figure)


def clock_findings(frame: pd.DataFrame) -> list[str]:
    """Which plain networks are not slower and not less accurate than some point of early exits, and the other way."""
    lines = []
    for cell, rows in frame.groupby("cell", sort=False):
        plain, early = rows[rows["kind"] == "plain"], rows[rows["kind"] != "plain"]
        beaten = [((early["ms"] <= row.ms) & (early["accuracy"] >= row.accuracy)).any() for row in plain.itertuples()]
        free = list(plain["name"][~np.array(beaten, dtype=bool)])
        lines.append(
            f"**{cell}**: for {sum(beaten)} of {len(plain)} plain networks some early-exit point is as fast and as "
            f"accurate on average{'; not for ' + '; '.join(free) if free else ''}."
        )
    return lines
