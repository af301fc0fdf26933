"""The saved state of a phase in training: all that a resumed one needs to end with the bits of an undisturbed one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eestudy.models import MultiExit
from eestudy.store import Folder
from eestudy.training.phase_network import trained_tensors
from eestudy.training.phases import Phase

if TYPE_CHECKING:
    from eestudy.training.objective import Objective

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """Where a phase stands, beside the weights and the optimizer."""

    step: int = 0
    seconds: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list)
    best: list[float] = field(default_factory=list)  # highest validation score of each exit so far, for patience
    stale: list[int] = field(default_factory=list)  # epochs in which each exit was worse since its best one


@dataclass
class State:
    """A phase between two steps. sums: losses and hits of the epoch so far (2, K); best: weights, for patience."""

    model: MultiExit
    phase: Phase
    optimizer: torch.optim.Optimizer
    sums: Tensor
    progress: Progress = field(default_factory=Progress)
    best: Weights | None = None
    objective: Objective | None = None

    def save(self, folder: Folder) -> None:
        """Weights, optimizer and best weights as arrays, the rest as the file's metadata; then the older file goes."""
        tensors = {f"model/{name}": value for name, value in trained_tensors(self.model, self.phase).items()}
        tensors |= {f"best/{name}": value for name, value in (self.best or {}).items()}
        for number, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{slot}": value for slot, value in slots.items()}
        if self.objective is not None:
            tensors |= {f"objective/{name}": value for name, value in self.objective.state().items()}
        old = state_files(folder)
        name = f"state-{self.progress.step:09d}.safetensors"
        if name in old:  # such as right after a resume: writing it again would leave a moment without it
            return
        folder.write_arrays(name, arrays({**tensors, "sums": self.sums}), vars(self.progress))
        for other in old:
            if other != name:
                folder.remove(other)

    def load(self, folder: Folder) -> None:
        """Goes on from the newest saved state, if there is one."""
        states = state_files(folder)
        if not states:
            return
        # A copy: the arrays of a safetensors file are read-only.
        tensors = {name: torch.tensor(value) for name, value in folder.arrays(states[-1]).items()}
        groups: dict[str, Weights] = {"model": {}, "best": {}, "optimizer": {}, "objective": {}, "sums": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        self.model.load_state_dict(groups["model"], strict=False)
        if self.objective is not None:
            self.objective.restore(groups["objective"])
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        slots: dict[int, Weights] = {}
        for name, value in groups["optimizer"].items():
            number, slot = name.split("/")
            like = trained[int(number)]
            if value.shape == like.shape:  # in the parameter's own memory layout, which fused optimizers rely on
                value = torch.empty_like(like).copy_(value)
            slots.setdefault(int(number), {})[slot] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": slots})
        self.best = {name: value.to(self.sums.device) for name, value in groups["best"].items()} or None
        self.sums.copy_(tensors["sums"])
        self.progress = Progress(**folder.metadata(states[-1]))


def state_files(folder: Folder) -> list[str]:
    """Names of the saved states, oldest first; more than one only when the process was killed between two."""
    return sorted(name for name in folder.manifest() if name.startswith("state-"))


def arrays(tensors: Weights) -> dict[str, Any]:
    """As numpy arrays, for the store."""
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}
