"""Imports go one way, importing the package stays light, and nothing in it is pickled."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "eestudy"

# Room (a module or folder of eestudy/) -> the rooms it may import. A new room gets its line here.
_GROUND = {"config", "registry", "extras", "content"}
_STORED = _GROUND | {"study", "store", "pretrained"}
_BUILT = _STORED | {"data", "models"}
_TRAINED = _BUILT | {"training", "evaluation"}
_STUDIED = _TRAINED | {"methods", "dynamics", "environment"}
_RUN = _STUDIED | {"report", "plan", "runs", "records", "progress", "analysis"}
MAY_IMPORT: dict[str, set[str]] = {
    "registry": set(),  # names places as text; whoever looks a name up imports what it may import itself
    "config": {"registry"},
    "extras": {"config"},
    "content": {"config"},
    "study": _GROUND,
    "store": _GROUND | {"study"},
    "pretrained": _GROUND,  # the names of encoders and tokenizers, for models and data, which do not know each other
    "environment": _GROUND,
    "progress": _GROUND | {"environment"},
    "sweeps": _GROUND,  # for evaluation, which needs torch, and report, which has none
    "columns": set(),
    "records": _STORED | {"environment", "columns"},
    "bundles": _STORED | {"environment", "records"},
    "data": _STORED,
    "models": _STORED | {"environment"},  # never data: a model gets input_shape and num_classes
    "training": _BUILT | {"environment"},  # never evaluation, and evaluation never training: study joins them
    "evaluation": _BUILT | {"sweeps"},
    "methods": _TRAINED,
    "dynamics": _TRAINED,
    "report": _STORED | {"records", "sweeps"},  # from tables only
    "chapters": _GROUND | {"report"},  # what one chapter alone needs; never the other way round
    "plan": _STUDIED,
    "runs": _STUDIED | {"plan"},
    "analysis": _STUDIED | {"plan", "runs", "records", "progress"},
    "export": _GROUND | {"models", "evaluation", "environment"},
    "cluster": (_RUN | {"bundles"}) - {"report"},
    "jobs": (_RUN | {"cluster"}) - {"report"},
    "book": _RUN - {"report"},
    "adapting": _RUN | {"export"},
    "cell_pages": _RUN | {"book"},
    "refresh": _RUN | {"book", "chapters", "cell_pages"},
    "status": _STORED | {"records", "plan"},
    "doctor": _TRAINED | {"environment"},
    "stopping": set(),
    "cli": _RUN | {"stopping", "jobs", "bundles", "book", "refresh", "status", "doctor", "adapting"},
    "__main__": {"cli"},
    "__init__": set(),  # its names are looked up when they are first used
}
WITHOUT_TORCH = (
    "extras",
    "registry",
    "config",
    "study",
    "store",
    "pretrained",
    "environment",
    "progress",
    "sweeps",
    "columns",
    "records",
    "bundles",
    "book",
    "status",
    "report",
    "chapters",
    "export",
    "cli",
    "__init__",
)
WITH_TORCH = {"eestudy.export.deployed", "eestudy.export.writer"}  # in a room without; imported when asked to work
CATCH_ALL = {"utils", "util", "helpers", "misc", "common"}
# What writes or reads pickles, or runs what it loads.
UNSAFE = (
    *(
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "shelve",
        "marshal",
        "eval",
        "exec",
        "torch.save",
        "torch.load",
    ),
    *("pandas.read_pickle", "yaml.unsafe_load", "yaml.full_load"),
    *("yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts)


def room_of(module: str) -> str:
    """eestudy.models.vit -> models; the package's own file -> __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def sources() -> list[tuple[str, str]]:
    """(module, source text) of every file in the package, packages with their __init__."""
    return [(module_name(path), path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]


def imported(module: str, source: str) -> Iterator[tuple[str, str]]:
    """(local name, dotted full name) of all that a file imports: anywhere, relative, or by importlib."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname or alias.name.split(".")[0]), alias.name
        elif isinstance(node, ast.ImportFrom):
            # eestudy.models.__init__ and eestudy.models.vit both live in the package eestudy.models
            package = module.split(".")[: -node.level] if node.level else []
            for alias in node.names:
                yield (
                    (alias.asname or alias.name),
                    ".".join([*package, *filter(None, [node.module]), alias.name]),
                )
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield "", argument.value


def wrong_imports(module: str, source: str) -> list[str]:
    room = room_of(module)
    rooms = {room_of(name) for _, name in imported(module, source) if name.split(".")[0] == "eestudy"}
    # `from eestudy import __version__` takes a plain name, `from eestudy import data` a room
    return sorted(name for name in rooms - {room} - MAY_IMPORT.get(room, set()) if name in MAY_IMPORT)


def unsafe_uses(module: str, source: str) -> list[str]:
    aliases = {local: name for local, name in imported(module, source) if local}
    used = {name for _, name in imported(module, source)}
    tree = ast.parse(source)
    # Of tensors alone, torch.load runs no code.
    safe = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and any(ast.unparse(each) == "weights_only=True" for each in node.keywords)
    }
    for node in ast.walk(tree):
        if id(node) in safe:
            continue
        if isinstance(node, (ast.Attribute, ast.Name)):
            head, _, rest = ast.unparse(node).partition(".")
            used.add(".".join(filter(None, [aliases.get(head, head), rest])))
            if isinstance(node, ast.Attribute) and node.attr == "to_pickle":
                used.add("pickle")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            used.add("pickle")
    return [bad for bad in UNSAFE if any(name == bad or name.startswith(bad + ".") for name in used)]


def test_the_rule_has_no_circle() -> None:
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def test_no_files_import_each_other_in_a_circle() -> None:
    """Not even inside a room, or inside a function."""
    files = dict(sources())

    def file_of(name: str) -> str:
        while name and name not in files and f"{name}.__init__" not in files:
            name = name.rpartition(".")[0]
        return name if name in files else f"{name}.__init__"

    graph = {file: {file_of(name) for _, name in imported(file, source)} - {file} for file, source in files.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_families_and_the_cut_stand_on_the_core_of_models_and_not_on_each_other() -> None:
    for module, source in sources():
        if module.startswith("eestudy.models.") and module != "eestudy.models.__init__":
            names = [name for _, name in imported(module, source)]
            wings = {
                name.split(".")[2]
                for name in names
                if name.startswith(("eestudy.models.families", "eestudy.models.cut"))
            }
            assert wings <= {module.split(".")[2]}, module


def test_every_file_belongs_to_a_room() -> None:
    rooms = {room_of(module) for module, _ in sources()}
    assert {"config", "store", "models"} <= rooms, "the package was not found: every test here would pass on nothing"
    assert rooms - set(MAY_IMPORT) == set(), "give the new room its line in MAY_IMPORT"


@pytest.mark.parametrize(("module", "source"), sources(), ids=lambda value: value if "\n" not in value else "")
def test_imports_go_one_way(module: str, source: str) -> None:
    assert wrong_imports(module, source) == []


@pytest.mark.parametrize(("module", "source"), sources(), ids=lambda value: value if "\n" not in value else "")
def test_nothing_is_pickled(module: str, source: str) -> None:
    assert unsafe_uses(module, source) == []


def test_no_module_is_a_catch_all() -> None:
    assert [module for module, _ in sources() if CATCH_ALL & set(module.split("."))] == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("eestudy.models.vit", "from eestudy.data import load", ["data"]),
        ("eestudy.models.vit", "from ..data.small import digits", ["data"]),
        ("eestudy.models.__init__", "from .. import data", ["data"]),
        ("eestudy.models.vit", "from . import backbone\nfrom .. import config", []),
        ("eestudy.training.loop", "def f():\n    import eestudy.evaluation.budgets", ["evaluation"]),
        ("eestudy.evaluation.budgets", "from eestudy import training", ["training"]),
        ("eestudy.report.plots", "import importlib\nimportlib.import_module('eestudy.runs')", ["runs"]),
        ("eestudy.report.plots", "from eestudy.chapters import rank", ["chapters"]),
        ("eestudy.config", "from eestudy import __version__", []),
        ("eestudy.config", "from eestudy.store import Store", ["store"]),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(module, source) == wrong


@pytest.mark.parametrize(
    ("source", "unsafe"),
    [
        ("import torch as t\nt.save(x, 'x.pt')", ["torch.save"]),
        ("from torch import load\nload('x.pt')", ["torch.load"]),
        ("import pickle", ["pickle"]),
        ("import numpy as np\nnp.load('x.npy', allow_pickle=True)", ["pickle"]),
        ("frame.to_pickle('x')", ["pickle"]),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", ["yaml.Loader"]),
        ("eval('1')", ["eval"]),
        ("model.eval(); import yaml; yaml.safe_load(''); from safetensors.torch import save_file, load", []),
    ],
)
def test_an_unsafe_use_is_seen(source: str, unsafe: list[str]) -> None:
    assert unsafe_uses("eestudy.store", source) == unsafe


def python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def loaded_modules(statement: str) -> set[str]:
    return set(python("-c", f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')").split())


def test_importing_the_package_loads_no_torch() -> None:
    assert "torch" not in loaded_modules("import eestudy")
    assert "torch" in loaded_modules("import torch"), "the measurement itself"


def test_the_light_rooms_load_no_torch() -> None:
    names = {module.removesuffix(".__init__") for module, _ in sources() if room_of(module) in WITHOUT_TORCH}
    light = sorted(names - WITH_TORCH)
    assert len(light) > 3
    assert "torch" not in loaded_modules(f"import {', '.join(light)}")


def test_the_help_loads_no_torch() -> None:
    output = python("-X", "importtime", "-m", "eestudy", "--help")
    times = [line.split("|")[-1].strip() for line in output.splitlines() if line.startswith("import time:")]
    assert "eestudy.cli" in times
    assert not [name for name in times if name.split(".")[0] == "torch"]
    assert "plan" in output
    assert "doctor" in output
