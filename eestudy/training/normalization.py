"""BatchNorm statistics measured again, for weights that are not those they were gathered with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eestudy.models import MultiExit
from eestudy.training.batches import Batches
from eestudy.training.execution import Execution
from eestudy.training.phase_network import exit_logits
from eestudy.training.phases import Phase
from eestudy.training.trainable import batch_norms, phase_exits, trained_modules


@torch.no_grad()
def reestimate(model: MultiExit, phase: Phase, batches: Batches, execution: Execution) -> None:
    """Running means and variances of what the phase trained: the mean over one pass of the training data.

    While training they lag behind the weights. Whole batches without augmentation, as in use; all else is in eval mode
    (Wu and Johnson 2021, PreciseBN).
    """
    model.eval()
    norms = [norm for part in trained_modules(model, phase).values() for norm in batch_norms(part)]
    for norm in norms:
        norm.reset_running_stats()
    with gathering(norms), execution.precision(phase.settings.precision):
        for x in batches.clean("batchnorm"):
            exit_logits(model, phase_exits(model, phase), x)


@contextmanager
def gathering(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """These layers normalize by their batch and keep the mean over all batches; all else stays as it is.

    So each layer sees what the layers before it give when they normalize by about these statistics (Izmailov et al.
    2018, SWA; Garipov et al. 2018). Batches weigh by their size: at each, a layer's momentum is its share of all that
    the layer has seen. The variance is the mean of the batches' (unbiased) variances, so it lacks what the batches'
    means differ by.
    """
    before = [(norm, norm.training, norm.momentum) for norm in norms]
    seen = dict.fromkeys(norms, 0)

    def weigh(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        count = inputs[0].numel() // inputs[0].shape[1]
        seen[module] += count
        module.momentum = count / seen[module]

    hooks = [norm.train().register_forward_pre_hook(weigh) for norm in seen]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, training, momentum in before:
            norm.training, norm.momentum = training, momentum
