"""Probe batches: the same samples for every checkpoint of every strategy and seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eestudy.config import EestudyError, named_seed
from eestudy.data import Split
from eestudy.models import MultiExit

Batches = Sequence[tuple[Tensor, Tensor]]


def probe_batches(
    split: Split, samples: int, model: MultiExit, batch_size: int = 128, seed: int = 0, skip: int = 0
) -> Batches:
    """`samples` of a split (all, if it has fewer), drawn by a fixed seed, without augmentation, as `model` takes them.

    Pairs (x, y) of at most `batch_size` samples, in the model's memory format and on its device. Which samples depends
    on the split's size and `seed` alone. skip: how many of the draw are left out, so that these are others than the
    first `skip`. A last batch of one sample is left out too: BatchNorm has no statistics of it.
    Raises EestudyError for fewer than 2 samples.
    """
    if samples < 2 or batch_size < 1:
        raise EestudyError(f"samples: {samples} in batches of {batch_size} is not valid; at least 2 are needed")
    if not 0 <= skip <= len(split) - 2:
        raise EestudyError(f"skip: {skip} of {len(split)} samples is not valid; at least 2 must be left")
    generator = torch.Generator()
    generator.manual_seed(named_seed("probe", seed))
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
