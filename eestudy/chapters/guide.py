"""Choosing a strategy: what to do by budget and network, what the choice may cost, and variants of the three."""

from __future__ import annotations

import pandas as pd

from eestudy.report import guide, panels, style, variants
from eestudy.report import statistics as st
from eestudy.report.study_cells import LAST
from eestudy.report.tables import DASH, Table, table, texts

WAYS = ("the guide", "always mixed", "always joint 2E", "always joint E", "always disjoint")


def in_short(frame: pd.DataFrame) -> str:
    """What to choose and what it may cost, Markdown. Of `study_cells.studied`."""
    regrets = guide.regrets(frame)
    means = regrets.groupby("way")["regret"].mean()
    firsts = regrets[regrets["regret"] == 0].groupby("way").size().reindex(WAYS, fill_value=0)
    there = [way for way in WAYS if way in means]
    least = " and ".join(way for way in there if means[way] < means[there].min() + 1e-9)
    count = frame["cell"].nunique()
    losses = ", ".join(f"{way} {100 * means[way]:.1f}" for way in there)
    return (
        f"Over {count} cells and {len(guide.BUDGETS)} budgets, what loses least to the best training of each cell: "
        f"**{least}**. Mean loss in points: {losses}. Mixed is the best of the four trainings in "
        f"{firsts['always mixed']} of {count * len(guide.BUDGETS)}."
    )


def decisions(frame: pd.DataFrame) -> Table:
    """What `recommend` says for each family that has a cell, at its cells' median size, and for any network."""
    rows = []
    families = [name for name in guide.FAMILIES if (frame["family"] == name).any()]
    for family in (*families, None):
        mine = frame[frame["family"] == family] if family else frame
        size = int(mine.drop_duplicates("cell")["size"].median())
        said = {}
        for budget in guide.BUDGETS:
            advice = guide.recommend(float(budget), size, family, frame=frame)
            behind = advice.evidence.groupby("training")["behind"].mean().sort_values()
            ahead = f", {100 * behind.iloc[1]:.1f} points over {behind.index[1].removesuffix(' 2E')}"
            said[f"at {budget} %"] = f"{advice.strategy}{ahead}"
        cells = ", ".join(dict.fromkeys(advice.evidence["cell"]))
        rows.append({"network": family or "any", "training samples": f"{size:,}", **said, "it rests on": cells})
    caption = (
        "The strategy to train with, at a budget in % of the plain backbone's FLOPs, and how far it is ahead of the "
        "second, on average over the cells named. All were trained from scratch for 2E epochs."
    )
    return texts(pd.DataFrame(rows).set_index(["network", "training samples"]), caption, "decisions")


def regret_table(frame: pd.DataFrame) -> Table:
    """Mean and largest regret of each way to choose, points: rows ways, columns budgets."""
    grouped = guide.regrets(frame).groupby(["way", "budget"], sort=False)["regret"]
    shown = grouped.agg(lambda values: f"{100 * values.mean():.1f} ({100 * values.max():.1f})").unstack()
    shown = shown.reindex([way for way in WAYS if way in shown.index])
    shown.columns = pd.Index([f"{budget} %" for budget in shown.columns])
    caption = (
        "Points lost to the best of the trainings in a cell: mean over cells (the most). The guide has not seen the "
        "cell that it chooses for."
    )
    return table(shown, caption, "regrets")


@style.context()
def regret_plot(frame: pd.DataFrame) -> style.Plot:
    """The same, a panel a budget: a small dot a cell, a large one the mean."""
    regrets = guide.regrets(frame)
    ways = [way for way in WAYS if way in set(regrets["way"])]
    titles = [f"at {budget} % of the FLOPs" for budget in guide.BUDGETS]
    shows = f"points lost to the best training of each cell by {', '.join(ways)}"
    figure, shown = panels.of_cells(titles, shows, (0.7, 0.6 + 0.32 * len(ways)), 3, sharex=True, sharey=True)
    for axes, budget in zip(shown.values(), guide.BUDGETS):
        for row, way in enumerate(ways):
            lost = 100 * regrets[(regrets["way"] == way) & (regrets["budget"] == budget)]["regret"]
            axes.plot(lost, [row] * len(lost), ".", color=style.FAINT)
            axes.plot([lost.mean()], [row], "D", color=style.INK)
        axes.set_yticks(range(len(ways)), ways)
        axes.set_ylim(len(ways) - 0.5, -0.5)
    figure.supxlabel("lost to the best training of a cell, points", fontsize=10)
    return figure


def substitutes(frame: pd.DataFrame) -> tuple[str, Table | None]:
    """Q4: joint training with scaled losses or gradients, less mixed; C8's verdict once both cells are in."""
    rows = variants.variants(variants.SUBSTITUTES)
    if rows.empty:
        return _missing(variants.SUBSTITUTES), None
    found = variants.against(rows, frame, "mixed")
    cells = found["cell"].nunique()
    verdict = f"C8 is **{variants.c8(found)}**." if cells == 2 else "One of two cells is in: no verdict on C8."
    caption = "Joint training with scaled losses or gradients less mixed, points [95 % interval over seeds]."
    return verdict, _words(found, caption, "substitutes")


def splits(frame: pd.DataFrame) -> tuple[str, Table | None]:
    """Q5: each split of mixed's epochs, less half and half."""
    rows = variants.variants(variants.SPLITS)
    if rows.empty:
        return _missing(variants.SPLITS), None
    found = variants.splits(rows, frame)
    words = [st.word(row).split()[0] for row in found[found["budget"] != LAST].itertuples()]
    counts = ", ".join(f"{word} in {words.count(word)}" for word in dict.fromkeys(words))
    caption = "Share of the epochs for the backbone alone, less half and half, points [95 % interval over seeds]."
    return f"Another split than half and half: {counts} of {len(words)} comparisons.", _words(found, caption, "splits")


def _missing(study: str) -> str:
    return f"Its runs are not in yet; they are made with `eestudy train params/study/{study}.yaml --jobs 2`."


def _words(found: pd.DataFrame, caption: str, name: str) -> Table:
    made = found.pivot(index=["cell", "variant"], columns="budget", values="verdict").fillna(DASH)
    made = made[list(dict.fromkeys(found["budget"]))]
    made.columns = pd.Index([budget if budget == LAST else f"{budget} %" for budget in made.columns])
    return texts(made, caption, name)
