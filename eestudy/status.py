"""What of a study is done, and what the rest would cost, as lines to print."""

from __future__ import annotations

from collections.abc import Iterator

from eestudy.records import Records
from eestudy.store import Store
from eestudy.study import Study


def status(study: Study, store: Store, records: Records) -> Iterator[str]:
    """How many runs have a record and how many are in the store; then those without a record."""
    recorded = set(records.ids("runs"))
    there = [config for config in study.configs if config.id in recorded]
    finished = store.done("runs")
    done = [config for config in study.configs if config.id in finished]
    yield f"{study.name}: {len(there)} of {len(study.configs)} runs have a record in {records.folder}"
    yield f"{study.name}: {len(done)} of {len(study.configs)} runs are done in {store.path}"
    begun = [path.parent.name for path in sorted((store.path / "phases").glob("*/state-*"))]
    for phase in dict.fromkeys(begun):
        yield f"  begun, with its state saved: {phase}"
    for config in study.configs:
        if config.id not in recorded:
            yield f"  no record{'' if config.id in finished else ', not done'}: {config.id}"


def plan(study: Study, store: Store, records: Records) -> Iterator[str]:
    """Every run with its state and the FLOPs that are left to train, a phase that runs share counted once."""
    from eestudy.plan import outlined  # torch

    recorded, done = set(records.ids("runs")), store.done("runs")
    total, trained = 0.0, store.done("phases")
    yield f"{'run':<44} {'state':<8} {'training GFLOPs':>16}"
    for config in study.configs:
        run_id = config.id
        if run_id in recorded:
            yield f"{run_id:<44} {'recorded':<8} {0:>16,.1f}"
            continue
        plan = outlined(config)
        todo = 0.0
        for phase, phase_id in zip(plan.phases, plan.phase_ids, strict=True):
            if phase_id not in trained:
                todo += plan.step_flops[phase.name] * phase.settings.epochs * plan.outline.train
            trained.add(phase_id)
        todo += plan.once_flops if todo else 0
        state = "done" if run_id in done else "to train" if todo else "shared"
        yield f"{run_id:<44} {state:<8} {todo / 1e9:>16,.1f}"
        total += todo
    there = sum(config.id in recorded for config in study.configs)
    yield (
        f"{len(study.configs)} runs, {there} with a record; {total / 1e9:,.1f} GFLOPs are left to train "
        "(shared phases counted once)"
    )
