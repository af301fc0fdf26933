"""What the benchmarks' files become on the page."""

from __future__ import annotations

import pytest

from eestudy.chapters import speed
from eestudy.config import EestudyError

FACTS = {"processor": "A chip", "cores": 2, "bfloat16 instructions": "none", "torch": "2.0", "date": "2026-01-01"}
STEP = {
    "a net": {
        "hardware": FACTS,
        "variants": {
            "plain": {
                "samples_per_second": {"median": 100.0, "low": 90.0, "high": 110.0},
                "share_of_float32_rate": 0.5,
            },
            "float32": {"samples_per_second": {"median": 150.0, "low": 149.0, "high": 151.0}},
        },
    }
}


def test_steps_are_compared_within_a_model():
    frame = speed.steps(STEP, {"a net": {"plain": 12.0}}, "plain").set_index("step")
    assert frame.loc["float32", "ratio"] == pytest.approx(1.5)
    text = repr(speed.step_table(frame.reset_index(), "plain"))
    assert "150 (149 to 151)" in text
    assert "50%" in text
    assert "12" in text
    assert text.count("–") == 2  # memory and share of the other step were not measured
    with pytest.raises(EestudyError, match="baseline: unknown name 'plian'; nearest: plain"):
        speed.steps(STEP, {}, "plian")


def test_a_metric_has_its_seconds_and_its_memory_in_its_network_s_columns():
    found = {
        "a net": {"growth": 4, "metrics": {"rank": {"seconds": 1.26, "MiB": 208.4, "MiB, more samples": 300.0}}},
        "another": {"growth": 4, "metrics": {"rank": {"seconds": 30.0, "MiB": 7.0}}},
    }
    shown = speed.metrics_table(found).data
    columns = ("seconds", "MiB", "MiB, 4 x the samples")
    assert list(shown.columns) == [(net, column) for net in ("a net", "another") for column in columns]
    assert shown.loc["rank"].tolist() == ["1.3", "208", "300", "30.0", "7", "–"]


def test_the_machine_is_named_with_its_date():
    sentence = speed.hardware(STEP)
    assert sentence == (
        "Measured on A chip, 2 cores, instructions for bfloat16: none; torch 2.0, 2026-01-01; weights and batches in "
        "memory."
    )


def test_the_time_of_a_curve_stands_beside_its_aim():
    def found(ms):
        return {"rows": 4000, "loop / tradeoff_curve": 1.66, "ms": {"tradeoff_curve": ms, "scores": 20.0},
                "ms, least": {"tradeoff_curve": ms - 1}}  # fmt: skip

    measured = {
        "hardware": FACTS,
        "exits, samples, classes": [9, 10000, 100],
        "entropy": found(30.04),
        "margin": found(30),
    }
    shown = speed.curve_table(measured).data
    assert shown.loc["entropy"].tolist() == ["30.0", "29.0", "20.0", "30", "no", "4,000", "1.7"]
    assert shown.loc["margin", "met"] == "yes"
