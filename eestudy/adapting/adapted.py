"""What `adapt` gives, and where it puts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eestudy.export.deployed import Deployed
from eestudy.runs import Run

MODEL, PAGE = "model", "report.html"  # in the folder that is written


@dataclass(frozen=True)
class Adapted:
    """What `adapt` gives. deployed: thresholds, exits and what to expect; run: what was trained; exits: their places.

    tried: accuracy on validation data at the budget, by strategy. test: accuracy and mean cost of the `samples` of the
    test data, as shares, and of the model as it was; latency: median milliseconds a sample, (before, now).
    """

    deployed: Deployed
    run: Run
    exits: tuple[str, ...]
    tried: dict[str, float]
    test: dict[str, float]
    latency: tuple[float, float]
    hardware: str
    folder: Path
