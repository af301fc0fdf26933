"""A study trained without notebooks, by worker processes of one thread each; every finished run leaves its record.

A job is all runs of one seed that may share a phase, so that nobody waits for another's lock. A worker that ends one
goes on with another seed of the same runs, for which it has compiled networks already. No torch in this process until
something is left to do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from eestudy.analysis import add_records, grouped
from eestudy.config import RunConfig
from eestudy.environment import say, use_threads
from eestudy.progress import Failure, Progress
from eestudy.records import Records
from eestudy.store import Store, check_writable
from eestudy.study import Study

# What runs may differ in and still share their first phase.
SHARING = {"seed", "strategy", "epochs", "phase_split", "lr_scale"}
# From so many seeds on the step is compiled, once for all of them: for small networks it earns that back.
SEEDS_TO_COMPILE = 4


@dataclass(frozen=True)
class Job:
    """Runs of one seed, for one worker, one after the other. group: equal for the other seeds' jobs."""

    group: str
    compiles: bool  # whether the study has enough seeds of them that the step is compiled
    configs: tuple[RunConfig, ...]
    flops: tuple[float, ...]  # to train each


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know. workers: processes that read image files ahead, of each."""

    store: Store
    records: Records | None
    device: str | None
    workers: int
    compile: str  # "auto": the whole step, on a processor and with seeds enough
    scheduler: str | None = None  # of a Dask cluster, or the options of jobs on Slurm; none: processes on this machine
    slurm: str | None = None
    resources: str = ""  # that a task needs of a worker of the cluster, such as GPU=1


def jobs_of(study: Sequence[RunConfig], todo: Sequence[RunConfig], flops: dict[str, float]) -> list[Job]:
    """The jobs of a study's runs that are `todo`: groups in the study's order, of a group the largest job first.

    flops: of each run's `RunConfig` with seed 0, by id.
    """
    everything = grouped(study, SHARING)
    jobs: list[Job] = []
    for name, group in grouped(todo, SHARING).items():
        compiles = len({config.seed for config in everything[name]}) >= SEEDS_TO_COMPILE
        seeds = {seed: [config for config in group if config.seed == seed] for seed in {c.seed for c in group}}
        own = [
            Job(name, compiles, tuple(runs), tuple(flops[config.replace(seed=0).id] for config in runs))
            for runs in seeds.values()
        ]
        jobs += sorted(own, key=lambda job: (-sum(job.flops), job.configs[0].seed))
    return jobs


def next_job(waiting: Sequence[Job], last: str | None, busy: set[str]) -> Job:
    """What a free worker does: its last job's group again, else one that no worker has, else the first."""
    own = [job for job in waiting if job.group == last]
    free = [job for job in waiting if job.group not in busy]
    return (own or free or list(waiting))[0]


def train_study(study: Study, jobs: int, settings: WorkerSettings) -> list[Failure]:
    """Trains what has no record by `jobs` processes; returns what failed. First EestudyError for unfit settings."""
    settings.store.check_writable()
    records = settings.records
    if records:
        check_writable(records.folder)
        records.sweep()
    todo = [config for config in study.configs if not (records and records.has("runs", config.id))]
    known = f", {len(study.configs) - len(todo)} of them with a record" if records else ""
    say(f"study {study.name}: {len(study.configs)} runs{known}; {len(todo)} to train")
    if not todo:
        return []
    if settings.scheduler or settings.slurm:
        return _train_on_cluster(study, todo, jobs, settings)
    from eestudy.plan import prepare  # torch

    first = {config.replace(seed=0).id: config for config in reversed(todo)}
    waiting = jobs_of(study.configs, todo, {name: prepare(each).training_flops for name, each in first.items()})
    return list(_Pool(min(jobs, len(waiting)), settings).results(waiting))


def _train_on_cluster(study: Study, todo: list[RunConfig], jobs: int, settings: WorkerSettings) -> list[Failure]:
    from eestudy import cluster  # torch

    seeds = {name: len({config.seed for config in group}) for name, group in grouped(study.configs, SHARING).items()}
    compiles = {
        config: "step" if settings.compile == "auto" and settings.device == "cpu" and seeds[name] >= SEEDS_TO_COMPILE
        else settings.compile
        for name, group in grouped(todo, SHARING).items()
        for config in group
    }  # fmt: skip
    resources = cluster.resources_of(settings.resources)
    with cluster.connected(settings.scheduler, settings.slurm, jobs) as client:
        about = settings.store, settings.records, settings.device, resources
        return list(cluster.train_on(client, compiles, *about))


def train_here(study: Study, settings: WorkerSettings) -> None:
    """The same in this process, one run after the other; under `accelerate launch`, each in several at once."""
    from eestudy import runs
    from eestudy.training.execution import execution

    process = execution(settings.device)  # of several processes, one speaks
    for number, config in enumerate(study.configs, 1):
        lacking = process.agreed(process.main and not (settings.records and settings.records.has("runs", config.id)))
        if process.main:
            say(f"[{number}/{len(study.configs)}] {config.id}{'' if lacking else ': has a record'}")
        if not lacking:
            continue
        run = runs.run(config, settings.store, settings.device, settings.workers, settings.compile)
        if process.main:
            print(run.exits().drop(columns="run").to_string(index=False, float_format="%.4g"), flush=True)
            if settings.records:
                add_records([config], settings.store, settings.records)


class _Pool:
    """Worker processes, each at the other end of a pipe."""

    def __init__(self, size: int, settings: WorkerSettings) -> None:
        self.settings = settings
        self.processes: dict[Connection, SpawnProcess] = {}
        self.doing: dict[Connection, tuple[Job, set[str]]] = {}  # and the ids of what it has ended of it
        for _ in range(size):
            self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_work, args=(theirs, self.settings))
        # A worker hears of Ctrl-C from us alone, and not before it is ready to save its state.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        theirs.close()
        self.processes[ours] = process

    def results(self, jobs: list[Job]) -> Iterator[Failure]:
        """Has all jobs done; says a line and yields a failure as they come."""
        progress = Progress({run.id: flops for job in jobs for run, flops in zip(job.configs, job.flops, strict=True)})
        waiting, last = list(jobs), dict.fromkeys(self.processes, "")
        try:
            while self.processes:
                for end in wait(list(self.processes)):
                    assert isinstance(end, Connection)
                    try:
                        run_id, reason = end.recv()
                    except (EOFError, OSError):
                        yield from self._died(end, progress)
                        if waiting:
                            self._start()
                        continue
                    if run_id is not None:
                        self.doing[end][1].add(run_id)
                        progress.ended(run_id, reason is not None)
                        if reason:
                            yield Failure(run_id, reason)
                        continue
                    self.doing.pop(end, None)
                    if waiting:
                        busy = {job.group for job, _ in self.doing.values()}
                        job = next_job(waiting, last.get(end), busy)
                        waiting.remove(job)
                        last[end], self.doing[end] = job.group, (job, set())
                        end.send(job)
                    else:
                        self._dismiss(end)
        except BaseException:
            self._stop()
            raise

    def _dismiss(self, end: Connection) -> None:
        end.close()
        self.processes.pop(end).join()

    def _died(self, end: Connection, progress: Progress) -> Iterator[Failure]:
        """What a worker leaves undone that the system killed, for want of memory as a rule."""
        process = self.processes[end]
        self._dismiss(end)
        job, ended = self.doing.pop(end, (None, set()))
        for config in job.configs if job else ():
            if config.id not in ended:
                progress.ended(config.id, failed=True)
                yield Failure(config.id, f"its process ended with status {process.exitcode}")
        if job is None:
            raise RuntimeError(f"a worker process ended with status {process.exitcode} before it did anything")

    def _stop(self) -> None:
        """Lets all save their state and end; a second Ctrl-C does not wait for that."""
        for process in self.processes.values():
            if process.pid and process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        try:
            for end in list(self.processes):
                self._dismiss(end)
        finally:
            for process in self.processes.values():
                process.kill()


def _work(end: Connection, settings: WorkerSettings) -> None:
    """A worker: says that it is free, gets a job, says what came of each run; until nobody has another."""
    # Progress bars of several processes would write over each other: no terminal, no bar.
    sys.stderr.isatty = lambda: False  # type: ignore[method-assign]
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C at the terminal would come twice: a second one does not wait for the state to be saved
    os.environ["OMP_NUM_THREADS"] = "1"
    use_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        while True:
            end.send((None, None))
            job = end.recv()
            for config in job.configs:
                end.send((config.id, _trained(config, settings, job.compiles)))
    except (KeyboardInterrupt, EOFError, OSError):  # stopped; nothing left to do; or the first process is gone
        return


def _end_with_parent() -> None:
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)


def _trained(config: RunConfig, settings: WorkerSettings, compiles: bool) -> str | None:
    """Trains a run and adds its record; one line where that fails."""
    from eestudy import runs
    from eestudy.training.execution import execution

    try:
        on_processor = execution(settings.device).device.type == "cpu"
        compiled = "step" if settings.compile == "auto" and compiles and on_processor else settings.compile
        runs.run(config, settings.store, settings.device, settings.workers, compiled)
        if settings.records:
            add_records([config], settings.store, settings.records)
    except Exception as error:  # noqa: BLE001  (it must not stop the others)
        text = " ".join(str(error).split())
        return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
    return None
