"""A study trained by worker processes: what they get, what they leave, and how they end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eestudy import jobs
from eestudy.cli import main
from eestudy.config import RunConfig
from eestudy.jobs import WorkerSettings, jobs_of, next_job, train_study
from eestudy.records import Records, folder_for
from eestudy.store import Store
from eestudy.study import Study, load_study

STUDY = """
seeds: [0, 1]
common: {epochs: 2, train_size: 300, batch_size: 64}
grid:
  - {architecture: mlp, dataset: digits, strategy: [disjoint, mixed]}
"""


def configs(**changes):
    settings = {"architecture": "mlp", "dataset": "digits", "strategy": "mixed", **changes}
    return [RunConfig(**settings, seed=seed) for seed in range(3)]


def test_a_job_is_all_runs_of_a_seed_that_may_share_a_phase():
    small = [*configs(), *configs(strategy="disjoint"), *configs(epochs=40, phase_split=0.25)]
    large = configs(architecture_args={"width": 96})
    flops = {config.replace(seed=0).id: 9.0 if config in large else 1.0 for config in (*small, *large)}
    found = jobs_of([*small, *large], [*small, *large], flops)
    assert [len(job.configs) for job in found] == [3, 3, 3, 1, 1, 1]  # as they come in the study
    assert [job.configs[0].seed for job in found] == [0, 1, 2, 0, 1, 2]
    assert {config.seed for config in found[1].configs} == {1}
    assert not any(job.compiles for job in found)
    assert all(job.compiles for job in jobs_of([*small, *small[:1], small[0].replace(seed=3)], small, flops))
    # A worker stays with what it has compiled; a new one takes what nobody has.
    assert next_job(found[1:], found[0].group, {found[3].group}) is found[1]
    assert next_job(found[1:], "", {found[0].group}) is found[3]
    assert next_job(found[1:3], found[3].group, {found[0].group}) is found[1]


def settings(folder: Path) -> WorkerSettings:
    return WorkerSettings(Store(folder / "store"), Records(folder / "results"), "cpu", 0, "never")


def test_workers_train_a_study_and_leave_its_records(tmp_path, capfd):
    (tmp_path / "tiny.yaml").write_text(STUDY)
    study = load_study(tmp_path / "tiny.yaml")
    bad = RunConfig(architecture="mlp", dataset="digits", strategy="joint", optimizer="sgd", lr=1e30, clip=None,
                    schedule="constant", warmup=0, epochs=2, train_size=300, batch_size=64)  # fmt: skip
    (failure,) = train_study(Study("tiny", (*study.configs, bad)), 2, settings(tmp_path))
    assert failure.title == bad.id
    assert "not finite" in failure.reason
    said = capfd.readouterr().err
    assert "0 of them with a record; 5 to train" in said
    assert "[5/5] " in said
    assert "waiting for it" not in said
    records = Records(tmp_path / "results")
    assert records.ids("runs") == sorted(config.id for config in study.configs)
    assert {record.facts["made"]["threads"] for record in records.read("runs")} == {1}
    assert not train_study(study, 2, dataclasses.replace(settings(tmp_path), store=Store(tmp_path / "empty")))
    assert "4 of them with a record; 0 to train" in capfd.readouterr().err
    assert not list((tmp_path / "empty").glob("*/*"))


def test_a_worker_that_the_system_kills_is_a_failure_and_is_replaced(tmp_path, capfd):
    script = (
        "import os, sys; from pathlib import Path; from eestudy import jobs, runs; from eestudy.study import *;"
        "from eestudy.records import Records; from eestudy.store import Store\n"
        "real = runs.run\n"
        "def run(config, *rest):\n"
        "    if config.seed == 0 and config.strategy == 'mixed':\n"
        "        os._exit(9)\n"
        "    return real(config, *rest)\n"
        "runs.run = run\n"
        "if __name__ == '__main__':\n"
        "    p = Path(sys.argv[1])\n"
        "    settings = jobs.WorkerSettings(Store(p / 'store'), Records(p / 'results'), 'cpu', 0, 'never')\n"
        "    for failure in jobs.train_study(load_study(p / 'tiny.yaml'), 1, settings): print(failure.title)\n"
    )
    (tmp_path / "tiny.yaml").write_text(STUDY)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.rsplit("-", 1)[0] for line in done.stdout.split()] == ["mlp-digits-mixed-s0"]
    assert "its process ended with status 9" not in done.stdout
    assert len(Records(tmp_path / "results").ids("runs")) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_the_workers_do_and_leaves_nothing_running(tmp_path, number):
    (tmp_path / "tiny.yaml").write_text(STUDY.replace("epochs: 2", "epochs: 100000"))
    command = [sys.executable, "-m", "eestudy", "train", str(tmp_path / "tiny.yaml"), "--jobs", "2",
               "--store", str(tmp_path / "store")]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    while process.poll() is None and len(list(tmp_path.glob("store/phases/*/checkpoint-000.safetensors"))) < 2:
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "interrupted" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    assert len(list(tmp_path.glob("store/phases/*/state-*.safetensors"))) == 2
    for path in tmp_path.glob("store/phases/*"):
        assert Store(tmp_path / "store").folder("phases", path.name).verify() is None


def test_train_adds_records_of_a_study_in_params_alone(tmp_path, monkeypatch, capsys):
    checkout = tmp_path / "checkout"
    (checkout / "params/deep").mkdir(parents=True)
    (checkout / "_config.yml").touch()
    text = STUDY.replace("[disjoint, mixed]", "joint").replace("[0, 1]", "[0]")
    (checkout / "params/deep/tiny.yaml").write_text(text)
    (checkout / "other.yaml").write_text(text)
    monkeypatch.chdir(checkout)
    assert folder_for(Path("params/deep/tiny.yaml")) == checkout / "book/results/tiny"
    assert folder_for(Path("other.yaml")) is None
    assert main(["train", "other.yaml", "--store", str(tmp_path / "store")]) == 0
    assert not (checkout / "book").exists()
    assert main(["train", "params/deep/tiny.yaml", "--store", str(tmp_path / "store")]) == 0
    assert len(Records(checkout / "book/results/tiny").ids("runs")) == 1
    capsys.readouterr()
    assert main(["train", "params/deep/tiny.yaml", "--store", str(tmp_path / "none")]) == 0
    assert "has a record" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("asked", "many", "expected"), [("auto", True, "step"), ("auto", False, "no"),
                                                         ("never", True, "no")])  # fmt: skip
def test_auto_compiles_the_step_of_many_seeds(tmp_path, asked, many, expected):
    (config,) = configs(strategy="joint", epochs=1, train_size=200, batch_size=64)[:1]
    assert jobs._trained(config, WorkerSettings(Store(tmp_path), None, "cpu", 0, asked), many) is None
    (found,) = tmp_path.glob("phases/*/environment.json")
    assert json.loads(found.read_text())["compiled"] == expected
