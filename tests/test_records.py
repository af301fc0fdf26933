"""The union of records: whole whoever writes it, whenever a writer is killed, and whatever was damaged."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import signal
from functools import partial

import numpy as np
import pandas as pd
import pytest

import eestudy
from eestudy import evaluation, records
from eestudy.analysis import run_record
from eestudy.config import EestudyError
from eestudy.records import Record, Records, agree
from eestudy.registry import EXIT_RULES
from eestudy.report import Results, union
from eestudy.store import Store

from .processes import forked, status

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def made_up(number: int = 0, **tables: pd.DataFrame) -> Record:
    generator = np.random.default_rng(number)
    curve = pd.DataFrame({"epoch": np.arange(200), "loss": generator.random(200), "split": "train"})
    facts = {"config": {"seed": number}, "task": "classification", "made": {"seconds": generator.random()}}
    return Record("runs", f"mlp-digits-joint-s{number}-0123456789", facts, {"history": curve, **tables})


EVERY_KIND = pd.DataFrame(
    {
        "whole": [3, -1, 2**53],
        "number": [1 / 3, math.nan, 1e-300],
        "ends": [math.inf, -math.inf, 0.0],
        "yes": [True, False, True],
        "text": ["ä", "", "inf"],
        "mixed": pd.Series(["x", None, True], dtype=object),
        "lists": pd.Series([[1, 2], [], ["a"]], dtype=object),
        "constant": [7, 7, 7],
        "constant number": [math.nan] * 3,
        "constant text": ["same"] * 3,
        "levels": ["a", "a", "a"],
    }
)


def test_every_dtype_comes_back():
    back = Record.from_bytes(made_up(all=EVERY_KIND).to_bytes(), "x").tables["all"]
    expected = EVERY_KIND.assign(number=[0.333333, math.nan, 1e-300])
    pd.testing.assert_frame_equal(back, expected)
    assert [str(dtype) for dtype in back.dtypes[:4]] == ["int64", "float64", "float64", "bool"]
    empty = Record.from_bytes(made_up(all=EVERY_KIND[:0]).to_bytes(), "x").tables["all"]
    assert len(empty) == 0
    assert list(empty.dtypes) == list(EVERY_KIND.dtypes)
    small = EVERY_KIND.assign(whole=EVERY_KIND["whole"].astype("int64"), number=np.array([0.5, 1, 2], np.float32))
    assert Record.from_bytes(made_up(all=small).to_bytes(), "x").tables["all"]["number"].dtype == np.float64


def test_thresholds_next_to_1_stay_apart():
    table = pd.DataFrame({"threshold_1": [0.99999987, 0.99999912], "accuracy": [0.99999987, 0.5]})
    back = Record.from_bytes(made_up(all=table).to_bytes(), "x").tables["all"]
    assert back["threshold_1"].tolist() == table["threshold_1"].tolist()
    assert back["accuracy"].tolist() == [1.0, 0.5]


def test_the_same_record_is_the_same_bytes():
    record = made_up(all=EVERY_KIND)
    content = record.to_bytes()
    assert content == record.to_bytes() == Record.from_bytes(content, "x").to_bytes()
    assert content[4:8] == bytes(4), "no time in the head"
    long = pd.DataFrame({"strategy": ["mixed", "joint"] * 5000, "one": 1.0})
    assert len(made_up(long=long).to_bytes()) - len(made_up().to_bytes()) < 300


def test_a_record_cut_short_or_with_a_bit_flipped_is_refused_and_named():
    content = Record("runs", "r-s0-0123456789", {"made": {}}, {"t": EVERY_KIND}).to_bytes()
    for end in range(len(content)):
        with pytest.raises(EestudyError, match=r"^here: "):
            Record.from_bytes(content[:end], "here")
    harmless = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        found = said = None
        try:
            found = Record.from_bytes(bytes(changed), "here")
        except EestudyError as error:
            said = str(error)
        if found:  # a bit that nothing depends on, such as gzip's name for an operating system
            harmless += 1
            assert found.to_bytes() == content
        else:
            assert said
            assert said.startswith("here: ")
            assert "\n" not in said
    assert harmless < 20


def sealed(**changes: object) -> bytes:
    """A record's file with other contents, whose seal fits."""
    content = {"format": 1, "kind": "runs", "id": "a", "facts": {}, "tables": {}, **changes}
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    seal = records.hashlib.sha256(text).hexdigest()
    whole = json.dumps({**content, "sha256": seal}, sort_keys=True, separators=(",", ":")).encode()
    return gzip.compress(whole)


def column(**fields: object) -> dict[str, object]:
    return {"t": {"columns": [{"name": "a", "dtype": "int64", **fields}]}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a record"),
        (b"no gzip", "not gzip"),
        (gzip.compress(b"no JSON"), "is not a record"),
        (gzip.compress(b"[1]"), "is not a record"),
        (gzip.compress(b'{"format": 1}'), "is not a record"),
        (gzip.compress(b"[" * 100_000), "is not a record"),
        (gzip.compress(bytes(65 * 2**20)), "is not a record"),
        (sealed(format=2), "format 2, this version reads 1"),
        (sealed(kind="models"), "unknown name 'models'"),
        (sealed(id="../../x"), "cannot name a record"),
        (sealed(id=""), "cannot name a record"),
        (sealed(facts=[]), "is not a record"),
        (sealed(tables=column(values=["x"])), "is not a record"),
        (sealed(tables=column(values={"x": 1})), "is not a record"),
        (sealed(tables=column(constant=1, rows=10**12)), "is not a record"),
        (sealed(tables=column(codes=[3], levels=[])), "is not a record"),
        (sealed(tables={"t": {"columns": 3}}), "is not a record"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",  # not its bytes, which hold the time
)
def test_what_is_no_record_is_one_line(content, words):
    with pytest.raises(EestudyError, match=words) as caught:
        Record.from_bytes(content, "here")
    assert "\n" not in str(caught.value)


def test_a_record_under_another_name_is_refused(tmp_path):
    union_ = Records(tmp_path)
    union_.add(made_up(0))
    path = union_.path("runs", made_up(0).id)
    path.rename(union_.path("runs", made_up(1).id))
    with pytest.raises(EestudyError, match=r"s1-0123456789.json.gz: holds the record runs/mlp-digits-joint-s0"):
        Records(tmp_path).read("runs")


def test_added_same_and_replicate(tmp_path, capfd):
    union_, record = Records(tmp_path), made_up(0)
    assert union_.add(record) == "added"
    before = union_.path("runs", record.id).read_bytes()
    faster = Record("runs", record.id, {**record.facts, "made": {"seconds": 1, "hardware": "another"}}, record.tables)
    near = record.tables["history"].assign(loss=record.tables["history"]["loss"] * 1.00001)
    for same in (record, faster, Record("runs", record.id, record.facts, {"history": near})):
        assert Records(tmp_path).add(same) == "same"
    assert capfd.readouterr().err == ""
    other = Record("runs", record.id, record.facts, made_up(1).tables)
    assert union_.add(other) == "replicate"
    (kept,) = union_.replicates("runs", record.id)
    said = capfd.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert str(kept) in said[0]
    assert str(union_.path("runs", record.id)) in said[0]
    assert union_.add(other) == "same"
    assert union_.add(record) == "same"
    assert union_.path("runs", record.id).read_bytes() == before
    assert agree(Record.from_bytes(kept.read_bytes(), kept), Record.from_bytes(other.to_bytes(), "x"))
    settings = Record("runs", record.id, {**record.facts, "config": {"seed": 9}}, record.tables)
    assert union_.add(settings) == "replicate"
    assert len(union_.replicates("runs", record.id)) == 2
    assert union_.ids("runs") == [record.id]


def test_two_writers_at_once_leave_one_record_and_lose_none(tmp_path, monkeypatch, capfd):
    """The other one comes between this one's look and its write."""
    first, second = made_up(0), Record("runs", made_up(0).id, made_up(0).facts, made_up(1).tables)
    put = records.write_once

    def overtaken(path, content):
        monkeypatch.setattr(records, "write_once", put)
        assert Records(tmp_path).add(second) == "added"
        return put(path, content)

    monkeypatch.setattr(records, "write_once", overtaken)
    assert Records(tmp_path).add(first) == "replicate"
    (record,) = Records(tmp_path).read("runs")
    assert agree(record, Record.from_bytes(second.to_bytes(), "x"))
    assert len(Records(tmp_path).replicates("runs", first.id)) == 1
    children = [forked(lambda: [Records(tmp_path).add(made_up(n)) for n in range(1, 30)] and 0) for _ in range(3)]
    assert [status(child) for child in children] == [0, 0, 0]
    assert len(Records(tmp_path).read("runs")) == 30
    assert not list(tmp_path.rglob(".*"))


def test_killed_at_random_moments_the_union_is_whole(tmp_path):
    """Moments are counted in what a writer asks of the disk, so that they do not depend on how busy the machine is."""
    wanted = {made_up(number).id: made_up(number).to_bytes() for number in range(40)}
    moments = random.Random(0)

    def add_all(dies_at):
        asked = 0

        def watched(call):
            def counted(*given, **named):
                nonlocal asked
                asked += 1
                if asked == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*given, **named)

            return counted

        for name in ("open", "fsync", "link", "unlink"):
            setattr(os, name, watched(getattr(os, name)))
        for number in range(40):
            Records(tmp_path).add(made_up(number))

    kills = 0
    for dies_at in [*(moments.randint(1, 12) for _ in range(30)), None]:
        ended = status(forked(partial(add_all, dies_at)))
        kills += ended == -signal.SIGKILL
        for path in tmp_path.glob("runs/*.json.gz"):
            assert path.read_bytes() == wanted[path.name.removesuffix(".json.gz")]
    assert ended == 0
    assert kills >= 10
    assert Records(tmp_path).ids("runs") == sorted(wanted)
    # What was left half written is nobody's, and goes once nobody can be writing it any more.
    stray = tmp_path / "runs" / ".0123.tmp"
    stray.write_bytes(b"half")
    Records(tmp_path).sweep()
    assert stray.exists()
    for path in tmp_path.rglob(".*.tmp"):
        os.utime(path, (0, 0))
    Records(tmp_path).sweep()
    assert not list(tmp_path.rglob(".*.tmp"))
    assert len(Records(tmp_path).read("runs")) == 40


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file stands here")
    with pytest.raises(EestudyError, match=r"cannot be written"):
        Records(tmp_path).add(made_up())


@pytest.fixture(scope="module")
def cell(small_run, small_store, tmp_path_factory):
    """Three seeds of one cell, their records and the union of these."""
    runs = [small_run("mlp", "digits", "mixed", seed=seed) for seed in range(3)]
    folder = tmp_path_factory.mktemp("union")
    for run in runs:
        Records(folder).add(run_record.record_of(run, Store(small_store)))
    return runs, Results("cell", folder)


def test_what_a_runs_record_holds(cell, small_store):
    runs, results = cell
    record = run_record.record_of(runs[0], Store(small_store))
    assert len(record.to_bytes()) < 40_000
    columns = {name: list(frame.columns) for name, frame in record.tables.items()}
    assert columns == {
        "exits": ["exit", "stage", "flops", "params", "accuracy", "nll", "ece"],
        "history": ["phase", "epoch", "exit", "split", "loss", "accuracy"],
        "budgets": [
            "budget",
            "accuracy",
            "flops",
            "validation_accuracy",
            "validation_flops",
            "protocol",
            "rule",
            "allocation",
        ],
        "sweep": ["rule", "threshold", "accuracy", "flops"],
        "tradeoff": ["rule", "allocation", "budget", "accuracy", "flops"],
    }
    pairs = record.tables["budgets"][["rule", "allocation"]].drop_duplicates()
    assert len(pairs) == len(EXIT_RULES) * 3
    facts = record.facts
    assert facts["config"] == runs[0].config.identity()
    assert facts["phases"] == runs[0].phases
    assert {"seconds", "hardware", "versions", "commit", "threads"} <= set(facts["made"])
    row = results.runs[results.runs["run"] == runs[0].id].iloc[0]
    assert row["backbone_flops"] == runs[0].backbone_flops
    mine = results.tradeoff[results.tradeoff["run"] == runs[0].id]
    assert mine["accuracy"].to_numpy() == pytest.approx(runs[0].tradeoff()["accuracy"], rel=1e-5, nan_ok=True)
    history = results.history[results.history["run"] == runs[0].id]
    assert history["loss"].to_numpy() == pytest.approx(runs[0].history()["loss"], rel=1e-5)


def test_the_published_protocol_from_the_union_is_that_of_the_predictions(cell):
    runs, results = cell
    for rule in EXIT_RULES:
        expected = eestudy.budgets(runs, "paper", rule).set_index(["run", "budget"])
        rows = results.budgets[(results.budgets["protocol"] == "paper") & (results.budgets["rule"] == rule)]
        found = rows.set_index(["run", "budget"]).loc[expected.index]
        for name in ("accuracy", "flops"):
            assert found[name].to_numpy() == pytest.approx(expected[name], rel=1e-5, nan_ok=True)
        assert set(rows["allocation"]) == {"shared"}
    # A further seed changes what all choose together.
    two = union.paper_rows(Records(results.folder).read("runs")[:2])
    limit = evaluation.BUDGETS[1]
    assert eestudy.budgets(runs[:2], "paper").query("budget == @limit")["flops"].to_numpy() == pytest.approx(
        two[(two["budget"] == limit) & (two["rule"] == "max-probability")]["flops"], rel=1e-5
    )


def test_a_regression_has_r2_in_every_table(small_run, small_store):
    run = small_run("mlp", "diabetes", "joint")
    tables = run_record.record_of(run, Store(small_store)).tables
    for name, frame in tables.items():
        assert "accuracy" not in frame, name
        assert set(frame["score"]) == {"r2"}, name
        assert "r2" in frame, name
    assert set(tables["budgets"]["allocation"]) == {"shared", "optimized"}
    assert len(tables["sweep"]) == 101
