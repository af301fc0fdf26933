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
    statement = "In the joint regime the exits in the middle drive the backbone; mixed training balances them."
    return measurement("C3", statement, rows, ("cell", "what"))
