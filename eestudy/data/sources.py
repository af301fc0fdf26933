"""Where data sets that this package does not bring along lie on a machine, and how to get them. No torch here."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eestudy.config import EestudyError


class MissingData(EestudyError):
    """A data set, or a part of it, is not on this machine."""


def find(
    dataset: str,
    candidates: Sequence[Path],
    needed: Sequence[str],
    how: Mapping[str, str],
    inside: Sequence[str] = (),
) -> Path:
    """The first folder that has all files and folders `needed` (names relative to it).

    Looked at in this order: $EESTUDY_DATA/<dataset>, ~/.cache/eestudy/<dataset>, then the data set's own `candidates`;
    in each the folder itself, then its subfolders `inside` (how archives and other packages lay it out).
    how: the command that gets the data, by platform: "any", and "debian" for Debian and its relatives.
    Raises MissingData, one line: what is missing, where it was looked for, how to get it.
    """
    places = [*homes(dataset), *candidates]
    folders = [folder for place in places for folder in (place, *(place / name for name in inside))]
    lacking = {folder: [name for name in needed if not os.access(folder / name, os.R_OK)] for folder in folders}
    fullest = min(folders, key=lambda folder: len(lacking[folder]))  # of equals the first
    missing = lacking[fullest]
    if not missing:
        return fullest
    what = missing[0] if len(missing) == 1 else f"{missing[0]} and {len(missing) - 1} more"
    where = f" in {fullest}" if len(missing) < len(needed) else ""
    command = how.get("debian", how["any"]) if _is_debian() else how["any"]
    raise MissingData(
        f"dataset: {dataset} was not found: no readable {what}{where}; looked in {', '.join(map(str, places))}; "
        f"to get it: {command}"
    )


def homes(dataset: str) -> list[Path]:
    """Folders of the user's own that may hold `dataset`; the first is where `eestudy get` puts it."""
    own = os.environ.get("EESTUDY_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "eestudy"
    return [root.expanduser() / dataset for root in (*([Path(own)] if own else []), cache)]


def _is_debian() -> bool:
    try:
        system = platform.freedesktop_os_release()
    except OSError:  # not Linux, or one that does not say what it is
        return False
    return "debian" in (system["ID"], *system.get("ID_LIKE", "").split())


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
    holds, told without reading it whole. needed, candidates, inside, how: see `find`. validation: how many of `train`
    the makers set apart for it; 0: none, a tenth is held out. text: its samples are token ids.
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
        """The folder that holds it; MissingData if there is none."""
        how = {"any": f"eestudy get {self.name}", **self.how}
        return find(self.name, self.candidates, self.needed, how, self.inside)

    def confirm(self, folder: Path, train: int, test: int) -> None:
        """EestudyError if the files in `folder` hold another number of samples than the published ones."""
        for split, found, expected in (("training", train, self.train), ("test", test, self.test)):
            if found != expected:
                raise EestudyError(
                    f"{folder}: {found:,} {split} samples where {self.name} has {expected:,}; get it again"
                )
