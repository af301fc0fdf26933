"""The command line; `COMMANDS` lists what there is.

Exit status: 0, 1 (a run failed; doctor found damage), 2 (a mistake in what was given), 130 (Ctrl-C), 128 + n (ended
by signal n: SIGTERM, as schedulers send it, or SIGHUP, of a closed terminal).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eestudy.config import EestudyError
from eestudy.stopping import ended_like_ctrl_c, for_minutes

if TYPE_CHECKING:  # a command loads what it needs
    from eestudy.progress import Failure
    from eestudy.records import Records
    from eestudy.store import Store
    from eestudy.study import Study

STORE = "folder of runs (default: $EESTUDY_HOME, or ./runs)"

EXAMPLES = """examples:
  eestudy plan params/smoke.yaml               what would run, what is done, and what it costs
  eestudy run params/smoke.yaml --workers 2    execute it; what is done is skipped
  eestudy train my.yaml                        train without notebooks, with a progress bar
  eestudy train params/small.yaml --jobs 8     the same by eight processes of one thread each
  eestudy adapt mine.py:net --data images --budget 60%   early exits for a trained model of your own, exported
  eestudy export results.zip small             carry a study's records to another machine, where `import` adds them
  accelerate launch --num_processes 2 -m eestudy train my.yaml       the same on two GPUs
  eestudy table smoke                          the budget table of a study that has run
  eestudy book params/smoke.yaml               run it and build the book in _build/html
  papermill book/run.ipynb out.ipynb -p architecture vit1d -p dataset mnist1d -p strategy mixed
"""


class _Parser(argparse.ArgumentParser):
    """One line and exit status 2 for a mistake, without the usage in front."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"eestudy: {message} (eestudy --help shows what there is)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the return value is the exit status."""
    options = _parser().parse_args(arguments)
    ended_by = [signal.SIGINT]
    try:
        with ended_like_ctrl_c(ended_by):
            return COMMANDS[options.command](options)
    except EestudyError as error:
        print(f"eestudy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            print("eestudy: interrupted; what is done is kept, the same command goes on from there", file=sys.stderr)
        return 128 + ended_by[-1]
    except BrokenPipeError:  # the reader of our output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="eestudy",
        description="How to train an early-exit network: a study to read, rerun and change.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def of_study(name: str, text: str, workers: bool = True) -> argparse.ArgumentParser:
        added = command(name, text)
        added.add_argument("params", type=Path, help="the study's YAML, such as params/smoke.yaml")
        added.add_argument("--store", type=Path, help=STORE)
        if workers:
            text = f"local processes at a time (default 1; {os.cpu_count() or 1} cores here)"
            added.add_argument("--workers", type=_positive, default=1, help=text)
        return added

    of_study("plan", "list a study's runs: done or not, with estimated training FLOPs", workers=False)
    added = of_study(
        "run", "execute the notebooks of a study's runs that have no record, and add theirs to book/results"
    )
    _on_cluster(added)
    of_study("status", "how much of a study is done", workers=False)
    of_study("book", "run a study, execute the chapters on it and build the book")
    added = of_study("dynamics", "measure the training dynamics of a study that has run, and add them to its records")
    added.add_argument("--metrics", help="some of them, such as rank,dominance (default: all)")
    of_study("evaluate", "evaluate the predictions of a study that has run, and add that to its records")
    added = command(
        "train",
        "train a YAML's runs without notebooks, in this process; under `accelerate launch`, each in several at once. "
        "Of a study in params/, runs with a record are skipped, and the others add theirs to book/results",
    )
    added.add_argument("params", type=Path, help="RunConfig fields, or a study, such as params/smoke.yaml")
    added.add_argument("--store", type=Path, help=STORE)
    added.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    added.add_argument("--workers", type=int, default=0, help="processes that read image files ahead (default 0)")
    text = (
        "auto (default: on a GPU; with --jobs also the step of four or more seeds on a processor), always, never, or "
        "step: the whole step of small networks on a processor"
    )
    added.add_argument("--compile", default="auto", help=text)
    added.add_argument("--jobs", type=_positive, help="train so many runs at a time, in processes of one thread each")
    added.add_argument("--minutes", type=float, help="save the state and end after so many; the same command goes on")
    _on_cluster(added)
    added = command("table", "print a study's budget table")
    added.add_argument("study", help="a study whose tables are in book/results, such as smoke")
    added.add_argument("--protocol", default="calibrated", help="calibrated (default) or paper")
    added.add_argument("--rule", help="exit rule (default max-probability; regression: patience)")
    added = command("recommend", "which strategy to train with, from the study's cells that are complete")
    added.add_argument("--budget", type=_percent, required=True, help="%% of the plain backbone's FLOPs, such as 25")
    added.add_argument("--train-size", type=_positive, required=True, help="training samples")
    added.add_argument("--family", help="of the network: mlp, resnet, vit or encoder (default: any)")
    added.add_argument("--epochs", type=_positive, help="in all (default: as many as the study's)")
    added = command(
        "adapt", "make an early-exit network for a budget from a trained model and your data, export it, report on it"
    )
    added.add_argument(
        "model",
        help="package.module:factory or file.py:factory, which gives a torch module; or, with their trained weights, "
        "torchvision/NAME, timm/NAME, huggingface/FOLDER",
    )
    added.add_argument("--data", required=True, help="a folder of images by class, or another file of `dataset: own`")
    added.add_argument("--budget", required=True, help="60%% of the model's FLOPs, or 20ms a sample on this device")
    added.add_argument("--weights", type=Path, help="a state dict (.pt, .pth) or .safetensors file for the model")
    added.add_argument("--out", type=Path, default=Path("adapted"), help="folder to write (default: adapted)")
    added.add_argument("--exits", type=_positive, default=3, help="how many before the last (default 3)")
    added.add_argument("--train", action="store_true", help="train everything, not the exits' heads alone")
    added.add_argument("--epochs", type=_positive, default=20, help="of training (default 20)")
    added.add_argument("--lr", type=float, default=1e-3, help="learning rate (default 0.001)")
    text = "of inputs: train, none, unit or imagenet (default: with which the model does best on validation data)"
    added.add_argument("--normalization", help=text)
    added.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    added = command("export", "write the records of studies into one file, for `eestudy import` on another machine")
    added.add_argument("target", type=Path, help="the file to write, such as results.zip")
    added.add_argument("studies", nargs="*", help="studies with records in book/results (default: all)")
    added.add_argument("--runs", action="store_true", help="also the trained runs themselves, which the store has")
    added.add_argument("--store", type=Path, help=STORE)
    added = command(
        "import", "add the records in files of `eestudy export` to book/results; none that is here is changed"
    )
    added.add_argument("sources", nargs="+", type=Path, help="files of `eestudy export`; all are checked first")
    added.add_argument("--store", type=Path, help="where trained runs in them go (default: $EESTUDY_HOME, or ./runs)")
    command("refresh", "for maintainers: execute the chapters in place and write the answer into README.md")
    added = command("get", "download a data set into $EESTUDY_DATA, or ~/.cache/eestudy")
    added.add_argument("dataset", help="one that doctor shows as not found, such as cifar10")
    command("doctor", "versions, devices, data sets and the store of this machine")
    return parser


def _on_cluster(added: argparse.ArgumentParser) -> None:
    added.add_argument("--scheduler", help="train on a Dask cluster, such as tcp://host:8786")
    added.add_argument("--slurm", help="train in jobs of Slurm: partition=gpu,gres=gpu:1,time=8:00:00")
    added.add_argument("--resources", default="", help="what a run needs of a worker of Dask, such as GPU=1")


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; it must be a whole number above 0")
    return int(text)


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; give per cent, such as 25") from None


def _study(options: argparse.Namespace) -> tuple[Study, Store, Records]:
    """What is asked for, where its runs are and where its records are."""
    from eestudy.records import Records, results_folder
    from eestudy.store import Store
    from eestudy.study import load_study

    study = load_study(options.params)
    return study, Store(options.store), Records(results_folder(study.name))


def _report(failures: list[Failure]) -> int:
    for failure in failures:
        print(f"eestudy: failed: {failure.title}: {failure.reason}", file=sys.stderr)
    return int(bool(failures))


def _plan_or_status(options: argparse.Namespace) -> int:
    from eestudy.status import plan, status

    for line in (plan if options.command == "plan" else status)(*_study(options)):
        print(line)
    return 0


def _run(options: argparse.Namespace) -> int:
    from eestudy.book.run_pages import run_study

    if options.scheduler or options.slurm:  # notebooks then find their runs trained
        from eestudy.jobs import WorkerSettings, train_study

        where = options.scheduler, options.slurm, options.resources
        study, store, records = _study(options)
        lacking = tuple(config for config in study.configs if not records.has("runs", config.id))
        about = WorkerSettings(store, None, None, 0, "auto", *where)
        train_study(replace(study, configs=lacking), options.workers, about)
    return _report(run_study(*_study(options), options.workers))


def _train(options: argparse.Namespace) -> int:
    from eestudy.jobs import WorkerSettings, train_here, train_study
    from eestudy.records import Records, folder_for
    from eestudy.store import Store
    from eestudy.study import load_study

    study, results = load_study(options.params), folder_for(options.params)
    records = Records(results) if results else None
    where = options.scheduler, options.slurm, options.resources
    about = options.device, options.workers, options.compile
    settings = WorkerSettings(Store(options.store), records, *about, *where)
    with for_minutes(options.minutes) as over:
        if options.jobs or options.scheduler or options.slurm:
            return _report(train_study(study, options.jobs or 1, settings))
        train_here(study, settings)
    if over.is_set():
        from eestudy.environment import say

        done = settings.store.done("runs")
        left = sum(config.id not in done for config in study.configs)
        say(f"{options.minutes:g} minutes are over; {left} of {len(study.configs)} runs are left, the state is saved")
    return 0


def _dynamics(options: argparse.Namespace) -> int:
    from eestudy.analysis.executor import analyse_study
    from eestudy.analysis.metrics import METRICS
    from eestudy.config import check_name

    metrics = options.metrics.split(",") if options.metrics else METRICS
    for name in metrics:
        check_name("metric", name, METRICS)
    study, store, records = _study(options)
    return _report(analyse_study(study, list(metrics), store, records, options.workers))


def _evaluate(options: argparse.Namespace) -> int:
    from eestudy.analysis.executor import EVALUATIONS, analyse_study

    study, store, records = _study(options)
    before = len(records.ids("evaluation"))
    failures = analyse_study(study, EVALUATIONS, store, records, options.workers)
    print(f"{study.name}: {len(records.ids('evaluation')) - before} records added")
    return _report(failures)


def _table(options: argparse.Namespace) -> int:
    from eestudy.report import load, tables

    print(tables.budget_table(load(options.study), options.protocol, options.rule))
    return 0


def _recommend(options: argparse.Namespace) -> int:
    from eestudy.report.guide import recommend

    advice = recommend(options.budget, options.train_size, options.family, options.epochs)
    print(advice.text.replace("**", ""))
    if len(advice.evidence):
        print(advice.evidence.round(4).to_string(index=False))
    return 0


def _adapt(options: argparse.Namespace) -> int:
    from eestudy.adapting.steps import adapt, budget_of, factory

    budget_of(options.budget)  # before anything else is done
    settings = {name: getattr(options, name) for name in ("out", "exits", "train", "epochs", "lr", "weights")}
    settings |= {"normalization": options.normalization, "device": options.device}
    adapt(factory(options.model), str(options.data), options.budget, **settings)
    return 0


def _export(options: argparse.Namespace) -> int:
    from eestudy.bundles import export
    from eestudy.store import Store

    count = export(options.target, options.studies, Store(options.store) if options.runs else None)
    print(f"{count} files are in {options.target}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from eestudy.bundles import bring_in
    from eestudy.store import Store

    records, folders = bring_in(options.sources, Store(options.store))
    print(f"records: {records['added']} added, {records['same']} the same, {records['replicate']} kept as replicates")
    if any(folders.values()):
        print(f"runs and phases: {folders['added']} added to the store, {folders['same']} are there already")
    return 0


def _book(options: argparse.Namespace) -> int:
    from eestudy.book.build import build

    study, store, _ = _study(options)
    return _report(build(study, store, options.workers))


def _refresh(options: argparse.Namespace) -> int:
    from eestudy.refresh import refresh

    return _report(refresh())


def _get(options: argparse.Namespace) -> int:
    from eestudy import data
    from eestudy.config import check_name
    from eestudy.data.sources import MissingData, get

    known = data.sources_by_name()
    source = known[check_name("dataset", options.dataset, known)]
    try:
        folder = source.find()
    except MissingData:
        folder = get(source)
    print(f"{source.name} is in {folder}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from eestudy.doctor import doctor

    return doctor()


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan_or_status, "run": _run, "train": _train, "dynamics": _dynamics, "evaluate": _evaluate,
    "status": _plan_or_status, "table": _table, "recommend": _recommend, "adapt": _adapt, "export": _export,
    "import": _import, "book": _book, "refresh": _refresh, "get": _get, "doctor": _doctor,
}  # fmt: skip
