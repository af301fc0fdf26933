"""A page for every training of every complete cell of the study: run.ipynb, executed from the records alone.

They are committed; `eestudy refresh` makes those again whose records or figures have changed. No torch
here.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eestudy.book import inputs, notebooks
from eestudy.progress import Failure, Progress
from eestudy.records import Record
from eestudy.report.study_cells import CELLS, PAGES, Cell, page_name, records_of, trained, training_of
from eestudy.store import Store

SKIPPED = "not-of-records"  # tag of the cells that need what only a store of trained runs has, or that say little


@dataclass(frozen=True)
class CellPage:
    """One cell and training: all its seeds."""

    cell: Cell
    training: str
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        return page_name(self.cell.study, self.training)

    @property
    def title(self) -> str:
        return f"{self.cell.label}, {self.training}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What papermill passes: the fields that differ from their default, the seeds, where the records are."""
        facts = self.records[0].facts
        given = {name: value for name, value in facts["config"].items() if name not in ("seed", "schema")}
        seeds = sorted(record.facts["seed"] for record in self.records)
        return {**given, "epochs": facts["epochs"], "seeds": seeds, "records": self.cell.study}


def pages() -> Iterator[CellPage]:
    """Of the cells that are complete, in the order of the plan."""
    for cell in CELLS:
        if trained(cell) is None:
            continue
        groups: dict[str, list[Record]] = {}
        records = records_of(cell)
        longest = max(record.facts["epochs"] for record in records)
        for record in records:
            groups.setdefault(training_of(record, longest), []).append(record)
        yield from (CellPage(cell, training, tuple(found)) for training, found in sorted(groups.items()))


def refresh(root: Path) -> list[Failure]:
    """Executes the pages whose records, cells or figures are not those they were made from; removes what is none."""
    folder, source = root / PAGES, root / "book" / "run.ipynb"
    drawing = sorted((inputs.PACKAGE / "report").glob("*.py"))
    todo, kept = {}, set()
    with tempfile.TemporaryDirectory() as scratch:
        template = Path(scratch) / source.name
        template.write_text(json.dumps(_without(SKIPPED, json.loads(source.read_text(encoding="utf-8")))))
        for page in pages():
            target = folder / f"{page.name}.ipynb"
            kept.add(target)
            made = inputs.identity(
                inputs.source_identity(template), page.parameters, [record.id for record in page.records], *drawing
            )
            if made != inputs.made_from(target):
                todo[page] = template, target, page.parameters, made, page.title
        for target in set(folder.glob("*.ipynb")) - kept:
            target.unlink()
        progress, failures = Progress({page.title: 1.0 for page in todo}), []
        for page, reason in notebooks.Executor(2, Store()).execute_all(todo):
            progress.ended(page.title, reason is not None)
            if reason:
                failures.append(Failure(page.title, reason))
    return failures


def _without(tag: str, notebook: dict[str, Any]) -> dict[str, Any]:
    cells = [cell for cell in notebook["cells"] if tag not in cell["metadata"].get("tags", [])]
    return {**notebook, "cells": cells}
