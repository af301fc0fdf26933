"""Where exits stand: which stages get a head."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from eestudy.config import EestudyError
from eestudy.environment import say
from eestudy.models.backbone import Backbone, device_of, stage_flops
from eestudy.registry import imported

# "all" but the last, their numbers, {"every": n}, or per cents of the plain backbone: {"flops": [..]} or,
# measured on this device for one sample when the network is made, {"time": [..]}.
Placement = Iterable[int] | str | Mapping[str, Any]


def exit_stages(exits: Placement, backbone: Backbone) -> tuple[int, ...]:
    """The stages that get a head, checked against those there are."""
    num_stages = len(backbone.stages)
    if num_stages < 2:
        raise EestudyError(f"exits: the backbone has {num_stages} stage, so there is no place for an early exit")
    if isinstance(exits, Mapping) and list(exits) in (["flops"], ["time"]):
        [(unit, shares)] = exits.items()
        return _at_shares(unit, shares, backbone)
    try:
        if isinstance(exits, Mapping):
            [(name, step)] = exits.items()
            stages = tuple(range(step, num_stages, step)) if name == "every" else ()
        else:
            given: Any = range(1, num_stages) if exits == "all" else [exits] if isinstance(exits, int) else exits
            stages = tuple(sorted(operator.index(stage) for stage in given))
    except (TypeError, ValueError):
        stages = ()  # which the line below shows
    if not stages or any(not 1 <= stage < num_stages for stage in stages) or len(set(stages)) < len(stages):
        shown = list(stages) if stages and not isinstance(exits, Mapping) else exits
        raise EestudyError(
            f"exits: {shown} is not valid for {num_stages} stages; "
            f"give 'all' or different stages from 1 to {num_stages - 1} (the last exit is the backbone's classifier)"
        )
    return stages


def _at_shares(unit: str, shares: Any, backbone: Backbone) -> tuple[int, ...]:
    """For each per cent of the backbone's FLOPs or time the stage after which nearest to it is spent."""
    given = list(shares) if isinstance(shares, Iterable) and not isinstance(shares, str) else []
    if not given or not all(isinstance(share, (int, float)) and 0 < share < 100 for share in given):
        raise EestudyError(f"exits: {unit}: {shares!r} is not valid; give per cents of the backbone, such as [25, 50]")
    if unit == "flops":
        *stages, classifier = map(float, stage_flops(backbone))
    else:
        parts = dict(enumerate((*backbone.stages, backbone.classifier)))
        # By name, as few ask for times.
        noise, part_times = (imported(f"models.times:{name}") for name in ("noise", "part_times"))
        x = noise(backbone.dry_input()).to(device_of(backbone))
        *stages, classifier = (median for median, *_ in part_times(backbone, parts, x).values())
    whole = sum(stages) + classifier
    spent = [100 * sum(stages[:number]) / whole for number in range(1, len(stages))]
    taken: dict[int, float] = {}
    for share in given:
        stage = 1 + min(range(len(spent)), key=lambda index: abs(spent[index] - share))
        if stage in taken:
            raise EestudyError(
                f"exits: {unit}: {taken[stage]:g} % and {share:g} % both fall on stage {stage} "
                f"({spent[stage - 1]:.1f} %); leave one of them out"
            )
        taken[stage] = share
    if unit == "time":
        places = ", ".join(f"stage {stage} ({spent[stage - 1]:.1f} %)" for stage in sorted(taken))
        say(f"exits: after {places} of {whole:.3g} ms, measured on this device for one sample")
    return tuple(sorted(taken))
