"""The published protocol's choice, from what each run of a cell has at every swept threshold. No torch here.

`evaluation.budgets` sweeps a run; `report.frames` chooses from the sweeps in a study's records, as many as there are.
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
    Returns run_index, budget, threshold, ..., flops, one row per run and budget; NaN where no threshold is cheap
    enough.
    Raises EestudyError for no sweeps, and for sweeps of unequal length.
    """
    if not sweeps:
        raise EestudyError("sweeps: the published protocol needs those of at least one run, got none")
    lengths = [len(sweep) for sweep in sweeps]
    if len(set(lengths)) > 1:
        raise EestudyError(f"sweeps: the runs of a cell must have equal ones, got {lengths} thresholds")
    chosen = last_within(np.stack([sweep["flops"].to_numpy(dtype=float) for sweep in sweeps]), limits)
    taken = [sweep.iloc[[at or 0 for at in chosen]] for sweep in sweeps]
    frame = pd.concat(taken, ignore_index=True)
    if None in chosen:
        numbers = [name for name in frame if frame[name].dtype.kind in "if"]
        frame = frame.astype(dict.fromkeys(numbers, float))
        frame.loc[[at is None for at in chosen] * len(sweeps), numbers] = np.nan
    first = {"run_index": np.repeat(np.arange(len(sweeps)), len(chosen)), "budget": [*limits] * len(sweeps)}
    others = [name for name in frame if name not in ("threshold", "flops")]
    return frame.assign(**first)[[*first, "threshold", *others, "flops"]]


def last_within(costs: np.ndarray, limits: Mapping[str, float]) -> list[int | None]:
    """For each limit the number of the last threshold before the runs' mean cost first exceeds it; else None.

    costs (R, T): of R runs at T thresholds, from "everybody leaves early" to "everybody stays". None: the first one is
    too much.
    """
    mean = costs.mean(axis=0)
    chosen = [int(np.argmax(np.append(mean > limit, True))) - 1 for limit in limits.values()]
    return [number if number >= 0 else None for number in chosen]
