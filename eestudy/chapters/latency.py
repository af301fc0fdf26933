"""What benchmarks/latency.py measured: early exits on the clock beside FLOPs, and where the time goes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from eestudy.config import check_name
from eestudy.report import panels, style
from eestudy.report.benchmarks import Measured, machine
from eestudy.report.tables import DASH, Table, table

AIMS = {1: 0.8, 256: 0.9}  # batch size -> share of the FLOPs speed-up that the clock is to show
MARKERS = {1: "v", 32: "s", 256: "o"}
PARTS = {"stages": "stages", "heads": "heads", "rule": "exit rule", "rest": "dropping who leaves, and Python"}
P95_CALLS = 20  # below, the 95th percentile is hardly more than the slowest call
DISTURBED = 0.05  # share of the cores that other programs used, above which times say little


def rows(measured: Measured) -> pd.DataFrame:
    """One row per network, batch size, strategy and budget, as `evaluation.latency` gives them, and:

    ratio: speed-up on the clock over that in FLOPs; the product of the next two. attainable: the speed-up on the clock
    if only the stages took time, each what it takes in the plain backbone. stages: attainable over what the same stages
    alone save in FLOPs; below 1 early stages take more time for their FLOPs than late ones. rest: what heads, rule and
    dropping leave of it, the heads' FLOPs, which `flops_speedup` counts, taken into account. own: speedup over
    attainable; above 1 the measurement contradicts itself, for nothing is faster than its stages alone.
    """
    frames = []
    for name, found in measured.items():
        frame = pd.DataFrame(found["rows"])
        stage_ms = {part["batch_size"]: part["stage_ms"] for part in found["parts"]}
        taken = list(zip(frame["batch_size"], frame["taken"], strict=True))
        clock = np.array([_saved(found, stage_ms[size], shares) for size, shares in taken])
        flops = np.array([_saved(found, found["stage_flops"], shares) for _, shares in taken])
        frames.append(frame.assign(network=name, trained=found["trained"], attainable=clock, stages=clock / flops))
    whole = pd.concat(frames, ignore_index=True)
    ratio = whole["speedup"] / whole["flops_speedup"]
    return whole.assign(ratio=ratio, rest=ratio / whole["stages"], own=whole["speedup"] / whole["attainable"])


def _saved(found: Measured, by_stage: list[float], taken: list[float]) -> float:
    """What all stages of the plain backbone cost over what those cost that are run, with the classifier.

    by_stage: milliseconds or FLOPs of each stage, the classifier's last; taken (K,): shares that leave at each exit.
    """
    spent = np.cumsum(by_stage)
    until_exit = np.append(spent[np.array(found["exit_stages"]) - 1], spent[-1])
    return float(spent[-1] / np.dot(taken, until_exit))


def hardware(measured: Measured) -> str:
    """Machine, threads and date, and how quiet it was, in words."""
    machines = [found["hardware"] for found in measured.values()]
    sentences = {f"{machine(facts)[:-1]}; {facts['threads']} threads." for facts in machines}
    worst = {name: max(found["others"].values()) for name, found in measured.items()}
    noisy = [f"{name} ({share:.0%})" for name, share in worst.items() if share > DISTURBED]
    quiet = f"Other programs used at most {max(worst.values()):.0%} of the cores meanwhile."
    if noisy:
        quiet = f"**Other programs used the cores while these were timed: {', '.join(noisy)}.** Their times are not "
        quiet += "those of a quiet machine; `python benchmarks/latency.py` measures again."
    return " ".join([*sorted(sentences), quiet])


def sources(measured: Measured) -> str:
    """Which network left by its own thresholds, and which as another one did, as a list."""
    lines = []
    for name, found in measured.items():
        of = found["source"].replace(", ", " on ")
        how = f"trained ({of}); its own thresholds, on test images" if found["trained"] else (
            f"**not trained**; leaves as {of} did, mean over its seeds"
        )  # fmt: skip
        share = found["head_flops"] / found["backbone_flops"]
        lines.append(f"- {name}: {found['exits']} exits, heads {share:.1%} of the backbone's FLOPs; {how}")
    return "\n".join(lines)


@style.context()
def figure(frame: pd.DataFrame) -> style.Plot:
    """Speed-up on the clock against FLOPs: a panel a network, a colour a strategy, a marker a batch size."""
    text = "speed-up on the clock against speed-up in FLOPs, with lines at equal, 0.9 and 0.8 of it"
    look: dict = {"ylabel": "on the clock, times", "sharex": True, "sharey": True}
    plot, shown = panels.of_cells(frame["network"], text, (0.6, 2.9), **look)
    for name, panel in shown.items():
        _panel(panel, frame[frame["network"] == name], float(frame["flops_speedup"].max()))
        if panel.get_subplotspec().is_last_row():
            panel.set_xlabel("in FLOPs, times")
    keys = [(s, style.colour(s), "o") for s in frame["strategy"].unique()]
    keys += [(f"batch {n}", style.INK, MARKERS.get(n, "x")) for n in sorted(frame["batch_size"].unique())]
    handles = [Line2D([], [], color=shade, marker=mark, linestyle="", label=name) for name, shade, mark in keys]
    plot.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return plot


def _panel(panel: Axes, frame: pd.DataFrame, most: float) -> None:
    ends = np.array([1.0, 1.08 * most])
    for share, line in ((1.0, "-"), (0.9, "--"), (0.8, ":")):
        panel.plot(ends, share * ends, color=style.FAINT, linewidth=1.0, linestyle=line)
        panel.annotate(f"{share:g}", (ends[1], share * ends[1]), fontsize=7.5, color=style.FAINT, va="center",
                       xytext=(2, 0), textcoords="offset points", annotation_clip=False)  # fmt: skip
    for row in frame.itertuples():
        look = {"marker": MARKERS.get(row.batch_size, "x"), "color": style.colour(row.strategy), "alpha": 0.85}
        panel.plot(row.flops_speedup, row.speedup, markersize=5, **look)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(FixedLocator([1, 2, 3, 4, 5]))
        axis.set_minor_locator(NullLocator())


def aims_table(frame: pd.DataFrame) -> Table:
    """The share of the FLOPs speed-up seen on the clock by network and batch size, beside AIMS."""
    shown = []
    for (name, size), group in frame.groupby(["network", "batch_size"], sort=False):
        ratio, aim = group["ratio"], AIMS.get(size)
        shown.append({
            "network": name, "batch": size, "clock over FLOPs": f"{ratio.median():.2f}",
            "least and most": f"{ratio.min():.2f} to {ratio.max():.2f}",
            "stages": f"{group['stages'].median():.2f}", "the rest": f"{group['rest'].median():.2f}",
            "aim": "none" if aim is None else f"{aim:g}",
            "reached by": f"{int((ratio >= (aim or 0)).sum())} of {len(ratio)}" if aim else "",
        })  # fmt: skip
    caption = (
        "Speed-up on the clock over speed-up in FLOPs: median, least and most over strategies and budgets; then the "
        "medians of its two factors."
    )
    return table(pd.DataFrame(shown).set_index(["network", "batch"]), caption, "latency-aims")


def times_table(frame: pd.DataFrame, strategy: str, budget: int) -> Table:
    """Milliseconds of a batch, plain and with exits, at one strategy and budget."""
    check_name("strategy", strategy, list(frame["strategy"].unique()))
    check_name("budget", str(budget), [str(each) for each in frame["budget"].unique()])
    chosen = frame[(frame["strategy"] == strategy) & (frame["budget"] == budget)]
    columns = {
        "plain, median ms": ("plain_median_ms", "{:.1f}"), "p95": ("plain_p95_ms", "{:.1f}"),
        "exits, median ms": ("median_ms", "{:.1f}"), "p95 ": ("p95_ms", "{:.1f}"), "calls": ("calls", "{}"),
        "samples/s": ("samples_per_s", "{:.0f}"), "speed-up": ("speedup", "{:.2f}"),
        "in FLOPs": ("flops_speedup", "{:.2f}"),
    }  # fmt: skip
    shown = pd.DataFrame({name: chosen[column].map(form.format) for name, (column, form) in columns.items()})
    shown.loc[chosen["calls"] < P95_CALLS, ["p95", "p95 "]] = DASH
    shown.index = pd.MultiIndex.from_frame(chosen[["network", "batch_size"]], names=["network", "batch"])
    caption = (
        f"Time of one batch, {strategy} at {budget} % of the backbone's FLOPs; p95 over the calls, {DASH} where they "
        f"are fewer than {P95_CALLS}."
    )
    return table(shown, caption, "latency-times")


def parts_table(measured: Measured) -> Table:
    """Where the time of `predict` goes."""
    shown = []
    for name, found in measured.items():
        for part in found["parts"]:
            whole = sum(part[key] for key in PARTS)
            shares = {words: f"{part[key] / whole:.0%}" for key, words in PARTS.items()}
            shown.append({"network": name, "batch": part["batch_size"], "ms": f"{whole:.1f}", **shares})
    first = next(iter(measured.values()))["parts"][0]
    caption = f"Where the time of one batch goes, {first['strategy']} at a budget of {first['budget']} %."
    return table(pd.DataFrame(shown).set_index(["network", "batch"]), caption, "latency-parts")


def in_short(frame: pd.DataFrame) -> str:
    """The share of the FLOPs speed-up that the clock shows, by batch size, and how many networks reach the aim."""
    parts = []
    for size, aim in AIMS.items():
        ratios = frame[frame["batch_size"] == size].groupby("network")["ratio"].median()
        told = f"{ratios.min():.2f} to {ratios.max():.2f} at a batch of {size}"
        parts.append(f"{told} (at least {aim:g} for {(ratios >= aim).sum()} of {len(ratios)} networks)")
    return f"**In short.** Of the speed-up in FLOPs the clock shows, in the median, {' and '.join(parts)}."
