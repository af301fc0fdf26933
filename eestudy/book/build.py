"""Building the book: its sources copied, runs and chapters executed, then Sphinx. No torch here.

Tracked files are read, never written. Everything is made in `_build/book`, which is kept: what did not change
is not made again. The pages end up in `_build/html`.
"""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from eestudy.book import inputs, notebooks, run_pages
from eestudy.config import EestudyError
from eestudy.environment import say
from eestudy.progress import Failure, Progress
from eestudy.records import Records
from eestudy.registry import ARCHITECTURES, DATASETS
from eestudy.store import Store, check_writable, write_atomically
from eestudy.study import Study, project_root

SKIPPED = {"runs", "results", "__pycache__", ".ipynb_checkpoints"}  # of book/: made here, or nobody's source
TOOLS = ("jupyter-book", "sphinx", "sphinx-book-theme", "myst-nb", "latex2mathml")


class Stage:
    """Where a checkout's book is made: `folder` is the copy that Sphinx reads, `results` what chapters get to read."""

    def __init__(self, root: Path) -> None:
        self.root, self.html = root, root / "_build" / "html"
        self.folder = root / "_build" / "book"
        self.book = self.folder / "book"
        self.results = self.book / "results"


def build(study: Study, store: Store, workers: int = 1) -> list[Failure]:
    """Runs what the study lacks, executes the chapters on its tables, builds the pages; returns what failed.

    After a failure no pages are made, and the ones of an earlier build stay. EestudyError with one line when
    Sphinx warns, or a notebook holds an error.
    """
    stage = Stage(project_root())
    for name in ("_config.yml", "_toc.yml", "book"):
        if not (stage.root / name).exists():
            raise EestudyError(f"{stage.root / name}: not found; run this inside a checkout of the study")
    check_writable(stage.folder)
    with FileLock(stage.folder.parent / "book.lock"):
        copied = copy_sources(stage)
        say(f"{copied} changed files copied to {stage.folder}")
        runs_dir = stage.book / "runs" / study.name
        records = Records(stage.results / study.name)
        failures = run_pages.run_study(study, store, records, workers, runs_dir, every_page=True)
        say(f"{len(run_pages.pages(study, runs_dir))} run pages, {len(failures)} failed")
        failures = failures or execute_chapters(stage, study.name, workers, store)
        if failures:
            say("the book is not built, because a notebook failed")
            return failures
        write_toc(stage, study)
        check_notebooks(stage)
        build_pages(stage)
    index = stage.html / "index.html"
    say(f"open {index.as_uri()}")
    say(f"or serve it: {Path(sys.executable).name} -m http.server --directory {stage.html}")
    return []


def copy_sources(stage: Stage) -> int:
    """Brings the copy up to date with book/ and _config.yml; returns how many files changed.

    Chapters are left out: papermill writes them there. Records that the runner made there stay.
    """
    source = stage.root / "book"
    wanted = {Path("_config.yml")}
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        chapter = inside.parts[0] == "chapters" and path.suffix == ".ipynb"
        result = inside.parts[0] == "results" and path.suffix != ".tmp"
        if path.is_file() and not chapter and (result or not SKIPPED & set(inside.parts)):
            wanted.add("book" / inside)
    changed = 0
    for file in wanted:
        target, content = stage.folder / file, (stage.root / file).read_bytes()
        if not target.is_file() or target.read_bytes() != content:
            write_atomically(target, content)
            changed += 1
    for path in sorted(stage.book.rglob("*")):
        inside = path.relative_to(stage.book)
        made = inside.parts[0] in ("runs", "results") or (stage.root / "book" / inside).is_file()
        if path.is_file() and not made:
            path.unlink()
            changed += 1
    return changed


def execute_chapters(stage: Stage, study: str, workers: int, store: Store) -> list[Failure]:
    """Executes the chapters that have no outputs made from what they reach now; returns what failed."""
    executor = notebooks.Executor(workers, store)
    executor.environment["EESTUDY_RESULTS"] = str(stage.results.resolve())
    todo: dict[Path, tuple[Path, Path, dict[str, str], str]] = {}
    chapters = sorted((stage.root / "book" / "chapters").glob("*.ipynb"))
    for chapter in chapters:
        target, given = stage.book / "chapters" / chapter.name, {}
        if inputs.default_study(chapter):
            given["study"] = study
        made = inputs.chapter_identity(chapter, stage.results, stage.root / "benchmarks", given.get("study"))
        if made == inputs.made_from(target):
            continue
        if made == inputs.made_from(chapter):  # its committed outputs were made from just this
            write_atomically(target, chapter.read_bytes())
        else:
            todo[chapter] = (chapter, target, given, made)
    say(f"{len(chapters)} chapters, {len(todo)} to execute")
    progress, failures = Progress({f"chapter {chapter.stem}": 1.0 for chapter in todo}), []
    for chapter, reason in executor.execute_all(todo):
        progress.ended(f"chapter {chapter.stem}", reason is not None)
        if reason:
            failures.append(Failure(f"chapter {chapter.stem}", reason))
    return failures


def write_toc(stage: Stage, study: Study) -> None:
    """The committed _toc.yml with the run pages before its last part, one part per data set."""
    toc = yaml.safe_load((stage.root / "_toc.yml").read_text(encoding="utf-8"))
    toc["parts"][-1:-1] = run_parts(stage, run_pages.pages(study, stage.book / "runs" / study.name))
    content = yaml.safe_dump(toc, sort_keys=False, allow_unicode=True).encode()
    write_atomically(stage.folder / "_toc.yml", content)


def run_parts(stage: Stage, pages: list[run_pages.Page]) -> list[dict[str, Any]]:
    """The table of contents' parts for run pages: one per data set, each page with a short title of its own."""
    parts: dict[str, list[dict[str, str]]] = {}
    for page in pages:
        config = page.configs[0]
        names = DATASETS.title(config.dataset), ARCHITECTURES.title(config.architecture)
        chapters = parts.setdefault(f"Runs on {names[0]}", [])
        title = f"{names[1]}, {config.strategy}" + (f" ({page.number})" if page.number > 1 else "")
        file = page.target.relative_to(stage.folder).with_suffix("").as_posix()
        chapters.append({"file": file, "title": title})
    return [{"caption": caption, "chapters": chapters} for caption, chapters in parts.items()]


def check_notebooks(stage: Stage) -> None:
    """EestudyError when a notebook of the book holds an error output, on which Sphinx is silent."""
    toc = yaml.safe_load((stage.folder / "_toc.yml").read_text(encoding="utf-8"))
    pages = [stage.folder / f"{chapter['file']}.ipynb" for part in toc["parts"] for chapter in part["chapters"]]
    pages += sorted((stage.book / "cells").glob("*.ipynb"))
    found = [line for page in pages if page.is_file() for line in notebooks.error_outputs(page)]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise EestudyError(f"an executed notebook holds an error: {found[0]}{more}")


def build_pages(stage: Stage) -> None:
    """Sphinx with warnings as errors, from nothing, for a warm build forgets them; or nothing when no input changed."""
    files = [path for path in sorted(stage.book.rglob("*")) if path.is_file()]
    files += [stage.folder / "_config.yml", stage.folder / "_toc.yml"]
    names = [path.relative_to(stage.folder).as_posix() for path in files]
    made = inputs.identity({name: version(name) for name in TOOLS}, names, *files)
    stamp = stage.html / ".made-from"
    if stamp.is_file() and stamp.read_text() == made:
        say("pages are as they were")
        return
    say("Sphinx reads and writes the pages")
    html = sphinx(stage.folder)
    write_atomically(html / ".made-from", made.encode())
    if stage.html.exists():
        shutil.rmtree(stage.html)
    html.replace(stage.html)
    say(f"{len(list((stage.html / 'book').rglob('*.html')))} pages written to {stage.html}")


def sphinx(folder: Path) -> Path:
    """Builds the book in `folder` cold; returns its pages' folder. EestudyError names the first warning."""
    output = folder / "_build"
    shutil.rmtree(output, ignore_errors=True)
    program = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", program, "build", str(folder), "-W", "--keep-going"]
    said: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    ended = subprocess.run(command, check=False, **said)
    text = re.sub(r"\x1b\[[0-9;]*m", "", ended.stdout)  # without colours
    log = folder / "sphinx.log"
    write_atomically(log, text.encode())
    if ended.returncode or not (output / "html" / "index.html").is_file():
        lines = [line.strip() for line in text.splitlines() if re.search("WARNING|ERROR|Error", line)]
        reason = lines[0] if lines else f"exit status {ended.returncode}"
        raise EestudyError(f"Sphinx: {reason} ({len(lines)} such lines in {log})")
    return output / "html"
