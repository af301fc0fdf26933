"""Shared by all tests: one thread, a store of small runs that are trained once, real data."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import eestudy

SMALL = {"epochs": 2, "batch_size": 64, "train_size": 256}
CELLS = (("mlp", "digits"), ("resnet-tiny", "digits"), ("resnet1d", "mnist1d"), ("vit1d", "mnist1d"))

# Files that take longest go first, so that no worker is left alone with one at the end (--no-loadscope-reorder).
LONGEST = (
    "test_every_backbone.py", "test_book_run_pages.py", "test_whole_step.py", "test_same_bits.py", "test_jobs.py",
    "test_analysis_measurements.py", "test_data_folders.py", "test_predict.py", "test_export.py", "test_identity.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    # A shell's background jobs ignore it, and so would every process that a test starts and wants to stop by it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    # Tests fork. Where the first backward pass of a process comes after torch.compile, its children cannot do any.
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all tests share: a run asked for twice is trained once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def small_run(small_store: Path) -> Callable[..., eestudy.Run]:
    """small_run(architecture, dataset, strategy, **settings) -> a run of two epochs on 256 samples."""

    def make(architecture: str, dataset: str, strategy: str, **settings: object) -> eestudy.Run:
        config = eestudy.RunConfig(
            architecture=architecture, dataset=dataset, strategy=strategy, **{**SMALL, **settings}
        )
        return eestudy.run(config, store=small_store, device="cpu")

    return make
