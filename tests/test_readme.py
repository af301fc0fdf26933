"""The README's first screen says what the committed tables say, and its commands exist."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from eestudy import cli
from eestudy.chapters import answer
from eestudy.records import Records
from eestudy.refresh import BEGIN, END, FIGURE
from eestudy.report import study_cells
from eestudy.study import load_study

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_answer_is_that_of_the_committed_records():
    shown = README.split(BEGIN)[1].split(END)[0]
    frame = study_cells.studied()
    assert answer.in_short(study_cells.means(study_cells.differences(frame)), frame) in shown


def test_the_figure_is_there():
    assert FIGURE in README
    width, height = struct.unpack(">II", (ROOT / FIGURE).read_bytes()[16:24])
    assert width > 800
    assert height > 300


def test_the_committed_records_are_of_their_parameters():
    """Runs of other settings than the study's YAML would be shown under a false name. Not all need to be in yet."""
    folders = sorted(path for path in (ROOT / "book/results").iterdir() if path.is_dir())
    assert len(folders) >= 8
    for folder in folders:
        (params,) = [path for path in (ROOT / "params").rglob("*.yaml") if path.stem == folder.name]
        found = set(Records(folder).ids("runs"))
        assert found
        assert found <= {config.id for config in load_study(params).configs}, folder.name


def test_the_records_of_all_studies_stay_small():
    sizes = [path.stat().st_size for path in (ROOT / "book/results").rglob("*.json.gz")]
    assert sum(sizes) < 60e6
    runs = [path.stat().st_size for path in (ROOT / "book/results").glob("*/runs/*.json.gz")]
    assert max(runs) < 40_000


def test_commands_and_make_targets_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"\bmake ([a-z]+)\b(?= |`|$)", text)) <= set(targets)
    assert set(re.findall(r"\beestudy ([a-z]+) (?:params/|small|smoke)", text)) <= set(cli.COMMANDS)
    for path in re.findall(r"(?:params|book)/[\w./-]+\.(?:yaml|ipynb)", text):
        assert (ROOT / path).is_file(), path
