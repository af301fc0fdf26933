"""The one way from a study's trained runs to the records of its analyses.

What takes long is kept in the store: the same command goes on where it was stopped. What has a record is not asked for
again, whatever the store holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from eestudy.analysis import cells_of
from eestudy.analysis.evaluations import CellEvaluation, RunEvaluation
from eestudy.analysis.measurements import Measurement, measurements
from eestudy.analysis.metrics import METRICS
from eestudy.config import EestudyError, RunConfig, check_name
from eestudy.environment import say
from eestudy.progress import Failure, Progress, shared
from eestudy.records import Records
from eestudy.store import Store
from eestudy.study import Study

# Something to measure of some runs: made once for all tasks of one folder in the store, then a record each.
Task = Measurement | RunEvaluation | CellEvaluation
# Name -> what of a study's runs is to be done for it. Of METRICS, how and where each is measured is said there.
ANALYSES: dict[str, Callable[[Sequence[RunConfig], Store], Iterable[Task]]] = {
    **{name: partial(measurements, metric=name) for name in METRICS},
    "predictions": lambda configs, store: (RunEvaluation((config,)) for config in configs),
    "comparison": lambda configs, store: (CellEvaluation(tuple(cell)) for cell in cells_of(configs)),
}
EVALUATIONS = ("predictions", "comparison")
QUIET = 20.0  # seconds between two lines of progress


def analyse_study(
    study: Study, names: Sequence[str], store: Store, records: Records, workers: int = 1
) -> list[Failure]:
    """Makes what of these analyses has no record, and adds that; returns what failed. Equal weights are measured once.

    Raises EestudyError for a name that is not in ANALYSES, and for runs that are needed and not in the store, with what
    makes them.
    """
    for name in names:
        check_name("metric", name, ANALYSES)
    store.check_writable()
    if not set(names) <= set(EVALUATIONS):  # how far phases came that end by patience, the store alone knows
        check_trained([config for config in study.configs if config.match == "patience"], study, store)
    wanted = [task for name in names for task in ANALYSES[name](study.configs, store)]
    new = [task for task in wanted if not records.has(task.kind, task.id)]
    check_trained([config for task in new for config in task.configs], study, store)
    by_folder: dict[str, list[Task]] = {}
    for task in new:
        by_folder.setdefault(task.folder(store).id, []).append(task)
    todo = {tasks[0]: tasks for tasks in by_folder.values() if not store.whole(tasks[0].folder(store))}
    say(f"study {study.name}: {len(wanted)} measurements, {len(todo)} to make")
    kept = [task for tasks in by_folder.values() if tasks[0] not in todo for task in tasks]
    for task in kept:
        records.add(task.record(store))
    progress, failures = Progress({task.id: 1.0 for task in todo}, QUIET), []
    for made, error in shared(partial(keep, store=store), list(todo), workers):
        progress.ended(made.id, error is not None)
        if error:
            runs = ", ".join(config.id for config in made.configs)
            failures.append(Failure(f"{made.analysis} of {runs}", str(error)))
            continue
        for task in todo[made]:
            records.add(task.record(store))
    return failures


def keep(task: Task, store: Store) -> None:
    """Makes what is not in the store yet, whole."""
    folder = task.folder(store)
    with folder.lock(say):
        if not store.usable(folder):
            task.fill(folder, store)
            folder.finish()


def check_trained(configs: Iterable[RunConfig], study: Study, store: Store) -> None:
    """EestudyError for runs that are not in the store, with what makes them."""
    missing = [config.id for config in dict.fromkeys(configs) if not store.folder("runs", config.id).done()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise EestudyError(f"{missing[0]}{more}: not trained yet; make with: eestudy run params/{study.name}.yaml")
