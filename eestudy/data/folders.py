"""Splits of image files that are too many for the memory: read when they are asked for, ahead of the training.

B batch, S side of the square that is cut out of every image.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.data.splits import Split
from eestudy.pretrained import first_line


@dataclass(frozen=True)
class Reader(torch.utils.data.Dataset):
    """How the image files of `folder` become squares of `size` pixels.

    Their shorter side is resized to `shorter` pixels (bilinear), and a square cut out of the middle; with `shorter` 0
    every file must hold `size` x `size` pixels already.
    """

    folder: Path
    size: int
    shorter: int = 0

    def read(self, names: np.ndarray) -> Tensor:
        """Of the files `names` (B,), bytes, relative to the folder: uint8 (B, 3, S, S) in channels-last order.

        Raises EestudyError that names the file where an image cannot be read.
        """
        images = np.empty((len(names), self.size, self.size, 3), np.uint8)
        for image, name in zip(images, names.tolist()):
            image[:] = self._image(self.folder / os.fsdecode(name))
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def __getitem__(self, names: np.ndarray) -> Tensor | str:
        """`read` for a DataLoader's process: a mistake comes back as its line, without a traceback."""
        try:
            return self.read(names)
        except EestudyError as error:
            return str(error)

    def _image(self, path: Path) -> np.ndarray:
        """(S, S, 3), uint8."""
        from PIL import Image

        try:
            with warnings.catch_warnings(), Image.open(path) as opened:
                warnings.simplefilter("ignore")  # odd metadata, in some of ImageNet's files; the pixels are not touched
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise EestudyError(f"{path}: not an image that can be read ({first_line(error)})") from None
        if self.shorter:
            factor = self.shorter / min(image.size)
            width, height = (max(self.shorter, round(side * factor)) for side in image.size)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = image.crop((left, top, left + self.size, top + self.size))
        elif image.size != (self.size, self.size):
            raise EestudyError(f"{path}: {image.width} x {image.height} pixels; {self.size} x {self.size} expected")
        return np.asarray(image)


@dataclass(frozen=True)
class FolderSplit(Split):
    """Image files with labels y (N,) that `reader` reads. x: int64 (N,), the place of each in `names`.

    names: of files, as bytes in one array, which splits share; Python's own strings would take ten times the memory.
    """

    names: np.ndarray = field(kw_only=True)
    reader: Reader = field(kw_only=True)

    streamed: ClassVar[bool] = True

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.reader.size, self.reader.size)

    def raw(self, chosen: Tensor | slice) -> Tensor:
        """The images `chosen`, read now: uint8 (B, 3, S, S)."""
        return self.reader.read(self._names(chosen))

    def _names(self, chosen: Tensor | slice) -> np.ndarray:
        return self.names[self.x[chosen].numpy()]

    def batches(self, order: Sequence[Tensor], workers: int = 0) -> Iterator[Tensor]:
        """`raw` of each of the batches of sample numbers in `order`; each process reads up to two batches ahead.

        Bits and order do not depend on `workers`, nor is any random state drawn from. In a script, what calls this
        with workers must stand below `if __name__ == "__main__":`, as for all of Python's processes.
        """
        workers = min(workers, _cores(), len(order))
        if not workers:
            yield from super().batches(order)
            return
        # Forking this process, which has threads, can hang and warns; a server without threads forks them all.
        context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        )
        if hasattr(context, "set_forkserver_preload"):
            context.set_forkserver_preload([__name__])
            _start_server()
        loader = torch.utils.data.DataLoader(
            self.reader,
            batch_size=None,  # an item is a batch
            sampler=[self._names(chosen) for chosen in order],
            num_workers=workers,
            prefetch_factor=2,
            multiprocessing_context=context,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # its own, or it would draw from the one of the whole process
        )
        try:
            for batch in loader:
                if isinstance(batch, str):
                    raise EestudyError(batch)
                yield batch
        except RuntimeError as error:
            raise EestudyError(
                f"{self.reader.folder}: a process that reads images stopped ({first_line(error)})"
            ) from None


# Ctrl-C reaches every process of a terminal; the one that trains decides when its readers end.


def _start_server() -> None:
    """Starts the process that forks the readers, with SIGINT blocked: it takes seconds to import torch."""
    resource_tracker.ensure_running()  # first: it lifts the block when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    """Of this process: more readers than these only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
