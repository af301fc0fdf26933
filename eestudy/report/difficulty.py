"""Which samples are hard, where they leave under each strategy, and what they look like.

Frames of `Results.evaluation`: "samples", "agreement", "leaving", "examples". A sample is easy when at most a tenth of
all (strategy, seed, exit) triples of its cell are wrong on it, hard when at least half are. Definitions are ours.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from eestudy.report import pictures, style
from eestudy.report import statistics as st
from eestudy.report.dynamics import against, effects
from eestudy.report.dynamics_plots import LINES
from eestudy.report.frames import in_order
from eestudy.report.tables import DASH, PAIRS, Table, table
from eestudy.report.thresholds import why

GROUPS = ("easy", "middle", "hard")
KINDS = {
    "easy": "Easy: of each class the sample that the fewest get wrong",
    "hard": "Hard: the samples that most get wrong",
    "split": "Split: the samples on which exits and seeds agree least",
}


def sizes_table(samples: pd.DataFrame) -> Table:
    """Rows cells: how many samples are easy, middle and hard; never and always wrong; mean agreement."""
    rows = {}
    for cell, here in samples[samples["difficulty"].notna()].groupby("cell", sort=False):
        many = len(here)
        shares = {group: f"{100 * (here['group'] == group).mean():.1f} %" for group in GROUPS}
        rows[cell] = {"samples": str(many), **shares} | {
            "never wrong": f"{100 * (here['difficulty'] <= 1e-6).mean():.1f} %",
            "always wrong": f"{100 * (here['difficulty'] >= 1 - 1e-6).mean():.1f} %",
            "agreement": f"{100 * here['agreement'].mean():.1f} %",
        }
    made = pd.DataFrame.from_dict(rows, orient="index").rename_axis("cell")
    for cell in dict.fromkeys(samples["cell"]):
        if cell not in rows:
            made.loc[cell] = DASH
    text = "Test samples by difficulty; agreement: share of all triples that give the most frequent class, mean."
    return table(made, text + why(samples, "difficulty"), "difficulty")


def agreement_plot(agreement: pd.DataFrame) -> style.Plot:
    """By exit, a panel a cell: full lines agreement with other seeds, dashed with the run's own last exit."""
    chosen = agreement[agreement["agreement"].notna()]
    cells = list(dict.fromkeys(chosen["cell"]))
    with style.context():
        figure = style.Plot(3.4, f"agreement by exit; panels: {'; '.join(cells)}", dpi=130)
        panels = figure.subplots(1, max(1, len(cells)), squeeze=False, sharey=True)[0]
        for axes, cell in zip(panels, cells):
            for strategy in in_order(chosen["strategy"]):
                for line, other in zip(LINES, ("other seeds", "own last exit")):
                    here = chosen[
                        (chosen["cell"] == cell) & (chosen["strategy"] == strategy) & (chosen["with"] == other)
                    ]
                    found = [(x, st.mean_interval(values)) for x, values in here.groupby("exit")["agreement"]]
                    half = [0.0 if math.isnan(each.low) else each.half for _, each in found]
                    look = {"color": style.colour(strategy), "linestyle": line, "linewidth": 1.5, "capsize": 1.5}
                    label = strategy if other == "other seeds" else None
                    axes.errorbar([x for x, _ in found], [e.mean for _, e in found], yerr=half, label=label, **look)
            axes.set_title(cell)
            axes.set_xlabel("exit")
        style.percent_axis(panels[0], "same prediction, % of the samples")
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def last_exit_effects(agreement: pd.DataFrame) -> pd.DataFrame:
    """Agreement with other seeds at the last exit: `dynamics.effects` of the strategies by cell."""
    chosen = agreement[(agreement["with"] == "other seeds") & agreement["agreement"].notna()]
    last = chosen[chosen["exit"] == chosen.groupby("cell")["exit"].transform("max")]
    return effects(last, "agreement", PAIRS, ())


def mean_exits(leaving: pd.DataFrame) -> pd.DataFrame:
    """One row a run x group: mean exit of its samples, from 0 (all at the first) to 1 (all at the last), accuracy."""
    known = leaving[leaving["left"].notna()]
    most = known.groupby("cell")["exit"].transform("max")
    depth = (known["exit"] - 1) / (most - 1).clip(lower=1)
    sums = known.assign(depth=depth * known["left"])
    keys = ["cell", "strategy", "seed", "run", "group"]
    found = sums.groupby(keys, sort=False)[["left", "depth", "right"]].sum().reset_index()
    found = found[found["left"] > 0]
    return found.assign(depth=found["depth"] / found["left"], accuracy=found["right"] / found["left"])


def leaving_plot(leaving: pd.DataFrame) -> style.Plot:
    """Where easy, middle and hard samples leave: rows cells, columns strategies; shares, means over seeds."""
    known = leaving[leaving["left"].notna() & (leaving["samples"] > 0)]
    known = known.assign(share=known["left"] / known["samples"])
    cells, strategies = list(dict.fromkeys(known["cell"])), in_order(known["strategy"])
    shades = dict(zip(GROUPS, ("#56B4E9", "#8c8c8c", "#D55E00"), strict=True))
    with style.context():
        figure = style.Plot(0.8 + 2.0 * len(cells), "where easy and hard samples leave", dpi=120)
        panels = figure.subplots(len(cells), len(strategies), squeeze=False, sharey=True, sharex="row")
        for row, cell in zip(panels, cells, strict=True):
            for axes, strategy in zip(row, strategies, strict=True):
                here = known[(known["cell"] == cell) & (known["strategy"] == strategy)]
                for place, group in enumerate(GROUPS):
                    own = here[here["group"] == group].groupby("exit")["share"].mean()
                    axes.bar(own.index + 0.27 * (place - 1), own, width=0.27, color=shades[group], label=group)
                axes.set_title(f"{cell}\n{strategy}" if axes is row[0] else f"\n{strategy}")
                axes.grid(visible=False, axis="x")
                axes.xaxis.get_major_locator().set_params(integer=True)
            style.percent_axis(row[0], "of the group, %")
        for axes in panels[-1]:
            axes.set_xlabel("leave at exit")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def depth_table(leaving: pd.DataFrame) -> Table:
    """Rows cell x strategy, columns groups: mean depth of leaving, % of the way, and accuracy there."""
    runs = mean_exits(leaving)
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for (cell, strategy, group), here in runs.groupby(["cell", "strategy", "group"], sort=False):
        depth = st.mean_interval(here["depth"])
        width = "" if math.isnan(depth.low) else f" ± {100 * depth.half:.1f}"
        texts.setdefault((cell, strategy), {})[group] = (
            f"{100 * depth.mean:.1f}{width}, right {100 * here['accuracy'].mean():.0f} %"
        )
    order = [(c, s) for c in dict.fromkeys(runs["cell"]) for s in in_order(runs["strategy"]) if (c, s) in texts]
    made = pd.DataFrame.from_dict(texts, orient="index").reindex(columns=list(GROUPS)).fillna(DASH).loc[order]
    made.index = pd.MultiIndex.from_tuples(order, names=["cell", "strategy"])
    text = (
        "Where samples leave at half of the backbone's cost: 0 is the first exit, 100 the last; mean ± half of the "
        "95 % interval over seeds, and how many are right there."
    )
    return table(made, text + why(leaving, "left"), "depth")


def depth_effects(leaving: pd.DataFrame) -> pd.DataFrame:
    """How much later hard samples leave than easy ones (`dynamics.against`), by cell and strategy."""
    wide = _wide(leaving)
    return against(wide.dropna(subset=["hard", "easy"]), "hard", "easy")


def gap_effects(leaving: pd.DataFrame) -> pd.DataFrame:
    """Whether strategies differ in how much later the hard ones leave: `dynamics.effects` by cell."""
    wide = _wide(leaving)
    return effects(wide.assign(gap=wide["hard"] - wide["easy"]).dropna(subset="gap"), "gap", PAIRS, ())


def _wide(leaving: pd.DataFrame) -> pd.DataFrame:
    keys = ["cell", "strategy", "seed"]
    wide = mean_exits(leaving).pivot_table(index=keys, columns="group", values="depth", sort=False)
    return wide.reindex(columns=list(GROUPS)).reset_index()


def examples_plot(examples: pd.DataFrame, cell: str, kind: str) -> style.Plot | str:
    """The examples of a kind as pictures, above each its class, and in brackets what most triples say if that differs.

    A text that says why, where there are none.
    """
    here = examples[examples["cell"] == cell]
    rows = here[here["kind"] == kind] if "pixels" in here else here[:0]
    rows = rows[rows["pixels"].notna()] if len(rows) else rows
    if rows.empty:
        return f"{cell}: {DASH} ({'; '.join(dict.fromkeys(here['reason'])) or 'no such samples'})"
    shape = tuple(int(size) for size in rows["shape"].iloc[0].split("x"))
    x = np.stack([np.asarray(pixels, dtype=np.float32).reshape(shape) for pixels in rows["pixels"]])
    names = [
        r.label_name if r.label == r.majority else f"{r.label_name}\n({r.majority_name})" for r in rows.itertuples()
    ]
    return pictures.samples(x, names, f"{cell}. {KINDS[kind]}")
