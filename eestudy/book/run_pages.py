"""A study is many runs: one notebook per architecture, data set and strategy, executed by local processes.

Each finished run leaves a record; a study whose records are there is done, whichever machine made them. A run that
fails does not stop the others. No torch is loaded when nothing is left to do.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from eestudy.analysis import add_records
from eestudy.book import inputs, notebooks
from eestudy.config import EestudyError, RunConfig
from eestudy.environment import say
from eestudy.progress import Failure, Progress
from eestudy.records import Records
from eestudy.registry import ARCHITECTURES, DATASETS
from eestudy.store import Store, check_writable
from eestudy.study import Study, project_root


@dataclass(frozen=True)
class Page:
    """One execution of run.ipynb: same settings, one RunConfig per seed."""

    configs: tuple[RunConfig, ...]
    target: Path
    number: int = 1  # among pages of the same architecture, data set and strategy, which differ in something else

    @property
    def title(self) -> str:
        """Such as "ViT-1D on MNIST-1D, mixed"."""
        first = self.configs[0]
        names = ARCHITECTURES.title(first.architecture), DATASETS.title(first.dataset)
        return f"{names[0]} on {names[1]}, {first.strategy}" + (f" ({self.number})" if self.number > 1 else "")

    @property
    def parameters(self) -> dict[str, object]:
        """What papermill passes: the fields that differ from their default, and the seeds."""
        given = self.configs[0].model_dump(mode="json", exclude_defaults=True)
        given.pop("seed", None)
        return {"epochs": self.configs[0].epochs, **given, "seeds": [config.seed for config in self.configs]}


def pages(study: Study, runs_dir: Path) -> list[Page]:
    """The study's notebooks, one a combination: those of one architecture, data set and strategy are numbered."""
    made, taken = [], Counter[str]()
    for configs in study.pages():
        name = "-".join(getattr(configs[0], field) for field in ("architecture", "dataset", "strategy"))
        taken[name] += 1
        suffix = f"-{taken[name]}" if taken[name] > 1 else ""
        made.append(Page(tuple(configs), runs_dir / f"{name}{suffix}.ipynb", taken[name]))
    return made


def run_study(
    study: Study,
    store: Store,
    records: Records,
    workers: int = 1,
    runs_dir: Path | None = None,
    every_page: bool = False,
) -> list[Failure]:
    """Executes the runs that have no record and adds theirs, one page after the other; returns what failed.

    runs_dir: for the executed notebooks (default book/runs/<study>). every_page: the book wants all notebooks, also of
    runs whose records are there; what the store lacks of these is trained, and their records stay as they are.
    """
    book = project_root() / "book"
    if not (book / "run.ipynb").is_file():
        raise EestudyError(f"{book / 'run.ipynb'}: no such file; run eestudy inside a checkout of the study")
    runs_dir = runs_dir or book / "runs" / study.name
    for folder in (store.path, runs_dir, records.folder):
        check_writable(folder)
    records.sweep()
    source = inputs.identity(inputs.source_identity(book / "run.ipynb"), *inputs.package_files())
    todo: dict[Page, str] = {}
    for page in pages(study, runs_dir):
        lacking = tuple(config for config in page.configs if not records.has("runs", config.id))
        wanted = page if every_page else replace(page, configs=lacking)
        if lacking or (every_page and inputs.made_from(page.target) != inputs.identity(source, page.parameters)):
            todo[wanted] = inputs.identity(source, wanted.parameters)
    recorded = sum(records.has("runs", config.id) for config in study.configs)
    say(
        f"study {study.name}: {len(study.pages())} notebooks of {len(study.configs)} runs, {recorded} of them with a "
        f"record; {len(todo)} to execute"
    )
    for page in todo:
        from eestudy.plan import prepare  # torch: only where something is left to do

        _ = prepare(page.configs[0]).data  # what cannot work and files that lack are refused now, not after hours
    return list(_execute(book / "run.ipynb", todo, workers, store, records))


def _execute(notebook: Path, todo: dict[Page, str], workers: int, store: Store, records: Records) -> Iterator[Failure]:
    progress = Progress({page.title: 1.0 for page in todo})
    executions = {page: (notebook, page.target, page.parameters, made, page.title) for page, made in todo.items()}
    for page, reason in notebooks.Executor(workers, store).execute_all(executions):
        try:
            add_records(page.configs, store, records)  # of a page that failed, those of its runs that did not
        except EestudyError as error:
            reason = reason or str(error)
        progress.ended(page.title, reason is not None)
        if reason:
            yield Failure(page.title, reason)
