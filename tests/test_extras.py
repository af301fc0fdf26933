"""A part whose extra is missing says in one line which one brings it."""

from __future__ import annotations

import pytest

from eestudy.config import EestudyError
from eestudy.extras import check_there, needed


@pytest.mark.parametrize("ask", [needed, check_there])
def test_a_missing_package_names_its_extra(ask):
    with pytest.raises(EestudyError, match=r"^no_such_package .*; it comes with: pip install 'eestudy\[text\]'$"):
        ask("no_such_package", "text")
    ask("json", "text")
