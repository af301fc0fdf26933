"""Probe batches, a network's activations on them, and the sums over samples that ranks and similarities are made of.

Notation: n samples, m features; activations (n, m) are centred, each feature at its mean over the samples. All of it is
computed in float64 from the smaller Gram matrix, (n, n) or (m, m).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from eestudy.config import EestudyError, named_seed
from eestudy.data import Split
from eestudy.models import MultiExit, check_network
from eestudy.models.backbone import mode

Activations = Tensor | np.ndarray
Batches = Sequence[tuple[Tensor, Tensor]]
FEATURES = 8000  # of a stage, at most: drawn by a fixed seed where it has more
HELD = 2**28  # bytes: what one pass over the batches may hold of several stages; one alone may hold more
BLOCK = 1000  # features turned to float64 at a time


def probe_batches(split: Split, samples: int, model: MultiExit, batch_size: int = 128, skip: int = 0) -> Batches:
    """`samples` of a split (all, if it has fewer), drawn by a fixed seed, without augmentation, as `model` takes them.

    Pairs (x, y) of at most `batch_size` samples, in the model's memory format and on its device. Which samples depends
    on the split's size alone. skip: how many of the draw are left out, so that these are others than the
    first `skip`. A last batch of one sample is left out too: BatchNorm has no statistics of it.
    Raises EestudyError for fewer than 2 samples.
    """
    check_network(model)
    if samples < 2 or batch_size < 1:
        raise EestudyError(f"samples: {samples} in batches of {batch_size} is not valid; at least 2 are needed")
    if not 0 <= skip <= len(split) - 2:
        raise EestudyError(f"skip: {skip} of {len(split)} samples is not valid; at least 2 must be left")
    generator = torch.Generator().manual_seed(named_seed("probe", 0))
    chosen = torch.randperm(len(split), generator=generator)[skip : skip + samples]
    device = next(model.parameters()).device
    batches = []
    for numbers in chosen.split(batch_size):
        if len(numbers) == 1 < batch_size:
            continue
        x = split.inputs(numbers).to(device)
        x = x.contiguous(memory_format=model.memory_format) if x.ndim == 4 else x
        batches.append((x, split.y[numbers].to(device)))
    return batches


def stage_activations(
    model: MultiExit, batches: Batches, stages: Sequence[int] | None = None
) -> Iterator[dict[int, Tensor]]:
    """For each batch {stage: what heads can read of it, flattened, (B, m) float32}, in eval mode.

    A stage of more than FEATURES features gives that many of them, the same for every model of its shapes: drawn by a
    fixed seed and the stage's number. stages: some of them, from 1; default all. batches: pairs of x (B, *input_shape)
    and labels (B,) on the model's device.
    Raises EestudyError for a stage that is not there, and for activations that are not finite.
    """
    check_network(model)
    valid = range(1, len(model.backbone.stages) + 1)
    wanted = list(valid) if stages is None else list(stages)
    if not wanted or not set(wanted) <= set(valid):
        raise EestudyError(f"stages: {wanted} is not valid; give some of 1 to {len(valid)}")
    columns: dict[int, Tensor] = {}
    for x, _ in batches:
        taken: dict[int, Tensor] = {}
        with mode(model, False), torch.no_grad():
            state = x
            for stage, module in enumerate(model.backbone.stages[: max(wanted)], 1):
                state = module(state)
                if stage not in wanted:
                    continue
                rows = model.backbone.features(state).flatten(1).float()
                check_finite(f"activations of stage {stage}", rows)
                if rows.shape[1] > FEATURES:
                    if stage not in columns:
                        generator = torch.Generator().manual_seed(named_seed("representation", 0, stage))
                        drawn = torch.randperm(rows.shape[1], generator=generator)[:FEATURES].sort().values
                        columns[stage] = drawn.to(rows.device)
                    rows = rows[:, columns[stage]]
                taken[stage] = rows
        yield taken


class Held:
    """Activations of all batches, held: (n, m) float32."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.filled = 0
        self.rows = torch.empty(0)

    def add(self, part: Tensor) -> None:
        if not self.filled:
            self.rows = part.new_empty(self.samples, part.shape[1])
        self.rows[self.filled : self.filled + len(part)] = part
        self.filled += len(part)

    def gram(self) -> Tensor:
        return smaller_gram(self.rows)


class Moments:
    """Activations of all batches, summed up into the Gram matrix of their features, (m, m) float64.

    Relative to the first sample: sums of what is far from 0 would lose the digits in which samples differ.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, part: Tensor) -> None:
        part = part.double()
        if not self.count:
            self.shift, self.sums = part[0].clone(), torch.zeros_like(part[0])
            self.products = part.new_zeros(part.shape[1], part.shape[1])
        part = part - self.shift
        self.count += len(part)
        self.sums += part.sum(0)
        self.products.addmm_(part.T, part)

    def gram(self) -> Tensor:
        return self.products.addr_(self.sums, self.sums, alpha=-1 / self.count)


def gather(model: MultiExit, batches: Batches, into: Mapping[int, Held | Moments]) -> None:
    """Adds the activations of all batches to what takes those of each stage. Errors: `stage_activations`."""
    for taken in stage_activations(model, batches, list(into)):
        for stage, part in taken.items():
            into[stage].add(part)


def centred(rows: Tensor) -> Tensor:
    """float64. Taken relative to the first sample, a constant feature is exactly 0, and not a rounded mean off it."""
    rows = rows.double()
    rows = rows - rows[0]
    return rows - rows.mean(0)


def smaller_gram(rows: Tensor) -> Tensor:
    """The smaller Gram matrix of the centred rows (n, m): (m, m), or (n, n) added up over blocks of features."""
    if rows.shape[1] <= len(rows):
        own = centred(rows)
        return own.T @ own
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in rows.split(BLOCK, 1):
        part = centred(block)
        gram.addmm_(part, part.T)
    return gram


def stages_by_pass(sizes: Mapping[int, int], limit: int) -> list[list[int]]:
    """Stages in a row, cut so that each piece holds at most `limit` bytes, or is one stage. sizes: bytes by stage."""
    passes: list[list[int]] = []
    held = 0
    for stage, size in sizes.items():
        if not passes or held + size > limit:
            passes.append([])
            held = 0
        passes[-1].append(stage)
        held += size
    return passes


def widths_of(model: MultiExit, batches: Batches) -> dict[int, int]:
    """How many features are taken of each stage."""
    x, y = batches[0]
    taken = next(stage_activations(model, [(x[:1], y[:1])]))
    return {stage: part.shape[1] for stage, part in taken.items()}


def sample_count(batches: Batches, least: int = 2) -> int:
    samples = sum(len(x) for x, _ in batches)
    if samples < least:
        many = f"{samples} sample{'' if samples == 1 else 's'}"
        raise EestudyError(f"batches: {many} in all; at least {least} are needed")
    return samples


def flattened(activations: Activations) -> Tensor:
    """(N, ...) -> floating (N, M). EestudyError for fewer than 2 samples, and values that are not finite."""
    samples = torch.as_tensor(activations).detach()
    if samples.ndim < 2 or len(samples) < 2 or not samples[0].numel():
        raise EestudyError(
            f"activations: shape {tuple(samples.shape)} is not valid; expected (N, M) with at least 2 samples"
        )
    samples = samples.flatten(1)
    samples = samples if samples.dtype in (torch.float32, torch.float64) else samples.float()
    wrong = int((~samples.isfinite()).sum())
    if wrong:
        raise EestudyError(f"activations: {wrong} of {samples.numel()} values are NaN or infinite")
    return samples


def checked(name: str, given: Activations, least: int) -> Tensor:
    rows = given.detach() if isinstance(given, Tensor) else torch.tensor(given)
    if rows.ndim != 2 or len(rows) < least or not rows.shape[1]:
        raise EestudyError(f"{name}: shape {tuple(rows.shape)} is not valid; (n, m) with n at least {least} is needed")
    check_finite(name, rows)
    return rows


def check_finite(name: str, rows: Tensor) -> None:
    finite = torch.isfinite(rows)
    if not finite.all():
        raise EestudyError(f"{name}: {int((~finite).sum())} of {rows.numel()} values are not finite")
