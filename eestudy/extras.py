"""Packages that an extra brings: asked for where they are used, so that the library does without them."""

from __future__ import annotations

import importlib
from typing import Any

from eestudy.config import EestudyError


def needed(package: str, extra: str) -> Any:
    """The package, imported. EestudyError where it is missing, with the extra that brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise EestudyError(
            f"{package} cannot be imported ({error}); it comes with: pip install 'eestudy[{extra}]'"
        ) from error
