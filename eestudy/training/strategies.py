"""Training strategies: name -> tuple of phases, pure data (Kubaty et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from eestudy.config import EestudyError, RunConfig
from eestudy.registry import STRATEGIES
from eestudy.training.phases import Phase

# The stage that each exit reads, counted from 1; the last is the backbone's last. A strategy is a function of the
# share of the epochs that the first of several phases takes (`phase_split`), and of these.
Stages = tuple[int, ...]


def backbone_phase(share: float) -> Phase:
    """Phase 1: the backbone alone, with its own classifier."""
    return Phase("backbone", ("backbone",), "last", share)


def together_phase(share: float) -> Phase:
    """Phase 2: backbone and heads, on the losses of all exits, the last one included."""
    return Phase("together", ("backbone", "heads"), "all", share)


def heads_phase(share: float) -> Phase:
    """Phase 3: heads only; the backbone, its classifier and its BatchNorm statistics stay bit for bit."""
    return Phase("heads", ("heads",), "internal", share)


def disjoint(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    return backbone_phase(split), heads_phase(1 - split)


def joint(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    return (together_phase(1.0),)


def mixed(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    return backbone_phase(split), together_phase(1 - split)


def mixed_heads(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    return backbone_phase(split), together_phase((1 - split) / 2), heads_phase((1 - split) / 2)


def joint_heads(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    return together_phase(split), heads_phase(1 - split)


def alternating(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    """Odd steps train the backbone on the last exit's loss, even ones everything on all (Xin et al. 2021, BERxiT).

    On odd steps the heads do not run. As everywhere, the loss of all is their mean where the paper has the sum.
    """
    return (Phase("alternating", ("backbone", "heads"), "all", 1.0, turns=("last", "all")),)


def branch_wise(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    """Exit by exit from the first on; only the stages since the exit before train, with this exit's head.

    So no exit changes once it is trained (the strategy as arXiv 2605.05358 reports it).
    """
    count = len(stages)
    return tuple(
        Phase(f"branch{exit}", _parts(exit, count), (exit,), 1 / count, stages=(first + 1, last))
        for exit, (first, last) in enumerate(zip((0, *stages), stages), 1)
    )


def separate(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    """Exit by exit from the first on, each trained jointly with the earlier ones, all unfrozen (2605.05358)."""
    return _growing("exits", stages)


def sequential_lwf(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    """Exit by exit, all unfrozen; the labels teach the new exit, the earlier ones learn to answer as they did.

    Learning without Forgetting (Li and Hoiem 2016) for exits after arXiv 2605.05358; the definition is ours.
    """
    return tuple(dataclasses.replace(phase, keeps="lwf") for phase in _growing("lwf", stages))


def sequential_ewc(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    """Exit by exit; the labels teach the new exit, and a penalty holds the stages where the earlier ones need them.

    Elastic weight consolidation (Kirkpatrick et al. 2017) for exits after arXiv 2605.05358; the definition is ours.
    Earlier heads, which nothing but the penalty would train, are frozen.
    """
    count = len(stages)
    return tuple(
        Phase(f"ewc{exit}", _parts(exit, count), (exit,), 1 / count, stages=(1, last), keeps="ewc")
        for exit, last in enumerate(stages, 1)
    )


def gradual(split: float, stages: Stages = ()) -> tuple[Phase, ...]:
    """The backbone alone, then with its deepest head, and so on until all exits are trained together."""
    count = len(stages)
    joining = tuple(
        Phase(f"deepest{count - first + 1}", ("backbone", "heads"), tuple(range(first, count + 1)), 1 / count)
        for first in range(count - 1, 0, -1)
    )
    return (backbone_phase(1 / count), *joining) if count else ()


def _growing(name: str, stages: Stages) -> tuple[Phase, ...]:
    """Exits 1 to k in phase k, with all that leads to them."""
    count = len(stages)
    return tuple(
        Phase(f"{name}{exit}", ("backbone", "heads"), tuple(range(1, exit + 1)), 1 / count, stages=(1, last))
        for exit, last in enumerate(stages, 1)
    )


def _parts(exit: int, count: int) -> tuple[str, ...]:
    return ("backbone", "heads") if exit < count else ("backbone",)


# Those whose phases depend on the network's exits: they need `stages`.
BY_EXIT = ("branch-wise", "separate", "gradual", "sequential-lwf", "sequential-ewc")


def phases_of(config: RunConfig, stages: Sequence[int] = ()) -> tuple[Phase, ...]:
    """The phases of a run, without its settings. stages: see Stages; needed for the strategies in BY_EXIT.

    A phase without a share is left out: `mixed` with `phase_split: 0` is joint, with 1 it is the plain backbone, whose
    heads stay untrained. With `start: trained` the phase of the backbone alone is left out too, and the others share
    all epochs. Raises EestudyError where that leaves the backbone untrained (a model of one's own may
    be) or nothing to train, and for a warm start that has no place.
    """
    assert stages or config.strategy not in BY_EXIT
    phases = STRATEGIES[config.strategy](config.phase_split, tuple(stages))
    trained = config.start == "trained"
    phases = tuple(phase for phase in phases if phase.share > 0 and not (trained and phase.name == "backbone"))
    if not phases:
        raise EestudyError(
            f"phase_split: {config.phase_split:g} leaves nothing to train in {config.strategy} with start trained; "
            "give less than 1"
        )
    if trained:
        whole = sum(phase.share for phase in phases)
        phases = tuple(dataclasses.replace(phase, share=phase.share / whole) for phase in phases)
    elif config.architecture != "own" and not any("backbone" in phase.trains for phase in phases):
        raise EestudyError(
            f"phase_split: {config.phase_split:g} leaves the backbone untrained in {config.strategy}; give more than 0"
        )
    return _warm_started(phases, config) if config.warm_start else phases


def _warm_started(phases: tuple[Phase, ...], config: RunConfig) -> tuple[Phase, ...]:
    """With heads alone before the phase that trains them with the backbone, out of that phase's share."""
    before = 0 if config.start == "trained" else 1
    if [phase.name for phase in phases[: before + 1]] != ["backbone", "together"][1 - before :]:
        raise EestudyError(
            f"warm_start: {config.strategy} at phase_split {config.phase_split:g} has no phase of the backbone alone "
            "before heads and backbone train together; it is for mixed and mixed-heads"
        )
    *backbone, together = phases[: before + 1]
    if config.warm_start >= together.share:
        raise EestudyError(
            f"warm_start: {config.warm_start:g} of the epochs is not less than the {together.share:g} of the phase "
            "it is taken from"
        )
    shorter = dataclasses.replace(together, share=together.share - config.warm_start)
    probes = dataclasses.replace(heads_phase(config.warm_start), name="probes")
    return (*backbone, probes, shorter, *phases[before + 1 :])
