"""BatchNorm statistics measured again with a phase's final weights."""

from __future__ import annotations

import torch

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
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
        norm.train()
    with execution.precision(phase.settings.precision):
        for x in batches.clean("batchnorm"):
            exit_logits(model, phase_exits(model, phase), x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
