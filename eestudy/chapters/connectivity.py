"""Paths, curves and planes between trained models: barriers of the loss, and claim C4."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from eestudy.report import panels, style
from eestudy.report.effects import Measurement, against, measurement, one_family
from eestudy.report.tables import Table, table


def barriers(paths: pd.DataFrame, column: str = "loss", last: bool = False) -> pd.DataFrame:
    """The barrier of every path on each split (Entezari et al. 2022): of the mean over exits, or of the last one alone.

    One row per path and split: its keys (progress among them, where the paths have it), pair, barrier, distance.
    """
    rows = []
    keys = ["cell", "relation", "strategy", "strategy_2", "seed", "seed_2", "split"]
    keys += ["progress"] if "progress" in paths else []
    exit = paths.groupby("cell")["exit"].transform("max") if last else 0
    for key, path in paths[paths["exit"] == exit].groupby(keys, sort=False):
        path = path.sort_values("alpha")
        alpha, height = path["alpha"].to_numpy(float), path[column].to_numpy(float)
        line = (1 - alpha) * height[0] + alpha * height[-1]
        found = dict(zip(keys, key, strict=True))
        distance = path["distance"].iloc[0] if "distance" in path else math.nan
        rows.append({**found, "barrier": float((height - line).max()), "distance": distance})
        word = {"strategies": f" – {found['strategy_2']}", "seeds": ", other seed", "start and end": ", start to end"}
        rows[-1]["pair"] = found["strategy"] + word[found["relation"]]
    return pd.DataFrame(rows)


def barriers_over_training(moving: pd.DataFrame, ends: pd.DataFrame) -> pd.DataFrame:
    """`barriers` of the last exit's loss, of pairs of networks at a share of the run, progress, the end among them.

    The other exits would not compare: a phase of the backbone alone leaves their heads untrained. moving: the table
    "paths_over_training"; ends: "paths", of which the same pairs count, at the same points alpha.
    """
    moving = moving[moving["relation"] != "start and end"]
    pairs = ["cell", "relation", "strategy", "strategy_2", "seed", "seed_2"]
    ends = ends.merge(moving[pairs].drop_duplicates(), on=pairs).assign(progress=1.0)
    alphas = moving["alpha"].unique()
    near = np.isclose(ends["alpha"].to_numpy()[:, None], alphas[None]).any(1)
    return barriers(pd.concat([moving, ends[near]], ignore_index=True), last=True)


def barrier_table(frame: pd.DataFrame, caption: str, name: str) -> Table:
    """`barriers` by pair and split, and distances where there are any: mean over seeds (lowest to highest)."""

    def text(values: pd.Series, digits: int = 3) -> str:
        span = f" ({values.min():.{digits}f} to {values.max():.{digits}f})" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{span}"

    keys = ["cell", "relation", "pair"]
    wide = frame.pivot_table(index=keys, columns="split", values="barrier", aggfunc=text)[["train", "test"]]
    if frame["distance"].notna().any():
        wide["distance"] = frame.drop_duplicates([*keys, "seed"]).groupby(keys)["distance"].agg(text, digits=1)
    return table(wide.droplevel("relation"), caption, name)  # the pairs say it


def curve_barriers(curves: pd.DataFrame) -> pd.DataFrame:
    """`barriers` of the curves, and of the lines measured as they are, by the column way: "line" or "curve"."""
    parts = [barriers(curves[curves["way"] == way]).assign(way=way) for way in ("line", "curve")]
    return pd.concat(parts, ignore_index=True)


# The pairs of strategies that C4 speaks of, in the alphabet's order, and their colours.
C4_PAIRS = {
    ("disjoint", "mixed"): "near", ("disjoint", "joint"): "disjoint to joint", ("joint", "mixed"): "mixed to joint",
}  # fmt: skip
FAR = ("disjoint to joint", "mixed to joint")
PAIR_COLOURS = dict(zip(C4_PAIRS, ("#000000", "#CC79A7", "#E69F00")))
LOSS = "mean loss of the exits, nats"


def c4(paths: pd.DataFrame, split: str = "train", column: str = "loss") -> Measurement:
    """The barriers that disjoint and mixed have to joint, less that between them."""
    found = barriers(paths, column)
    found = found[(found["relation"] == "strategies") & (found["split"] == split)]
    which = [C4_PAIRS.get(tuple(sorted(pair))) for pair in zip(found["strategy"], found["strategy_2"])]
    wide = found.assign(which=which).pivot_table(index=["cell", "seed"], columns="which", values="barrier")
    rows = found[:0]
    if set(C4_PAIRS.values()) <= set(wide):
        wide = wide.reset_index()
        rows = one_family(
            *(against(wide.assign(what=f"{far}, less disjoint to mixed"), far, "near", ("what",)) for far in FAR)
        )
    statement = "Disjoint and mixed models lie in one basin; the joint model lies in another."
    return measurement("C4", statement, rows, ("what",), f"barriers on {split}")


def scale(barriers: pd.DataFrame) -> str:
    """Barriers to joint beside those between two seeds of one strategy, as a sentence."""
    far = barriers[(barriers["relation"] == "seeds") | barriers["pair"].str.contains(r"\bjoint")]
    means = far.groupby(["split", "relation", "cell", "pair"])["barrier"].mean().groupby(level=[0, 1])
    spans = means.agg(lambda each: f"{each.min():.2f} to {each.max():.2f}")
    told = [f"on {split} {spans[split, 'strategies']} against {spans[split, 'seeds']}" for split in ("train", "test")]
    return f"For scale, barriers to joint against those between seeds of one strategy, nats: {'; '.join(told)}."


def bent(curves: pd.DataFrame) -> pd.DataFrame:
    """The curve's barrier less the line's, by split and pair: `against`."""
    found = curve_barriers(curves)
    wide = found.pivot_table(index=["cell", "split", "pair", "seed"], columns="way", values="barrier").reset_index()
    return against(wide, "curve", "line", ("split", "pair"))


def _pair_colour(a: str, b: str) -> str:
    """Of a pair of strategies; of one alone its own, of a pair that has none halfway between the two strategies'."""
    between = np.mean([to_rgb(style.colour(strategy)) for strategy in (a, b)], axis=0)
    return PAIR_COLOURS.get((min(a, b), max(a, b)), to_hex(between))


@style.context()
def paths(frame: pd.DataFrame, split: str, column: str = "loss", label: str = LOSS) -> style.Plot:
    """Along the straight line between two models: a panel a cell; the x axis is the true distance from the first.

    Solid: different strategies with the same seed; dashed: one strategy with two seeds, the control, without a band:
    pairs that share seeds are not independent.
    """
    chosen = frame[(frame["exit"] == 0) & (frame["split"] == split)]
    figure, shown = _panels(chosen, f"{label} along paths, {split}", "distance from the first model", label)
    for cell, axes in shown.items():
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
                    panels.band(axes, one["alpha"] * length, one[column], one["seed"], label=f"{a} to {b}", **look)
    return panels.legend(figure, "outside lower center", 4)


def _panels(frame: pd.DataFrame, shows: str, x: str, y: str) -> tuple[style.Plot, dict[str, Axes]]:
    return panels.of_cells(frame["cell"], shows, (0.5, 3.4), xlabel=x, ylabel=y)


@style.context()
def pairs_over_training(frame: pd.DataFrame, split: str, value: str, label: str) -> style.Plot:
    """A column of `barriers_over_training` against the share of the run: a panel a cell; lines as in `paths`."""
    frame = frame[frame["split"] == split]
    figure, shown = _panels(frame, f"{label} over training, {split}", "trained, % of the run", label)
    for cell, axes in shown.items():
        here = frame[frame["cell"] == cell]
        for (_, pair), one in here.groupby(["relation", "pair"], sort=False):
            a, b = one["strategy"].iloc[0], one["strategy_2"].iloc[0]
            look = {"color": _pair_colour(a, b), "linestyle": "-" if a != b else "--", "marker": ".", "label": pair}
            panels.band(axes, 100 * one["progress"], one[value], one["seed"], **look)
    return panels.legend(figure, "outside lower center", 4)


@style.context()
def curves(frame: pd.DataFrame, split: str) -> style.Plot:
    """The straight line and the trained Bezier curve between the same models: a panel a cell; bands as in `paths`.

    The x axis is how far from the first model one has come on it, over all parameters.
    """
    frame = frame[(frame["exit"] == 0) & (frame["split"] == split)]
    figure, shown = _panels(frame, f"{LOSS} on lines and curves, {split}", "length from the first model", LOSS)
    for cell, axes in shown.items():
        here = frame[frame["cell"] == cell]
        for way, line in (("line", ":"), ("curve", "-")):
            for (a, b), one in here[here["way"] == way].groupby(["strategy", "strategy_2"], sort=False):
                gone = one.groupby("alpha")["length"].transform("mean")
                look = {"color": _pair_colour(a, b), "linestyle": line, "label": f"{a} to {b}, {way}"}
                panels.band(axes, gone, one["loss"], one["seed"], **look)
    return panels.legend(figure, "outside lower center", 4)


@style.context()
def planes(grid: pd.DataFrame, corners: pd.DataFrame) -> style.Plot:
    """Loss on the plane through the three strategies' models of one seed; the axes are distances of parameters."""
    shows, axis = "loss on the plane through three models", "distance"
    figure, shown = panels.of_cells(grid["cell"], shows, (0.5, 3.6), xlabel=axis, ylabel=axis)
    for cell, axes in shown.items():
        wide = grid[grid["cell"] == cell].pivot_table(index="y", columns="x", values="loss")
        own = corners[corners["cell"] == cell]
        low = float(own["loss"].min())
        levels = low + np.geomspace(0.02, max(0.1, float(wide.to_numpy().max()) - low), 9)
        look = {"levels": [low - 0.05, *levels], "cmap": "cividis_r", "extend": "max"}
        filled = axes.contourf(wide.columns, wide.index, wide, **look)
        axes.contour(wide.columns, wide.index, wide, levels=levels, colors="white", linewidths=0.5)
        for row in own.itertuples():
            name = {"a": row.strategy, "b": row.strategy_2, "c": row.strategy_3}[row.name]
            axes.plot(row.x, row.y, linestyle="", markersize=9, markeredgecolor="white", **style.look(name))
        axes.set_aspect("equal")
        axes.grid(visible=False)
        figure.colorbar(filled, ax=axes, orientation="horizontal", pad=0.02, ticks=levels[::3], format="%.2g")
    return panels.legend(figure, "outside lower center", 4)
