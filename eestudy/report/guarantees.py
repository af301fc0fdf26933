"""Thresholds with a guarantee, for a reader: what risk control certifies, and whether its level holds.

Frames of `Results.evaluation`: "risk", "draws".
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from eestudy.report import statistics as st
from eestudy.report.frames import in_order
from eestudy.report.tables import DASH, Table, table
from eestudy.report.thresholds import signed


def risk_table(risk: pd.DataFrame, confidence: float) -> Table:
    """Rows cell x strategy, columns tolerances: speed-up, how many seeds are certified, the largest loss on test."""
    chosen = risk[np.isclose(risk["confidence"].astype(float), confidence)]
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for (cell, strategy, tolerance), here in chosen.groupby(["cell", "strategy", "tolerance"], sort=False):
        held = here[here["certified"].eq(True)]
        text = DASH
        if len(held):
            lost = signed(100 * held["test_risk"].max())
            text = f"{held['speed_up'].mean():.2f}x ({len(held)} of {len(here)}), {lost}"
        texts.setdefault((cell, strategy), {})[f"{100 * tolerance:g} points"] = text
    order = [(cell, name) for cell in dict.fromkeys(risk["cell"]) for name in in_order(risk["strategy"])]
    order = [key for key in order if key in texts]
    made = pd.DataFrame.from_dict(texts, orient="index").loc[order]
    made.index = pd.MultiIndex.from_tuples(order, names=["cell", "strategy"])
    made.columns.name = "tolerated loss"
    text = (
        f"Risk control at confidence {confidence:g}: mean speed-up in FLOPs against the plain backbone (seeds with a "
        "certified threshold), and the largest loss of accuracy on test, points, against the last exit. "
        f"{DASH}: none is certified, because too few samples or too much loss leave no threshold."
    )
    return table(made, text, "risk")


def none_certified(risk: pd.DataFrame) -> str:
    """The honest answer where there is none, a line a cell, tolerance and confidence: the first of its reasons."""
    refused = risk[~risk["certified"].eq(True)]
    lines = [
        f"- {cell}, tolerated loss {100 * tolerance:g} points at confidence {confidence:g} ({len(here)} runs): "
        f"{here.iloc[0]['reason']}."
        for (cell, tolerance, confidence), here in refused.groupby(["cell", "tolerance", "confidence"], sort=False)
    ]
    return "\n".join(lines) or "Every run has a certified threshold for every tolerance and confidence."


def draws_table(draws: pd.DataFrame) -> Table:
    """Rows cell x strategy: share of simulated draws in which the certified threshold's true risk is too high."""
    frame = exceedance(draws)
    made = pd.DataFrame(
        {
            "draws": frame["draws"].astype(str),
            "certified, %": [f"{100 * share:.0f}" for share in frame["certified"]],
            "risk too high, %": [
                f"{100 * r.share:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}]" for r in frame.itertuples()
            ],
            "mean speed-up": [DASH if math.isnan(value) else f"{value:.2f}x" for value in frame["speed_up"]],
        }
    ).set_index(pd.MultiIndex.from_frame(frame[["cell", "strategy"]]))
    first = draws.iloc[0]
    text = (
        f"Simulation on the study's own networks: {100 * first['tolerance']:g} points tolerated at confidence "
        f"{first['confidence']:g}, so at most {100 * (1 - first['confidence']):.0f} % of draws may have a true risk "
        "above it [95 % Clopper-Pearson interval]. A draw without a certified threshold risks nothing."
    )
    return table(made, text, "draws")


def exceedance(draws: pd.DataFrame) -> pd.DataFrame:
    """One row a cell x strategy: draws, certified (share), exceeded, share, low, high, p (of too high a share)."""
    rows = []
    known = draws[draws["exceeded"].notna()]
    for cell, strategy in (
        (cell, name) for cell in dict.fromkeys(known["cell"]) for name in in_order(known["strategy"])
    ):
        here = known[(known["cell"] == cell) & (known["strategy"] == strategy)]
        if here.empty:
            continue
        n, over = len(here), int(here["exceeded"].eq(True).sum())
        allowed = 1 - float(here["confidence"].iloc[0])
        interval = stats.binomtest(over, n).proportion_ci(0.95)
        rows.append(
            {"cell": cell, "strategy": strategy, "draws": n, "certified": here["certified"].eq(True).mean()}
            | {"exceeded": over, "share": over / n, "low": interval.low, "high": interval.high}
            | {"speed_up": here["speed_up"].astype(float).mean(), "allowed": allowed}
            | {"p": stats.binomtest(over, n, allowed, alternative="greater").pvalue}
        )
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=st.holm(frame["p"])) if rows else frame


def guarantee(draws: pd.DataFrame) -> str:
    """Whether the stated level holds: the largest share, and what the corrected tests say."""
    frame = exceedance(draws)
    if frame.empty:
        return f"Not simulated: {draws['reason'].iloc[0]}."
    broken = frame[frame["p_holm"] < st.ALPHA]
    worst = frame.loc[frame["share"].idxmax()]
    words = "; ".join(f"{row.cell}, {row.strategy}" for row in broken.itertuples()) or "none of them"
    return (
        f"Of {int(frame['draws'].sum())} draws {int(frame['exceeded'].sum())} have a true risk above the tolerance "
        f"({100 * frame['exceeded'].sum() / frame['draws'].sum():.1f} %; allowed: {100 * worst['allowed']:.0f} %). "
        f"Most in {worst['cell']}, {worst['strategy']}: {100 * worst['share']:.1f} %. Above the allowed share by the "
        f"Holm-corrected binomial tests over {len(frame)} rows: {words}."
    )
