"""A trained network for a budget, in one object: thresholds, temperatures, exits worth having, what to expect.

What to expect comes from the validation data that also chose it, so on new data it is a little less.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.evaluation import apply_temperatures, calibrate, fit_temperatures, per_exit, scores
from eestudy.evaluation.budgets import measured
from eestudy.evaluation.checks import check_predictions, is_number
from eestudy.evaluation.exit_rules import ExitRule, leave_at
from eestudy.evaluation.rules.rule import OfOneExit
from eestudy.export.one_file import FILES
from eestudy.export.runner import Runner
from eestudy.export.writer import write
from eestudy.models import MultiExit
from eestudy.models.times import check_unit, of_leaving

UNITS = ("%", "flops", "ms")
SETTINGS, WEIGHTS = "deployed.json", "weights.safetensors"
BATCH = 256  # samples at a time whose logits are computed


@dataclass(frozen=True)
class Deployed:
    """What `deploy` gives. Exits are those of the whole network, counted from 1, whether they are on or off.

    rule: thresholds (K,), inf where an exit is off, and temperatures; `simulate(logits, rule)` is where `predict` lets
    samples leave. exits: those that are on. budget, costs (K,; None: off) and cost (expected, of a sample) are in
    `unit`: % of the plain backbone's FLOPs, FLOPs, or milliseconds in batches of `batch_size` on `hardware`.
    backbone: what the plain one costs. share (K,): of samples expected to leave at each exit; scores (K,): accuracy of
    those (regression: mean squared error; None: nobody leaves). expected: accuracy (regression: r2, ..) of all.
    samples: of the validation data that these come from.
    """

    network: MultiExit | Runner
    rule: ExitRule
    exits: tuple[int, ...]
    budget: float
    unit: str
    batch_size: int
    hardware: str
    backbone: float
    cost: float
    costs: tuple[float | None, ...]
    share: tuple[float, ...]
    scores: tuple[float | None, ...]
    expected: dict[str, float]
    samples: int

    @property
    def accuracy(self) -> float:
        """Expected; in regression R2."""
        return next(iter(self.expected.values()))

    @property
    def rank(self) -> tuple[float, float]:
        """Of two for one budget the larger one is better."""
        return self.expected.get("accuracy", -self.expected.get("mse", 0.0)), -self.cost

    @property
    def thresholds(self) -> tuple[float, ...]:
        return tuple(self.rule.threshold(k) for k in range(1, len(self.costs) + 1))

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        return self.rule.temperatures

    def predict(self, x: Any) -> tuple[Tensor, Tensor]:
        """x (B, *input_shape) -> logits (B, C), as the exits gave them, and exit_index (B,) in 1..K."""
        if isinstance(self.network, Runner):
            found = self.network.predict(x.numpy(force=True) if isinstance(x, Tensor) else x)
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
        logits, place = self.network.predict(x, _of(self.rule, self.exits))
        return logits, torch.tensor(self.exits, device=place.device)[place - 1]

    def save(self, folder: str | Path, onnx: Iterable[str] = ("each",)) -> Path:
        """For `load`: the weights, and `eestudy.export.export` of the exits that are on; onnx=() needs no packages."""
        if isinstance(self.network, Runner):
            raise EestudyError("save: this one was loaded without its network; copy the folder it came from")
        folder = write(self.network, Path(folder), self.rule, tuple(onnx), self.exits)
        facts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "network"}
        facts["rule"] = {**asdict(self.rule), "thresholds": [str(value) for value in self.thresholds]}
        (folder / SETTINGS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        save_model(self.network, str(folder / WEIGHTS))
        return folder

    def export(self, folder: str | Path) -> Path:
        """`save`, with the ONNX files that hold all exits beside."""
        return self.save(folder, ("each", *FILES))

    @classmethod
    def load(cls, folder: str | Path, network: MultiExit | None = None) -> Deployed:
        """What `save` wrote; no code in it is run. Without a network it predicts by onnxruntime, on the processor.

        network: made as the saved one was, with all its exits; it gets the saved weights and stays on its device.
        Raises EestudyError for another folder or network.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            rule = facts.pop("rule")
        except (OSError, ValueError, KeyError) as error:
            raise EestudyError(f"folder: {folder / SETTINGS} cannot be read ({error}); save() makes it") from None
        facts = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
        made = per_exit([float(each) for each in rule["thresholds"]], rule["name"], rule["k"], rule["temperatures"])
        if network is None:
            return cls(network=Runner(folder), rule=made, **facts)
        made.check_exits(network.num_exits)
        kept = network.keeping(facts["exits"])
        try:
            load_model(kept, str(folder / WEIGHTS))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise EestudyError(f"network: {folder / WEIGHTS} does not go into it ({reason})") from None
        return cls(network=kept.eval(), rule=made, **facts)

    def table(self) -> pd.DataFrame:
        """One row an exit: exit, on, threshold, temperature, cost (in `unit`), share, accuracy (regression: mse)."""
        score = "mse" if "mse" in self.expected else "accuracy"
        count = len(self.costs)
        return pd.DataFrame(
            {
                "exit": range(1, count + 1),
                "on": [exit in self.exits for exit in range(1, count + 1)],
                "threshold": self.thresholds,
                "temperature": self.temperatures or (1.0,) * count,
                "cost": np.array(self.costs, dtype=float),
                "share": self.share,
                score: np.array(self.scores, dtype=float),
            }
        )

    def __str__(self) -> str:
        named = ", ".join(f"{name} {value:.4g}" for name, value in self.expected.items())
        where = f" in batches of {self.batch_size}, {self.hardware}" if self.unit == "ms" else ""
        rows = self.table().assign(on=lambda table: table["on"].map({True: "on", False: "off"}))
        return (
            f"budget {self.budget:g} {self.unit} a sample (plain backbone: {self.backbone:.4g} {self.unit}{where})\n"
            f"expected, from {self.samples} validation samples that also chose the thresholds: "
            f"{named} at {self.cost:.4g} {self.unit}\n{rows.to_string(index=False, float_format='%.4g', na_rep='-')}"
        )


def deploy(
    network: MultiExit, budget: float, unit: str = "%", validation: Any = None, rule: str | None = None,
    method: str = "shared", temperatures: bool = True, batch_size: int = 1,
) -> Deployed:  # fmt: skip
    """The network for a budget: the mean cost of a sample, in `unit` (see `Deployed`).

    validation: (x, y), samples and their labels, or (logits (K, N, C), labels (N,)), as `run.predictions("validation")`
    gives them. rule: of the exit rules; None: max-probability, in regression patience. method: see `calibrate`.
    temperatures: fitted to each exit and used in routing, where the rule reads probabilities.
    An exit without which the same budget buys more accuracy, or as much for less, is switched off, one after another;
    its head is not computed any more. All stay where a head reads the one before it, and with patience.
    Raises EestudyError for a budget below the cheapest exit's cost, bad validation data, training mode, another unit.
    """
    if not isinstance(network, MultiExit):
        raise EestudyError(
            f"deploy: give a MultiExit, got {type(network).__name__}; add_exits(model, after=[...]) makes one"
        )
    if network.training:
        raise EestudyError("deploy: the model is in training mode; call model.eval() first")
    check_unit(unit, UNITS)
    if not is_number(budget) or not 0 < budget < math.inf:
        raise EestudyError(f"budget: {budget!r} is not valid; give a number above 0, in {unit}")
    logits, labels = _predictions(network, validation)
    regression = logits.shape[2] == 1
    asked = ExitRule(rule or ("patience" if regression else "max-probability"), math.inf, 1 if regression else None)
    of_one_exit = isinstance(asked.rule_for(logits.shape[2]), OfOneExit)
    if temperatures and of_one_exit:
        asked = replace(asked, temperatures=tuple(fit_temperatures(logits, labels).tolist()))
    costs = network.costs("ms" if unit == "ms" else "flops", batch_size, asked)
    size, ends = costs.backbone / 100 if unit == "%" else 1.0, (*network.exit_stages, len(network.backbone.stages))
    facts = {"budget": float(budget), "unit": unit, "batch_size": batch_size, "backbone": float(costs.backbone / size),
             "hardware": getattr(costs, "hardware", "")}  # fmt: skip

    def tried(exits: Sequence[int]) -> Deployed | None:
        cost = of_leaving(costs, ends, exits) / size
        return (
            _tried(exits, cost, logits, labels, method, network=network, rule=asked, **facts)
            if budget >= cost[0]
            else None
        )

    every = range(1, network.num_exits + 1)
    found = next((made for exit in every if (made := tried(every[exit - 1 :]))), None)
    if found is None:
        least = min(float(of_leaving(costs, ends, [exit])[0]) for exit in every) / size
        raise EestudyError(f"budget: {budget:g} {unit} is below the cheapest exit's cost, {least:.4g} {unit}")
    alone = not network.last_exit_boost and not any(network.head(at).reads_previous for at in network.exit_stages)
    while of_one_exit and alone:
        others = [tried([exit for exit in found.exits if exit != off]) for off in found.exits[:-1]]
        best = max((other for other in others if other), key=lambda other: other.rank, default=found)
        if best.rank <= found.rank:
            break
        found = best
    return replace(found, network=network.keeping(found.exits))


def _tried(
    exits: Sequence[int], costs: np.ndarray, logits: Tensor, labels: np.ndarray, method: str, rule: ExitRule,
    **facts: Any,
) -> Deployed:  # fmt: skip
    """What these exits alone give for the budget."""
    part, own = logits[[exit - 1 for exit in exits]], _of(rule, exits)
    routed = part if own.temperatures is None else apply_temperatures(part, own.temperatures)
    # At the whole cost `calibrate` lets nobody leave, also where some are better off leaving.
    most = math.nextafter(costs[-1], 0) if method == "optimized" and len(exits) > 1 else costs[-1]
    thresholds = calibrate(routed, labels, costs, min(facts["budget"], most), rule.name, method)
    score = scores(part, own)
    thresholds = np.array([_between(*pair) for pair in zip(score.astype(np.float64), thresholds)])
    index = leave_at(score, thresholds) - 1
    count = facts["network"].num_exits
    found: dict[str, Any] = {"thresholds": [math.inf] * count, "costs": [None] * count, "scores": [None] * count}
    for place, exit in enumerate(exits):
        who = index == place
        there = measured(part[:, who], labels[who], index[who]) if who.any() else {}
        found["thresholds"][exit - 1] = float(thresholds[place])
        found["costs"][exit - 1] = float(costs[place])
        found["scores"][exit - 1] = there.get("accuracy", there.get("mse"))
    return Deployed(
        rule=replace(rule, thresholds=tuple(found["thresholds"])), exits=tuple(exits), cost=float(costs[index].mean()),
        costs=tuple(found["costs"]), scores=tuple(found["scores"]), samples=len(index),
        share=tuple((np.bincount(np.array(exits)[index], minlength=count + 1)[1:] / len(index)).tolist()),
        expected={name: float(value) for name, value in measured(part, labels, index).items()}, **facts,
    )  # fmt: skip


def _between(score: np.ndarray, threshold: float) -> float:
    """In the middle between two samples' scores, so that rounding elsewhere moves none of them; the same ones leave."""
    above = score[score > threshold]
    return (threshold + float(above.min())) / 2 if math.isfinite(threshold) and len(above) else threshold


def _of(rule: ExitRule, exits: Sequence[int]) -> ExitRule:
    """The rule of a network that has these exits alone."""
    temperatures = rule.temperatures and tuple(rule.temperatures[exit - 1] for exit in exits)
    return replace(rule, thresholds=tuple(rule.threshold(exit) for exit in exits), temperatures=temperatures)


@torch.no_grad()
def _predictions(network: MultiExit, validation: Any) -> tuple[Tensor, np.ndarray]:
    """Logits (K, N, C) and labels (N,) of what was given."""
    wanted = "give (x, y), samples and labels, or (logits (K, N, C), labels)"
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise EestudyError(f"validation: {type(validation).__name__} is not valid; {wanted}")
    first, labels = validation
    shape, inputs = tuple(np.shape(first)), network.input_shape
    if shape[1:] != inputs and len(shape) == 3 and (shape[0], shape[2]) == (network.num_exits, network.num_classes):
        return check_predictions(first, labels)
    parts = [torch.stack(network(part)).float().cpu() for part in network.inputs(first).split(BATCH)]
    if not parts or not len(parts[0][0]):
        raise EestudyError(f"validation: there are no samples in it; {wanted}")
    return check_predictions(torch.cat(parts, 1), labels)
