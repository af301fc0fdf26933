"""What an executed notebook was made from: its cells, its parameters, and the code and results that it reaches.

A page whose inputs are what they were is not made again: not in a second build, and not in a fresh clone where the
committed outputs of a chapter were made from them. No torch here.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
ASSETS = (".js", ".css")


def identity(*inputs: object) -> str:
    """SHA-256 of everything an output was made from: files by their bytes, other things by their JSON."""
    digest = hashlib.sha256()
    for item in inputs:
        content = item.read_bytes() if isinstance(item, Path) else json.dumps(item, sort_keys=True).encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def package_files() -> list[Path]:
    """The package's own source."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", *ASSETS))


def source_identity(notebook: Path) -> str:
    """Identity of a notebook's cells, without outputs and execution counts."""
    return identity(
        [[cell["cell_type"], cell["source"], cell["metadata"].get("tags", [])] for cell in _cells(notebook)]
    )


def made_from(notebook: Path) -> str | None:
    """The identity of what an executed notebook was made from; None if there is none, or it is not whole."""
    try:
        return json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["eestudy"]["identity"]
    except (OSError, ValueError, KeyError):
        return None


def default_study(chapter: Path) -> str | None:
    """What the cell tagged `parameters` assigns to `study`: the study whose tables the chapter reads; None: none."""
    for cell in _cells(chapter):
        found = re.search(r"""^study\b[^=\n]*= *["']([^"']*)["']""", "".join(cell["source"]), re.MULTILINE)
        if found and "parameters" in cell["metadata"].get("tags", []):
            return found[1]
    return None


def chapter_identity(chapter: Path, results: Path, benchmarks: Path, study: str | None) -> str:
    """Of what a chapter is made from.

    results: the folder of all records; of them, and of the files in `benchmarks`, those count that the chapter or the
    report's code names. study: whose tables it is given, if it takes a study.
    """
    code, reached = code_of(chapter)
    # What draws tables and figures names the results that it reads.
    drawing = [path for path in reached if path.relative_to(PACKAGE).parts[0] in ("report", "chapters")]
    words = quoted([_source(chapter), *(path.read_text(encoding="utf-8") for path in drawing)])
    named = [path for path in sorted(results.iterdir()) if path.name in words or path.name == study]
    named += [path for path in sorted(benchmarks.glob("*.json")) if path.stem in words or path.name in words]
    files = [each for path in named for each in ([path] if path.is_file() else sorted(path.rglob("*")))]
    kept = [path for path in files if path.is_file() and path.suffix != ".tmp"]
    return identity(source_identity(chapter), study, [path.name for path in (*code, *kept)], *code, *kept)


def quoted(texts: Iterable[str]) -> set[str]:
    """Every word or file name between quotes."""
    return {word for text in texts for word in re.findall(r"""["']([\w.-]+)["']""", text)}


def code_of(chapter: Path) -> tuple[list[Path], set[Path]]:
    """The package's files that a chapter depends on, and of them those that it imports, directly or not.

    They are the same, with scripts and styles beside them, where none needs torch; else it depends on all. Names that
    are looked up when they are first used (`eestudy.run`, a registry's) are in no import, but who can get at them has
    torch, or imports the package itself.
    """
    reached: set[Path] = set()
    waiting, trains = list(_imported(_source(chapter), PACKAGE.parent)), False
    while waiting:
        path = waiting.pop()
        if path is None:
            trains = True
        elif path not in reached:
            reached.add(path)
            needs_torch, imports = _read(path)
            trains |= needs_torch
            waiting += imports
    beside = {asset for path in reached for asset in path.parent.iterdir() if asset.suffix in ASSETS}
    return (package_files() if trains else sorted(reached | beside)), reached


@cache
def _read(path: Path) -> tuple[bool, tuple[Path | None, ...]]:
    """Whether importing a file imports torch (an import in a function does not), and what of the package it imports."""
    source = path.read_text(encoding="utf-8")
    return bool(re.search(r"^(import|from) torch\b", source, re.MULTILINE)), tuple(_imported(source, path.parent))


def _imported(source: str, folder: Path) -> Iterator[Path | None]:
    """The package's files that a source imports anywhere; None for the package itself or what it looks up."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
            yield from (_file(PACKAGE.parent.joinpath(*name.split("."))) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == PACKAGE.name):
            start = folder.parents[node.level - 2] if node.level > 1 else folder if node.level else PACKAGE.parent
            base = start.joinpath(*(node.module or "").split(".")) if node.module else start
            if base != PACKAGE:
                yield _file(base)
            for alias in node.names:
                inner = base / alias.name
                if inner.is_dir() or inner.with_suffix(".py").is_file():
                    yield _file(inner)
                elif base == PACKAGE:
                    yield None


def _file(module: Path) -> Path | None:
    inside = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    return None if module == PACKAGE else inside


def _cells(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def _source(notebook: Path) -> str:
    """The code of a notebook's cells."""
    return "\n".join("".join(cell["source"]) for cell in _cells(notebook) if cell["cell_type"] == "code")
