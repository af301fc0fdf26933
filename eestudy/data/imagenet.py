"""Data sets of image files in a folder for each class: Tiny ImageNet, Imagenette and ImageNet.

The test split of each is the published validation set, whose labels are public.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eestudy.config import EestudyError
from eestudy.data.folders import FolderSplit, Reader
from eestudy.data.sources import Archive, Source
from eestudy.data.splits import DataSet, Normalization, Split, channel_normalization, hold_out

# Of ImageNet's training images: what its pretrained networks are normalized by (0.485, 0.456, 0.406 of 255).
IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
ENDINGS = (".jpeg", ".jpg", ".png")


def imagenet(size: int = 224, validation: int = 0) -> DataSet:
    """ImageNet's 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015), in train/<wnid> and val/<wnid>.

    size: side of the images in pixels; their shorter side is resized to 8/7 of it and the middle cut out. The test
    split is the published validation set, whose labels are public; training images are held out for validation.
    """
    from torchvision.models import ResNet50_Weights

    classes = ResNet50_Weights.DEFAULT.meta["categories"]
    folder = SOURCES["imagenet"].find()
    return _class_folders(SOURCES["imagenet"], folder, size, classes, None, validation)


# The archive's folders in sorted order, with the names its makers give them (Howard 2019).
IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


def imagenette(size: int = 128, validation: int = 0) -> DataSet:
    """Imagenette, ten easy classes of ImageNet (Howard 2019), from the archive with shorter sides of 160 pixels.

    size: side of the images in pixels; their shorter side is resized to 8/7 of it and the middle cut out. The test
    split is the published validation set.
    """
    folder = SOURCES["imagenette"].find() / "imagenette2-160"
    names, wnids = tuple(IMAGENETTE.values()), tuple(IMAGENETTE)
    return _class_folders(SOURCES["imagenette"], folder, size, names, wnids, validation)


def _class_folders(
    source: Source, folder: Path, size: int, classes: Sequence[str], wnids: Sequence[str] | None, validation: int
) -> DataSet:
    """The streamed data set of train/<wnid>/* and val/<wnid>/*. wnids: the folders to expect, if they are known."""
    if not isinstance(size, int) or not 16 <= size <= 1024:
        raise EestudyError(f"dataset_args: size: {size!r} is not valid for {source.name}; it must be from 16 to 1024")
    found = tuple(_folders(folder / "train"))
    _same_names(folder / "train", found, wnids or found, len(classes))
    _same_names(folder / "val", _folders(folder / "val"), found, len(classes))
    (files, y), (test_files, test_y) = (
        _listed(folder, [f"{name}/{wnid}" for wnid in found]) for name in ("train", "val")
    )
    source.confirm(folder, len(y), len(test_y))

    reader = Reader(folder, size, shorter=size * 8 // 7)

    def split(files: np.ndarray, y: np.ndarray) -> FolderSplit:
        return FolderSplit(torch.arange(len(y)), torch.from_numpy(y), IMAGENET, names=files, reader=reader)

    rest, held_out = (torch.from_numpy(numbers) for numbers in hold_out(y, validation))
    whole = split(files, y)
    return DataSet(
        name=source.name,
        num_classes=len(classes),
        input_shape=(3, size, size),
        train=whole.part(rest),
        validation=whole.part(held_out),
        test=split(test_files, test_y),
        classes=tuple(classes),
    )


def tiny_imagenet(validation: int = 0) -> DataSet:
    """Tiny ImageNet (Le and Yang 2015): 200 classes, 64x64 pixels; read once and kept in memory, 1.4 GB.

    The test split is the published validation set: the published test set has no labels.
    """
    source = SOURCES["tiny-imagenet"]
    folder = source.find()
    wnids = sorted(_lines(folder / "wnids.txt"))
    _same_names(folder / "train", _folders(folder / "train"), wnids, source.classes)
    files, y = _listed(folder, [f"train/{wnid}/images" for wnid in wnids])
    test_files, test_y = _annotated(folder, wnids)
    source.confirm(folder, len(y), len(test_y))
    names = {wnid: words for wnid, _, words in (line.partition("\t") for line in _lines(folder / "words.txt"))}
    reader = Reader(folder, source.input_shape[1])
    rest, held_out = hold_out(y, validation)
    # Each part straight into its own tensor: a second copy of them all would be another 1.4 GB.
    parts = [(files[rest], y[rest]), (files[held_out], y[held_out]), (test_files, test_y)]
    pixels = [reader.read(files) for files, _ in parts]
    normalization = channel_normalization(pixels[0])
    made = [Split(images, torch.from_numpy(labels), normalization) for images, (_, labels) in zip(pixels, parts)]
    classes = tuple(names.get(wnid, wnid).split(",")[0] for wnid in wnids)
    return DataSet(source.name, len(classes), source.input_shape, made[0], made[1], made[2], classes=classes)


def _annotated(folder: Path, wnids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Files and labels of Tiny ImageNet's validation set, by its table: file, wnid, box; with tabs between."""
    table = folder / "val" / "val_annotations.txt"
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    files, labels = [], []
    for place, line in enumerate(_lines(table), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in numbers:
            raise EestudyError(f"{table}: line {place}: class {wnid!r} is none of wnids.txt; get the data set again")
        files.append(os.fsencode(f"val/images/{name}"))
        labels.append(numbers[wnid])
    return np.array(files or [b""]), np.array(labels, np.int64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EestudyError(f"{path}: cannot be read as text ({error}); get the data set again") from None


def _folders(path: Path) -> list[str]:
    """Names of its subfolders, sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise EestudyError(f"{path}: not a folder that can be read ({error.strerror})") from None


def _same_names(path: Path, found: Sequence[str], expected: Sequence[str], count: int) -> None:
    """EestudyError unless `found` are the `expected` class folders, `count` of them."""
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or more or len(found) != count:
        named = [f"{word} {names[0]}" for word, names in (("no", missing), ("unknown", more)) if names]
        raise EestudyError(f"{path}: {', '.join([f'{len(found)} class folders', *named])}; {count} are expected")


def _images(path: Path) -> list[str]:
    """Names of its image files, sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.name.lower().endswith(ENDINGS))
    except OSError as error:
        raise EestudyError(f"{path}: not a folder that can be read ({error.strerror})") from None


def _listed(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Image files of the class folders, relative to `folder` (N,), and their labels (N,). None may be empty."""
    names = [_images(folder / name) for name in classes]
    for name, found in zip(classes, names):
        if not found:
            raise EestudyError(f"{folder / name}: holds no image; get the data set again")
    files = [os.fsencode(f"{name}/{file}") for name, found in zip(classes, names) for file in found]
    return np.array(files), np.repeat(np.arange(len(classes)), [len(found) for found in names]).astype(np.int64)


def _count_class_folders(folder: Path) -> tuple[int, int]:
    train, test = (
        sum(len(_images(folder / name / wnid)) for wnid in _folders(folder / name)) for name in ("train", "val")
    )
    return train, test


def _count_imagenette(folder: Path) -> tuple[int, int]:
    return _count_class_folders(folder / "imagenette2-160")


def _count_tiny(folder: Path) -> tuple[int, int]:
    train = folder / "train"
    return sum(len(_images(train / name / "images")) for name in _folders(train)), len(_images(folder / "val/images"))


SOURCES: dict[str, Source] = {
    "tiny-imagenet": Source(
        "tiny-imagenet", (3, 64, 64), 200, 100_000, 10_000,
        ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt"), _count_tiny,
        inside=("tiny-imagenet-200",),
        archives=(
            Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
        ),
    ),
    "imagenette": Source(
        "imagenette", (3, 128, 128), 10, 9_469, 3_925, ("imagenette2-160/train", "imagenette2-160/val"),
        _count_imagenette,
        archives=(
            Archive(
                "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"
            ),
        ),
    ),
    "imagenet": Source(
        "imagenet", (3, 224, 224), 1000, 1_281_167, 50_000, ("train", "val"), _count_class_folders,
        how={
            "any": "it needs an account at image-net.org; unpack ILSVRC 2012 into folders train/<wnid> and val/<wnid>"
        },
    ),
}  # fmt: skip
