"""BatchNorm statistics of a network between trained ones: its weights are new, so their statistics must be too.

The statistics are gathered in one pass over the data in which the BatchNorm layers, and only they, normalize by their
batch, and every layer keeps the mean over all batches (Izmailov et al. 2018, SWA; Garipov et al. 2018): each layer thus
sees what the layers before it give when they normalize by about these statistics. The variance is the mean of the
batches' (unbiased) variances, so it lacks what the batches' means differ by. Batches weigh by their size; in
`training.batches`, where all are whole, they weigh alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from eestudy.config import EestudyError
from eestudy.dynamics.probes import Batches

# Parameters and buffers by their names in a network.
Tensors = dict[str, Tensor]


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The layers that have statistics, by name."""
    found = ((name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm))
    return {name: module for name, module in found if module.running_mean is not None}


@contextmanager
def by_batch(network: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalize by their batch and all else stays as it is: no dropout in a network in eval mode."""
    before = [(module, module.training, module.momentum) for module in batch_norms(network).values()]
    for module, _, _ in before:
        module.training = True
    try:
        yield
    finally:
        for module, training, momentum in before:
            module.training, module.momentum = training, momentum


@torch.no_grad()
def with_statistics_of(network: nn.Module, tensors: Tensors, batches: Batches) -> Tensors:
    """`tensors` with the BatchNorm statistics that belong to them; as they are where the network has no BatchNorm.

    network: in eval mode; neither it nor `tensors` is changed. Batches weigh by their size: after each, a layer's
    momentum is its share of all that the layer has seen. Raises EestudyError for a batch of one sample, which has no
    variance, and for none.
    """
    norms = batch_norms(network)
    if not norms:
        return tensors
    check_sizes(batches)
    fresh = dict(tensors)
    for name in norms:
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            if (kept := tensors.get(f"{name}.{statistic}")) is not None:
                fresh[f"{name}.{statistic}"] = torch.zeros_like(kept)

    seen = dict.fromkeys(norms.values(), 0)

    def weigh(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        count = inputs[0].numel() // inputs[0].shape[1]
        seen[module] += count
        module.momentum = count / seen[module]

    hooks = [module.register_forward_pre_hook(weigh) for module in norms.values()]
    try:
        with by_batch(network):
            for x, _ in batches:
                functional_call(network, fresh, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    return fresh


def check_sizes(batches: Batches) -> None:
    """EestudyError unless every batch has statistics."""
    sizes = [len(x) for x, _ in batches]
    if min(sizes, default=0) < 2:
        raise EestudyError(
            f"train: batches of {', '.join(map(str, sorted(set(sizes)))) or 'no'} samples; BatchNorm's statistics need "
            "at least one batch, and 2 samples in each"
        )
