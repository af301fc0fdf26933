"""The recipes at the paper's scale in params/paper: each comes to a plan, with the exits and phases that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from eestudy.config import RunConfig
from eestudy.data.sources import MissingData
from eestudy.plan import prepare, stages_of
from eestudy.study import load_study

from .test_data_folders import home as folders  # noqa: F401
from .test_data_folders import write_tiny
from .test_data_vision import home as images  # noqa: F401
from .test_data_vision import write_cifar10, write_cifar100

PAPER = Path(__file__).resolve().parents[1] / "params" / "paper"


def of(name: str, **settings: object) -> RunConfig:
    """Seed 0 of the study's runs with these settings."""
    study = load_study(PAPER / f"{name}.yaml")
    (config,) = [c for c in study.configs if c.seed == 0 and all(getattr(c, k) == v for k, v in settings.items())]
    return config


def test_each_file_says_how_it_is_run():
    files = sorted(PAPER.glob("*.yaml"))
    assert len(files) == 4
    for file in files:
        text = file.read_text()
        assert f"eestudy run params/paper/{file.name}" in text
        assert {config.seed for config in load_study(file).configs} == {0, 1, 2}


def test_resnet34_has_an_exit_after_every_second_block(images):  # noqa: F811
    plan = prepare(of("resnet34-cifar100", strategy="mixed"))
    with pytest.raises(MissingData, match="cifar100"):
        _ = plan.data  # which nothing before has read
    write_cifar100(images / "cifar100")
    assert plan.data.num_classes == 100
    assert stages_of(plan.model) == (2, 4, 6, 8, 10, 12, 14, 16)
    assert [(phase.name, phase.settings.patience, phase.settings.epochs) for phase in plan.phases] == [
        ("backbone", 50, 1000), ("together", 50, 1000),
    ]  # fmt: skip
    for phase in plan.phases:
        settings = phase.settings
        assert (settings.lr, settings.weight_decay, settings.warmup, settings.clip) == (5e-4, 0, 0, None)


def test_msdnet_has_seven_blocks(images):  # noqa: F811
    write_cifar100(images / "cifar100")
    plan = prepare(of("msdnet-cifar100", strategy="disjoint"))
    assert stages_of(plan.model) == (1, 2, 3, 4, 5, 6, 7)


def test_resnet50_has_a_smaller_rate_in_phase_two(folders):  # noqa: F811
    write_tiny(folders)
    plan = prepare(of("resnet50-tiny-imagenet", strategy="mixed"))
    assert stages_of(plan.model) == (4, 6, 8, 10, 12, 14, 16)
    assert [phase.settings.lr for phase in plan.phases] == [0.2, pytest.approx(0.02)]
    assert of("resnet50-tiny-imagenet", strategy="joint").lr_scale == 1


def test_the_sweep_goes_from_joint_to_the_backbone_alone(images):  # noqa: F811
    write_cifar10(images / "cifar10")
    epochs = [
        [
            (phase.name, phase.settings.epochs)
            for phase in prepare(of("resnet50-cifar10-phases", phase_split=split)).phases
        ]
        for split in (0, 0.25, 1)
    ]
    assert epochs == [[("together", 200)], [("backbone", 50), ("together", 150)], [("backbone", 200)]]
