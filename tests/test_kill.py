"""kill -9 at random moments: what is left is whole, and the run goes on to the bits of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

import eestudy
from eestudy.config import RunConfig
from eestudy.training import loop

from .conftest import SMALL

KILLS = 5  # of each strategy


def forked(config: RunConfig, store: Path) -> int:
    """Starts the run in a child that has torch already: cheap. Returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        # A saved state before every step: the most moments that can go wrong.
        loop.STATE_EVERY, loop.SAVING_SHARE = 0.0, float("inf")
        eestudy.run(config, store=store, device="cpu")
    except BaseException:  # noqa: BLE001  (this is the top of a process)
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def weights_and_records(store: Path) -> dict[str, bytes]:
    """Everything a run leaves that must not depend on how often it was killed."""
    kinds = ("checkpoint-*.safetensors", "records.jsonl", "predictions.safetensors", "exits.parquet")
    return {str(path.relative_to(store)): path.read_bytes() for kind in kinds for path in store.rglob(kind)}


# A forked child of a process with threads is what this test wants; Python warns about it from 3.12 on.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("strategy", eestudy.config.STRATEGIES)
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, strategy):
    config = RunConfig(architecture="resnet-tiny", dataset="digits", strategy=strategy, augmentation="shift", **SMALL)
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(forked(config, tmp_path / "whole"), 0)[1]) == 0
    duration = time.monotonic() - started
    expected = weights_and_records(tmp_path / "whole")
    assert len(expected) >= 10

    moments, killed = random.Random(f"kill {strategy}"), 0
    for _ in range(KILLS):
        child = forked(config, tmp_path / "killed")
        time.sleep(moments.uniform(0.02, 0.6 * duration))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        for folder in (tmp_path / "killed").glob("*/*/manifest.json"):
            kind, name = folder.parts[-3:-1]
            assert eestudy.Store(tmp_path / "killed").folder(kind, name).verify() is None
    assert killed >= KILLS - 2, "the kills came too late to test anything"
    assert os.waitstatus_to_exitcode(os.waitpid(forked(config, tmp_path / "killed"), 0)[1]) == 0
    left = weights_and_records(tmp_path / "killed")
    assert sorted(left) == sorted(expected)
    assert [name for name in expected if left[name] != expected[name]] == []
    assert not (tmp_path / "killed/set-aside").exists()
    assert not list((tmp_path / "killed").rglob("state-*"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_on_one_run_train_it_once(tmp_path, capfd, small_run):
    config = RunConfig(architecture="mlp", dataset="digits", strategy="mixed", **SMALL)
    children = [forked(config, tmp_path), forked(config, tmp_path)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert f"another process works on {config.id}; waiting for it" in capfd.readouterr().err
    assert not (tmp_path / "set-aside").exists()
    alone = small_run("mlp", "digits", "mixed").predictions()[0]
    assert (eestudy.run(config, store=tmp_path).predictions()[0] == alone).all()
