"""Evaluation on stored predictions: exit rules, trade-off curves, budgets, guarantees, reliability.

Everything here works on arrays: logits (K, N, C) float32, labels (N,) int, costs (K,) FLOPs of leaving at
each exit. Nothing here trains or runs a model, so changing a protocol costs seconds; but `latency` times one.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .budgets import (
    ALLOCATIONS,
    BUDGETS,
    budget_misses,
    calibrate,
    calibrated_budgets,
    calibrated_curve,
    paper_budgets,
    paper_sweep,
)
from .curves import threshold_sweep, tradeoff_curve
from .exit_rules import ExitRule, entropy, every_label, margin, max_probability, patience, per_exit, scores, simulate
from .quality import exit_metrics

if TYPE_CHECKING:
    from .clock import latency
    from .reliability import apply_temperatures, fit_temperatures, ood_detection, reliability_metrics, reliability_table
    from .risk import RISKS, Certified, control_risk
    from .summary import area_under_curve, curve_summary

# Name -> its module, of what no training run needs: imported when it is first used.
_LATER = {
    "latency": "clock", "apply_temperatures": "reliability", "fit_temperatures": "reliability",
    "ood_detection": "reliability", "reliability_metrics": "reliability", "reliability_table": "reliability",
    "RISKS": "risk", "Certified": "risk", "control_risk": "risk",
    "area_under_curve": "summary", "curve_summary": "summary",
}  # fmt: skip

__all__ = [
    "ALLOCATIONS", "BUDGETS", "RISKS", "Certified", "ExitRule", "apply_temperatures", "area_under_curve",
    "budget_misses", "calibrate", "calibrated_budgets", "calibrated_curve", "control_risk", "curve_summary", "entropy",
    "every_label", "exit_metrics", "fit_temperatures", "latency", "margin", "max_probability", "ood_detection",
    "paper_budgets", "paper_sweep", "patience", "per_exit", "reliability_metrics", "reliability_table", "scores",
    "simulate", "threshold_sweep", "tradeoff_curve",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
