"""What a study's trained runs come to, as records: dynamics at their checkpoints, evaluations of their predictions.

Start at `executor`: its table of all analyses, and the one way from runs to records. Nothing is trained. Here: which
runs belong together, and the records of those that are finished; no torch before there is one to add.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from eestudy.config import RunConfig, content_hash
from eestudy.records import Records
from eestudy.store import Store


def grouped(configs: Sequence[RunConfig], varying: Collection[str]) -> dict[str, list[RunConfig]]:
    """The runs whose settings are equal but for the fields `varying`; the key is a hash of the settings."""
    groups: dict[str, list[RunConfig]] = {}
    for config in configs:
        settings = {name: value for name, value in config.model_dump(mode="json").items() if name not in varying}
        groups.setdefault(content_hash(settings), []).append(config)
    return groups


def cells_of(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Runs that differ in strategy and seed alone."""
    return list(grouped(configs, ("strategy", "seed")).values())


def add_records(configs: Iterable[RunConfig], store: Store, records: Records) -> None:
    """The records of those of these runs that are done and have none yet. EestudyError for a run that is damaged."""
    for config in configs:
        folder = store.folder("runs", config.id)
        if not records.has("runs", config.id) and store.whole(folder) and store.phases_whole(folder):
            from eestudy.analysis.run_record import record_of
            from eestudy.runs import Run

            records.add(record_of(Run(config, store), store))
