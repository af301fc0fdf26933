"""Rank of the stages and how alike they are: linear CKA, and what claim C5 speaks of."""

from collections.abc import Sequence

import pandas as pd

from eestudy.report import panels, style
from eestudy.report.dynamics import THIRDS, finals, third_of
from eestudy.report.effects import Measurement, effects, measurement, one_family
from eestudy.report.tables import Table, table


@style.context()
def similarities(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> style.Plot:
    """Linear CKA between the stages of two models, mean over seeds: rows cells, columns pairs that are there."""
    there = set(zip(frame["strategy"], frame["strategy_2"], strict=True))
    pairs = [pair for pair in pairs if pair in there]
    figure, shown = panels.of_pairs(
        frame["cell"], {pair: pair[1] for pair in pairs}, "linear CKA between stages", (0.6, 2.4)
    )
    for (cell, (a, b)), axes in shown.items():
        here = frame[(frame["cell"] == cell) & (frame["strategy"] == a) & (frame["strategy_2"] == b)]
        here = here[here["relation"] == ("strategies" if a != b else "seeds")]
        wide = here.pivot_table(index="stage_a", columns="stage_b", values="cka")
        look = {"vmin": 0, "vmax": 1, "cmap": "cividis", "shading": "nearest"}
        drawn = axes.pcolormesh(wide.columns, wide.index, wide, **look)
        axes.set(aspect="equal", ylabel=a)
        axes.grid(visible=False)
    figure.colorbar(drawn, ax=figure.axes, shrink=0.5, label="linear CKA")
    return figure


def same_stages(frame: pd.DataFrame) -> Table:
    """CKA of the same stage in two models: rows cell x pair, columns thirds of the network."""
    same = frame[frame["stage_a"] == frame["stage_b"]]
    names = zip(same["strategy"], same["strategy_2"], same["relation"], strict=True)
    pairs = [f"{a} – {b}" if relation == "strategies" else f"{a}, {relation}" for a, b, relation in names]
    same = same.assign(part=third_of(same, "stage_a"), pair=pairs)
    wide = same.pivot_table(index=["cell", "relation", "pair"], columns="part", values="cka")[list(THIRDS)]
    caption = "Debiased linear CKA of the same stage, mean over stages and seeds."
    return table(wide.map("{:.2f}".format), caption, "cka")


def c5(rank: pd.DataFrame, value: str = "numerical_share") -> Measurement:
    """Joint's rank less disjoint's, in the early third of the stages and in the late one."""
    rows = effects(finals(rank), value, (("joint", "disjoint"),))
    rows = one_family(rows[rows["part"].isin(["early", "late"])])
    statement = (
        "Training the exits along (joint against disjoint) raises the rank of early stages and lowers late ones."
    )
    return measurement("C5", statement, rows, ("part", "pair"), value.replace("_share", " rank"))
