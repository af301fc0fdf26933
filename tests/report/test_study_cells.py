"""The study's analysis: worked examples, verdicts on frames made by hand, and their errors by simulation."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eestudy.chapters import answer
from eestudy.report import over_cells, study_cells
from eestudy.report import statistics as st
from eestudy.report.study_cells import CELLS, LAST, PRIMARY, TRAININGS

BASE = {"joint E": 0.0, "joint 2E": 0.0, "disjoint": 0.0, "mixed": 0.0, "plain 2E": 0.0}


def frame(
    gains: dict[tuple[str, str], float], cells: int = 10, seeds: int = 8, noise: float = 0.004, between: float = 0.0,
    draw: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """As `studied` gives it: gains by training and budget, noise over seeds, and between cells, normal."""
    generator = np.random.default_rng(draw)
    rows = []
    for cell in CELLS[:cells]:
        common = 0.8 + 0.02 * generator.standard_normal(seeds)  # what seeds are paired by
        for training in TRAININGS:
            own = between * generator.standard_normal()
            for budget in (*PRIMARY, "50", LAST):
                values = common + gains.get((training, budget), 0.0) + own + noise * generator.standard_normal(seeds)
                named = {
                    "cell": cell.label,
                    "data": cell.data,
                    "size": cell.size,
                    "training": training,
                    "budget": budget,
                }
                rows += [{**named, "seed": seed, "accuracy": value} for seed, value in enumerate(values)]
    return pd.DataFrame(rows)


def analysed(*args: object, **settings: object) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = study_cells.differences(frame(*args, **settings))  # type: ignore[arg-type]
    return found, study_cells.means(found)


def gaining(training: str, gain: float) -> dict[tuple[str, str], float]:
    return dict.fromkeys(((training, budget) for budget in (*PRIMARY, "50", LAST)), gain)


def test_over_cells_solves_its_equations():
    """Paule and Mandel: the weighted sum of squares is k - 1. Hartung and Knapp: the mean's variance from it."""
    effects, within = np.array([0.10, 0.30, 0.35, 0.65, 0.45, 0.15]), np.array([0.03, 0.03, 0.05, 0.01, 0.05, 0.02])
    found = st.over_cells(effects, within)
    weights = 1 / (within + found.tau**2)
    mean = (weights * effects).sum() / weights.sum()
    assert found.mean == pytest.approx(mean)
    assert (weights * (effects - mean) ** 2).sum() == pytest.approx(5, rel=1e-4)
    error = math.sqrt((weights * (effects - mean) ** 2).sum() / 5 / weights.sum())
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 5) * error, rel=1e-4)
    assert found.highest - found.mean == pytest.approx(stats.t.ppf(0.975, 4) * math.hypot(found.tau, error), rel=1e-4)
    assert found.p == pytest.approx(2 * stats.t.sf(mean / error, 5), rel=1e-4)


def test_over_cells_of_a_published_example():
    """Thirteen trials of BCG vaccine (Colditz et al. 1994): tau^2 = 0.318, as metafor's rma(method = "PM") gives it."""
    trials = np.array([
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
        (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232),
        (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
    ], dtype=float)  # fmt: skip
    ill, well, ill_without, well_without = trials.T
    effects = np.log(ill / (ill + well)) - np.log(ill_without / (ill_without + well_without))
    within = 1 / ill - 1 / (ill + well) + 1 / ill_without - 1 / (ill_without + well_without)
    found = st.over_cells(effects, within)
    assert found.tau**2 == pytest.approx(0.318, abs=0.001)
    assert found.mean == pytest.approx(-0.715, abs=0.001)


@pytest.mark.parametrize(
    ("effects", "n", "note"),
    [([], 0, "no cell"), ([0.1], 1, "one cell"), ([0.1, math.nan], 1, "one cell"), ([0.1, 0.2], 2, "")],
)
def test_too_few_cells(effects, n, note):
    found = st.over_cells(effects, [0.01] * len(effects))
    assert found.n == n
    assert note in found.note
    assert math.isnan(found.low) == (n < 2)
    assert math.isnan(found.lowest)  # needs three


def test_the_factor_is_at_least_one():
    """Equal effects would else give an interval of no width."""
    found = st.over_cells([0.1, 0.1, 0.1], [0.01, 0.01, 0.01])
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(0.01 / 3))


def test_equivalence_by_hand():
    d = np.array([0.001, -0.002, 0.002, 0.0, -0.001, 0.003])
    error = d.std(ddof=1) / math.sqrt(6)
    for margin, p in zip(st.MARGINS, st.mean_difference(d).p_equal, strict=True):
        upper, lower = stats.t.cdf((d.mean() - margin) / error, 5), stats.t.sf((d.mean() + margin) / error, 5)
        assert p == pytest.approx(max(upper, lower))


def test_words_of_cells():
    found, means = analysed(gaining("mixed", 0.02))
    here = found[(found["question"] == "Q1") & (found["budget"] == "25")]
    assert set(here[here["pair"] == "mixed − disjoint"]["decision"]) == {"better"}
    words = [st.word(row) for row in here[here["pair"] == "joint E − disjoint"].itertuples()]
    assert sum(word.startswith("equivalent within") for word in words) >= 5
    row = means[(means["pair"] == "mixed − disjoint") & (means["budget"] == "25")].iloc[0]
    assert (row["better"], row["worse"], row["n"]) == (10, 0, 10)
    pair = here[here["pair"] == "mixed − disjoint"]
    by_hand = st.over_cells(pair["mean"], [(sd / math.sqrt(n)) ** 2 for sd, n in zip(pair["sd"], pair["n"])])
    assert (row["mean"], row["low"], row["highest"]) == pytest.approx((by_hand.mean, by_hand.low, by_hand.highest))


def test_corrected_limits_are_bonferronis():
    found, _ = analysed({}, cells=4)
    row = found.iloc[0]
    half = stats.t.ppf(1 - 0.05 / 2 / 4, row["n"] - 1) * row["sd"] / math.sqrt(row["n"])
    assert row["high_corrected"] - row["mean"] == pytest.approx(half)
    assert row["low_corrected"] < row["low"]


def test_families_of_the_means():
    _, means = analysed({})
    q1, q2 = (means[means["question"] == question] for question in ("Q1", "Q2"))
    assert (len(q1), q1["p_holm"].notna().sum()) == (6, 6)
    assert (len(q2), q2["p_holm"].notna().sum()) == (6, 4)
    assert list(st.holm(q1["p"])) == pytest.approx(list(q1["p_holm"]))


def test_a_budget_out_of_reach_is_absent():
    rows = frame({})
    out = (rows["cell"] == CELLS[0].label) & (rows["training"] == "joint E") & (rows["budget"] == "25")
    rows.loc[out, "accuracy"] = np.nan
    found = study_cells.differences(rows)
    at = found[(found["pair"] == "mixed − joint E") & (found["budget"] == "25")]
    assert CELLS[0].label not in set(at["cell"])
    assert len(at) == 9


AHEAD_LATE = {("disjoint", "25"): -0.03, ("disjoint", "100"): 0.01, ("mixed", "25"): 0.02, ("mixed", "100"): 0.03}


@pytest.mark.parametrize(
    ("gains", "c1", "c2"),
    [
        (AHEAD_LATE, "supported", "supported"),
        ({("disjoint", "25"): 0.03, ("disjoint", "100"): -0.01}, "not supported", "contradicted"),
        ({}, "not supported", "not supported"),
        (gaining("mixed", -0.02), "not supported", "contradicted"),
    ],
)
def test_verdicts(gains, c1, c2):
    found, means = analysed(gains)
    for question in ("Q1", "Q2"):
        assert study_cells.c1(means, question) == c1
        assert study_cells.c2(means, found, question) == c2


def test_one_cell_far_behind_is_no_support():
    rows = frame(gaining("mixed", 0.03), noise=0.002)
    behind = (rows["cell"] == CELLS[3].label) & (rows["training"] == "mixed")
    rows.loc[behind, "accuracy"] -= 0.05
    found = study_cells.differences(rows)
    assert study_cells.c2(study_cells.means(found), found, "Q1") == "mixed evidence"


def test_each_data_set_left_out():
    rows = frame({})
    rows.loc[(rows["data"] == "MNIST-1D") & (rows["training"] == "mixed"), "accuracy"] += 0.05
    left = study_cells.without_each(study_cells.differences(rows))
    at = left[(left["pair"] == "mixed − joint E") & (left["budget"] == "25")].set_index("without")["mean"]
    assert at["MNIST-1D"] == pytest.approx(0, abs=0.005)
    assert at["Fashion-MNIST"] > 0.03


def test_coverage_over_cells():
    """The mean's interval and the prediction interval hold what they promise, of 10 cells with 6 to 12 seeds."""
    generator, truth, tau, draws = np.random.default_rng(0), 0.01, 0.01, 600
    held = ahead = 0
    for _ in range(draws):
        seeds = generator.integers(6, 13, 10)
        sd = 0.008 * np.sqrt(generator.chisquare(seeds - 1) / (seeds - 1))
        means = truth + tau * generator.standard_normal(10) + 0.008 / np.sqrt(seeds) * generator.standard_normal(10)
        found = st.over_cells(means, sd**2 / seeds)
        held += found.low < truth < found.high
        ahead += found.lowest < truth + tau * generator.standard_normal() < found.highest
    assert 0.92 < held / draws < 0.98
    assert 0.91 < ahead / draws < 0.98


_SPEC = importlib.util.spec_from_file_location("verdicts", Path(__file__).parents[2] / "benchmarks" / "verdicts.py")
assert _SPEC
assert _SPEC.loader
verdicts_of = importlib.util.module_from_spec(_SPEC)


def shares(gain: float, between: float, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")  # it imports its neighbours
    assert _SPEC
    assert _SPEC.loader
    _SPEC.loader.exec_module(verdicts_of)
    return verdicts_of.shares(gain, between, 150)["C2"]


def test_verdicts_when_nothing_differs(monkeypatch):
    """C2 is hardly ever supported; in 13 % of draws one of four means has its whole interval below 0 by chance."""
    found = shares(0.0, 0.005, monkeypatch)
    assert found.get("supported", 0) <= 0.02
    assert found.get("contradicted", 0) <= 0.2


def test_power_at_one_point(monkeypatch):
    """Mixed a point ahead of both, true differences between cells of half a point."""
    assert shares(0.01, 0.005, monkeypatch)["supported"] >= 0.7


def test_the_chapter_says_what_the_frames_say():
    rows = frame(AHEAD_LATE | {("mixed", "50"): 0.02}, cells=4)
    found = study_cells.differences(rows)
    means = study_cells.means(found)
    text = answer.in_short(means, rows)
    ahead = means[(means["pair"] == "mixed − joint 2E") & (means["budget"] == "25")]["mean"].item()
    assert f"at 25 % of the backbone's FLOPs {st.points(ahead)} [" in text.splitlines()[0]
    assert "better in 4" in text.splitlines()[0]
    assert "4 of 10 planned cells are in, so these are intervals and no verdicts yet" in text
    assert "99 % of its accuracy in 4 of 4 cells" in text
    assert answer.verdicts(means, found).startswith("No verdict")
    every, over = analysed(AHEAD_LATE)
    assert answer.verdicts(over, every).splitlines()[0] == "- Q1: C1 supported, C2 supported."
    assert len(answer.plot(found, means).axes) == 2
    assert answer.means_table(means).data.shape == (7, 3)
    assert answer.cells_table(found).data.shape == (4 * 6, 3)
    assert "new cell" in over_cells.in_words(next(over.itertuples()))


def test_the_committed_cells():
    """Cells are complete or left out; those that are in have all trainings and seeds."""
    rows = study_cells.studied()
    assert set(rows["training"]) == set(TRAININGS)
    for cell in CELLS:
        here = rows[rows["cell"] == cell.label]
        assert here.empty or here["seed"].nunique() == cell.seeds
    assert rows["accuracy"].between(0, 1).all()
    assert list(answer.progress().data["state"]).count("in") == rows["cell"].nunique() >= 3


def test_a_cell_that_lacks_a_seed_is_left_out():
    cell = next(cell for cell in CELLS if study_cells.trained(cell) is not None)
    assert study_cells.trained(dataclasses.replace(cell, seeds=cell.seeds + 1)) is None


def test_no_cell_in_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path))
    with pytest.raises(ValueError, match="no cell of the study is complete; train one, as: eestudy train"):
        study_cells.studied()
