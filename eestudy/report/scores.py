"""Which score a table has: accuracy, or r2 in regression, where a column `score` says so."""

from __future__ import annotations

import numpy as np
import pandas as pd

SHOWN = {"r2": "R2"}


def is_regression(frame: pd.DataFrame) -> pd.Series:
    """The rows (bool) whose score is r2."""
    return frame["score"] == "r2" if "score" in frame else pd.Series(False, index=frame.index)


def score_name(frame: pd.DataFrame) -> str:
    """What a reader calls the score of these rows: "accuracy", "R2", or both."""
    regression = is_regression(frame)
    if not regression.any():
        return "accuracy"
    return SHOWN["r2"] if regression.all() else f"accuracy (regression: {SHOWN['r2']})"


def valued(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column `value`: each row's accuracy, or its r2 where that is its score."""
    if "r2" not in frame:
        return frame.assign(value=frame["accuracy"])
    return frame.assign(value=frame["r2"].where(is_regression(frame), frame.get("accuracy", np.nan)))
