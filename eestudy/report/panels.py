"""Figures of several panels, one a cell, or one a cell and strategy, and the lines in them.

Bands and bars are 95 % t intervals over seeds. Who calls these draws within `style.context`.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from pandas.core.groupby import SeriesGroupBy

from eestudy.report import statistics as st
from eestudy.report import style
from eestudy.report.frames import in_order


def of_cells(
    cells: Iterable[str], shows: str, height: tuple[float, float], columns: int = 3, xlabel: str = "", **look: Any
) -> tuple[style.Plot, dict[str, Axes]]:
    """A panel a cell, each name once, in rows of up to `columns`. height: inches of the rest and of a row."""
    cells = list(dict.fromkeys(cells))
    columns = max(1, min(columns, len(cells)))
    figure, panels = _grid(max(1, -(-len(cells) // columns)), columns, shows, height, **look)
    for axes, cell in zip(panels.flat, cells):
        axes.set(title=cell, xlabel=xlabel)
    for axes in panels.flat[max(1, len(cells)) :]:
        axes.remove()
    return figure, dict(zip(cells, panels.flat))


def in_a_row(cells: Iterable[str], shows: str, height: float, **look: Any) -> tuple[style.Plot, dict[str, Axes]]:
    """`of_cells` side by side, `shows` followed by what the panels are of."""
    cells = list(dict.fromkeys(cells))
    return of_cells(cells, f"{shows}; panels: {'; '.join(cells)}", (0.0, height), len(cells), **look)


def of_pairs(
    rows: Iterable[str], columns: Iterable[Any], shows: str, height: tuple[float, float], xlabel: str = "", **look: Any
) -> tuple[style.Plot, dict[tuple[str, Any], Axes]]:
    """A row of panels a cell, a column a strategy or whatever `columns` are (to their titles, where these are others).

    height: inches of the rest and of a row.
    """
    rows, columns = list(dict.fromkeys(rows)), columns if isinstance(columns, Mapping) else {c: c for c in columns}
    figure, panels = _grid(len(rows), len(columns), shows, height, **look)
    for row, line in zip(rows, panels, strict=True):
        for axes, title in zip(line, columns.values(), strict=True):
            axes.set_title(f"{row}\n{title}" if axes is line[0] else f"\n{title}")
    for axes in panels[-1]:
        axes.set_xlabel(xlabel)
    return figure, dict(zip(product(rows, columns), panels.flat, strict=True))


def _grid(
    rows: int, columns: int, shows: str, height: tuple[float, float], ylabel: str = "", dpi: int = 0, **look: Any
) -> tuple[style.Plot, Any]:
    """A figure and its panels (rows, columns); look: what they share."""
    figure = style.Plot(height[0] + height[1] * rows, shows, dpi or style.DPI)
    panels = figure.subplots(rows, columns, squeeze=False, **look)
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel)
    return figure, panels


def legend(figure: style.Plot, loc: str = "outside upper center", columns: int = 12) -> style.Plot:
    """The figure with one legend of all panels, each label once."""
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels())}
    if handles:
        figure.legend(list(handles.values()), list(handles), loc=loc, ncols=min(columns, len(handles)))
    return figure


def by_strategy(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each strategy, in the order used everywhere."""
    for strategy in in_order(frame["strategy"]):
        yield strategy, frame[frame["strategy"] == strategy]


def band(axes: Axes, x: pd.Series, y: pd.Series, seeds: pd.Series, **look: Any) -> None:
    """A line through the means over seeds at each x, with their interval as a band."""
    import seaborn  # takes a second, which notebooks without bands shall not wait

    def ends(values: pd.Series) -> tuple[float, float]:
        interval = st.mean_interval(values)
        return interval.low, interval.high

    at = pd.DataFrame({"x": x.round(4), "y": y, "seed": seeds}).groupby(["x", "seed"])["y"].mean().reset_index()
    labels = axes.get_xlabel(), axes.get_ylabel()
    if "marker" in look:
        look |= {"markeredgecolor": "auto", "markeredgewidth": 1.0}
    shade = {"alpha": 0.15, "linewidth": 0}
    seaborn.lineplot(at, x="x", y="y", errorbar=ends, err_kws=shade, legend=False, ax=axes, **look)
    axes.set(xlabel=labels[0], ylabel=labels[1])


def bars(axes: Axes, values: SeriesGroupBy, shift: float = 0.0, **look: Any) -> None:
    """A point with its interval at the mean of each group, whose key is its x; no bar where there is no interval."""
    found = st.intervals(values)
    x = found.index.to_numpy(float) + shift
    axes.errorbar(x, found["mean"].to_numpy(), yerr=found["half"].fillna(0.0).to_numpy(), **look)


def forest(axes: Axes, rows: pd.DataFrame, heights: Iterable[float], colours: Iterable[str], **look: Any) -> None:
    """Differences (fractions: mean, low, high) in points as dots with their intervals, filled where decided."""
    for row, y, shade in zip(rows.itertuples(), heights, colours, strict=True):
        axes.plot((100 * row.low, 100 * row.high), (y, y), color=shade, linewidth=1.5, **look)
        axes.plot(100 * row.mean, y, marker="o", color=shade, markerfacecolor=shade if row.decision else "white")
