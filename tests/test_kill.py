"""Stopped at any moment (kill -9, Ctrl-C, a loss that is not finite): the next start ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from functools import partial

import numpy as np
import pytest

import eestudy
from eestudy.cli import main
from eestudy.config import EestudyError, RunConfig
from eestudy.training import eager_step, loop
from eestudy.training.eager_step import EagerStep

from .processes import Steps, bits, different, ended, forked, kill_at, status, train

# A forked child of a process with threads is what these tests want; Python warns about it from 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

TINY = {"epochs": 2, "batch_size": 64, "train_size": 192, "checkpoints": (0, 50, 100)}
RESNET = {**TINY, "architecture": "resnet-tiny", "dataset": "digits"}
VIT = {**TINY, "architecture": "vit1d", "dataset": "mnist1d", "train_size": 128, "dataset_args": {"samples": 1000}}
# Between them: the frozen backbone's features cached and not, both optimizers, blends, and training by patience.
CASES = {
    "disjoint, cached features": RunConfig(**RESNET, strategy="disjoint", optimizer="sgd", lr=0.05),
    "disjoint, augmented": RunConfig(**RESNET, strategy="disjoint", augmentation="shift+flip+cutout"),
    "joint, by patience": RunConfig(**{**VIT, "epochs": 5}, strategy="joint", match="patience", patience=1, lr=0.02),
    "mixed, blends": RunConfig(**RESNET, strategy="mixed", augmentation="crop+mixup+cutmix"),
}
KILLS = 4  # of each


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """undisturbed(config) -> bits of the run, trained here, in one go and without a saved state; and its steps."""
    store, known = tmp_path_factory.mktemp("undisturbed"), {}

    def make(config):
        if config.id not in known:
            made = eestudy.run(config, store=store, device="cpu")
            summaries = [eestudy.Store(store).folder("phases", phase).json("summary.json") for phase in made.phases]
            known[config.id] = bits(config, store), sum(summary["steps"] for summary in summaries)
        return known[config.id]

    return make


def assert_whole(store):
    for manifest in store.glob("*/*/manifest.json"):
        assert eestudy.Store(store).folder(*manifest.parts[-3:-1]).verify() is None


def assert_like(undisturbed, config, store):
    assert different(bits(config, store), undisturbed(config)[0]) == []
    assert not (store / "set-aside").exists()
    left_over = [path for path in store.rglob("*") if path.name.startswith(("state-", ".")) or path.suffix == ".tmp"]
    assert left_over == []


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, undisturbed, config):
    expected, total = undisturbed(config)
    assert status(forked(lambda: train(config, tmp_path / "whole"))) == 0
    assert different(bits(config, tmp_path / "whole"), expected) == []

    moments, killed = random.Random(f"kill {config.id}"), 0
    for number in range(20):  # a run that ends before it was killed often enough is followed by another
        store, steps, before = tmp_path / f"killed-{number}", Steps(), killed
        while True:
            child = forked(lambda: train(config, store, steps))  # noqa: B023  (it runs at once)
            if killed < KILLS:
                # Counted in steps, which a busy machine does not change; then a little into the step, or out of it.
                goal = steps.done + moments.randint(0, total // 2)
                until(lambda: steps.done >= goal or ended(child))  # noqa: B023
                time.sleep(moments.uniform(0, 0.05))
                os.kill(child, signal.SIGKILL)
            if status(child) == 0:
                break
            killed += 1
            assert_whole(store)
        assert_like(undisturbed, config, store)
        assert steps.done <= total + killed - before, "a kill costs no more than the step it falls into"
        if killed == KILLS:
            return
    raise AssertionError("the kills came too late to test anything")


# In the order in which a run with one phase writes them; it is killed at two or three moments of each.
WRITES = (
    ("runs/config.json", 1), ("phases/environment.json", 1), ("phases/config.json", 1), ("phases/checkpoint-000", 1),
    ("phases/state-", 1), ("phases/manifest.json", 1), ("phases/checkpoint-050", 1), ("phases/state-", 2),
    ("phases/manifest.json", 2), ("phases/checkpoint-100", 1), ("phases/records.jsonl", 1), ("phases/summary.json", 1),
    ("phases/manifest.json", 1), ("phases/done", 1), ("runs/predictions", 1), ("runs/exits.parquet", 1),
    ("runs/manifest.json", 1), ("runs/run.json", 1), ("runs/environment.json", 1), ("runs/done", 1),
)  # fmt: skip


def train_and_die(where, moment, nth, config, store, steps):
    kill_at(where, moment, nth)
    train(config, store, steps)


def train_held(until_there, config, store, steps):
    held(until_there, steps)
    train(config, store, steps)


def test_killed_at_the_write_of_every_file_it_ends_with_the_same_bits(tmp_path, undisturbed):
    config = RunConfig(**{**RESNET, "architecture": "mlp", "epochs": 4}, strategy="joint")
    steps, kills = Steps(), 0
    total = undisturbed(config)[1]  # first, so that the children find everything imported
    for where, nth in WRITES:
        before = ["before the rename"] if "manifest" in where or "state" in where else []
        for moment in ("half written", *before, "after the rename"):
            child = forked(partial(train_and_die, where, moment, nth, config, tmp_path, steps))
            ended = status(child)
            assert ended == -signal.SIGKILL, f"{where} was not written: exit status {ended}"
            kills += 1
            assert_whole(tmp_path)
    assert status(forked(lambda: train(config, tmp_path, steps))) == 0
    assert_like(undisturbed, config, tmp_path)
    assert steps.done <= total + kills


def test_two_processes_on_one_run_train_it_once(tmp_path, capfd, undisturbed):
    config, steps = RunConfig(**{**RESNET, "architecture": "mlp"}, strategy="mixed"), Steps()
    total = undisturbed(config)[1]
    others_wait = tmp_path / "others wait"
    children = [forked(partial(train_held, others_wait, config, tmp_path, steps)) for _ in range(3)]
    waits_for(capfd, f"another process works on {config.id}; waiting for it", 2)
    others_wait.touch()
    assert [status(child) for child in children] == [0, 0, 0]
    assert steps.done == total
    assert_like(undisturbed, config, tmp_path)


def waits_for(capfd, line, times):
    """Until the children have said `line` so often."""
    said = ""

    def enough():
        nonlocal said
        said += capfd.readouterr().err
        return said.count(line) >= times

    until(enough)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, capfd, undisturbed):
    config, steps = RunConfig(**{**RESNET, "architecture": "mlp"}, strategy="joint"), Steps()
    total = undisturbed(config)[1]
    holder = forked(partial(train_held, tmp_path / "never", config, tmp_path, steps))
    until(lambda: steps.done >= 2)
    waiting = forked(lambda: train(config, tmp_path, steps))
    waits_for(capfd, "waiting for it", 1)
    os.kill(holder, signal.SIGKILL)
    assert status(holder) == -signal.SIGKILL
    assert status(waiting) == 0
    assert_like(undisturbed, config, tmp_path)
    assert total <= steps.done <= total + 1, "it goes on where the other one stopped"


def until(happened):
    for _ in range(60_000):  # only so that a fault ends at some time
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in ten minutes")


def held(until_there, steps):
    """Lets this process train two steps, and no more before there is the file `until_there`."""
    step = EagerStep.step

    def waiting(*arguments):
        while steps.done >= 2 and not until_there.exists():
            time.sleep(0.01)
        step(*arguments)

    EagerStep.step = waiting  # type: ignore[method-assign]


@pytest.mark.parametrize(("number", "presses"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_ctrl_c_and_a_scheduler_that_ends_it_save_and_say_how_to_go_on(tmp_path, capfd, undisturbed, number, presses):
    config, steps, pressed = CASES["mixed, blends"].replace(epochs=6), Steps(), tmp_path / "pressed"
    expected, total = undisturbed(config)
    params, store = tmp_path / "my.yaml", tmp_path / "store"
    settings = config.model_dump(mode="json", exclude_defaults=True)
    params.write_text(json.dumps(settings))

    def child():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        steps.count()
        held(pressed, steps)
        return main(["train", str(params), "--store", str(store)])

    started = forked(child)
    until(lambda: steps.done >= 2)
    for _ in range(presses):
        os.kill(started, number)
        time.sleep(0.05)  # two signals at once would be one
    pressed.touch()
    assert status(started) == 128 + number
    lines = [line for line in capfd.readouterr().err.splitlines() if "interrupted" in line]
    assert len(lines) == 1
    assert "the same command goes on" in lines[0]
    assert_whole(store)
    if presses == 1:  # the second press does not wait for the step to end
        assert len(list(store.glob("phases/*/state-*.safetensors"))) == 1
    before = steps.done
    assert status(forked(lambda: train(config, store, steps))) == 0
    assert different(bits(config, store), expected) == []
    if presses == 1:
        assert 2 <= before < total
        assert steps.done == total, "Ctrl-C costs no step"


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_phase_and_keeps_the_state_before(tmp_path, monkeypatch, bad):
    config = RunConfig(**{**RESNET, "architecture": "mlp", "epochs": 4}, strategy="mixed", lr=0.02)
    monkeypatch.setattr(loop, "STATE_EVERY", 0.0)
    monkeypatch.setattr(loop, "SAVING_SHARE", float("inf"))
    spoil(monkeypatch, bad, at=4)
    saved = None
    for _ in range(2):  # the second time it goes on from the state and comes to the same end
        with pytest.raises(EestudyError) as caught:
            eestudy.run(config, store=tmp_path, device="cpu")
        # 2 epochs of 3 steps in the backbone phase; the cosine at 4 of 6 steps, after a warm-up of 5 %.
        assert re.match(
            r"phase backbone: loss or gradient is not finite in epoch 2, step 5 of 6, at learning rate 0\.00548;",
            str(caught.value),
        )
        assert "\n" not in str(caught.value)
        assert_whole(tmp_path)
        states = list(tmp_path.glob("phases/*/state-*"))
        assert [path.name for path in states] == ["state-000000004.safetensors"]
        state = eestudy.Store(tmp_path).folder("phases", states[0].parent.name).arrays(states[0].name)
        assert all(np.isfinite(value).all() for value in state.values())
        assert saved is None or all((state[name] == saved[name]).all() for name in saved)
        saved = state
        assert not list(tmp_path.glob("phases/*/done"))
    monkeypatch.undo()
    eestudy.run(config, store=tmp_path, device="cpu")
    whole = eestudy.run(config, store=tmp_path / "whole", device="cpu")
    assert different(bits(config, tmp_path), bits(config, tmp_path / "whole")) == []
    assert whole.exits()["accuracy"].max() > 0.2


def spoil(monkeypatch, bad, at):
    """Makes the loss, or the gradient alone, infinite at step `at` (from 0) of each phase."""
    step, losses_of, now = EagerStep.step, eager_step.exit_losses, -1

    def watched(self, *rest):
        nonlocal now
        now = self.state.progress.step
        step(self, *rest)

    def spoilt(*given):
        losses = losses_of(*given)
        if now == at and losses.requires_grad:
            if bad == "loss":
                return losses + float("inf")
            losses.register_hook(lambda gradient: gradient * float("inf"))
        return losses

    monkeypatch.setattr(EagerStep, "step", watched)
    monkeypatch.setattr(eager_step, "exit_losses", spoilt)


def test_a_learning_rate_that_is_far_too_high_stops_the_phase(tmp_path):
    config = RunConfig(**RESNET, strategy="joint", optimizer="sgd", lr=1e30, clip=None, schedule="constant", warmup=0)
    with pytest.raises(
        EestudyError, match=r"not finite in epoch \d, step \d of 6, at learning rate 1e\+30; try a lower"
    ):
        eestudy.run(config, store=tmp_path, device="cpu")
