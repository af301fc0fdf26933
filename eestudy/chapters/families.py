"""A study of one seed in words: what each network can do and save, without a word on which strategy is better."""

import pandas as pd

from eestudy.report.frames import Results, score_name
from eestudy.report.panels import by_strategy
from eestudy.report.tables import BUDGETS, budget_name, engineering, select


def described(results: Results) -> str:
    """The study's cells with their exits and costs, as a Markdown list."""
    runs, exits = results.runs, results.exits.groupby("cell")["exit"].max()
    seeds = runs["seed"].nunique()
    head = (
        f"Study **{results.study}**: {len(runs)} runs in {len(results.cells)} cells, strategies "
        f"{', '.join(results.strategies)}, {seeds} seed{'s' if seeds > 1 else ''}."
    )
    lines = [
        f"- {cell}: {exits[cell]} exits, {engineering(own['backbone_flops'].iloc[0])}FLOPs a sample, trained for "
        f"{engineering(own['training_flops'].mean())}FLOPs on average."
        for cell, own in runs.groupby("cell", sort=False)
    ]
    return "\n".join([head, "", *lines])


def savings(results: Results, protocol: str = "calibrated", rule: str | None = None) -> str:
    """Cell by cell: the first exit that is near the last one in accuracy, and the least budget that costs no point.

    A point is 0.01 of accuracy (R2 in regression), against the same run's last exit. Means over the seeds there are.
    """
    budgets = select(results.budgets, protocol, rule)
    lines = []
    for cell in results.cells:
        exits = results.exits[results.exits["cell"] == cell]
        parts = []
        for strategy, own in by_strategy(exits):
            means = own.groupby("exit")["value"].mean()
            near = int(means.index[means >= means.iloc[-1] - 0.01][0])
            own = budgets[(budgets["cell"] == cell) & (budgets["strategy"] == strategy)]
            parts.append(
                f"{strategy}: {100 * means.iloc[0]:.1f} % at exit 1, {100 * means.iloc[-1]:.1f} % at exit "
                f"{means.index[-1]}, first within a point of it at exit {near}{_least(own, means.iloc[-1])}"
            )
        lines.append(f"- **{cell}**, {score_name(exits)} on test. {'; '.join(parts)}.")
    seeds = results.runs.groupby(["cell", "strategy"])["seed"].nunique().max()
    close = (
        "\n\nOne seed: these are single runs. They cannot tell which strategy is better, here or in the figures."
        if seeds == 1
        else f"\n\nMeans over {seeds} seeds; the tests that compare strategies are in other chapters."
    )
    return "\n".join(lines) + close


def _least(budgets: pd.DataFrame, last: float) -> str:
    """The smallest budget whose mean accuracy is within a point of `last`."""
    for budget in BUDGETS:
        reached = budgets[budgets["budget"] == budget]["value"]
        if budget != "max" and len(reached) and reached.mean() >= last - 0.01:
            return f", with thresholds at {budget_name(budget)} of the plain backbone's FLOPs"
    return ", with thresholds at no budget below the last exit's cost"
