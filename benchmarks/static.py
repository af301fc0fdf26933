"""Milliseconds a sample of smaller plain networks and of early-exit networks at budgets, on test data.

    eestudy run params/dynamics.yaml; eestudy run params/baselines.yaml
    python benchmarks/static.py -> static.json

The networks of seed 0, from the store, with thresholds calibrated on validation data; batches of 1 and of 256. The
chapter Static baselines sets their accuracies beside these times.
"""

from __future__ import annotations

import json
from typing import Any

from timing import hardware, save

import eestudy
from eestudy import evaluation
from eestudy.chapters.static_baselines import WHOLE, named
from eestudy.config import EestudyError
from eestudy.evaluation.clock import PLAIN, timed
from eestudy.study import load_study, project_root

BUDGETS = (0.25, 0.5, 0.75, 1.0)
SIZES = (1, 256)
SAMPLES = {1: 128, 256: 1024}  # how many of the test set are timed


def runs(study: str) -> list[eestudy.Run]:
    """Those of seed 0, trained already."""
    configs = load_study(project_root() / "params" / f"{study}.yaml").configs
    return [eestudy.run(config) for config in configs if config.seed == 0]


def place_of(run: eestudy.Run) -> str:
    return f"{run.config.architecture} / {run.config.dataset}"


def milliseconds(run: eestudy.Run, budgets: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """By budget, and of the plain backbone (PLAIN): by batch size, milliseconds a sample."""
    model, x = run.model(), run.data().test.inputs()
    logits, labels = run.predictions("validation")
    rules = {}
    for share in budgets:
        try:
            thresholds = evaluation.calibrate(logits, labels, run.costs, share * run.backbone_flops, "max-probability")
        except EestudyError:  # below the first exit's cost
            continue
        rules[f"{share:g}"] = evaluation.per_exit(thresholds, "max-probability")
    found: dict[str, dict[str, float]] = {}
    for size in SIZES:
        for name, times in timed(model, rules, x[: SAMPLES[size]], size, repeats=9, seconds=30).items():
            each = times.whole / (size * times.milliseconds.shape[1])
            found.setdefault(name, {})[str(size)] = each
    return found


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for run in runs("baselines"):
        name = named(run.config.architecture_args)
        own = found.setdefault(place_of(run), {"plain": {}, "early": {}})
        own["plain"][name] = milliseconds(run, ())[PLAIN]
        print(place_of(run), name, own["plain"][name], flush=True)
    for run in runs("dynamics"):
        own = found[place_of(run)]
        times = milliseconds(run, BUDGETS)
        own["plain"].setdefault(WHOLE, times[PLAIN])
        own["early"][run.config.strategy] = {name: each for name, each in times.items() if name != PLAIN}
        print(place_of(run), run.config.strategy, json.dumps(times), flush=True)
    save("static", {"hardware": hardware(), "milliseconds": found})


if __name__ == "__main__":
    main()
