"""For maintainers: writes what is committed again: the README's results, what backbones cost, the chapters' outputs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from eestudy.book import inputs, notebooks
from eestudy.config import EestudyError
from eestudy.environment import say
from eestudy.progress import Failure
from eestudy.report import claims, load, plots, tables
from eestudy.store import Store, write_atomically
from eestudy.study import project_root

BEGIN, END = "<!-- results: written by `eestudy refresh`, do not edit -->", "<!-- results end -->"
FIGURE = "book/_static/results.png"
BACKBONES = "book/results/backbones.csv"


def refresh(study: str) -> list[Failure]:
    """Writes `study` into the README, what backbones cost, and in place the notebooks that reach a change."""
    root = project_root()
    say(f"README.md: the results of {study}")
    write_readme(root, study)
    say(f"{BACKBONES}: the cost of every backbone with every head")
    write_backbones(root)
    executor = notebooks.Executor(1, Store())
    failures = []
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


def write_readme(root: Path, study: str) -> None:
    """Replaces the part of README.md between the two marks, and the figure it shows."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise EestudyError(f"{path}: expected the marks {BEGIN!r} and {END!r} once each")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    results = load(study)
    figure = plots.tradeoff_grid(tables.select(results.tradeoff, "calibrated", "max-probability"), results.runs)
    write_atomically(root / FIGURE, figure.png())
    write_atomically(path, f"{before}{BEGIN}\n{results_text(study)}{END}{after}".encode())


def results_text(study: str) -> str:
    """The README's table and findings as Markdown, from the committed tables alone."""
    results = load(study)
    comparisons = tables.comparisons(results, "calibrated", "max-probability")
    frame = tables.budget_table(results).data
    seeds = results.runs["seed"].nunique()
    hardware = ", ".join(sorted(results.runs["hardware"].unique()))
    columns = list(frame.columns)
    lines = [f"| cell | strategy | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for (cell, strategy), row in zip(frame.index, frame.to_numpy().tolist(), strict=True):
        lines.append(f"| {cell} | {strategy} | {' | '.join(row)} |")
    table = "\n".join(lines)
    minutes = results.runs["seconds"].sum() / 60
    told = (claims.c1(comparisons), claims.c2(comparisons))
    verdicts = "\n".join(f"- **{claim.name}, {claim.verdict}.** {claim.statement}" for claim in told)
    return f"""
Accuracy on test in %, at a mean cost of at most that share of the plain backbone's FLOPs; mean ± half of the 95 % \
interval over {seeds} seeds; thresholds from validation data. Study `{study}`: {len(results.runs)} runs, \
{minutes:.0f} minutes of training, one core a run ({hardware}).

{table}

![Accuracy against mean cost for each strategy, with 95 % intervals]({FIGURE})

What the Holm-corrected paired tests say (a verdict over cells needs the cells to agree):

{verdicts}
- {claims.findings(comparisons).splitlines()[0]} The chapter _Six seeds_ lists them.

"""
