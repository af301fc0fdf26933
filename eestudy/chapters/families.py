"""A study of one seed in words: what each network can do and save, without a word on which strategy is better."""

import pandas as pd

from eestudy.report.frames import Results, score_name
from eestudy.report.panels import by_strategy
from eestudy.report.tables import BUDGETS, budget_name, select


def in_short(results: Results, protocol: str = "calibrated", rule: str | None = None) -> str:
    """In how many runs half of the backbone's FLOPs cost less than a point, and what one seed cannot say."""
    rows = select(results.budgets, protocol, rule)
    at = rows[rows["budget"] == "50"].set_index("run")["value"]
    last = results.exits.sort_values("exit").groupby("run")["value"].last()
    near = int((at >= last.reindex(at.index) - 0.01).sum())
    seeds = results.runs["seed"].nunique()
    alone = " One seed: nothing here says which strategy is better." if seeds == 1 else ""
    return (
        f"**In short.** With half of the plain backbone's FLOPs {near} of {results.runs['run'].nunique()} networks are "
        f"within a point of their last exit.{alone}"
    )


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
    return "\n".join(lines)


def _least(budgets: pd.DataFrame, last: float) -> str:
    """The smallest budget whose mean accuracy is within a point of `last`."""
    for budget in BUDGETS:
        reached = budgets[budgets["budget"] == budget]["value"]
        if budget != "max" and len(reached) and reached.mean() >= last - 0.01:
            return f", with thresholds at {budget_name(budget)} of the plain backbone's FLOPs"
    return ", with thresholds at no budget below the last exit's cost"
