"""The loss around trained models."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm

from eestudy.report import panels, style
from eestudy.report.effects import counted
from eestudy.report.frames import in_order


@style.context()
def landscapes(frame: pd.DataFrame) -> style.Plot:
    """Mean loss of the exits around the trained models: rows cells, columns strategies; one seed."""
    whole = frame[frame["exit"] == 0]
    cells, strategies = list(dict.fromkeys(whole["cell"])), in_order(whole["strategy"])
    look: dict = {"sharex": True, "sharey": True}
    figure, shown = panels.of_pairs(cells, strategies, "loss around trained models", (0.6, 2.5), **look)
    for cell in cells:
        here = whole[whole["cell"] == cell]
        levels = np.geomspace(max(here["loss"].min(), 1e-3), here["loss"].max(), 12)
        for strategy in strategies:
            axes = shown[cell, strategy]
            wide = here[here["strategy"] == strategy].pivot_table(index="y", columns="x", values="loss")
            colours = {"cmap": "cividis_r", "norm": LogNorm(levels[0], levels[-1]), "extend": "both"}
            filled = axes.contourf(wide.columns, wide.index, wide, levels=levels, **colours)
            axes.plot(0, 0, **style.look(strategy), markeredgecolor="white")
            axes.set_aspect("equal")
            axes.grid(visible=False)
        row = [shown[cell, strategy] for strategy in strategies]
        bar = figure.colorbar(filled, ax=row, shrink=0.8, ticks=levels[::4], format="%.2g")
        bar.set_label("loss, nats")
    return figure


def walls(landscape: pd.DataFrame) -> pd.DataFrame:
    """Mean loss over the four points half a unit away along the axes, less the model's own: a row a run and exit."""
    x, y = landscape["x"].abs(), landscape["y"].abs()
    half = ((x - 0.5).abs() < 0.01) & (y < 1e-6) | ((y - 0.5).abs() < 0.01) & (x < 1e-6)
    keys = ["cell", "strategy", "seed", "exit"]
    far, own = (landscape[which].groupby(keys)["loss"].mean() for which in (half, (x < 1e-6) & (y < 1e-6)))
    return (far - own).rename("wall").reset_index()


def in_short(mean: pd.DataFrame, last: pd.DataFrame) -> str:
    """Of the effects on the walls' height: the mean over exits, and the last exit."""
    return (
        "**In short.** A picture, and no claim of the paper. How high the loss rises half a unit away, first strategy "
        f"against second, cells. Mean of the exits: {counted(mean, 'pair')}. Last exit: {counted(last, 'pair')}."
    )
