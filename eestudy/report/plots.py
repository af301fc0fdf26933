"""The figures of the book. Each function takes tidy frames (see `frames.Results`) and returns a `Plot`.

Bands and bars are 95 % t intervals over seeds; thin lines and small dots are single seeds. With two seeds an
interval is 12.7 standard errors wide on each side; axes follow the seeds' own values, a band may leave them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eestudy.report import statistics as st
from eestudy.report import style
from eestudy.report.frames import in_order
from eestudy.report.scores import score_name, valued
from eestudy.report.tables import budget_name

SPLITS = {"validation": "-", "train": ":"}
# Bins of the share of wrong (seed, exit) pairs; the first holds the samples that every exit gets right.
DIFFICULTY_EDGES = (-1e-9, 1e-9, 0.25, 0.5, 0.75, 1.0)
DIFFICULTY_NAMES = ("0", "to 25 %", "to 50 %", "to 75 %", "above")


def training_curves(history: pd.DataFrame) -> style.Plot:
    """Loss and accuracy by epoch: a column of panels a phase, a colour an exit, full line validation, dotted
    train.

    `history`: run, phase, epoch, exit, split, loss, accuracy. Lines are means over runs, thin ones single
    runs.
    """
    history = valued(history)
    phases = sorted(set(history["phase"]))  # "1-backbone", "2-together": in the order they ran
    exits = sorted(history["exit"].unique())
    shades = dict(zip(exits, style.depth_colours(len(exits)), strict=True))
    lengths = [max(history.loc[history["phase"] == p, "epoch"].nunique(), 2) for p in phases]
    with style.context():
        text = f"loss and {score_name(history)} by epoch, exits 1 to {exits[-1]}, phases {', '.join(map(str, phases))}"
        figure = style.Plot(4.8, text)
        axes = figure.subplots(2, len(phases), sharex="col", sharey="row", squeeze=False, width_ratios=lengths)
        for column, phase in enumerate(phases):
            rows = history[history["phase"] == phase]
            for row, value in enumerate(("loss", "value")):
                for (number, split), group in rows.groupby(["exit", "split"]):
                    line = group.groupby("epoch")[value].mean().dropna()
                    full = split == "validation"
                    ways = {"color": shades[number], "linestyle": "-" if full else ":"}
                    axes[row, column].plot(line.index, line, linewidth=1.7 if full else 1.2, **ways)
                    if full and group["run"].nunique() > 1:
                        for _, single in group.groupby("run"):
                            axes[row, column].plot(single["epoch"], single[value], linewidth=0.6, alpha=0.45, **ways)
            axes[0, column].set_title("phase " + str(phase).replace("-", ": ", 1))
            axes[1, column].set_xlabel("epoch of the phase")
            axes[1, column].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        name = score_name(history)
        axes[0, 0].set_ylabel("loss, nats" if name == "accuracy" else "loss, squared error")
        style.percent_axis(axes[1, 0], f"{name}, %")
        handles = [Line2D([], [], color=shades[k], label=f"exit {k}") for k in exits]
        handles += [Line2D([], [], color=style.INK, linestyle=s, label=n) for n, s in SPLITS.items()]
        figure.legend(handles=handles, loc="outside right center")
    return figure


def accuracy_by_exit(exits: pd.DataFrame, title: str = "") -> style.Plot:
    """Accuracy on test when all samples take one exit; a line a strategy, bars over seeds."""
    with style.context():
        name = score_name(exits)
        figure = style.Plot(3.6, f"{name} by exit, a line for each of: " + ", ".join(in_order(exits["strategy"])))
        axes = figure.subplots()
        _exit_lines(axes, exits)
        axes.set_xlabel("exit (the last is the backbone's own classifier)")
        style.percent_axis(axes, f"{name}, %")
        axes.set_title(title)
        axes.legend()
    return figure


def exit_grid(exits: pd.DataFrame) -> style.Plot:
    """`accuracy_by_exit` for every cell of a study, a panel each."""
    return _grid(exits, _exit_lines, "exit", "by exit and strategy")


def tradeoff(tradeoff: pd.DataFrame, exits: pd.DataFrame, backbone_flops: float, title: str = "") -> style.Plot:
    """Accuracy against mean cost of a sample: lines are thresholds at the same nominal budget, averaged over
    seeds.

    Markers are the exits taken by all samples (`exits`: flops, accuracy); the vertical line is the plain
    backbone.
    """
    tradeoff, exits = valued(tradeoff), valued(exits)
    with style.context():
        name = score_name(exits)
        figure = style.Plot(4.0, f"{name} against mean cost: " + ", ".join(in_order(tradeoff["strategy"])))
        axes = figure.subplots()
        size, unit = style.flops_unit(max(exits["flops"].max(), backbone_flops))
        tradeoff_lines(axes, tradeoff, size)
        for strategy in in_order(exits["strategy"]):
            points = exits[exits["strategy"] == strategy].groupby("exit")[["flops", "value"]].mean()
            look = {
                "color": style.colour(strategy),
                "marker": style.marker(strategy),
                "markerfacecolor": "white",
            }
            axes.plot(
                points["flops"] / size,
                points["value"],
                linestyle="",
                label=f"{strategy}, one exit",
                **look,
            )
        axes.axvline(backbone_flops / size, color=style.FAINT, linestyle="--", linewidth=1.2, label="plain backbone")
        axes.set_xlim(left=0)
        axes.set_ylim(*value_limits(pd.concat([tradeoff["value"], exits["value"]])))
        axes.set_xlabel(f"mean cost, {unit} a sample")
        style.percent_axis(axes, f"{name}, %")
        axes.set_title(title)
        figure.legend(loc="outside upper right", ncols=4 if exits["strategy"].nunique() > 1 else 3)
    return figure


def tradeoff_grid(tradeoff: pd.DataFrame, runs: pd.DataFrame) -> style.Plot:
    """Accuracy against mean cost as a share of the plain backbone's, a panel a cell, a line a strategy."""
    backbone = tradeoff["run"].map(runs.set_index("run")["backbone_flops"])
    relative = valued(tradeoff).assign(flops=100 * tradeoff["flops"] / backbone)

    def draw(axes: Axes, rows: pd.DataFrame) -> None:
        tradeoff_lines(axes, rows, 1.0)
        axes.axvline(100, color=style.FAINT, linestyle="--", linewidth=1.0, label="plain backbone")
        axes.set_ylim(*value_limits(rows["value"]))

    return _grid(relative, draw, "mean cost, % of the plain backbone", "against mean cost by strategy")


def flops_by_exit(exits: pd.DataFrame, heads: Sequence[float] | np.ndarray | None = None) -> style.Plot:
    """Cost of a sample that leaves at each exit, stacked: backbone up to there, heads up to and including it.

    `exits`: one run's frame (exit, flops cumulative). `heads`: FLOPs of each head (K,); without it one total
    bar.
    """
    one = exits.drop_duplicates("exit").sort_values("exit")
    total = one["flops"].to_numpy(float)
    with style.context():
        figure = style.Plot(2.2 + 0.16 * len(one), f"FLOPs by exit, {len(one)} exits")
        axes = figure.subplots()
        size, unit = style.flops_unit(total.max())
        labels = [f"exit {k}" for k in one["exit"]]
        spent = np.zeros_like(total) if heads is None else np.cumsum(np.asarray(heads, float))
        axes.barh(labels, (total - spent) / size, color="#6c8ebf", label="backbone" if heads is not None else None)
        if heads is not None:
            axes.barh(labels, spent / size, left=(total - spent) / size, color="#E69F00", hatch="//", label="heads")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        for place, value in enumerate(total):
            share = f" {value / size:.3g} ({100 * value / total[-1]:.0f} %)"
            axes.annotate(share, (value / size, place), va="center", fontsize=9)
        axes.set_xlim(0, 1.18 * total.max() / size)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"cost of a sample that leaves there, {unit} (% of the last exit)")
    return figure


def where_samples_exit(samples: pd.DataFrame, exits: int) -> style.Plot:
    """Left: share of the samples that leave at each exit. Right: the same by how hard the samples are.

    `samples`: sample, exit_index (1..exits), difficulty (`difficulty()`, in [0, 1]); several seeds may be
    stacked.
    """
    numbers = np.arange(1, exits + 1)
    shades = style.depth_colours(exits)
    groups = pd.cut(samples["difficulty"], DIFFICULTY_EDGES, labels=DIFFICULTY_NAMES, include_lowest=True)
    counts = pd.crosstab(groups, samples["exit_index"], dropna=False).reindex(
        index=DIFFICULTY_NAMES, columns=numbers, fill_value=0
    )
    totals = counts.sum(axis=1)
    shares = counts.div(totals.where(totals > 0), axis=0).fillna(0.0)
    with style.context():
        figure = style.Plot(3.6, "share of samples leaving at each exit, overall and by difficulty")
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        overall = counts.sum() / max(int(totals.sum()), 1)
        left.bar(numbers, overall, color=shades, edgecolor=style.INK, linewidth=0.6)
        left.set_xticks(numbers)
        left.set_xlabel("exit")
        style.percent_axis(left, "samples, %")
        names = [f"{n}\nn = {totals[n]}" for n in DIFFICULTY_NAMES]
        bottom = np.zeros(len(names))
        for k, shade in zip(numbers, shades, strict=True):
            look = {"edgecolor": style.INK, "linewidth": 0.4, "label": f"exit {k}"}
            right.bar(names, shares[k], bottom=bottom, color=shade, **look)
            bottom += shares[k].to_numpy()
        right.set_xlabel("share of (seed, exit) pairs that are wrong on the sample")
        style.percent_axis(right, "of these samples, %")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center")
        for axes in (left, right):
            axes.grid(visible=False, axis="x")
    return figure


def forest(comparisons: pd.DataFrame) -> style.Plot:
    """Paired differences with 95 % intervals: a panel a pair, rows cell x budget. Filled and in the better
    strategy's colour where the corrected test decides, grey and hollow elsewhere.

    `comparisons`: from `tables.comparisons`. Axes span four times the largest mean: longer intervals leave
    the frame.
    """
    pairs = list(dict.fromkeys(comparisons["pair"]))
    keys = list(dict.fromkeys(zip(comparisons["cell"], comparisons["budget"], strict=True)))
    cells = list(dict.fromkeys(cell for cell, _ in keys))
    # A free row above each cell holds its name.
    place = {key: row + cells.index(key[0]) + 1 for row, key in enumerate(keys)}
    heads = {cell: min(y for key, y in place.items() if key[0] == cell) - 1 for cell in cells}
    bound = 100 * min(4 * comparisons["mean"].abs().max(), 1.1 * comparisons[["low", "high"]].abs().max().max())
    bound = max(bound, 130 * comparisons["mean"].abs().max(), 0.5) if math.isfinite(bound) else 1.0
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    with style.context():
        figure = style.Plot(1.3 + 0.2 * (len(keys) + len(cells)), "paired differences: " + "; ".join(pairs))
        panels = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
        for axes, pair in zip(panels, pairs, strict=True):
            for row in comparisons[comparisons["pair"] == pair].dropna(subset="mean").itertuples():
                y, ends = place[row.cell, row.budget], (100 * row.low, 100 * row.high)
                shade = style.colour(row.a if row.mean > 0 else row.b) if row.decision else style.FAINT
                fill = shade if row.decision else "white"
                axes.plot(ends, (y, y), color=shade, linewidth=1.5, solid_capstyle="butt")
                axes.plot(100 * row.mean, y, marker="o", color=shade, markerfacecolor=fill)
            for cell, y in heads.items():
                if axes is panels[0]:
                    axes.annotate(
                        cell,
                        (-bound, y),
                        (2, 0),
                        textcoords="offset points",
                        va="center",
                        weight="bold",
                        bbox=plate,
                    )
            axes.axvline(0, color=style.INK, linewidth=0.9)
            axes.set_xlim(-bound, bound)
            axes.set_title(pair)
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(list(place.values()), [budget_name(b) for _, b in keys])
        panels[0].set_ylim(max(place.values()) + 0.8, -0.8)
        panels[0].set_ylabel("budget, of the plain backbone's FLOPs")
        figure.supxlabel(f"difference in {score_name(comparisons)}, points", fontsize=10)
    return figure


def _exit_lines(axes: Axes, exits: pd.DataFrame) -> None:
    exits, strategies = valued(exits), in_order(exits["strategy"])
    for place, strategy in enumerate(strategies):
        rows = exits[exits["strategy"] == strategy].groupby("exit")["value"]
        summary = {int(k): st.mean_interval(values) for k, values in rows}
        # Moved apart a little, so that bars at the same exit do not hide each other.
        x = np.array(list(summary)) + 0.08 * (place - (len(strategies) - 1) / 2)
        mean = np.array([i.mean for i in summary.values()])
        half = np.array([0.0 if math.isnan(i.low) else i.half for i in summary.values()])
        look = {"color": style.colour(strategy), "marker": style.marker(strategy), "label": strategy}
        axes.errorbar(x, mean, yerr=half, capsize=2.5, elinewidth=1.1, **look)
        for k, values in rows:  # the seeds themselves: with two of them an interval says little
            place_x = x[list(summary).index(int(k))]
            axes.scatter([place_x] * len(values), values, s=9, color=style.colour(strategy), alpha=0.55, linewidth=0)
    axes.set_ylim(*value_limits(exits["value"]))
    axes.xaxis.get_major_locator().set_params(integer=True)


def tradeoff_lines(axes: Axes, tradeoff: pd.DataFrame, size: float) -> None:
    for strategy in in_order(tradeoff["strategy"]):
        rows = valued(tradeoff[tradeoff["strategy"] == strategy])
        seeds = rows["run"].nunique()
        reached = [g for _, g in rows.dropna(subset="value").groupby("budget") if g["run"].nunique() == seeds]
        summary = [st.mean_interval(group["value"]) for group in reached]
        x = np.array([group["flops"].mean() for group in reached]) / size
        colour = style.colour(strategy)
        low, high = (np.array([getattr(i, end) for i in summary]) for end in ("low", "high"))
        mean = np.array([i.mean for i in summary])
        # Where the seeds agree exactly there is no interval: the band closes on the mean.
        low, high = np.where(np.isnan(low), mean, low), np.where(np.isnan(high), mean, high)
        axes.fill_between(x, low, high, color=colour, alpha=0.11, linewidth=0)
        for _, single in rows.dropna(subset="value").groupby("run"):
            line = single.sort_values("budget")
            axes.plot(line["flops"] / size, line["value"], color=colour, linewidth=0.6, alpha=0.5)
        every = max(len(x) // 6, 1)
        axes.plot(x, mean, color=colour, marker=style.marker(strategy), markevery=every, label=strategy)


def value_limits(accuracy: pd.Series) -> tuple[float, float]:
    """Limits of an accuracy axis from the seeds' own values, not from their intervals. R2 can be below 0."""
    low, high = float(accuracy.min()), float(accuracy.max())
    room = max(0.08 * (high - low), 0.01)
    return max(low - room, 0.0) if low >= 0 else low - room, min(high + room, 1.0 + room / 2)


def _grid(frame: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], None], xlabel: str, text: str) -> style.Plot:
    cells = list(dict.fromkeys(frame["cell"]))
    columns = min(2, len(cells))
    rows = -(-len(cells) // columns)
    with style.context():
        name = score_name(frame)
        figure = style.Plot(0.7 + 2.7 * rows, f"{name} {text}; panels: {'; '.join(cells)}")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes, cell in zip(panels.flat, cells, strict=False):
            draw(axes, frame[frame["cell"] == cell])
            axes.set_title(cell)
            style.percent_axis(axes, "")
        for axes in panels.flat[len(cells) :]:
            axes.remove()
        handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles))
        figure.supxlabel(xlabel, fontsize=10)
        figure.supylabel(f"{name}, %", fontsize=10)
    return figure
