"""What `benchmarks/` measured, from its JSON files. Nothing here measures."""

import json
from typing import Any

from eestudy.config import EestudyError
from eestudy.study import project_root

Measured = dict[str, Any]


def read(name: str) -> Measured:
    """benchmarks/<name>.json of this checkout. EestudyError when the file is not there, or is no JSON."""
    path = project_root() / "benchmarks" / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise EestudyError(f"{path}: not there; make it with: python benchmarks/{name}.py") from None
    except ValueError:
        raise EestudyError(f"{path}: not JSON; make it again with: python benchmarks/{name}.py") from None


def machine(facts: Measured) -> str:
    """A benchmark's hardware and date, as a sentence."""
    return (
        f"Measured on {facts['processor']}, {facts['cores']} cores, instructions for bfloat16: "
        f"{facts['bfloat16 instructions']}; torch {facts['torch']}, {facts['date']}."
    )
