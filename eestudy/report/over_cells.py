"""Differences over the cells of a study, and what its paired tests say in words."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from eestudy.report import statistics as st
from eestudy.report.frames import score_name
from eestudy.report.tables import BUDGETS, budget_name

COUNTED = ("better", "equivalent", "worse", "inconclusive")
ENOUGH = 5  # cells for a prediction interval that says something; of three it has one degree of freedom


def over(rows: pd.DataFrame) -> st.OverCells:
    """The random-effects mean of these cells' paired differences (mean, sd, n)."""
    return st.over_cells(rows["mean"], rows["sd"] ** 2 / rows["n"])


def means(comparisons: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """`over` each group of `by`, whose rows are cells: those columns, those of `statistics.OverCells`, and how many
    cells are better, equivalent, worse, inconclusive. Cells of one seed or without a common seed do not count.
    """
    rows = []
    for key, here in comparisons.groupby(list(by), sort=False):
        words = [st.word(row).split()[0] for row in here.itertuples()]
        counts = {word: words.count(word) for word in COUNTED}
        rows.append({**dict(zip(by, key)), **asdict(over(here)), **counts})
    return pd.DataFrame(rows)


def in_words(row: Any) -> str:
    """A row of `means`: its mean with interval, from ENOUGH cells on the prediction interval, and counts of cells."""
    counts = ", ".join(f"{word} in {getattr(row, word)}" for word in COUNTED if getattr(row, word))
    if math.isnan(row.low):
        return f"{st.with_interval(row)} points; {counts}"
    ahead = "" if row.n < ENOUGH else f"; a new cell: {st.points(row.lowest)} to {st.points(row.highest)}"
    return f"{st.with_interval(row)} points over {row.n} cells{ahead}; {counts}"


def findings(comparisons: pd.DataFrame) -> str:
    """What the corrected tests of `tables.comparisons` say, Markdown: counts, and each that says something."""
    words = [st.word(row) for row in comparisons.itertuples()]
    said = comparisons[[word != "not compared" and word != "inconclusive" for word in words]]
    lines = [f"- {r.cell} at {budget_name(r.budget)}: {r.a} against {r.b}: {r.verdict}." for r in said.itertuples()]
    counts = {name: sum(word.startswith(name) for word in words) for name in (*COUNTED, "not compared")}
    head = f"Of {len(comparisons)} comparisons: {', '.join(f'{many} {name}' for name, many in counts.items() if many)}."
    return "\n".join([head, "", *lines])


def answer(comparisons: pd.DataFrame) -> str:
    """The strategies against each other over all cells, at each budget ("max" is none), as Markdown."""
    if comparisons["cell"].nunique() < 2:
        return "One cell: there is no mean over cells."
    found = means(comparisons[comparisons["budget"].isin(BUDGETS[:-1])], ("budget", "a", "b"))
    lines = [f"Differences in {score_name(comparisons)}, random-effects mean [95 % interval] over cells:"]
    for budget, rows in found.groupby("budget", sort=False):
        lines += ["", f"- At {budget_name(str(budget))}:"]
        lines += [f"  - {row.a} − {row.b}: {in_words(row)}." for row in rows.itertuples()]
    return "\n".join(lines)


def limits(comparisons: pd.DataFrame) -> str:
    """What the number of seeds cannot show: the smallest difference that a test in one cell could have called."""
    counts = comparisons.loc[comparisons["n"] > 0, "n"]
    if counts.empty or counts.max() < 2:
        return "One seed a cell: no interval, no test; a difference between strategies may be noise."
    n, sd = int(counts.median()), float(comparisons["sd"].median())
    least = st.smallest_difference(n, sd)
    return (
        f"With {n} seeds, a paired difference whose standard deviation is the table's median "
        f"({100 * sd:.1f} points) must reach {100 * least:.1f} points before even an uncorrected test in one "
        'cell calls it. A smaller true difference is likely to read "inconclusive" here: that is not evidence of '
        "equality, for which the whole interval has to lie within a margin."
    )
