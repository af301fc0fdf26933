"""What stays of a finished run: one small sealed file in book/results/<study>/, whichever machine made it.

A study's evidence is the union of its records. Whoever has one adds it, nobody takes one away: a file gets its final
name whole and once, so writers need no lock and may be killed at any moment. A record is gzipped JSON with a SHA-256
of itself; nothing is pickled. Numbers keep six digits: more would only record the last bits of one processor. No torch
here.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eestudy.columns import decoded_table, encoded_table, stacked_tables
from eestudy.config import EestudyError, check_name
from eestudy.environment import say
from eestudy.store import write_once
from eestudy.study import project_root

FORMAT = 1
KINDS = ("runs", "dynamics", "evaluation")
SUFFIX = ".json.gz"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # of a study or an id: one plain part of a path
MADE = "made"  # the fact that says how: seconds, hardware, versions, ...; two records may differ in it and be the same
LARGEST = 64 * 2**20  # bytes of JSON; beyond, a file is no record
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)  # of JSON of another make
ABANDONED = 3600.0  # seconds after which a temporary file has nobody who still writes it
NEAR = {"rtol": 1e-4, "atol": 1e-6}  # within which two processors' numbers are the same result


@dataclass(frozen=True, eq=False)
class Record:
    """One finished run, measurement or evaluation.

    facts: plain JSON; the one called "made" says with what it was made and is left out when two are compared.
    tables: name -> DataFrame, without the run's id.
    """

    kind: str
    id: str
    facts: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]

    def __post_init__(self) -> None:
        check_name("kind", self.kind, KINDS)
        if not NAME.fullmatch(self.id):
            raise EestudyError(f"id: {self.id!r} cannot name a record; letters, digits and . _ + - can")

    @property
    def name(self) -> str:
        """Its file in the study's folder: <kind>/<id>.json.gz."""
        return f"{self.kind}/{self.id}{SUFFIX}"

    def packed(self, table: str) -> dict[str, Any]:
        """A table as it stands in the file."""
        if isinstance(self.tables, _Tables):
            return dict(self.tables.packed[table])
        return encoded_table(self.tables[table])

    def to_bytes(self) -> bytes:
        """The file's content, the same for the same record on any machine with the same zlib."""
        tables = {name: encoded_table(frame) for name, frame in self.tables.items()}
        content = {"format": FORMAT, "kind": self.kind, "id": self.id, "facts": dict(self.facts), "tables": tables}
        seal = hashlib.sha256(_text(content)).hexdigest()
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0, compresslevel=9) as file:
            file.write(_text({**content, "sha256": seal}))
        return packed.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, where: str | Path) -> Record:
        """What `to_bytes` gave. EestudyError in one line, beginning with `where`, for anything else."""
        record = cls._sealed(content, where)
        list(record.tables.values())  # unpacked now, so that a mistake is told now
        return record

    @classmethod
    def _sealed(cls, content: bytes, where: str | Path) -> Record:
        """The same, with tables that are unpacked when they are first used."""
        found = _unsealed(content, where)
        if found["format"] != FORMAT:
            raise EestudyError(
                f"{where}: a record of format {found['format']}, this version reads {FORMAT}; take a newer eestudy"
            )
        try:
            if not isinstance(found["facts"], dict) or not isinstance(found["tables"], dict):
                raise TypeError("facts and tables")
            return cls(found["kind"], found["id"], found["facts"], _Tables(found["tables"], where))
        except MALFORMED as error:
            raise EestudyError(f"{where}: is not a record of eestudy ({error})") from None


class _Tables(Mapping[str, pd.DataFrame]):
    """Tables as they stand in a file, each unpacked when first used: most readers want one, of hundreds of runs."""

    def __init__(self, packed: Mapping[str, Any], where: str | Path) -> None:
        self.packed, self._where = packed, where
        self._frames: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self._frames:
            packed = self.packed[name]
            try:
                self._frames[name] = decoded_table(packed)
            except MALFORMED as error:
                raise EestudyError(f"{self._where}: is not a record of eestudy ({name}: {error})") from None
        return self._frames[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)

    def __contains__(self, name: object) -> bool:
        return name in self.packed


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _unsealed(content: bytes, where: str | Path) -> dict[str, Any]:
    """The JSON of a record's file, which its seal fits."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            text = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise EestudyError(f"{where}: cut short, damaged or not gzip ({error}); get the file again") from None
    found: Any
    try:
        found = json.loads(text) if len(text) <= LARGEST else None
        seal, _ = found["sha256"], found["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EestudyError(f"{where}: is not a record of eestudy") from None
    # The text is sealed without its seal, and written in one way only: what remains must be the very bytes.
    rest = text.replace(f'"sha256":{json.dumps(seal)},'.encode(), b"", 1)
    if hashlib.sha256(rest).hexdigest() != seal:
        raise EestudyError(f"{where}: changed after it was written (its SHA-256 does not fit); get the file again")
    return dict(found)


def agree(one: Record, other: Record) -> bool:
    """Whether two records of an id say the same: texts and settings equal, numbers within rounding."""
    facts = [{key: value for key, value in record.facts.items() if key != MADE} for record in (one, other)]
    same = _alike(*facts) and one.tables.keys() == other.tables.keys()
    return same and all(_alike_tables(frame, other.tables[name]) for name, frame in one.tables.items())


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, (int, float)) and isinstance(other, (int, float))
        return numbers and math.isclose(one, other, rel_tol=NEAR["rtol"], abs_tol=NEAR["atol"])
    return bool(one == other)


def _alike_tables(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return False
    for column in one.columns:
        left, right = one[column], other[column]
        if left.dtype.kind in "if" and right.dtype.kind in "if":
            if not np.allclose(left.to_numpy(float), right.to_numpy(float), equal_nan=True, **NEAR):
                return False
        elif encoded_table(left.to_frame()) != encoded_table(right.to_frame()):
            return False
    return True


def results_folder(study: str) -> Path:
    """$EESTUDY_RESULTS/<study> where that is set, <project root>/book/results/<study> otherwise."""
    root = os.environ.get("EESTUDY_RESULTS")
    return (Path(root) if root else project_root() / "book" / "results") / study


def folder_for(params: Path) -> Path | None:
    """Where the records of a YAML's runs go: those of a study, a file in the checkout's params/. None for any other."""
    inside = (project_root() / "params").resolve() in params.resolve().parents
    return results_folder(params.stem) if inside else None


class Records:
    """The union of one study's records, in its folder. Safe for any number of writers and readers at once."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._read: dict[Path, Record] = {}  # a record never changes under its name

    def path(self, kind: str, record_id: str) -> Path:
        return self.folder / kind / f"{record_id}{SUFFIX}"

    def ids(self, kind: str) -> list[str]:
        """Sorted. What is not a record's name, such as a temporary file, is not looked at."""
        check_name("kind", kind, KINDS)
        names = [path.name.removesuffix(SUFFIX) for path in (self.folder / kind).glob(f"*{SUFFIX}")]
        return sorted(name for name in names if NAME.fullmatch(name))

    def has(self, kind: str, record_id: str) -> bool:
        return self.path(kind, record_id).is_file()

    def one(self, kind: str, record_id: str) -> Record:
        """EestudyError for a record that is not there, is damaged or stands under another's name."""
        path = self.path(kind, record_id)
        if path not in self._read:
            record = _read(path)
            if (record.kind, record.id) != (kind, record_id):
                raise EestudyError(f"{path}: holds the record {record.name}; it was renamed or put in a wrong folder")
            self._read[path] = record
        return self._read[path]

    def read(self, kind: str) -> list[Record]:
        """All of a kind, by id. EestudyError names the first that is damaged."""
        return [self.one(kind, record_id) for record_id in self.ids(kind)]

    def replicates(self, kind: str, record_id: str) -> list[Path]:
        """Files of later records of an id that do not agree with the first one."""
        pattern = re.compile(re.escape(record_id) + r"-[0-9a-f]{8}" + re.escape(SUFFIX))
        folder = self.folder / "replicates" / kind
        return sorted(path for path in folder.glob(f"{record_id}-*{SUFFIX}") if pattern.fullmatch(path.name))

    def frame(self, kind: str, table: str) -> pd.DataFrame:
        """One table of all records, one below the other, with the record's id in a first column `run`."""
        found = [record for record in self.read(kind) if table in record.tables]
        if not found:
            return pd.DataFrame({"run": pd.Series(dtype=str)})
        try:
            whole, lengths = stacked_tables([record.packed(table) for record in found])
        except MALFORMED:
            for record in found:
                _ = record.tables[table]  # whichever it is names itself
            raise
        whole.insert(0, "run", pd.Series(np.repeat([record.id for record in found], lengths), dtype="str"))
        return whole

    def add(self, record: Record) -> str:
        """Puts a record into the union: "added", "same" or "replicate".

        The first of an id counts. A later one that agrees with it is "same" and is not written; one that does not is
        kept under replicates/, and a line on stderr names both. EestudyError where nothing can be written, and for a
        first one that is damaged.
        """
        path, content = self.path(record.kind, record.id), record.to_bytes()
        if not path.exists() and write_once(path, content):
            return "added"
        rounded = Record.from_bytes(content, path)
        if agree(self.one(record.kind, record.id), rounded):
            return "same"
        if any(agree(_read(other), rounded) for other in self.replicates(record.kind, record.id)):
            return "same"
        seal = hashlib.sha256(content).hexdigest()[:8]
        replicate = self.folder / "replicates" / record.kind / f"{record.id}-{seal}{SUFFIX}"
        write_once(replicate, content)
        say(f"{path} says otherwise than a run just added; both are kept, the later one as {replicate}")
        return "replicate"

    def sweep(self) -> None:
        """Deletes the temporary files of writers that were killed, once nobody can still be writing them."""
        for path in self.folder.glob("**/.*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
            except OSError:  # another process was faster
                continue


def _read(path: Path) -> Record:
    try:
        return Record._sealed(path.read_bytes(), path)
    except OSError as error:
        raise EestudyError(f"{path}: cannot be read ({error.strerror})") from None
