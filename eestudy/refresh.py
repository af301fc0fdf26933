"""For maintainers: writes what is committed again: the README's answer, what backbones cost, the chapters' outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from eestudy import cell_pages
from eestudy.book import inputs, notebooks
from eestudy.chapters import answer
from eestudy.config import EestudyError
from eestudy.environment import say
from eestudy.progress import Failure
from eestudy.report import study_cells
from eestudy.store import Store, write_atomically
from eestudy.study import project_root

BEGIN, END = "<!-- results: written by `eestudy refresh`, do not edit -->", "<!-- results end -->"
FIGURE = "book/_static/results.png"
BACKBONES = "book/results/backbones.csv"


def refresh() -> list[Failure]:
    """Writes the answer into the README, what backbones cost, and in place the notebooks that reach a change."""
    root = project_root()
    say("README.md: the answer")
    write_readme(root)
    say(f"{BACKBONES}: the cost of every backbone with every head")
    write_backbones(root)
    say(f"{study_cells.PAGES}: the pages of the study's runs")
    failures = cell_pages.refresh(root)
    executor = notebooks.Executor(1, Store())
    for chapter in [*sorted((root / "book" / "chapters").glob("*.ipynb")), root / "book" / "run.ipynb"]:
        of_study = inputs.default_study(chapter)
        made = inputs.chapter_identity(chapter, root / "book" / "results", root / "benchmarks", of_study)
        if made == inputs.made_from(chapter):
            continue
        say(f"executing {chapter.stem}")
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / chapter.name
            reason = executor.execute(chapter, executed, {}, made)
            if reason:
                failures.append(Failure(f"chapter {chapter.stem}", reason))
            else:
                write_atomically(chapter, executed.read_bytes())
    return failures


def write_backbones(root: Path) -> None:
    """The table that the chapter on backbones reads."""
    from eestudy.models.catalogue import catalogue  # torch; the rest of this file needs none

    write_atomically(root / BACKBONES, catalogue().to_csv(index=False).encode())


def write_readme(root: Path) -> None:
    """Replaces the part of README.md between the two marks, and the figure it shows."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise EestudyError(f"{path}: expected the marks {BEGIN!r} and {END!r} once each")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    frame = study_cells.studied()
    found = study_cells.differences(frame)
    means = study_cells.means(found)
    write_atomically(root / FIGURE, answer.plot(found, means).png())
    shown = f"{BEGIN}\n\n{answer.in_short(means, frame)}\n\n![{answer.ALT}]({FIGURE})\n\n{END}"
    write_atomically(path, f"{before}{shown}{after}".encode())
