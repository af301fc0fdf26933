"""Chapters are tested on the same made-up studies as what they share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from synthetic_study import folder, results

__all__ = ["folder", "results"]
