"""Records between machines: one zip with a list of what is in it, checked whole before anything of it is used.

Inside: results/<study>/<kind>/<id>.json.gz, and with the runs themselves store/<kind>/<id>/<file>, as they lie on disk;
manifest.json has the SHA-256 of each. Nothing is pickled, and no name leads anywhere else. No torch here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eestudy.config import EestudyError, nearest
from eestudy.environment import say
from eestudy.records import KINDS, NAME, SUFFIX, Record, Records, results_folder
from eestudy.store import Folder, Store, clear_os_errors

FORMAT = 1
MANIFEST = "manifest.json"
PART = NAME.pattern
RESULT = re.compile(rf"results/(?P<study>{PART})/(?:replicates/)?(?P<kind>{'|'.join(KINDS)})/(?P<file>{PART})")
STORED = re.compile(rf"store/(?P<kind>runs|phases)/(?P<id>{PART})/(?P<file>{PART})")
OLD = (1980, 1, 1, 0, 0, 0)  # every member's time: the same records make the same zip


def export(target: Path, studies: Sequence[str] = (), store: Store | None = None) -> int:
    """Writes the records of these studies (default: of all) into one zip; returns how many files it holds.

    store: of which also the run and phase folders go along. Written whole or not at all. EestudyError for a
    study without records, a damaged record or folder, and where nothing can be written.
    """
    files, listed = _files(studies, store), {}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with clear_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as raw:
                with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as bundle:  # what is in it is compressed already
                    for name, path in files:
                        content = path.read_bytes()
                        if RESULT.fullmatch(name):
                            Record.from_bytes(content, path)
                        listed[name] = _entry(content)
                        bundle.writestr(zipfile.ZipInfo(name, OLD), content)
                    manifest = {"format": FORMAT, "files": listed}
                    bundle.writestr(zipfile.ZipInfo(MANIFEST, OLD), json.dumps(manifest, indent=1, sort_keys=True))
                raw.flush()
                os.fsync(raw.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return len(files)


def _files(studies: Sequence[str], store: Store | None) -> list[tuple[str, Path]]:
    """(name in the zip, path), sorted."""
    root = results_folder("-").parent
    folders = root.iterdir() if root.is_dir() else ()
    there = sorted(p.name for p in folders if NAME.fullmatch(p.name) and any(Records(p).ids(kind) for kind in KINDS))
    for name in studies:
        if name not in there:
            raise EestudyError(f"study: {name!r} has no records in {root}; {nearest(name, there or ['(none)'])}")
    if not there:
        raise EestudyError(f"{root}: no study has records here; eestudy run or train makes them")
    found: dict[str, Path] = {}
    for study in studies or there:
        records = Records(root / study)
        for kind in KINDS:
            for record_id in records.ids(kind):
                for path in (records.path(kind, record_id), *records.replicates(kind, record_id)):
                    found[f"results/{study}/{path.relative_to(records.folder).as_posix()}"] = path
        if store:
            for record in records.read("runs"):
                found |= _stored(store, record)
    return sorted(found.items())


def _stored(store: Store, record: Record) -> dict[str, Path]:
    """Files of a run and its phases, where the store has them as they were written."""
    run = store.folder("runs", record.id)
    if not store.whole(run):
        return {}
    folders = {"runs": [run], "phases": [store.folder("phases", phase) for phase in record.facts["phases"]]}
    return {
        f"store/{kind}/{folder.id}/{name}": folder.path / name
        for kind, own in folders.items()
        for folder in own
        if store.whole(folder)
        for name in sorted(folder.manifest())  # the manifest and `done` are written anew
    }


def pack(folders: Sequence[Folder]) -> bytes:
    """These folders of a store in one bundle, for `unpack`; nothing for none."""
    raw = io.BytesIO()
    files = {f"store/{f.path.parent.name}/{f.id}/{name}": f.read(name) for f in folders for name in f.manifest()}
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name, OLD), content)
        listed = {name: _entry(content) for name, content in files.items()}
        bundle.writestr(MANIFEST, json.dumps({"format": FORMAT, "files": listed}))
    return raw.getvalue() if files else b""


def unpack(content: bytes, store: Store) -> None:
    """Adds the folders of `pack` to a store. EestudyError, and nothing is changed, for one that is not as it was."""
    if content:
        _check_bundle(io.BytesIO(content), "a bundle of folders")
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            _fill_store(bundle, store, Counter())


def _entry(content: bytes) -> dict[str, object]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def bring_in(sources: Sequence[Path], store: Store) -> tuple[Counter[str], Counter[str]]:
    """Adds the records of bundles to the studies here, and their runs to the store; all are checked before that.

    Returns how many records were "added", the "same" or a "replicate" (`Records.add`), and how many folders of the
    store were "added" or the "same". EestudyError in one line, and nothing is changed, for a bundle that is cut short,
    edited or not one. Killed at any moment, the union is whole, and the same command goes on.
    """
    for source in sources:
        _check_bundle(source, source)
    counts, folders = Counter[str](), Counter[str]()
    for source in sources:
        records: dict[str, Records] = {}
        with zipfile.ZipFile(source) as bundle:
            for name in sorted(bundle.namelist()):
                if found := RESULT.fullmatch(name):
                    study = records.setdefault(found["study"], Records(results_folder(found["study"])))
                    record = Record.from_bytes(bundle.read(name), f"{source}, {name}")
                    counts[study.add(record)] += 1
            _fill_store(bundle, store, folders)
    return counts, folders


def _check_bundle(file: Path | io.BytesIO, source: Path | str) -> None:
    """EestudyError, of `source`, unless every member is what was exported. Reads all of it."""
    try:
        with zipfile.ZipFile(file) as bundle:
            for name, entry in _listed(bundle, source).items():
                content = bundle.read(name)
                if _entry(content) != entry:
                    raise EestudyError(f"{source}, {name}: is not as it was exported; export it again")
                if result := RESULT.fullmatch(name):
                    _check_record(name, result, content, source)
    except FileNotFoundError:
        raise EestudyError(f"{source}: no such file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        if isinstance(error, EestudyError):
            raise
        raise EestudyError(f"{source}: cut short, damaged or not a bundle of eestudy ({error})") from None


def _listed(bundle: zipfile.ZipFile, source: Path | str) -> dict[str, dict[str, object]]:
    """The manifest's files, which are the members, each once and with a name that may be written."""
    foreign = f"{source}: is not a bundle of eestudy"
    try:
        manifest = json.loads(bundle.read(MANIFEST))
        version, listed = manifest["format"], manifest["files"]
        known = all(set(entry) == {"bytes", "sha256"} for entry in listed.values())
    except (KeyError, ValueError, TypeError, AttributeError):
        raise EestudyError(foreign) from None
    if version != FORMAT:
        raise EestudyError(f"{source}: a bundle of format {version}, this version reads {FORMAT}; take a newer eestudy")
    if not known or sorted([*listed, MANIFEST]) != sorted(bundle.namelist()):
        raise EestudyError(f"{foreign}: its members are not those of its {MANIFEST}")
    for name in listed:
        if not (RESULT.fullmatch(name) or STORED.fullmatch(name)):
            raise EestudyError(f"{foreign}: the member {name!r} has no place in one")
    return listed


def _check_record(name: str, found: re.Match[str], content: bytes, source: Path | str) -> None:
    record = Record.from_bytes(content, f"{source}, {name}")
    same = found["file"] == f"{record.id}{SUFFIX}"
    if "/replicates/" in name:
        same = re.fullmatch(re.escape(record.id) + r"-[0-9a-f]{8}" + re.escape(SUFFIX), found["file"]) is not None
    if record.kind != found["kind"] or not same:
        raise EestudyError(f"{source}, {name}: holds the record {record.name}")


def _fill_store(bundle: zipfile.ZipFile, store: Store, counts: Counter[str]) -> None:
    """Folders that the store has not, or not whole; `done` is written last, as when they were made."""
    folders: dict[tuple[str, str], list[str]] = {}
    for name in bundle.namelist():
        if found := STORED.fullmatch(name):
            folders.setdefault((found["kind"], found["id"]), []).append(found["file"])
    for (kind, folder_id), names in sorted(folders.items()):  # phases first: a run that is done needs them
        folder = store.folder(kind, folder_id)
        with folder.lock(say):
            if store.usable(folder):
                counts["same"] += 1
                continue
            for name in folder.manifest():  # of a run that was begun here: its saved state is of no use any more
                if name not in names:
                    folder.remove(name)
            for name in sorted(names):
                folder.write(name, bundle.read(f"store/{kind}/{folder_id}/{name}"))
            folder.finish()
            counts["added"] += 1
