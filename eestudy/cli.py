"""The command line: plan, run, train, dynamics, evaluate, status, table, export, import, book, refresh, get, doctor.

Exit status: 0, 1 (a run failed; doctor found damage), 2 (a mistake in what was given), 130 (Ctrl-C), 128 + n (ended
by signal n: SIGTERM, as schedulers send it, or SIGHUP, of a closed terminal).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from eestudy.config import EestudyError
from eestudy.registry import DATASETS

EXAMPLES = """examples:
  eestudy plan params/smoke.yaml               what would run, what is done, and what it costs
  eestudy run params/smoke.yaml --workers 2    execute it; what is done is skipped
  eestudy train my.yaml                        train without notebooks, with a progress bar
  eestudy train params/small.yaml --jobs 8     the same by eight processes of one thread each
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
        with _ended_like_ctrl_c(ended_by):
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


@contextmanager
def _ended_like_ctrl_c(ended_by: list[signal.Signals]) -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end a command as Ctrl-C does: the state is saved, no process is left behind."""

    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # forked from it, such as a reader of image files
            os._exit(128 + number)
        ended_by.append(signal.Signals(number))
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # a shell's background jobs do not hear of Ctrl-C
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What is ignored stays so, as below nohup. Only a main thread may ask for signals.
        with suppress(ValueError):
            if number and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="eestudy",
        description="How to train an early-exit network: a study to read, rerun and change.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, text in (
        ("plan", "list a study's runs: done or not, with estimated training FLOPs"),
        ("run", "execute the notebooks of a study's runs that have no record, and add theirs to book/results"),
        ("status", "how much of a study is done"),
        ("book", "run a study, execute the chapters on it and build the book"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("params", type=Path, help="the study's YAML, such as params/smoke.yaml")
        command.add_argument("--store", type=Path, help="folder of runs (default: $EESTUDY_HOME, or ./runs)")
        if name in ("run", "book"):
            cores = os.cpu_count() or 1
            command.add_argument(
                "--workers",
                type=_positive,
                default=1,
                help=f"local processes at a time (default 1; {cores} cores here)",
            )
    text = "measure the training dynamics of a study that has run, and add them to its records"
    command = commands.add_parser("dynamics", help=text, description=text)
    command.add_argument("params", type=Path, help="the study's YAML, such as params/dynamics.yaml")
    command.add_argument("--metrics", help="some of them, such as rank,dominance (default: all)")
    command.add_argument("--store", type=Path, help="folder of runs (default: $EESTUDY_HOME, or ./runs)")
    command.add_argument("--workers", type=_positive, default=1, help="local processes at a time (default 1)")
    text = "evaluate the predictions of a study that has run, and add that to its records"
    command = commands.add_parser("evaluate", help=text, description=text)
    command.add_argument("params", type=Path, help="the study's YAML, such as params/dynamics.yaml")
    command.add_argument("--store", type=Path, help="folder of runs (default: $EESTUDY_HOME, or ./runs)")
    command.add_argument("--workers", type=_positive, default=1, help="local processes at a time (default 1)")
    text = (
        "train a YAML's runs without notebooks, in this process; under `accelerate launch`, each in several at once. "
        "Of a study in params/, runs with a record are skipped, and the others add theirs to book/results"
    )
    command = commands.add_parser("train", help=text, description=text)
    command.add_argument("params", type=Path, help="RunConfig fields, or a study, such as params/smoke.yaml")
    command.add_argument("--store", type=Path, help="folder of runs (default: $EESTUDY_HOME, or ./runs)")
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    command.add_argument("--workers", type=int, default=0, help="processes that read image files ahead (default 0)")
    text = (
        "auto (default: on a GPU; with --jobs also the step of four or more seeds on a processor), always, never, or "
        "step: the whole step of small networks on a processor"
    )
    command.add_argument("--compile", default="auto", help=text)
    command.add_argument("--jobs", type=_positive, help="train so many runs at a time, in processes of one thread each")
    command = commands.add_parser("table", help="print a study's budget table", description="print a budget table")
    command.add_argument("study", help="a study whose tables are in book/results, such as smoke")
    command.add_argument("--protocol", default="calibrated", help="calibrated (default) or paper")
    command.add_argument("--rule", help="exit rule (default max-probability; regression: patience)")
    text = "write the records of studies into one file, for `eestudy import` on another machine"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("target", type=Path, help="the file to write, such as results.zip")
    command.add_argument("studies", nargs="*", help="studies with records in book/results (default: all)")
    command.add_argument("--runs", action="store_true", help="also the trained runs themselves, which the store has")
    command.add_argument("--store", type=Path, help="folder of runs (default: $EESTUDY_HOME, or ./runs)")
    text = "add the records in files of `eestudy export` to book/results; none that is here is changed"
    command = commands.add_parser("import", help=text, description=text)
    command.add_argument("sources", nargs="+", type=Path, help="files of `eestudy export`; all are checked first")
    command.add_argument("--store", type=Path, help="where trained runs in them go (default: $EESTUDY_HOME, or ./runs)")
    text = "for maintainers: execute the chapters in place and write a study's results into README.md"
    command = commands.add_parser("refresh", help=text, description=text)
    command.add_argument("study", help="the study whose results the README shows, such as small")
    text = "download a data set into $EESTUDY_DATA, or ~/.cache/eestudy"
    command = commands.add_parser("get", help=text, description=text)
    command.add_argument("dataset", help="one that doctor shows as not found, such as cifar10")
    commands.add_parser("doctor", help="versions, devices, data sets and the store of this machine")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; it must be a whole number above 0")
    return int(text)


def _plan(options: argparse.Namespace) -> int:
    from eestudy.grids import load_study
    from eestudy.plan import prepare
    from eestudy.records import Records, results_folder
    from eestudy.store import Store

    study, store = load_study(options.params), Store(options.store)
    recorded = set(Records(results_folder(study.name)).ids("runs"))
    total = 0.0
    trained: set[str] = set()
    print(f"{'run':<44} {'state':<8} {'training GFLOPs':>16}")
    for config in study.configs:
        if config.id in recorded:
            print(f"{config.id:<44} {'recorded':<8} {0:>16,.1f}")
            continue
        plan = prepare(config)
        todo = 0.0
        for phase, phase_id in zip(plan.phases, plan.phase_ids, strict=True):
            if phase_id not in trained and not store.folder("phases", phase_id).done():
                todo += plan.step_flops[phase.name] * phase.settings.epochs * len(plan.data.train)
            trained.add(phase_id)
        todo += plan.once_flops if todo else 0
        state = "done" if store.folder("runs", config.id).done() else "to train" if todo else "shared"
        print(f"{config.id:<44} {state:<8} {todo / 1e9:>16,.1f}")
        total += todo
    there = sum(config.id in recorded for config in study.configs)
    print(
        f"{len(study.configs)} runs, {there} with a record; {total / 1e9:,.1f} GFLOPs are left to train "
        "(shared phases counted once)"
    )
    return 0


def _run(options: argparse.Namespace) -> int:
    from eestudy.grids import load_study
    from eestudy.runner import run_study

    return _report(run_study(load_study(options.params), options.workers, store=options.store))


def _train(options: argparse.Namespace) -> int:
    from eestudy import study
    from eestudy.environment import say
    from eestudy.grids import load_study
    from eestudy.jobs import How, train_study
    from eestudy.records import Records, folder_for
    from eestudy.runner import add_records
    from eestudy.store import Store
    from eestudy.training.execution import execution

    asked, results = load_study(options.params), folder_for(options.params)
    if options.jobs:
        how = How(options.store, results, options.device, options.workers, options.compile)
        return _report(train_study(asked, options.jobs, how))
    process = execution(options.device)  # of several processes, one speaks
    records = Records(results) if results else None
    for number, config in enumerate(asked.configs, 1):
        if not process.agreed(process.main and not (records and records.has("runs", config.id))):
            if process.main:
                say(f"[{number}/{len(asked.configs)}] {config.id}: has a record")
            continue
        if process.main:
            say(f"[{number}/{len(asked.configs)}] {config.id}")
        run = study.run(config, options.store, options.device, options.workers, options.compile)
        if process.main:
            print(run.exits().drop(columns="run").to_string(index=False, float_format="%.4g"), flush=True)
            if records:
                add_records([config], Store(options.store), records)
    return 0


def _dynamics(options: argparse.Namespace) -> int:
    from eestudy.grids import load_study
    from eestudy.trajectories import measure_study

    metrics = options.metrics.split(",") if options.metrics else None
    failures = measure_study(load_study(options.params), metrics, options.workers, options.store)
    for line in failures:
        print(f"eestudy: failed: {line}", file=sys.stderr)
    return 1 if failures else 0


def _evaluate(options: argparse.Namespace) -> int:
    from eestudy.evaluating import evaluate_study
    from eestudy.grids import load_study

    study = load_study(options.params)
    print(f"{study.name}: {evaluate_study(study, options.workers, options.store)} records added")
    return 0


def _report(failures: list) -> int:
    for failure in failures:
        print(f"eestudy: failed: {failure.title}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def _status(options: argparse.Namespace) -> int:
    from eestudy.grids import load_study
    from eestudy.records import Records, results_folder
    from eestudy.store import Store

    study, store = load_study(options.params), Store(options.store)
    records = Records(results_folder(study.name))
    recorded = set(records.ids("runs"))
    there = [config for config in study.configs if config.id in recorded]
    done = [config for config in study.configs if store.folder("runs", config.id).done()]
    print(f"{study.name}: {len(there)} of {len(study.configs)} runs have a record in {records.folder}")
    print(f"{study.name}: {len(done)} of {len(study.configs)} runs are done in {store.path}")
    for config in study.configs:
        if config not in there:
            print(f"  no record{'' if config in done else ', not done'}: {config.id}")
    return 0


def _table(options: argparse.Namespace) -> int:
    from eestudy.report import load, tables

    print(tables.budget_table(load(options.study), options.protocol, options.rule))
    return 0


def _export(options: argparse.Namespace) -> int:
    from eestudy.bundles import export

    print(f"{export(options.target, options.studies, options.runs, options.store)} files are in {options.target}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from eestudy.bundles import bring_in

    counts = bring_in(options.sources, options.store)
    records, folders = counts.records, counts.folders
    print(f"records: {records['added']} added, {records['same']} the same, {records['replicate']} kept as replicates")
    if any(folders.values()):
        print(f"runs and phases: {folders['added']} added to the store, {folders['same']} are there already")
    return 0


def _book(options: argparse.Namespace) -> int:
    from eestudy.book import build
    from eestudy.grids import load_study

    return _report(build(load_study(options.params), options.workers, store=options.store))


def _refresh(options: argparse.Namespace) -> int:
    from eestudy.refresh import refresh

    return _report(refresh(options.study))


def _get(options: argparse.Namespace) -> int:
    from eestudy import data
    from eestudy.config import check_name
    from eestudy.data.download import get
    from eestudy.data.sources import MissingData

    source = data.SOURCES[check_name("dataset", options.dataset, data.SOURCES)]
    try:
        folder = source.find()
    except MissingData:
        folder = get(source)
    print(f"{source.name} is in {folder}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from eestudy.data.sources import MissingData
    from eestudy.environment import commit, hardware, versions
    from eestudy.store import Store
    from eestudy.training.execution import fast_bfloat16

    print(f"versions  {versions()}; commit {commit()}")
    print(f"device    {hardware()}, {torch.get_num_threads()} threads")
    fast = ", ".join(fast_bfloat16())
    print(f"bfloat16  {f'fast on the processor: {fast}' if fast else 'slow on the processor'}")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"gpu       {', '.join(gpus) or 'none'}")
    store = Store()
    store.check_writable()
    print(f"store     {store.path} (writable)")
    damaged = 0
    for name in DATASETS:
        try:
            print(f"data      {name}: {_facts(name)}")
        except MissingData as error:
            print(f"data      {str(error).removeprefix('dataset: ')}")
        except EestudyError as error:
            damaged = 1
            print(f"data      {name} is damaged: {error}")
    return damaged


def _facts(name: str) -> str:
    """Sizes of a data set, and where it is; big ones are not loaded, the sizes of their files have to do."""
    from eestudy import data

    if name in data.SOURCES:
        source = data.SOURCES[name]
        folder = source.find()
        train, test = source.count(folder)
        source.confirm(folder, train, test)
        held_out = source.validation or -(-train // 10)  # a tenth, rounded up, as the split is made
        shape, classes, where = source.input_shape, source.classes, f", in {folder}"
    else:
        found = data.load(name)
        train, held_out, test = len(found.train) + len(found.validation), len(found.validation), len(found.test)
        shape, classes, where = found.input_shape, found.num_classes, ""
    sizes = f"{train - held_out} train, {held_out} validation, {test} test"
    return f"{sizes}, inputs {shape}, {classes} classes{where}"


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "run": _run,
    "train": _train,
    "dynamics": _dynamics,
    "evaluate": _evaluate,
    "status": _status,
    "table": _table,
    "export": _export,
    "import": _import,
    "book": _book,
    "refresh": _refresh,
    "get": _get,
    "doctor": _doctor,
}
