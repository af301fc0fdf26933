"""Records between machines: all of a bundle or nothing of it, and the union is whole at every moment."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import time
import zipfile

import pandas as pd
import pytest

import eestudy
from eestudy import bundles
from eestudy.analysis.run_record import record_of
from eestudy.cli import main
from eestudy.records import Record, Records
from eestudy.store import Store

from .processes import forked, status
from .test_records import made_up

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """machines(name): from now on this is the machine of that name, with results of its own."""

    def at(name):
        monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path / name))
        monkeypatch.setenv("EESTUDY_HOME", str(tmp_path / name / "store"))
        return tmp_path / name

    return at


def snapshot(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def exported(machines, tmp_path, numbers=range(3)):
    """A bundle of made-up records that the machine "one" has."""
    union = Records(machines("one") / "small")
    for number in numbers:
        union.add(made_up(number))
    Records(tmp_path / "one" / "large").add(
        Record("dynamics", "rank-0123456789", {}, {"rank": pd.DataFrame({"a": [1]})})
    )
    assert main(["export", str(tmp_path / "x.zip")]) == 0
    return tmp_path / "x.zip"


def test_records_of_one_machine_are_taken_by_another(machines, tmp_path, capsys):
    bundle = exported(machines, tmp_path)
    assert "4 files are in" in capsys.readouterr().out
    machines("two")
    Records(tmp_path / "two" / "small").add(made_up(7))
    other = Record("runs", made_up(1).id, made_up(1).facts, made_up(8).tables)
    Records(tmp_path / "two" / "small").add(other)
    assert main(["import", str(bundle)]) == 0
    said = capsys.readouterr()
    assert "records: 3 added, 0 the same, 1 kept as replicates" in said.out
    assert len(said.err.strip().splitlines()) == 1
    assert len(Records(tmp_path / "two" / "small").read("runs")) == 4
    assert Records(tmp_path / "two" / "large").ids("dynamics") == ["rank-0123456789"]
    assert main(["import", str(bundle), str(bundle)]) == 0
    assert "records: 0 added, 8 the same, 0 kept as replicates" in capsys.readouterr().out
    # Replicates travel too, and find the first one there.
    assert main(["export", str(tmp_path / "y.zip"), "small"]) == 0
    machines("three")
    assert main(["import", str(tmp_path / "y.zip")]) == 0
    assert "1 kept as replicates" in capsys.readouterr().out
    assert Records(tmp_path / "three" / "small").ids("runs") == Records(tmp_path / "two" / "small").ids("runs")


def test_the_same_records_make_the_same_bundle(machines, tmp_path):
    content = exported(machines, tmp_path).read_bytes()
    assert exported(machines, tmp_path).read_bytes() == content


def refused(machines, bundle, capsys, words=""):
    """Exit status 2, one line that names the file, nothing changed."""
    folder = machines("two")
    Records(folder / "small").add(made_up(5))
    before = snapshot(folder)
    capsys.readouterr()
    assert main(["import", str(bundle)]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert str(bundle) in said
    assert words in said
    assert snapshot(folder) == before


def test_a_bundle_cut_anywhere_or_with_a_bit_flipped_changes_nothing(machines, tmp_path, capsys):
    content = exported(machines, tmp_path).read_bytes()
    bad = tmp_path / "bad.zip"
    places = random.Random(0)
    for end in [0, 1, 20, len(content) - 1, *(places.randrange(len(content)) for _ in range(40))]:
        bad.write_bytes(content[:end])
        refused(machines, bad, capsys)
    for place in range(40, len(content) // 2, 97):  # the members themselves
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        bad.write_bytes(bytes(changed))
        folder = machines("two")
        before = snapshot(folder)
        if main(["import", str(bad)]) == 2:
            assert snapshot(folder) == before
        else:  # a date or another detail of the zip that nothing depends on
            with zipfile.ZipFile(bad) as found, zipfile.ZipFile(io.BytesIO(content)) as whole:
                assert [found.read(name) for name in found.namelist()] == [whole.read(n) for n in whole.namelist()]
            shutil.rmtree(folder)


def made(path, members, manifest=None):
    """A bundle with these members, and a manifest that fits them unless another is given."""
    listed = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in members.items()}
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("manifest.json", json.dumps(manifest or {"format": 1, "files": listed}))
        for name, content in members.items():
            bundle.writestr(name, content)
    return path


GOOD = made_up(0).to_bytes()
NAME = f"results/small/runs/{made_up(0).id}.json.gz"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({f"results/../../runs/{made_up(0).id}.json.gz": GOOD}, "has no place"),
        ({f"/results/small/runs/{made_up(0).id}.json.gz": GOOD}, "has no place"),
        ({f"results/small/runs/../../{made_up(0).id}.json.gz": GOOD}, "has no place"),
        ({f"results/small/models/{made_up(0).id}.json.gz": GOOD}, "has no place"),
        ({"results/small/runs.csv": b"run"}, "has no place"),
        ({"store/runs/../x": b"run"}, "has no place"),
        ({"store/locks/a/b": b"run"}, "has no place"),
        ({"results/.git/runs/hooks": GOOD}, "has no place"),
        ({"results/small/runs/other.json.gz": GOOD}, "holds the record runs/mlp-digits-joint-s0"),
        ({f"results/small/dynamics/{made_up(0).id}.json.gz": GOOD}, "holds the record runs/"),
        ({NAME: GOOD[:-1]}, "cut short"),
        ({NAME: b"run,seed"}, "not gzip"),
    ],
)
def test_a_forged_bundle_is_refused(machines, tmp_path, capsys, members, words):
    refused(machines, made(tmp_path / "bad.zip", members), capsys, words)


def test_a_foreign_file_is_refused(machines, tmp_path, capsys):
    refused(machines, tmp_path / "none.zip", capsys, "no such file")
    refused(machines, tmp_path, capsys)
    (tmp_path / "text.zip").write_text("not a zip")
    refused(machines, tmp_path / "text.zip", capsys)
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as foreign:
        foreign.writestr("a.txt", "a")
    refused(machines, tmp_path / "foreign.zip", capsys, "not a bundle")
    newer = {"format": 2, "files": {}}
    refused(machines, made(tmp_path / "newer.zip", {}, newer), capsys, "format 2")
    refused(machines, made(tmp_path / "more.zip", {NAME: GOOD}, {"format": 1, "files": {}}), capsys, "its members")
    refused(machines, made(tmp_path / "list.zip", {}, {"format": 1, "files": [NAME]}), capsys, "not a bundle")


def test_one_bad_bundle_among_good_ones_stops_all(machines, tmp_path, capsys):
    bundle = exported(machines, tmp_path)
    (tmp_path / "bad.zip").write_bytes(bundle.read_bytes()[:-5])
    folder = machines("two")
    assert main(["import", str(bundle), str(tmp_path / "bad.zip")]) == 2
    assert not folder.exists()


def test_mistakes_of_an_export(machines, tmp_path, capsys):
    machines("empty")
    assert main(["export", str(tmp_path / "x.zip")]) == 2
    assert "no study has records here" in capsys.readouterr().err
    exported(machines, tmp_path)
    assert main(["export", str(tmp_path / "z.zip"), "smal"]) == 2
    assert "study: 'smal' has no records" in capsys.readouterr().err
    (record,) = (tmp_path / "one/small/runs").glob("*s1-*")
    record.write_bytes(record.read_bytes()[:-3])
    assert main(["export", str(tmp_path / "z.zip"), "small"]) == 2
    assert str(record) in capsys.readouterr().err
    assert not (tmp_path / "z.zip").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_import_killed_at_any_moment_leaves_a_whole_union(machines, tmp_path):
    bundle = exported(machines, tmp_path, range(30))
    folder, moments = machines("two"), random.Random(1)
    for attempt in range(100):
        child = forked(lambda: bundles.bring_in([bundle], Store()) and 0)
        if attempt < 15:
            time.sleep(moments.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        ended = status(child)
        Records(folder / "small").read("runs")
        if ended == 0:
            break
    assert len(Records(folder / "small").read("runs")) == 30


def test_runs_travel_with_their_phases_and_are_not_trained_again(machines, tmp_path, small_run, small_store, capsys):
    run = small_run("mlp", "digits", "mixed")
    Records(machines("one") / "small").add(record_of(run, Store(small_store)))
    assert main(["export", str(tmp_path / "x.zip"), "--runs", "--store", str(small_store)]) == 0
    machines("two")
    assert main(["import", str(tmp_path / "x.zip")]) == 0
    assert "runs and phases: 3 added to the store" in capsys.readouterr().out
    there = Store(tmp_path / "two/store")
    assert there.whole(there.folder("runs", run.id))
    assert there.phases_whole(there.folder("runs", run.id))
    again = eestudy.Run(run.config, there)
    assert (again.predictions()[0] == run.predictions()[0]).all()
    assert again.model().num_exits == run.model().num_exits
    assert main(["import", str(tmp_path / "x.zip")]) == 0
    assert "0 added to the store, 3 are there already" in capsys.readouterr().out
