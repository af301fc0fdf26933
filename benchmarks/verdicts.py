"""How often the study's verdicts on C1 and C2 err: by simulation of Q1, ten cells of eight paired seeds.

python benchmarks/verdicts.py -> verdicts.json
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from timing import hardware, save

from eestudy.report import statistics as st
from eestudy.report import study_cells
from eestudy.report.study_cells import PRIMARY, QUESTIONS

CELLS, SEEDS, SPREAD = 10, 8, 0.008  # spread: standard deviation of paired differences over seeds, fractions
GAINS, BETWEEN = (0.0, 0.005, 0.01, 0.015), (0.0, 0.005)  # mixed's true gain; its standard deviation between cells
DRAWS = 600


def simulated(gain: float, between: float, generator: np.random.Generator) -> pd.DataFrame:
    """As `study_cells.differences` of Q1, mixed ahead of both by `gain`, from draws of each cell's mean and spread."""
    rows = []
    for a, b in QUESTIONS["Q1"]:
        for budget in PRIMARY:
            truth = gain * (a == "mixed") + between * generator.standard_normal(CELLS)
            sd = SPREAD * np.sqrt(generator.chisquare(SEEDS - 1, CELLS) / (SEEDS - 1))
            mean = truth + SPREAD / math.sqrt(SEEDS) * generator.standard_normal(CELLS)
            half = stats.t.ppf(1 - st.ALPHA / (2 * CELLS), SEEDS - 1) * sd / math.sqrt(SEEDS)
            p = st.holm(2 * stats.t.sf(np.abs(mean) / sd * math.sqrt(SEEDS), SEEDS - 1))
            for cell in range(CELLS):
                named: dict[str, Any] = {"question": "Q1", "a": a, "pair": f"{a} − {b}", "budget": budget}
                named |= {"cell": str(cell), "mean": mean[cell], "sd": sd[cell], "n": SEEDS}
                named |= {"high_corrected": mean[cell] + half[cell], "decision": st.decision(mean[cell], p[cell])}
                rows.append({**named, "equivalent_within": math.nan})
    return pd.DataFrame(rows)


def shares(gain: float, between: float, draws: int) -> dict[str, dict[str, float]]:
    """Of how many draws each verdict is given, by claim."""
    generator = np.random.default_rng(1)
    told: dict[str, list[str]] = {"C1": [], "C2": []}
    for _ in range(draws):
        found = simulated(gain, between, generator)
        means = study_cells.means(found)
        told["C1"].append(study_cells.c1(means, "Q1"))
        told["C2"].append(study_cells.c2(means, found, "Q1"))
    return {claim: {word: told.count(word) / draws for word in sorted(set(told))} for claim, told in told.items()}


if __name__ == "__main__":
    rows = [{"gain": g, "between": b, **shares(g, b, DRAWS)} for g in GAINS for b in BETWEEN]
    for row in rows:
        print(row)
    save(
        "verdicts",
        {"hardware": hardware(), "cells": CELLS, "seeds": SEEDS, "spread": SPREAD, "draws": DRAWS, "rows": rows},
    )
