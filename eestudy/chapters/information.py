"""Information about the input in the stages: what claim C6 speaks of."""

import numpy as np
import pandas as pd

from eestudy.report.dynamics import finals
from eestudy.report.effects import Measurement, effects, measurement


def c6(information: pd.DataFrame, quantity: str = "lower", noise: float = 1.0) -> Measurement:
    """One bound of I(X; T) in each third of the stages, between every pair of strategies."""
    chosen = information[(information["quantity"] == quantity) & np.isclose(information["noise"], noise)]
    claimed = "Mutual information between the input and the hidden representations separates the regimes."
    rows = effects(finals(chosen), "value")
    return measurement("C6", claimed, rows, ("cell", "part", "pair"), f"{quantity} bound at noise {noise:g}, ")
