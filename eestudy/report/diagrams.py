"""Drawings of ideas, not of results: a network with exits, and the strategies as phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from eestudy.config import EestudyError
from eestudy.report import style

STAGE = "#ececec"
STREAM = "#56708a"
FROZEN = "#d9d9d9"
STEP = 2.0  # from one stage to the next, in the drawing's own units
TURN = 1.28  # from a stage's left edge to where a part of the stream bends upwards
HEIGHT = 1.0  # of the stream that all samples make together


class PhaseLike(Protocol):
    """The fields of `eestudy.training.phases.Phase` that are drawn."""

    @property
    def name(self) -> str: ...
    @property
    def trains(self) -> tuple[str, ...]: ...
    @property
    def exits(self) -> str | tuple[int, ...]: ...
    @property
    def share(self) -> float: ...


def early_exits(shares: Sequence[float]) -> style.Plot:
    """A backbone of K stages with a head after each; streams as thick as the share of samples in them.

    shares: (K,) share of the samples that leaves at exit k, summing to 1; EestudyError when they do not.
    """
    if len(shares) < 2 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise EestudyError(f"shares: {list(shares)} is not valid; give two or more, none negative, that sum to 1")
    colours = style.depth_colours(len(shares))
    with style.context():
        leaving = ", ".join(f"{100 * share:.0f} %" for share in shares)
        figure = style.Plot(3.1, f"a backbone of {len(shares)} stages; at its exits leave {leaving} of the samples")
        axes = figure.subplots()
        inside = 1.0
        for number, (share, colour) in enumerate(zip(shares, colours, strict=True), 1):
            _stage(axes, number, inside, share, colour, last=number == len(shares))
            inside -= share
        axes.annotate("input", (-0.6, HEIGHT / 2), (-0.72, HEIGHT / 2), ha="right", va="center", color=style.INK)
        axes.set_xlim(-1.35, STEP * len(shares) + 0.15)
        axes.set_ylim(-0.75, 3.45)
        axes.set_aspect("equal")
        axes.set_axis_off()
    return figure


def _stage(axes: Axes, number: int, inside: float, share: float, colour: object, last: bool) -> None:
    """Stage `number`, the stream through it (`inside` of all samples) and what leaves of it upwards."""
    left = STEP * (number - 1)
    _box(axes, left, -0.12, 1.15, HEIGHT + 0.24, STAGE, f"stage {number}", y_text=-0.36)
    width = HEIGHT * share
    turn = left + TURN
    start = left - 0.6 if number == 1 else turn - STEP
    axes.add_patch(Rectangle((start, 0), turn - start, HEIGHT * inside, color=STREAM, alpha=0.55, lw=0))
    bottom, top = HEIGHT * (inside - share), 2.62
    axes.add_patch(Rectangle((turn, bottom), width, top - bottom, facecolor=colour, lw=0))
    tip = [(turn - 0.09, top), (turn + width + 0.09, top), (turn + width / 2, top + 0.24)]
    axes.add_patch(Polygon(tip, facecolor=colour, lw=0))
    middle = turn + width / 2
    name = "classifier" if last else f"head {number}"
    _box(axes, middle - 0.6, 1.62, 1.2, 0.5, "white", name, y_text=1.87)
    axes.text(middle, 2.98, f"exit {number}", ha="center", weight="bold")
    axes.text(middle, 3.26, f"{100 * share:.0f} % leave", ha="center", color=style.INK, fontsize=9)


def _box(axes: Axes, x: float, y: float, width: float, height: float, fill: str, text: str, y_text: float) -> None:
    rounded = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=rounded, facecolor=fill, edgecolor=style.FAINT, lw=0.9)
    )
    axes.text(x + width / 2, y_text, text, ha="center", va="center", fontsize=9)


def strategies(phases: Mapping[str, Sequence[PhaseLike]]) -> style.Plot:
    """A row a strategy, a bar a phase as wide as its share of the epochs; in colour what trains.

    phases: strategy -> its phases, shares summing to 1.
    """
    lines = {"backbone": 0.37, "heads": 0.0}  # part of the network -> where its lane begins
    with style.context():
        text = "; ".join(f"{name}: {', then '.join(p.name for p in row)}" for name, row in phases.items())
        figure = style.Plot(0.55 + 1.02 * len(phases), f"phases of each strategy: {text}")
        axes = figure.subplots()
        for place, (name, row) in enumerate(phases.items()):
            bottom, begin = -1.3 * place, 0.0
            for phase in row:
                axes.text(begin + 0.006, bottom + 0.79, _caption(phase), va="bottom", fontsize=9)
                for part, offset in lines.items():
                    _lane(axes, begin, bottom + offset, phase, part, style.colour(name))
                begin += phase.share
            axes.text(-0.025, bottom + 0.37, name, ha="right", va="center", weight="bold", color=style.colour(name))
        axes.set_xlim(-0.14, 1.005)
        axes.set_ylim(-1.3 * (len(phases) - 1) - 0.08, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        axes.set_xlabel("share of the run's epochs, %")
        axes.set_yticks([])
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_bounds(0, 1)
    return figure


def _caption(phase: PhaseLike) -> str:
    losses = {
        "last": "loss of the last exit",
        "all": "loss of all exits",
        "internal": "loss of the internal exits",
    }
    named = losses[phase.exits] if isinstance(phase.exits, str) else f"loss of exits {phase.exits}"
    return f"{phase.name}: {named}"


def _lane(axes: Axes, begin: float, bottom: float, phase: PhaseLike, part: str, colour: str) -> None:
    """One part of the network during one phase: trains, frozen, or (heads without a loss) not used yet."""
    absent = part == "heads" and phase.exits == "last"
    trains = part in phase.trains
    face, ink = (colour, "white") if trains else ("white" if absent else FROZEN, style.INK)
    verb = "train" if part == "heads" else "trains"
    state = verb if trains else ("not used yet" if absent else "frozen")
    axes.add_patch(
        Rectangle(
            (begin + 0.003, bottom),
            phase.share - 0.006,
            0.34,
            facecolor=face,
            edgecolor=style.FAINT if absent else face,
            linestyle="--" if absent else "-",
            linewidth=0.9,
        )
    )
    axes.text(
        begin + phase.share / 2,
        bottom + 0.165,
        f"{part}: {state}",
        ha="center",
        va="center",
        color=ink,
        fontsize=9,
    )
