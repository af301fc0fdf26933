"""Figures of the training dynamics, from frames of `Results.dynamics`: bands are 95 % intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_hex, to_rgb

from eestudy.report import statistics as st
from eestudy.report import style
from eestudy.report.frames import in_order

LINES = ("-", "--", "-.", ":")


def over_training(
    frame: pd.DataFrame, value: str, label: str, lines: str, name: str, scale: float = 100.0, floor: str = ""
) -> style.Plot:
    """`value` against the share of the run that is trained: rows cells, columns strategies, a line a `lines` (depth).

    floor: a column drawn as a dashed grey line, its mean over the lines.
    """
    cells, strategies = list(dict.fromkeys(frame["cell"])), in_order(frame["strategy"])
    with style.context():
        # Nine panels of bands at full resolution are half a megabyte in the notebook.
        figure = style.Plot(0.7 + 2.2 * len(cells), f"{label} over training, a line for each {name}", dpi=120)
        panels = figure.subplots(len(cells), len(strategies), sharex=True, sharey="row", squeeze=False)
        for row, cell in zip(panels, cells, strict=True):
            here = frame[frame["cell"] == cell]
            depths = sorted(here[lines].unique())
            shades = dict(zip(depths, style.depth_colours(len(depths)), strict=True))
            for axes, strategy in zip(row, strategies, strict=True):
                run = here[here["strategy"] == strategy]
                for depth, shade in shades.items():
                    one = run[run[lines] == depth]
                    _band(axes, 100 * one["progress"], scale * one[value], one["seed"], color=shade)
                if floor:
                    level = run.groupby("progress")[floor].mean()
                    axes.plot(100 * level.index, scale * level, color=style.FAINT, linestyle="--", linewidth=1.2)
                axes.set_title(f"{cell}\n{strategy}" if axes is row[0] else f"\n{strategy}")
            row[0].set_ylabel(label)
        for axes in panels[-1]:
            axes.set_xlabel("trained, % of the run")
        _depth_bar(figure, panels, name)
    return figure


def _depth_bar(figure: style.Plot, panels: np.ndarray, name: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    shades = ScalarMappable(cmap=ListedColormap(style.depth_colours(64)))
    bar = figure.colorbar(shades, ax=panels, shrink=0.5, aspect=30, pad=0.01, ticks=[0, 1])
    bar.ax.set_yticklabels([f"first\n{name}", f"last\n{name}"])
    bar.outline.set_visible(False)  # type: ignore[operator]


def _band(axes: Axes, x: pd.Series, y: pd.Series, seeds: pd.Series, **look: object) -> None:
    """A line through the means at each x, with the 95 % interval as a band."""
    at = pd.DataFrame({"x": x.round(4), "y": y, "seed": seeds}).groupby(["x", "seed"])["y"].mean()
    found = [(float(place), st.mean_interval(values)) for place, values in at.groupby(level="x")]
    places = [place for place, _ in found]
    axes.plot(places, [interval.mean for _, interval in found], **look)  # type: ignore[arg-type]
    low, high = ([getattr(interval, end) for _, interval in found] for end in ("low", "high"))
    axes.fill_between(places, low, high, color=look.get("color"), alpha=0.15, linewidth=0)  # type: ignore[arg-type]


def by_stage(frame: pd.DataFrame, value: str, label: str, scale: float = 100.0, start: str = "") -> style.Plot:
    """`value` at the end of the runs against the stage, a panel a cell, a line a strategy.

    start: what the grey dashed line, the networks before training, is called; "": no such line.
    """
    last = frame[frame["progress"] > 1 - 1e-6]

    def draw(axes: Axes, cell: str) -> None:
        for strategy in in_order(last["strategy"]):
            one = last[(last["cell"] == cell) & (last["strategy"] == strategy)]
            look = {"color": style.colour(strategy), "marker": style.marker(strategy), "label": strategy}
            _band(axes, one["stage"], scale * one[value], one["seed"], **look)
        if start:
            first = frame[(frame["cell"] == cell) & (frame["progress"] == 0)]
            level = first.groupby("stage")[value].mean()
            axes.plot(level.index, scale * level, color=style.FAINT, linestyle="--", label=start)

    return _cells(last["cell"], draw, "stage", label, f"{label} by stage, a line a strategy")


def _cells(cells: Iterable[str], draw: object, x: str, y: str, shows: str, height: float = 3.2) -> style.Plot:
    """A panel a cell, up to three in a row, one legend."""
    cells = list(dict.fromkeys(cells))
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    with style.context():
        figure = style.Plot(0.5 + height * rows, shows)
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes, cell in zip(panels.flat, cells):
            draw(axes, cell)  # type: ignore[operator]
            axes.set_title(cell)
            axes.set_xlabel(x)
        for axes in panels[:, 0]:
            axes.set_ylabel(y)
        for axes in panels.flat[len(cells) :]:
            axes.set_visible(False)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def paths(
    frame: pd.DataFrame, split: str, column: str = "loss", label: str = "mean loss of the exits, nats"
) -> style.Plot:
    """Along the straight line between two models: a panel a cell; the x axis is the true distance from the first.

    Solid: different strategies with the same seed; dashed: one strategy with two seeds, the control, without a band:
    pairs that share seeds are not independent.
    """
    chosen = frame[(frame["exit"] == 0) & (frame["split"] == split)]

    def draw(axes: Axes, cell: str) -> None:
        here = chosen[chosen["cell"] == cell]
        for relation, line in (("strategies", "-"), ("seeds", "--")):
            between = here[here["relation"] == relation]
            for (a, b), one in between.groupby(["strategy", "strategy_2"], sort=False):
                length = one.groupby("seed")["distance"].first().mean()
                look = {"color": _pair_colour(a, b), "linestyle": line}
                if a == b:
                    level = one.groupby("alpha")[column].mean()
                    axes.plot(level.index * length, level, label=f"{a}, other seed", **look)
                else:
                    _band(axes, one["alpha"] * length, one[column], one["seed"], label=f"{a} to {b}", **look)

    return _cells(chosen["cell"], draw, "distance from the first model", label, f"{label} along paths, {split}", 3.4)


PAIR_COLOURS = {
    frozenset(("disjoint", "mixed")): "#000000",
    frozenset(("disjoint", "joint")): "#CC79A7",
    frozenset(("joint", "mixed")): "#E69F00",
}


def _pair_colour(a: str, b: str) -> str:
    """Of a pair of strategies; of one alone its own, of a pair that has none halfway between the two strategies'."""
    between = np.mean([to_rgb(style.colour(strategy)) for strategy in (a, b)], axis=0)
    return PAIR_COLOURS.get(frozenset((a, b)), to_hex(between))


def pairs_over_training(frame: pd.DataFrame, split: str, value: str, label: str) -> style.Plot:
    """A column of `barriers_over_training` against the share of the run: a panel a cell; lines as in `paths`."""
    frame = frame[frame["split"] == split]

    def draw(axes: Axes, cell: str) -> None:
        here = frame[frame["cell"] == cell]
        for (_, pair), one in here.groupby(["relation", "pair"], sort=False):
            a, b = one["strategy"].iloc[0], one["strategy_2"].iloc[0]
            look = {"color": _pair_colour(a, b), "linestyle": "-" if a != b else "--", "marker": ".", "label": pair}
            _band(axes, 100 * one["progress"], one[value], one["seed"], **look)

    return _cells(frame["cell"], draw, "trained, % of the run", label, f"{label} over training, {split}", 3.4)


def curves(frame: pd.DataFrame, split: str) -> style.Plot:
    """The straight line and the trained Bezier curve between the same models: a panel a cell; bands as in `paths`.

    The x axis is how far from the first model one has come on it, over all parameters.
    """
    frame = frame[(frame["exit"] == 0) & (frame["split"] == split)]

    def draw(axes: Axes, cell: str) -> None:
        here = frame[frame["cell"] == cell]
        for way, line in (("line", ":"), ("curve", "-")):
            for (a, b), one in here[here["way"] == way].groupby(["strategy", "strategy_2"], sort=False):
                gone = one.groupby("alpha")["length"].transform("mean")
                look = {"color": _pair_colour(a, b), "linestyle": line, "label": f"{a} to {b}, {way}"}
                _band(axes, gone, one["loss"], one["seed"], **look)

    label = "mean loss of the exits, nats"
    return _cells(
        frame["cell"], draw, "length from the first model", label, f"{label} on lines and curves, {split}", 3.4
    )


def planes(grid: pd.DataFrame, corners: pd.DataFrame) -> style.Plot:
    """Loss on the plane through the three strategies' models of one seed; the axes are distances of parameters."""

    def draw(axes: Axes, cell: str) -> None:
        wide = grid[grid["cell"] == cell].pivot_table(index="y", columns="x", values="loss")
        own = corners[corners["cell"] == cell]
        low = float(own["loss"].min())
        levels = low + np.geomspace(0.02, max(0.1, float(wide.to_numpy().max()) - low), 9)
        filled = axes.contourf(
            wide.columns, wide.index, wide, levels=[low - 0.05, *levels], cmap="cividis_r", extend="max"
        )
        axes.contour(wide.columns, wide.index, wide, levels=levels, colors="white", linewidths=0.5)
        for row in own.itertuples():
            name = {"a": row.strategy, "b": row.strategy_2, "c": row.strategy_3}[row.name]
            look = {"color": style.colour(name), "marker": style.marker(name), "markeredgecolor": "white"}
            axes.plot(row.x, row.y, linestyle="", markersize=9, label=name, **look)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.figure.colorbar(filled, ax=axes, orientation="horizontal", pad=0.02, ticks=levels[::3], format="%.2g")

    shows = "loss on the plane through three models"
    return _cells(grid["cell"], draw, "distance", "distance", shows, 3.6)


def landscapes(frame: pd.DataFrame) -> style.Plot:
    """Mean loss of the exits around the trained models: rows cells, columns strategies; one seed."""
    whole = frame[frame["exit"] == 0]
    cells, strategies = list(dict.fromkeys(whole["cell"])), in_order(whole["strategy"])
    with style.context():
        figure = style.Plot(0.6 + 2.5 * len(cells), "loss around trained models")
        panels = figure.subplots(len(cells), len(strategies), squeeze=False, sharex=True, sharey=True)
        for row, cell in zip(panels, cells, strict=True):
            here = whole[whole["cell"] == cell]
            low, high = here["loss"].min(), here["loss"].max()
            levels = np.geomspace(max(low, 1e-3), high, 12)
            for axes, strategy in zip(row, strategies, strict=True):
                wide = here[here["strategy"] == strategy].pivot_table(index="y", columns="x", values="loss")
                look = {"cmap": "cividis_r", "norm": LogNorm(levels[0], levels[-1]), "extend": "both"}
                filled = axes.contourf(wide.columns, wide.index, wide, levels=levels, **look)
                axes.plot(0, 0, marker=style.marker(strategy), color=style.colour(strategy), markeredgecolor="white")
                axes.set_aspect("equal")
                axes.grid(visible=False)
                axes.set_title(f"{cell}\n{strategy}" if axes is row[0] else f"\n{strategy}")
            bar = figure.colorbar(filled, ax=list(row), shrink=0.8, ticks=levels[::4], format="%.2g")
            bar.set_label("loss, nats")
    return figure


def similarities(frame: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> style.Plot:
    """Linear CKA between the stages of two models, mean over seeds: rows cells, columns pairs that are there."""
    cells = list(dict.fromkeys(frame["cell"]))
    there = set(zip(frame["strategy"], frame["strategy_2"], strict=True))
    pairs = [pair for pair in pairs if pair in there]
    with style.context():
        figure = style.Plot(0.6 + 2.4 * len(cells), "linear CKA between stages")
        panels = figure.subplots(len(cells), len(pairs), squeeze=False)
        for row, cell in zip(panels, cells, strict=True):
            for axes, (a, b) in zip(row, pairs, strict=True):
                here = frame[(frame["cell"] == cell) & (frame["strategy"] == a) & (frame["strategy_2"] == b)]
                here = here[here["relation"] == ("strategies" if a != b else "seeds")]
                wide = here.pivot_table(index="stage_a", columns="stage_b", values="cka")
                look = {"vmin": 0, "vmax": 1, "cmap": "cividis", "shading": "nearest"}
                shown = axes.pcolormesh(wide.columns, wide.index, wide, **look)
                axes.set_aspect("equal")
                axes.grid(visible=False)
                axes.set_title(f"{cell}\n{b}" if axes is row[0] else f"\n{b}")
                axes.set_ylabel(a)
        figure.colorbar(shown, ax=panels, shrink=0.5, label="linear CKA")
    return figure
