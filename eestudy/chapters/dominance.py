"""Which exits drive the backbone: shares of its gradient, and what claim C3 speaks of."""

import pandas as pd

from eestudy.report.dynamics import exit_shares
from eestudy.report.effects import Measurement, against, effects, measurement, one_family

# In which phase all exits train together, by strategy: where they can compete for the backbone.
COMPETING = {"joint": 1, "mixed": 2}


def competition(dominance: pd.DataFrame) -> pd.DataFrame:
    """`exit_shares` over the phase in which all exits train: one row per run.

    Checkpoints count alike, but for the start of a phase: mixed's second phase has none of its own, so joint's
    untrained network is left out too.
    """
    whole = dominance[(dominance["stage"] == 0) & (dominance["share"] > 0)]
    return exit_shares(whole[whole["phase"] == whole["strategy"].map(COMPETING)])


def c3(dominance: pd.DataFrame) -> Measurement:
    """The share of joint's middle exits less their number's, and the evenness of mixed less that of joint."""
    runs = competition(dominance)
    middle = against(runs[runs["strategy"] == "joint"], "middle", "uniform").assign(
        what="share of joint's middle exits less their number's"
    )
    even = effects(runs, "evenness", (("mixed", "joint"),), ()).assign(what="evenness of mixed less joint's")
    # Half of the claim is no claim: without mixed there are no rows.
    rows = even if even.empty else one_family(middle, even)
    statement = "In joint training the exits in the middle drive the backbone; mixed training balances them."
    return measurement("C3", statement, rows, ("what",), "shares of the gradient")


def second_phase(whole: pd.DataFrame) -> str:
    """The share of mixed's last exit, trained alone before the second phase, at its start and after 5 % of it."""
    last = whole["exit"] == whole.groupby("cell")["exit"].transform("max")
    mixed = whole[last & (whole["strategy"] == "mixed")]
    start, begun = (mixed[(mixed["phase"] == p) & (mixed["share"] == s)] for p, s in ((1, 100), (2, 5)))
    means = pd.concat([each.groupby("cell")["norm_share"].mean() for each in (start, begun)], axis=1).dropna()
    shares = "; ".join(f"{100 * a:.0f} and {100 * b:.0f} % on {cell}" for cell, (a, b) in means.T.items())
    return f"The last exit of mixed has this share where the second phase starts, and after 5 % of it: {shares}."


def conflicts(conflict: pd.DataFrame) -> pd.DataFrame:
    """The rate of negative cosines of each exit with the others, whole backbone; `noise`: between its own batches."""
    keys = ["cell", "strategy", "seed", "progress"]
    backbone = conflict[conflict["stage"] == 0]
    noise = backbone[backbone["kind"] == "noise"].groupby(keys)["negative_rate"].mean().rename("noise")
    pairs = backbone[backbone["kind"] == "exits"]
    sides = pd.concat([pairs.assign(exit=pairs[side]) for side in ("exit_a", "exit_b")])
    return sides.groupby([*keys, "exit"])["negative_rate"].mean().reset_index().join(noise, on=keys)
