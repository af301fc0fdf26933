"""The only training loop: one phase, from its first step or its last saved state to its final weights.

Shapes: B batch, K exits in the phase's loss, C classes. Every random choice is seeded by names (run seed, place of the
phase, purpose, epoch or step), so a resumed phase draws what an undisturbed one would have drawn.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eestudy.config import EestudyError, named_seed
from eestudy.data import DataSet, Split
from eestudy.data.augmentation import AUGMENTATIONS
from eestudy.models import MultiExit
from eestudy.store import Folder
from eestudy.training.freezing import phase_exits, phase_logits, set_trainable, trained_tensors
from eestudy.training.losses import exit_losses, exit_weights
from eestudy.training.optim import build_optimizer, lr_factor
from eestudy.training.phases import Phase

STATE_EVERY = 15.0  # seconds between saved states: what a kill can cost at most
EVALUATION_BATCH = 512


@dataclass
class Progress:
    """Where a phase stands, beside the weights and the optimizer: what a resumed phase needs to know."""

    step: int = 0
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    best: float = -1.0  # highest mean validation accuracy so far, for patience
    best_of_exit: list[float] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)  # epochs since each exit improved


def train_phase(
    model: MultiExit, phase: Phase, data: DataSet, folder: Folder, seed: int, place: int, device: torch.device
) -> None:
    """Trains what `phase` trains of `model` in place, leaving checkpoints and records in `folder`.

    seed: the run's; place: of the phase in its strategy, from 0. The model starts from the weights it comes with.
    Raises EestudyError when the loss is not finite, naming epoch, step and learning rate.
    """
    seeds = (seed, f"phase-{place}")
    model.to(device)
    optimizer = build_optimizer(set_trainable(model, phase), phase)
    exits = phase_exits(model, phase)
    weights = exit_weights(phase.weighting, len(exits)).to(device)
    x, y = _placed(data.train, device)
    validation = _placed(data.validation, device)
    batch = min(phase.batch_size, len(y))
    steps_an_epoch = len(y) // batch
    total = steps_an_epoch * phase.epochs
    # Several shares of a short phase can fall on one step.
    due = {share: round(share / 100 * total) for share in phase.checkpoints if share < 100}
    augment = AUGMENTATIONS[phase.augmentation]
    generator = torch.Generator()

    progress, sums, best = Progress(), torch.zeros(2, len(exits), device=device), None
    resumed = _load_state(folder, model, phase, optimizer)
    if resumed:
        progress, sums, best = resumed[0], resumed[1].to(device), resumed[2]
    first = progress.step
    saved = time.perf_counter()
    started = saved - progress.seconds
    bar = tqdm(total=total, initial=progress.step, desc=phase.name, unit="step", disable=None, leave=False)

    with _interrupt_between_steps() as interrupted, bar:
        while True:
            for share, step in due.items():
                if step == progress.step:
                    folder.write_arrays(checkpoint_name(share), _arrays(trained_tensors(model, phase)))
            if progress.step == total or _out_of_patience(progress, phase):
                break
            now = time.perf_counter()
            if now - saved > STATE_EVERY or interrupted():
                progress.seconds, saved = now - started, now
                _save_state(folder, model, phase, optimizer, progress, sums, best)
                if interrupted():
                    raise KeyboardInterrupt
            epoch, place_in_epoch = divmod(progress.step, steps_an_epoch)
            if not place_in_epoch or progress.step == first:
                generator.manual_seed(named_seed(*seeds, "order", epoch))
                order = torch.randperm(len(y), generator=generator).to(device)
            chosen = order[place_in_epoch * batch : (place_in_epoch + 1) * batch]
            torch.manual_seed(named_seed(*seeds, "noise", progress.step))
            generator.manual_seed(named_seed(*seeds, "augmentation", progress.step))

            lr = phase.lr * lr_factor(phase.schedule, phase.warmup, progress.step / total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device.type, torch.bfloat16, enabled=phase.precision == "bfloat16"):
                logits = phase_logits(model, phase, augment(x[chosen], generator))
            losses = exit_losses(logits, y[chosen])
            loss = losses @ weights
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(
                (p for group in optimizer.param_groups for p in group["params"]), phase.clip or math.inf
            )
            if not math.isfinite(float(norm + loss.detach())):
                raise EestudyError(
                    f"phase {phase.name}: loss or gradient is not finite in epoch {epoch + 1}, step "
                    f"{progress.step + 1} of {total}, at learning rate {lr:.3g}; try a lower lr, clip or float32"
                )
            optimizer.step()
            progress.step += 1
            bar.update()
            with torch.no_grad():
                sums[0] += losses
                sums[1] += torch.stack([(exit_logits.argmax(1) == y[chosen]).float().mean() for exit_logits in logits])
            if place_in_epoch == steps_an_epoch - 1:
                held_out = evaluate(model, phase, *validation)
                set_trainable(model, phase)
                _record(progress, exits, epoch + 1, sums / steps_an_epoch, held_out)
                sums.zero_()
                bar.set_postfix_str(f"loss {float(loss.detach()):.3f}, validation {float(held_out[1][-1]):.1%}")
                if phase.patience and _improved(progress, held_out[1].tolist()):
                    best = {name: value.clone() for name, value in trained_tensors(model, phase).items()}

    if best:
        model.load_state_dict(best, strict=False)
    folder.write_arrays(checkpoint_name(100), _arrays(trained_tensors(model, phase)))
    folder.write_records(progress.records)
    summary = {
        "seconds": round(time.perf_counter() - started, 3),
        "steps": progress.step,
        "samples": progress.step * batch,
    }
    folder.write_json("summary.json", summary)
    for name in _states(folder):
        folder.remove(name)


@torch.no_grad()
def evaluate(model: MultiExit, phase: Phase, x: Tensor, y: Tensor) -> Tensor:
    """Loss and accuracy of the phase's exits in eval mode, (2, K). x: (N, ...), y: (N,)."""
    model.eval()
    sums = torch.zeros(2, len(phase_exits(model, phase)), device=x.device)
    for inputs, labels in zip(x.split(EVALUATION_BATCH), y.split(EVALUATION_BATCH), strict=True):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=phase.precision == "bfloat16"):
            logits = phase_logits(model, phase, inputs)
        sums[0] += exit_losses(logits, labels) * len(labels)
        sums[1] += torch.stack([(exit_logits.argmax(1) == labels).sum() for exit_logits in logits])
    return sums / len(y)


def checkpoint_name(share: int) -> str:
    """The file of the weights after `share` per cent of a phase."""
    return f"checkpoint-{share:03d}.safetensors"


def _placed(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    x, y = split.x.to(device), split.y.to(device)
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x), y


def _record(progress: Progress, exits: list[int], epoch: int, train: Tensor, validation: Tensor) -> None:
    for split, (losses, accuracies) in (("train", train.tolist()), ("validation", validation.tolist())):
        for number, loss, accuracy in zip(exits, losses, accuracies, strict=True):
            progress.records.append(
                {"epoch": epoch, "exit": number, "split": split, "loss": loss, "accuracy": accuracy}
            )


def _improved(progress: Progress, accuracies: list[float]) -> bool:
    """Counts for each exit the epochs without a better validation accuracy; True if the mean is the best so far."""
    before = progress.best_of_exit or [-1.0] * len(accuracies)
    stale = progress.stale or [0] * len(accuracies)
    progress.stale = [0 if new > old else count + 1 for new, old, count in zip(accuracies, before, stale, strict=True)]
    progress.best_of_exit = [max(pair) for pair in zip(accuracies, before, strict=True)]
    mean = sum(accuracies) / len(accuracies)
    better, progress.best = mean > progress.best, max(mean, progress.best)
    return better


def _out_of_patience(progress: Progress, phase: Phase) -> bool:
    return bool(phase.patience and progress.stale and min(progress.stale) >= phase.patience)


# The saved state: weights, optimizer and best weights as arrays, the rest as the file's metadata.


def _states(folder: Folder) -> list[str]:
    return sorted(name for name in folder.manifest() if name.startswith("state-"))


def _save_state(
    folder: Folder,
    model: MultiExit,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    sums: Tensor,
    best: dict[str, Tensor] | None,
) -> None:
    tensors = {f"model/{name}": value for name, value in trained_tensors(model, phase).items()}
    tensors |= {f"best/{name}": value for name, value in (best or {}).items()}
    for number, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{slot}": value for slot, value in slots.items()}
    old = _states(folder)
    name = f"state-{progress.step:09d}.safetensors"
    folder.write_arrays(name, _arrays({**tensors, "sums": sums}), vars(progress))
    for other in old:
        if other != name:
            folder.remove(other)


def _load_state(
    folder: Folder, model: MultiExit, phase: Phase, optimizer: torch.optim.Optimizer
) -> tuple[Progress, Tensor, dict[str, Tensor] | None] | None:
    states = _states(folder)
    if not states:
        return None
    # A copy: the arrays of a safetensors file are read-only.
    tensors = {name: torch.tensor(value) for name, value in folder.arrays(states[-1]).items()}
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        if rest:
            groups[group][rest] = value
    model.load_state_dict(groups["model"], strict=False)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in groups["optimizer"].items():
        number, slot = name.split("/")
        slots.setdefault(int(number), {})[slot] = value
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, values in slots.items():
        like = trained[place]
        # In the parameter's own memory layout, which fused optimizers rely on.
        slots[place] = {
            slot: torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            for slot, value in values.items()
        }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    device = next(model.parameters()).device
    best = {name: value.to(device) for name, value in groups["best"].items()}
    return Progress(**folder.metadata(states[-1])), tensors["sums"], best or None


def _arrays(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


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
