"""The page on latency, from a measurement made up so that every number is known."""

from __future__ import annotations

from typing import Any

import pytest

from eestudy import EestudyError
from eestudy.chapters import latency


def measurement(
    speedup: float = 1.5,
    others: float = 0.01,
    stage_ms: tuple[float, ...] = (1.0, 2.0, 1.0),
    calls: int = 9,
    flops_speedup: float = 2.0,
) -> dict[str, Any]:
    """Two stages and a classifier, an exit after the first; half of the samples leave there."""
    row = {
        "strategy": "mixed", "budget": 50, "median_ms": 2.0, "p95_ms": 3.0, "calls": calls, "samples_per_s": 500.0,
        "plain_median_ms": 4.0, "plain_p95_ms": 5.0, "speedup": speedup, "flops_speedup": flops_speedup,
        "taken": [0.5, 0.5],
    }  # fmt: skip
    part = {"strategy": "mixed", "budget": 50, "stages": 6.0, "heads": 2.0, "rule": 1.0, "rest": 1.0}
    facts = {"processor": "P", "cores": 2, "threads": 2, "bfloat16 instructions": "none", "torch": "2", "date": "today"}
    network = {
        "hardware": facts, "exits": 2, "backbone_flops": 100, "head_flops": 5, "exit_stages": [1],
        "stage_flops": [50, 40, 10], "source": "net, data", "trained": False, "others": {"1": others, "256": 0.0},
        "rows": [{**row, "batch_size": 1}, {**row, "batch_size": 256, "speedup": 1.9}],
        "parts": [{**part, "batch_size": size, "stage_ms": list(stage_ms)} for size in (1, 256)],
    }  # fmt: skip
    return {"one": network, "two": {**network, "trained": True}}


def test_rows_say_what_the_stages_alone_would_save() -> None:
    frame = latency.rows(measurement())
    assert frame["ratio"].tolist() == [0.75, 0.95] * 2
    # Of 4 ms, those who leave spend 1 and the others 4.
    assert frame["attainable"].tolist() == pytest.approx([4 / 2.5] * 4)
    assert frame["own"].tolist() == pytest.approx([1.5 / 1.6, 1.9 / 1.6] * 2)
    # Of 100 FLOPs of the stages, those who leave spend 50: without heads 100 / 75, which is less than the clock's 1.6.
    assert frame["stages"].tolist() == pytest.approx([1.6 / (100 / 75)] * 4)
    assert (frame["stages"] * frame["rest"]).tolist() == pytest.approx(frame["ratio"].tolist())


def test_a_percentile_takes_enough_calls() -> None:
    for calls, shown in ((9, ["–", "–"]), (20, ["5.0", "3.0"])):
        table = latency.times_table(latency.rows(measurement(calls=calls)), "mixed", 50).data
        assert table.loc[("one", 1), ["p95", "p95 "]].tolist() == shown


def test_tables_show_the_numbers() -> None:
    frame = latency.rows(measurement())
    aims = latency.aims_table(frame).data
    assert aims.loc[("one", 1)].tolist() == ["0.75", "0.75 to 0.75", "1.20", "0.62", "0.8", "0 of 1"]
    assert latency.times_table(frame, "mixed", 50).data.loc[("one", 256), "speed-up"] == "1.90"
    assert latency.parts_table(measurement()).data.loc[("two", 1)].tolist() == ["10.0", "60%", "20%", "10%", "10%"]


def test_a_busy_machine_is_named() -> None:
    assert "at most 1%" in latency.hardware(measurement())
    busy = latency.hardware(measurement(others=0.4))
    assert "one (40%), two (40%)" in busy
    assert "2 threads" in busy


def test_who_is_trained_and_who_is_not() -> None:
    first, second = latency.sources(measurement()).splitlines()
    assert "**not trained**; leaves as net on data did" in first
    assert "heads 5.0% of" in first
    assert "its own thresholds" in second


def test_the_figure_is_drawn() -> None:
    assert latency.figure(latency.rows(measurement())).png(dpi=40).startswith(b"\x89PNG")


def test_what_was_not_measured_is_refused() -> None:
    frame = latency.rows(measurement())
    for strategy, budget in (("joint", 50), ("mixed", 60)):
        with pytest.raises(EestudyError, match=f"{strategy if strategy == 'joint' else budget}"):
            latency.times_table(frame, strategy, budget)


def test_what_is_said_first_is_the_median_beside_the_aim() -> None:
    said = latency.in_short(latency.rows(measurement()))
    assert "0.75 to 0.75 at a batch of 1 (at least 0.8 for 0 of 2 networks)" in said
