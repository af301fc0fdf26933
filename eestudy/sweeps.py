"""The published protocol's choice, from what each run of a cell has at every swept threshold. No torch here.

`evaluation.paper` sweeps a run; `report.frames` chooses from the sweeps in a study's records, as many as there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from eestudy.config import EestudyError


def paper_budgets_of_sweeps(sweeps: Sequence[pd.DataFrame], limits: Mapping[str, float]) -> pd.DataFrame:
    """The runs (seeds) of one cell at the last threshold before their mean cost first exceeds a budget.

    sweeps: one a run, its thresholds in order: threshold (the number in the sweep), flops (mean cost, a sample) and
    any further columns, which are taken over. limits: budget -> FLOPs a sample; infinity takes the last threshold.
    Returns run_index, budget, threshold, ..., flops, one row a run and budget; NaN where no threshold is cheap enough.
    Raises EestudyError for no sweeps, and for sweeps of unequal length.
    """
    if not sweeps:
        raise EestudyError("sweeps: the published protocol needs those of at least one run, got none")
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise EestudyError(f"sweeps: the runs of a cell must have equal ones, got {lengths} thresholds")
    mean_cost = np.mean([sweep["flops"].to_numpy(dtype=float) for sweep in sweeps], axis=0)
    chosen = [_last_before_excess(mean_cost, limit) for limit in limits.values()]
    rows = [
        sweep.reset_index(drop=True)
        .reindex([-1 if at is None else at for at in chosen])
        .assign(run_index=run_index, budget=list(limits))
        for run_index, sweep in enumerate(sweeps)
    ]
    frame = pd.concat(rows, ignore_index=True)
    first = ["run_index", "budget", "threshold"]
    return frame[[*first, *(column for column in frame if column not in (*first, "flops")), "flops"]]


def _last_before_excess(mean_cost: np.ndarray, limit: float) -> int | None:
    """Index of the last threshold before the cost first exceeds the limit; None when the first one does."""
    over = np.flatnonzero(mean_cost > limit)
    chosen = int(over[0]) - 1 if len(over) else len(mean_cost) - 1
    return chosen if chosen >= 0 else None
