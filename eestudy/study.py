"""Many runs at once: a study's YAML, a grid of settings, a notebook's parameters. No torch here."""

from __future__ import annotations

import ast
import itertools
import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eestudy.config import EestudyError, RunConfig, content_hash, nearest
from eestudy.content import settled
from eestudy.registry import STRATEGIES

LISTS = ("exits", "checkpoints", "weights", "class_weights")  # fields whose lists are one value


@dataclass(frozen=True)
class Study:
    """A named tuple of runs, in the order in which they are best executed."""

    name: str
    configs: tuple[RunConfig, ...]

    def pages(self) -> list[list[RunConfig]]:
        """The runs grouped into notebooks: same settings, different seeds."""
        groups: dict[str, list[RunConfig]] = {}
        for config in self.configs:
            groups.setdefault(content_hash(config.replace(seed=0).identity()), []).append(config)
        return list(groups.values())


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that also refuses a key given twice, where the first value would be lost in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: list[Any] = []
    for key_node, _ in node.value:
        problem = None
        if not isinstance(key_node, yaml.ScalarNode):  # such as {{name}}, a template that nobody filled in
            problem = "a key must be a single word"
        elif key_node.tag != MERGE:
            key = loader.construct_object(key_node)  # type: ignore[no-untyped-call]
            problem = f"key {key!r} is given twice" if key in seen else None
            seen.append(key)
        if problem:
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key_node.start_mark)
    loader.flatten_mapping(node)
    return dict(loader.construct_pairs(node, deep=True))  # type: ignore[no-untyped-call]


MERGE = "tag:yaml.org,2002:merge"  # of the key <<
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping; tags that would run code, unreadable and empty files raise EestudyError."""
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "cannot be read"
        if isinstance(error, FileNotFoundError) and path.parent.is_dir():
            there = sorted(each.name for each in path.parent.glob("*.y*ml"))
            reason += f"; {nearest(path.name, there or ['(no YAML there)'])}"
        raise EestudyError(f"{path}: {reason}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that does not exist
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise EestudyError(f"{path}{line}: not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise EestudyError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return content


def load_study(path: str | Path) -> Study:
    """The runs of a YAML file.

    A study has `seeds`, `common` (settings of every run) and `grid`: a list of blocks whose lists multiply. A flat
    file of RunConfig fields, with or without `seeds`, is a study of one combination.
    """
    content = read_yaml(path)
    name = Path(path).stem
    if "grid" not in content:
        if "seeds" in content and "seed" in content:
            raise EestudyError(f"{path}: give seed or seeds, not both")
        seeds = content.pop("seeds", [content.pop("seed", 0)])
        return Study(name, _expand(path, [content], {}, seeds))
    known = ["seeds", "common", "grid"]
    for unknown in sorted(str(key) for key in content if key not in known):
        raise EestudyError(f"{path}: unknown key {unknown!r}; {nearest(unknown, known)}")
    common = content.get("common") or {}
    if not isinstance(common, dict):
        raise EestudyError(f"{path}: common: expected a mapping of settings, found {common!r}")
    return Study(name, _expand(path, content["grid"], common, content.get("seeds", [0])))


def _expand(path: str | Path, blocks: Any, common: Mapping[str, Any], seeds: Any) -> tuple[RunConfig, ...]:
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) and block for block in blocks):
        raise EestudyError(f"{path}: grid: expected a list of blocks with at least one, found {blocks!r}")
    if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise EestudyError(f"{path}: seeds: expected a list of different whole numbers, found {seeds!r}")
    configs: list[RunConfig] = []
    for block in blocks:
        settings = {**common, **block}
        if "seed" in settings:
            raise EestudyError(f"{path}: seed: give it in seeds, not in the grid")
        axes = {
            key: value if isinstance(value, list) and key not in LISTS else [value] for key, value in settings.items()
        }
        for key, choices in axes.items():
            if not choices:
                raise EestudyError(f"{path}: {key}: the list is empty, so the grid holds no run")
        for values in itertools.product(*axes.values()):
            for seed in seeds:
                try:
                    configs.append(settled(RunConfig(**dict(zip(map(str, axes), values, strict=True)), seed=seed)))
                except EestudyError as error:
                    raise EestudyError(f"{path}: {error}") from None
    repeated = [run_id for run_id, count in Counter(config.id for config in configs).items() if count > 1]
    if repeated:
        raise EestudyError(f"{path}: grid: the run {repeated[0]} is asked for twice")
    # Runs that share a phase should not start side by side, where one would wait for the other: strategy by strategy.
    order = {name: place for place, name in enumerate(STRATEGIES)}
    return tuple(sorted(configs, key=lambda config: order[config.strategy]))


@dataclass(frozen=True)
class Request:
    """What a notebook asks for: one RunConfig a seed, and how to execute them."""

    configs: tuple[RunConfig, ...]
    store: str | None
    device: str | None
    records: str | None  # a study whose records to show instead of training


def request(namespace: Mapping[str, Any]) -> Request:
    """Reads a notebook's parameters out of its globals().

    Takes every RunConfig field, `seeds`, `store`, `device`, `records`. A name that is none of these, in the parameters
    cell or in the one papermill adds, raises EestudyError (papermill itself would only warn).
    """
    known = {*RunConfig.model_fields, "seeds", "store", "device", "records"} - {"seed"}
    for source in namespace.get("In", []):
        for name in _assigned(source, known):
            if name not in known:
                raise EestudyError(f"unknown notebook parameter {name!r}; {nearest(name, sorted(known))}")
    given = {name: namespace[name] for name in known if name in namespace}
    given = {name: value for name, value in given.items() if not isinstance(value, types.ModuleType)}
    store, device, records = (given.pop(name, None) for name in ("store", "device", "records"))
    for name, value in given.items():
        if isinstance(value, str) and (name in ("seeds", *LISTS) or name.endswith("_args")):
            given[name] = yaml.safe_load(value)  # papermill -p hands lists and mappings over as text
    seeds = given.pop("seeds", [0])
    return Request(_expand("parameters", [given], {}, seeds), store, device, records)


def _assigned(source: str, known: set[str]) -> list[str]:
    """Names that a cell assigns, if it is a parameters cell: papermill's own, or plain values for known names."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with magics
        return []
    names = []
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.append(node.targets[0].id)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
        elif not isinstance(node, ast.Expr):
            return []
    return names if source.startswith("# Parameters") or known & set(names) else []


def project_root() -> Path:
    """The checkout that the working folder, or else the package, lies in; the working folder when there is none."""
    for start in (Path.cwd(), Path(__file__).parent):
        for folder in (start, *start.parents):
            if (folder / "_config.yml").is_file() and (folder / "params").is_dir():
                return folder
    return Path.cwd()


def studies() -> dict[str, Path]:
    """The studies of the checkout by name: the YAML files of params/ and its folders."""
    return {path.stem: path for path in sorted((project_root() / "params").rglob("*.yaml"))}
