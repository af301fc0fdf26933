"""Folders of images by class: root/class/name, or root/train/class/name beside validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from eestudy.config import EestudyError
from eestudy.data.folders import FolderSplit, Reader
from eestudy.data.own_sources import ALIASES, SPLITS
from eestudy.data.own_splits import check_counts, pixels, split_off
from eestudy.data.splits import DataSet, Split

IN_MEMORY = 2**30  # bytes of pixels; a larger folder is read while it is trained on
SIDE = 224  # of the square that images of different sizes become, where no size is given


class ImageFolder:
    """What lies below `root`; names of files are relative to it."""

    def __init__(self, root: Path, size: int, normalization: str) -> None:
        self.root, self.normalization = root, normalization
        below = {ALIASES.get(each.name, each.name): each.name for each in sorted(root.iterdir()) if each.is_dir()}
        found = {name: below[name] for name in SPLITS if name in below} if "train" in below else {"train": ""}
        self.classes = self._class_names(found["train"])
        self.files = {name: self._listed(folder) for name, folder in found.items()}
        self.size, self.shorter = size, size
        if not size:
            sizes = {self._size(name) for name, _ in self.files["train"][:: max(1, len(self.files["train"]) // 50)]}
            one = next(iter(sizes)) if len(sizes) == 1 else (0, 1)
            self.size = one[0] if one[0] == one[1] else SIDE
            self.shorter = 0 if one[0] == one[1] else SIDE

    def data_set(self, validation: int, test: int) -> DataSet:
        labels = {name: np.array([label for _, label in files], np.int64) for name, files in self.files.items()}
        check_counts(self.classes, labels["train"], needed=4 - len(labels))
        names = {
            name: np.array([file.encode() for file, _ in files], dtype=np.bytes_) for name, files in self.files.items()
        }
        names, labels = split_off(names, labels, "classification", validation, test)
        reader = Reader(self.root, self.size, self.shorter)
        taken = sum(map(len, labels.values())) * 3 * self.size**2
        if taken <= IN_MEMORY:
            read = {name: reader.read(each).contiguous() for name, each in names.items()}
            lazily = pixels(read["train"], self.normalization)
            splits: dict[str, Any] = {
                name: Split(read[name], torch.from_numpy(labels[name]), lazily) for name in SPLITS
            }
        else:
            sample = names["train"][:: max(1, len(names["train"]) // 5000)]
            lazily = pixels(reader.read(sample) if self.normalization == "train" else None, self.normalization)
            splits = {
                name: FolderSplit(
                    torch.arange(len(each)), torch.from_numpy(labels[name]), lazily, names=each, reader=reader
                )
                for name, each in names.items()
            }
        return DataSet("own", len(self.classes), (3, self.size, self.size), **splits, classes=self.classes)

    def _class_names(self, folder: str) -> tuple[str, ...]:
        names = tuple(
            sorted(each.name for each in (self.root / folder).iterdir() if each.is_dir() and each.name[0] != ".")
        )
        if not names:
            raise EestudyError(
                f"{self.root / folder}: no folder of images by class, such as {self.root / folder}/cat/1.png"
            )
        return names

    def _listed(self, folder: str) -> list[tuple[str, int]]:
        """Files, relative to the root, and the number of their class."""
        from torchvision.datasets.folder import IMG_EXTENSIONS  # seconds, which arrays do not need

        found = []
        for each in sorted((self.root / folder).iterdir()):
            if not each.is_dir() or each.name.startswith("."):
                continue
            if each.name not in self.classes:
                raise EestudyError(f"{each}: class {each.name!r} does not occur among the training images")
            inside = sorted(
                file for file in each.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS and file.name[0] != "."
            )
            if not inside:
                raise EestudyError(f"{each}: no image of class {each.name!r}")
            found += [(file.relative_to(self.root).as_posix(), self.classes.index(each.name)) for file in inside]
        return found

    def _size(self, name: str) -> tuple[int, int]:
        from PIL import Image

        try:
            with Image.open(self.root / name) as image:
                return image.size
        except (OSError, SyntaxError, ValueError) as error:
            raise EestudyError(f"{self.root / name}: not an image that can be read ({error})") from None
