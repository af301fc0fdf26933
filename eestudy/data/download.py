"""Gets published data sets: checked against their published checksums, and put in place only when complete."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from tqdm import tqdm

from eestudy.config import EestudyError
from eestudy.data.sources import Archive, Source, homes

BLOCK = 1 << 20
SECONDS = 60  # without a byte, after which a server is given up


def get(source: Source) -> Path:
    """Downloads `source` to the first of its homes, and says which folder holds it.

    Raises EestudyError if it is not published for download, the network or the disk fails, or a file is not the
    published one; nothing is left behind then.
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
        reason = str(error).splitlines() or [type(error).__name__]
        raise EestudyError(
            f"get: {source.name} could not be put in {target} ({reason[0]}); is this machine online?"
        ) from None
    return source.find()


def _fetched(archive: Archive, folder: Path) -> Path:
    """The published file in `folder`; EestudyError if its checksum is another one."""
    path = folder / archive.url.rpartition("/")[2]
    # What the makers publish. MD5 is against damage, not against malice.
    checksum = hashlib.sha256() if archive.sha256 else hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(archive.url, timeout=SECONDS) as answer, path.open("wb") as file:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
            while block := answer.read(BLOCK):
                checksum.update(block)
                file.write(block)
                bar.update(len(block))
    found, expected = checksum.hexdigest(), archive.sha256 or archive.md5
    if found != expected:
        kind = checksum.name.upper()
        raise EestudyError(f"get: {archive.url} gave another file: {kind} {found}, expected {expected}")
    return path


def _unpack(path: Path, target: Path) -> None:
    if path.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(path) as archive:
            if hasattr(tarfile, "data_filter"):  # older Pythons have no filter to choose
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(target)
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(target)
    else:
        shutil.move(path, target)
