"""Training strategies: name -> tuple of phases, pure data (Kubaty et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable

from eestudy.training.phases import Phase


def backbone_phase(share: float) -> Phase:
    """Phase 1: the backbone alone, with its own classifier."""
    return Phase("backbone", ("backbone",), "last", share)


def together_phase(share: float) -> Phase:
    """Phase 2: backbone and heads, on the losses of all exits, the last one included."""
    return Phase("together", ("backbone", "heads"), "all", share)


def heads_phase(share: float) -> Phase:
    """Phase 3: heads only; the backbone, its classifier and its BatchNorm statistics stay bit for bit."""
    return Phase("heads", ("heads",), "internal", share)


# The argument is the share of the epochs that the first of two phases takes (`phase_split`).
STRATEGIES: dict[str, Callable[[float], tuple[Phase, ...]]] = {
    "disjoint": lambda split: (backbone_phase(split), heads_phase(1 - split)),
    "joint": lambda split: (together_phase(1.0),),
    "mixed": lambda split: (backbone_phase(split), together_phase(1 - split)),
}
