"""Images in folders: what is read of a file, reading ahead in processes, and the three data sets in their layouts."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eestudy import data
from eestudy.config import EestudyError
from eestudy.data import folders, imagenet
from eestudy.data.folders import FolderSplit, Reader
from eestudy.data.splits import Normalization, subset

RANDOM = np.random.default_rng(0)
NORMAL = Normalization((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))


def picture(width: int, height: int) -> Image.Image:
    """Smooth random colours, so that a JPEG of it keeps most of them."""
    small = Image.fromarray(RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FolderSplit:
    """30 JPEG files of many shapes in 3 class folders."""
    folder = tmp_path_factory.mktemp("pictures")
    names = []
    for number in range(30):
        path = folder / f"class-{number % 3}" / f"{number}.JPEG"
        path.parent.mkdir(exist_ok=True)
        picture(40 + number, 60 - number).save(path)
        names.append(os.fsencode(path.relative_to(folder)))
    return FolderSplit(
        torch.arange(30), torch.arange(30) % 3, NORMAL, names=np.array(names), reader=Reader(folder, 28, shorter=32)
    )


@pytest.mark.parametrize("size", [(32, 48), (64, 32), (100, 64), (20, 30), (16, 16)])
def test_an_image_is_resized_and_cut_as_torchvision_does(tmp_path, size):
    from torchvision.transforms import v2

    image = picture(*size)
    image.save(tmp_path / "one.png")
    wanted = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.PILToTensor()])(image)
    found = Reader(tmp_path, 28, shorter=32).read(np.array([b"one.png"]))
    assert found.dtype == torch.uint8
    assert torch.equal(found[0], wanted)


def test_without_a_resize_the_pixels_are_the_file_s(tmp_path):
    pixels = RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    found = Reader(tmp_path, 16).read(np.array([b"one.png", b"one.png"]))
    assert found.shape == (2, 3, 16, 16)
    assert torch.equal(found[1], torch.from_numpy(pixels).permute(2, 0, 1))
    one_line(lambda: Reader(tmp_path, 32).read(np.array([b"one.png"])), "one.png: 16 x 16 pixels; 32 x 32 expected")


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", 200), ("CMYK", (0, 0, 0, 55)), ("RGBA", (200, 200, 200, 9)), ("P", 0)]
)
def test_every_kind_of_image_becomes_three_channels(tmp_path, mode, colour):
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette([200] * 3)
    image.save(tmp_path / "one.tif")
    assert Reader(tmp_path, 16).read(np.array([b"one.tif"])).eq(200).all()


def test_a_name_that_is_not_ascii(tmp_path):
    path = tmp_path / "Gürtel ünd 鞋.png"
    picture(16, 16).save(path)
    assert Reader(tmp_path, 16).read(np.array([os.fsencode(path.name), b"x.png"])[:1]).shape == (1, 3, 16, 16)


def test_the_interface_is_that_of_a_split(files):
    chosen = torch.tensor([7, 0, 7])
    raw = files.raw(chosen)
    assert (raw.shape, raw.dtype, files.dtype) == ((3, 3, 28, 28), torch.uint8, torch.uint8)
    assert torch.equal(raw[0], raw[2])
    assert not torch.equal(raw[0], raw[1])
    assert torch.equal(files.inputs(chosen), NORMAL(raw))
    assert files.inputs(chosen).dtype == torch.float32
    assert torch.equal(files.raw(slice(2, 5)), files.raw(torch.arange(2, 5)))
    assert len(files.raw(slice(None))) == len(files) == 30
    assert files.streamed


ORDER = [torch.tensor([5, 1, 29]), torch.tensor([2]), torch.arange(10, 20), torch.tensor([5, 5])]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_bits_for_any_number_of_workers(files, workers, monkeypatch):
    monkeypatch.setattr(folders, "_cores", lambda: 2)
    state = torch.get_rng_state()
    done = threading.Event()
    other = threading.Thread(target=done.wait)  # with which a plain fork would warn, or hang
    other.start()
    try:
        batches = list(files.batches(ORDER, workers))
    finally:
        done.set()
        other.join()
    assert len(batches) == len(ORDER)
    for chosen, batch in zip(ORDER, batches):
        assert torch.equal(batch, files.raw(chosen))
        assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(torch.get_rng_state(), state), "other random choices would depend on the workers"


def test_batches_can_be_left_early(files):
    batches = files.batches(ORDER, 1)
    assert torch.equal(next(batches), files.raw(ORDER[0]))
    batches.close()  # type: ignore[attr-defined]
    assert list(files.batches([], 1)) == []


def test_the_workers_need_no_fork_and_raise_no_warning(files):
    """In a process of its own, where every warning is an error, in the workers too."""
    program = f"""
import warnings; warnings.simplefilter("error")
import threading, time
import numpy as np, torch
from pathlib import Path
from eestudy.data.folders import FolderSplit, Reader

if __name__ == "__main__":
    threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
    torch.rand(300, 300) @ torch.rand(300, 300)
    reader = Reader(Path({str(files.reader.folder)!r}), 28, shorter=32)
    names = np.array({files.names.tolist()!r})
    split = FolderSplit(torch.arange(30), torch.zeros(30), None, names=names, reader=reader)
    print(sum(int(batch.sum()) for batch in split.batches(torch.arange(30).split(7), 1)))
"""
    path = files.reader.folder / "program.py"
    path.write_text(program)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    # Python's own tracker of semaphores, a process apart, may find one gone that it was about to remove: on a busy
    # machine it says so.
    said = [line for line in done.stderr.splitlines() if "resource_tracker" not in line]
    assert (done.returncode, said) == (0, [])
    assert int(done.stdout) == int(files.raw(slice(None)).sum())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_a_broken_image_is_named(files, tmp_path, content, workers):
    whole = (files.reader.folder / os.fsdecode(files.names[0])).read_bytes()
    (tmp_path / "good.jpg").write_bytes(whole)
    (tmp_path / "bad.jpg").write_bytes(whole[: len(whole) // 2] if content is None else content)
    names = np.array([b"good.jpg", b"bad.jpg", b"gone.jpg"])
    split = dataclasses.replace(files, names=names, reader=dataclasses.replace(files.reader, folder=tmp_path))
    batches = split.batches([torch.tensor([0]), torch.tensor([0, 1])], workers)
    assert torch.equal(next(batches), files.raw(torch.tensor([0])))
    one_line(lambda: next(batches), f"{tmp_path}/bad.jpg: not an image that can be read")
    one_line(lambda: split.raw(torch.tensor([2])), f"{tmp_path}/gone.jpg: not an image that can be read")


def test_a_stratified_subset_of_files(files):
    whole = data.DataSet("pictures", 3, (3, 28, 28), files, files, files)
    part = subset(whole, 12).train
    assert isinstance(part, FolderSplit)
    assert part.normalization == NORMAL
    assert torch.bincount(part.y).tolist() == [4, 4, 4]
    for number, place in enumerate(part.x.tolist()):
        assert int(part.y[number]) == place % 3
        assert torch.equal(part.raw(torch.tensor([number])), files.raw(torch.tensor([place])))


def one_line(call: Callable[[], object], *wanted: str) -> None:
    with pytest.raises(EestudyError) as caught:
        call()
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    for part in wanted:
        assert part in said


# The data sets, small, in their published layouts.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$EESTUDY_DATA, where data sets of a few files count as whole."""
    monkeypatch.setenv("EESTUDY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = {"tiny-imagenet": (4000, 200), "imagenette": (200, 20), "imagenet": (10_000, 1000)}
    for name, (train, test) in few.items():
        source = dataclasses.replace(imagenet.SOURCES[name], train=train, test=test)
        monkeypatch.setitem(imagenet.SOURCES, name, source)
    return tmp_path


def jpeg(side: int, colour: tuple[int, int, int], path: Path) -> bytes:
    Image.new("RGB", (side, side), colour).save(path / "one.jpg", quality=95)
    content = (path / "one.jpg").read_bytes()
    (path / "one.jpg").unlink()
    return content


def write_tiny(home: Path) -> tuple[Path, list[str]]:
    """20 training and one validation image a class, all of one colour: (class number, 0, 0)."""
    folder = home / "tiny-imagenet" / "tiny-imagenet-200"
    wnids = [f"n{number:08d}" for number in range(200)]
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(reversed(wnids)) + "\n")
    words = [f"{wnid}\tname {number}, other name" for number, wnid in enumerate(wnids)]
    (folder / "words.txt").write_text("\n".join([*words, "n99999999\tnot in here"]) + "\n")
    table = []
    for number, wnid in enumerate(wnids):
        content = jpeg(64, (number, 0, 0), home)
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (images.parent / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
        for place in range(20):
            (images / f"{wnid}_{place}.JPEG").write_bytes(content)
        name = f"val_{(number * 7) % 200}.JPEG"
        (folder / "val" / "images" / name).write_bytes(content)
        table.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(table))
    return folder, wnids


def test_tiny_imagenet(home):
    write_tiny(home)
    loaded = imagenet.tiny_imagenet()
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [3600, 400, 200]
    assert (loaded.input_shape, loaded.num_classes, loaded.classes[17]) == ((3, 64, 64), 200, "name 17")
    assert not loaded.train.streamed
    for split in (loaded.train, loaded.validation, loaded.test):
        assert (split.x[:, 0].float().mean((1, 2)) - split.y).abs().max() < 4  # the colour says the class
    assert set(torch.bincount(loaded.train.y).tolist()) == {18}
    normalization = loaded.train.normalization
    assert normalization is not None
    assert normalization.mean[0] == pytest.approx(99.5, abs=2)
    assert normalization.deviation[0] == pytest.approx(200 / 12**0.5, abs=2)
    assert imagenet.SOURCES["tiny-imagenet"].count(home / "tiny-imagenet" / "tiny-imagenet-200") == (4000, 200)


TINY_DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "wnids.txt").write_text("n00000000\n"), "train: 200 class folders, unknown n00000001; 200 are exp"),
    (lambda f: (f / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn7\t0\n"), "line 1: class 'n7' is none of"),
    (lambda f: (f / "val" / "val_annotations.txt").write_text(""), "0 test samples where tiny-imagenet has 200"),
    (lambda f: (f / "val" / "images" / "val_7.JPEG").unlink(), "val_7.JPEG: not an image that can be read"),
    (lambda f: (f / "words.txt").write_bytes(b"\xff"), "words.txt: cannot be read as text"),
    (
        lambda f: Image.new("RGB", (32, 64)).save(f / "val" / "images" / "val_7.JPEG"),
        "32 x 64 pixels; 64 x 64 expected",
    ),
    (
        lambda f: next(f.glob("train/*/images/*_3.JPEG")).unlink(),
        "3,999 training samples where tiny-imagenet has 4,000",
    ),
]


def test_tiny_imagenet_damaged(home):
    folder, _ = write_tiny(home)
    for damage, wanted in TINY_DAMAGE:
        kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        damage(folder)
        one_line(imagenet.tiny_imagenet, str(folder), wanted)
        for path, content in kept.items():
            path.write_bytes(content)


def write_classes(folder: Path, wnids: list[str], train: int, test: int, content: bytes) -> None:
    for name, count in (("train", train), ("val", test)):
        for wnid in wnids:
            (folder / name / wnid).mkdir(parents=True)
            for place in range(count):
                (folder / name / wnid / f"{wnid}_{place}.JPEG").write_bytes(content)


def test_imagenette(home):
    folder = home / "imagenette" / "imagenette2-160"
    write_classes(folder, list(imagenet.IMAGENETTE), 20, 2, jpeg(160, (0, 0, 0), home))
    picture(200, 160).save(folder / "val" / "n03888257" / "n03888257_0.JPEG")
    (folder / "noisy_imagenette.csv").write_text("path\n")
    loaded = imagenet.imagenette()
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [180, 20, 20]
    assert (loaded.classes[0], loaded.classes[9], loaded.num_classes) == ("tench", "parachute", 10)
    assert loaded.train.streamed
    assert isinstance(loaded.test, FolderSplit)
    assert loaded.input_shape == tuple(loaded.test.raw(slice(0, 1)).shape[1:]) == (3, 128, 128)
    shown = loaded.test.raw(torch.arange(20)).flatten(1).float().std(dim=1) > 0
    assert loaded.test.y[shown].tolist() == [9]
    assert imagenet.imagenette(size=64).input_shape == (3, 64, 64)
    assert loaded.train.inputs(slice(0, 1))[0, :, 0, 0].tolist() == pytest.approx(
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rel=1e-4
    )
    train, validation = (set(split.x.tolist()) for split in (loaded.train, loaded.validation))
    assert not train & validation
    assert len(train | validation) == 200
    assert imagenet.SOURCES["imagenette"].count(home / "imagenette") == (200, 20)


@pytest.mark.parametrize("size", [0, 15, 1025, "128", 128.0])
def test_a_wrong_size(home, size):
    write_classes(home / "imagenette" / "imagenette2-160", list(imagenet.IMAGENETTE), 1, 1, b"")
    one_line(lambda: imagenet.imagenette(size=size), f"dataset_args: size: {size!r} is not valid for imagenette")


CLASS_DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: (f / "val" / "n03888257").rename(f / "val" / "n1"),
        "val: 10 class folders, no n03888257, unknown n1; 10",
    ),
    (lambda f: (f / "train" / "extra").mkdir(), "train: 11 class folders, unknown extra; 10 are expected"),
    (lambda f: [path.rename(f"{path}.txt") for path in (f / "train/n03888257").iterdir()], "n03888257: holds no image"),
    (lambda f: (f / "train" / "n03888257" / "n03888257_4.JPEG").unlink(), "199 training samples where imagenette has"),
]


@pytest.mark.parametrize(("damage", "wanted"), CLASS_DAMAGE, ids=[wanted for _, wanted in CLASS_DAMAGE])
def test_class_folders_damaged(home, damage, wanted):
    folder = home / "imagenette" / "imagenette2-160"
    write_classes(folder, list(imagenet.IMAGENETTE), 20, 2, b"read only when asked for")
    damage(folder)
    one_line(imagenet.imagenette, str(folder), wanted)


def test_imagenet(home):
    wnids = [f"n{number:08d}" for number in range(1000)]
    write_classes(home / "imagenet", wnids, 10, 1, jpeg(40, (124, 116, 104), home))
    loaded = imagenet.imagenet()
    assert [len(split) for split in (loaded.train, loaded.validation, loaded.test)] == [9000, 1000, 1000]
    assert (loaded.num_classes, loaded.classes[0], loaded.classes[999]) == (1000, "tench", "toilet tissue")
    assert torch.bincount(loaded.validation.y).tolist() == [1] * 1000
    assert loaded.test.y.tolist() == list(range(1000))
    assert loaded.train.inputs(slice(0, 2)).shape == (2, 3, 224, 224)
    assert loaded.train.inputs(slice(0, 2)).abs().max() < 0.05  # ImageNet's mean colour
