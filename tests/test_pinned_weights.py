"""No bit of a result moves unnoticed: tiny runs of each path through the engine end as they are pinned."""

from __future__ import annotations

import json
import warnings

import pytest

from .pinned_weights import CASES, PINS, ended, family

KNOWN = json.loads(PINS.read_text())


def test_every_case_is_pinned():
    assert set(KNOWN) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_with_the_pinned_weights(name, tmp_path):
    """On a kind of processor that is not pinned the loss must be near, and that is said aloud."""
    loss, weights = ended(name, tmp_path)
    pinned = KNOWN[name]["weights"].get(family())
    if pinned is None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"no weights are pinned for {family()}; compared the loss alone", stacklevel=1)
        near = 1e-3 if name == "bfloat16" else 1e-4  # eight bits of mantissa, summed in another order
        assert loss == pytest.approx(KNOWN[name]["loss"], rel=near), name
    else:
        assert weights == pinned, f"{name} ends with other weights on {family()}, loss {loss}"
