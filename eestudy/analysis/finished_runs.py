"""The records of the runs that are finished. No torch before there is one to add."""

from __future__ import annotations

from collections.abc import Iterable

from eestudy.config import RunConfig
from eestudy.records import Records
from eestudy.store import Store


def add_records(configs: Iterable[RunConfig], store: Store, records: Records) -> None:
    """The records of those of these runs that are done and have none yet. EestudyError for a run that is damaged."""
    for config in configs:
        folder = store.folder("runs", config.id)
        if not records.has("runs", config.id) and store.whole(folder) and store.phases_whole(folder):
            from eestudy.analysis.run_record import record_of
            from eestudy.runs import Run

            records.add(record_of(Run(config, store), store))
