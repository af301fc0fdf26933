"""Which strategy, from the cells of the study that are complete: sentences, a figure, tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from eestudy.report import over_cells, panels, style
from eestudy.report import statistics as st
from eestudy.report.study_cells import CELLS, LAST, PRIMARY, c1, c2, floors, records_of, trained, without_each
from eestudy.report.tables import DASH, Table, rows, table, texts

PLANNED = len(CELLS)
MARGIN = 1.0  # points; shaded in the figure
ALT = "Mixed less joint and less disjoint training in each cell and over cells, points with 95 % intervals"


def in_short(means: pd.DataFrame, frame: pd.DataFrame) -> str:
    """The answer in four sentences, Markdown. Of `study_cells.means` and `studied`."""
    cells, keeps = frame["cell"].nunique(), kept(frame)
    many = int((keeps >= 0.99).sum())
    ahead = _of(means, "mixed − joint 2E").dropna(subset="lowest").itertuples()
    spans = [f"{st.points(row.lowest)} to {st.points(row.highest)} points at {row.budget} %" for row in ahead]
    yet = ", so these are intervals and no verdicts yet" if cells < PLANNED else ""
    lines = [
        "**Mixed or joint?** Mixed (the backbone alone, then everything) less joint, for the same number of epochs: "
        f"{_said(means, 'mixed − joint 2E')}.",
        "**Mixed or disjoint?** Mixed less disjoint (the backbone alone, then the exits on the frozen backbone): "
        f"{_said(means, 'mixed − disjoint')}.",
        "**What exits keep.** With half of the plain backbone's FLOPs, mixed keeps at least 99 % of its accuracy in "
        f"{many} of {cells} cells (the least: {100 * keeps.min():.1f} %, {keeps.idxmin()}).",
        f"**How sure.** {cells} of {PLANNED} planned cells are in{yet}. In a new cell of these kinds mixed less joint "
        f"lies within {' and '.join(spans) or 'an interval that so few cells cannot give'} (95 % prediction interval). "
        "Not tested: networks of more than a million parameters, ImageNet.",
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def _of(means: pd.DataFrame, pair: str) -> pd.DataFrame:
    return means[(means["question"] == "Q2") & (means["pair"] == pair)]


def _said(means: pd.DataFrame, pair: str) -> str:
    here = _of(means, pair).itertuples()
    return "; ".join(f"at {row.budget} % of the backbone's FLOPs {over_cells.in_words(row)}" for row in here)


def kept(frame: pd.DataFrame, budget: str = "50") -> pd.Series:
    """By cell: mixed's accuracy at a budget as a share of the plain backbone's, both means over seeds."""
    means = frame.groupby(["cell", "training", "budget"], sort=False)["accuracy"].mean()
    return means.xs(("mixed", budget), level=[1, 2]) / means.xs(("plain 2E", LAST), level=[1, 2])


@style.context()
def plot(found: pd.DataFrame, means: pd.DataFrame, question: str = "Q2") -> style.Plot:
    """Mixed less joint and less disjoint: a panel a budget, a row a cell, by training-set size; below, over cells.

    Dots with 95 % intervals over seeds, hollow where equivalent within 1 point; a diamond is the random-effects mean
    with its interval, the thin line through it the prediction interval for a new cell.
    """
    here, over = (each[each["question"] == question] for each in (found, means))
    here = here[here["a"] == "mixed"].sort_values("size", kind="stable")
    cells, pairs = list(dict.fromkeys(here["cell"])), list(dict.fromkeys(here["pair"]))
    shades = {pair: style.colour(pair.split(" − ")[1].split()[0]) for pair in pairs}
    shows = f"{' and '.join(pairs)} in {len(cells)} cells and over them, at {' and '.join(PRIMARY)} %"
    titles = [f"at {budget} % of the backbone's FLOPs" for budget in PRIMARY]
    height = (0.9, 0.9 + 0.45 * (len(cells) + 1))
    figure, shown = panels.of_cells(titles, shows, height, 2, sharex=True, sharey=True)
    for axes, budget in zip(shown.values(), PRIMARY):
        axes.axvspan(-MARGIN, MARGIN, color="#ededed", zorder=0)
        axes.axvline(0, color=style.INK, linewidth=0.9)
        axes.axhline(len(cells) - 0.4, color=style.FAINT, linewidth=0.8)
        axes.grid(visible=False, axis="y")
        for pair, shift in zip(pairs, (-0.14, 0.14)):
            for row in here[(here["budget"] == budget) & (here["pair"] == pair)].itertuples():
                hollow = "" if row.decision or math.isnan(row.equivalent_within) else "white"
                _dot(axes, row, cells.index(row.cell) + shift, shades[pair], "o", hollow)
            for row in over[(over["budget"] == budget) & (over["pair"] == pair)].itertuples():
                at = len(cells) + 0.3 + shift
                axes.plot([100 * row.lowest, 100 * row.highest], [at, at], color=shades[pair], linewidth=0.8)
                _dot(axes, row, at, shades[pair], "D")
    left = figure.axes[0]
    left.set_yticks([*range(len(cells)), len(cells) + 0.3], [*cells, "over cells"])
    left.set_ylim(len(cells) + 0.75, -0.5)
    ends = 100 * here[["low", "high"]].to_numpy()
    left.set_xlim(min(-2.0, np.nanmin(ends) - 1), np.nanmax(ends) + 1)  # a prediction interval from few cells is cut
    for pair in pairs:
        left.plot([], [], marker="o", color=shades[pair], label=pair)
    panels.legend(figure)
    figure.supxlabel("difference in accuracy, points", fontsize=10)
    return figure


def _dot(axes: Any, row: Any, at: float, colour: str, marker: str, inside: str = "") -> None:
    axes.plot([100 * row.low, 100 * row.high], [at, at], color=colour, linewidth=1.8)
    axes.plot([100 * row.mean], [at], marker, color=colour, markerfacecolor=inside or colour)


def means_table(means: pd.DataFrame) -> Table:
    """`study_cells.means` for a reader: rows question and pair, columns budgets."""
    caption = (
        "Differences in accuracy, points: random-effects mean over cells [95 % interval], prediction interval for a "
        "new cell, cells better / equivalent / worse / inconclusive. Q1: every phase has E epochs. Q2: 2E epochs in "
        "all. Q3: the plain backbone less joint training, at the last exit. * decided by Holm's correction over the "
        "six tests of Q1, or over the four of Q2 that have joint in them."
    )
    return _by_budget(means.assign(text=[_over(row) for row in means.itertuples()]), "question", caption, "over-cells")


def without_table(found: pd.DataFrame) -> Table | None:
    """`study_cells.without_each` for a reader; None as long as all cells are of one data set."""
    rows = without_each(found)
    if rows.empty:
        return None
    rows = rows[(rows["question"] != "Q2") | (rows["pair"] != "mixed − disjoint")]
    names = [f"without {row.without} ({row.n} cells left)" for row in rows.itertuples()]
    made = rows.assign(column=names, text=[_over(row) for row in rows.assign(p_holm=math.nan).itertuples()])
    wide = made.pivot(index=["pair", "budget"], columns="column", values="text").fillna(DASH)
    caption = "The means over cells again, with each data set left out; as in the table above, without stars."
    return texts(wide, caption, "without-each")


def at_floor(frame: pd.DataFrame) -> str:
    """Which budgets of which cells are left out because nothing beats the largest class there."""
    rows = [f"{row.cell} at {row.budget} %" for row in floors(frame).itertuples()]
    return (
        f"Left out, because no training gets more than 5 points above the largest class: {', '.join(rows) or 'none'}."
    )


def _over(row: Any) -> str:
    ahead = "" if math.isnan(row.lowest) else f"; new cell {st.points(row.lowest)} to {st.points(row.highest)}"
    counts = f"{row.better} / {row.equivalent} / {row.worse} / {row.inconclusive}"
    return f"{st.with_interval(row, star='*' if row.p_holm < st.ALPHA else '')}{ahead}; {counts}"


def cells_table(found: pd.DataFrame) -> Table:
    """`study_cells.differences` for a reader: rows cell and pair, columns budgets, in the study's words."""
    frame = found[(found["question"] != "Q2") | (found["pair"] != "mixed − disjoint")]  # which is Q1's
    caption = (
        "The first less the second in each cell: points [95 % interval over seeds]; Holm-corrected over the cells of a "
        "pair and budget."
    )
    ordered = frame.sort_values(
        "cell", key=lambda names: names.map(list(dict.fromkeys(frame["cell"])).index), kind="stable"
    )
    return _by_budget(ordered.assign(text=ordered["verdict"]), "cell", caption, "by-cell")


def _by_budget(frame: pd.DataFrame, first: str, caption: str, name: str) -> Table:
    made = frame.pivot(index=[first, "pair"], columns="budget", values="text").fillna(DASH)
    made = made.loc[list(dict.fromkeys(zip(frame[first], frame["pair"])))][[*PRIMARY, LAST]]
    made.columns = pd.Index([f"{budget} %" if budget in PRIMARY else budget for budget in made.columns])
    return texts(made, caption, name)


def progress() -> Table:
    """What is in: a row for each planned cell."""
    found = {}
    for number, cell in enumerate(CELLS, 1):
        runs = len(records_of(cell))
        state = "in" if trained(cell) is not None else "under way" if runs else "to come"
        shown = {"training samples": f"{cell.size:,}", "seeds": str(cell.seeds), "runs": str(runs), "state": state}
        found[number, cell.label] = shown
    caption = "The cells of the plan, and how many runs of each have their record."
    return table(rows(found, "", "cell"), caption, "progress")


def verdicts(means: pd.DataFrame, found: pd.DataFrame) -> str:
    """C1 and C2 for both questions, once all cells are in."""
    cells = found["cell"].nunique()
    if cells < PLANNED:
        return f"No verdict on C1 and C2 before all {PLANNED} cells are in; there are {cells}."
    told = {question: (c1(means, question), c2(means, found, question)) for question in ("Q1", "Q2")}
    return "\n".join(f"- {question}: C1 {first}, C2 {second}." for question, (first, second) in told.items())
