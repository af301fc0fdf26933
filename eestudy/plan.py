"""What a config comes to before anything is trained: the data, the network, the phases, their ids and their cost."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from eestudy import data
from eestudy.config import SCHEMA, EestudyError, RunConfig, content_hash, named_seed
from eestudy.data.augmentation import check as check_augmentation
from eestudy.methods import change, implied_by, more_flops, settled, trained_as
from eestudy.models import MultiExit, build_backbone
from eestudy.training.cost import once_flops, step_flops
from eestudy.training.freezing import check_batch_norms
from eestudy.training.phases import Phase, resolve
from eestudy.training.settings import configured
from eestudy.training.strategies import BY_EXIT, phases_of, together_phase


@dataclass(frozen=True)
class Plan:
    """What a config comes to: the data, the untrained network, its phases and their ids, FLOPs of a training step."""

    config: RunConfig
    data: data.DataSet
    model: MultiExit
    phases: tuple[Phase, ...]
    phase_ids: tuple[str, ...]
    step_flops: dict[str, float]  # of one sample, by phase name
    once_flops: float  # of what the phases compute once, beside their steps

    @property
    def training_flops(self) -> float:
        """Of the whole run, if every phase trains all its epochs."""
        samples = len(self.data.train)
        return self.once_flops + sum(self.step_flops[phase.name] * phase.epochs * samples for phase in self.phases)


def prepare(config: RunConfig, model: MultiExit | None = None) -> Plan:
    """Checks that a config's parts fit together, without training. Raises EestudyError where they do not."""
    loaded = data.load(config.dataset, config.train_size, **config.dataset_args)
    check_augmentation(config.augmentation, loaded.input_shape, loaded.train.dtype)
    network = build_model(config, loaded, model)
    chosen = settled(config, network.backbone.kind)
    phases = phases_of(config, stages_of(network))
    phases = configured(phases, chosen, network.num_exits, trained_as(config), implied_by(config))
    check_batch_norms(network, phases)
    flops = {phase.name: _counted(config, network, phase, shared=model is None) for phase in phases}
    joint = step_flops(network, together_phase(1.0)) if config.match == "flops" else None
    phases = resolve(phases, config, flops, joint)
    once = sum(once_flops(network, phase, len(loaded.train)) for phase in phases)
    own = fingerprint(network) if model else None
    ids: list[str] = []
    for place, phase in enumerate(phases):
        ids.append(_phase_id(chosen, phase, place, ids[-1] if ids else None, network, own))
    return Plan(config, loaded, network, phases, tuple(ids), flops, once)


_COUNTED: dict[tuple[RunConfig, str], float] = {}


def _counted(config: RunConfig, network: MultiExit, phase: Phase, shared: bool) -> float:
    """Training FLOPs of one sample in `phase`; shared: counted once for all seeds, as it takes seconds."""
    key = config.model_copy(update={"seed": 0}), phase.name
    if not shared or key not in _COUNTED:
        flops = step_flops(network, phase) + more_flops(config, network, phase)
        if not shared:
            return flops
        _COUNTED[key] = flops
    return _COUNTED[key]


def stages_of(network: MultiExit) -> tuple[int, ...]:
    """The stage that each exit reads, counted from 1."""
    return (*network.exit_stages, len(network.backbone.stages))


@lru_cache(maxsize=1024)
def planned(config: RunConfig) -> tuple[Phase, ...]:
    """The phases of a run without its settings and epochs; builds the network where they depend on its exits."""
    if config.strategy not in BY_EXIT:
        return phases_of(config)
    loaded = data.load(config.dataset, config.train_size, **config.dataset_args)
    return phases_of(config, stages_of(build_model(config, loaded)))


def build_model(config: RunConfig, loaded: data.DataSet, model: MultiExit | None = None) -> MultiExit:
    """The untrained network. Backbone and heads are seeded by name: strategies start from the same weights."""
    if model is not None:
        network = copy.deepcopy(model).requires_grad_(True)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(config.seed, "backbone"))
            backbone = build_backbone(
                config.architecture, loaded.input_shape, loaded.num_classes, **config.architecture_args
            )
        network = MultiExit(
            backbone, config.exits, settled(config, backbone.kind).head, config.head_layers,
            lambda stage: named_seed(config.seed, "head", stage), config.head_args,
        )  # fmt: skip
    _check_fit(config, network, loaded)
    change(network, config, phases_of(config, stages_of(network)))
    # The layout convolutions are fastest in; set here, so that training and loading see the same bits. Not for a user's
    # own network, which may rely on the usual one (x.view).
    images = len(loaded.input_shape) == 3 and model is None and not _needs_contiguous(network)
    return network.to(memory_format=torch.channels_last) if images else network


def _needs_contiguous(network: MultiExit) -> bool:
    """Whether torch 2.15 would write past a buffer on a processor with AVX2 alone (seen as crashes and changing bits).

    It does in the weight gradient of channels-last, strided 1x1 convolutions with 2 to 7 input channels.
    """
    kernels = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    return any(part.kernel_size == (1, 1) and part.stride != (1, 1) and 1 < part.in_channels < 8 for part in kernels)


def _check_fit(config: RunConfig, network: MultiExit, loaded: data.DataSet) -> None:
    """EestudyError if the network does not take what the data set gives, or answers with another number of classes."""
    given = torch.int64 if loaded.train.dtype == torch.int64 else torch.float32
    if network.backbone.input_dtype != given:
        words = {torch.int64: "token ids", torch.float32: "numbers"}
        raise EestudyError(
            f"architecture: {config.architecture} takes {words[network.backbone.input_dtype]}, "
            f"but {loaded.name} gives {words[given]}"
        )
    for fact, own, wanted in (
        ("inputs of shape", network.input_shape, loaded.input_shape),
        ("logits for", network.num_classes, loaded.num_classes),
    ):
        if own != wanted:
            raise EestudyError(f"model: has {fact} {own}, but {loaded.name} needs {wanted}")


def fingerprint(model: MultiExit) -> str:
    """What a network of the user's own is known by: its modules as they print, its weights bit for bit."""
    content = hashlib.sha256(str(model).encode())
    for part in model.modules():
        code = getattr(part, "code", "")  # of a module that torch.fx cut out
        content.update(code.encode() if isinstance(code, str) else b"")
    for name, value in model.state_dict().items():
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:10]


def _phase_id(
    config: RunConfig, phase: Phase, place: int, parent: str | None, network: MultiExit, own: str | None
) -> str:
    """Content address of a phase. What does not change its weights (the strategy's name, unused heads) is left out."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "parent": parent,
        "place": place,
        "phase": phase.identity(),
        "seed": config.seed,
        "data": [config.dataset, config.dataset_args, config.train_size],
        "backbone": [config.architecture, config.architecture_args, own],
    }
    if phase.uses_heads:
        content["heads"] = [config.head, config.head_layers, config.head_args, network.exit_stages]
    return f"{phase.name}-{content_hash(content)}"
