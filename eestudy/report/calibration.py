"""Are confidences honest, do they tell right from wrong, and do they know a stranger? By exit and where samples leave.

Frames of `Results.evaluation`: "reliability", "bins", "ood". A system is "exit 1" .., or "dynamic", the network that
leaves early at half of the plain backbone's cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from eestudy.report import statistics as st
from eestudy.report import style
from eestudy.report.dynamics import against, effects
from eestudy.report.frames import in_order
from eestudy.report.tables import DASH, PAIRS, Table, table
from eestudy.report.thresholds import why

METRICS = {"ece": "ECE", "ks": "KS error", "brier": "Brier score", "nll": "NLL, nats", "auroc": "AUROC, right or wrong"}
KINDS = ("another data set", "inverted", "turned", "noise")
SCORES = {"max-probability": ("#0072B2", "o"), "entropy": ("#E69F00", "s"), "energy": ("#009E73", "D")}


def number_of(system: pd.Series) -> pd.Series:
    """ "exit 3" -> 3; "dynamic" and what has no system -> NaN."""
    return pd.to_numeric(system.astype(str).str.removeprefix("exit "), errors="coerce")


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first exit, the last exit and the dynamic network, with a column `part` that says which."""
    exits = number_of(frame["system"])
    last = exits.groupby(frame["cell"]).transform("max")
    named = np.select(
        [exits == 1, exits == last, frame["system"] == "dynamic"], ["first exit", "last exit", "dynamic"], ""
    )
    return frame.assign(part=named)[named != ""]


def reliability_diagrams(bins: pd.DataFrame, scaled: bool) -> style.Plot:
    """Accuracy against confidence, pooled over seeds: rows cells, columns first exit, last exit, dynamic.

    On the diagonal confidence is honest; below it the network is too sure. A bin with less than 1 % of the samples is
    left out.
    """
    chosen = ends(bins[bins["scaled"] == scaled])
    cells, places = list(dict.fromkeys(chosen["cell"])), ("first exit", "last exit", "dynamic")
    word = "after" if scaled else "before"
    with style.context():
        figure = style.Plot(0.8 + 2.5 * len(cells), f"accuracy against confidence, {word} temperature scaling", dpi=120)
        panels = figure.subplots(len(cells), 3, squeeze=False, sharex=True, sharey=True)
        for row, cell in zip(panels, cells, strict=True):
            for axes, place in zip(row, places, strict=True):
                here = chosen[(chosen["cell"] == cell) & (chosen["part"] == place)]
                axes.plot([0, 1], [0, 1], color=style.FAINT, linestyle="--", linewidth=1)
                for strategy in in_order(here["strategy"]):
                    pooled = _pooled(here[here["strategy"] == strategy])
                    look = {"color": style.colour(strategy), "marker": style.marker(strategy), "label": strategy}
                    axes.plot(pooled["confidence"], pooled["accuracy"], markersize=4, linewidth=1.4, **look)
                axes.set_title(f"{cell}\n{place}" if axes is row[0] else f"\n{place}")
                axes.set_aspect("equal")
            row[0].set_ylabel("accuracy")
        for axes in panels[-1]:
            axes.set_xlabel("confidence")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)))
    return figure


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of each bin over seeds, weighted by their samples."""
    sums = rows.assign(confidence=rows["confidence"] * rows["count"], accuracy=rows["accuracy"] * rows["count"])
    pooled = sums.groupby("bin")[["count", "confidence", "accuracy"]].sum()
    pooled = pooled[pooled["count"] >= 0.01 * pooled["count"].sum()]
    return pooled[["confidence", "accuracy"]].div(pooled["count"], axis=0)


def by_exit(reliability: pd.DataFrame, metric: str, both: bool = True) -> style.Plot:
    """A metric by exit, a panel a cell, with 95 % intervals over seeds; at the right end the dynamic network.

    both: full lines before, dotted ones after temperature scaling.
    """
    cells = list(dict.fromkeys(reliability["cell"]))
    with style.context():
        figure = style.Plot(3.4, f"{METRICS[metric]} by exit; panels: {'; '.join(cells)}", dpi=130)
        panels = figure.subplots(1, len(cells), squeeze=False)[0]
        for axes, cell in zip(panels, cells, strict=True):
            here = reliability[(reliability["cell"] == cell) & reliability[metric].notna()]
            exits = number_of(here["system"])
            most = int(exits.max()) if exits.notna().any() else 1
            here = here.assign(x=exits.where(here["system"] != "dynamic", most + 1))
            for strategy in in_order(here["strategy"]):
                for scaled in (False, True) if both else (False,):
                    _line(
                        axes, here[(here["strategy"] == strategy) & (here["scaled"] == scaled)], metric, most, strategy
                    )
            ticks = [*range(1, most + 1, 2), most + 1]
            if metric != "auroc":  # none of the others can be below 0; intervals can
                axes.set_ylim(bottom=0)
            axes.set_xticks(ticks, [*(str(tick) for tick in ticks[:-1]), "dyn."])
            axes.set_title(cell)
            axes.set_xlabel("exit")
        panels[0].set_ylabel(METRICS[metric])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)))
    return figure


def _line(axes: Axes, rows: pd.DataFrame, metric: str, most: int, strategy: str) -> None:
    found = [(float(x), st.mean_interval(values)) for x, values in rows.groupby("x")[metric]]
    if not found:
        return
    scaled = bool(rows["scaled"].iloc[0])
    look = {"color": style.colour(strategy), "linestyle": ":" if scaled else "-", "linewidth": 1.5}
    inside = [(x, each) for x, each in found if x <= most]
    axes.plot([x for x, _ in inside], [each.mean for _, each in inside], label=None if scaled else strategy, **look)
    for x, each in found:
        half = 0.0 if math.isnan(each.low) else each.half
        bar = {"color": style.colour(strategy), "markersize": 4, "elinewidth": 0.9, "capsize": 1.5}
        axes.errorbar(x, each.mean, yerr=half, marker=style.marker(strategy), mfc="white" if scaled else None, **bar)


def scaling_effects(reliability: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric after temperature scaling less before: `dynamics.against` by cell, strategy and place (`ends`)."""
    keys = ["cell", "strategy", "seed", "part"]
    wide = ends(reliability).pivot_table(index=keys, columns="scaled", values=metric, sort=False).reset_index()
    wide = wide.rename(columns={False: "before", True: "after"})
    return against(wide, "after", "before", ("part", "strategy"))


def strategy_effects(reliability: pd.DataFrame, metric: str, scaled: bool = False) -> pd.DataFrame:
    """Paired differences of a metric between strategies at the `ends`: `dynamics.effects`."""
    chosen = ends(reliability[reliability["scaled"] == scaled])
    return effects(chosen[chosen[metric].notna()], metric, PAIRS, ("part",))


def metric_table(reliability: pd.DataFrame, metrics: Sequence[str] = ("ece", "ks", "brier", "auroc")) -> Table:
    """Rows cell x place x strategy: each metric before and after temperature scaling, means over seeds x 100."""
    chosen = ends(reliability)
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for (cell, where, strategy), here in chosen.groupby(["cell", "part", "strategy"], sort=False):
        rows[cell, where, strategy] = {
            METRICS[metric]: " → ".join(_hundred(here[here["scaled"] == scaled][metric]) for scaled in (False, True))
            for metric in metrics
        }
    order = [
        (cell, where, strategy)
        for cell in dict.fromkeys(chosen["cell"])
        for where in ("first exit", "last exit", "dynamic")
        for strategy in in_order(chosen["strategy"])
        if (cell, where, strategy) in rows
    ]
    made = pd.DataFrame.from_dict(rows, orient="index").loc[order]
    made.index = pd.MultiIndex.from_tuples(order, names=["cell", "system", "strategy"])
    text = "On test, x 100, mean over seeds: before → after temperature scaling (fitted on validation data)."
    return table(made, text + why(reliability, "ece"), "reliability")


def temperature_table(reliability: pd.DataFrame) -> Table:
    """Rows cell x strategy, columns exits: the mean temperature. Above 1 the exit was too sure, below 1 not enough."""
    chosen = reliability[reliability["scaled"] & reliability["temperature"].notna()]
    chosen = chosen.assign(exit=number_of(chosen["system"]).astype(int))
    wide = chosen.pivot_table(index=["cell", "strategy"], columns="exit", values="temperature", sort=False)
    made = wide.sort_index(axis=1).map(lambda value: "" if math.isnan(value) else f"{value:.2f}")
    made.columns = pd.Index([f"exit {k}" for k in made.columns], name="temperature of")
    return table(
        made, "Temperatures, means over seeds: above 1 the exit was too sure, below 1 too modest.", "temperatures"
    )


def _hundred(values: pd.Series) -> str:
    found = st.mean_interval(values)
    return DASH if not found.n else f"{100 * found.mean:.1f}"


# ---------------------------------------------------------------- strangers


def stranger_table(ood: pd.DataFrame) -> Table:
    """Rows cell x kind of stranger, columns scores: AUROC x 100 at first exit, last exit, dynamic; and the costs."""
    rows = {}
    reasons = ood[ood["auroc"].isna()]
    for (cell, kind), here in ood[ood["outside"] != "all"].groupby(["cell", "outside"], sort=False):
        own = ends(here)
        row = {
            score: " / ".join(
                _hundred(own[(own["part"] == where) & (own["score"] == score)]["auroc"])
                for where in ("first exit", "last exit", "dynamic")
            )
            for score in SCORES
        }
        cost = here[here["cost"].notna()]
        row["cost: stranger, own"] = f"{_hundred(cost['cost'])}, {_hundred(cost['cost_inside'])}"
        rows[cell, kind] = row
    made = pd.DataFrame.from_dict(rows, orient="index")
    made.index = pd.MultiIndex.from_tuples(made.index, names=["cell", "stranger"])
    why_not = "; ".join(dict.fromkeys(reasons["reason"]))
    text = (
        "AUROC x 100 of telling test samples from strangers: first exit / last exit / dynamic, means over strategies "
        "and seeds; 50 is chance, below 50 strangers look more familiar. Costs: mean under the dynamic rule, % of the "
        f"plain backbone.{f' {DASH}: {why_not}.' if why_not else ''}"
    )
    return table(made, text, "ood")


def stranger_plot(ood: pd.DataFrame, kind: str) -> style.Plot:
    """AUROC by exit for one kind of stranger, a panel a cell, a line a score, mean over strategies and seeds."""
    chosen = ood[(ood["outside"] == kind) & ood["auroc"].notna()]
    cells = list(dict.fromkeys(chosen["cell"]))
    with style.context():
        figure = style.Plot(3.2, f"AUROC by exit, strangers: {kind}; panels: {'; '.join(cells)}", dpi=130)
        panels = figure.subplots(1, max(1, len(cells)), squeeze=False, sharey=True)[0]
        for axes, cell in zip(panels, cells):
            here = chosen[(chosen["cell"] == cell) & (chosen["system"] != "dynamic")]
            here = here.assign(x=number_of(here["system"]))
            for score, (shade, mark) in SCORES.items():
                seeds = here[here["score"] == score].groupby(["x", "seed"])["auroc"].mean()
                found = [(x, st.mean_interval(values)) for x, values in seeds.groupby(level="x")]
                half = [0.0 if math.isnan(each.low) else each.half for _, each in found]
                look = {"color": shade, "marker": mark, "capsize": 2, "elinewidth": 1, "label": score}
                axes.errorbar([x for x, _ in found], [each.mean for _, each in found], yerr=half, **look)
            axes.axhline(0.5, color=style.FAINT, linestyle="--", linewidth=1)
            axes.set_title(cell)
            axes.set_xlabel("exit")
        panels[0].set_ylabel(f"AUROC, {kind}")
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def cost_effects(ood: pd.DataFrame) -> pd.DataFrame:
    """Mean cost of strangers less that of test samples under the dynamic rule: `dynamics.against` by cell and kind."""
    known = ood[ood["cost"].notna()].assign(part=lambda frame: frame["outside"])
    return against(known, "cost", "cost_inside", ("part",))
