"""What files and code of one's own are known by: their content, wherever they lie. No torch here."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import sys
import types
from collections.abc import Callable, Mapping
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
    """A function, class or object of one's own as text: its source and that of what it uses, the values it holds.

    What a library defines is known by its name.
    """
    if id(thing) in seen or isinstance(thing, types.ModuleType):
        return getattr(thing, "__name__", "")
    text = functools.partial(code_of, seen=seen | {id(thing)})
    if isinstance(thing, Mapping):
        return "{" + ", ".join(f"{name}: {text(value)}" for name, value in thing.items()) + "}"
    if isinstance(thing, list | tuple | set | frozenset):
        parts = [text(each) for each in thing]
        return "[" + ", ".join(sorted(parts) if isinstance(thing, set | frozenset) else parts) + "]"
    if hasattr(thing, "detach") or hasattr(thing, "tobytes"):
        values = thing.detach().cpu().double().numpy() if hasattr(thing, "detach") else thing
        return f"{values.dtype} {values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"
    if isinstance(thing, types.CodeType):
        return f"{thing.co_code.hex()} {thing.co_names} {text(thing.co_consts)}"
    if isinstance(thing, types.MethodType):
        return text(thing.__func__) + text(thing.__self__)
    if isinstance(thing, types.FunctionType | types.BuiltinFunctionType | type):
        by_name = isinstance(thing, types.BuiltinFunctionType) or _of_a_library(thing)
        return f"{thing.__module__}.{thing.__qualname__}" if by_name else _source(thing, text) + text(_uses(thing))
    if isinstance(thing, functools.partial):
        return text((thing.func, thing.args, thing.keywords))
    if not hasattr(thing, "__dict__") or (_of_a_library(type(thing)) and not hasattr(thing, "state_dict")):
        return re.sub(" at 0x[0-9a-f]+", "", repr(thing))
    held = {name: value for name, value in vars(thing).items() if name[0] != "_" or name in OF_A_MODULE}
    return text(type(thing)) + text({name: value for name, value in held.items() if name != "training"})


OF_A_MODULE = ("_parameters", "_buffers", "_modules")  # where torch keeps what a module is made of


def _of_a_library(thing: Any) -> bool:
    root = (getattr(thing, "__module__", None) or "builtins").split(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in sys.stdlib_module_names - {"__main__"} or root == "eestudy" or "site-packages" in file


def _source(thing: Any, text: Callable[[Any], str]) -> str:
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):  # typed into an interpreter
        return text(getattr(thing, "__code__", None))


def _uses(thing: Any) -> dict[str, Any]:
    """What a function finds outside itself; of a class what its functions do, and its bases."""
    if isinstance(thing, type):
        own = {name: each for name, each in vars(thing).items() if isinstance(each, types.FunctionType)}
        return {**own, "bases": thing.__bases__}
    found = inspect.getclosurevars(thing)
    return {**found.globals, **found.nonlocals, "defaults": (thing.__defaults__, thing.__kwdefaults__)}
