"""Evaluation on stored predictions: exit rules, trade-off curves, budgets, reliability.

Everything here works on arrays: logits (K, N, C) float32, labels (N,) int, costs (K,) FLOPs of leaving at
each exit. Nothing here trains or runs a model, so changing a protocol costs seconds.
"""

from .budgets import BUDGETS, calibrate, calibrated_budgets, calibrated_curve, paper_budgets
from .curves import threshold_sweep, tradeoff_curve
from .exit_rules import (
    RULES,
    ExitRule,
    entropy,
    margin,
    max_probability,
    patience,
    per_exit,
    scores,
    simulate,
)
from .reliability import exit_metrics

__all__ = [
    "BUDGETS",
    "RULES",
    "ExitRule",
    "calibrate",
    "calibrated_budgets",
    "calibrated_curve",
    "entropy",
    "exit_metrics",
    "margin",
    "max_probability",
    "paper_budgets",
    "patience",
    "per_exit",
    "scores",
    "simulate",
    "threshold_sweep",
    "tradeoff_curve",
]
