"""What the chapters on data sets and backbones say is what the code does; the committed table of costs is current."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eestudy import data
from eestudy.chapters import backbones, reproducibility
from eestudy.config import EestudyError
from eestudy.data import catalogue as data_sets
from eestudy.models.catalogue import USUAL, catalogue
from eestudy.registry import ARCHITECTURES, DATASETS, HEADS
from eestudy.report import benchmarks, pictures

ROOT = Path(__file__).parents[1]
COMMITTED = pd.read_csv(ROOT / "book" / "results" / "backbones.csv")
CHEAP = ("mlp", "resnet1d", "vit1d", "resnet-tiny", "resnet20", "msdnet")


def test_the_committed_costs_are_those_of_the_code() -> None:
    committed = COMMITTED[COMMITTED["architecture"].isin(CHEAP)].reset_index(drop=True)
    pd.testing.assert_frame_equal(catalogue(CHEAP), committed)


def test_every_backbone_stands_there_with_every_head_that_reads_it() -> None:
    assert {name for names, _, _ in USUAL for name in names} == set(ARCHITECTURES) == set(COMMITTED["architecture"])
    assert set(COMMITTED["head"]) == set(HEADS)
    for _, rows in COMMITTED.groupby(["architecture", "input"]):
        assert rows["head"].nunique() >= 2
        assert rows.loc[rows["default"], "head"].nunique() == 1


def test_published_parameter_counts() -> None:
    """torchvision's ResNets, EfficientNetV2, ConvNeXt, Swin V2, MobileNetV3 and ViT; DeiT's Ti and S."""
    ends = COMMITTED[COMMITTED["input"] == "3x224x224"].groupby(["architecture", "head"]).last()
    plain = (ends["params"] - ends["head_params"]).groupby("architecture").first()
    published = {
        "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
        "vit-tiny": 5_717_416, "vit-small": 22_050_664, "vit-base": 86_567_656,
        "efficientnet-v2-s": 21_458_488, "convnext-tiny": 28_589_128, "swin-v2-t": 28_351_570,
        "mobilenet-v3-large": 5_483_032,
    }  # fmt: skip
    assert {name: plain[name] for name in published} == published


def test_an_unknown_backbone_gets_its_nearest() -> None:
    with pytest.raises(EestudyError, match=r"^architecture: unknown name 'resnet21'; nearest: .*resnet20"):
        catalogue(["resnet21"])


def test_tables_and_figure_of_costs() -> None:
    small = COMMITTED[COMMITTED["architecture"].isin(["mlp", "msdnet", "minilm"])]
    table = backbones.head_table(small).data
    assert table.loc[("mlp", "1×8×8"), "stages"] == "5"
    assert table.loc[("msdnet", "3×32×32"), "msdnet"].endswith("(auto)")
    assert table.loc[("minilm", "32 tokens"), "msdnet"] == ""
    costs = backbones.exit_costs_table(small).data
    assert costs.loc[("msdnet", "3×32×32"), "5"] != ""
    assert float(costs.loc[("mlp", "1×8×8"), "5"]) == pytest.approx(112.1, abs=0.05)
    assert "31 backbones" in repr(backbones.exit_costs(COMMITTED))
    assert "at most 13.5 % of the FLOPs (mlp, 1×8×8)" in backbones.head_findings(small)


def test_facts_of_data_sets_are_those_of_what_is_loaded() -> None:
    known = data_sets.catalogue().set_index("name")
    assert list(known.index) == list(DATASETS)
    for name in ("digits", "mnist1d", "diabetes"):
        loaded = data.load(name)
        row = known.loc[name]
        assert (row["task"], row["input"]) == (loaded.task, loaded.input_shape)
        assert row[["train", "validation", "test"]].tolist() == [
            len(split) for split in (loaded.train, loaded.validation, loaded.test)
        ]
    assert known.loc["cifar100", ["train", "validation", "test", "classes"]].tolist() == [45_000, 5_000, 10_000, 100]
    assert known.loc["stsb", ["task", "classes", "kind"]].tolist() == ["regression", 0, "text"]
    assert known.loc["fashion-mnist", "debian"] == "apt-get install dataset-fashion-mnist"


def test_one_of_each_class_is_the_first() -> None:
    split = data.load("digits").test
    chosen = data_sets.one_of_each(split, 10)
    assert split.y[chosen].tolist() == list(range(10))
    assert all(label not in split.y[:place] for label, place in enumerate(chosen.tolist()))
    with pytest.raises(EestudyError, match="no sample of class 10"):
        data_sets.one_of_each(split, 11)


def test_pictures_of_images_and_lines() -> None:
    images = np.random.default_rng(0).normal(size=(12, 3, 6, 6))
    drawn = pictures.samples(images, [f"class {k}" for k in range(12)], "twelve")
    assert len(drawn.axes) == 12
    assert drawn.png()
    assert len(pictures.samples(np.zeros((2, 1, 30)), ["a", "b"]).axes) == 2
    for wrong, names in ((images[:, :2], ["a"] * 12), (images, ["a"]), (np.zeros((2, 30)), ["a", "b"])):
        with pytest.raises(EestudyError, match="samples: inputs"):
            pictures.samples(wrong, names)


def test_measurements_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "project_root", lambda: tmp_path)
    with pytest.raises(EestudyError, match=r"kill\.json: not there; make it with: python benchmarks/kill\.py"):
        reproducibility.measured("kill")
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "kill.json").write_text("{")
    with pytest.raises(EestudyError, match="not JSON"):
        reproducibility.measured("kill")
    content = {"kills": 1300, "hardware": {"cores": 2}, "cases": [{"strategy": "joint", "same_bits": True, "s": 1.5}]}
    (folder / "kill.json").write_text(json.dumps(content))
    single, cases = reproducibility.measured("kill")
    assert single.data["value"].to_dict() == {"kills": "1,300", "hardware, cores": "2"}
    assert cases.data.loc["joint"].to_dict() == {"same bits": "yes", "s": "1.5"}
