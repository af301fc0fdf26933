"""Which samples are hard, where they leave under each strategy, and what they look like.

Frames of `Results.evaluation`: "samples", "agreement", "leaving", "examples". A sample is easy when at most a tenth of
all (strategy, seed, exit) triples of its cell are wrong on it, hard when at least half are. Definitions are ours.
"""

import numpy as np
import pandas as pd

from eestudy.report import panels, style
from eestudy.report import statistics as st
from eestudy.report.effects import against, counted, effects
from eestudy.report.frames import in_order
from eestudy.report.pictures import samples as pictures_of
from eestudy.report.tables import DASH, Table, ordered, plus_minus, table, why

GROUPS = ("easy", "middle", "hard")
KINDS = {
    "easy": "Easy: of each class the sample that the fewest get wrong",
    "hard": "Hard: the samples that most get wrong",
    "split": "Split: the samples on which exits and seeds agree least",
}


def sizes_table(samples: pd.DataFrame) -> Table:
    """Rows cells: how many samples are easy, middle and hard; never and always wrong; mean agreement."""
    known = samples[samples["difficulty"].notna()]
    shares = {group: known["group"] == group for group in GROUPS} | {
        "never wrong": known["difficulty"] <= 1e-6, "always wrong": known["difficulty"] >= 1 - 1e-6,
        "agreement": known["agreement"],
    }  # fmt: skip
    means = (100 * pd.DataFrame(shares).astype(float)).groupby(known["cell"], sort=False).mean().map("{:.1f} %".format)
    means.insert(0, "samples", known["cell"].value_counts().astype(str))
    made = means.reindex(dict.fromkeys([*means.index, *samples["cell"]])).fillna(DASH)
    text = "Test samples by difficulty; agreement: share of all triples that give the most frequent class, mean."
    return table(made, text + why(samples, "difficulty"), "difficulty")


@style.context()
def agreement_plot(agreement: pd.DataFrame) -> style.Plot:
    """By exit, a panel a cell: full lines agreement with other seeds, dashed with the run's own last exit."""
    chosen = agreement[agreement["agreement"].notna()]
    look: dict = {"xlabel": "exit", "dpi": 130, "sharey": True}
    figure, shown = panels.in_a_row(chosen["cell"], "agreement by exit", 3.4, **look)
    for cell, axes in shown.items():
        for strategy, own in panels.by_strategy(chosen):
            for line, other in (("-", "other seeds"), ("--", "own last exit")):
                here = own[(own["cell"] == cell) & (own["with"] == other)]
                look = {"color": style.colour(strategy), "linestyle": line, "linewidth": 1.5, "capsize": 1.5}
                label = strategy if other == "other seeds" else None
                panels.bars(axes, here.groupby("exit")["agreement"], label=label, **look)
    style.percent_axis(figure.axes[0], "same prediction, % of the samples")
    return panels.legend(figure)


def last_exit_effects(agreement: pd.DataFrame) -> pd.DataFrame:
    """Agreement with other seeds at the last exit: `effects` of the strategies by cell."""
    chosen = agreement[(agreement["with"] == "other seeds") & agreement["agreement"].notna()]
    last = chosen[chosen["exit"] == chosen.groupby("cell")["exit"].transform("max")]
    return effects(last, "agreement", by=())


def mean_exits(leaving: pd.DataFrame) -> pd.DataFrame:
    """One row per run and group: mean exit of its samples, from 0 (all at the first) to 1 (at the last), accuracy."""
    known = leaving[leaving["left"].notna()]
    most = known.groupby("cell")["exit"].transform("max")
    depth = (known["exit"] - 1) / (most - 1).clip(lower=1)
    sums = known.assign(depth=depth * known["left"])
    keys = ["cell", "strategy", "seed", "run", "group"]
    found = sums.groupby(keys, sort=False)[["left", "depth", "right"]].sum().reset_index()
    found = found[found["left"] > 0]
    return found.assign(depth=found["depth"] / found["left"], accuracy=found["right"] / found["left"])


@style.context()
def leaving_plot(leaving: pd.DataFrame) -> style.Plot:
    """Where easy, middle and hard samples leave: rows cells, columns strategies; shares, means over seeds."""
    known = leaving[leaving["left"].notna() & (leaving["samples"] > 0)]
    known = known.assign(share=known["left"] / known["samples"])
    look: dict = {"xlabel": "leave at exit", "dpi": 120, "sharey": True, "sharex": "row"}
    shows = "where easy and hard samples leave"
    figure, shown = panels.of_pairs(known["cell"], in_order(known["strategy"]), shows, (0.8, 2.0), **look)
    for (cell, strategy), axes in shown.items():
        here = known[(known["cell"] == cell) & (known["strategy"] == strategy)]
        for number, (group, shade) in enumerate(zip(GROUPS, ("#56B4E9", "#8c8c8c", "#D55E00"), strict=True)):
            own = here[here["group"] == group].groupby("exit")["share"].mean()
            axes.bar(own.index + 0.27 * (number - 1), own, width=0.27, color=shade, label=group)
        axes.grid(visible=False, axis="x")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if axes.get_subplotspec().is_first_col():
            style.percent_axis(axes, "of the group, %")
    return panels.legend(figure)


def depth_table(leaving: pd.DataFrame) -> Table:
    """Rows cell x strategy, columns groups: mean depth of leaving, % of the way, and accuracy there."""
    runs = mean_exits(leaving)
    by_group = runs.groupby(["cell", "strategy", "group"])
    right = (100 * by_group["accuracy"].mean()).map(", right {:.0f} %".format)
    texts = by_group["depth"].agg(lambda seeds: plus_minus(st.mean_interval(seeds))) + right
    made = ordered(texts.unstack().rename_axis(columns=None), runs["cell"]).reindex(columns=list(GROUPS)).fillna(DASH)
    text = (
        "Where samples leave at half of the backbone's cost: 0 is the first exit, 100 the last; mean ± half of the "
        "95 % interval over seeds, and how many are right there."
    )
    return table(made, text + why(leaving, "left"), "depth")


def depth_effects(leaving: pd.DataFrame) -> pd.DataFrame:
    """How much later hard samples leave than easy ones (`against`), by cell and strategy."""
    wide = _wide(leaving)
    return against(wide.dropna(subset=["hard", "easy"]), "hard", "easy")


def gap_effects(leaving: pd.DataFrame) -> pd.DataFrame:
    """Whether strategies differ in how much later the hard ones leave: `effects` by cell."""
    wide = _wide(leaving)
    return effects(wide.assign(gap=wide["hard"] - wide["easy"]).dropna(subset="gap"), "gap", by=())


def _wide(leaving: pd.DataFrame) -> pd.DataFrame:
    keys = ["cell", "strategy", "seed"]
    wide = mean_exits(leaving).pivot_table(index=keys, columns="group", values="depth", sort=False)
    return wide.reindex(columns=list(GROUPS)).reset_index()


def examples_plot(examples: pd.DataFrame, cell: str, kind: str) -> style.Plot | str:
    """The examples of a kind as pictures, above each its class, and in brackets what most triples say if that differs.

    Where there are none, a text that says why.
    """
    here = examples[examples["cell"] == cell]
    chosen = here[here["kind"] == kind] if "pixels" in here else here[:0]
    chosen = chosen[chosen["pixels"].notna()] if len(chosen) else chosen
    if chosen.empty:
        return f"{cell}: {DASH} ({'; '.join(dict.fromkeys(here['reason'])) or 'no such samples'})"
    shape = tuple(int(size) for size in chosen["shape"].iloc[0].split("x"))
    x = np.stack([np.asarray(pixels, dtype=np.float32).reshape(shape) for pixels in chosen["pixels"]])
    same = chosen["label"] == chosen["majority"]
    names = chosen["label_name"].where(same, chosen["label_name"] + "\n(" + chosen["majority_name"] + ")")
    return pictures_of(x, list(names), f"{cell}. {KINDS[kind]}")


def in_short(later: pd.DataFrame, gaps: pd.DataFrame, agreed: pd.DataFrame) -> str:
    """Of `depth_effects`, `gap_effects` and `last_exit_effects`: what the corrected tests decide, in cells."""
    return (
        f"**In short.** Hard samples exit later than easy ones in {(later['decision'] == 'higher').sum()} of "
        f"{len(later)} comparisons. How much later, first strategy against second: {counted(gaps, 'pair')} cells. "
        f"Agreement of seeds at the last exit: {counted(agreed, 'pair')} cells."
    )
