"""What the chapters on training dynamics share: thirds of a network, the end of a run, lines over training and stages.

All take frames of `Results.dynamics`, which carry cell, strategy and seed.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap

from eestudy.report import panels, style
from eestudy.report.frames import in_order

THIRDS = ("early", "middle", "late")


def third_of(frame: pd.DataFrame, column: str) -> pd.Series:
    """The third of its cell that a stage or exit (from 1) lies in: "early", "middle" or "late"."""
    most = frame.groupby("cell")[column].transform("max")
    third = ((frame[column] - 1) * 3 // most.clip(lower=3)).clip(upper=2)
    return third.astype(int).map(dict(enumerate(THIRDS)))


def finals(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows at the end of the runs; `part`: the third of the stages."""
    last = frame[frame["progress"] > 1 - 1e-6]
    return last.assign(part=third_of(last, "stage"))


def exit_shares(whole: pd.DataFrame) -> pd.DataFrame:
    """Means over the checkpoints in `whole`, rows of the table "dominance" of the whole backbone: one row per run.

    middle: share of the gradient's norm that the middle third of the exits has; uniform: their share in number;
    evenness: entropy of the shares over log K, 1 where all exits pull alike.
    """
    whole = whole.assign(part=third_of(whole, "exit"))
    rows = []
    for key, run in whole.groupby(["cell", "strategy", "seed"], sort=False):
        shares = run.pivot_table(index="progress", columns="exit", values="norm_share")
        middle = sorted(set(run.loc[run["part"] == "middle", "exit"]))
        entropy = -(shares * np.log(shares.clip(lower=1e-12))).sum(axis=1) / math.log(shares.shape[1])
        rows.append((*key, shares[middle].sum(axis=1).mean(), len(middle) / shares.shape[1], entropy.mean()))
    return pd.DataFrame(rows, columns=["cell", "strategy", "seed", "middle", "uniform", "evenness"])


@style.context()
def over_training(
    frame: pd.DataFrame, value: str, label: str, depth: str, scale: float = 100.0, floor: str = ""
) -> style.Plot:
    """`value` against the share of the run that is trained: rows cells, columns strategies, a line a `depth`.

    depth: "exit" or "stage". floor: a column drawn as a dashed grey line, its mean over the lines.
    """
    # Nine panels of bands at full resolution are half a megabyte in the notebook.
    look: dict = {"xlabel": "trained, % of the run", "ylabel": label, "dpi": 120, "sharex": True, "sharey": "row"}
    shows = f"{label} over training, a line for each {depth}"
    figure, shown = panels.of_pairs(frame["cell"], in_order(frame["strategy"]), shows, (0.7, 2.2), **look)
    for (cell, strategy), axes in shown.items():
        here = frame[frame["cell"] == cell]
        depths = sorted(here[depth].unique())
        run = here[here["strategy"] == strategy]
        for number, shade in zip(depths, style.depth_colours(len(depths)), strict=True):
            one = run[run[depth] == number]
            panels.band(axes, 100 * one["progress"], scale * one[value], one["seed"], color=shade)
        if floor:
            level = run.groupby("progress")[floor].mean()
            axes.plot(100 * level.index, scale * level, color=style.FAINT, linestyle="--", linewidth=1.2)
    shades = ScalarMappable(cmap=ListedColormap(style.depth_colours(64)))
    bar = figure.colorbar(shades, ax=figure.axes, shrink=0.5, aspect=30, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels([f"first\n{depth}", f"last\n{depth}"])
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


@style.context()
def by_stage(frame: pd.DataFrame, value: str, label: str, scale: float = 100.0) -> style.Plot:
    """`value` at the end of the runs against the stage, a panel a cell, a line a strategy; dashed: before training."""
    last = frame[frame["progress"] > 1 - 1e-6]
    shows = f"{label} by stage, a line a strategy"
    figure, shown = panels.of_cells(last["cell"], shows, (0.5, 3.2), xlabel="stage", ylabel=label)
    for cell, axes in shown.items():
        for strategy, one in panels.by_strategy(last):
            one = one[one["cell"] == cell]
            panels.band(axes, one["stage"], scale * one[value], one["seed"], **style.look(strategy))
        level = frame[(frame["cell"] == cell) & (frame["progress"] == 0)].groupby("stage")[value].mean()
        axes.plot(level.index, scale * level, color=style.FAINT, linestyle="--", label="before training")
    return panels.legend(figure, "outside lower center", 4)
