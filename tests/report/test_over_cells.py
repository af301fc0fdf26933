"""What a study's comparisons say over its cells, in words."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from eestudy.report import Results, over_cells, tables
from eestudy.report import statistics as st


def comparisons(means: list[float], seeds: int = 6) -> pd.DataFrame:
    """mixed and joint in cells, the mean differences as given, with seeds that differ by little."""
    pairs = []
    for number, mean in enumerate(means):
        names = {"cell": f"cell {number}", "a": "mixed", "b": "joint", "pair": "mixed − joint", "budget": "25"}
        values = {seed: mean + 0.002 * (-1) ** seed for seed in range(seeds)}
        pairs.append((names, values, dict.fromkeys(range(seeds), 0.0)))
    return st.tested((), pairs)


def test_counts_put_better_and_worse_before_equivalent():
    found = over_cells.means(comparisons([0.03, 0.0, -0.03, 0.004]), ["pair"]).iloc[0]
    assert (found["better"], found["worse"], found["equivalent"], found["inconclusive"]) == (2, 1, 1, 0)
    assert found["n"] == 4


def test_findings_list_what_says_something():
    text = over_cells.findings(comparisons([0.03, 0.0]))
    assert text.splitlines()[0] == "Of 2 comparisons: 1 better, 1 equivalent."
    assert "cell 0 at 25 %: mixed against joint: better by 3.0 points [" in text
    assert "cell 1 at 25 %: mixed against joint: equivalent within 0.5 points: 0.0 points [" in text
    alone = over_cells.findings(comparisons([0.03, math.nan], seeds=1))
    assert alone.splitlines()[0] == "Of 2 comparisons: 1 inconclusive, 1 not compared."


def test_answer_over_cells():
    text = over_cells.answer(comparisons([0.03, 0.02, 0.03]))
    assert "  - mixed − joint: +2.7 [" in text
    assert "better in 3." in text
    assert over_cells.answer(comparisons([0.03])) == "One cell: there is no mean over cells."


@pytest.mark.parametrize(("seeds", "start"), [(1, "One seed a cell"), (6, "With 6 seeds, a paired difference")])
def test_limits(seeds, start):
    assert over_cells.limits(comparisons([0.03], seeds)).startswith(start)


def test_a_study(results: Results):
    frame = tables.comparisons(results)
    assert over_cells.answer(frame).startswith("Differences in accuracy, random-effects mean [95 % interval]")
    assert "not evidence of equality" in over_cells.limits(frame).replace("that is not evidence", "not evidence")
