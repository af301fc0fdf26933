"""The figures of the book. Each function takes tidy frames (see `frames.Results`) and returns a `Plot`.

Bands and bars are 95 % t intervals over seeds; thin lines and small dots are single seeds. With two seeds an interval
is 12.7 standard errors wide on each side; axes follow the seeds' own values, a band may leave them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eestudy.report import panels, style
from eestudy.report import statistics as st
from eestudy.report.frames import in_order, score_name, valued

SPLITS = {"validation": ("-", 1.7), "train": (":", 1.2)}  # line, width
FEW = 4  # seeds whose own lines can be told apart
# Bins of `statistics.share_wrong`; the first holds the samples that every exit gets right.
DIFFICULTY_EDGES = (-1e-9, 1e-9, 0.25, 0.5, 0.75, 1.0)
DIFFICULTY_NAMES = ("0", "to 25 %", "to 50 %", "to 75 %", "above")


@style.context()
def training_curves(history: pd.DataFrame) -> style.Plot:
    """Loss and accuracy by epoch: a column of panels a phase, a colour an exit, full line validation, dotted train.

    `history`: run, phase, epoch, exit, split, loss, accuracy. Lines are means over runs, thin ones single runs
    where there are at most FEW.
    """
    history = valued(history)
    phases = sorted(set(history["phase"]))  # "1-backbone", "2-together": in the order they ran
    exits = sorted(history["exit"].unique())
    shades = dict(zip(exits, style.depth_colours(len(exits)), strict=True))
    lengths = [max(history.loc[history["phase"] == p, "epoch"].nunique(), 2) for p in phases]
    text = f"loss and {score_name(history)} by epoch, exits 1 to {exits[-1]}, phases {', '.join(map(str, phases))}"
    figure = style.Plot(4.8, text)
    axes = figure.subplots(2, len(phases), sharex="col", sharey="row", squeeze=False, width_ratios=lengths)
    for column, phase in enumerate(phases):
        rows = history[history["phase"] == phase]
        for row, value in enumerate(("loss", "value")):
            for (number, split), group in rows.groupby(["exit", "split"]):
                line, (dashes, width) = group.groupby("epoch")[value].mean().dropna(), SPLITS[split]
                ways = {"color": shades[number], "linestyle": dashes}
                axes[row, column].plot(line.index, line, linewidth=width, **ways)
                if split == "validation" and 1 < group["run"].nunique() <= FEW:
                    for _, single in group.groupby("run"):
                        axes[row, column].plot(single["epoch"], single[value], linewidth=0.6, alpha=0.45, **ways)
        axes[0, column].set_title("phase " + str(phase).replace("-", ": ", 1))
        axes[1, column].set_xlabel("epoch of the phase")
        axes[1, column].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    name = score_name(history)
    axes[0, 0].set_ylabel("loss, nats" if name == "accuracy" else "loss, squared error")
    style.percent_axis(axes[1, 0], f"{name}, %")
    handles = [Line2D([], [], color=shades[k], label=f"exit {k}") for k in exits]
    handles += [Line2D([], [], color=style.INK, linestyle=dashes, label=n) for n, (dashes, _) in SPLITS.items()]
    figure.legend(handles=handles, loc="outside right center")
    return figure


def exit_grid(exits: pd.DataFrame) -> style.Plot:
    """`accuracy_by_exit` for every cell of a study, a panel each."""
    return _grid(exits, _exit_lines, "exit", "by exit and strategy")


@style.context()
def tradeoff(tradeoff: pd.DataFrame, exits: pd.DataFrame, backbone_flops: float, title: str = "") -> style.Plot:
    """Accuracy against mean cost of a sample: lines are thresholds at the same nominal budget, averaged over seeds.

    Markers are the exits taken by all samples (`exits`: flops, accuracy); the vertical line is the plain backbone.
    """
    tradeoff, exits = valued(tradeoff), valued(exits)
    name = score_name(exits)
    figure = style.Plot(4.0, f"{name} against mean cost: " + ", ".join(in_order(tradeoff["strategy"])))
    axes = figure.subplots()
    size, unit = style.flops_unit(max(exits["flops"].max(), backbone_flops))
    tradeoff_lines(axes, tradeoff, size)
    for strategy, rows in panels.by_strategy(exits):
        points = rows.groupby("exit")[["flops", "value"]].mean()
        look = style.look(strategy) | {"label": f"{strategy}, one exit", "markerfacecolor": "white"}
        axes.plot(points["flops"] / size, points["value"], linestyle="", **look)
    axes.axvline(backbone_flops / size, color=style.FAINT, linestyle="--", linewidth=1.2, label="plain backbone")
    limits = value_limits(pd.concat([tradeoff["value"], exits["value"]]))
    axes.set(xlim=(0, None), ylim=limits, xlabel=f"mean cost, {unit} a sample", title=title)
    style.percent_axis(axes, f"{name}, %")
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


@style.context()
def flops_by_exit(exits: pd.DataFrame, heads: Sequence[float] | np.ndarray) -> style.Plot:
    """Cost of a sample that leaves at each exit, stacked: backbone up to there, heads up to and including it.

    `exits`: one run's frame (exit, flops cumulative). `heads`: FLOPs of each head (K,).
    """
    one = exits.drop_duplicates("exit").sort_values("exit")
    total = one["flops"].to_numpy(float)
    figure = style.Plot(2.2 + 0.16 * len(one), f"FLOPs by exit, {len(one)} exits")
    axes = figure.subplots()
    size, unit = style.flops_unit(total.max())
    labels = [f"exit {k}" for k in one["exit"]]
    backbone = (total - np.cumsum(np.asarray(heads, float))) / size
    axes.barh(labels, backbone, color="#6c8ebf", label="backbone")
    axes.barh(labels, total / size - backbone, left=backbone, color="#E69F00", hatch="//", label="heads")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    for row, value in enumerate(total):
        share = f" {value / size:.3g} ({100 * value / total[-1]:.0f} %)"
        axes.annotate(share, (value / size, row), va="center", fontsize=9)
    axes.set_xlim(0, 1.18 * total.max() / size)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"cost of a sample that leaves there, {unit} (% of the last exit)")
    return figure


@style.context()
def where_samples_exit(samples: pd.DataFrame, exits: int) -> style.Plot:
    """Left: share of the samples that leave at each exit. Right: the same by how hard the samples are.

    `samples`: sample, exit_index (1..exits), difficulty (`statistics.share_wrong`, in [0, 1]); several seeds may be
    stacked.
    """
    numbers, shades = np.arange(1, exits + 1), style.depth_colours(exits)
    groups = pd.cut(samples["difficulty"], DIFFICULTY_EDGES, labels=DIFFICULTY_NAMES, include_lowest=True)
    counts = pd.crosstab(groups, samples["exit_index"], dropna=False)
    counts = counts.reindex(index=DIFFICULTY_NAMES, columns=numbers, fill_value=0)
    totals = counts.sum(axis=1)
    shares = counts.div(totals.where(totals > 0), axis=0).fillna(0.0)
    figure = style.Plot(3.6, "share of samples leaving at each exit, overall and by difficulty")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    overall = counts.sum() / max(int(totals.sum()), 1)
    left.bar(numbers, overall, color=shades, edgecolor=style.INK, linewidth=0.6)
    left.set(xticks=numbers, xlabel="exit")
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


def _exit_lines(axes: Axes, exits: pd.DataFrame) -> None:
    exits, many = valued(exits), exits["strategy"].nunique()
    for number, (strategy, rows) in enumerate(panels.by_strategy(exits)):
        # Moved apart a little, so that bars at the same exit do not hide each other.
        shift = 0.08 * (number - (many - 1) / 2)
        panels.bars(axes, rows.groupby("exit")["value"], shift, capsize=2.5, elinewidth=1.1, **style.look(strategy))
        # The seeds themselves: with two of them an interval says little.
        dots = {"color": style.colour(strategy), "alpha": 0.55, "linewidth": 0}
        axes.scatter(rows["exit"] + shift, rows["value"], s=9, **dots)
    axes.set_ylim(*value_limits(exits["value"]))
    axes.xaxis.get_major_locator().set_params(integer=True)


def tradeoff_lines(axes: Axes, tradeoff: pd.DataFrame, size: float) -> None:
    """Mean score against mean cost in units of `size`, a line and band a strategy; thin lines: at most FEW seeds."""
    for strategy, rows in panels.by_strategy(valued(tradeoff)):
        known = rows.dropna(subset="value")
        budgets = known.groupby("budget")
        everywhere = budgets["run"].nunique() == rows["run"].nunique()  # else the mean would be of fewer seeds
        summary = st.intervals(budgets["value"])[everywhere]
        x = budgets["flops"].mean()[everywhere] / size
        # Where the seeds agree exactly there is no interval: the band closes on the mean.
        low, high = (summary[end].fillna(summary["mean"]) for end in ("low", "high"))
        look = style.look(strategy)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.11, linewidth=0)
        for _, single in known.groupby("run") if known["run"].nunique() <= FEW else ():
            line = single.sort_values("budget")
            axes.plot(line["flops"] / size, line["value"], color=look["color"], linewidth=0.6, alpha=0.5)
        axes.plot(x, summary["mean"], markevery=max(len(x) // 6, 1), **look)


def value_limits(accuracy: pd.Series) -> tuple[float, float]:
    """Limits of an accuracy axis from the seeds' own values, not from their intervals. R2 can be below 0."""
    low, high = float(accuracy.min()), float(accuracy.max())
    room = max(0.08 * (high - low), 0.01)
    return max(low - room, 0.0) if low >= 0 else low - room, min(high + room, 1.0 + room / 2)


@style.context()
def _grid(frame: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], None], xlabel: str, text: str) -> style.Plot:
    name = score_name(frame)
    shows = f"{name} {text}; panels: {'; '.join(dict.fromkeys(frame['cell']))}"
    figure, shown = panels.of_cells(frame["cell"], shows, (0.7, 2.7), columns=2)
    for cell, axes in shown.items():
        draw(axes, frame[frame["cell"] == cell])
        style.percent_axis(axes, "")
    panels.legend(figure)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(f"{name}, %", fontsize=10)
    return figure
