"""Early-exit networks: train them by different strategies, measure them honestly.

Start reading at ``runs.py``: one run from top to bottom. Importing this package loads no torch; each name below is
imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module it lives in. A module's own name gives the module.
_NAMES = {
    "RunConfig": "config", "EestudyError": "config", "Study": "study", "load_study": "study", "request": "study",
    "Store": "store", "Backbone": "models", "MultiExit": "models", "add_exits": "models.cut.any_model",
    "from_model": "models.cut.any_model", "Run": "runs", "run": "runs", "budgets": "runs",
    "recommend": "report.guide", "adapt": "adapting.steps",
}  # fmt: skip
_MODULES = (
    "config", "study", "store", "data", "models", "methods", "training", "evaluation", "dynamics", "runs",
    "analysis", "book", "report", "export",
)  # fmt: skip

__all__ = [*_NAMES, *_MODULES]  # noqa: PLE0604  (names resolved by __getattr__)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"eestudy.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"eestudy.{name}")
    raise AttributeError(f"module 'eestudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
