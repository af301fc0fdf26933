"""Committed notebooks are valid and short, ran from top to bottom without an error, and take parameters."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 60
# A chapter that shows what a user writes: networks, a training loop, a folder of images. run.ipynb trains or reads.
SHOWN = {"book/chapters/your-own-model.ipynb": 114, "book/run.ipynb": 64}


def notebooks_that_git_keeps() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.ipynb"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


NOTEBOOKS = notebooks_that_git_keeps()
CHAPTERS = [name for name in NOTEBOOKS if name.startswith("book/chapters/")]
PARAMETERIZED = [name for name in NOTEBOOKS if name in CHAPTERS or name == "book/run.ipynb"]


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / name, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def code_lines(source: str) -> int:
    """Lines if each statement stood on as few as it can: how they are wrapped does not count."""
    return len(ast.unparse(ast.parse(source)).splitlines())


def test_the_book_has_its_notebooks() -> None:
    # Without notebooks the parametrized tests below would be skipped, not failed.
    assert CHAPTERS
    assert "book/run.ipynb" in NOTEBOOKS
    assert not [name for name in NOTEBOOKS if name.startswith("book/runs/")], "what papermill makes is not committed"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_a_valid_notebook_for_any_machine(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3", "any other kernel name exists on its author's machine only"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_waits_for_no_measurement(name: str) -> None:
    outputs = [output for cell in code_cells(read(name)) for output in cell.outputs]
    assert not [output for output in outputs if "Not measured yet" in str(output)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_holds_no_error(name: str) -> None:
    notebook = read(name)
    failed = [cell.source for cell in code_cells(notebook) if any(out.output_type == "error" for out in cell.outputs)]
    assert not failed
    assert not notebook.metadata.get("papermill", {}).get("exception")


@pytest.mark.parametrize("name", PARAMETERIZED)
def test_has_one_parameters_cell(name: str) -> None:
    notebook = read(name)
    cells = tagged(notebook, "parameters")
    assert [cell.cell_type for cell in cells] == ["code"]
    assert not tagged(notebook, "injected-parameters"), "papermill's output was committed in place of its input"


@pytest.mark.parametrize("name", PARAMETERIZED)
def test_calls_the_package_instead_of_holding_code(name: str) -> None:
    notebook = read(name)
    settings = [cell.source for cell in tagged(notebook, "parameters")]
    lines = sum(code_lines(cell.source) for cell in code_cells(notebook) if cell.source not in settings)
    assert lines <= SHOWN.get(name, MOST_LINES)


@pytest.mark.parametrize("name", CHAPTERS)
def test_was_run_once_from_top_to_bottom(name: str) -> None:
    # nbval compares stored outputs: a chapter that was never run would pass it with nothing compared.
    counts = [cell.execution_count for cell in code_cells(read(name))]
    assert counts == list(range(1, len(counts) + 1))


def sanitize(text: str) -> str:
    """What nbval does with tests/nbval_sanitize.cfg."""
    rules = configparser.RawConfigParser()
    rules.read(ROOT / "tests" / "nbval_sanitize.cfg", encoding="utf-8")
    for section in rules.sections():
        text = re.sub(rules.get(section, "regex"), rules.get(section, "replace"), text)
    return text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("trained in 12.3 s on 2026-11-23T10:11:12", "trained in DURATION on DATE"),
        ("1 min 20 s, 533 samples/s, 41.2 ms", "DURATION, DURATION, DURATION"),
        ("<Axes at 0x7f3a5c2d1e90>", "<Axes at ADDRESS>"),
        ('<td id="T_3fa9c_row0_col1" >', '<td id="TABLE_row0_col1" >'),
        ("saved in /home/ann/study/runs/a.json", "saved in FILE"),
        ("commit 0123456789abcdef0123456789abcdef01234567", "commit COMMIT"),
    ],
)
def test_sanitizing_masks_what_differs_between_machines(text: str, clean: str) -> None:
    assert sanitize(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "accuracy 0.8731, 2 seeds, 12,345,678 FLOPs, exit 3 of 8",
        "vit1d-mnist1d-mixed-s0-3fa9c2d41b",
        "<td>86.5 ± 0.4</td><br/><i>mixed</i>",
        "disjoint/joint/mixed, params/smoke.yaml",
        "87.1 % at 50 % of the budget, p = 0.031",
    ],
)
def test_sanitizing_leaves_results_alone(text: str) -> None:
    assert sanitize(text) == text
