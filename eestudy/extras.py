"""Packages that an extra brings: asked for where they are used, so that the library does without them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from eestudy.config import EestudyError

HINT = "it comes with: pip install 'eestudy[{}]'"


def needed(package: str, extra: str) -> Any:
    """The package, imported. EestudyError where it is missing, with the extra that brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EestudyError(f"{package} cannot be imported ({error}); {HINT.format(extra)}") from error


def check_there(package: str, extra: str) -> None:
    """EestudyError where a package is missing that another process will import."""
    if importlib.util.find_spec(package) is None:
        raise EestudyError(f"{package} is not installed; {HINT.format(extra)}")
