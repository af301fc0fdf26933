"""The only training loop: one phase, from its first step or its last saved state to its final weights.

Shapes: B batch, K exits in the phase's loss, C classes.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eestudy.config import EestudyError, named_seed
from eestudy.data import DataSet
from eestudy.models import MultiExit
from eestudy.store import Folder
from eestudy.training.batches import (
    EVALUATION_BATCH,
    Batches,
    Inputs,
    cached_features,
    clean_batches,
    placed,
    training_batches,
)
from eestudy.training.execution import Execution
from eestudy.training.freezing import PhaseNetwork, phase_exits, set_trainable, trained_tensors
from eestudy.training.losses import exit_hits, exit_losses, exit_weights
from eestudy.training.optim import build_optimizer, lr_factor
from eestudy.training.phases import Phase
from eestudy.training.saved import Progress, State, arrays, state_files

# Seconds between saved states, which is what a kill costs at most; longer where saving would take more than a
# twentieth of the time.
STATE_EVERY = 15.0
SAVING_SHARE = 1 / 20
# Steps between two looks at what the device or the other processes have to say, where looking makes them wait.
LOOK_EVERY = 16


def train_phase(
    model: MultiExit, phase: Phase, data: DataSet, folder: Folder, seed: int, place: int, execution: Execution
) -> None:
    """Trains what `phase` trains of `model` in place, leaving checkpoints and records in `folder`.

    seed: the run's; place: of the phase in its strategy, from 0. The model starts from the weights it comes with.
    Raises EestudyError when the loss is not finite, naming epoch, step and learning rate; the saved state before stays.
    """
    seeds = (seed, f"phase-{place}")
    device = execution.device
    model.to(device)
    parameters = set_trainable(model, phase)
    exits = phase_exits(model, phase)
    weights = exit_weights(phase.weighting, len(exits)).to(device)
    batches = training_batches(model, phase, data, seeds, execution)
    validation = Validation(model, phase, data, execution, cached=batches.cache is not None)
    total = batches.steps_an_epoch * phase.epochs
    # Several shares of a short phase can fall on one step.
    due = {share: round(share / 100 * total) for share in phase.checkpoints if share < 100}

    state = State(model, phase, build_optimizer(parameters, phase), torch.zeros(2, len(exits), device=device))
    state.load(folder)
    progress = state.progress
    network = execution.prepared(PhaseNetwork(model, phase), total)
    watch = Watch(progress.seconds)
    bad = torch.full((), math.inf, device=device)  # the first step whose loss or gradient is not finite
    epoch, feed = -1, iter(())  # type: tuple[int, Iterator[tuple[Inputs, Tensor]]]
    bar = _Bar(total=total, initial=progress.step, desc=phase.name, unit="step", disable=None, leave=False)

    with _interrupt_between_steps() as interrupted, bar:
        while True:
            if progress.step in due.values():
                _stop_if_not_finite(bad, phase, batches, total)
            if execution.main:
                for share, step in due.items():
                    if step == progress.step:
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

            execution.seed(named_seed(*seeds, "noise", progress.step, execution.rank))
            losses, logits = _step(network, state, weights, x, targets, progress.step / total, bad, execution)
            progress.step += 1
            bar.update()
            state.sums[0] += losses
            if data.task == "classification":
                state.sums[1] += exit_hits(logits, targets)
            if device.type == "cpu" or progress.step % LOOK_EVERY == 0:
                _stop_if_not_finite(bad, phase, batches, total)
            if progress.step % batches.steps_an_epoch == 0:
                _stop_if_not_finite(bad, phase, batches, total)
                train = execution.summed(state.sums) / (batches.steps_an_epoch * execution.processes)
                held_out = validation.measured()
                set_trainable(model, phase)
                train[1] = _scores(train, data.train.y)
                _record(progress, exits, epoch + 1, train, held_out)
                state.sums.zero_()
                bar.set_postfix_str(_seen(epoch + 1, phase, exits, train, held_out, data.task))
                if phase.patience and _improved(progress, held_out[1].tolist()):
                    state.best = {name: value.clone() for name, value in trained_tensors(model, phase).items()}

    if state.best:
        model.load_state_dict(state.best, strict=False)
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


class _Bar(tqdm):
    """Locked in this process alone: tqdm's own lock is one with that of forked processes, and a killed one keeps it."""

    monitor_interval = 0  # no thread for a bar that moves by itself


_Bar.set_lock(threading.RLock())


def _step(
    network: torch.nn.Module,
    state: State,
    weights: Tensor,
    x: Inputs,
    targets: Tensor,
    done: float,
    bad: Tensor,
    execution: Execution,
) -> tuple[Tensor, Tensor]:
    """Forward, backward, update. Returns the exits' losses (K,) and logits (K, B, C), detached.

    done: share of the phase's steps behind. bad: is set to this step's number if it is the first not to be finite; the
    update is made all the same, and undone by going back to the saved state.
    """
    phase, optimizer = state.phase, state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = phase.lr * lr_factor(phase.schedule, phase.warmup, done)
    with execution.precision(phase.precision):
        logits = network(x)
    losses = exit_losses(logits, targets)
    loss = losses @ weights
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    # Where looking costs nothing, a gradient that is short enough is left alone: scaled by 1 it would be the same.
    if phase.clip and (execution.device.type != "cpu" or not float(norm) < phase.clip):
        torch.nn.utils.clip_grads_with_norm_(trained, phase.clip, norm)
    # Of several processes each has its own loss, but all have the same gradient.
    finite = torch.isfinite(norm if execution.processes > 1 else norm + loss.detach())
    bad.copy_(torch.where(finite, bad, torch.clamp(bad, max=state.progress.step)))
    optimizer.step()
    return losses.detach(), logits.detach()


class Validation:
    """The validation split in memory, or its features where the training reads the frozen backbone's features."""

    def __init__(self, model: MultiExit, phase: Phase, data: DataSet, execution: Execution, cached: bool) -> None:
        self.network = PhaseNetwork(model, phase)
        self.split = placed(data.validation, execution.device)
        self.execution = execution
        self.cache = cached_features(model, phase, self.split, execution) if cached else None

    @torch.no_grad()
    def measured(self) -> Tensor:
        """Loss and accuracy (R2 in regression) of the phase's exits in eval mode, (2, K). Leaves the network in it."""
        phase, execution = self.network.phase, self.execution
        self.network.eval()
        sums = torch.zeros(2, len(phase_exits(self.network.model, phase)), device=execution.device)
        for number, (x, labels) in enumerate(self._batches()):
            if number % execution.processes != execution.rank:
                continue
            with execution.precision(phase.precision):
                logits = self.network(x)
            sums[0] += exit_losses(logits, labels) * len(labels)
            if not labels.is_floating_point():
                sums[1] += exit_hits(logits, labels) * len(labels)
        means = execution.summed(sums) / len(self.split)
        means[1] = _scores(means, self.split.y)
        return means

    def _batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        if self.cache is None:
            yield from clean_batches(self.split, self.execution, self.network.model.memory_format)
            return
        for places in torch.arange(len(self.split), device=self.split.y.device).split(EVALUATION_BATCH):
            yield [features[places] for features in self.cache], self.split.y[places]


def _scores(means: Tensor, y: Tensor) -> Tensor:
    """The exits' accuracies as they were counted; in regression R2, 1 - mean squared error / variance of the labels."""
    return 1 - means[0] / y.var(correction=0) if y.is_floating_point() else means[1]


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
        lr = phase.lr * lr_factor(phase.schedule, phase.warmup, step / total)
        raise EestudyError(
            f"phase {phase.name}: loss or gradient is not finite in epoch {step // batches.steps_an_epoch + 1}, step "
            f"{step + 1} of {total}, at learning rate {lr:.3g}; try a lower lr, clip or float32"
        )


def _seen(epoch: int, phase: Phase, exits: list[int], train: Tensor, held_out: Tensor, task: str) -> str:
    """What the progress bar shows: loss of training, accuracy or R2 on validation of the first and last exit."""
    ends = [0] if len(exits) == 1 else [0, -1]
    form = ".1%" if task == "classification" else ".3f"
    shown = ", ".join(f"exit {exits[place]} {float(held_out[1][place]):{form}}" for place in ends)
    return f"epoch {epoch}/{phase.epochs}, loss {float(train[0].mean()):.3f}, {shown}"


def _record(progress: Progress, exits: list[int], epoch: int, train: Tensor, validation: Tensor) -> None:
    for split, (losses, accuracies) in (("train", train.tolist()), ("validation", validation.tolist())):
        for number, loss, accuracy in zip(exits, losses, accuracies, strict=True):
            progress.records.append(
                {"epoch": epoch, "exit": number, "split": split, "loss": loss, "accuracy": accuracy}
            )


def _improved(progress: Progress, accuracies: list[float]) -> bool:
    """Counts for each exit the epochs without a better validation accuracy; True if the mean is the best so far."""
    before = progress.best_of_exit or [-math.inf] * len(accuracies)
    stale = progress.stale or [0] * len(accuracies)
    progress.stale = [0 if new > old else count + 1 for new, old, count in zip(accuracies, before, stale, strict=True)]
    progress.best_of_exit = [max(pair) for pair in zip(accuracies, before, strict=True)]
    mean = sum(accuracies) / len(accuracies)
    better, progress.best = mean > progress.best, max(mean, progress.best)
    return better


def _out_of_patience(progress: Progress, phase: Phase) -> bool:
    return bool(phase.patience and progress.stale and min(progress.stale) >= phase.patience)


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
