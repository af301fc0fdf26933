"""What defines a run: validated, frozen and hashed. No torch here.

A setting belongs in `RunConfig` when it changes the result; how a run is executed (device, workers, store) does not.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from eestudy.registry import ARCHITECTURES, DATASETS, HEADS, METHODS, STRATEGIES, WEIGHTINGS

# Raised when a default or a rule changes so that an old result no longer answers for the same settings. A new field
# leaves every id as it is while it has its default: what is hashed is what differs from the defaults.
SCHEMA = 3

# Fields that take one of these names.
NAMES: dict[str, tuple[str, ...]] = {
    "architecture": (*ARCHITECTURES, "own"),  # own: a model given to eestudy.run
    "dataset": (*DATASETS, "own"),  # own: data given to eestudy.run, or files of one's own
    "strategy": tuple(STRATEGIES),
    "method": tuple(METHODS),
    "head": ("auto", *HEADS),
    "weighting": tuple(WEIGHTINGS),
}
# Joined by "+", such as crop+flip; always in this order.
AUGMENTATIONS = ("shift", "crop", "flip", "cutout", "mixup", "cutmix")
MOST_HEAD_LAYERS = 5
# What a model of one's own comes with.
OF_THE_MODEL = ("exits", "head", "head_layers", "head_args", "architecture_args")

# How pydantic names limits, and what they say.
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
OUT_OF_RANGE = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class EestudyError(ValueError):
    """A mistake in what the user gave: one line that names the field, the value and what is valid."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this: a notebook shows the line alone, not the way through the package.
        return [f"{type(self).__name__}: {self}"]


def nearest(value: object, names: Iterable[str]) -> str:
    """The names closest to `value` as the end of an error line; all of them when none is close."""
    names = list(names)
    close = difflib.get_close_matches(str(value), names, n=3, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"valid: {', '.join(names)}"


def check_name(field: str, value: object, names: Iterable[str]) -> str:
    """`value` if it is one of `names`; EestudyError with the nearest ones otherwise."""
    names = list(names)
    if value not in names:
        raise EestudyError(f"{field}: unknown name {value!r}; {nearest(value, names)}")
    return str(value)


class RunConfig(BaseModel):
    """Everything that defines the result of one run. EestudyError in one line for a field that is unknown or wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    architecture: str
    dataset: str
    strategy: str
    method: str = "sdn"
    method_args: dict[str, int | float | str] = {}  # the method's own; see `eestudy.methods`
    seed: Annotated[int, Field(ge=0)] = 0
    epochs: Count = 20  # of the whole run; `match` says how the phases share them
    # what is learnt from
    train_size: Count | None = None  # stratified subset of the training split; None: all of it
    dataset_args: dict[str, int | float | str] = {}  # of dataset own: see `data.own`
    augmentation: str = "none"  # or some of AUGMENTATIONS, such as "crop+flip"
    # Strengths: shift, crop, cutout in pixels; mixup, cutmix the a of Beta(a, a). Default: by the size of the input.
    augmentation_args: dict[str, int | float] = {}
    # the network
    architecture_args: dict[str, int | float | str] = {}
    # Which stages get a head: "all" but the last, their numbers (from 1), {every: n}, or {flops: [per cent, ...]} of
    # the plain backbone's.
    exits: tuple[int, ...] | dict[str, int | tuple[float, ...]] | str = "all"
    head: str = "auto"  # by the kind of the backbone's features
    head_layers: Annotated[int, Field(ge=1, le=MOST_HEAD_LAYERS)] = 1
    head_args: dict[str, int] = {}  # width: of the hidden layers
    # the training
    # trained: from the weights that a model of one's own comes with, so the phase of the backbone alone is left out.
    start: Literal["scratch", "trained"] = "scratch"
    # Of each class in the loss, or "balanced": by how rare it is. Scaled to a mean of 1 over the training data.
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] | str = ()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    criterion: str = ""  # what a loss of one's own is known by; eestudy.run(criterion=...) sets it
    weighting: str = "equal"
    weights: tuple[float, ...] = ()  # with `weighting: custom`: one for each exit
    gradient_scaling: Literal["none", "equilibrium", "boosting"] = "none"  # of what the exits send into the backbone
    distillation: Literal["none", "last", "later", "next"] = "none"  # the deeper exits that an exit learns from
    distillation_weight: Share = 0.5  # against the labels
    distillation_temperature: Positive = 3.0  # of sequential-lwf too
    match: Literal["epochs", "flops", "patience"] = "epochs"
    # Share of the epochs for phase 1 of disjoint, mixed, mixed-heads and joint-heads; 0 leaves it out, 1 the rest.
    phase_split: Share = 0.5
    warm_start: Share = 0.0  # share of the epochs for heads alone, between phases 1 and 2 of mixed and mixed-heads
    stability: Positive | None = None  # weight of what sequential-lwf (default 1), -ewc (1,000) keep of earlier exits
    batchnorm: Literal["train", "freeze", "reestimate"] = "train"  # of the backbone's statistics
    patience: Count = 10  # epochs with a worse validation accuracy at every exit; used by `match: patience`
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 3e-3  # AdamW; the small networks here are undertrained at 1e-3
    lr_scale: Positive = 1.0  # of the learning rate, in every phase after the first
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    momentum: Share = 0.9  # sgd only
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    warmup: Share = 0.05  # share of a phase's steps; cosine and constant
    clip: Positive | None = 1.0  # norm of the gradient; None: no clipping
    batch_size: Annotated[int, Field(ge=2)] = 128
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoints: tuple[int, ...] = (0, 5, 10, 25, 50, 75, 100)  # per cent of a phase

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise EestudyError(_one_line(error)) from None

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any) -> Any:
        # Python takes True for 1; in a YAML file it is a mistake.
        if isinstance(value, bool):
            raise ValueError("true and false are not valid here")
        return value

    @field_validator(*NAMES, mode="before")
    @classmethod
    def _known_name(cls, value: Any, info: Any) -> Any:
        if value not in NAMES[info.field_name]:
            raise ValueError(f"unknown name {value!r}; {nearest(value, NAMES[info.field_name])}")
        return value

    @field_validator("exits")
    @classmethod
    def _exits(cls, value: Any) -> Any:
        if isinstance(value, dict):
            if list(value) == ["every"] and isinstance(value["every"], int) and value["every"] >= 1:
                return value
            shares = value["flops"] if isinstance(value.get("flops"), tuple) else ()
            different = sorted({share for share in shares if 0 < share < 100})
            if list(value) == ["flops"] and different and different == sorted(shares):
                return {"flops": tuple(sorted(shares))}
            raise ValueError(f"{value} is not valid; give {{every: 2}}, or {{flops: [25, 50]}} in per cent")
        if isinstance(value, str):
            if value != "all":
                raise ValueError(f"{value!r} is not valid; give 'all' or a list of stages such as [2, 4]")
            return value
        if not value or min(value) < 1 or len(set(value)) < len(value):
            raise ValueError(f"{list(value)} is not valid; stages count from 1, at least one, none twice")
        return tuple(sorted(value))

    @field_validator("augmentation")
    @classmethod
    def _augmentation(cls, value: str) -> str:
        if value == "none":
            return value
        given = value.split("+")
        for name in given:
            if name not in AUGMENTATIONS:
                raise ValueError(f"unknown name {name!r}; {nearest(name, ['none', *AUGMENTATIONS])}")
            if given.count(name) > 1:
                raise ValueError(f"{value!r} names {name} twice")
        return "+".join(name for name in AUGMENTATIONS if name in given)

    @field_validator("augmentation_args")
    @classmethod
    def _augmentation_args(cls, value: dict[str, float], info: Any) -> dict[str, float]:
        adjustable = [name for name in info.data.get("augmentation", "").split("+") if name not in ("none", "flip")]
        for name, strength in value.items():
            if name not in adjustable:
                valid = ", ".join(adjustable) or "(none)"
                raise ValueError(f"{name!r} is not an adjustable part of the augmentation; valid: {valid}")
            pixels = name in ("shift", "crop", "cutout")
            if not 0 < strength < float("inf") or (pixels and strength != int(strength)):
                kind = "a whole number of pixels above 0" if pixels else "a number above 0"
                raise ValueError(f"{name}: {strength!r} is not valid; it must be {kind}")
        return value

    @field_validator("class_weights")
    @classmethod
    def _class_weights(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "balanced":
            raise ValueError(f"{value!r} is not valid; give 'balanced', or a list with the weight of each class")
        if not isinstance(value, str) and value and not any(value):
            raise ValueError(f"{list(value)} is not valid; at least one is above 0")
        return value

    @field_validator("weights")
    @classmethod
    def _weights(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and not (all(0 <= weight < float("inf") for weight in value) and any(value)):
            raise ValueError(f"{list(value)} is not valid; each is at least 0, and one is above it")
        return value

    @field_validator("checkpoints")
    @classmethod
    def _checkpoints(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= share <= 100 for share in value):
            raise ValueError(f"{list(value)} is not valid; each is a whole per cent of a phase, 0 to 100")
        return tuple(sorted({*value, 100}))

    @model_validator(mode="after")
    def _own_model_has_its_exits(self) -> RunConfig:
        # A value here would be hashed and do nothing.
        for field in OF_THE_MODEL if self.architecture == "own" else ():
            value = getattr(self, field)
            if value != type(self).model_fields[field].default:
                raise ValueError(
                    f"{field}: {value!r} has no effect with architecture own, whose exits and heads come with the "
                    "model; give them to add_exits or MultiExit"
                )
        if self.start == "trained" and self.architecture != "own":
            raise ValueError(
                "start: 'trained' needs architecture own, a model that comes with its weights; it is "
                f"{self.architecture!r}"
            )
        return self

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with `changes`, validated again."""
        return RunConfig(**{**self.model_dump(), **changes})

    def identity(self) -> dict[str, Any]:
        """What is hashed: the fields that differ from their default, and the schema version.

        So old ids stay when a field is added. A changed default needs a new SCHEMA; a test pins the defaults.
        """
        given = self.model_dump(mode="json", exclude_defaults=True)
        if "content" in self.dataset_args:  # wherever it lies
            given["dataset_args"].pop("path", None)
        return {"schema": SCHEMA, **given}

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def id(self) -> str:
        """Readable names and a content hash: equal settings have an equal id, in any process."""
        names = (self.architecture, self.dataset, self.strategy, f"s{self.seed}")
        return "-".join([*names, content_hash(self.identity())])


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # of several fields together; the line names them itself
        return str(first["ctx"]["error"])
    field, given = str(first["loc"][0]), first["input"]
    if first["type"] == "extra_forbidden":
        return f"unknown key {field!r} (value {given!r}); {nearest(field, RunConfig.model_fields)}"
    info = RunConfig.model_fields[field]
    if first["type"] == "missing":
        return f"{field}: missing, it has no default; valid: {', '.join(NAMES[field])}"
    if first["type"] == "literal_error":
        return f"{field}: unknown name {given!r}; {nearest(given, get_args(info.annotation))}"
    if first["type"] == "value_error":
        return f"{field}: {first['ctx']['error']}"
    if first["type"] in OUT_OF_RANGE:
        bounds = [(name, getattr(each, name)) for each in info.metadata for name in BOUNDS if hasattr(each, name)]
        wanted = " and ".join(f"{BOUNDS[name]} {bound:g}" for name, bound in bounds or first["ctx"].items())
        return f"{field}: {given!r} is out of range; it must be {wanted}"
    return f"{field}: {given!r} is not valid; {first['msg'][0].lower()}{first['msg'][1:]}"


DIGITS = 16  # of an id's hash; ten would collide in one of 200 plans of 100,000 runs


def content_hash(content: Any) -> str:
    """DIGITS hex digits of the SHA-256 of `content` as JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def named_seed(*names: object) -> int:
    """A seed in [0, 2^63) from names such as (run seed, "phase-1", "order", epoch), never from the order of calls."""
    text = "/".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
