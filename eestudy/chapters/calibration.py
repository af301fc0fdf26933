"""Do confidences match accuracies, do they tell right from wrong, and in-distribution from out-of-distribution samples?

By exit and where samples leave. Frames of `Results.evaluation`: "reliability", "bins", "ood". A system is "exit 1" ..,
or "dynamic", the network that leaves early at half of the plain backbone's cost.
"""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from pandas.core.groupby import SeriesGroupBy

from eestudy.report import panels, style
from eestudy.report import statistics as st
from eestudy.report.effects import against, counted, effects
from eestudy.report.tables import DASH, Table, rows, table, why

METRICS = {"ece": "ECE", "ks": "KS error", "brier": "Brier score", "nll": "NLL, nats", "auroc": "AUROC, right or wrong"}
SYSTEMS = ("first exit", "last exit", "dynamic")
SCORES = {"max-probability": ("#0072B2", "o"), "entropy": ("#E69F00", "s"), "energy": ("#009E73", "D")}


def number_of(system: pd.Series) -> pd.Series:
    """ "exit 3" -> 3; "dynamic" and what has no system -> NaN."""
    return pd.to_numeric(system.astype(str).str.removeprefix("exit "), errors="coerce")


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first exit, the last exit and the dynamic network, with a column `part` that says which."""
    exits = number_of(frame["system"])
    last = exits.groupby(frame["cell"]).transform("max")
    named = np.select([exits == 1, exits == last, frame["system"] == "dynamic"], SYSTEMS, "")
    return frame.assign(part=named)[named != ""]


@style.context()
def reliability_diagrams(bins: pd.DataFrame, scaled: bool) -> style.Plot:
    """Accuracy against confidence, pooled over seeds: rows cells, columns `SYSTEMS`.

    On the diagonal confidence is as high as accuracy; below it the network is overconfident. A bin with less than 1 %
    of the samples is left out.
    """
    chosen = ends(bins[bins["scaled"] == scaled])
    shows = f"accuracy against confidence, {'after' if scaled else 'before'} temperature scaling"
    look: dict = {"xlabel": "confidence", "ylabel": "accuracy", "dpi": 120, "sharex": True, "sharey": True}
    figure, shown = panels.of_pairs(chosen["cell"], SYSTEMS, shows, (0.8, 2.5), **look)
    for (cell, system), axes in shown.items():
        axes.plot([0, 1], [0, 1], color=style.FAINT, linestyle="--", linewidth=1)
        for strategy, here in panels.by_strategy(chosen[(chosen["cell"] == cell) & (chosen["part"] == system)]):
            pooled = _pooled(here)
            line = {"markersize": 4, "linewidth": 1.4, **style.look(strategy)}
            axes.plot(pooled["confidence"], pooled["accuracy"], **line)
        axes.set_aspect("equal")
    return panels.legend(figure)


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of each bin over seeds, weighted by their samples."""
    sums = rows.assign(confidence=rows["confidence"] * rows["count"], accuracy=rows["accuracy"] * rows["count"])
    pooled = sums.groupby("bin")[["count", "confidence", "accuracy"]].sum()
    pooled = pooled[pooled["count"] >= 0.01 * pooled["count"].sum()]
    return pooled[["confidence", "accuracy"]].div(pooled["count"], axis=0)


@style.context()
def by_exit(reliability: pd.DataFrame, metric: str) -> style.Plot:
    """A metric by exit, a panel a cell, with 95 % intervals over seeds; at the right end the dynamic network.

    Full lines before, dotted ones after temperature scaling.
    """
    shows, label = f"{METRICS[metric]} by exit", METRICS[metric]
    figure, shown = panels.in_a_row(reliability["cell"], shows, 3.4, xlabel="exit", ylabel=label, dpi=130)
    for cell, axes in shown.items():
        here = reliability[(reliability["cell"] == cell) & reliability[metric].notna()]
        exits = number_of(here["system"])
        most = int(exits.max()) if exits.notna().any() else 1
        here = here.assign(x=exits.where(here["system"] != "dynamic", most + 1))
        for strategy, own in panels.by_strategy(here):
            for scaled, values in own.groupby("scaled"):
                _line(axes, values.groupby("x")[metric], most, strategy, bool(scaled))
        ticks = [*range(1, most + 1, 2), most + 1]
        if metric != "auroc":  # none of the others can be below 0; intervals can
            axes.set_ylim(bottom=0)
        axes.set_xticks(ticks, [*(str(tick) for tick in ticks[:-1]), "dyn."])
    return panels.legend(figure)


def _line(axes: Axes, values: SeriesGroupBy, most: int, strategy: str, scaled: bool) -> None:
    """A line through the exits, and a bar at each and at the dynamic network, which lies beyond `most`."""
    means, look = values.mean().loc[:most], style.look(strategy) | {"label": None}
    line = {"color": look["color"], "linestyle": ":" if scaled else "-", "linewidth": 1.5}
    axes.plot(means.index, means, label=None if scaled else strategy, **line)
    look |= {"mfc": "white" if scaled else None, "markersize": 4, "linestyle": ""}
    panels.bars(axes, values, elinewidth=0.9, capsize=1.5, **look)


def scaling_effects(reliability: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric after temperature scaling less before: `against` by cell, strategy and system (`ends`)."""
    keys = ["cell", "strategy", "seed", "part"]
    wide = ends(reliability).pivot_table(index=keys, columns="scaled", values=metric, sort=False).reset_index()
    wide = wide.rename(columns={False: "before", True: "after"})
    return against(wide, "after", "before", ("part", "strategy"))


def strategy_effects(reliability: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Paired differences of a metric between strategies at the `ends`, before temperature scaling: `effects`."""
    chosen = ends(reliability[reliability["scaled"].eq(False)])
    return effects(chosen[chosen[metric].notna()], metric)


def metric_table(reliability: pd.DataFrame) -> Table:
    """Rows cell x system x strategy: each metric before and after temperature scaling, means over seeds x 100."""
    chosen = ends(reliability)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for cell, system in product(dict.fromkeys(chosen["cell"]), SYSTEMS):
        for strategy, here in panels.by_strategy(chosen[(chosen["cell"] == cell) & (chosen["part"] == system)]):
            found[cell, system, strategy] = {
                METRICS[metric]: " → ".join(_hundred(here[here["scaled"] == s][metric]) for s in (False, True))
                for metric in ("ece", "ks", "brier", "auroc")
            }
    text = "On test, x 100, mean over seeds: before → after temperature scaling (fitted on validation data)."
    return table(rows(found, "cell", "system", "strategy"), text + why(reliability, "ece"), "reliability")


def _hundred(values: pd.Series) -> str:
    found = st.mean_interval(values)
    return DASH if not found.n else f"{100 * found.mean:.1f}"


# Out-of-distribution samples


def ood_table(ood: pd.DataFrame) -> Table:
    """Rows cell x kind of OOD samples, columns scores: AUROC x 100 at `SYSTEMS`; and the costs."""
    found = {}
    for (cell, kind), here in ood[ood["outside"] != "all"].groupby(["cell", "outside"], sort=False):
        own, cost, row = ends(here), here[here["cost"].notna()], {}
        for score in SCORES:
            of_score = own[own["score"] == score]
            row[score] = " / ".join(_hundred(of_score[of_score["part"] == each]["auroc"]) for each in SYSTEMS)
        row["cost: OOD, own"] = f"{_hundred(cost['cost'])}, {_hundred(cost['cost_inside'])}"
        found[cell, kind] = row
    text = (
        "AUROC x 100 of telling test samples from out-of-distribution (OOD) ones: first exit / last exit / dynamic, "
        "means over strategies and seeds; 50 is chance, below 50 OOD samples look more familiar. Costs: mean under the "
        f"dynamic rule, % of the plain backbone.{why(ood, 'auroc')}"
    )
    return table(rows(found, "cell", "OOD samples"), text, "ood")


@style.context()
def ood_plot(ood: pd.DataFrame, kind: str) -> style.Plot:
    """AUROC by exit for one kind of OOD samples, a panel a cell, a line a score, mean over strategies and seeds."""
    chosen = ood[(ood["outside"] == kind) & ood["auroc"].notna()]
    look: dict = {"xlabel": "exit", "ylabel": f"AUROC, {kind}", "dpi": 130, "sharey": True}
    figure, shown = panels.in_a_row(chosen["cell"], f"AUROC by exit, OOD samples: {kind}", 3.2, **look)
    for cell, axes in shown.items():
        here = chosen[(chosen["cell"] == cell) & (chosen["system"] != "dynamic")]
        here = here.assign(x=number_of(here["system"]))
        for score, (shade, mark) in SCORES.items():
            seeds = here[here["score"] == score].groupby(["x", "seed"])["auroc"].mean()
            line: dict = {"color": shade, "marker": mark, "capsize": 2, "elinewidth": 1, "label": score}
            panels.bars(axes, seeds.groupby(level="x"), **line)
        axes.axhline(0.5, color=style.FAINT, linestyle="--", linewidth=1)
    return panels.legend(figure)


def cost_effects(ood: pd.DataFrame) -> pd.DataFrame:
    """Mean cost of OOD samples less that of test samples under the dynamic rule: `against` by cell and kind."""
    known = ood[ood["cost"].notna()].assign(part=lambda frame: frame["outside"])
    return against(known, "cost", "cost_inside", ("part",))


def in_short(scaling: pd.DataFrame, order: pd.DataFrame, spent: pd.DataFrame) -> str:
    """Of `scaling_effects` of the KS error, `strategy_effects` of the AUROC and `cost_effects`: what tests decide."""
    return (
        f"**In short.** KS error after temperature scaling against before: {counted(scaling, 'part')}. How well "
        f"confidence tells right from wrong, the first strategy against the second: {counted(order, 'pair')}. "
        f"The cost of out-of-distribution samples against that of test samples, {counted(spent, 'pair')} comparisons."
    )
