"""One thing to measure of trained runs: made once, kept in the store, and written into one record."""

from __future__ import annotations

from abc import ABC, abstractmethod

from eestudy.config import RunConfig
from eestudy.environment import say
from eestudy.records import Record
from eestudy.store import Folder, Store


class Task(ABC):
    """kind, id: of its record. analysis: the name of what is measured.

    Tasks of equal folders are measured once, such as those of runs that share a network.
    """

    kind: str
    analysis: str

    @property
    @abstractmethod
    def id(self) -> str: ...

    @property
    @abstractmethod
    def configs(self) -> tuple[RunConfig, ...]:
        """The runs that it needs."""

    @abstractmethod
    def folder(self, store: Store) -> Folder:
        """Where its tables are kept, by the content of all that decides them. The runs must be done."""

    @abstractmethod
    def fill(self, folder: Folder, store: Store) -> None:
        """Writes the tables that the folder lacks."""

    @abstractmethod
    def record(self, store: Store) -> Record:
        """The record of a task that is kept."""


def keep(task: Task, store: Store) -> None:
    """Makes what is not in the store yet, whole."""
    folder = task.folder(store)
    with folder.lock(say):
        if not store.usable(folder):
            task.fill(folder, store)
            folder.finish()
