from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_study import folder, results

__all__ = ["folder", "results"]
