"""The same bits in another process, beside other runs, and with another number of reading processes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eestudy
from eestudy.config import RunConfig
from eestudy.data import folders, imagenet
from eestudy.plan import prepare

from .processes import bits, different

TINY = {"epochs": 2, "batch_size": 64, "train_size": 192, "checkpoints": (0, 50, 100)}
CONFIGS = (
    RunConfig(**TINY, architecture="resnet-tiny", dataset="digits", strategy="mixed", augmentation="crop+flip+mixup"),
    RunConfig(**TINY, architecture="vit1d", dataset="mnist1d", strategy="disjoint", dataset_args={"samples": 1000}),
)


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def command(config: RunConfig, folder: Path, store: Path, *options: str) -> list[str]:
    path = folder / f"{config.architecture}.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))  # JSON is YAML
    return [sys.executable, "-m", "eestudy", "train", str(path), "--store", str(store), "--device", "cpu", *options]


def test_other_processes_side_by_side_make_the_same_bits(tmp_path, small_store):
    """Two new Python processes, each on another run, at the same time; and this one, which has run much else."""
    started = [
        subprocess.Popen(command(config, tmp_path, tmp_path / "store"), env=one_thread(), stdout=subprocess.DEVNULL)
        for config in CONFIGS
    ]
    for config in CONFIGS:
        eestudy.run(config, store=small_store, device="cpu")
    assert [process.wait() for process in started] == [0, 0]
    for config in CONFIGS:
        assert different(bits(config, tmp_path / "store"), bits(config, small_store)) == []


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A small Imagenette in its true layout: 12 training and 2 test pictures a class, smooth random colours."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data" / "imagenette" / "imagenette2-160"
    for split, count in (("train", 12), ("val", 2)):
        for wnid in imagenet.IMAGENETTE:
            (folder / split / wnid).mkdir(parents=True)
            for number in range(count):
                small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                picture = small.resize((180, 160), Image.Resampling.BICUBIC)
                picture.save(folder / split / wnid / f"{wnid}_{number}.JPEG")
    monkeypatch.setenv("EESTUDY_DATA", str(tmp_path / "data"))
    source = dataclasses.replace(imagenet.SOURCES["imagenette"], train=120, test=20)
    monkeypatch.setitem(imagenet.SOURCES, "imagenette", source)
    monkeypatch.setattr(folders, "_cores", lambda: 2)


def test_any_number_of_readers_makes_the_same_bits(tmp_path, pictures):
    config = RunConfig(
        architecture="resnet-tiny", dataset="imagenette", dataset_args={"size": 32}, strategy="mixed", epochs=2,
        batch_size=32, augmentation="crop+flip+cutmix", checkpoints=(0, 100),
    )  # fmt: skip
    for workers in (0, 2):
        made = eestudy.run(config, store=tmp_path / str(workers), device="cpu", workers=workers)
        assert made.data().train.streamed
    assert different(bits(config, tmp_path / "0"), bits(config, tmp_path / "2")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no groups of processes that a terminal interrupts")
def test_ctrl_c_in_a_terminal_reaches_the_readers_too_and_nothing_is_lost(tmp_path, pictures):
    """A terminal sends SIGINT to the whole group: the run ends with 130, a saved state, and later the same bits."""
    config = RunConfig(
        architecture="resnet-tiny", dataset="imagenette", dataset_args={"size": 32}, strategy="joint", epochs=20,
        batch_size=32, checkpoints=(0, 100),
    )  # fmt: skip
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    arguments = command(config, tmp_path, tmp_path / "store", "--workers", "2")[3:]
    process = subprocess.Popen(
        [sys.executable, str(program), *arguments],
        env={**one_thread(), "PYTHONPATH": str(Path(eestudy.__file__).parents[1])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    phase = prepare(config).phase_ids[0]
    while not (tmp_path / "store" / "phases" / phase / "checkpoint-000.safetensors").is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    time.sleep(0.5)  # into the training, with readers at work
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "goes on from there" in said.splitlines()[-1]
    assert list((tmp_path / "store" / "phases" / phase).glob("state-*"))
    for store in ("store", "undisturbed"):
        eestudy.run(config, store=tmp_path / store, device="cpu")
    assert different(bits(config, tmp_path / "store"), bits(config, tmp_path / "undisturbed")) == []


# The command line, with the small Imagenette counting as a whole one, as `pictures` makes it here.
PROGRAM = """
import dataclasses, sys
from eestudy.cli import main
from eestudy.data import folders, imagenet

if __name__ == "__main__":
    imagenet.SOURCES["imagenette"] = dataclasses.replace(imagenet.SOURCES["imagenette"], train=120, test=20)
    folders._cores = lambda: 2
    sys.exit(main(sys.argv[1:]))
"""
