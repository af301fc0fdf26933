"""The committed pages of the study's runs say what the records say, and there is one for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eestudy.cell_pages import pages
from eestudy.report import statistics as st
from eestudy.report import study_cells, tables
from eestudy.study import project_root

FOLDER = project_root() / study_cells.PAGES
LARGEST = 150_000  # bytes


def outputs(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(html) for html in shown)


def test_each_training_of_a_complete_cell_has_its_page():
    named = {f"{page.name}.ipynb" for page in pages()}
    assert named
    assert named == {path.name for path in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("page", list(pages()), ids=lambda page: page.name)
def test_a_page_shows_its_records(page):
    path = FOLDER / f"{page.name}.ipynb"
    html = outputs(path)
    assert path.stat().st_size <= LARGEST
    for record in page.records:
        assert record.id in html
    frame = study_cells.trained(page.cell)
    assert frame is not None
    here = frame[frame["training"] == page.training]
    for budget in ("25", "50", "100"):
        values = here[here["budget"] == budget]["accuracy"]
        assert tables.percent(st.mean_interval(values), len(values)) in html
