"""Data of one's own: whatever form they come in they are checked, split and known by their content."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import eestudy
from eestudy import data
from eestudy.content import content_of
from eestudy.data import own_folder
from eestudy.data.own import given
from eestudy.plan import load_data, prepare
from eestudy.study import load_study

RANDOM = np.random.default_rng(0)
Y = np.arange(120) % 4
X = RANDOM.normal(size=(120, 1, 4, 4)) + Y[:, None, None, None]
FRAME = pd.DataFrame({"size": X[:, 0, 0, 0], "age": X[:, 0, 0, 1], "kind": np.array(["ape", "bee", "cat", "dog"])[Y]})


def own(architecture: str = "mlp", **settings: Any) -> eestudy.RunConfig:
    fields: dict[str, Any] = {"strategy": "joint", "epochs": 1, "batch_size": 16, **settings}
    return eestudy.RunConfig(architecture=architecture, dataset="own", **fields)


def made(content: Any, **dataset_args: Any) -> data.DataSet:
    return load_data(given(own(dataset_args=dataset_args), content))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of ten pictures each, of different sizes."""
    for shade, name in enumerate(("cat", "dog")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((10 + number, 12, 3), 100 * shade + number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def test_a_run_is_that_of_the_content_given(tmp_path):
    run = eestudy.run(own(), store=tmp_path, data=(X, Y))
    assert np.array_equal(run.predictions("test")[1], run.data().test.y.numpy())
    assert eestudy.run(own(), store=tmp_path, data=(torch.from_numpy(X), torch.from_numpy(Y))).id == run.id
    relabelled = eestudy.run(own(), store=tmp_path, data=(X, 3 - Y))
    assert relabelled.id != run.id
    assert np.array_equal(relabelled.predictions("test")[1], relabelled.data().test.y.numpy())
    order = RANDOM.permutation(len(Y))
    assert given(own(), (X[order], Y[order])).id != run.id
    assert not {*run.phases} & {*relabelled.phases}


def test_all_that_holds_the_same_samples_is_the_same_data():
    whole = made((X, Y))
    pairs = [(x, int(y)) for x, y in zip(X, Y, strict=True)]
    for other in (made(pairs), made(torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)))):
        for split in ("train", "validation", "test"):
            assert torch.equal(getattr(other, split).x, getattr(whole, split).x)
            assert torch.equal(getattr(other, split).y, getattr(whole, split).y)


def test_splits_are_disjoint_stratified_and_normalized_from_train_alone():
    numbered = X.copy()
    numbered[:, 0, 0, 0] = np.arange(len(Y))  # each sample can be told by it
    made_ = made((numbered, Y), normalization="none")
    seen = [made_.train.x[:, 0, 0, 0], made_.validation.x[:, 0, 0, 0], made_.test.x[:, 0, 0, 0]]
    assert sorted(torch.cat(seen).tolist()) == list(range(len(Y)))
    assert [len(each) for each in seen] == [86, 10, 24]
    assert made_.test.y.bincount().tolist() == [6, 6, 6, 6]
    train = made((X, Y)).train.x
    assert train.mean().item() == pytest.approx(0, abs=1e-6)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    vectors = made({"train": (X[:, 0, 0], Y), "test": (X[:, 0, 0] + 100, Y)})
    assert vectors.train.x.mean(0).abs().max() < 1e-5
    assert vectors.test.x.mean() > 10  # by what train has, not by what it has itself


def test_splits_given_are_kept():
    parts = {"train": (X[:60], Y[:60]), "val": (X[60:80], Y[60:80]), "test": (X[80:], Y[80:])}
    made_ = made(parts, normalization="none")
    assert torch.equal(made_.validation.x, torch.from_numpy(X[60:80]).float())
    assert [len(made_.train), len(made_.validation), len(made_.test)] == [60, 20, 40]


def test_a_data_frame_by_the_names_of_its_columns(tmp_path):
    frame = made(FRAME, target="kind")
    assert (frame.classes, frame.input_shape) == (("ape", "bee", "cat", "dog"), (2,))
    assert made(FRAME, target="kind", features="age").input_shape == (1,)
    FRAME.to_csv(tmp_path / "frame.csv", index=False)
    FRAME.to_parquet(tmp_path / "frame.parquet")
    for name in ("frame.csv", "frame.parquet"):
        assert torch.allclose(made(tmp_path / name, target="kind").train.x, frame.train.x)
    real = made(FRAME, target="size", features="age")
    assert (real.task, real.num_classes, real.train.y.dtype) == ("regression", 1, torch.float32)


def test_arrays_in_a_file(tmp_path):
    np.savez(tmp_path / "one.npz", x=X, y=Y)
    assert torch.equal(made(tmp_path / "one.npz").train.x, made((X, Y)).train.x)
    np.savez(tmp_path / "two.npz", x_train=X[:60], y_train=Y[:60], x_test=X[60:], y_test=Y[60:])
    assert len(made(tmp_path / "two.npz").test) == 60


def test_bytes_are_pictures_and_channels_come_first():
    pixels = RANDOM.integers(0, 256, (40, 8, 6, 3), dtype=np.uint8)
    labels = np.arange(40) % 2
    assert made((pixels, labels)).input_shape == (3, 8, 6)
    assert made((pixels[..., 0], labels)).input_shape == (1, 8, 6)
    unit = made((pixels, labels), normalization="unit").train.inputs()
    assert 0 <= unit.min() < 0.1 < 0.9 < unit.max() <= 1
    tokens = made((RANDOM.integers(0, 9, (40, 5)), labels), tokens=1)
    assert (tokens.train.x.dtype, tokens.input_shape) == (torch.int64, (5,))


def test_a_folder_of_pictures(pictures, monkeypatch):
    made_ = made(pictures, size=8)
    assert (made_.classes, made_.input_shape, len(made_.train)) == (("cat", "dog"), (3, 8, 8), 14)
    assert (made_.test.raw(slice(None)).flatten(1).float().mean(1) > 50).long().equal(made_.test.y)
    assert made(pictures).input_shape == (3, own_folder.SIDE, own_folder.SIDE)
    monkeypatch.setattr(own_folder, "IN_MEMORY", 0)
    data._loaded.cache_clear()
    streamed = made(pictures, size=8)
    assert streamed.train.streamed
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(streamed, split).inputs(), getattr(made_, split).inputs())


def test_folders_of_splits(pictures):
    for number, split in enumerate(("train", "valid", "test")):
        for name in ("cat", "dog"):
            (pictures / split / name).mkdir(parents=True)
            for file in sorted((pictures / name).glob("*.png"))[number * 3 : number * 3 + 3]:
                (pictures / split / name / file.name).write_bytes(file.read_bytes())
    for name in ("cat", "dog"):
        for file in (pictures / name).glob("*.png"):
            file.unlink()
        (pictures / name).rmdir()
    made_ = made(pictures, size=8)
    assert [len(made_.train), len(made_.validation), len(made_.test)] == [6, 6, 6]


def test_content_counts_and_not_the_place(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = given(own(dataset_args={"size": 8}), pictures)
    plan = prepare(config)
    pictures.rename(tmp_path / "moved")
    moved = given(own(dataset_args={"size": 8}), tmp_path / "moved")
    assert (moved.id, prepare(moved).phase_ids) == (config.id, plan.phase_ids)
    file = tmp_path / "moved" / "cat" / "0.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(file)
    assert given(own(dataset_args={"size": 8}), tmp_path / "moved").id != config.id
    data._loaded.cache_clear()
    with pytest.raises(eestudy.EestudyError, match="holds other data than when this run was planned"):
        load_data(moved)


def test_what_was_read_once_is_remembered_by_its_looks(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = content_of(pictures)
    (kept,) = (tmp_path / "cache" / "eestudy" / "contents").iterdir()
    assert kept.read_text() == found
    monkeypatch.setattr("eestudy.content._KNOWN", {})
    kept.write_text("0" * len(found))
    assert content_of(pictures) == "0" * len(found)  # not read again
    monkeypatch.setattr("eestudy.content._KNOWN", {})
    kept.write_text("damaged")
    assert content_of(pictures) == found
    os.utime(pictures / "cat" / "0.png")
    assert content_of(pictures) == found  # read again, and the same


def test_a_study_of_files(tmp_path):
    np.savez(tmp_path / "mine.npz", x=X, y=Y)
    run_settings = "{architecture: mlp, dataset: own, strategy: joint, epochs: 1, dataset_args: {path: %s}}"
    text = f"seeds: [0, 1]\ngrid:\n  - {run_settings}"
    (tmp_path / "study.yaml").write_text(text % (tmp_path / "mine.npz"))
    configs = load_study(tmp_path / "study.yaml").configs
    assert [config.dataset_args["content"] for config in configs] == [content_of(tmp_path / "mine.npz")] * 2
    run = eestudy.run(configs[0], store=tmp_path / "store")
    assert run.id == configs[0].id
    assert eestudy.run(own(epochs=1, batch_size=128), store=tmp_path / "store", data=tmp_path / "mine.npz").id == run.id


NOT_A_NUMBER = np.where(np.arange(120)[:, None, None, None] == 7, np.nan, X)
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (None, {}, r"data: dataset is 'own'; give eestudy.run\(config, data=...\)"),
    "another kind": (3, {}, "data: int is not valid; give"),
    "another length": ((X, Y[1:]), {}, "data: 120 train inputs but 119 labels"),
    "no samples": ((X[:0], Y[:0]), {}, "data: the train split is empty"),
    "not a number": ((NOT_A_NUMBER, Y), {}, "train inputs: 1 samples with NaN or infinity, the first is number 7"),
    "an infinite label": ((X, np.where(Y == 0, np.inf, 0.5)), {}, "train labels: 30 samples with NaN or infinity"),
    "below zero": ((X, Y - 1), {}, r"data: train label -1 \(sample 0\) is out of range; labels are 0 to 2"),
    "above the classes": ((X, Y), {"classes": 3}, r"data: train label 3 \(sample 3\) is out of range"),
    "a class left out": ((X, 2 * Y), {}, "data: no training sample of class 1; labels are 0 to 6"),
    "one class": ((X, 0 * Y), {}, "data: all training labels are '0'; a classifier needs two classes"),
    "a rare class": ((X, (np.arange(120) == 5).astype(int)), {}, "class '1' has 1 training samples; 3 are needed"),
    "whole real labels": ((X, Y.astype(float)), {}, "task: the labels are real numbers that are all whole"),
    "no whole label": ((X, Y + 0.5), {"task": "classification"}, "data: train label 0.5 is no class"),
    "constant labels": ((X, 0.5 + 0 * X[:, 0, 0, 0]), {}, "data: all train labels are 0.5"),
    "one hot": ((X, np.eye(4)[Y]), {}, "data: every sample has exactly one of 4 labels: give classes"),
    "a column of labels": ((X, Y[:, None]), {}, r"data: train labels of shape \(120, 1\); give \(120,\)"),
    "objects": (([object()] * 4, [0, 1, 0, 1]), {}, "data: train inputs: object, which are no numbers"),
    "different shapes": (([[1, 2], [1]], [0, 1]), {}, "data: train inputs: samples of different shapes"),
    "a split's name": ({"trian": (X, Y)}, {}, "data: split: unknown name 'trian'; nearest: train"),
    "no training data": ({"test": (X, Y)}, {}, "data: no split 'train' among test"),
    "a new class in test": (
        {"train": (X, FRAME["kind"].to_numpy()), "test": (X[:1], ["elk"])}, {}, "data: test label 'elk' does not occur",
    ),
    "another shape in test": ({"train": (X, Y), "test": (X[:, :, :2], Y)}, {}, r"test samples have shape \(1, 2, 4\)"),
    "a split given twice": ({"train": (X, Y), "test": (X, Y)}, {"test": 5}, "dataset_args: test: 5 would be split off"),
    "too large a split": ((X, Y), {"test": 119}, "dataset_args: test: 119 of 120 samples is not valid; 4 to 116 are"),
    "no target": (FRAME, {}, "dataset_args: target: '' is no column of the data frame; columns: size, age, kind"),
    "no such column": (FRAME, {"target": "kind", "features": "aeg"}, "unknown name 'aeg'; nearest: age"),
    "a column of words": (FRAME, {"target": "size"}, "data: column 'kind' holds str, not numbers"),
    "an unknown argument": ((X, Y), {"taget": "kind"}, "dataset_args: unknown key 'taget' for own; nearest: target"),
    "imagenet's numbers": ((X, Y), {"normalization": "imagenet"}, "normalization: imagenet is for pictures of bytes"),
    "an unknown normalization": ((X, Y), {"normalization": "trian"}, "unknown name 'trian'; nearest: train"),
    "no token ids": ((X, Y), {"tokens": 1}, "dataset_args: tokens: the inputs are no token ids"),
    "no such path": ("nowhere", {}, "dataset_args: path: 'nowhere': no such file or folder"),
    "no pairs": ([1, 2, 3], {}, r"data: train sample 0: expected a pair \(x, y\), found int"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_refused_in_one_line(name):
    content, dataset_args, line = BAD[name]
    with pytest.raises(eestudy.EestudyError, match=line) as caught:
        prepare(given(own(dataset_args=dataset_args), content))
    assert "\n" not in str(caught.value)


def test_bad_files_are_refused_in_one_line(pictures, tmp_path):
    def refused(path: Path, line: str, **dataset_args: Any) -> None:
        with pytest.raises(eestudy.EestudyError, match=line) as caught:
            made(path, **dataset_args)
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no folder of images by class")
    (tmp_path / "no.npz").write_text("not a file of arrays")
    refused(tmp_path / "no.npz", "no.npz' cannot be read")
    (tmp_path / "no.txt").write_text("text")
    refused(tmp_path / "no.txt", "give a folder of images, or a .csv, .parquet, .npz file")
    np.savez(tmp_path / "z.npz", z=X)
    refused(tmp_path / "z.npz", "expected arrays x and y, or x_train, y_train, x_test, ...; found z")
    (pictures / "cat" / "broken.png").write_text("no picture")
    refused(pictures, "cat/broken.png: not an image that can be read", size=8)
    (pictures / "elk").mkdir()
    refused(pictures, "elk: no image of class 'elk'")


def test_data_are_for_dataset_own_and_the_network_must_fit():
    with pytest.raises(eestudy.EestudyError, match="data: dataset is 'digits'; RunConfig"):
        eestudy.run(eestudy.RunConfig(architecture="mlp", dataset="digits", strategy="joint"), data=(X, Y))
    with pytest.raises(eestudy.EestudyError, match="content 0123 is not in this process; give data= again"):
        data.load("own", content="0123")
