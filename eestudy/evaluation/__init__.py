"""Evaluation on stored predictions: exit rules, trade-off curves, budgets, guarantees, reliability.

Everything here works on arrays: logits (K, N, C) float32, labels (N,) int, costs (K,) FLOPs of leaving at
each exit. Nothing here trains or runs a model, so changing a protocol costs seconds; but `latency` times one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .budgets import ALLOCATIONS, BUDGETS, budget_misses, calibrate, calibrated_budgets, calibrated_curve
from .curves import threshold_sweep, tradeoff_curve
from .exit_rules import ExitRule, entropy, margin, max_probability, patience, per_exit, scores, simulate
from .paper import paper_budgets, paper_sweep
from .reliability import exit_metrics, reliability_metrics, reliability_table

if TYPE_CHECKING:
    from .clock import latency
    from .ood import ood_detection
    from .risk import RISKS, Certified, control_risk
    from .summary import area_under_curve, cost_to_reach, curve_summary
    from .temperature import apply_temperatures, fit_temperatures

# Name -> its module, of what no training run needs: imported when it is first used.
_LATER = {
    "latency": "clock",
    "ood_detection": "ood",
    **dict.fromkeys(("RISKS", "Certified", "control_risk"), "risk"),
    **dict.fromkeys(("area_under_curve", "cost_to_reach", "curve_summary"), "summary"),
    **dict.fromkeys(("apply_temperatures", "fit_temperatures"), "temperature"),
}

__all__ = [
    "ALLOCATIONS", "BUDGETS", "RISKS", "Certified", "ExitRule", "apply_temperatures", "area_under_curve",
    "budget_misses", "calibrate", "calibrated_budgets", "calibrated_curve", "control_risk", "cost_to_reach",
    "curve_summary", "entropy", "exit_metrics", "fit_temperatures", "latency", "margin", "max_probability",
    "ood_detection", "paper_budgets", "paper_sweep", "patience", "per_exit", "reliability_metrics",
    "reliability_table", "scores", "simulate", "threshold_sweep", "tradeoff_curve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
