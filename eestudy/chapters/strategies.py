"""A drawing of the strategies as phases: what trains when, by whose loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from eestudy.report import style
from eestudy.report.tables import Table, table

FROZEN = "#d9d9d9"


@style.context()
def drawing(phases: Mapping[str, Sequence[Any]]) -> style.Plot:
    """A row a strategy, a bar a phase as wide as its share of the epochs; in colour what trains.

    phases: strategy -> its phases (`training.phases.Phase`), shares summing to 1.
    """
    lines = {"backbone": 0.37, "heads": 0.0}  # part of the network -> where its lane begins
    text = "; ".join(f"{name}: {', then '.join(p.name for p in row)}" for name, row in phases.items())
    figure = style.Plot(0.55 + 1.02 * len(phases), f"phases of each strategy: {text}")
    axes = figure.subplots()
    for number, (name, row) in enumerate(phases.items()):
        bottom, begin = -1.3 * number, 0.0
        for phase in row:
            axes.text(begin + 0.006, bottom + 0.79, _caption(phase), va="bottom", fontsize=9)
            for part, offset in lines.items():
                _lane(axes, begin, bottom + offset, phase, part, style.colour(name))
            begin += phase.share
        axes.text(-0.025, bottom + 0.37, name, ha="right", va="center", weight="bold", color=style.colour(name))
    axes.set(xlim=(-0.14, 1.005), ylim=(-1.3 * (len(phases) - 1) - 0.08, 1.12), yticks=[])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axes.set_xlabel("share of the run's epochs, %")
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_bounds(0, 1)
    return figure


def phase_table(phases: Mapping[str, Sequence[Any]]) -> Table:
    """Rows strategy x step: the phase, what learns, from which exits' loss, for which share of the epochs."""
    rows = {
        (name, number): {
            "phase": phase.name, "learns": " and ".join(phase.trains),
            "loss of exits": phase.exits if isinstance(phase.exits, str) else ", ".join(map(str, phase.exits)),
            "share of epochs": f"{100 * phase.share:.0f} %",
        }
        for name, row in phases.items() for number, phase in enumerate(row, 1)
    }  # fmt: skip
    made = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["strategy", "step"])
    return table(made, "What each phase trains.", "phases")


def _caption(phase: Any) -> str:
    losses = {"last": "loss of the last exit", "all": "loss of all exits", "internal": "loss of the internal exits"}
    named = losses[phase.exits] if isinstance(phase.exits, str) else f"loss of exits {phase.exits}"
    return f"{phase.name}: {named}"


def _lane(axes: Axes, begin: float, bottom: float, phase: Any, part: str, colour: str) -> None:
    """One part of the network during one phase: trains, frozen, or (heads without a loss) not used yet."""
    absent = part == "heads" and phase.exits == "last"
    trains = part in phase.trains
    face, ink = (colour, "white") if trains else ("white" if absent else FROZEN, style.INK)
    verb = "train" if part == "heads" else "trains"
    state = verb if trains else ("not used yet" if absent else "frozen")
    look = {"facecolor": face, "edgecolor": style.FAINT if absent else face, "linestyle": "--" if absent else "-"}
    axes.add_patch(Rectangle((begin + 0.003, bottom), phase.share - 0.006, 0.34, linewidth=0.9, **look))
    middle = begin + phase.share / 2, bottom + 0.165
    axes.text(*middle, f"{part}: {state}", ha="center", va="center", color=ink, fontsize=9)
