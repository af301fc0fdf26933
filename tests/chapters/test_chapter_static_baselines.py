"""Plain networks beside early exits: the point of the curve, the pairs, the words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eestudy.chapters import static_baselines
from eestudy.config import EestudyError
from eestudy.records import Record, Records
from eestudy.report import Results

GAINS = (0.10, 0.11, 0.09, 0.10)  # of early exits at the plain network's cost, by seed


def curves(place: tuple[str, str] = ("vit1d", "mnist1d")) -> pd.DataFrame:
    rows = [
        {
            "run": f"{strategy}-{seed}", "architecture": place[0], "dataset": place[1], "strategy": strategy,
            "seed": seed, "budget": budget, "flops": 1000.0 * budget,
            "accuracy": 0.5 + budget * (GAINS[seed] if strategy == "mixed" else 0.0) + 0.01 * seed,
        }
        for strategy in ("joint", "mixed") for seed in range(4) for budget in (0.25, 0.5, 0.75, 1.0)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def plain(flops: float = 600.0) -> pd.DataFrame:
    rows = [
        {"run": f"plain-{seed}", "cell": "vit1d / mnist1d", "name": "width 8", "seed": seed, "flops": flops,
         "accuracy": 0.5 + 0.01 * seed}
        for seed in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_last_point_within_the_cost_is_paired_by_seed():
    frame = static_baselines.at_equal_cost(curves(), plain()).set_index("strategy")
    assert frame.loc["mixed", "mean"] == pytest.approx(0.5 * np.mean(GAINS))  # the point at 500 of 600 FLOPs
    assert frame.loc["mixed", "decision"] == "better"
    assert frame.loc["joint", "mean"] == pytest.approx(0)
    assert frame.loc["joint", "decision"] == ""
    assert list(frame["n"]) == [4, 4]
    assert frame["spent"].tolist() == pytest.approx([500 / 600] * 2)
    assert repr(static_baselines.equal_cost_table(frame.reset_index(), {"vit1d / mnist1d": 1000.0})).count("(83%)") == 2


def test_a_cost_that_is_met_exactly_counts_and_one_below_the_curve_is_a_dash():
    exact = static_baselines.at_equal_cost(curves(), plain(750.0)).set_index("strategy")
    assert exact.loc["mixed", "mean"] == pytest.approx(0.75 * np.mean(GAINS))
    below = static_baselines.at_equal_cost(curves(), plain(100.0))
    assert below["mean"].isna().all()
    text = repr(static_baselines.equal_cost_table(below, {"vit1d / mnist1d": 1000.0}))
    assert text.count("–") == 2
    assert "10 %" in text


def test_the_correction_is_over_the_whole_table():
    noisy = curves()
    noisy.loc[noisy["strategy"] == "mixed", "accuracy"] += 0.03 * (noisy["seed"] % 2)
    alone = static_baselines.at_equal_cost(noisy[noisy["strategy"] == "mixed"], plain())
    many = pd.concat([plain(), *(plain(600 + 10 * n).assign(name=f"depth {n}") for n in range(9))])
    together = static_baselines.at_equal_cost(noisy[noisy["strategy"] == "mixed"], many)
    first = together[together["name"] == "width 8"]
    assert first["p_holm"].item() > 3 * alone["p_holm"].item()


def test_the_words_say_who_is_better():
    worse = plain().assign(accuracy=lambda frame: frame["accuracy"] + 0.2)
    found = static_baselines.at_equal_cost(curves(), worse)
    lost = (found["decision"] == "worse").sum()
    assert lost
    assert (
        f"Of {len(found)} comparisons at equal cost, a smaller plain network wins {lost}"
        in static_baselines.in_short(found)
    )


def test_studies_without_a_common_cell_are_told():
    with pytest.raises(EestudyError, match="no architecture and data set in common"):
        static_baselines.at_equal_cost(curves(("mlp", "digits")), plain())


def test_curves_are_read_at_the_explorer_s_steps_where_it_has_them(results: Results, folder: Path) -> None:
    run = results.runs.iloc[0]
    rows = [
        {"run": run["run"], "allocation": method, "cost": 0.5, "accuracy": 0.7} for method in ("geometric", "shared")
    ]
    Records(folder).add(Record("evaluation", "explorer-1", {}, {"explorer": pd.DataFrame(rows)}))
    (row,) = static_baselines.finest_curves(results, "calibrated", "max-probability").to_dict("records")
    assert (row["allocation"], row["flops"]) == ("geometric", 0.5 * run["backbone_flops"])
    with pytest.raises(EestudyError, match="rule: unknown name 'entropy'"):  # the trade-off curves were asked
        static_baselines.finest_curves(results, "calibrated", "entropy")


def test_a_network_is_named_by_what_makes_it_smaller(results):
    frame = static_baselines.plain_networks(results)
    assert set(frame["name"]) == {"whole"}
    assert set(frame["run"]) == set(results.runs["run"])
    run = results.runs["run"].iloc[0]
    last = results.exits[results.exits["run"] == run].sort_values("exit").iloc[-1]
    assert frame.set_index("run").loc[run, "accuracy"] == last["accuracy"]


def test_the_figure_has_a_cross_for_each_network_and_a_line_for_each_strategy():
    figure = static_baselines.plot(curves(), plain(), {"vit1d / mnist1d": 1000.0})
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels.count("plain network") == 1
    assert {"joint", "mixed"} <= set(labels)
    assert [text.get_text() for text in axes.texts] == ["width 8"]


TIMES = {
    "vit1d / mnist1d": {
        "plain": {"width 8": {"1": 2.0, "256": 0.5}},
        "early": {"mixed": {"0.25": {"1": 1.0, "256": 0.2}, "0.3": {"1": 1.5, "256": 0.3}}},
    }
}


def test_on_the_clock_reads_the_curve_at_the_timed_budgets():
    frame = static_baselines.on_the_clock(curves(), plain(), TIMES, 256)
    assert list(frame["name"]) == ["width 8", "25 %"]  # the curve has no point at 30 %
    early = frame[frame["kind"] == "mixed"].iloc[0]
    assert early["ms"] == 0.2
    assert early["accuracy"] == pytest.approx(0.5 + 0.25 * np.mean(GAINS) + 0.015)
    (line,) = static_baselines.clock_findings(frame)
    assert "for 1 of 1 plain networks some early-exit point is as fast and as accurate" in line
    better = frame.assign(accuracy=frame["accuracy"] + (frame["kind"] == "plain") * 0.5)
    assert "not for width 8" in static_baselines.clock_findings(better)[0]
    figure = static_baselines.clock_plot({1: frame, 256: frame})
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "vit1d / mnist1d\nbatch 1",
        "\nbatch 256",
    ]
