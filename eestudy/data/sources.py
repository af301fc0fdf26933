"""Where data sets that this package does not bring along lie on a machine, and how to get them. No torch here."""

from __future__ import annotations

import hashlib
import http.client
import os
import platform
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eestudy.config import EestudyError
from eestudy.pretrained import first_line

BLOCK = 1 << 20
SECONDS = 60  # without a byte, after which a server is given up


class MissingData(EestudyError):
    """A data set, or a part of it, is not on this machine."""


@dataclass(frozen=True)
class Archive:
    """A file that its makers publish, and its checksum, of either kind. A .tar.gz, .tgz or .zip is unpacked."""

    url: str
    md5: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Source:
    """What is known of a data set before any of its files is read.

    train, test: samples in the published files, before validation is split off; count: how many of each a folder
    holds. validation: how many of `train` the makers set apart for it; 0: none, a tenth is held out. text: its samples
    are token ids. needed, candidates, inside: see `find`. how: the command that gets it, by platform: "any" where it is
    not `eestudy get`, and "debian" for Debian and its relatives.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    train: int
    test: int
    needed: tuple[str, ...]
    count: Callable[[Path], tuple[int, int]]
    candidates: tuple[Path, ...] = ()
    inside: tuple[str, ...] = ()
    archives: tuple[Archive, ...] = ()
    how: Mapping[str, str] = field(default_factory=dict)
    validation: int = 0
    text: bool = False

    def find(self) -> Path:
        """The first folder that has all files and folders `needed` (names relative to it).

        Looked at in this order: $EESTUDY_DATA/<name>, ~/.cache/eestudy/<name>, then `candidates`; in each the folder
        itself, then its subfolders `inside` (how archives and other packages lay it out).
        Raises MissingData, one line: what is missing, where it was looked for, how to get it.
        """
        places = [*homes(self.name), *self.candidates]
        folders = [folder for place in places for folder in (place, *(place / name for name in self.inside))]
        lacking = {
            folder: [name for name in self.needed if not os.access(folder / name, os.R_OK)] for folder in folders
        }
        fullest = min(folders, key=lambda folder: len(lacking[folder]))  # of equals the first
        missing = lacking[fullest]
        if not missing:
            return fullest
        what = missing[0] if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more"
        where = f" in {fullest}" if len(missing) < len(self.needed) else ""
        command = self.how.get("any", f"eestudy get {self.name}")
        if "debian" in self.how and _is_debian():
            command = self.how["debian"]
        raise MissingData(
            f"dataset: {self.name} was not found: no readable {what}{where}; looked in {', '.join(map(str, places))}; "
            f"to get it: {command}"
        )

    def confirm(self, folder: Path, train: int, test: int) -> None:
        """EestudyError if the files in `folder` hold another number of samples than the published ones."""
        for split, found, expected in (("training", train, self.train), ("test", test, self.test)):
            if found != expected:
                raise EestudyError(
                    f"{folder}: {found:,} {split} samples where {self.name} has {expected:,}; get it again"
                )


def homes(dataset: str) -> list[Path]:
    """Folders of the user's own that may hold `dataset`; the first is where `get` puts it."""
    own = os.environ.get("EESTUDY_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "eestudy"
    return [root.expanduser() / dataset for root in (*([Path(own)] if own else []), cache)]


def _is_debian() -> bool:
    try:
        system = platform.freedesktop_os_release()
    except OSError:  # not Linux, or one that does not say what it is
        return False
    return "debian" in (system["ID"], *system.get("ID_LIKE", "").split())


def get(source: Source) -> Path:
    """Downloads `source` to the first of its homes, and says which folder holds it.

    Raises EestudyError if it is not published for download, the network or the disk fails, or a file is not the
    published one (its checksum is another); nothing is left behind then.
    """
    target = homes(source.name)[0]
    if not source.archives:
        raise EestudyError(f"get: {source.name} cannot be downloaded: {source.how['any']}, in {target}")
    if target.exists() and any(target.iterdir()):
        raise EestudyError(f"get: {target} is there already but not complete; delete it and call again")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{source.name}-") as folder:
            whole = Path(folder) / "whole"
            whole.mkdir()
            for archive in source.archives:
                _unpack(_fetched(archive, Path(folder)), whole)
            whole.replace(target)
    except (OSError, http.client.HTTPException, tarfile.TarError, zipfile.BadZipFile) as error:
        raise EestudyError(
            f"get: {source.name} could not be put in {target} ({first_line(error)}); is this machine online?"
        ) from None
    return source.find()


def _fetched(archive: Archive, folder: Path) -> Path:
    path = folder / archive.url.rpartition("/")[2]
    # What the makers publish. MD5 is against damage, not against malice.
    checksum = hashlib.sha256() if archive.sha256 else hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(archive.url, timeout=SECONDS) as answer, path.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            while block := answer.read(BLOCK):
                checksum.update(block)
                bar.update(file.write(block))
    found, expected = checksum.hexdigest(), archive.sha256 or archive.md5
    if found != expected:
        kind = checksum.name.upper()
        raise EestudyError(f"get: {archive.url} gave another file: {kind} {found}, expected {expected}")
    return path


def _unpack(path: Path, target: Path) -> None:
    if path.name.endswith((".tar.gz", ".tgz", ".zip")):
        # Of a zip nothing can leave the target anyway; older Pythons have no filter to choose.
        safe: Any = {"filter": "data"} if path.suffix != ".zip" and hasattr(tarfile, "data_filter") else {}
        shutil.unpack_archive(path, target, **safe)
    else:
        shutil.move(path, target)
