"""What a training step costs beside its forward, backward and update; cached features; how fast the package starts.

python benchmarks/overhead.py [augmentation] [loop] [cache] [start] -> overhead.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from step import BATCH, MODELS, engine_step, network, package
from timing import hardware, interleaved, save

from eestudy import data
from eestudy.data.splits import DataSet, Normalization, Split
from eestudy.models import MultiExit, build_backbone
from eestudy.store import Folder, Store
from eestudy.training import eager_step, loop
from eestudy.training.batches import Batches, training_batches
from eestudy.training.execution import Execution
from eestudy.training.phases import Phase
from eestudy.training.strategies import heads_phase, together_phase

CPU = Execution(torch.device("cpu"), compile="never")
FILES = ("arrays", "manifest", "remove", "write_arrays", "write_json", "write_records")
AUGMENTATIONS = ("none", "crop+flip", "crop+flip+cutout", "mixup", "cutmix", "crop+flip+cutout+mixup+cutmix")


def pictures(name: str, samples: int) -> DataSet:
    """uint8 noise in the shape that the model `name` takes, validation a tenth of the training."""
    _, shape, classes, _ = MODELS[name]
    torch.manual_seed(0)

    def split(count: int) -> Split:
        x = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
        normalization = Normalization((127.0,) * shape[0], (64.0,) * shape[0])
        return Split(x, torch.randint(0, classes, (count,)), normalization)

    return DataSet("pictures", classes, shape, split(samples), split(samples // 10), split(1))


def augmentation(name: str) -> dict[str, Any]:
    """Milliseconds that making one batch takes, as `Batches` gives it, and its share of a whole step of the loop."""
    made, step = pictures(name, 8 * BATCH), package(name)
    model = network(name).to(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], object]] = {}
    for chosen in AUGMENTATIONS:
        phase = together_phase(1.0).having(augmentation=chosen, batch_size=BATCH)
        feed = _endless(training_batches(model, phase, made, (0,), CPU))
        calls[chosen] = lambda feed=feed: next(feed)
    took = interleaved({"step": step, **calls})
    whole = took["step"]["median"]
    return {
        chosen: {"milliseconds": 1000 * took[chosen]["median"], "share": took[chosen]["median"] / whole}
        for chosen in AUGMENTATIONS
    } | {"step": {"milliseconds": 1000 * whole}}


def _endless(batches: Batches) -> Iterator[object]:
    number = 0
    while True:
        yield from batches.epoch(number)
        number += 1


class Parts:
    """Seconds by part of the loop; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []  # of each part that is running, what its own parts took

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        self._inside.append(0.0)
        yield
        took = time.perf_counter() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside.pop()
        if self._inside:
            self._inside[-1] += took

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def drawn(self, name: str, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.part(name):
                item = next(iterator, None)
            if item is None:
                return
            yield item


@contextmanager
def _put(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def parts_of_a_phase(model: MultiExit, phase: Phase, made: DataSet) -> dict[str, float]:
    """Runs the real loop with a watch around its parts. Seconds by part; "loop" is what is left of the whole.

    "files" are checkpoints, records and the list of files. With "validation" they come once a phase or an epoch.
    """
    watch = Parts()

    def build_optimizer(*args: Any) -> torch.optim.Optimizer:
        optimizer = built(*args)
        optimizer.step = watch.timed("step", optimizer.step)  # type: ignore[method-assign]
        return optimizer

    built, epoch = loop.build_optimizer, Batches.epoch
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for owner, name, value in (
            (Execution, "prepared", lambda self, network, steps: watch.timed("forward", network)),
            (eager_step, "exit_losses", watch.timed("forward", eager_step.exit_losses)),
            (torch.Tensor, "backward", watch.timed("backward", torch.Tensor.backward)),
            (loop, "build_optimizer", build_optimizer),
            (Batches, "epoch", lambda self, *args: watch.drawn("batches", epoch(self, *args))),
            (torch.nn.utils, "get_total_norm", watch.timed("norm of the gradient", torch.nn.utils.get_total_norm)),
            (
                torch.nn.utils, "clip_grads_with_norm_",
                watch.timed("norm of the gradient", torch.nn.utils.clip_grads_with_norm_),
            ),
            (loop.Validation, "measured", watch.timed("validation", loop.Validation.measured)),
            *((Folder, name, watch.timed("files", getattr(Folder, name))) for name in FILES),
        ):  # fmt: skip
            stack.enter_context(_put(owner, name, value))
        with watch.part("loop"):
            loop.train_phase(model, phase, made, Store(folder).folder("phases", "one"), 0, 0, CPU)
    return watch.seconds


def loop_overhead(runs: int = 5) -> dict[str, Any]:
    """The parts of whole phases, each run some times: the median of each, in milliseconds a step."""
    name = "resnet20, 28x28"
    cases: dict[str, tuple[Callable[[], MultiExit], DataSet, int]] = {
        name: (lambda: network(name).to(memory_format=torch.channels_last), pictures(name, 40 * BATCH), 1),
        "mlp, digits": (lambda: MultiExit(build_backbone("mlp", (1, 8, 8), 10)), data.load("digits"), 100),
    }
    found: dict[str, Any] = {}
    for case, (make, made, epochs) in cases.items():
        phase = together_phase(1.0).having(epochs=epochs, batch_size=BATCH)
        steps = epochs * (len(made.train) // BATCH)
        model = make()
        parts_of_a_phase(model, phase, made)  # to warm up
        measured = [parts_of_a_phase(model, phase, made) for _ in range(runs)]
        parts = {part: 1000 * median(each[part] for each in measured) / steps for part in measured[0]}
        computing = ("forward", "backward", "step")
        rest = ("batches", "norm of the gradient", "loop")
        # Of each run by itself: what disturbs a run disturbs all its parts.
        shares = [sum(each[part] for part in rest) / sum(each[part] for part in rest + computing) for each in measured]
        found[case] = {
            "milliseconds_a_step": parts,
            "overhead": {"median": median(shares), "low": min(shares), "high": max(shares)},
        }
    return found


def cache(name: str = "resnet20, 28x28") -> dict[str, float]:
    """Milliseconds of a step of phase 3, its batch included, with and without the features of the frozen backbone kept.

    Without: as with augmentation, but none is applied, so that the two do the same otherwise.
    """
    made = pictures(name, 16 * BATCH)
    model = network(name).to(memory_format=torch.channels_last)
    phase = heads_phase(1.0).having(batch_size=BATCH, epochs=1)
    began = time.perf_counter()
    kept = training_batches(model, phase, made, (0,), CPU)
    once = time.perf_counter() - began
    fresh = replace(kept, cache=None)
    feeds = {"cached": _endless(kept), "not cached": _endless(fresh)}
    took = interleaved({key: engine_step(model, phase, feed.__next__) for key, feed in feeds.items()})
    return {
        "caching_milliseconds_a_sample": 1000 * once / len(made.train),
        "cached_milliseconds": 1000 * took["cached"]["median"],
        "not_cached_milliseconds": 1000 * took["not cached"]["median"],
        "ratio": took["not cached"]["median"] / took["cached"]["median"],
    }


def start(runs: int = 10) -> dict[str, Any]:
    """Seconds of new processes, the files they read in memory already: median, least and most."""
    commands = {
        "import eestudy": [sys.executable, "-c", "import eestudy"],
        "eestudy --help": [sys.executable, "-m", "eestudy", "--help"],
        "python alone": [sys.executable, "-c", ""],
    }
    calls = {
        name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
        for name, command in commands.items()
    }
    took = interleaved(calls, blocks=runs)
    return {name: {key: seconds[key] for key in ("median", "least", "most")} for name, seconds in took.items()}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "augmentation": lambda: {name: augmentation(name) for name in ("resnet20, 28x28", "resnet34, 32x32")},
    "loop": loop_overhead,
    "cache": cache,
    "start": start,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    for name in parser.parse_args().parts or PARTS:
        save("overhead", {name: {"hardware": hardware(), **PARTS[name]()}})
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
