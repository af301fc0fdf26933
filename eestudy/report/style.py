"""One look for every figure: palette, markers, matplotlib settings, and bytes that depend on the data alone.

Figures are white cards with dark text. The book's theme puts a light card behind every image on a dark page anyway, and
dark on white keeps its contrast there; transparent figures with grey text had neither page's contrast.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's colours, told apart by readers with any colour vision; each strategy has its marker too. From the
# fourth strategy on the colours are Paul Tol's muted ones.
STRATEGIES = {
    "disjoint": ("#0072B2", "o"), "joint": ("#D55E00", "s"), "mixed": ("#009E73", "D"), "mixed-heads": ("#44AA99", "d"),
    "joint-heads": ("#CC6677", "p"), "alternating": ("#AA4499", "*"), "branch-wise": ("#999933", "<"),
    "separate": ("#882255", ">"), "gradual": ("#332288", "h"), "sequential-lwf": ("#88CCEE", "8"),
    "sequential-ewc": ("#117733", "H"),
}  # fmt: skip
OTHERS = (("#CC79A7", "^"), ("#E69F00", "v"), ("#56B4E9", "P"), ("#000000", "X"))  # strategies added later
INK = "#262626"
FAINT = "#8c8c8c"
WIDTH = 8.0  # inches; one width for all, so that text has one size on a page
DPI = 180  # twice what a page column shows
COLOURS = 64  # of an image, chosen by what is in it: a third of the bytes of all colours

SETTINGS: dict[str, Any] = {
    # This font comes with matplotlib: the same everywhere.
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10,
    "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9,
    "figure.facecolor": "white", "axes.facecolor": "white", "figure.dpi": 100, "savefig.dpi": DPI,
    "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "axes.axisbelow": True,
    "lines.linewidth": 1.8, "lines.markersize": 5.5, "legend.frameon": False,
}  # fmt: skip


class Plot(Figure):
    """A figure that shows itself in a notebook as a PNG, without pyplot; `shows`: in words, for who cannot see it."""

    def __init__(self, height: float, shows: str, dpi: int = DPI) -> None:
        super().__init__(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(self)
        self.shows, self.dots = shows, dpi

    def png(self, dpi: int | None = None) -> bytes:
        """The image, by default twice a page column's pixels, no date in it."""
        with context():
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=dpi or self.dots, metadata={"Software": None})
        small = io.BytesIO()
        few = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(small, format="png", optimize=True)
        return small.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "image/png": self.png()}

    def __repr__(self) -> str:
        return f"Figure: {self.shows}"


@contextmanager
def context() -> Iterator[None]:
    """The settings above and nothing of the user's matplotlibrc; what was set before comes back after. Also a decorator
    of what draws.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def colour(strategy: str) -> str:
    """The colour of a strategy, the same in every figure."""
    return look(strategy)["color"]


def look(strategy: str) -> dict[str, Any]:
    """Colour, marker and label of a strategy's line."""
    shade, marker = STRATEGIES.get(strategy) or OTHERS[sum(strategy.encode()) % len(OTHERS)]
    return {"color": shade, "marker": marker, "label": strategy}


def depth_colours(count: int) -> list[Any]:
    """`count` colours from light (first exit) to dark (last) whose hues tell those in the middle apart."""
    shades = mpl.colormaps["viridis_r"]
    return [shades(0.12 + 0.88 * k / max(count - 1, 1)) for k in range(count)]


def percent_axis(axes: Axes, label: str = "accuracy, %") -> None:
    """Fractions in the data, per cent on the y axis."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    axes.set_ylabel(label)


def flops_unit(largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which `largest` FLOPs read well."""
    for size, name in ((1e9, "GFLOPs"), (1e6, "MFLOPs"), (1e3, "kFLOPs")):
        if largest >= size:
            return size, name
    return 1.0, "FLOPs"
