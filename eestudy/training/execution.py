"""How a run is executed: on which device, by how many processes, compiled or not. Nothing here is part of its identity.

One process needs nothing but torch. Several (`accelerate launch -m eestudy train my.yaml`) are joined by Hugging Face
Accelerate into one data-parallel run: every process makes the whole batch, with the same augmentation, and computes its
own equal part of it, so that the gradient is that of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError, check_name
from eestudy.environment import say
from eestudy.extras import needed

if TYPE_CHECKING:
    from accelerate import Accelerator

COMPILE = ("auto", "always", "never", "step")
# A graph is compiled for some minutes at worst; a phase of fewer steps does not earn that back.
COMPILED_FROM = 2000


@dataclass(frozen=True)
class Execution:
    """Where and how to compute.

    workers: processes that read image files ahead of the training; no effect on data in memory, none on the result.
    compile: "auto" compiles on a GPU, for phases of at least 2,000 steps, and not on a processor, where it gains little
    (0.84 to 1.03 x, benchmarks/step.json). "step" compiles the whole step, update included, where it fits
    (`whole_step.fits`), and nothing elsewhere: for many seeds of a small network on a processor. What is compiled
    rounds differently, so its bits are not those of the plain one.
    """

    device: torch.device
    workers: int = 0
    compile: str = "auto"

    @property
    def processes(self) -> int:
        return launched_processes()

    @property
    def rank(self) -> int:
        """Of this process among the processes, from 0."""
        return self._accelerator.process_index if self.processes > 1 else 0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @cached_property
    def _accelerator(self) -> Accelerator:
        return _joined(self.device.type == "cpu")

    def part(self, size: int) -> slice:
        """This process's samples of a batch. EestudyError if the batch cannot be divided equally."""
        if size % self.processes:
            raise EestudyError(
                f"batch_size: {size} samples cannot be divided equally among {self.processes} processes; "
                f"nearest: {max(1, size // self.processes) * self.processes}"
            )
        each = size // self.processes
        return slice(self.rank * each, (self.rank + 1) * each)

    def compiles(self, steps: int) -> bool:
        """Whether a network is compiled for `steps` training steps."""
        earned = self.device.type == "cuda" and steps >= COMPILED_FROM
        return self.compile == "always" or (self.compile == "auto" and earned)

    @property
    def whole_steps(self) -> bool:
        """Whether phases that fit are trained by `WholeStep`."""
        return self.compile == "step" and self.device.type == "cpu" and self.processes == 1

    def prepared(self, network: nn.Module, steps: int) -> nn.Module:
        """`network` for `steps` training steps: compiled where that pays, and joined with the other processes'."""
        if self.compiles(steps):
            # A phase's batches all have one shape. Left to itself, torch would take the next phase's for a sign that
            # shapes vary, and compile slower code for that.
            network = torch.compile(network, dynamic=False)  # type: ignore[assignment]
        return self._accelerator.prepare_model(network) if self.processes > 1 else network

    def seed(self, seed: int) -> None:
        """Seeds torch's own random numbers on the device, for dropout and the like.

        torch.manual_seed seeds devices that are not in use as well, and takes a hundred times as long.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)

    @contextmanager
    def precision(self, name: str) -> Iterator[None]:
        """Autocast to `name`, a RunConfig's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=name == "bfloat16"):
            yield

    def summed(self, values: Tensor) -> Tensor:
        """The sum of `values` over the processes, in each of them."""
        return self._accelerator.reduce(values, "sum") if self.processes > 1 else values

    def agreed(self, value: Any) -> Any:
        """What the first process says, in each of them."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Until every process is here."""
        if self.processes > 1:
            self._accelerator.wait_for_everyone()


def launched_processes() -> int:
    """How many processes `accelerate launch` (or torchrun) started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def execution(device: str | None = None, workers: int = 0, compile: str = "auto") -> Execution:
    """Checks the settings. device: "cpu", "cuda", ...; default: a GPU if there is one. EestudyError for a wrong one."""
    check_name("compile", compile, COMPILE)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise EestudyError(f"workers: {workers!r} is not valid; it must be a whole number, at least 0")
    place = _joined(device == "cpu").device if launched_processes() > 1 else _device(device)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32; torch would round convolutions to 10 bits
    return Execution(place, workers, compile)


def _joined(cpu: bool) -> Accelerator:
    needed("accelerate", "cluster")
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # Precision is a setting of the run, not of the launcher. MSDNet's last layers leave weights without gradient.
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=[kwargs])


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise EestudyError(f"device: {name!r} is not available here; valid: cpu, or cuda where there is one") from None


def warn_if_slow(precision: str, device: torch.device) -> None:
    """One line where bfloat16 has to be computed by way of float32, which is slower than float32 itself."""
    if precision == "bfloat16" and device.type == "cpu" and not fast_bfloat16():
        say("precision: bfloat16 has no instructions on this processor and is slower than float32 here")


def fast_bfloat16() -> tuple[str, ...]:
    """The processor's instructions for bfloat16 (x86 and ARM), by torch's names for them; empty: it has none."""
    found = torch.cpu.get_capabilities()
    return tuple(name for name in ("amx_bf16", "avx512_bf16", "bf16") if found.get(name))
