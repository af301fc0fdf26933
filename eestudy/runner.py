"""A study is many runs: one notebook an architecture, data set and strategy, executed by local processes.

What is done is skipped; a run that fails does not stop the others. No torch is loaded when nothing is left to do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eestudy import notebooks
from eestudy.config import EXIT_RULES, EestudyError, RunConfig
from eestudy.environment import say
from eestudy.grids import Study, project_root
from eestudy.store import Store, write_atomically

TABLES = ("runs.csv", "history.parquet", "exits.csv", "budgets.csv", "tradeoff.csv")
TITLES = {
    "mlp": "MLP", "resnet1d": "ResNet-1D", "vit1d": "ViT-1D", "resnet-tiny": "ResNet-tiny",
    "resnet20": "ResNet-20", "resnet32": "ResNet-32", "resnet56": "ResNet-56", "resnet110": "ResNet-110",
    "resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50", "resnet101": "ResNet-101",
    "wrn-28-10": "WRN-28-10", "vgg16-bn": "VGG-16-BN", "msdnet": "MSDNet", "vit-tiny": "ViT-T", "vit-small": "ViT-S",
    "vit-base": "ViT-B", "efficientnet-v2-s": "EfficientNetV2-S", "convnext-tiny": "ConvNeXt-T",
    "swin-v2-t": "Swin-V2-T", "mobilenet-v3-large": "MobileNetV3-L", "minilm": "MiniLM-L6",
    "digits": "digits", "mnist1d": "MNIST-1D", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100", "svhn": "SVHN", "tiny-imagenet": "Tiny-ImageNet", "imagenette": "Imagenette",
    "imagenet": "ImageNet", "20newsgroups": "20 Newsgroups", "wordnet-supersense": "WordNet supersenses",
    "stsb": "STS-B", "diabetes": "diabetes",
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """One execution of run.ipynb: same settings, one RunConfig a seed."""

    configs: tuple[RunConfig, ...]
    target: Path
    number: int = 1  # among pages of the same architecture, data set and strategy, which differ in something else

    @property
    def title(self) -> str:
        """Such as "ViT-1D on MNIST-1D, mixed"."""
        first = self.configs[0]
        names = [TITLES.get(name, name) for name in (first.architecture, first.dataset)]
        return f"{names[0]} on {names[1]}, {first.strategy}" + (f" ({self.number})" if self.number > 1 else "")

    @property
    def parameters(self) -> dict[str, object]:
        """What papermill passes: the fields that differ from their default, and the seeds."""
        given = self.configs[0].model_dump(mode="json", exclude_defaults=True)
        given.pop("seed", None)
        return {"epochs": self.configs[0].epochs, **given, "seeds": [config.seed for config in self.configs]}


@dataclass(frozen=True)
class Failure:
    """A page that could not be made, and why, with the place of its notebook."""

    title: str
    reason: str


def run_notebook() -> Path:
    """The parameterized notebook of this checkout. EestudyError outside of one."""
    notebook = project_root() / "book" / "run.ipynb"
    if not notebook.is_file():
        raise EestudyError(f"{notebook}: no such file; run eestudy inside a checkout of the study")
    return notebook


def pages(study: Study, runs_dir: Path) -> list[Page]:
    """The study's notebooks, one a combination: those of one architecture, data set and strategy are numbered."""
    made = []
    taken: dict[str, int] = {}
    for configs in study.pages():
        name = "-".join(getattr(configs[0], field) for field in ("architecture", "dataset", "strategy"))
        taken[name] = taken.get(name, 0) + 1
        suffix = f"-{taken[name]}" if taken[name] > 1 else ""
        made.append(Page(tuple(configs), runs_dir / f"{name}{suffix}.ipynb", taken[name]))
    return made


def run_study(
    study: Study,
    workers: int = 1,
    runs_dir: Path | None = None,
    results_dir: Path | None = None,
    store: Path | None = None,
) -> list[Failure]:
    """Executes what is not done and writes the study's tables; returns what failed.

    runs_dir: for the executed notebooks (default book/runs/<study>); results_dir: for the tables (default
    book/results/<study>). The tables hold the runs that worked.
    """
    book = run_notebook().parent
    runs_dir = runs_dir or book / "runs" / study.name
    results_dir = results_dir or book / "results" / study.name
    Store(store).check_writable()
    for folder in (runs_dir, results_dir):
        Store(folder).check_writable()
    source = notebooks.identity(notebooks.source_identity(book / "run.ipynb"), *notebooks.package_files())
    wanted = {page: notebooks.identity(source, page.parameters) for page in pages(study, runs_dir)}
    kept = Store(store)
    todo = [
        page
        for page, made in wanted.items()
        if notebooks.made_from(page.target) != made or not all(_whole(config, kept) for config in page.configs)
    ]
    say(f"study {study.name}: {len(wanted)} notebooks of {len(study.configs)} runs, {len(todo)} to execute")
    if todo:
        _check(todo)
    failures = list(_execute(book / "run.ipynb", todo, wanted, workers, store))
    titles = {failure.title for failure in failures}
    configs = [config for page in wanted if page.title not in titles for config in page.configs]
    made = notebooks.identity(source, [config.id for config in configs])
    if configs and (todo or not _tables_current(results_dir, made)):
        say(f"writing the tables of {len(configs)} runs to {results_dir}")
        _write_tables(configs, kept, results_dir, made)
    return failures


def _whole(config: RunConfig, store: Store) -> bool:
    """Whether the store has the run and its phases as they were written."""
    folder = store.folder("runs", config.id)
    return store.whole(folder) and store.phases_whole(folder)


def _check(todo: list[Page]) -> None:
    """Refuses a study with a run that cannot work before anything is trained."""
    from eestudy.plan import prepare

    for page in todo:
        prepare(page.configs[0])


def _execute(
    notebook: Path, todo: list[Page], wanted: dict[Page, str], workers: int, store: Path | None
) -> Iterator[Failure]:
    executor = notebooks.Executor(workers, store or Store().path)
    started, ended = time.monotonic(), 0
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        futures = {
            pool.submit(executor.execute, notebook, page.target, page.parameters, wanted[page], page.title): page
            for page in todo
        }
        waiting = set(futures)
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                ended += 1
                spent = time.monotonic() - started
                left = spent / ended * (len(todo) - ended)
                reason = future.result()
                word = "failed" if reason else "done"
                more = f", about {_minutes(left)} left" if waiting else ""
                say(f"[{ended}/{len(todo)}] {futures[future].title}: {word} after {_minutes(spent)}{more}")
                if reason:
                    yield Failure(futures[future].title, reason)
    except BaseException:
        executor.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def _tables_current(results_dir: Path, made: str) -> bool:
    """Whether the tables are those that were written from the same, to the byte."""
    try:
        return (results_dir / "made-from.txt").read_text().strip() == _stamp(results_dir, made)
    except OSError:
        return False


def _stamp(results_dir: Path, made: str) -> str:
    return notebooks.identity(made, *(results_dir / name for name in TABLES))


def _write_tables(configs: list[RunConfig], store: Store, results_dir: Path, made: str) -> None:
    from eestudy import study

    runs = [study.Run(config, store) for config in configs]
    groups: dict[str, list[study.Run]] = {}
    for run in runs:
        groups.setdefault(run.config.replace(seed=0).id, []).append(run)
    budgets = [
        study.budgets(group, protocol, rule)
        for group in groups.values()
        for protocol in ("calibrated", "paper")
        for rule in (EXIT_RULES if group[0].task == "classification" else [group[0].exit_rule])
    ]
    tables = {
        "runs.csv": pd.DataFrame([run.summary() for run in runs]),
        "history.parquet": pd.concat([run.history() for run in runs], ignore_index=True),
        "exits.csv": pd.concat([run.exits() for run in runs], ignore_index=True),
        "budgets.csv": pd.concat(budgets, ignore_index=True),
        "tradeoff.csv": study.tradeoffs(runs),
    }
    for name, table in tables.items():
        if name.endswith(".csv"):
            # Six digits: more would only record the last bits of one processor.
            content = table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
        else:
            content = table.to_parquet(index=False)
        write_atomically(results_dir / name, content)
    write_atomically(results_dir / "made-from.txt", f"{_stamp(results_dir, made)}\n".encode())
