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
from eestudy.data.splits import DataSet, Normalization, Split, channel_normalization, hold_out, with_validation
from eestudy.pretrained import first_line

# Of ImageNet's training images: what its pretrained networks are normalized by (0.485, 0.456, 0.406 of 255).
IMAGENET = Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
ENDINGS = (".jpeg", ".jpg", ".png")


def imagenet(size: int = 224, validation: int = 0) -> DataSet:
    """ImageNet's 1,000 classes of ILSVRC 2012 (Russakovsky et al. 2015), in train/<wnid> and val/<wnid>.

    size: side of the images in pixels; their shorter side is resized to 8/7 of it and the middle cut out.
    """
    from torchvision.models import ResNet50_Weights

    classes = ResNet50_Weights.DEFAULT.meta["categories"]
    source = SOURCES["imagenet"]
    return _class_folders(source, source.find(), size, classes, None, validation)


# The archive's folders in sorted order, with the names its makers give them (Howard 2019).
IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip


def imagenette(size: int = 128, validation: int = 0) -> DataSet:
    """Imagenette, ten easy classes of ImageNet (Howard 2019), 160 pixels on the shorter side. size: as `imagenet`'s."""
    source = SOURCES["imagenette"]
    folder = source.find() / "imagenette2-160"
    return _class_folders(source, folder, size, tuple(IMAGENETTE.values()), tuple(IMAGENETTE), validation)


def _class_folders(
    source: Source, folder: Path, size: int, classes: Sequence[str], wnids: Sequence[str] | None, validation: int
) -> DataSet:
    """The streamed data set of train/<wnid>/* and val/<wnid>/*. wnids: the folders to expect, if they are known."""
    if not isinstance(size, int) or not 16 <= size <= 1024:
        raise EestudyError(f"dataset_args: size: {size!r} is not valid for {source.name}; it must be from 16 to 1024")
    wnids = _checked(folder / "train", wnids, len(classes))
    _checked(folder / "val", wnids, len(classes))
    reader = Reader(folder, size, shorter=size * 8 // 7)
    train, test = (
        FolderSplit(torch.arange(len(y)), torch.from_numpy(y), IMAGENET, names=files, reader=reader)
        for files, y in (_listed(folder, name, wnids) for name in ("train", "val"))
    )
    source.confirm(folder, len(train), len(test))
    return with_validation(source.name, train, test, validation, classes)


def tiny_imagenet(validation: int = 0) -> DataSet:
    """Tiny ImageNet (Le and Yang 2015): 200 classes, 64x64 pixels; read once and kept in memory, 1.4 GB."""
    source = SOURCES["tiny-imagenet"]
    folder = source.find()
    wnids = _checked(folder / "train", sorted(_lines(folder / "wnids.txt")), source.classes)
    files, y = _listed(folder, "train", wnids)
    test_files, test_y = _annotated(folder, wnids)
    source.confirm(folder, len(y), len(test_y))
    names = {wnid: words for wnid, _, words in (line.partition("\t") for line in _lines(folder / "words.txt"))}
    classes = tuple(names.get(wnid, wnid).split(",")[0] for wnid in wnids)
    reader = Reader(folder, source.input_shape[1])
    rest, held_out = hold_out(y, validation)
    # Each part straight into its own tensor: a second copy of them all would be another 1.4 GB.
    parts = [(files[rest], y[rest]), (files[held_out], y[held_out]), (test_files, test_y)]
    pixels = [reader.read(files) for files, _ in parts]
    normalization = channel_normalization(pixels[0])
    made = [Split(images, torch.from_numpy(labels), normalization) for images, (_, labels) in zip(pixels, parts)]
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


def _class_folders_in(path: Path) -> list[str]:
    """Their names, sorted."""
    from torchvision.datasets.folder import find_classes

    try:
        return find_classes(path)[0]
    except OSError as error:
        raise EestudyError(f"{path}: not a folder of class folders that can be read ({first_line(error)})") from None


def _checked(path: Path, expected: Sequence[str] | None, count: int) -> list[str]:
    """The class folders in `path`: `count` of them, by the names that are `expected` where they are known."""
    found = _class_folders_in(path)
    expected = found if expected is None else expected
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or more or len(found) != count:
        named = [f"{word} {names[0]}" for word, names in (("no", missing), ("unknown", more)) if names]
        raise EestudyError(f"{path}: {', '.join([f'{len(found)} class folders', *named])}; {count} are expected")
    return found


def _images(path: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """All image files in the class folders of `path`, and the numbers of their classes; in order."""
    from torchvision.datasets.folder import make_dataset

    return make_dataset(path, {name: number for number, name in enumerate(classes)}, ENDINGS, allow_empty=True)


def _listed(folder: Path, part: str, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A part's image files, relative to `folder` (N,), and their labels (N,). No class may be empty."""
    found = _images(folder / part, classes)
    labels = np.array([label for _, label in found], np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise EestudyError(f"{folder / part / classes[int(counts.argmin())]}: holds no image; get the data set again")
    return np.array([os.fsencode(path.removeprefix(f"{folder}/")) for path, _ in found]), labels


def _count(folder: Path) -> tuple[int, int]:
    train, test = (len(_images(folder / part, _class_folders_in(folder / part))) for part in ("train", "val"))
    return train, test


_HOW_IMAGENET = "it needs an account at image-net.org; unpack ILSVRC 2012 into folders train/<wnid> and val/<wnid>"
_FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas"
SOURCES: dict[str, Source] = {
    "tiny-imagenet": Source(
        "tiny-imagenet", (3, 64, 64), 200, 100_000, 10_000,
        ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt"), _count,
        inside=("tiny-imagenet-200",),
        archives=(Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),),
    ),
    "imagenette": Source(
        "imagenette", (3, 128, 128), 10, 9_469, 3_925, ("imagenette2-160/train", "imagenette2-160/val"),
        lambda folder: _count(folder / "imagenette2-160"),
        archives=(Archive(f"{_FASTAI}/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),),
    ),
    "imagenet": Source(
        "imagenet", (3, 224, 224), 1000, 1_281_167, 50_000, ("train", "val"), _count,
        how={"any": _HOW_IMAGENET},
    ),
}  # fmt: skip
