"""Which training to choose for a budget, from the cells of the study that are complete, and what the choice may cost.

The rule is plain: of the trainings of one length take the one with the highest mean accuracy at the nearest budget that
was measured, over the cells most like the asked for: of its family where there is one, and of these the nearest in
training samples. Nothing is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eestudy.config import EestudyError, check_name
from eestudy.report import over_cells, study_cells
from eestudy.report import statistics as st

CHOICES = ("joint 2E", "disjoint", "mixed")  # for the same 2E epochs
BUDGETS = ("25", "50", "100")
FAMILIES = tuple(dict.fromkeys(cell.family for cell in study_cells.CELLS))
NEAR = 4.0  # how many times more or fewer samples or epochs a cell may have and still say something
SPLITS = {"mixed": 0.5, "disjoint": 0.5}


@dataclass(frozen=True)
class Advice:
    """strategy, split: what to choose; None: nothing in the study says. evidence: of each choice in each cell that it
    rests on its accuracy, and the difference to the best (fractions). text: the same in words.
    """

    strategy: str | None
    split: float | None
    evidence: pd.DataFrame
    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


def recommend(
    budget: float, train_size: int, family: str | None = None, epochs: int | None = None,
    frame: pd.DataFrame | None = None,
) -> Advice:  # fmt: skip
    """The training to choose, with the cells that it rests on.

    budget: per cent of the plain backbone's FLOPs; train_size: samples; family: of FAMILIES; epochs: in all.
    frame: default `study_cells.studied()`. Raises EestudyError for values that cannot be, and where no cell is in; what
    lies far from every cell gets an Advice without a strategy that says so.
    """
    for name, value in (("budget", budget), ("train_size", train_size), ("epochs", epochs)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if not number and not (value is None and name == "epochs"):
            raise EestudyError(f"{name}: {value!r} is not valid; give a number above 0")
    if family is not None:
        check_name("family", family, FAMILIES)
    frame = study_cells.studied() if frame is None else frame
    cells = frame.drop_duplicates("cell")
    for reason in _too_far(cells, budget, train_size, family, epochs):
        return Advice(None, None, frame[:0], f"No evidence: {reason}")
    asked = min(BUDGETS, key=lambda each: abs(math.log(float(each) / budget)))
    near = nearest(cells, train_size, family)
    rows = frame[frame["cell"].isin(near) & (frame["budget"] == asked) & frame["training"].isin(CHOICES)]
    found = rows.groupby(["cell", "training"], sort=False)["accuracy"].mean().unstack()
    taken = best(found)
    gains = [_gain(rows, taken, other) for other in found if other != taken]
    evidence = found.stack().rename("accuracy").reset_index()
    evidence["behind"] = evidence.groupby("cell")["accuracy"].transform("max") - evidence["accuracy"]
    epochs_there = cells.set_index("cell").loc[list(near), "epochs"]
    then = {"mixed": "everything", "disjoint": "the exits alone"}
    how = f", half of the epochs for the backbone alone and half for {then[taken]}" if taken in then else ""
    family_is_missing = f" No cell with {family} is in; these are others." if family and not _has(cells, family) else ""
    text = (
        f"**{_strategy(taken)}**{how}. At {asked} % of the backbone's FLOPs: {'; '.join(gains)}. It rests on "
        f"{', '.join(near)}, trained for {_span(epochs_there)} epochs in all whatever the strategy.{family_is_missing}"
    )
    return Advice(_strategy(taken), SPLITS.get(taken), evidence, text)


def _strategy(training: str) -> str:
    return training.removesuffix(" 2E")


def _gain(rows: pd.DataFrame, taken: str, other: str) -> str:
    """Points that a training is ahead of another, with the interval over seeds of one cell, or over cells."""
    cells = []
    for _, here in rows.groupby("cell", sort=False):
        wide = here.pivot(index="seed", columns="training", values="accuracy")
        cells.append(st.paired_difference(wide[taken], wide[other]))
    one = cells[0] if len(cells) == 1 else over_cells.over(pd.DataFrame(cells))
    unsure = "" if one.low > 0 else ", which may be chance"
    return f"{st.with_interval(one)} points over {_strategy(other)}{unsure}"


def _has(cells: pd.DataFrame, family: str) -> bool:
    return bool((cells["family"] == family).any())


def _span(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _too_far(
    cells: pd.DataFrame, budget: float, size: float, family: str | None, epochs: float | None
) -> Sequence[str]:
    """Why nothing here speaks of what is asked; empty where something does."""
    low, high = float(BUDGETS[0]), float(BUDGETS[-1])
    if not low / 1.5 <= budget <= high * 1.5:
        return [f"budgets from {low:g} to {high:g} % of the plain backbone were measured, not {budget:g} %."]
    mine = cells[cells["family"] == family] if family and _has(cells, family) else cells
    if not mine["size"].min() / NEAR <= size <= mine["size"].max() * NEAR:
        return [f"the cells that are in have {_span(mine['size'])} training samples, not {size:,}."]
    there = cells[cells["cell"].isin(nearest(cells, size, family))]["epochs"]
    if epochs is not None and not there.min() / 1.5 <= epochs <= there.max() * NEAR:
        short = "shorter training may reverse the order" if epochs < there.min() else "the order may be another one"
        return [f"the cells most like this were trained for {_span(there)} epochs in all, not {epochs:g}; {short}."]
    return []


def nearest(cells: pd.DataFrame, size: float, family: str | None) -> tuple[str, ...]:
    """Labels of the cells most like it: of the family where there is one, those nearest in samples, a factor apart."""
    mine = cells[cells["family"] == family] if family and _has(cells, family) else cells
    apart = np.abs(np.log(mine["size"].to_numpy(float) / size))
    return tuple(mine["cell"][apart <= apart.min() + math.log(1.5)])


def best(found: pd.DataFrame) -> str:
    """Of accuracies, rows cells and columns trainings: the training that is best on average over the cells."""
    return str((found.sub(found.mean(axis=1), axis=0)).mean().idxmax())


def regrets(frame: pd.DataFrame) -> pd.DataFrame:
    """What each way to choose loses to the best training of a cell, whose own results it has not seen.

    One row per way, budget and cell: way ("the guide", "always mixed", ...), budget, cell, regret (a fraction). The
    oracle, which is the best training of each cell, has 0. Joint E, half as long, is among what can be chosen always.
    """
    means = frame.groupby(["cell", "training", "budget"], sort=False)["accuracy"].mean()
    cells = frame.drop_duplicates("cell")
    rows = []
    for cell in cells.itertuples():
        others = frame[frame["cell"] != cell.cell]
        for budget in BUDGETS:
            here = means[cell.cell].xs(budget, level="budget").reindex([*CHOICES, "joint E"])
            ways = {f"always {training}": training for training in here.index}
            if len(cells) > 1:
                near = nearest(others.drop_duplicates("cell"), cell.size, cell.family)
                rest = others[others["cell"].isin(near) & (others["budget"] == budget)]
                rest = rest[rest["training"].isin(CHOICES)]
                ways["the guide"] = best(rest.groupby(["cell", "training"])["accuracy"].mean().unstack())
            for way, training in ways.items():
                rows.append({"way": way, "budget": budget, "cell": cell.cell, "regret": here.max() - here[training]})
    return pd.DataFrame(rows)
