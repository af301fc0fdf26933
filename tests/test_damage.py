"""What a real run leaves, damaged and made again; and disks that are full."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

import eestudy
from eestudy.analysis.executor import EVALUATIONS, analyse_study
from eestudy.cli import main
from eestudy.config import EestudyError, RunConfig
from eestudy.records import Record, Records, agree
from eestudy.store import Folder, Store
from eestudy.study import load_study
from eestudy.training import loop
from eestudy.training.eager_step import EagerStep

from .processes import bits, different, flip_a_bit, forked, status, train

TINY = RunConfig(
    architecture="mlp", dataset="digits", strategy="joint", epochs=2, batch_size=64, train_size=192,
    checkpoints=(0, 50, 100),
)  # fmt: skip
WRITTEN = (
    "runs/config.json", "runs/environment.json", "runs/run.json", "runs/exits.parquet", "runs/predictions.safetensors",
    "runs/manifest.json", "runs/done", "phases/config.json", "phases/environment.json", "phases/records.jsonl",
    "phases/summary.json", "phases/checkpoint-000.safetensors", "phases/checkpoint-050.safetensors",
    "phases/checkpoint-100.safetensors", "phases/manifest.json", "phases/done",
)  # fmt: skip
SETTINGS = json.dumps(TINY.model_dump(mode="json", exclude_defaults=True))  # JSON is YAML


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("finished")
    eestudy.run(TINY, store=store, device="cpu")
    return store


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped before the fourth of six steps, with a saved state."""
    store = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "STATE_EVERY", 0.0)
        patch.setattr(loop, "SAVING_SHARE", float("inf"))
        step, done = EagerStep.step, []

        def stopping(*arguments):
            done.append(1)
            if len(done) == 4:
                raise KeyboardInterrupt
            step(*arguments)

        patch.setattr(EagerStep, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            eestudy.run(TINY, store=store, device="cpu")
    return store


def damage(path: Path, kind: str) -> None:
    if kind == "truncated":
        os.truncate(path, path.stat().st_size * 2 // 3)
    else:
        flip_a_bit(path)


def test_the_list_of_files_is_complete(finished):
    there = {f"{path.parent.parent.name}/{path.name}" for path in finished.glob("*/*/*")}
    assert there == set(WRITTEN)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_damaged_file_of_a_finished_run_is_set_aside_and_made_again(tmp_path, finished, capsys, name, kind):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    expected = bits(TINY, store)
    (path,) = store.glob(f"{Path(name).parent}/*/{Path(name).name}")
    damage(path, kind)
    eestudy.run(TINY, store=store, device="cpu")
    said = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(said) == 1
    assert f"{path.parent} is damaged: {path.name} (" in said[0] or f"{path.parent} is damaged: {path.name} " in said[0]
    (aside,) = (store / "set-aside").iterdir()
    assert aside.name.startswith(path.parent.name)
    assert different(bits(TINY, store), expected) == []
    eestudy.run(TINY, store=store, device="cpu")
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
@pytest.mark.parametrize("name", ["state-000000003.safetensors", "checkpoint-050.safetensors", "manifest.json"])
def test_a_damaged_file_of_an_unfinished_phase_is_set_aside_and_made_again(
    tmp_path, finished, unfinished, capsys, name, kind
):
    store = tmp_path / "store"
    shutil.copytree(unfinished, store)
    (path,) = store.glob(f"phases/*/{name}")
    damage(path, kind)
    eestudy.run(TINY, store=store, device="cpu")
    said = capsys.readouterr().err
    assert f"{path.parent} is damaged: {name} (" in said
    assert len(list((store / "set-aside").iterdir())) == 1
    assert different(bits(TINY, store), bits(TINY, finished)) == []


def test_a_state_that_is_there_already_is_left_alone(tmp_path, unfinished, monkeypatch):
    """Writing it again right after a resume would leave a moment without it."""
    store = tmp_path / "store"
    shutil.copytree(unfinished, store)

    def refuse(*arguments):
        raise AssertionError("changed what is there")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "STATE_EVERY", 0.0)
    monkeypatch.setattr(EagerStep, "step", interrupt)
    monkeypatch.setattr(Folder, "remove", refuse)
    with pytest.raises(KeyboardInterrupt):
        eestudy.run(TINY, store=store, device="cpu")


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
def test_a_damaged_measurement_and_evaluation_are_made_again(tmp_path, finished, capsys, kind):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    (tmp_path / "tiny.yaml").write_text(SETTINGS)
    study = load_study(tmp_path / "tiny.yaml")

    def recorded(name: str) -> list[Record]:
        """What the store comes to in a folder of records that is new."""
        for names in (["rank"], EVALUATIONS):
            assert not analyse_study(study, names, Store(store), Records(tmp_path / name))
        return [record for kind in ("dynamics", "evaluation") for record in Records(tmp_path / name).read(kind)]

    before = recorded("before")
    damage(next(store.glob("dynamics/*/rank.parquet")), kind)
    damage(next(store.glob("evaluations/*/*.parquet")), kind)
    capsys.readouterr()
    after = recorded("after")
    assert len(before) == len(after) > 2
    assert all(agree(left, right) for left, right in zip(before, after, strict=True))
    said = capsys.readouterr().err
    assert said.count("measurements, 1 to make") == 2
    assert len(list((store / "set-aside").iterdir())) == 2


def test_damaged_weights_and_predictions_are_never_used(tmp_path, finished):
    store = tmp_path / "store"
    shutil.copytree(finished, store)
    run = eestudy.run(TINY, store=store, device="cpu")
    for pattern, read in (
        ("phases/*/checkpoint-100.safetensors", run.model),
        ("phases/*/records.jsonl", run.history),
        ("runs/*/predictions.safetensors", run.predictions),
        ("runs/*/exits.parquet", run.exits),
    ):
        (path,) = store.glob(pattern)
        whole = path.read_bytes()
        flip_a_bit(path)
        with pytest.raises(EestudyError, match=f"is damaged: {path.name} .*running it again") as caught:
            read()
        assert "\n" not in str(caught.value)
        path.write_bytes(whole)


def params(folder: Path) -> str:
    (folder / "my.yaml").write_text(SETTINGS)
    return str(folder / "my.yaml")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte. Only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if mounted is None or mounted.returncode:
        pytest.skip(f"no small disk to fill: {mounted.stderr.strip() if mounted else 'no mount command'}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("free", [0, 8, 60, 150, 300])  # kilobytes: enough for ever more of the files
def test_a_full_disk_gets_one_line_and_the_store_stays_usable(tmp_path, finished, small_disk, capsys, free):
    store, filler = small_disk / "store", small_disk / "filler"
    store.mkdir()
    with filler.open("wb", buffering=0) as file:
        rest = os.statvfs(small_disk)
        file.write(b"\0" * (rest.f_bavail * rest.f_frsize - free * 1024))
    assert main(["train", params(tmp_path), "--store", str(store)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("eestudy: [")]
    assert len(said) == 1
    assert str(store) in said[0]
    assert "the disk is full; free some space and run the same command again" in said[0]
    assert not list(small_disk.rglob(".*"))
    filler.unlink()
    assert main(["train", params(tmp_path), "--store", str(store)]) == 0
    assert "damaged" not in capsys.readouterr().err
    assert different(bits(TINY, store), bits(TINY, finished)) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("limit", [60_000, 200_000])  # bytes: less than the checkpoints have, and than the states
def test_a_file_that_may_not_grow_gets_one_line_and_the_store_stays_usable(tmp_path, finished, capfd, limit):
    store = tmp_path / "store"

    def limited():
        loop.STATE_EVERY, loop.SAVING_SHARE = 0.0, float("inf")
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return main(["train", params(tmp_path), "--store", str(store)])

    assert status(forked(limited)) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("eestudy: [")]
    assert len(said) == 1
    assert str(store) in said[0]
    assert "larger than a file may be here; raise the limit (ulimit -f)" in said[0]
    assert not [path for path in store.rglob(".*") if path.is_file()]
    assert status(forked(lambda: train(TINY, store))) == 0
    assert different(bits(TINY, store), bits(TINY, finished)) == []
