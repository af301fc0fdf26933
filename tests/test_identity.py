"""What a run and its phases are known by. These ids are in committed records: they may change with SCHEMA alone."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import eestudy
from eestudy import data
from eestudy.config import DIGITS, SCHEMA, EestudyError, RunConfig
from eestudy.plan import prepare
from eestudy.registry import DATASETS
from eestudy.training.phases import Phase, Settings, differing

BASE: dict[str, Any] = {
    "architecture": "resnet-tiny", "dataset": "digits", "strategy": "mixed", "epochs": 4, "train_size": 192,
}  # fmt: skip


def phase_ids(**changes: object) -> tuple[str, ...]:
    return prepare(RunConfig(**{**BASE, **changes})).phase_ids


def test_ids_are_pinned():
    """They depend on neither machine nor version; a later field with a default leaves them as they are."""
    known = {
        "disjoint": (
            "resnet-tiny-digits-disjoint-s0-4c1118aaa7f70433",
            ("backbone-aa8507166fd986d4", "heads-c1782294f129b92a"),
        ),
        "joint": ("resnet-tiny-digits-joint-s0-ee297dfd2aab072d", ("together-eb6d7cd85c4e7828",)),
        "mixed": (
            "resnet-tiny-digits-mixed-s0-9908b0ff139bf4fe",
            ("backbone-aa8507166fd986d4", "together-411d4b7e682e1935"),
        ),
        "sequential-lwf": (
            "resnet-tiny-digits-sequential-lwf-s0-220be1b3c2e2f591",
            (
                "lwf1-5b991e4bc126a5ce",
                "lwf2-436784b89cbd5314",
                "lwf3-d9f5a45b06639d04",
                "lwf4-ee1a97f2068c7b6e",
                "lwf5-c27d12513524214e",
                "lwf6-640bfbc4f01e83ec",
            ),
        ),
    }
    assert SCHEMA == 3
    for strategy, (run, phases) in known.items():
        made = prepare(RunConfig(**{**BASE, "strategy": strategy}, method="gpf"))
        assert (made.config.id, made.phase_ids) == (run, phases)
        assert all(len(name.rpartition("-")[2]) == DIGITS for name in (run, *phases))


def test_what_differs_from_the_defaults_is_the_identity():
    phase = Phase("together", ("backbone", "heads"), "all").having(epochs=3, lr=0.1)
    assert phase.identity() == {
        "name": "together", "trains": ("backbone", "heads"), "exits": "all", "settings": {"epochs": 3, "lr": 0.1},
    }  # fmt: skip


def test_a_new_setting_leaves_every_id_as_it_is_while_it_has_its_default():
    later = dataclasses.make_dataclass(
        "Later", [("start", str, dataclasses.field(default="scratch"))], bases=(Settings,), frozen=True
    )
    assert differing(later(epochs=3)) == differing(Settings(epochs=3))
    assert differing(later(epochs=3, start="trained")) == {"epochs": 3, "start": "trained"}


def test_the_defaults_of_a_phase_are_those_of_a_run():
    runs = {name: field.default for name, field in RunConfig.model_fields.items()}
    plain = Settings()
    shared = {each.name for each in dataclasses.fields(Settings)} & set(runs)
    # A run has epochs for all its phases, a patience that match: patience asks for, a method, and no stability.
    own = {"epochs", "patience", "method", "stability"}
    assert {name for name in shared if getattr(plain, name) != runs[name]} == own


# For every setting a value that does something, and what it needs beside it. A setting that no phase knew of would be
# part of the run's id and change nothing.
CHANGES: dict[str, dict[str, Any]] = {
    "architecture": {"architecture": "mlp"}, "dataset": {"architecture": "mlp", "dataset": "mnist1d"},
    "strategy": {"strategy": "joint"},
    "method": {"method": "gpf"}, "method_args": {"method": "gpf", "method_args": {"width": 32}}, "seed": {"seed": 1},
    "epochs": {"epochs": 5}, "train_size": {"train_size": 300}, "dataset_args": {"dataset_args": {"validation": 100}},
    "augmentation": {"augmentation": "shift"},
    "augmentation_args": {"augmentation": "shift", "augmentation_args": {"shift": 2}},
    "architecture_args": {"architecture_args": {"width": 8}}, "exits": {"exits": (1,)},
    "head": {"head": "cascading-pooled"},
    "head_layers": {"head_layers": 2}, "head_args": {"head_layers": 2, "head_args": {"width": 8}},
    "weighting": {"weighting": "depth-linear"},
    "weights": {"weighting": "custom", "weights": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)},
    "gradient_scaling": {"gradient_scaling": "equilibrium"},
    "distillation": {"distillation": "last"},
    "class_weights": {"class_weights": "balanced"}, "label_smoothing": {"label_smoothing": 0.1},
    "distillation_weight": {"distillation": "last", "distillation_weight": 0.1},
    "distillation_temperature": {"distillation": "last", "distillation_temperature": 1.0},
    "match": {"strategy": "disjoint", "match": "flops", "epochs": 60},
    "phase_split": {"phase_split": 0.25}, "warm_start": {"warm_start": 0.25},
    "stability": {"strategy": "sequential-lwf", "stability": 2.0}, "batchnorm": {"batchnorm": "freeze"},
    "patience": {"match": "patience", "patience": 3}, "optimizer": {"optimizer": "sgd"}, "lr": {"lr": 0.1},
    "lr_scale": {"lr_scale": 0.3}, "weight_decay": {"weight_decay": 0.5},
    "momentum": {"optimizer": "sgd", "momentum": 0.5}, "schedule": {"schedule": "constant"}, "warmup": {"warmup": 0.1},
    "clip": {"clip": None}, "batch_size": {"batch_size": 64}, "precision": {"precision": "bfloat16"},
    "checkpoints": {"checkpoints": (0, 100)},
}  # fmt: skip


def test_every_setting_reaches_a_phase():
    assert set(CHANGES) == set(RunConfig.model_fields) - {"start", "criterion"}  # test_trained_weights, test_own_loss
    for field, changes in CHANGES.items():
        without = {name: value for name, value in changes.items() if name != field}
        if field in ("weights", "distillation"):
            without = {}
        assert phase_ids(**changes) != phase_ids(**without), field


def test_what_has_no_effect_in_a_phase_is_not_in_its_id():
    plain = phase_ids()
    assert phase_ids(momentum=0.5) == plain, "adamw has none"
    assert phase_ids(method="branchynet", weighting="equal")[0] == plain[0]
    for heads in (
        {"exits": (1,)},
        {"head": "cascading-pooled"},
        {"weighting": "depth-linear"},
        {"distillation": "last"},
    ):
        changed = phase_ids(**heads)
        assert changed[0] == plain[0], "the backbone's phase has no heads"
        assert changed[1] != plain[1]
    assert phase_ids(lr_scale=0.3)[0] == plain[0]


def test_a_phase_is_shared_whatever_share_of_the_run_it_is():
    """The plain backbone of four epochs is phase 1 of mixed and disjoint at eight; joint is mixed without phase 1."""
    alone = phase_ids(phase_split=1, epochs=4)
    assert alone == phase_ids(epochs=8)[:1] == phase_ids(epochs=8, strategy="disjoint")[:1]
    assert phase_ids(phase_split=0) == phase_ids(strategy="joint")


def test_data_is_known_by_name_settings_and_version(monkeypatch):
    plain = data.identity("mnist1d", 500)
    assert plain == {"name": "mnist1d", "version": 1, "train_size": 500}
    assert data.identity("mnist1d", 500, noise=0.02) == plain, "given in full"
    assert data.identity("mnist1d", noise=0.1) == {"name": "mnist1d", "version": 1, "noise": 0.1}
    before = phase_ids()
    monkeypatch.setitem(data.VERSIONS, "digits", 2)
    assert set(phase_ids()).isdisjoint(before)


def test_planning_reads_no_data_that_is_got_from_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("EESTUDY_DATA", str(tmp_path))
    for name, source in data.sources_by_name().items():
        architecture = "minilm" if source.text else "resnet20"
        plan = prepare(RunConfig(architecture=architecture, dataset=name, strategy="joint"))
        assert plan.training_flops > 0
        assert plan.outline.input_shape == source.input_shape


@pytest.mark.parametrize(
    ("name", "arguments"), [("digits", {"validation": 100}), ("mnist1d", {"samples": 2000, "test": 700}),
                            ("diabetes", {"validation": 50})],
)  # fmt: skip
def test_an_outline_says_what_is_loaded(name, arguments):
    loaded = data.load(name, 200, **arguments)
    outline = data.outline(name, 200, **arguments)
    assert (outline.train, outline.validation, outline.test) == (200, len(loaded.validation), len(loaded.test))
    assert (outline.input_shape, outline.num_classes, outline.task) == (
        loaded.input_shape, loaded.num_classes, loaded.task,
    )  # fmt: skip
    assert outline.dtype == loaded.train.dtype


def test_sizes_of_splits():
    made = data.load("mnist1d", samples=2000, test=700, validation=300)
    assert [len(split) for split in (made.train, made.validation, made.test)] == [1000, 300, 700]
    assert len(data.load("digits", validation=100).validation) == 100
    default, given = data.load("mnist1d"), data.load("mnist1d", test=1000, validation=400)
    for split in ("train", "validation", "test"):  # 5,000 samples, a fifth for test, a tenth of the rest held out
        assert torch.equal(getattr(default, split).x, getattr(given, split).x)


@pytest.mark.parametrize(
    "given",
    [{"exits": [1]}, {"head": "vector"}, {"head_layers": 2}, {"head_args": {"width": 8}},
     {"architecture_args": {"width": 8}}],
)  # fmt: skip
def test_what_comes_with_ones_own_model_is_refused(given):
    with pytest.raises(EestudyError, match=rf"^{next(iter(given))}: .*no effect with architecture own") as caught:
        RunConfig(architecture="own", dataset="digits", strategy="joint", **given)
    assert "\n" not in str(caught.value)


def test_every_loader_says_how_much_it_holds_out():
    for name, loader in DATASETS.items():
        # STS-B's makers hold out a part of their own.
        assert ("validation" in inspect.signature(loader).parameters) == (name != "stsb")


def test_the_package_says_what_it_is_called():
    assert eestudy.RunConfig is RunConfig
