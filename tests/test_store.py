from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eestudy import store as store_module
from eestudy.config import EestudyError
from eestudy.store import Store, home, write_atomically

from .processes import flip_a_bit


def filled(store: Store):
    folder = store.folder("runs", "a")
    folder.write_json("config.json", {"lr": 0.1})
    folder.write_arrays("weights.safetensors", {"w": np.arange(6.0).reshape(2, 3).T}, {"step": 3})
    folder.write_frame("table.parquet", pd.DataFrame({"k": [1, 2]}))
    folder.write_records([{"epoch": 1}, {"epoch": 2}])
    return folder


def test_what_was_written_is_read(tmp_path):
    folder = filled(Store(tmp_path))
    assert folder.json("config.json") == {"lr": 0.1}
    np.testing.assert_array_equal(folder.arrays("weights.safetensors")["w"], np.arange(6.0).reshape(2, 3).T)
    assert folder.metadata("weights.safetensors") == {"step": 3}
    assert list(folder.frame("table.parquet")["k"]) == [1, 2]
    assert folder.records() == [{"epoch": 1}, {"epoch": 2}]
    assert not folder.done()
    folder.finish()
    assert folder.done()
    assert folder.verify() is None


def test_nothing_in_a_store_is_pickled(small_run, small_store):
    small_run("mlp", "digits", "mixed")
    kinds = {path.suffix for path in small_store.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".parquet", ".lock", ""}


FILES = ("config.json", "weights.safetensors", "table.parquet", "records.jsonl", "manifest.json", "done")


def test_reading_compares_with_the_checksum(tmp_path):
    folder = filled(Store(tmp_path))
    readers = {
        "config.json": folder.json, "weights.safetensors": folder.arrays, "table.parquet": folder.frame,
        "records.jsonl": lambda name: folder.records(),
    }  # fmt: skip
    for name, read in readers.items():
        whole = (folder.path / name).read_bytes()
        read(name)
        (folder.path / name).write_bytes(whole[:-1])
        with pytest.raises(EestudyError, match=rf"is damaged: {name} \(.*bytes.*; running it again sets it aside"):
            read(name)
        (folder.path / name).write_bytes(whole)
    flip_a_bit(folder.path / "weights.safetensors")
    with pytest.raises(EestudyError, match=r"weights\.safetensors") as caught:
        folder.metadata("weights.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(EestudyError, match=r"has no run\.json; running it again goes on"):
        folder.json("run.json")


@pytest.mark.parametrize("name", ["manifest.json", "done"])
def test_any_flipped_bit_of_the_bookkeeping_is_noticed(tmp_path, name):
    """The high bits too, which make it no text at all, and white space, which JSON would not miss."""
    folder = filled(Store(tmp_path))
    folder.finish()
    path = folder.path / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert (folder.verify() or "").startswith(name)
    path.write_bytes(whole)
    assert folder.verify() is None


DAMAGES = [(name, damage) for name in FILES for damage in ("truncated", "flipped", "missing")]
DAMAGES.remove(("done", "missing"))  # an unfinished folder, not a damaged one


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damage_is_noticed_named_and_set_aside(tmp_path, capsys, name, damage):
    store = Store(tmp_path)
    folder = filled(store)
    folder.finish()
    assert store.usable(folder)
    path = folder.path / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    assert not store.usable(folder)
    assert not folder.path.exists()
    assert len(list((tmp_path / "set-aside").iterdir())) == 1
    said = capsys.readouterr().err
    assert "damaged" in said
    assert (name if (name, damage) != ("manifest.json", "missing") else "done") in said


def test_an_unfinished_folder_is_kept_but_not_used(tmp_path):
    store = Store(tmp_path)
    folder = filled(store)
    assert not store.usable(folder)
    assert folder.has("config.json")


def test_a_file_half_written_when_the_process_died_is_ignored(tmp_path):
    store = Store(tmp_path)
    folder = filled(store)
    (folder.path / ".weights.safetensors.123.tmp").write_bytes(b"half")
    (folder.path / "state-000000007.safetensors").write_bytes(b"renamed, but not yet in the manifest")
    assert folder.verify() is None
    assert not folder.has("state-000000007.safetensors")
    assert not store.usable(folder)
    assert sorted(path.name for path in folder.path.iterdir()) == sorted([*folder.manifest(), "manifest.json"])


def test_a_done_folder_in_which_something_changes_is_not_done_until_it_is_finished_again(tmp_path):
    folder = filled(Store(tmp_path))
    folder.finish()
    folder.write_json("config.json", {"lr": 0.1})
    assert folder.done(), "the same bytes are no change"
    folder.write_json("more.json", {})
    assert not folder.done()
    assert folder.verify() is None


def test_rewriting_never_leaves_a_manifest_that_lies(tmp_path, monkeypatch):
    """A kill between any two writes: what the manifest names is what the file holds."""
    store = Store(tmp_path)
    folder = filled(store)
    snapshots = []
    write = store_module.write_atomically

    def watched(path, content):
        snapshots.append(folder.verify())
        write(path, content)
        snapshots.append(folder.verify())

    monkeypatch.setattr(store_module, "write_atomically", watched)
    folder.write_json("config.json", {"lr": 0.2})
    assert len(snapshots) >= 6
    assert set(snapshots) == {None}
    assert folder.json("config.json") == {"lr": 0.2}


def hold(path: str, started, release) -> None:
    with Store(path).folder("runs", "a").lock():
        started.set()
        release.wait(30)


def test_one_writer_at_a_time_and_a_dead_one_is_replaced(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), started, release))
    process.start()
    try:
        assert started.wait(60)
        said: list[str] = []

        def on_wait(line: str) -> None:
            said.append(line)
            process.kill()  # dies with the lock in its hands

        with Store(tmp_path).folder("runs", "a").lock(on_wait):
            pass
        assert said == ["another process works on a; waiting for it"]
    finally:
        process.kill()
        process.join()


def test_a_store_that_cannot_be_written_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EestudyError, match=r"cannot be written.*--store") as caught:
        Store(tmp_path / "file" / "runs").check_writable()
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EestudyError, match="the disk is full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_home(tmp_path, monkeypatch):
    monkeypatch.delenv("EESTUDY_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path / "runs"
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root / "tests")
    assert home() == root / "runs"
    monkeypatch.setenv("EESTUDY_HOME", str(tmp_path / "elsewhere"))
    assert home() == tmp_path / "elsewhere"


def test_json_is_readable_by_people(tmp_path):
    folder = filled(Store(tmp_path))
    assert json.loads((folder.path / "config.json").read_text()) == {"lr": 0.1}
