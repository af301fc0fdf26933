from __future__ import annotations

import subprocess
import sys

import pytest

from eestudy import config, registry
from eestudy.config import EestudyError, RunConfig, content_hash, named_seed

BASE = {"architecture": "mlp", "dataset": "digits", "strategy": "joint"}

# A valid value other than the default for every field. A new field without an entry fails the test below.
CHANGED = {
    "architecture": "resnet-tiny", "dataset": "mnist1d", "strategy": "mixed", "seed": 1, "epochs": 21,
    "train_size": 500, "dataset_args": {"noise": 0.5}, "augmentation": "shift", "architecture_args": {"width": 32},
    "exits": [1, 2], "head": "vector", "head_layers": 2, "weighting": "depth-linear", "match": "flops",
    "phase_split": 0.4, "patience": 3, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.5, "momentum": 0.5,
    "schedule": "constant", "warmup": 0.1, "clip": None, "batch_size": 64, "precision": "bfloat16",
    "checkpoints": [0, 100],
    "head_args": {"width": 8},
    "augmentation_args": {"shift": 2},
    "weights": [1, 2], "gradient_scaling": "equilibrium", "distillation": "last",
    "distillation_weight": 0.1, "distillation_temperature": 2, "warm_start": 0.1, "stability": 2, "lr_scale": 0.1,
    "batchnorm": "freeze", "method": "pbee", "method_args": {"width": 8}, "start": "trained",
    "class_weights": "balanced", "label_smoothing": 0.1, "criterion": "abc",
}  # fmt: skip


def test_every_field_changes_the_id():
    base = RunConfig(**BASE)
    assert set(CHANGED) == set(RunConfig.model_fields)
    # Which have an effect, or are valid, with the other only.
    more = {"augmentation_args": {"augmentation": "shift"}, "start": {"architecture": "own"}}
    ids = {RunConfig(**{**BASE, name: value, **more.get(name, {})}).id for name, value in CHANGED.items()}
    assert len(ids | {base.id}) == len(CHANGED) + 1


def test_defaults_are_pinned():
    """A changed default silently re-labels old results. If this fails on purpose, raise config.SCHEMA too."""
    defaults = {name: field.default for name, field in RunConfig.model_fields.items() if not field.is_required()}
    defaults = {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}
    assert (config.SCHEMA, content_hash(defaults)) == (3, "697a8eed17650307")


def test_id_is_the_same_in_another_process_and_for_another_key_order():
    here = RunConfig(**BASE, dataset_args={"a": 1, "b": 2}).id
    code = (
        "from eestudy.config import RunConfig;"
        "print(RunConfig(dataset_args={'b': 2, 'a': 1}, strategy='joint', dataset='digits', architecture='mlp').id)"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert there.stdout.strip() == here


def test_a_default_given_in_full_is_the_same_run():
    assert RunConfig(**BASE, lr=3e-3, epochs=20).id == RunConfig(**BASE).id


def test_augmentations_have_one_order():
    assert RunConfig(**BASE, augmentation="flip+crop").id == RunConfig(**BASE, augmentation="crop+flip").id


def test_exits_are_a_set():
    assert RunConfig(**BASE, exits=[3, 1]).id == RunConfig(**BASE, exits=[1, 3]).id


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("architecture", "vit1", "architecture: unknown name 'vit1'; nearest: vit1d"),
        ("dataset", "mnist-1d", "nearest: mnist1d"),
        ("strategy", "mixd", "nearest: mixed"),
        ("strategy", "zzz", "valid: disjoint, joint, mixed"),
        ("epochs", -1, "epochs: -1 is out of range; it must be at least 1"),
        ("epochs", 2.5, "epochs: 2.5 is not valid"),
        ("epochs", "many", "epochs: 'many' is not valid"),
        ("seed", True, "seed: true and false are not valid here"),
        ("lr", 0, "lr: 0 is out of range; it must be above 0"),
        ("lr", float("nan"), "finite number"),
        ("phase_split", 1.5, "phase_split: 1.5 is out of range; it must be at least 0 and at most 1"),
        ("weights", [0, 0], "weights: [0.0, 0.0] is not valid; each is at least 0, and one is above it"),
        ("weights", [-1, 2], "weights: [-1.0, 2.0] is not valid"),
        ("exits", [0], "exits: [0] is not valid"),
        ("exits", "some", "exits: 'some' is not valid; give 'all'"),
        ("exits", {"every": 0}, "exits: {'every': 0} is not valid; give {every: 2}"),
        ("exits", {"evry": 2}, "exits: {'evry': 2} is not valid; give {every: 2}, or {flops: [25, 50]}"),
        ("exits", {"flops": [50, 50]}, "is not valid; give {every: 2}, or {flops: [25, 50]}"),
        ("augmentation", "crop+flop", "augmentation: unknown name 'flop'; nearest: flip"),
        ("augmentation", "flip+flip", "augmentation: 'flip+flip' names flip twice"),
        ("augmentation_args", {"crop": 2}, "augmentation_args: 'crop' is not an adjustable part of the augmentation"),
        ("checkpoints", [120], "checkpoints: [120] is not valid"),
        ("epochz", 3, "unknown key 'epochz' (value 3); nearest: epochs"),
        ("architecture_args", {"width": None}, "architecture_args"),
    ],
)
def test_a_mistake_gets_one_line_that_names_it(field, value, wanted):
    with pytest.raises(EestudyError) as caught:
        RunConfig(**{**BASE, field: value})
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(EestudyError, match=r"strategy: missing.*valid: disjoint, joint, mixed"):
        RunConfig(architecture="mlp", dataset="digits")


def test_text_from_papermill_becomes_numbers():
    assert RunConfig(**BASE, lr="1e-3", epochs="7").epochs == 7


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig(**BASE).epochs = 3


TABLES = [name for name, each in vars(registry).items() if isinstance(each, registry.Names)]


@pytest.mark.parametrize("table", TABLES)
def test_every_name_is_made_somewhere(table):
    names = getattr(registry, table)
    assert all(callable(made) or made for made in names.values())
    assert list(names) == list(names.entries)
    assert "unknown" not in names


def test_heads_and_augmentations_are_those_that_there_are():
    from eestudy.data import augmentation
    from eestudy.models.heads import HEADS

    assert list(registry.HEADS) == list(HEADS)
    made = (*augmentation.ON_RAW, *augmentation.ON_NORMAL, *augmentation.BLENDS)
    assert made == config.AUGMENTATIONS  # which are joined in the order in which they are done


def test_a_name_that_has_no_title_is_its_own():
    assert registry.ARCHITECTURES.title("vit1d") == "ViT-1D"
    assert registry.DATASETS.title("digits") == "digits"
    assert registry.ARCHITECTURES.title("own") == "own"


def test_named_seeds_differ_by_every_name():
    seeds = {named_seed(run, phase, purpose) for run in (0, 1) for phase in "ab" for purpose in ("order", "noise")}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert named_seed(0, "order") == named_seed(0, "order")
