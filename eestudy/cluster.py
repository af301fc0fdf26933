"""A study's phases by the workers of a Dask cluster, which need no file system in common with this process.

A task is a phase, or a run whose phases are done. It takes along, as one bundle (`bundles`), what the worker's own
store may lack, and brings back what it made. What came back is in the store here, so that nothing is lost with a
worker, a scheduler or this process. Dask moves tasks by pickle: use a cluster whose members you trust.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eestudy import bundles
from eestudy.analysis import add_records
from eestudy.config import EestudyError, RunConfig, nearest
from eestudy.environment import say, use_threads, versions
from eestudy.extras import needed
from eestudy.plan import Plan, outlined, prepare
from eestudy.progress import Failure, Progress
from eestudy.records import Records
from eestudy.store import Store, check_writable

SLURM = {"partition": "queue", "time": "walltime", "account": "account", "memory": "memory", "cores": "cores"}
PATIENCE = 300.0  # seconds that a cluster without workers, or without its scheduler, is waited for
LOOK_EVERY = 2.0  # seconds between two looks at which workers there are
_ALONE = threading.Lock()  # torch's random numbers and threads are a process's, and a worker may have many threads


@dataclass(frozen=True)
class Task:
    """What a worker gets. number: of the phase; None: predictions and record of the whole run, if all are done."""

    config: RunConfig
    number: int | None
    compile: str
    device: str | None
    made_with: tuple[str, ...]  # versions
    shared: tuple[str, str]  # this process's store, and a file in it by which a worker knows it


class UnfitWorker(EestudyError):
    """A task that another worker may do."""


@contextmanager
def connected(scheduler: str | None, slurm: str | None, workers: int) -> Iterator[Any]:
    """A distributed Client. EestudyError in one line for no scheduler there, and options that Slurm does not have."""
    distributed = needed("distributed", "cluster")
    cluster = None
    if slurm is not None:
        jobqueue = needed("dask_jobqueue", "cluster")
        cluster = jobqueue.SLURMCluster(**slurm_settings(slurm))
        cluster.scale(jobs=workers)
    try:
        distributed.Client(cluster or scheduler, timeout="10s", set_as_default=False).close()
        # Its timeout is also how long it tries to connect again.
        client = distributed.Client(cluster or scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise EestudyError(f"scheduler: no Dask scheduler answers at {scheduler} ({type(error).__name__})") from None
    try:
        yield client
    finally:
        client.close()
        if cluster:
            cluster.close()


def slurm_settings(text: str) -> dict[str, Any]:
    """`partition=gpu,gres=gpu:1,time=8:00:00` as SLURMCluster's arguments: one process and thread a job."""
    settings: dict[str, Any] = {"cores": 1, "processes": 1, "memory": "8GB", "job_extra_directives": []}
    for each in text.split(","):
        name, _, value = each.partition("=")
        if not value or name not in {*SLURM, "gres"}:
            raise EestudyError(f"slurm: {each!r} is not an option; {nearest(name, [*SLURM, 'gres'])}")
        if name == "gres":
            settings["job_extra_directives"].append(f"--gres={value}")
        else:
            settings[SLURM[name]] = int(value) if name == "cores" else value
    return settings


def resources_of(text: str) -> dict[str, float]:
    """`GPU=1` as Dask has it."""
    pairs = [each.partition("=") for each in text.split(",") if each]
    try:
        return {name: float(value) for name, _, value in pairs}
    except ValueError:
        raise EestudyError(f"resources: {text!r} is not valid; give such as GPU=1") from None


def train_on(
    client: Any,
    todo: Mapping[RunConfig, str],
    store: Store,
    records: Records | None,
    device: str | None,
    resources: dict[str, float] | None = None,
) -> Iterator[Failure]:
    """Trains these runs (config -> how its steps are compiled), each phase once; yields what failed.

    EestudyError, before anything is trained, for workers that cannot.
    """
    store.check_writable()
    key = f".here-{secrets.token_hex(8)}"
    (store.path / key).touch()
    try:
        about = device, _made_with(), (str(store.path.resolve()), key)
        tasks = {config: Task(config, None, how, *about) for config, how in todo.items()}
        check_workers(client, list(tasks.values()))
        yield from _Driver(client, store, key, resources or {}).all(tasks, records)
    finally:
        (store.path / key).unlink(missing_ok=True)


def check_workers(client: Any, tasks: Sequence[Task]) -> None:
    """EestudyError where no worker comes, or one of them cannot train what the tasks are about."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise EestudyError(f"scheduler: no worker has come in {PATIENCE:.0f} s; start some: dask worker") from None
    of_data = {(t.config.dataset, t.config.train_size, str(t.config.dataset_args)): t for t in tasks}
    for worker, problem in client.run(_unfit, list(of_data.values())).items():
        if problem:
            raise EestudyError(f"worker {worker}: {problem}")


def _unfit(tasks: list[Task]) -> str | None:
    """On a worker: what keeps it from these, in one line."""
    for task in tasks:
        if differing := sorted({*_made_with()} - {*task.made_with}):
            return f"has {', '.join(differing)}, this process {', '.join(task.made_with)}; give both the same"
        try:
            check_writable(_store(task).path)
            _ = prepare(task.config).data
        except EestudyError as error:
            return str(error)
    return None


def _made_with() -> tuple[str, ...]:
    return tuple(each for each in versions().split("; ") if each.split()[0] in ("eestudy", "torch"))


def _store(task: Task) -> Store:
    """The client's store where that is on this machine too; else $EESTUDY_HOME, or a folder of the worker's own."""
    path, key = task.shared
    own = os.environ.get("EESTUDY_HOME")
    if own in (None, path) and (Path(path) / key).is_file():
        return Store(path)
    return Store(own or Path(needed("distributed", "cluster").get_worker().local_directory) / "eestudy")


def work(task: Task, luggage: bytes) -> bytes:
    """On a worker: does the task; returns a bundle of what that made, nothing if the store is shared."""
    from eestudy import runs
    from eestudy.training.execution import execution

    with _ALONE:
        if problem := _unfit([task]):  # of a worker that came late, or whose disk is full by now
            raise UnfitWorker(needed("distributed", "cluster").get_worker().address, problem)
        store, config = _store(task), task.config
        how = execution(task.device, 0, task.compile)
        if how.device.type == "cpu":
            use_threads(1)
        bundles.unpack(luggage, store)
        plan = prepare(config)
        if task.number is None:
            made = [store.folder("runs", runs.run(config, store, task.device, 0, task.compile).id)]
        else:
            for number in range(task.number + 1):  # those before are loaded
                runs.train_or_load(store, plan, number, plan.phase_ids[number], plan.model, how)
            made = [store.folder("phases", plan.phase_ids[task.number])]
        return b"" if str(store.path) == task.shared[0] else bundles.pack(made)


class _Driver:
    """Submits what can be done and takes in what is done."""

    def __init__(self, client: Any, store: Store, key: str, resources: dict[str, float]) -> None:
        self.client, self.store, self.key, self.resources = client, store, key, resources
        self.done = store.done("phases") | store.done("runs")
        self.running: dict[Any, str] = {}  # by future: the phase or run that it makes
        self.unfit: dict[str, set[str]] = {}  # workers that cannot make a thing
        self.failed: dict[str, str] = {}
        self.changed = threading.Event()

    def all(self, tasks: Mapping[RunConfig, Task], records: Records | None) -> Iterator[Failure]:
        """Has all runs made: phases of backbones alone first, which others wait for, then the longest."""
        plans = {config: outlined(config) for config in tasks}
        progress = Progress({config.id: plan.training_flops for config, plan in plans.items()})
        waiting = {config.id: config for config in tasks}
        try:
            while waiting:
                free: dict[str, tuple[float, Task, Plan]] = {}
                for run_id, config in list(waiting.items()):
                    number = next(
                        (n for n, phase in enumerate(plans[config].phase_ids) if phase not in self.done), None
                    )
                    name = run_id if number is None else plans[config].phase_ids[number]
                    if run_id in self.done or name in self.failed:
                        del waiting[run_id]
                        if records:
                            add_records([config], self.store, records)
                        progress.ended(run_id, name in self.failed)
                        if name in self.failed:
                            yield Failure(run_id, self.failed[name])
                    elif name not in self.running.values():
                        plan = plans[config]
                        free.setdefault(name, (_urgency(plan, number), replace(tasks[config], number=number), plan))
                workers = self._workers()
                room = max(0, 2 * len(workers) - len(self.running))  # a late worker finds something to do
                for name in sorted(free, key=lambda each: -free[each][0])[:room]:
                    self._submit(name, *free[name], workers)
                for future in self._ended():
                    self._take(future, self.running.pop(future))
        except BaseException:
            self.client.cancel(list(self.running), force=True)
            raise

    def _workers(self) -> set[str]:
        """Addresses of the workers that there are now; none while the connection to the scheduler is lost."""
        if self.client.status == "closed":
            raise EestudyError("scheduler: is gone; what is done is kept, the same command goes on from there")
        with suppress(OSError, TimeoutError):
            return set(self.client.scheduler_info(n_workers=-1)["workers"])
        return set()

    def _submit(self, name: str, urgency: float, task: Task, plan: Plan, workers: set[str]) -> None:
        unfit = self.unfit.get(name, set())
        luggage = bundles.pack([self.store.folder("phases", phase) for phase in plan.phase_ids[: task.number]])
        # Under the same key it is asked for again after a lost connection: what still runs then is not begun anew.
        future = self.client.submit(
            work, task, luggage, key=f"{name}-{self.key}-{len(unfit)}", resources=self.resources,
            priority=urgency, workers=sorted(workers - unfit) if unfit else None,
        )  # fmt: skip
        needed("distributed", "cluster").fire_and_forget(future)
        future.add_done_callback(lambda _: self.changed.set())
        self.running[future] = name

    def _ended(self) -> list[Any]:
        """What ended; waits until something does, or for LOOK_EVERY."""
        self.changed.wait(LOOK_EVERY)
        self.changed.clear()
        return [future for future in self.running if future.done()]

    def _take(self, future: Any, name: str) -> None:
        """What a task made into the store here. What was lost on the way is asked for again."""
        try:
            bundles.unpack(future.result(timeout=PATIENCE), self.store)
            self.done.add(name)
        except CancelledError:
            say(f"{name}: the connection to the scheduler was lost; asked for again")
        except UnfitWorker as error:
            address, reason = error.args
            self.unfit.setdefault(name, set()).add(address)
            if self._workers() <= self.unfit[name]:
                self.failed[name] = f"worker {address}: {reason}"
        except Exception as error:  # noqa: BLE001  (it must not stop the others)
            self.failed[name] = " ".join(str(error).split()) or type(error).__name__


def _urgency(plan: Plan, number: int | None) -> float:
    """More is sooner: ending a run costs little, others wait for a backbone alone; then what takes longest."""
    if number is None:
        return 2e9
    phase = plan.phases[number]
    gflops = plan.step_flops[phase.name] * phase.settings.epochs * plan.outline.train / 1e9
    return min(gflops, 9e8) + (0 if phase.uses_heads else 1e9)
