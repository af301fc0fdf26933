"""The README's first screen says what the committed tables say, and its commands exist."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pandas as pd

from eestudy import cli
from eestudy.grids import load_study
from eestudy.refresh import BEGIN, END, FIGURE, results_text

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_the_committed_tables():
    shown = README.split(BEGIN)[1].split(END)[0]
    assert shown.strip() == results_text("small").strip()
    assert shown.count("±") > 20


def test_the_figure_is_there():
    assert FIGURE in README
    width, height = struct.unpack(">II", (ROOT / FIGURE).read_bytes()[16:24])
    assert width > 800
    assert height > 300


def test_the_committed_tables_hold_the_runs_of_their_parameters():
    """Tables made from other settings than params/<study>.yaml would be shown under a false name."""
    for folder in sorted(path for path in (ROOT / "book/results").iterdir() if path.is_dir()):
        wanted = {config.id for config in load_study(ROOT / f"params/{folder.name}.yaml").configs}
        assert set(pd.read_csv(folder / "runs.csv")["run"]) == wanted


def test_commands_and_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"\bmake ([a-z]+)\b(?= |`|$)", text)) <= set(targets)
    assert set(re.findall(r"\beestudy ([a-z]+) (?:params/|small|smoke)", text)) <= set(cli.COMMANDS)
    for path in re.findall(r"(?:params|book)/[\w./-]+\.(?:yaml|ipynb)", text):
        assert (ROOT / path).is_file(), path
