"""A page is made again when something that it reaches changed, and only then."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eestudy.book import inputs

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "book" / "chapters").glob("*.ipynb"))


def chapter(folder: Path, *sources: str, parameters: str = "") -> Path:
    cells = [{"cell_type": "code", "source": source, "metadata": {}} for source in sources]
    if parameters:
        cells.insert(0, {"cell_type": "code", "source": parameters, "metadata": {"tags": ["parameters"]}})
    path = folder / "page.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}}))
    return path


def reached(folder: Path, source: str) -> set[str]:
    found, _ = inputs.code_of(chapter(folder, source))
    return {path.relative_to(inputs.PACKAGE).as_posix() for path in found}


def test_code_that_draws_from_records_is_reached_and_no_engine(tmp_path):
    found = reached(tmp_path, "from eestudy.report import load, plots")
    assert {"report/plots.py", "report/frames.py", "records.py", "config.py", "registry.py"} <= found
    assert not any(name.startswith(("training/", "models/", "data/")) for name in found)
    assert found == reached(tmp_path, "import eestudy.report")


@pytest.mark.parametrize(
    "source",
    ["import eestudy", "from eestudy import RunConfig", "from eestudy import models", "def f():\n    import eestudy"],
)
def test_whoever_can_train_reaches_everything(tmp_path, source):
    assert reached(tmp_path, source) == {path.relative_to(inputs.PACKAGE).as_posix() for path in inputs.package_files()}


def test_scripts_of_pages_belong_to_the_code_beside_them(tmp_path):
    assert {"report/explorer.js", "report/explorer.css"} <= reached(tmp_path, "from eestudy.report import explorer")


def test_only_the_results_that_are_named_count(tmp_path):
    results, benchmarks = tmp_path / "results", tmp_path / "benchmarks"
    benchmarks.mkdir()
    for study in ("smoke", "small", "other"):
        (results / study).mkdir(parents=True)
        (results / study / "record").write_text("1")
    page = chapter(
        tmp_path, 'from eestudy.config import nearest\nnearest("a", ["small"])', parameters='study: str = "smoke"'
    )
    assert inputs.default_study(page) == "smoke"
    first = inputs.chapter_identity(page, results, benchmarks, "smoke")
    (results / "other" / "record").write_text("2")
    (results / "small" / "half.tmp").write_text("2")
    (benchmarks / "step.json").write_text("{}")
    assert inputs.chapter_identity(page, results, benchmarks, "smoke") == first
    assert inputs.chapter_identity(page, results, benchmarks, "other") != first
    assert inputs.chapter_identity(page, results, benchmarks, "small") != first  # whose tables count anyway
    (results / "small" / "record").write_text("2")
    second = inputs.chapter_identity(page, results, benchmarks, "smoke")
    assert second != first
    (results / "small" / "more").write_text("2")
    assert inputs.chapter_identity(page, results, benchmarks, "smoke") not in (first, second)


@pytest.mark.parametrize(
    ("parameters", "study"),
    [
        ("study: str = 'smoke'  # whose tables", "smoke"),
        ("study = 'small'", "small"),
        ("epochs = 3\nprint(study)", None),
    ],
)
def test_a_chapter_takes_a_study_where_its_parameters_assign_one(tmp_path, parameters, study):
    assert inputs.default_study(chapter(tmp_path, "study = 1", parameters=parameters)) == study
    assert inputs.default_study(chapter(tmp_path, parameters)) is None  # no cell is tagged


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_what_chapters_say_that_they_read_is_found(page):
    """A chapter that loads tables names a study that is there, or its identity would not know of it."""
    source = ["".join(cell["source"]) for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code"]
    if any(re.search(r"(?<![.\w])(load|Results)\(", each) for each in source):
        assert inputs.quoted(source) & {path.name for path in (ROOT / "book" / "results").iterdir()}, page.stem
