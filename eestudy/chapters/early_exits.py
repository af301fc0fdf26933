"""A drawing of the idea: a network with exits, and where samples leave it."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from eestudy.config import EestudyError
from eestudy.report import style

STAGE = "#ececec"
STREAM = "#56708a"
STEP = 2.0  # from one stage to the next, in the drawing's own units
TURN = 1.28  # from a stage's left edge to where a part of the stream bends upwards
HEIGHT = 1.0  # of the stream that all samples make together


@style.context()
def early_exits(shares: Sequence[float]) -> style.Plot:
    """A backbone of K stages with a head after each; streams as thick as the share of samples in them.

    shares: (K,) share of the samples that leaves at exit k, summing to 1; EestudyError when they do not.
    """
    if len(shares) < 2 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise EestudyError(f"shares: {list(shares)} is not valid; give two or more, none negative, that sum to 1")
    colours = style.depth_colours(len(shares))
    leaving = ", ".join(f"{100 * share:.0f} %" for share in shares)
    figure = style.Plot(3.1, f"a backbone of {len(shares)} stages; at its exits leave {leaving} of the samples")
    axes = figure.subplots()
    inside = 1.0
    for number, (share, colour) in enumerate(zip(shares, colours, strict=True), 1):
        _stage(axes, number, inside, share, colour, last=number == len(shares))
        inside -= share
    axes.annotate("input", (-0.6, HEIGHT / 2), (-0.72, HEIGHT / 2), ha="right", va="center", color=style.INK)
    axes.set(xlim=(-1.35, STEP * len(shares) + 0.15), ylim=(-0.75, 3.45), aspect="equal")
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
    look = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": fill, "edgecolor": style.FAINT, "lw": 0.9}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **look))
    axes.text(x + width / 2, y_text, text, ha="center", va="center", fontsize=9)
