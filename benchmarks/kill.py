"""Kills small runs with SIGKILL at random moments and compares what they end with, bit for bit, with undisturbed runs.

    python benchmarks/kill.py --kills 300

Prints progress and time left; writes benchmarks/kill.json, with date and hardware, and a table of what the processes
were doing when they died. Exit status 1 if any run ends with other bits, or a damaged folder was found on the way.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

import eestudy
from eestudy import runs
from eestudy import store as store_module
from eestudy.environment import describe
from eestudy.training import batches, loop
from eestudy.training.eager_step import EagerStep

TINY = {"epochs": 2, "batch_size": 64, "train_size": 192, "checkpoints": (0, 50, 100)}
NETWORKS = (
    {"architecture": "resnet-tiny", "dataset": "digits", "augmentation": "crop+mixup+cutmix"},
    {"architecture": "resnet-tiny", "dataset": "digits", "optimizer": "sgd", "lr": 0.05},
    {"architecture": "vit1d", "dataset": "mnist1d", "dataset_args": {"samples": 1000}, "match": "patience"},
)
STRATEGIES = ("disjoint", "joint", "mixed")
CONFIGS = [eestudy.RunConfig(**TINY, **network, strategy=strategy) for network in NETWORKS for strategy in STRATEGIES]
SAME = ("checkpoint-*.safetensors", "records.jsonl", "predictions.safetensors", "exits.parquet")
A_RUN = 12  # kills at most: a run that hardly advances between them would take them all
KINDS = ("checkpoint", "state", "predictions", "exits.parquet", "records.jsonl", "manifest.json", "done")


class Doing:
    """What a child does at the moment, in memory that it shares with its parent."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 65)  # 64 for words; behind them, whether it has prepared its run

    def __str__(self) -> str:
        return self.memory[:64].rstrip(b"\0").decode()

    def say(self, words: str) -> None:
        self.memory[:64] = words.encode().ljust(64, b"\0")

    def during(self, function: Callable, words: Callable[..., str]) -> Callable:
        """`function`, which says `words` (made from its arguments) while it works."""

        def watched(*arguments, **keywords):
            before = str(self)
            self.say(words(*arguments))
            try:
                return function(*arguments, **keywords)
            finally:
                self.say(before)

        return watched

    def watch(self) -> None:
        """Watches the parts of a run, in this process, from now on."""
        prepare = self.during(runs.prepare, lambda *_: "preparing")

        def prepared(*arguments, **keywords):
            plan = prepare(*arguments, **keywords)
            self.memory[64] = 1
            return plan

        runs.prepare = prepared
        runs.predict_logits = self.during(runs.predict_logits, lambda *_: "predicting")
        EagerStep.step = self.during(EagerStep.step, lambda *_: "a training step")  # type: ignore[method-assign]
        loop.Validation.measured = self.during(loop.Validation.measured, lambda *_: "validation")  # type: ignore[method-assign]
        batches.cached_features = self.during(batches.cached_features, lambda *_: "caching features")
        store_module.Folder.verify = self.during(store_module.Folder.verify, lambda *_: "verifying")  # type: ignore[method-assign]
        # The moment between the rename of a file and its entry in the manifest is in here too.
        store_module.Folder.write = self.during(  # type: ignore[method-assign]
            store_module.Folder.write, lambda folder, name, content: f"entering {kind(name)}"
        )
        store_module.write_atomically = self.during(
            store_module.write_atomically, lambda path, content: f"writing {kind(path.name)}"
        )
        Path.replace = self.during(  # type: ignore[method-assign]
            Path.replace, lambda path, target: f"renaming {kind(target.name)}"
        )


def kind(name: str) -> str:
    return next((known for known in KINDS if name.startswith(known)), "another JSON")


def child(config: eestudy.RunConfig, store: Path, doing: Doing) -> int:
    """Starts the run in a forked process, which has torch already; its process id."""
    doing.say("anything else")
    doing.memory[64] = 0
    pid = os.fork()
    if pid:
        return pid
    try:
        # A saved state before every step: the most that can go wrong.
        loop.STATE_EVERY, loop.SAVING_SHARE = 0.0, float("inf")
        doing.watch()
        eestudy.run(config, store=store, device="cpu")
    except BaseException:  # noqa: BLE001  (this is the top of a process)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def prepared(pid: int, doing: Doing) -> None:
    """Waits until the child has prepared its run, or has ended."""
    while not doing.memory[64]:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def bits(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for name in SAME for path in store.rglob(name)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("kill.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    moments, doing, began = random.Random(options.seed), Doing(), time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    by_strategy: collections.Counter[str] = collections.Counter()
    killed = runs = resumed = 0
    differ: list[str] = []
    aside = 0
    with tempfile.TemporaryDirectory() as root:
        expected, seconds = {}, {}
        for config in CONFIGS:  # here first, so that the children find all of it imported
            with contextlib.redirect_stderr(io.StringIO()):
                eestudy.run(config, store=Path(root) / "here" / config.id, device="cpu")
            whole = Path(root) / "whole" / config.id
            pid = child(config, whole, doing)
            prepared(pid, doing)
            start = time.monotonic()
            if ended(pid):
                return 1
            seconds[config.id] = time.monotonic() - start
            expected[config.id] = bits(whole)
            if bits(Path(root) / "here" / config.id) != expected[config.id]:
                print(f"{config.id}: already two undisturbed runs differ", file=sys.stderr)
                return 1
        while killed < options.kills:
            config = CONFIGS[runs % len(CONFIGS)]
            store, before = Path(root) / f"killed-{runs}", killed
            while True:
                pid = child(config, store, doing)
                if killed < options.kills and killed - before < A_RUN:
                    if moments.random() < 0.9:  # else it may die while it prepares, when there is little to lose
                        prepared(pid, doing)
                    time.sleep(moments.uniform(0, 0.4 * seconds[config.id]))
                    os.kill(pid, signal.SIGKILL)
                status = ended(pid)
                if status == 0:
                    break
                if status != -signal.SIGKILL:
                    differ.append(config.id)
                    break
                killed += 1
                counts[str(doing)] += 1
                by_strategy[config.strategy] += 1
            runs += 1
            resumed += killed > before
            if status == 0 and bits(store) != expected[config.id]:
                differ.append(config.id)
            aside += len(list(store.glob("set-aside/*")))
            left = (time.monotonic() - began) / max(killed, 1) * (options.kills - killed)
            print(
                f"{killed} of {options.kills} kills, {runs} runs, {len(differ)} differ, {left:.0f} s left", flush=True
            )
    facts = {
        "date": date.today().isoformat(),
        **describe(),
        "kills": killed,
        "killed_while": dict(counts.most_common()),
        "kills_by_strategy": dict(sorted(by_strategy.items())),
        "architectures": sorted({config.architecture for config in CONFIGS}),
        "runs": runs,
        "runs_killed_and_resumed": resumed,
        "runs_with_other_bits": len(differ),
        "folders_set_aside": aside,
        "seconds": round(time.monotonic() - began),
    }
    options.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    width = max(map(len, counts), default=0)
    for words, number in counts.most_common():
        print(f"{words:<{width}} {number:>5}")
    print(f"{killed} kills, {resumed} of {runs} runs resumed, {len(differ)} with other bits, {aside} folders set aside")
    return 1 if differ or aside else 0


if __name__ == "__main__":
    sys.exit(main())
