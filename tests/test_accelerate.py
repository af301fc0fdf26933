"""Two processes under `accelerate launch`, over gloo: the run of one process with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import eestudy

STUDY = """
common: {dataset: digits, strategy: mixed, epochs: 3, batch_size: 64, train_size: 256, augmentation: shift+mixup}
grid:
  - architecture: [mlp, resnet-tiny]
"""


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a store that two processes filled, and what they said."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "two.yaml").write_text(STUDY)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--num_machines=1",
    ]
    command += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    command += ["-m", "eestudy", "train", str(folder / "two.yaml"), "--store", str(folder / "store")]
    # --multi_gpu is Accelerate's word for several processes on one machine; with --cpu it would start only one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "store", done.stdout + done.stderr


def both(launched: tuple[Path, str], tmp_path: Path, place: int) -> tuple[eestudy.Run, eestudy.Run]:
    (tmp_path / "two.yaml").write_text(STUDY)
    config = eestudy.load_study(tmp_path / "two.yaml").configs[place]
    two = study_run(config, launched[0])
    return two, eestudy.run(config, store=tmp_path, device="cpu")


def study_run(config: eestudy.RunConfig, store: Path) -> eestudy.Run:
    run = eestudy.Run(config, eestudy.Store(store))
    assert run.folder.verify() is None
    assert run.folder.done()
    return run


def test_the_same_result_as_one_process(launched, tmp_path):
    two, one = both(launched, tmp_path, 0)
    assert two.phases == one.phases
    for split in ("validation", "test"):
        np.testing.assert_allclose(two.predictions(split)[0], one.predictions(split)[0], rtol=1e-4, atol=1e-5)
    ours, theirs = one.history(), two.history()
    assert ours.drop(columns=["loss", "accuracy"]).equals(theirs.drop(columns=["loss", "accuracy"]))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
    np.testing.assert_allclose(ours["accuracy"], theirs["accuracy"], atol=1e-6)


def test_batchnorm_is_not_synchronized(launched, tmp_path):
    """As the book says: each process normalizes by its own part of the batch, so the weights are other ones."""
    two, one = both(launched, tmp_path, 1)
    assert np.isfinite(two.predictions()[0]).all()
    assert np.abs(two.predictions()[0] - one.predictions()[0]).max() > 1e-3


def test_one_process_speaks(launched):
    assert launched[1].count("[1/2] mlp-digits-mixed") == 1


def test_a_batch_that_cannot_be_divided(monkeypatch):
    from eestudy.config import EestudyError
    from eestudy.training import execution

    monkeypatch.setenv("WORLD_SIZE", "3")
    how = execution.Execution(device=None)  # type: ignore[arg-type]
    with pytest.raises(EestudyError, match="batch_size: 128 samples cannot be divided equally among 3 processes"):
        how.part(128)
