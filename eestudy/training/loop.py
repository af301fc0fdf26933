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
from eestudy.training.batches import Inputs, Validation, reestimate, scores, training_batches
from eestudy.training.eager_step import EagerStep, Step, build_optimizer, learning_rate
from eestudy.training.execution import Execution
from eestudy.training.objective import Objective
from eestudy.training.own_loss import with_class_weights
from eestudy.training.phase_network import PhaseNetwork, phase_exits, set_trainable, trained_tensors
from eestudy.training.phases import Phase
from eestudy.training.resume import Progress, State, arrays, state_files
from eestudy.training.whole_step import WholeStep

# Seconds between saved states, which is what a kill costs at most; longer where saving would take more than a
# twentieth of the time.
STATE_EVERY = 15.0
SAVING_SHARE = 1 / 20
# Epochs of a phase after which training and validation are measured, at most; every one would cost up to 40 % of a run.
MEASURED = 20
# What is measured after an epoch beside the loss, by the task, and how it is shown.
SCORES = {"classification": ("accuracy", ".1%"), "regression": ("r2", ".3f"), "multi-label": ("exact_match", ".1%")}
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
    model: MultiExit, phase: Phase, data: DataSet, folder: Folder, seed: int, place: int, execution: Execution,
    hooks: Hooks | None = None,
) -> None:  # fmt: skip
    """Trains what `phase` trains of `model` in place, leaving checkpoints and records in `folder`.

    seed: the run's; place: of the phase in its strategy, from 0. Raises EestudyError when the loss is not finite,
    naming epoch, step and learning rate; the saved state before stays.
    """
    Training(model, phase, data, folder, (seed, f"phase-{place}"), execution, hooks or Hooks()).run()


class Training:
    """A phase from its first step, or its last saved state, to its end. seeds: what its random numbers are named by."""

    def __init__(
        self, model: MultiExit, phase: Phase, data: DataSet, folder: Folder, seeds: tuple[Any, ...],
        execution: Execution, hooks: Hooks,
    ) -> None:  # fmt: skip
        device, phase = execution.device, with_class_weights(phase, data.train.y, data.num_classes)
        self.model, self.phase, self.data, self.folder = model.to(device), phase, data, folder
        self.seeds, self.execution, self.before = seeds, execution, hooks.before
        parameters = set_trainable(model, phase)
        self.exits = phase_exits(model, phase)
        self.batches = training_batches(model, phase, data, seeds, execution)
        if self.batches.steps_an_epoch < len(phase.turns):
            raise EestudyError(
                f"batch_size: {self.batches.size} makes one step an epoch of {len(self.batches.split)} samples; phase "
                f"{phase.name} needs {len(phase.turns)}, as its steps take turns"
            )
        self.validation = Validation(model, phase, data, execution, cached=self.batches.cache is not None)
        self.total = self.batches.steps_an_epoch * phase.settings.epochs
        self.objective = hooks.objective(model, phase, self.batches, seeds, execution)
        optimizer = build_optimizer(parameters, phase)
        sums = torch.zeros(2, len(self.exits), device=device)
        self.state = State(model, phase, optimizer, sums, objective=self.objective)
        self.state.load(folder)
        self.progress = self.state.progress
        self.bad = torch.full((), math.inf, device=device)  # the first step whose loss or gradient is not finite
        network = PhaseNetwork(model, phase)
        arguments = self.state, self.objective, self.bad, execution
        self.step: Step
        if execution.whole_steps:
            self.step = WholeStep(network, *arguments)
        else:
            self.step = EagerStep(execution.prepared(network, self.total), *arguments)
        self.saved = time.perf_counter()
        self.began, self.save_every = self.saved - self.progress.seconds, STATE_EVERY
        self.epoch = -1
        self.feed: Iterator[tuple[Inputs, Tensor]] = iter(())

    def run(self) -> None:
        """To the end of the phase; KeyboardInterrupt, with the state saved, when Ctrl-C was pressed."""
        progress, every, patience = self.progress, self.batches.steps_an_epoch, self.phase.settings.patience
        hidden = None if self.execution.main else True  # None: where nobody looks
        shown = {"desc": self.phase.name, "unit": "step", "disable": hidden, "leave": False}
        with _interrupt_between_steps() as interrupted, _Bar(total=self.total, initial=progress.step, **shown) as bar:
            while True:
                self._write_checkpoints()
                out_of_patience = patience and progress.stale and min(progress.stale) >= patience
                if progress.step == self.total or out_of_patience:
                    break
                self._save_if_due(interrupted)
                self._advance()
                bar.update()
                if progress.step % every == 0 and (seen := self._end_epoch()):
                    bar.set_postfix_str(seen)
        self._finish()
        if self.execution.agreed(interrupted()):  # pressed during the last step: the phase is whole, the run ends here
            raise KeyboardInterrupt

    def _write_checkpoints(self) -> None:
        # Several shares of a short phase can fall on one step.
        due = [
            share
            for share in self.phase.settings.checkpoints
            if share < 100 and round(share / 100 * self.total) == self.progress.step
        ]
        if due:
            self._stop_if_not_finite()
        for share in due if self.execution.main else ():
            self.folder.write_arrays(checkpoint_name(share), arrays(trained_tensors(self.model, self.phase)))

    def _save_if_due(self, interrupted: Callable[[], bool]) -> None:
        """Saves the state when it is time to, and before the KeyboardInterrupt that Ctrl-C asks for."""
        execution = self.execution
        looks = execution.processes == 1 or self.progress.step % LOOK_EVERY == 0
        due = time.perf_counter() - self.saved > self.save_every
        if not looks or not (stop := execution.agreed((interrupted() << 1) + due)):
            return
        self._stop_if_not_finite()
        before = time.perf_counter()
        self.progress.seconds = before - self.began
        if execution.main:
            self.state.save(self.folder)
            self.saved = time.perf_counter()
            self.save_every = max(STATE_EVERY, (self.saved - before) / SAVING_SHARE)
        if stop > 1:
            raise KeyboardInterrupt

    def _advance(self) -> None:
        progress, execution = self.progress, self.execution
        if self.epoch != progress.step // self.batches.steps_an_epoch:
            self.epoch, first = divmod(progress.step, self.batches.steps_an_epoch)
            self.feed = self.batches.epoch(self.epoch, first)
        x, targets = next(self.feed)
        done = progress.step / self.total
        if self.before:
            execution.seed(named_seed(*self.seeds, "before", progress.step, execution.rank))
            self.before(self.step.network, self.state, self.objective, x, targets, done, execution)
        execution.seed(named_seed(*self.seeds, "noise", progress.step, execution.rank))
        self.step.step(x, targets, done)
        progress.step += 1
        if execution.device.type == "cpu" or progress.step % LOOK_EVERY == 0:
            self._stop_if_not_finite()

    def _end_epoch(self) -> str:
        """Measures training and validation where that is due, keeps the best weights; returns what the bar shows."""
        self._stop_if_not_finite()
        epoch, phase, state, steps, seen = self.epoch + 1, self.phase, self.state, self.batches.steps_an_epoch, ""
        if measured_after(epoch, phase):
            train = self.execution.summed(state.sums) / (steps * self.execution.processes)
            if phase.turns:  # only in some of the steps all exits had their turn
                turns = [phase.turns[step % len(phase.turns)] for step in range(epoch * steps - steps, epoch * steps)]
                train[:, :-1] /= turns.count("all") / steps
            held_out = self.validation.measured()
            set_trainable(self.model, phase)
            train[1] = scores(train, self.data.train.y)
            score, form = SCORES[self.data.task]
            for split, (losses, values) in (("train", train.tolist()), ("validation", held_out.tolist())):
                for number, loss, value in zip(self.exits, losses, values, strict=True):
                    record = {"epoch": epoch, "exit": number, "split": split, "loss": loss, score: value}
                    self.progress.records.append(record)
            ends = {self.exits[place]: f"{float(held_out[1][place]):{form}}" for place in (0, -1)}
            shown = ", ".join(f"exit {number} {value}" for number, value in ends.items())
            seen = f"epoch {epoch}/{phase.settings.epochs}, loss {float(train[0].mean()):.3f}, {shown}"
            if phase.settings.patience and improved(self.progress, held_out[1].tolist()):
                state.best = {name: value.clone() for name, value in trained_tensors(self.model, phase).items()}
        state.sums.zero_()
        return seen

    def _finish(self) -> None:
        """Leaves the final weights, those of the best epoch where patience chooses, and no state."""
        model, phase, folder, steps = self.model, self.phase, self.folder, self.progress.step
        self.step.end()
        if self.state.best:
            model.load_state_dict(self.state.best, strict=False)
        if phase.settings.batchnorm == "reestimate":
            reestimate(model, phase, self.batches, self.execution)
        if not self.execution.main:
            return
        folder.write_arrays(checkpoint_name(100), arrays(trained_tensors(model, phase)))
        folder.write_records(self.progress.records)
        summary = {
            "seconds": round(time.perf_counter() - self.began, 3),
            "steps": steps,
            "samples": steps * self.batches.size,
        }
        folder.write_json("summary.json", summary)
        for name in state_files(folder):
            folder.remove(name)

    def _stop_if_not_finite(self) -> None:
        if math.isfinite(first := float(self.bad)):
            step, every = int(first), self.batches.steps_an_epoch
            raise EestudyError(
                f"phase {self.phase.name}: loss or gradient is not finite in epoch {step // every + 1}, step "
                f"{step + 1} of {self.total}, at learning rate {learning_rate(self.phase, step / self.total):.3g}; "
                "try a lower lr, clip or float32"
            )


class _Bar(tqdm):
    """Locked in this process alone: tqdm's own lock is one with that of forked processes, and a killed one keeps it."""

    monitor_interval = 0  # no thread for a bar that moves by itself


_Bar.set_lock(threading.RLock())


def checkpoint_name(share: int) -> str:
    """The file of the weights after `share` per cent of a phase."""
    return f"checkpoint-{share:03d}.safetensors"


def measured_after(epoch: int, phase: Phase) -> bool:
    """Whether to measure after this epoch (from 1): with patience always, else at most MEASURED times, evenly."""
    epochs = phase.settings.epochs
    return bool(phase.settings.patience) or epoch * MEASURED // epochs > (epoch - 1) * MEASURED // epochs


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
