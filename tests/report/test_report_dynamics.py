"""Effects by depth, barriers and the claims on the training dynamics, on frames whose answers are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eestudy.chapters import connectivity, dominance, information, rank
from eestudy.report import dynamics
from eestudy.report.effects import effects

SEEDS = range(4)
STRATEGIES = ("disjoint", "joint", "mixed")
NOISE = dict(zip(SEEDS, (0.001, -0.001, 0.002, -0.002)))


def staged(value, cells=("a", "b")) -> pd.DataFrame:
    """A row a cell x strategy x seed x stage (9 stages) at the end; value(strategy, part) + seed's noise."""
    rows = [
        {"cell": cell, "strategy": strategy, "seed": seed, "stage": stage, "progress": 1.0,
         "value": value(strategy, dynamics.THIRDS[(stage - 1) // 3]) + NOISE[seed] * (strategy != "disjoint")}
        for cell in cells for strategy in STRATEGIES for seed in SEEDS for stage in range(1, 10)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_thirds_are_of_a_cell_s_own_depth():
    frame = pd.DataFrame({"cell": ["a"] * 9 + ["b"] * 4 + ["c"] * 2, "stage": [*range(1, 10), 1, 2, 3, 4, 1, 2]})
    found = dynamics.third_of(frame, "stage").tolist()
    assert found[:9] == ["early"] * 3 + ["middle"] * 3 + ["late"] * 3
    assert found[9:13] == ["early", "early", "middle", "late"]
    assert found[13:] == ["early", "middle"]


def test_effects_are_paired_corrected_and_worded():
    frame = dynamics.finals(staged(lambda strategy, part: {"joint": 0.5, "mixed": 0.2}.get(strategy, 0.2)))
    found = effects(frame, "value").set_index(["cell", "part", "pair"])
    assert len(found) == 2 * 3 * 3
    row = found.loc[("a", "late", "joint − disjoint")]
    assert (row["mean"], row["mean_a"], row["mean_b"]) == pytest.approx((0.3, 0.5, 0.2))
    assert row["decision"] == "higher"
    untested = found.loc[("b", "early", "mixed − joint")]  # the same difference in every seed
    assert (untested["mean"], untested["decision"]) == (pytest.approx(-0.3), "")
    assert np.isnan(untested["p"])
    assert found.loc[("a", "early", "mixed − disjoint"), "decision"] == ""
    tested = found["p"].dropna()
    assert found["p_holm"].min() == pytest.approx(len(tested) * tested.min(), rel=1e-6)


def shared(shares: dict[str, list[float]]) -> pd.DataFrame:
    """A dominance table: the whole backbone's norm shares of 3 exits, by strategy, at two checkpoints of each phase."""
    rows = [
        {"cell": "a", "strategy": strategy, "seed": seed, "stage": 0, "exit": exit, "phase": phase, "share": share,
         "progress": (phase - 1 + share / 100) / 2, "run": f"{strategy}-{seed}",
         "norm_share": value + NOISE[seed] * (1 if exit == 2 else -0.5)}
        for strategy, values in shares.items() for seed in SEEDS for phase in (1, 2) for share in (50, 100)
        for exit, value in enumerate(values, 1) if strategy != "joint" or phase == 1
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_competition_of_known_shares():
    found = dominance.competition(
        shared({"joint": [0.2, 0.6, 0.2], "mixed": [1 / 3] * 3, "disjoint": [0.9, 0.05, 0.05]})
    )
    assert set(found["strategy"]) == {"joint", "mixed"}, "in disjoint the exits never train with the backbone"
    joint, mixed = (found[found["strategy"] == strategy] for strategy in ("joint", "mixed"))
    assert joint["middle"].mean() == pytest.approx(0.6)
    assert joint["uniform"].tolist() == [1 / 3] * 4
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.2)) / np.log(3)
    assert joint["evenness"].mean() == pytest.approx(entropy, abs=1e-4)
    assert mixed["evenness"].to_numpy() == pytest.approx(1, abs=1e-4)


def test_competition_leaves_out_the_untrained_network():
    """Mixed's second phase has no checkpoint before its first step, so joint's does not count either."""
    trained = shared({"joint": [0.2, 0.6, 0.2], "mixed": [1 / 3] * 3})
    start = shared({"joint": [0.98, 0.01, 0.01]}).query("share == 50").assign(share=0, progress=0.0)
    pd.testing.assert_frame_equal(dominance.competition(pd.concat([start, trained])), dominance.competition(trained))


@pytest.mark.parametrize(
    ("joint", "mixed", "decided"),
    [
        ([0.2, 0.6, 0.2], [0.3, 0.4, 0.3], {"higher"}),
        ([0.2, 0.6, 0.2], [0.05, 0.9, 0.05], {"higher", "lower"}),
        ([0.45, 0.1, 0.45], [0.3, 0.4, 0.3], {"lower", "higher"}),
        ([1 / 3] * 3, [1 / 3] * 3, {""}),
    ],
)
def test_c3(joint, mixed, decided):
    assert set(dominance.c3(shared({"joint": joint, "mixed": mixed})).effects["decision"]) == decided


def straight(heights: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Paths of loss alpha + 4 h alpha (1 - alpha): the ends differ, the barrier over the line between them is h."""
    rows = [
        {"cell": "a", "relation": "strategies", "strategy": a, "strategy_2": b, "seed": seed, "seed_2": seed,
         "split": "train", "alpha": alpha, "exit": exit, "distance": 3.0,
         "loss": alpha + 4 * (height + NOISE[seed] * height) * alpha * (1 - alpha) if exit == 0 else 99.0}
        for (a, b), height in heights.items() for seed in SEEDS for alpha in np.linspace(0, 1, 25) for exit in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_barriers_of_known_paths():
    found = connectivity.barriers(straight({("disjoint", "mixed"): 0.5, ("disjoint", "joint"): 2.0}))
    assert found.groupby("pair")["barrier"].mean().to_dict() == pytest.approx(
        {"disjoint – mixed": 0.5, "disjoint – joint": 2.0}
    )
    assert set(found["distance"]) == {3.0}


def test_the_table_of_barriers_has_means_and_spans():
    train = straight({("disjoint", "joint"): 2.0})
    test = straight({("disjoint", "joint"): 1.0}).assign(split="test")
    frame = connectivity.barriers(pd.concat([train, test]))
    shown = connectivity.barrier_table(frame, "Barriers.", "b").data
    assert shown.loc[("a", "disjoint – joint")].tolist() == [
        "2.000 (1.996 to 2.004)", "1.000 (0.998 to 1.002)", "3.0 (3.0 to 3.0)",
    ]  # fmt: skip
    assert "distance" not in connectivity.barrier_table(frame.assign(distance=np.nan), "Barriers.", "b").data


def test_barriers_over_training_end_with_the_pairs_measured_on_the_way():
    """At nine points on the way; of the 25 at the end those nine count, so that a needle between them does not."""
    ends = straight({("disjoint", "joint"): 2.0, ("disjoint", "mixed"): 0.5})
    ends["exit"] = 1 - ends["exit"]  # the last exit's is the known loss, and the mean over exits is not
    ends.loc[np.isclose(ends["alpha"], 11 / 24), "loss"] += 50
    coarse = ends[np.isclose(ends["alpha"] * 8 % 1, 0)]
    early = coarse[coarse["strategy_2"] == "joint"]
    flat = early["alpha"].where(early["exit"] == 1, early["loss"])
    moving = [early.assign(progress=p, loss=flat + p * (early["loss"] - flat)) for p in (0.25, 0.5)]
    itself = early.assign(relation="start and end", strategy_2="disjoint", progress=1.0)
    moving = pd.concat([*moving, itself])
    found = connectivity.barriers_over_training(moving, ends)
    assert set(found["pair"]) == {"disjoint – joint"}
    assert len(found) == 3 * len(SEEDS)
    heights = found.groupby("progress")["barrier"].mean()
    assert heights.to_dict() == pytest.approx({0.25: 0.5, 0.5: 1.0, 1.0: 2.0})
    assert set(connectivity.barriers(itself)["pair"]) == {"disjoint, start to end"}
    figure = connectivity.pairs_over_training(found, "train", "barrier", "barrier, nats")
    (line,) = figure.axes[0].get_lines()
    assert line.get_xdata() == pytest.approx([25, 50, 100])
    assert line.get_ydata() == pytest.approx([0.5, 1.0, 2.0])


def test_lines_and_curves_are_drawn_at_their_true_lengths():
    line, curve = (straight({("disjoint", "joint"): height}) for height in (2.0, 0.3))
    line = line.assign(way="line", length=3 * line["alpha"])
    curve = curve.assign(way="curve", length=curve["alpha"] * (4 + curve["seed"] / 3))
    figure = connectivity.curves(pd.concat([line, curve]), "train")
    drawn = [each.get_xdata() for each in figure.axes[0].get_lines()]
    assert [(min(x), max(x)) for x in drawn] == [(0, pytest.approx(3)), (0, pytest.approx(4.5))]


@pytest.mark.parametrize(("near", "far", "decided"), [(0.2, 2.0, {"higher"}), (2.0, 0.2, {"lower"}), (1.0, 1.0, {""})])
def test_c4(near, far, decided):
    heights = {("disjoint", "joint"): far, ("disjoint", "mixed"): near, ("joint", "mixed"): far}
    assert set(connectivity.c4(straight(heights)).effects["decision"]) == decided


def test_c4_is_of_the_split_that_is_asked_for():
    near = straight({("disjoint", "joint"): 2.0, ("disjoint", "mixed"): 0.2, ("joint", "mixed"): 2.0})
    far = straight({("disjoint", "joint"): 0.2, ("disjoint", "mixed"): 2.0, ("joint", "mixed"): 0.2})
    both = pd.concat([near, far.assign(split="test")])
    for split, decided in (("train", {"higher"}), ("test", {"lower"})):
        assert set(connectivity.c4(both, split).effects["decision"]) == decided


def test_a_curve_is_set_beside_the_line_between_the_same_models():
    line = straight({("disjoint", "mixed"): 0.5, ("disjoint", "joint"): 2.0}).assign(way="line")
    curve = straight({("disjoint", "mixed"): 0.6, ("disjoint", "joint"): 0.3}).assign(way="curve")
    found = (
        connectivity.curve_barriers(pd.concat([curve, line])).groupby(["pair", "way"])["barrier"].agg(["mean", "size"])
    )
    assert found["mean"].to_dict() == pytest.approx(
        {("disjoint – joint", "curve"): 0.3, ("disjoint – joint", "line"): 2.0,
         ("disjoint – mixed", "curve"): 0.6, ("disjoint – mixed", "line"): 0.5}, rel=1e-6,
    )  # fmt: skip
    assert set(found["size"]) == {len(SEEDS)}


NOT_COMPARED = "the strategies it speaks of are not compared here"
RENAMED = {"joint": "joint", "disjoint": "disjoint", "mixed": "gradual"}  # three strategies, not the paper's


def without_mixed(frame: pd.DataFrame) -> pd.DataFrame:
    columns = [column for column in ("strategy", "strategy_2") if column in frame]
    return frame[~frame[columns].isin(["mixed"]).any(axis=1)]


def with_gradual(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.replace({"strategy": RENAMED, "strategy_2": RENAMED})


@pytest.mark.parametrize("other", [without_mixed, with_gradual])
def test_a_study_of_other_strategies_gets_no_verdict_that_needs_the_missing_one(other):
    shares = shared({"joint": [0.2, 0.6, 0.2], "mixed": [1 / 3] * 3, "disjoint": [0.9, 0.05, 0.05]})
    paths = straight({("disjoint", "joint"): 2.0, ("disjoint", "mixed"): 0.2, ("joint", "mixed"): 2.0})
    for found in (dominance.c3(other(shares)), connectivity.c4(other(paths))):
        assert (found.found, len(found.effects)) == (NOT_COMPARED, 0)
    known = staged(lambda strategy, part: 0.5 + {"early": 0.2, "late": -0.2}.get(part, 0) * (strategy == "joint"))
    frame = other(known.assign(quantity="lower", noise=1.0))
    assert set(rank.c5(frame, "value").effects["decision"]) == {"higher", "lower"}
    assert set(information.c6(frame).effects["pair"]) == {"joint − disjoint"}
    assert len(connectivity.paths(other(paths), "train").axes) == 1
    alone = frame[frame["strategy"] == "joint"]
    for found in (rank.c5(alone, "value"), information.c6(alone)):
        assert found.found == NOT_COMPARED


def test_the_stages_of_pairs_that_are_not_there_are_not_drawn():
    frame = pd.DataFrame(
        [("a", "strategies", "disjoint", "joint", i, j, 0.5) for i in (1, 2) for j in (1, 2)],
        columns=["cell", "relation", "strategy", "strategy_2", "stage_a", "stage_b", "cka"],
    )
    figure = rank.similarities(frame, [("disjoint", "joint"), ("joint", "mixed")])
    assert len(figure.axes) == 2, "one panel and the colour bar"


def test_c5_says_both_ends():
    def found(early, late):
        value = staged(lambda strategy, part: 0.3 + (strategy == "joint") * {"early": early, "late": late}.get(part, 0))
        return rank.c5(value, "value")

    assert set(found(0.2, 0.2).effects["decision"]) == {"higher"}
    assert set(found(0.2, 0.0).effects["decision"]) == {"higher", ""}
    text = found(0.2, -0.2)._repr_markdown_()
    assert text.startswith("**In short.** C5 claims: Training the exits along")
    assert "early, joint − disjoint: higher in 2 of 2; late, joint − disjoint: lower in 2 of 2 cells (value)." in text


def test_c6_says_which_cells_differ():
    frame = staged(lambda strategy, part: 1.0, ("a", "b"))
    higher = frame["cell"].isin(["a"]) & (frame["strategy"] == "joint")
    rows = information.c6(frame.assign(value=frame["value"] + higher, quantity="lower", noise=np.float32(1.0))).effects
    assert (rows[rows["cell"] == "a"]["decision"] != "").any()
    assert (rows[rows["cell"] == "b"]["decision"] == "").all()
