"""A real Dask scheduler with worker processes on loopback: killed, late, cut off and unfit ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import eestudy
from eestudy import cluster
from eestudy.analysis.run_record import record_of
from eestudy.cli import main
from eestudy.config import EestudyError
from eestudy.progress import Failure
from eestudy.records import Records, agree
from eestudy.runs import Run
from eestudy.store import Store
from eestudy.study import load_study

from .processes import bits, different

pytest.importorskip("distributed", reason="it comes with: pip install 'eestudy[cluster]'")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
GENEROUS = 240.0  # seconds for what takes one or two on an idle machine
ROOT = Path(__file__).parents[1]
STUDY = """
seeds: [0, 1]
common: {architecture: mlp, dataset: digits, epochs: 150, train_size: 300, batch_size: 64, checkpoints: [0, 100]}
grid:
  - {strategy: [disjoint, mixed]}
  - {strategy: joint, optimizer: sgd, clip: null, schedule: constant, warmup: 0, lr: [1.0e+30]}
"""


def until(condition):
    """What `condition` gives as soon as that is true."""
    end = time.monotonic() + GENEROUS
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


class Cluster:
    """A scheduler, and workers each with a store of its own."""

    def __init__(self, folder):
        self.folder, self.processes = folder, {}
        told = folder / "scheduler.json"
        self.start("scheduler", "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", told,
                   "--no-dashboard")  # fmt: skip
        self.address = until(lambda: told.is_file() and __import__("json").loads(told.read_text() or "{}"))["address"]

    def start(self, name, program, *arguments, **environment):
        command = [sys.executable, "-m", f"distributed.cli.{program}", *map(str, arguments)]
        path = environment.pop("first", "") + os.pathsep * ("first" in environment)
        paths = os.pathsep.join(filter(None, [path, str(ROOT), os.environ.get("PYTHONPATH")]))
        home = {"EESTUDY_HOME": str(self.folder / name), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                command, env={**os.environ, **home}, cwd=self.folder, stdout=log, stderr=log
            )

    def worker(self, name, **environment):
        local = ("--local-directory", self.folder / f"{name}-local", "--no-dashboard")
        self.start(name, "dask_worker", self.address, "--no-nanny", "--nthreads", 1, *local, **environment)

    def phases(self, name, file):
        return {path.parent.name for path in (self.folder / name / "phases").glob(f"*/{file}")}

    def kill_in_a_phase(self):
        """kill -9 of a worker that has begun a phase and not ended it: its name, and the phase's."""

        def caught():
            for name in ("one", "two"):
                os.kill(self.processes[name].pid, signal.SIGSTOP)
                if begun := self.phases(name, "checkpoint-000.safetensors") - self.phases(name, "summary.json"):
                    os.kill(self.processes[name].pid, signal.SIGKILL)
                    return name, *begun
                os.kill(self.processes[name].pid, signal.SIGCONT)
            return None

        return until(caught)

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def machines(tmp_path):
    made = Cluster(tmp_path)
    yield made
    made.end()


def test_a_study_survives_what_happens_to_its_cluster(machines, tmp_path):
    (tmp_path / "tiny.yaml").write_text(STUDY)
    study = load_study(tmp_path / "tiny.yaml")
    store, records = Store(tmp_path / "here"), Records(tmp_path / "results")
    failures: list[Failure] = []
    raised: list[BaseException] = []
    machines.worker("one")
    machines.worker("two")
    with cluster.connected(machines.address, None, 0) as client:

        def train():
            try:
                failures.extend(cluster.train_on(client, dict.fromkeys(study.configs, "never"), store, records, "cpu"))
            except BaseException as error:  # noqa: BLE001
                raised.append(error)

        driver = threading.Thread(target=train)
        driver.start()
        killed, lost = machines.kill_in_a_phase()
        machines.worker("late")
        until(lambda: store.done("phases") or raised)
        client.loop.add_callback(client.scheduler_comm.comm.abort)  # the connection; it comes back by itself
        until(lambda: machines.phases("late", "summary.json") or raised or not driver.is_alive())
        driver.join(GENEROUS)
        assert not driver.is_alive()
    assert not raised
    bad = {config.id for config in study.configs if config.strategy == "joint"}
    assert {failure.title for failure in failures} == bad
    assert all("not finite" in failure.reason for failure in failures)
    assert machines.phases("late", "summary.json")
    assert lost in store.done("phases")
    assert lost not in machines.phases(killed, "summary.json")
    for phase in store.done("phases"):  # a summary has the seconds that the training took
        made = {path.read_bytes() for path in tmp_path.glob(f"*/phases/{phase}/summary.json")}
        assert len(made) == 1, f"{phase} was trained {len(made)} times"
    for config in study.configs:
        if config.id not in bad:
            local = eestudy.run(config, store=tmp_path / "local", device="cpu", compile="never")
            assert not different(bits(config, store.path), bits(config, tmp_path / "local"))
            assert agree(records.one("runs", config.id), record_of(local, local._store))


def test_what_cannot_work_is_said_before_anything_is_trained(machines, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(STUDY)
    other = tmp_path / "other" / "eestudy-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: eestudy\nVersion: 9.9\n")
    machines.worker("unfit", first=str(other.parent))
    command = ["train", str(tmp_path / "tiny.yaml"), "--store", str(tmp_path / "here"), "--device", "cpu"]
    for arguments, expected in (
        (["--scheduler", machines.address], "has eestudy 9.9, this process eestudy"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (["--slurm", "partitoin=gpu"], "'partitoin=gpu' is not an option; nearest: partition"),
    ):
        assert main([*command, *arguments]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("eestudy: ")
        assert expected in line
        assert not list((tmp_path / "here").glob("*/*"))


def test_a_bundle_that_changed_on_its_way_is_refused(small_run, tmp_path):
    made: Run = small_run("mlp", "digits", "joint")
    content = bytearray(cluster.bundles.pack([made.folder]))
    content[len(content) // 3] ^= 1
    with pytest.raises(EestudyError, match=r"is not as it was exported|damaged"):
        cluster.bundles.unpack(bytes(content), Store(tmp_path))
    assert not list(tmp_path.iterdir())
