from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import synthetic_study as synthetic

from eestudy.report import Results, load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder with one study, "made-up", of two cells, three strategies, two seeds."""
    monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path))
    return synthetic.write(tmp_path / "made-up", synthetic.frames())


@pytest.fixture
def results(folder: Path) -> Results:
    return load("made-up")
