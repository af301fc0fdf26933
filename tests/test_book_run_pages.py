"""The whole way by papermill: small studies in a temporary folder, the real notebook, the real kernel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eestudy.book import notebooks
from eestudy.book.run_pages import Page, pages, run_study
from eestudy.cli import main
from eestudy.records import Record, Records, agree
from eestudy.report import Results
from eestudy.store import Store
from eestudy.study import load_study

ROOT = Path(__file__).parents[1]
STUDY = """
seeds: [0, 1]
common: {epochs: 2, train_size: 300, batch_size: 64}
grid:
  - {architecture: mlp, dataset: digits, strategy: [mixed, joint]}
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study, executed once."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(STUDY)
    assert not execute(folder)
    return folder


def execute(folder: Path, name: str = "tiny.yaml", workers: int = 2, every_page: bool = False) -> list:
    study = load_study(folder / name)
    return run_study(study, Store(folder / "store"), Records(folder / "results"), workers, folder / "pages", every_page)


def records_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("results/**/*.json.gz")}


def test_tables_and_pages_of_a_study(studied):
    assert {path.name for path in (studied / "pages").iterdir()} == {
        "mlp-digits-mixed.ipynb", "mlp-digits-joint.ipynb",
    }  # fmt: skip
    results = Results("tiny", studied / "results")
    assert len(results.runs) == 4
    assert set(results.runs["strategy"]) == {"mixed", "joint"}
    assert len(results.exits) == 4 * 5
    assert results.exits["accuracy"].between(0, 1).all()
    # Four rules x five budgets: three ways to share a budget out, and the published protocol.
    assert len(results.budgets) == 4 * 4 * 5 * (3 + 1)
    assert {path.name for path in (studied / "results").iterdir()} == {"runs"}
    for page in (studied / "pages").iterdir():
        assert notebooks.error_outputs(page) == []
        text = page.read_text()
        assert "# MLP on digits" in text
        assert str(studied) not in json.dumps(json.loads(text)["metadata"])


def test_a_second_call_executes_nothing(studied, capfd):
    before = {path: path.stat().st_mtime_ns for path in studied.rglob("*.ipynb")}
    records = records_in(studied)
    for every_page in (False, True):
        assert not execute(studied, every_page=every_page)
        assert "4 of them with a record; 0 to execute" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in studied.rglob("*.ipynb")} == before
    assert records_in(studied) == records


def test_records_from_elsewhere_are_enough_and_only_what_has_none_is_trained(studied, tmp_path, capfd):
    shutil.copytree(studied / "results", tmp_path / "results")
    shutil.copy(studied / "tiny.yaml", tmp_path)
    assert not execute(tmp_path)
    assert "0 to execute" in capfd.readouterr().err
    assert not list(tmp_path.glob("store/*/*"))
    (lost,) = tmp_path.glob("results/runs/mlp-digits-joint-s1-*")
    kept, before = records_in(tmp_path), lost.read_bytes()
    lost.unlink()
    assert not execute(tmp_path)
    assert "1 to execute" in capfd.readouterr().err
    assert [path.name.rsplit("-", 1)[0] for path in tmp_path.glob("store/runs/*")] == ["mlp-digits-joint-s1"]
    # Here, on the same processor, it comes to the same numbers; the others' files are not touched.
    assert records_in(tmp_path).keys() == kept.keys()
    assert agree(Record.from_bytes(lost.read_bytes(), lost), Record.from_bytes(before, lost))
    assert {name: content for name, content in records_in(tmp_path).items() if name != lost.name} == {
        name: content for name, content in kept.items() if name != lost.name
    }


def test_the_book_executes_pages_of_runs_that_have_records(studied, tmp_path, capfd):
    shutil.copytree(studied, tmp_path, dirs_exist_ok=True)
    before = records_in(tmp_path)
    (tmp_path / "pages/mlp-digits-joint.ipynb").unlink()
    assert not execute(tmp_path, every_page=True)
    assert "1 to execute" in capfd.readouterr().err
    assert (tmp_path / "pages/mlp-digits-joint.ipynb").is_file()
    assert records_in(tmp_path) == before


def test_a_failed_run_is_listed_and_does_not_stop_the_others(tmp_path, capfd):
    """One learning rate blows up; the other page and the tables are made all the same."""
    text = STUDY.replace("strategy: [mixed, joint]", "strategy: joint, lr: [0.001, 1.0e30]")
    (tmp_path / "half.yaml").write_text(text.replace("64}", "64, optimizer: sgd, clip: null}"))
    failures = execute(tmp_path, "half.yaml")
    assert len(failures) == 1
    assert "not finite" in failures[0].reason
    assert ".failed.ipynb" in failures[0].reason
    assert len(list((tmp_path / "pages").glob("*.failed.ipynb"))) == 1
    assert len(Records(tmp_path / "results").ids("runs")) == 2


def test_a_study_that_cannot_work_starts_nothing(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.yaml").write_text(STUDY.replace("batch_size: 64", "architecture_args: {depth: 1}"))
    assert main(["run", str(tmp_path / "bad.yaml"), "--store", str(tmp_path / "store")]) == 2
    said = capsys.readouterr().err.strip()
    assert "no place for an early exit" in said
    assert not list((tmp_path / "store").rglob("*.json"))
    for folder in (ROOT / "book/results/bad", ROOT / "book/runs/bad"):
        folder.rmdir()


def test_a_results_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "tiny.yaml").write_text(STUDY)
    (tmp_path / "results").write_text("a file stands here")
    with pytest.raises(ValueError, match=r"results.*cannot be written"):
        execute(tmp_path)


def test_two_pages_of_one_combination_get_two_names(tmp_path):
    (tmp_path / "tiny.yaml").write_text(STUDY.replace("strategy:", "lr: [0.1, 0.2], strategy:"))
    names = [page.target.name for page in pages(load_study(tmp_path / "tiny.yaml"), tmp_path)]
    assert sorted(names) == [
        "mlp-digits-joint-2.ipynb", "mlp-digits-joint.ipynb", "mlp-digits-mixed-2.ipynb", "mlp-digits-mixed.ipynb",
    ]  # fmt: skip


def test_a_page_passes_on_what_differs_from_the_defaults():
    configs = load_study(ROOT / "params/smoke.yaml").pages()[0]
    parameters = Page(tuple(configs), Path("x.ipynb")).parameters
    assert parameters["seeds"] == [0, 1]
    assert "seed" not in parameters
    assert parameters["train_size"] == 400


def papermill(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", str(ROOT / "book/run.ipynb"), str(tmp_path / "out.ipynb"), *arguments]
    environment = {**os.environ, "EESTUDY_HOME": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)


def test_the_notebook_works_by_itself(tmp_path):
    done = papermill(
        tmp_path, "-p", "architecture", "vit1d", "-p", "dataset", "mnist1d", "-p", "strategy", "mixed",
        "-p", "epochs", "2", "-p", "train_size", "200", "-p", "seeds", "[3]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "store/runs").iterdir()] == ["vit1d-mnist1d-mixed-s3"]


def test_the_notebook_refuses_a_parameter_it_does_not_know(tmp_path):
    done = papermill(tmp_path, "-p", "epochz", "2")
    assert done.returncode != 0
    assert "EestudyError: unknown notebook parameter 'epochz'; nearest: epochs" in done.stderr
    assert not (tmp_path / "store/phases").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_study_in_one_line_and_leaves_nothing_running(tmp_path, number):
    (tmp_path / "tiny.yaml").write_text(STUDY.replace("epochs: 2", "epochs: 100000"))
    command = [sys.executable, "-c",
               "import sys; from pathlib import Path; from eestudy import cli; from eestudy.book import run_pages;"
               "from eestudy.study import *; from eestudy.store import Store;"
               "p = Path(sys.argv[1]);"
               "real = run_pages.run_study;"
               "from eestudy.records import Records;"
               "s, r = Store(p / 'store'), Records(p / 'results');"
               "run_pages.run_study = lambda study, _, __, w: real(study, s, r, w, p / 'pages');"
               "sys.exit(cli.main(['run', str(p / 'tiny.yaml')]))", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not list(tmp_path.glob("store/phases/*/config.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number, errors
    assert "interrupted" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    # Nothing is left running, and nothing half-made has a final name.
    while [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(path)]:
        time.sleep(0.2)  # it ends soon or, if something is left, never
    assert not list(tmp_path.glob("pages/*"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
