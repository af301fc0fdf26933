"""An explorer in the page: a slider over the budget moves accuracy, cost and the share that leaves at each exit.

Plain HTML, inline SVG and a script without a library; the numbers stand in the page as JSON, so it works without a
kernel and without a network. Without JavaScript, and on paper, the drawing of the middle budget is what is seen.
"""

import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from eestudy.config import EestudyError
from eestudy.report import statistics as st
from eestudy.report import style
from eestudy.report.frames import in_order, score_name, valued
from eestudy.report.panels import by_strategy

DIGITS = 4
THRESHOLD_DIGITS = 8  # significant ones: next to 1, where many scores lie, float32 has no more
METHODS = ("geometric", "shared", "optimized")
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 360, 240, 46, 16, 40, 12


def payload(frame: pd.DataFrame) -> dict[str, Any]:
    """What the page shows, from `Results.evaluation("explorer")`: means over seeds, by cell, strategy and method.

    cells: [{cell, score, exits, budgets (B,), ticks (round, around all curves), curves}]; curves: [{strategy, method,
    seeds, accuracy, low, high, cost (B,), shares (B, K), thresholds (B, K - 1)}]. Numbers are rounded to DIGITS;
    thresholds, to THRESHOLD_DIGITS, are those of the smallest seed, on the score of the rule, null where nobody exits
    and "all" where everybody does. EestudyError when no row has an answer.
    """
    cells = []
    for cell, here in valued(frame).dropna(subset="value").groupby("cell", sort=False):
        exits = [name for name in here if name.startswith("left_") and here[name].notna().any()]
        curves = [
            {"strategy": strategy, "method": method, **_curve(rows[rows["allocation"] == method], exits)}
            for strategy, rows in by_strategy(here)
            for method in METHODS
            if method in set(rows["allocation"])
        ]
        facts = {"cell": cell, "score": score_name(here), "rule": here["rule"].iloc[0], "exits": len(exits)}
        budgets = here.groupby("run", sort=False)["budget"].apply(list).iloc[0]
        spans = [value for curve in curves for value in curve["accuracy"] if value is not None]
        ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(min(spans), max(spans))
        facts |= {"budgets": _rounded(budgets[: len(curves[0]["cost"])]), "ticks": _rounded(ticks)}
        cells.append({**facts, "curves": curves})
    if not cells:
        raise EestudyError(f"explorer: no run has an answer: {frame['reason'].iloc[0]}")
    return {"cells": cells}


def _curve(rows: pd.DataFrame, exits: list[str]) -> dict[str, Any]:
    order = rows.sort_values(["seed", "budget"])
    seeds = order["seed"].unique()

    def wide(column: str) -> np.ndarray:
        return order[column].to_numpy(float).reshape(len(seeds), -1)

    accuracy = [st.mean_interval(values) for values in wide("value").T]
    left = np.stack([wide(name).mean(axis=0) for name in exits], axis=1)
    thresholds = np.stack([wide(f"threshold_{k}")[0] for k in range(1, len(exits))], axis=1)
    return {
        "seeds": len(seeds),
        "seed": int(seeds[0]),
        "accuracy": _rounded(each.mean for each in accuracy),
        "low": _rounded(each.low for each in accuracy),
        "high": _rounded(each.high for each in accuracy),
        "cost": _rounded(wide("cost").mean(axis=0)),
        "shares": [_rounded(row) for row in left / left.sum(axis=1, keepdims=True)],
        "thresholds": [[_threshold(value) for value in row] for row in thresholds],
    }


def _rounded(values: Any) -> list[Any]:
    return [round(float(value), DIGITS) if math.isfinite(value) else None for value in values]


def _threshold(value: float) -> str | float | None:
    return float(f"{value:.{THRESHOLD_DIGITS}g}") if math.isfinite(value) else "all" if value < 0 else None


class Explorer:
    """Shows itself in a notebook as HTML that works by itself. name: makes the ids of a page unique."""

    def __init__(self, frame: pd.DataFrame, name: str = "explorer") -> None:
        self.data = payload(frame)
        self.name = name

    def __repr__(self) -> str:
        cells = self.data["cells"]
        lines = [f"Explorer: {len(cells)} cells, a slider over {len(cells[0]['budgets'])} budgets"]
        return "\n".join([*lines, *(f"  {each['cell']}: {_sentence(each, each['curves'][0])}" for each in cells)])

    def _repr_html_(self) -> str:
        first = self.data["cells"][0]
        strategies = {curve["strategy"] for cell in self.data["cells"] for curve in cell["curves"]}
        colours = {strategy: style.colour(strategy) for strategy in in_order(strategies)}
        # "</" would end the element that holds the numbers.
        numbers = json.dumps({**self.data, "colours": colours}, separators=(",", ":")).replace("</", "<\\/")
        body = f'<div class="ee-still">{_still(first, colours)}</div><script type="application/json">{numbers}</script>'
        return (
            f'<div class="ee-explorer" id="{html.escape(self.name)}"><style>\n{_part("css")}</style>{body}'
            f"<script>\n{_part('js').replace('EXPLORER', json.dumps(self.name))}</script></div>"
        )


def _part(suffix: str) -> str:
    """What stands in the page as it is, but for EXPLORER, the element's id."""
    return Path(__file__).with_suffix(f".{suffix}").read_text(encoding="utf-8")


def middle(cell: dict[str, Any]) -> int:
    """The budget that is shown first: the one nearest to half of the plain backbone."""
    return int(np.argmin([abs(budget - 0.5) for budget in cell["budgets"]]))


def _sentence(cell: dict[str, Any], curve: dict[str, Any]) -> str:
    at = middle(cell)
    leave = ", ".join(f"{100 * share:.0f}" for share in curve["shares"][at])
    return (
        f"{curve['strategy']}, {curve['method']}, budget {100 * cell['budgets'][at]:.0f} %: {cell['score']} "
        f"{100 * curve['accuracy'][at]:.1f} %, cost {100 * curve['cost'][at]:.1f} %; at exits 1 to {cell['exits']} "
        f"leave {leave} % of the samples"
    )


def _still(cell: dict[str, Any], colours: dict[str, str]) -> str:
    """The drawing without a script, and its caption: curves of the first method, their points at the middle budget."""
    shown = [curve for curve in cell["curves"] if curve["method"] == cell["curves"][0]["method"]]
    low, high = cell["ticks"][0], cell["ticks"][-1]
    right = max(cell["budgets"])

    def x(cost: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * cost / right

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low)

    parts = [f'<path class="ee-axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']
    for value in cell["ticks"]:
        parts.append(f'<text x="{LEFT - 4}" y="{y(value) + 4:.1f}" text-anchor="end">{100 * value:g}</text>')
    for cost in (0.25, 0.5, 0.75, 1.0):
        where = f'x="{x(cost):.1f}" y="{HEIGHT - BOTTOM + 16}"'
        parts.append(f'<text {where} text-anchor="middle">{100 * cost:g}</text>')
    label = f"{cell['score']}, %, against mean cost, % of the plain backbone"
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{label}</text>')
    for curve in shown:
        points = " ".join(f"{x(c):.1f},{y(a):.1f}" for c, a in zip(curve["cost"], curve["accuracy"], strict=True))
        shade, at = colours[curve["strategy"]], middle(cell)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{shade}" stroke-width="2"/>')
        dot = f'cx="{x(curve["cost"][at]):.1f}" cy="{y(curve["accuracy"][at]):.1f}"'
        parts.append(f'<circle {dot} r="4" fill="{shade}"><title>{html.escape(curve["strategy"])}</title></circle>')
    for number, curve in enumerate(shown):
        at_y = HEIGHT - BOTTOM - 10 - 15 * number
        key = f'x="{WIDTH - 80}" y="{at_y - 4}" width="12" height="3" fill="{colours[curve["strategy"]]}"'
        parts.append(f'<rect {key}/><text x="{WIDTH - 64}" y="{at_y}">{html.escape(curve["strategy"])}</text>')
    name = html.escape(f"{cell['score']} against cost, {cell['cell']}")
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    caption = f"{cell['cell']}. {'. '.join(_sentence(cell, curve) for curve in shown)}."
    return f"{drawing}<p>{html.escape(caption)}</p>"
