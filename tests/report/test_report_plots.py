"""Figures: same data, same bytes; what is drawn is what the frames say; nothing left behind."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from eestudy.registry import STRATEGIES
from eestudy.report import Results, plots, style


def named(axes: Axes, label: str) -> Line2D:
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return line


def one(frame: pd.DataFrame, strategy: str | None = None) -> pd.DataFrame:
    frame = frame[frame["architecture"] == "vit1d"]
    return frame if strategy is None else frame[frame["strategy"] == strategy]


SAMPLES = pd.DataFrame({"sample": range(6), "exit_index": [1, 1, 2, 3, 3, 3], "difficulty": [0, 0, 0.2, 0.5, 0.9, 1.0]})
FIGURES: dict[str, Callable[[Results], style.Plot]] = {
    "training curves": lambda r: plots.training_curves(one(r.history, "mixed")),
    "exit grid": lambda r: plots.exit_grid(r.exits),
    "trade-off": lambda r: plots.tradeoff(one(r.tradeoff), one(r.exits), 2.4e6),
    "trade-off grid": lambda r: plots.tradeoff_grid(r.tradeoff, r.runs),
    "flops": lambda r: plots.flops_by_exit(one(r.exits, "joint"), np.full(6, 1e4)),
    "where samples exit": lambda r: plots.where_samples_exit(SAMPLES, 3),
}


@pytest.mark.parametrize("name", FIGURES)
def test_same_bytes_under_any_matplotlibrc_which_is_left_alone(name: str, results: Results) -> None:
    before = {key: mpl.rcParams[key] for key in mpl.rcParams if key != "backend"}
    plain = FIGURES[name](results).png(40)
    assert {key: mpl.rcParams[key] for key in before} == before
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "pink", "lines.linewidth": 9}):
        assert FIGURES[name](results).png(40) == plain


@pytest.mark.parametrize("name", FIGURES)
def test_text_is_readable(name: str, results: Results) -> None:
    figure = FIGURES[name](results)
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(mpl.text.Text) if t.get_text().strip() and t.get_visible()]
    assert texts
    assert min(t.get_fontsize() for t in texts) >= 9


def test_notebook_shows_png_and_a_stable_text(results: Results) -> None:
    bundle = FIGURES["flops"](results)._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle["text/plain"] == "Figure: FLOPs by exit, 6 exits"


def test_strategies_differ_in_colour_and_marker() -> None:
    assert len({style.colour(s) for s in STRATEGIES}) == len(STRATEGIES)
    assert len({style.look(s)["marker"] for s in STRATEGIES}) == len(STRATEGIES)
    assert style.colour("mixed") == "#009E73"
    assert style.colour("a-later-one") == style.colour("a-later-one")


def test_the_grid_draws_the_means(results: Results) -> None:
    exits = one(results.exits, "mixed")
    (axes,) = plots.exit_grid(exits).axes
    assert axes.lines[0].get_ydata() == pytest.approx(exits.groupby("exit")["accuracy"].mean())


def test_tradeoff_draws_means_band_and_backbone(results: Results) -> None:
    rows, exits = one(results.tradeoff, "joint"), one(results.exits, "joint")
    (axes,) = plots.tradeoff(rows, exits, 2.4e6).axes
    line, markers, backbone = (named(axes, name) for name in ("joint", "joint, one exit", "plain backbone"))
    reached = rows.dropna(subset="accuracy").groupby("budget")
    assert line.get_ydata() == pytest.approx(reached["accuracy"].mean())
    assert line.get_xdata() == pytest.approx(reached["flops"].mean() / 1e6)
    assert markers.get_xdata() == pytest.approx(exits.groupby("exit")["flops"].mean() / 1e6)
    assert set(backbone.get_xdata()) == {2.4}
    assert "MFLOPs a sample" in axes.get_xlabel()
    low, high = np.array(axes.collections[0].get_paths()[0].vertices[:, 1]).min(), max(line.get_ydata())
    assert low < min(line.get_ydata()) <= high


def test_a_budget_that_one_seed_misses_is_not_drawn(results: Results) -> None:
    rows = one(results.tradeoff, "joint").copy()
    last = rows["budget"].max()
    rows.loc[(rows["budget"] == last) & (rows["seed"] == 0), "accuracy"] = np.nan
    line = named(plots.tradeoff(rows, one(results.exits, "joint"), 2.4e6).axes[0], "joint")
    assert len(line.get_xdata()) == rows.dropna(subset="accuracy")["budget"].nunique() - 1


def test_flops_are_stacked_to_the_cost_of_the_exit(results: Results) -> None:
    exits = one(results.exits, "mixed")
    (axes,) = plots.flops_by_exit(exits, np.arange(6) * 1e4).axes
    widths = np.array([[bar.get_width() for bar in bars] for bars in axes.containers])
    assert widths.sum(axis=0) == pytest.approx(exits.drop_duplicates("exit")["flops"] / 1e6)
    assert widths[1] == pytest.approx(np.cumsum(np.arange(6) * 0.01))


def test_samples_are_counted_by_exit_and_difficulty() -> None:
    left, right = plots.where_samples_exit(SAMPLES, 3).axes
    assert [bar.get_height() for bar in left.patches] == pytest.approx([2 / 6, 1 / 6, 3 / 6])
    heights = np.array([[bar.get_height() for bar in bars] for bars in right.containers])  # exit x bin
    assert heights[0] == pytest.approx([1, 0, 0, 0, 0])
    assert heights[2] == pytest.approx([0, 0, 1, 0, 1])


def test_one_seed_and_equal_seeds_draw_without_warnings() -> None:
    import synthetic_study

    one_seed = Results("x", None, synthetic_study.frames(seeds=1))
    for make in FIGURES.values():
        assert make(one_seed).png(40)
