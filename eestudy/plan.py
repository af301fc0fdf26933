"""What a config comes to before anything is trained: the data, the network, the phases, their ids and their cost."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from eestudy import data
from eestudy.config import DIGITS, SCHEMA, EestudyError, RunConfig, content_hash, named_seed
from eestudy.content import code_of
from eestudy.data.augmentation import check as check_augmentation
from eestudy.data.splits import MULTI_LABEL
from eestudy.methods import MethodOfRun
from eestudy.models import MultiExit, build_backbone
from eestudy.models.own_heads import OwnHead
from eestudy.training.cost import once_flops, step_flops
from eestudy.training.own_loss import check_loss
from eestudy.training.phase_network import check_phases
from eestudy.training.phases import Phase, configured, resolve
from eestudy.training.strategies import BY_EXIT, phases_of, together_phase


@dataclass(frozen=True)
class Plan:
    """A run before it is trained. outline: facts of the data, which are not read before `data` is asked for."""

    config: RunConfig
    method: MethodOfRun
    outline: data.Outline
    model: MultiExit
    phases: tuple[Phase, ...]
    phase_ids: tuple[str, ...]
    step_flops: dict[str, float]  # of one sample, by phase name
    once_flops: float  # of what the phases compute once, beside their steps
    contents: tuple[dict[str, Any], ...]  # what the phases' ids are hashed of, beside seed and parent

    @cached_property
    def data(self) -> data.DataSet:
        """The data set itself. Raises EestudyError where its files are not on this machine."""
        return load_data(self.config)

    @property
    def training_flops(self) -> float:
        """Of the whole run, if every phase trains all its epochs."""
        samples = self.outline.train
        return self.once_flops + sum(
            self.step_flops[phase.name] * phase.settings.epochs * samples for phase in self.phases
        )


def prepare(config: RunConfig, model: MultiExit | None = None) -> Plan:
    """Checks that a config's parts fit together, else EestudyError; reads no data but what packages bring along."""
    facts, method = _checked(config)
    network = build_model(method, facts, model)
    return _planned_on(network, facts, method, fingerprint(network) if model else None)


def outlined(config: RunConfig) -> Plan:
    """As `prepare`, for planning alone: a study of 100,000 runs builds a network for each shape, not for each run.

    Its `model` has the run's shapes and nobody's weights: it is for reading.
    """
    plan = _of_all_seeds(config.model_copy(update={"seed": 0}))
    return replace(plan, config=config, phase_ids=_chained(plan.contents, config.seed))


@lru_cache(maxsize=64)
def _of_all_seeds(config: RunConfig) -> Plan:
    facts, method = _checked(config)
    network = _shaped(config.model_copy(update=_UNCOUNTED))
    method.check(network)
    return _planned_on(network, facts, method, None)


@lru_cache(maxsize=8)
def _shaped(config: RunConfig) -> MultiExit:
    return build_model(MethodOfRun(config), outline_of(config))


def _checked(config: RunConfig) -> tuple[data.Outline, MethodOfRun]:
    facts = outline_of(config)
    check_augmentation(config.augmentation, facts.input_shape, facts.dtype)
    check_loss(config, facts)
    method = MethodOfRun(config)
    if facts.task == MULTI_LABEL and method.identity:
        raise EestudyError(
            f"method: {config.method} works with probabilities of classes, and {facts.name} is multi-label; give sdn"
        )
    return facts, method


def _planned_on(network: MultiExit, facts: data.Outline, method: MethodOfRun, own: str | None) -> Plan:
    config, chosen = method.config, method.settings(network.backbone.kind)
    phases = phases_of(config, stages_of(network))
    phases = configured(phases, chosen, network.num_exits, method.identity, method.implied)
    check_phases(network, phases)
    flops = {phase.name: _counted(method, network, phase, own) for phase in phases}
    joint = step_flops(network, together_phase(1.0)) if config.match == "flops" else None
    phases = resolve(phases, config, flops, joint)
    once = sum(once_flops(network, phase, facts.train) for phase in phases)
    contents = tuple(_content(chosen, phase, network, own) for phase in phases)
    ids = _chained(contents, config.seed)
    return Plan(config, method, facts, network, phases, ids, flops, once, contents)


def _chained(contents: Sequence[dict[str, Any]], seed: int) -> tuple[str, ...]:
    """The phases' ids, each of which has its parent's in it. contents: see `_content`."""
    ids: list[str] = []
    for content in contents:
        own = {**content, "parent": ids[-1] if ids else None, "seed": seed}
        ids.append(f"{content['phase']['name']}-{content_hash(own)}")
    return tuple(ids)


_COUNTED: dict[tuple[RunConfig, str, str | None], float] = {}
# Settings that no step's FLOPs depend on, and in their place a value: runs that differ in them are counted together.
_UNCOUNTED = {
    name: RunConfig.model_fields[name].default
    for name in (
        "seed",
        "epochs",
        "lr",
        "lr_scale",
        "train_size",
        "weight_decay",
        "momentum",
        "schedule",
        "warmup",
        "clip",
    )
}


def _counted(method: MethodOfRun, network: MultiExit, phase: Phase, own: str | None) -> float:
    """Training FLOPs of one sample in `phase`, which take seconds to count: once for all seeds."""
    key = method.config.model_copy(update=_UNCOUNTED), phase.name, own
    if key not in _COUNTED:
        _COUNTED[key] = step_flops(network, phase) + method.more_flops(network, phase)
    return _COUNTED[key]


def stages_of(network: MultiExit) -> tuple[int, ...]:
    """The stage that each exit reads, counted from 1."""
    return (*network.exit_stages, len(network.backbone.stages))


@lru_cache(maxsize=1024)
def planned(config: RunConfig) -> tuple[Phase, ...]:
    """The phases of a run without its settings and epochs; builds the network where they depend on its exits."""
    if config.strategy not in BY_EXIT:
        return phases_of(config)
    return phases_of(config, stages_of(build_model(MethodOfRun(config), outline_of(config))))


def outline_of(config: RunConfig) -> data.Outline:
    """Facts of the data set that a run is trained on."""
    return data.outline(config.dataset, config.train_size, **config.dataset_args)


def load_data(config: RunConfig) -> data.DataSet:
    """The data set that a run is trained and tested on."""
    return data.load(config.dataset, config.train_size, **config.dataset_args)


def build_model(method: MethodOfRun, facts: data.Outline, model: MultiExit | None = None) -> MultiExit:
    """The untrained network. Backbone and heads are seeded by name: strategies start from the same weights."""
    config = method.config
    if model is not None:
        network = copy.deepcopy(model)
        network.frozen = frozen_by_user(network)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(config.seed, "backbone"))
            backbone = build_backbone(
                config.architecture, facts.input_shape, facts.num_classes, **config.architecture_args
            )
        network = MultiExit(
            backbone, config.exits, method.settings(backbone.kind).head, config.head_layers,
            lambda stage: named_seed(config.seed, "head", stage), config.head_args,
        )  # fmt: skip
    network.multi_label = facts.task == MULTI_LABEL
    _check_fit(config, network, facts)
    method.change(network, phases_of(config, stages_of(network)))
    # The layout convolutions are fastest in; set here, so that training and loading see the same bits. Not for a user's
    # own network, which may rely on the usual one (x.view).
    images = len(facts.input_shape) == 3 and model is None and not _needs_contiguous(network)
    return network.to(memory_format=torch.channels_last) if images else network


def frozen_by_user(model: MultiExit) -> frozenset[str]:
    """Names of the parameters with requires_grad=False, and of the modules all of whose parameters are frozen so."""
    names = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for name, part in model.named_modules():
        mine = list(part.parameters())
        if mine and not any(parameter.requires_grad for parameter in mine):
            names |= {".".join(filter(None, (name, below))) for below, _ in part.named_modules()}
    return frozenset(names)


def _needs_contiguous(network: MultiExit) -> bool:
    """Whether torch 2.15 would write past a buffer on a processor with AVX2 alone (seen as crashes and changing bits).

    It does in the weight gradient of channels-last, strided 1x1 convolutions with 2 to 7 input channels.
    """
    kernels = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    return any(part.kernel_size == (1, 1) and part.stride != (1, 1) and 1 < part.in_channels < 8 for part in kernels)


def _check_fit(config: RunConfig, network: MultiExit, facts: data.Outline) -> None:
    """EestudyError if the network does not take what the data set gives, or answers with another number of classes."""
    given = torch.int64 if facts.dtype == torch.int64 else torch.float32
    if network.backbone.input_dtype != given:
        words = {torch.int64: "token ids", torch.float32: "numbers"}
        raise EestudyError(
            f"architecture: {config.architecture} takes {words[network.backbone.input_dtype]}, "
            f"but {facts.name} gives {words[given]}"
        )
    shapes = ("inputs of shape", network.input_shape, facts.input_shape)
    for fact, own, wanted in (shapes, ("logits for", network.num_classes, facts.num_classes)):
        if own != wanted:
            raise EestudyError(f"model: has {fact} {own}, but {facts.name} needs {wanted}")


def fingerprint(model: MultiExit) -> str:
    """What a user's own network is known by: its modules as they print, its weights bit for bit, what is frozen.

    Of its own heads also their code and the values they hold, which do not print.
    """
    content = hashlib.sha256(str(model).encode())
    content.update(" ".join(sorted(frozen_by_user(model))).encode())
    for part in model.modules():
        code = getattr(part, "code", "")  # of a module that torch.fx cut out
        content.update(code.encode() if isinstance(code, str) else b"")
    content.update("".join(code_of(head) for head in model.heads.values() if isinstance(head, OwnHead)).encode())
    for name, value in model.state_dict().items():
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:DIGITS]


def _content(config: RunConfig, phase: Phase, network: MultiExit, own: str | None) -> dict[str, Any]:
    """What a phase's content address is made of beside seed and parent: all that decides its weights.

    config: as its method settles it. Where the phase stands in its run is said by its parent. Heads that take no part
    are not in it, nor is the strategy's name: so disjoint and mixed share their first phase. own: `fingerprint`.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "phase": phase.identity(),
        "data": data.identity(config.dataset, config.train_size, **config.dataset_args),
        "backbone": {"name": config.architecture, **_given(config, "architecture_args")},
    }
    if own:
        content["backbone"]["content"] = own
    if phase.uses_heads:
        content["heads"] = {"after": network.exit_stages, **_given(config, "head", "head_layers", "head_args")}
    return content


def _given(config: RunConfig, *names: str) -> dict[str, Any]:
    """Those of these settings that differ from their default."""
    return config.model_dump(mode="json", include=set(names), exclude_defaults=True)
