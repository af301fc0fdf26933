"""Information about the input in the stages: claim C6."""

import numpy as np
import pandas as pd

from eestudy.report.claims import NOT_COMPARED, Claim
from eestudy.report.dynamics import finals
from eestudy.report.effects import effects, reasons


def c6(information: pd.DataFrame, quantity: str = "lower", noise: float = 1.0) -> Claim:
    """Supported: in every cell some pair of strategies differs in some third of the stages, by one bound of I(X; T)."""
    chosen = information[(information["quantity"] == quantity) & np.isclose(information["noise"], noise)]
    rows = effects(finals(chosen), "value")
    statement = "Mutual information between the input and the hidden representations separates the regimes."
    if rows.empty:
        return Claim("C6", statement, "not decided", NOT_COMPARED, rows)
    apart = rows.groupby("cell")["decision"].apply(lambda found: (found != "").any())
    found = reasons(rows[rows["decision"] != ""], ("cell", "part", "pair")) or "no pair differs in any third"
    tested = f"tested is the {quantity} bound at noise {noise:g}, not the information itself"
    return Claim("C6", statement, "supported" if apart.all() else "not decided", f"{tested}; {found}", rows)
