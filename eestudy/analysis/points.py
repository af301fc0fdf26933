"""Where the dynamics of a cell's runs are measured: at single checkpoints, at pairs of them, at three of them.

A point is a run at a share of one of its phases. What finds points takes the configs of a cell (all its seeds and
strategies) and yields tuples of points, each with facts to note.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from eestudy.config import RunConfig
from eestudy.plan import planned

# How the two networks of a pair are related. "seeds" are the controls of "strategies".
STRATEGIES, SEEDS, START_AND_END = "strategies", "seeds", "start and end"


@dataclass(frozen=True)
class Point:
    """A run's network at `share` per cent of its phase number `phase` (from 1)."""

    config: RunConfig
    phase: int
    share: int

    @property
    def progress(self) -> float:
        """Share of the whole run's epochs that are behind it, by the phases' shares."""
        shares = [phase.share for phase in planned(self.config)]
        return sum(shares[: self.phase - 1]) + self.share / 100 * shares[self.phase - 1]

    @property
    def kept(self) -> bool:
        """Whether the run has a checkpoint there."""
        return self.share in {*self.config.checkpoints, 100}


Found = Iterator[tuple[tuple[Point, ...], dict[str, Any]]]
Finder = Callable[[Sequence[RunConfig]], Found]


def start(config: RunConfig) -> Point:
    return Point(config, 1, 0)


def end(config: RunConfig) -> Point:
    return Point(config, len(planned(config)), 100)


def along_training(
    configs: Sequence[RunConfig], shares: Collection[int] | None = None, backbone_only: bool = False
) -> Found:
    """Every run at `shares` of every phase (None: at all its checkpoints)."""
    for config in configs:
        for number, phase in enumerate(planned(config), 1):
            frozen = backbone_only and "backbone" not in phase.trains
            for share in sorted({*config.checkpoints, 100}):
                wanted = shares is None or share in shares
                # The start of a later phase is the end of the one before; a frozen backbone stays what it was.
                if wanted and (share or number == 1) and not (frozen and share < 100):
                    yield (Point(config, number, share),), {}


def final_pairs(configs: Sequence[RunConfig], relations: Collection[str] = (STRATEGIES, SEEDS)) -> Found:
    """Finished runs of different strategies with the same seed; of one strategy with other seeds, in a ring.

    START_AND_END: each run and its own start. Facts: relation.
    """
    for number, left in enumerate(configs):
        for right in configs[number + 1 :] if STRATEGIES in relations else ():
            if left.seed == right.seed:
                yield (end(left), end(right)), {"relation": STRATEGIES}
        same = [other for other in configs if other.strategy == left.strategy]
        after = same[(same.index(left) + 1) % len(same)]
        if SEEDS in relations and after != left and not (len(same) == 2 and same.index(left)):
            yield (end(left), end(after)), {"relation": SEEDS}
        if START_AND_END in relations:
            yield (start(left), end(left)), {"relation": START_AND_END}


def final_pairs_of_two_seeds(configs: Sequence[RunConfig]) -> Found:
    """`final_pairs` of the first two seeds alone, for what takes long."""
    yield from final_pairs([config for config in configs if config.seed in _first_two_seeds(configs)])


def pairs_during_training(configs: Sequence[RunConfig], progresses: Sequence[float]) -> Found:
    """Pairs of networks where both have a checkpoint at a share of the run; and each run's start and end.

    The pairs: different strategies with the same seed; as a control each strategy with the first two seeds. Facts:
    relation, and progress, which is 1 of start and end. How far a phase is that ends by patience is not known before:
    such runs are paired at their start alone.
    """
    for number, left in enumerate(configs):
        for right in configs[number + 1 :]:
            if left.seed == right.seed:
                relation = STRATEGIES
            elif left.strategy == right.strategy and {left.seed, right.seed} == _first_two_seeds(configs):
                relation = SEEDS
            else:
                continue
            for progress in progresses if left.match != "patience" else (0,):
                points = _at(left, progress), _at(right, progress)
                if points[0] and points[1]:
                    yield (points[0], points[1]), {"relation": relation, "progress": progress}
        yield (start(left), end(left)), {"relation": START_AND_END, "progress": 1.0}


def final(configs: Sequence[RunConfig]) -> Found:
    """Every finished run."""
    yield from (((end(config),), {}) for config in configs)


def three_strategies(configs: Sequence[RunConfig]) -> Found:
    """The finished runs of the smallest seed, where they are three."""
    ends = tuple(end(config) for config in configs if config.seed == min(each.seed for each in configs))
    if len(ends) == 3:
        yield ends, {}


def _first_two_seeds(configs: Sequence[RunConfig]) -> set[int]:
    return set(list(dict.fromkeys(config.seed for config in configs))[:2])


def _at(config: RunConfig, progress: float) -> Point | None:
    """The run's checkpoint at that share of its epochs, if it has one."""
    shares = sorted({*config.checkpoints, 100})
    every = (Point(config, number, share) for number in range(1, len(planned(config)) + 1) for share in shares)
    return next((point for point in every if abs(point.progress - progress) < 1e-6), None)
