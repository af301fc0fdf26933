"""The places that name packages agree, and nothing of the machine it was made on was committed."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eestudy.environment import use_threads

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
# What constraints.txt promises. 3.11.0 stands here because some packages need a later patch release.
PYTHONS = ("3.10.13", "3.11.0", "3.11.7", "3.12.1", "3.13.0", "3.14.0")
PLATFORMS = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))

TRACES = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org|(?<![\w.~])/(?:work|root)/|file:///")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(project: dict[str, Any]) -> list[Requirement]:
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    found = [Requirement(line) for line in project["dependencies"] + extras]
    return [requirement for requirement in found if requirement.name != "eestudy"]  # "all" names the other extras


def names(found: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in found}


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def marker_environments() -> list[dict[str, str]]:
    return [
        {
            "python_full_version": python,
            "python_version": ".".join(python.split(".")[:2]),
            "sys_platform": system,
            "platform_system": platform,
            "platform_machine": machine,
        }
        for python in PYTHONS
        for system, platform, machine in PLATFORMS
    ]


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def test_conda_users_get_the_same_packages(project: dict[str, Any]) -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert pip[:2] == ["-c constraints.txt", "-e ."], "conda users must get the pinned versions and the package itself"
    outside = {re.split(r"[<>=!~ ]", entry)[0] for entry in conda if isinstance(entry, str)} - {
        "python",
        "pip",
    }
    listed = [Requirement(line) for line in pip[2:]]
    assert len(names(listed)) == len(listed), "environment.yml names a package twice"
    assert names(listed) | outside == names(requirements(project))


def test_all_brings_every_extra_but_that_of_developers(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras["all"])
    assert everything.extras == set(extras) - {"all", "dev"}


def test_conda_python_is_one_that_the_project_supports(project: dict[str, Any]) -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python = Requirement(next(entry for entry in conda if isinstance(entry, str) and entry.startswith("python")))
    supported = Requirement(f"python{project['requires-python']}").specifier
    offered = [version for version in PYTHONS if version in python.specifier]
    assert offered
    assert all(version in supported for version in offered)


def test_constraints_are_exact() -> None:
    loose = [str(line) for line in constraints() if [pin.operator for pin in line.specifier] != ["=="] or line.url]
    assert not loose


@pytest.mark.parametrize(
    "environment", marker_environments(), ids=lambda e: f"{e['python_full_version']}-{e['platform_machine']}"
)
def test_every_dependency_has_one_pin_that_fits(project: dict[str, Any], environment: dict[str, str]) -> None:
    pins: dict[str, list[str]] = {}
    for line in constraints():
        if applies(line, environment):
            pins.setdefault(canonicalize_name(line.name), []).append(next(iter(line.specifier)).version)
    twice = {name: versions for name, versions in pins.items() if len(versions) > 1}
    assert not twice
    for requirement in requirements(project):
        if applies(requirement, environment):
            name = canonicalize_name(requirement.name)
            assert name in pins, f"constraints.txt does not pin {name}"
            assert pins[name][0] in requirement.specifier, (
                f"constraints.txt: {name}=={pins[name][0]} is not {requirement}"
            )


def test_every_supported_python_is_pinned(project: dict[str, Any]) -> None:
    supported = Requirement(f"python{project['requires-python']}").specifier
    assert [version for version in PYTHONS if version not in supported] == []
    assert "3.9.18" not in supported


def files_that_git_keeps() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def traces(text: str) -> list[str]:
    return sorted(set(TRACES.findall(text)))


def test_no_committed_file_names_a_registry_or_this_machine() -> None:
    files = [path for path in files_that_git_keeps() if path.is_file() and path != Path(__file__).resolve()]
    assert ROOT / "pyproject.toml" in files
    # Bytes, not text: a path inside a parquet table or an image's metadata counts too.
    found = {str(path.relative_to(ROOT)): traces(path.read_bytes().decode("latin-1")) for path in files}
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"/work/main/x.py"', ["/work/"]),
        ("see file:///srv/a or /root/a", ["/root/", "file:///"]),
        ("https://files.pythonhosted.org/p", ["pythonhosted"]),
        ("https://pypi.org/simple", ["pypi.org"]),
        ("earlier../work/ and my/work/of", []),
    ],
)
def test_traces_are_recognised(text: str, found: list[str]) -> None:
    assert traces(text) == found


def its_threads() -> list[tuple[str, int]]:
    """Of the libraries that evaluating loads, as a worker sees them."""
    import sklearn.linear_model  # noqa: F401
    import torch
    from threadpoolctl import threadpool_info

    return [
        ("torch", torch.get_num_threads()),
        *((pool["filepath"], pool["num_threads"]) for pool in threadpool_info()),
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_a_worker_s_linear_algebra_keeps_to_its_threads(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cores and whatever the environment: the libraries load in the worker, after it was told."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "3")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), use_threads, (count,)) as pool:
        found = pool.submit(its_threads).result()
    assert len(found) > 3
    assert {threads for _, threads in found} == {count}
