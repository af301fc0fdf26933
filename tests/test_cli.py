from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eestudy.analysis.run_record import record_of
from eestudy.cli import COMMANDS, main
from eestudy.records import Records
from eestudy.store import Store

ROOT = Path(__file__).parents[1]
TINY = "architecture: mlp\ndataset: digits\nstrategy: mixed\nepochs: 2\ntrain_size: 256\nseeds: [0]\n"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["rum", "params/smoke.yaml"], "invalid choice: 'rum'"),
        ([], "required: COMMAND"),
        (["run"], "required: params"),
        (["run", "params/smok.yaml"], "params/smok.yaml: no such file; nearest: smoke.yaml"),
        (["run", "params/smoke.yaml", "--workers", "0"], "'0' is not valid; it must be a whole number above 0"),
        (["run", "params/smoke.yaml", "--worker", "x"], "'x' is not valid"),
        (["table", "smoek"], "smoke"),
        (["table", "smoke", "--protocol", "papre"], "papre"),
        (["run", "params"], "cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, wanted, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    try:
        status: object = main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err.strip()
    assert status == 2
    assert wanted in said
    assert len(said.splitlines()) == 1
    assert said.startswith("eestudy: ")


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"\n    {name}" in said for name in COMMANDS)


def test_plan_and_status(tmp_path, capsys, small_store, small_run, monkeypatch):
    run = small_run("mlp", "digits", "mixed")
    (tmp_path / "tiny.yaml").write_text(TINY + "batch_size: 64\n")
    assert main(["plan", str(tmp_path / "tiny.yaml"), "--store", str(small_store)]) == 0
    said = capsys.readouterr().out
    assert " done " in said
    assert "0.0 GFLOPs are left" in said
    assert main(["status", str(tmp_path / "tiny.yaml"), "--store", str(small_store)]) == 0
    said = capsys.readouterr().out
    assert "0 of 1 runs have a record" in said
    assert "1 of 1 runs are done" in said
    assert "no record: mlp-digits-mixed-s0-" in said
    monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path))
    Records(tmp_path / "tiny").add(record_of(run, Store(small_store)))
    assert main(["status", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path)]) == 0
    assert "1 of 1 runs have a record" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path)]) == 0
    assert "1 runs, 1 with a record; 0.0 GFLOPs are left" in capsys.readouterr().out
    monkeypatch.delenv("EESTUDY_RESULTS")
    assert main(["status", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path)]) == 0
    assert "0 of 1 runs are done" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path)]) == 0
    assert "to train" in capsys.readouterr().out


def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("EESTUDY_HOME", str(tmp_path / "home"))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "digits: 1293 train, 144 validation, 360 test" in said
    assert str(tmp_path / "home") in said


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m eestudy plan params/smoke.yaml | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
