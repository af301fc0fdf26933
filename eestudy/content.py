"""What files and code of one's own are known by: their content, wherever they lie. No torch here."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eestudy.config import DIGITS, EestudyError, RunConfig

PIECE = 2**20  # bytes read at a time
_KNOWN: dict[str, str] = {}  # what the files look like from outside -> content; of this process


def settled(config: RunConfig) -> RunConfig:
    """The config with what its own data hold in `dataset_args: content`, so that changed files are another run.

    Only files are read here; data given from Python bring their content along (`data.own.given`).
    """
    path = config.dataset_args.get("path")
    if config.dataset != "own" or not path:
        return config
    return config.replace(dataset_args={**config.dataset_args, "content": content_of(str(path))})


def content_of(path: str | Path) -> str:
    """DIGITS hex digits of the SHA-256 of a file, or of a folder's files and their names. EestudyError: not there.

    Hidden files count for nothing. A folder that looks as before (names, sizes, times) is not read again, in this
    process or a later one: what was found is kept in the user's cache.
    """
    root = Path(path).expanduser()
    files = _files(root)
    looks = hashlib.sha256(str(root.resolve()).encode())
    for name, file in files:
        facts = file.stat()
        looks.update(
            f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ino}\n".encode("utf-8", "surrogateescape")
        )
    key = looks.hexdigest()
    if key not in _KNOWN:
        _KNOWN[key] = _remembered(key) or _read(files, key)
    return _KNOWN[key]


def _files(root: Path) -> list[tuple[str, Path]]:
    if root.is_file():
        return [(root.suffix, root)]
    if not root.is_dir():
        raise EestudyError(f"dataset_args: path: {str(root)!r}: no such file or folder")
    found = []
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((file.relative_to(root).as_posix(), file) for file in found)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eestudy" / "contents"


def _remembered(key: str) -> str:
    try:
        known = (_cache() / key).read_text()
    except OSError:
        return ""
    return known if len(known) == DIGITS and set(known) <= set("0123456789abcdef") else ""


def _read(files: list[tuple[str, Path]], key: str) -> str:
    content = hashlib.sha256()
    for name, file in files:
        content.update(f"{name}\0{file.stat().st_size}\n".encode("utf-8", "surrogateescape"))
        with file.open("rb") as opened:
            while piece := opened.read(PIECE):
                content.update(piece)
    found = content.hexdigest()[:DIGITS]
    try:  # only to be faster the next time
        _cache().mkdir(parents=True, exist_ok=True)
        (_cache() / f"{key}.tmp{os.getpid()}").write_text(found)
        (_cache() / f"{key}.tmp{os.getpid()}").replace(_cache() / key)
    except OSError:
        pass
    return found


def code_of(thing: Any, seen: frozenset[int] = frozenset()) -> str:
    """A function, class or object of one's own as text: its source, what it uses and the values it holds.

    What a library defines is known by its name.
    """
    text, parts = "", []
    if id(thing) in seen or isinstance(thing, types.ModuleType | types.BuiltinFunctionType) or _of_a_library(thing):
        return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', getattr(thing, '__name__', ''))}"
    if isinstance(thing, Mapping):
        parts = [part for item in thing.items() for part in item]
    elif isinstance(thing, list | tuple):
        parts = list(thing)
    elif isinstance(thing, types.FunctionType):
        found = inspect.getclosurevars(thing)
        text, parts = _source(thing), [found.globals, found.nonlocals, thing.__defaults__, thing.__kwdefaults__]
    elif isinstance(thing, type):
        own = [each for each in vars(thing).values() if isinstance(each, types.FunctionType)]
        text, parts = _source(thing), [*own, *thing.__bases__]
    elif isinstance(thing, types.MethodType):
        parts = [thing.__func__, thing.__self__]
    elif isinstance(thing, functools.partial):
        parts = [thing.func, thing.args, thing.keywords]
    elif hasattr(thing, "detach") or hasattr(thing, "tobytes"):
        values = thing.detach().cpu().double().numpy() if hasattr(thing, "detach") else thing
        text = f"{values.dtype} {values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"
    elif hasattr(thing, "__dict__"):
        hidden = {"training"} | {name for name in vars(thing) if name[0] == "_"} - {
            "_parameters",
            "_buffers",
            "_modules",
        }
        parts = [type(thing), {name: value for name, value in vars(thing).items() if name not in hidden}]
    else:
        text = re.sub(" at 0x[0-9a-f]+", "", repr(thing))
    return f"{text}({', '.join(code_of(part, seen | {id(thing)}) for part in parts)})"


def _of_a_library(thing: Any) -> bool:
    if not isinstance(thing, types.FunctionType | type):
        return False
    root = (thing.__module__ or "").split(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in sys.stdlib_module_names - {"__main__"} or root == "eestudy" or "site-packages" in file


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed into an interpreter
        return _compiled(getattr(thing, "__code__", None))


def _compiled(code: Any) -> str:
    if not isinstance(code, types.CodeType):
        return repr(code)
    return f"{code.co_code.hex()} {code.co_names} {list(map(_compiled, code.co_consts))}"
