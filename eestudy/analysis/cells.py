"""Which runs of a study belong together. No torch here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from eestudy.config import RunConfig, content_hash


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
