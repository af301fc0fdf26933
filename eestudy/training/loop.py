"""The only training loop: one phase, from its first step or its last saved state to its final weights.

Shapes: B batch, K exits in the phase's loss, C classes.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eestudy.config import EestudyError, named_seed
from eestudy.data import DataSet
from eestudy.models import MultiExit
from eestudy.store import Folder
from eestudy.training.batches import Batches, Inputs, training_batches
from eestudy.training.eager_step import EagerStep, Step
from eestudy.training.execution import Execution
from eestudy.training.freezing import PhaseNetwork, phase_exits, set_trainable, trained_tensors
from eestudy.training.normalization import reestimate
from eestudy.training.objective import Objective
from eestudy.training.optim import build_optimizer, learning_rate
from eestudy.training.phases import Phase
from eestudy.training.saved import Progress, State, arrays, state_files
from eestudy.training.validation import Validation, scores
from eestudy.training.whole_step import WholeStep

# Seconds between saved states, which is what a kill costs at most; longer where saving would take more than a
# twentieth of the time.
STATE_EVERY = 15.0
SAVING_SHARE = 1 / 20
# Epochs of a phase after which training and validation are measured, at most; every one would cost up to 40 % of a run.
MEASURED = 20
# Steps between two looks at what the device or the other processes have to say, where looking makes them wait.
LOOK_EVERY = 16


@dataclass(frozen=True)
class Hooks:
    """What a method adds to the training of phases whose `Phase.method` is set.

    objective: a class derived from Objective, or what makes one of the same arguments. before: what is done before each
    step, with (network, state, objective, x, targets, done, execution) as in `Step`.
    """

    objective: Callable[..., Objective] = Objective
    before: Callable[..., None] | None = None


def train_phase(
    model: MultiExit,
    phase: Phase,
    data: DataSet,
    folder: Folder,
    seed: int,
    place: int,
    execution: Execution,
    hooks: Hooks | None = None,
) -> None:
    """Trains what `phase` trains of `model` in place, leaving checkpoints and records in `folder`.

    seed: the run's; place: of the phase in its strategy, from 0. The model starts from the weights it comes with.
    Raises EestudyError when the loss is not finite, naming epoch, step and learning rate; the saved state before stays.
    """
    hooks = hooks or Hooks()
    seeds = (seed, f"phase-{place}")
    device = execution.device
    model.to(device)
    parameters = set_trainable(model, phase)
    exits = phase_exits(model, phase)
    batches = training_batches(model, phase, data, seeds, execution)
    _check_turns(phase, batches)
    validation = Validation(model, phase, data, execution, cached=batches.cache is not None)
    total = batches.steps_an_epoch * phase.settings.epochs
    # Several shares of a short phase can fall on one step.
    due = {share: round(share / 100 * total) for share in phase.settings.checkpoints if share < 100}

    objective = hooks.objective(model, phase, batches, seeds, execution)
    optimizer = build_optimizer([*parameters, *objective.parameters()], phase)
    state = State(model, phase, optimizer, torch.zeros(2, len(exits), device=device), objective=objective)
    state.load(folder)
    progress = state.progress
    bad = torch.full((), math.inf, device=device)  # the first step whose loss or gradient is not finite
    step = _step(model, state, objective, bad, total, execution)
    watch = Watch(progress.seconds)
    epoch = -1
    feed: Iterator[tuple[Inputs, Tensor]] = iter(())
    hidden = None if execution.main else True  # None: where nobody looks
    bar = _Bar(total=total, initial=progress.step, desc=phase.name, unit="step", disable=hidden, leave=False)

    with _interrupt_between_steps() as interrupted, bar:
        while True:
            if progress.step in due.values():
                _stop_if_not_finite(bad, phase, batches, total)
            if execution.main:
                for share, at in due.items():
                    if at == progress.step:
                        folder.write_arrays(checkpoint_name(share), arrays(trained_tensors(model, phase)))
            if progress.step == total or _out_of_patience(progress, phase):
                break
            looks = execution.processes == 1 or progress.step % LOOK_EVERY == 0
            if looks and (stop := execution.agreed((interrupted() << 1) + watch.due())):
                _stop_if_not_finite(bad, phase, batches, total)
                progress.seconds = watch.seconds()
                if execution.main:
                    watch.saving(lambda: state.save(folder))
                if stop > 1:
                    raise KeyboardInterrupt
            if epoch != progress.step // batches.steps_an_epoch:
                epoch, first = divmod(progress.step, batches.steps_an_epoch)
                feed = batches.epoch(epoch, first)
            x, targets = next(feed)

            done = progress.step / total
            if hooks.before:
                execution.seed(named_seed(*seeds, "before", progress.step, execution.rank))
                hooks.before(step.network, state, objective, x, targets, done, execution)
            execution.seed(named_seed(*seeds, "noise", progress.step, execution.rank))
            step.step(x, targets, done)
            progress.step += 1
            bar.update()
            if device.type == "cpu" or progress.step % LOOK_EVERY == 0:
                _stop_if_not_finite(bad, phase, batches, total)
            if progress.step % batches.steps_an_epoch == 0:
                _stop_if_not_finite(bad, phase, batches, total)
                if measured_after(epoch + 1, phase):
                    train = execution.summed(state.sums) / (batches.steps_an_epoch * execution.processes)
                    if phase.turns:
                        train[:, :-1] /= _share_of_all(phase, progress.step, batches.steps_an_epoch)
                    held_out = validation.measured()
                    set_trainable(model, phase)
                    train[1] = scores(train, data.train.y)
                    _record(progress, exits, epoch + 1, train, held_out, data.task)
                    bar.set_postfix_str(_seen(epoch + 1, phase, exits, train, held_out, data.task))
                    if phase.settings.patience and improved(progress, held_out[1].tolist()):
                        state.best = {name: value.clone() for name, value in trained_tensors(model, phase).items()}
                state.sums.zero_()

    step.end()
    if state.best:
        model.load_state_dict(state.best, strict=False)
    if phase.settings.batchnorm == "reestimate":
        reestimate(model, phase, batches, execution)
    if execution.main:
        folder.write_arrays(checkpoint_name(100), arrays(trained_tensors(model, phase)))
        folder.write_records(progress.records)
        samples = progress.step * batches.size
        folder.write_json(
            "summary.json", {"seconds": round(watch.seconds(), 3), "steps": progress.step, "samples": samples}
        )
        for name in state_files(folder):
            folder.remove(name)
    if execution.agreed(interrupted()):  # pressed during the last step: the phase is whole, the run ends here
        raise KeyboardInterrupt


def _step(model: MultiExit, state: State, objective: Objective, bad: Tensor, total: int, execution: Execution) -> Step:
    """What makes the phase's `total` steps."""
    network = PhaseNetwork(model, state.phase)
    if execution.whole_steps:
        return WholeStep(network, state, objective, bad, execution)
    # Where each exit's gradient is wanted by itself, the network does not run as a whole.
    whole = state.phase.settings.gradient_combination == "sum"
    return EagerStep(execution.prepared(network, total) if whole else network, state, objective, bad, execution)


class _Bar(tqdm):
    """Locked in this process alone: tqdm's own lock is one with that of forked processes, and a killed one keeps it."""

    monitor_interval = 0  # no thread for a bar that moves by itself


_Bar.set_lock(threading.RLock())


def _check_turns(phase: Phase, batches: Batches) -> None:
    if batches.steps_an_epoch < len(phase.turns):
        raise EestudyError(
            f"batch_size: {batches.size} makes one step an epoch of {len(batches.split)} samples; phase {phase.name} "
            f"needs {len(phase.turns)}, as its steps take turns"
        )


def _share_of_all(phase: Phase, end: int, steps: int) -> float:
    """Share of the last `steps` steps before `end` in which all exits had their turn."""
    return sum(phase.turns[step % len(phase.turns)] == "all" for step in range(end - steps, end)) / steps


def checkpoint_name(share: int) -> str:
    """The file of the weights after `share` per cent of a phase."""
    return f"checkpoint-{share:03d}.safetensors"


class Watch:
    """Seconds of training, and when to save the state next."""

    def __init__(self, before: float) -> None:
        self.saved = time.perf_counter()
        self.started = self.saved - before
        self.every = STATE_EVERY

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def due(self) -> bool:
        return time.perf_counter() - self.saved > self.every

    def saving(self, save: Any) -> None:
        began = time.perf_counter()
        save()
        self.saved = time.perf_counter()
        self.every = max(STATE_EVERY, (self.saved - began) / SAVING_SHARE)


def _stop_if_not_finite(bad: Tensor, phase: Phase, batches: Batches, total: int) -> None:
    if math.isfinite(first := float(bad)):
        step = int(first)
        lr = learning_rate(phase, step / total)
        raise EestudyError(
            f"phase {phase.name}: loss or gradient is not finite in epoch {step // batches.steps_an_epoch + 1}, step "
            f"{step + 1} of {total}, at learning rate {lr:.3g}; try a lower lr, clip or float32"
        )


def _seen(epoch: int, phase: Phase, exits: list[int], train: Tensor, held_out: Tensor, task: str) -> str:
    """What the progress bar shows: loss of training, accuracy or R2 on validation of the first and last exit."""
    ends = [0] if len(exits) == 1 else [0, -1]
    form = ".1%" if task == "classification" else ".3f"
    shown = ", ".join(f"exit {exits[place]} {float(held_out[1][place]):{form}}" for place in ends)
    return f"epoch {epoch}/{phase.settings.epochs}, loss {float(train[0].mean()):.3f}, {shown}"


def measured_after(epoch: int, phase: Phase) -> bool:
    """Whether training and validation are measured after this epoch (from 1).

    The last one always; with patience, which decides by them, every one; else at most MEASURED, evenly.
    """
    epochs = phase.settings.epochs
    return bool(phase.settings.patience) or epoch * MEASURED // epochs > (epoch - 1) * MEASURED // epochs


def _record(progress: Progress, exits: list[int], epoch: int, train: Tensor, validation: Tensor, task: str) -> None:
    score = "accuracy" if task == "classification" else "r2"
    for split, (losses, values) in (("train", train.tolist()), ("validation", validation.tolist())):
        for number, loss, value in zip(exits, losses, values, strict=True):
            progress.records.append({"epoch": epoch, "exit": number, "split": split, "loss": loss, score: value})


def improved(progress: Progress, values: list[float]) -> bool:
    """Whether an exit is better than ever on validation data; counts for each the epochs in which it was worse.

    As the paper's public code does it: a tie with the best is neither an improvement nor counted.
    """
    best = progress.best or [-math.inf] * len(values)
    stale = progress.stale or [0] * len(values)
    progress.stale = [
        0 if new > old else count + (new < old) for new, old, count in zip(values, best, stale, strict=True)
    ]
    progress.best = [max(pair) for pair in zip(values, best, strict=True)]
    return progress.best != best


def _out_of_patience(progress: Progress, phase: Phase) -> bool:
    return bool(phase.settings.patience and progress.stale and min(progress.stale) >= phase.settings.patience)


@contextmanager
def _interrupt_between_steps() -> Iterator[Any]:
    """Ctrl-C waits until the step is whole: half an optimizer step is a state that no undisturbed run has.

    Yields a function that tells whether Ctrl-C was pressed. A second one stops at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: Any) -> None:
        if pressed.is_set() and callable(before):
            before(number, frame)
        pressed.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
