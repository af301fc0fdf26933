"""Information about the input in the stages: what claim C6 speaks of."""

import numpy as np
import pandas as pd

from eestudy.report.dynamics import finals
from eestudy.report.effects import Measurement, effects, measurement
from eestudy.report.tables import Table, table


def c6(information: pd.DataFrame, quantity: str = "lower", noise: float = 1.0) -> Measurement:
    """One bound of I(X; T) in each third of the stages, between every pair of strategies."""
    chosen = information[(information["quantity"] == quantity) & np.isclose(information["noise"], noise)]
    claimed = "Mutual information between the input and the hidden representations separates the strategies."
    rows = effects(finals(chosen), "value")
    return measurement(
        "C6", claimed, rows, ("pair",), f"{quantity} bound at noise {noise:g}, thirds of the network apart"
    )


def noise_table(information: pd.DataFrame) -> Table:
    """Rows cell x noise: both bounds and their ceiling at the end of training, means over stages and strategies."""
    ends = information[(information["progress"] > 0.999) & (information["quantity"] != "usable")]
    wide = ends.pivot_table(index=["cell", "noise"], columns="quantity", values="value")
    wide.index = wide.index.set_levels([f"{level:.1f}" for level in wide.index.levels[1]], level=1)
    return table(wide[["lower", "upper", "ceiling"]].map("{:.2f}".format), "I(X; T) in nats.", "noises")


def apart(information: pd.DataFrame, claim: Measurement, noise: float) -> str:
    """How far the two bounds are apart, beside the largest difference between strategies."""
    rows = finals(information[np.isclose(information["noise"], noise)])
    bounds = rows.groupby("quantity")["value"].mean()
    return (
        f"At this noise the two bounds are {bounds['upper'] - bounds['lower']:.2f} nats apart on average, and the "
        f"strategies' at most {claim.effects['mean'].abs().max():.2f}: this does not show that $I(X; T)$ differs."
    )
