"""A trained network for a budget, in one object: thresholds, temperatures, exits worth having, what to expect."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor

from eestudy.config import EestudyError
from eestudy.evaluation import apply_temperatures, fit_temperatures, scores
from eestudy.evaluation.budgets import fitter
from eestudy.evaluation.checks import check_predictions, is_number
from eestudy.evaluation.curves import squared_errors
from eestudy.evaluation.exit_rules import ExitRule, leave_at
from eestudy.evaluation.rules.rule import OfOneExit, predictions
from eestudy.export.one_file import FILES
from eestudy.export.runner import Runner
from eestudy.export.writer import write
from eestudy.models import MultiExit
from eestudy.models.times import of_leaving

SETTINGS, WEIGHTS = "deployed.json", "weights.safetensors"
BATCH = 256  # samples at a time whose logits are computed
LIMITS = 9  # costs up to the budget that are tried
# How good it is; exits; thresholds (K,); costs (K,); the exit of each sample (N,), from 0.
Plan = tuple[tuple[float, float], tuple[int, ...], np.ndarray, np.ndarray, np.ndarray]
_RANK = itemgetter(0)


@dataclass(frozen=True)
class Deployed:
    """What `deploy` gives. Exits are those of the whole network, counted from 1, whether they are on or off.

    rule: thresholds (K,), inf where an exit is off, and temperatures; `simulate(logits, rule)` is where `predict` lets
    samples leave. exits: those that are on. budget, costs (K,; NaN: off), cost (of the mean sample) and backbone (the
    plain one's) are in `unit`: % of the plain backbone's FLOPs, FLOPs, or milliseconds in batches of `batch_size` on
    `hardware`. share (K,): of samples that leave at each exit; accuracies (K,): of these (NaN: nobody does); accuracy:
    of all; in regression mean squared errors. These are what to expect, from as many validation `samples`, which also
    chose the rule: new data may do a little worse.
    """

    network: MultiExit | Runner
    rule: ExitRule
    exits: tuple[int, ...]
    budget: float
    unit: str
    batch_size: int
    hardware: str
    backbone: float
    accuracy: float
    cost: float
    costs: tuple[float, ...]
    share: tuple[float, ...]
    accuracies: tuple[float, ...]
    samples: int

    thresholds = property(lambda self: self.rule.thresholds)
    temperatures = property(lambda self: self.rule.temperatures)

    def predict(self, x: Any) -> tuple[Tensor, Tensor]:
        """x (B, *input_shape) -> logits (B, C), as the exits gave them, and exit_index (B,) in 1..K."""
        if isinstance(self.network, Runner):
            found = self.network.predict(x.numpy(force=True) if isinstance(x, Tensor) else x)
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
        thresholds, temperatures = (
            values and tuple(values[exit - 1] for exit in self.exits) for values in (self.thresholds, self.temperatures)
        )
        own = replace(self.rule, thresholds=thresholds, temperatures=temperatures)
        logits, place = self.network.predict(x, own)
        return logits, torch.tensor(self.exits, device=place.device)[place - 1]

    def save(self, folder: str | Path, onnx: Iterable[str] = ("each",)) -> Path:
        """For `load`: the weights, and `eestudy.export.export` of the exits that are on; onnx=() needs no packages."""
        if isinstance(self.network, Runner):
            raise EestudyError("save: this one was loaded without its network; copy the folder it came from")
        folder = write(self.network, Path(folder), self.rule, tuple(onnx), self.exits)
        facts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "network"}
        facts["rule"] = asdict(self.rule)
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
            facts = json.loads((folder / SETTINGS).read_text(encoding="utf-8"), object_hook=_with_tuples)
            facts["rule"] = ExitRule(**facts["rule"])
            if network is None:
                return cls(Runner(folder), **facts)
            facts["rule"].check_exits(network.num_exits)
            kept = network.keeping(facts["exits"]).eval()
            load_model(kept, str(folder / WEIGHTS))
        except EestudyError:
            raise
        except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise EestudyError(f"folder: {folder} is none of save(), or of another network ({reason})") from None
        return cls(kept, **facts)

    def __str__(self) -> str:
        where = f" in batches of {self.batch_size}, {self.hardware}" if self.unit == "ms" else ""
        score = "accuracy" if self.rule.k is None else "mse"
        lines = [f"budget {self.budget:g} {self.unit} a sample; the plain backbone takes {self.backbone:.4g}{where}",
                 f"expected, from {self.samples} validation samples that also chose the rule ({self.rule.name}): "
                 f"{score} {self.accuracy:.4g} at {self.cost:.4g} {self.unit}",
                 f"exit   threshold  temperature        cost   share  {score:>8}"]  # fmt: skip
        temperatures = self.temperatures or (1.0,) * len(self.costs)
        rows = zip(self.thresholds, temperatures, self.costs, self.share, self.accuracies)
        for exit, (threshold, temperature, cost, share, accuracy) in enumerate(rows, 1):
            own = f"{threshold:>12.6g}{temperature:>13.4g}{cost:>12.4g}{share:>8.1%}{accuracy:>10.4g}"
            lines.append(f"{exit:>4}{own if exit in self.exits else '         off'}")
        return "\n".join(lines)


def deploy(
    network: MultiExit, budget: float, unit: str = "%", validation: Any = None, rule: str | None = None,
    method: str = "shared", temperatures: bool = True, batch_size: int = 1,
) -> Deployed:  # fmt: skip
    """The network for a budget: the mean cost of a sample, in `unit` (see `Deployed`).

    validation: (x, y), samples and their labels, or (logits (K, N, C), labels (N,)), as `run.predictions("validation")`
    gives them. rule: of the exit rules; None: max-probability, in regression patience. method: see `calibrate`.
    temperatures: fitted to each exit and used in routing, where the rule reads probabilities.
    Of what the budget allows the most accurate on these data is taken, of equals the cheapest. An exit without which
    that is no worse is switched off, one after another, and its head not computed any more. All stay where a head reads
    the one before it, and with patience.
    Raises EestudyError for a budget below the cheapest exit's cost, bad validation data, training mode, another unit.
    """
    if network.training:
        raise EestudyError("deploy: the model is in training mode; call model.eval() first")
    if not is_number(budget) or not 0 < budget < math.inf:
        raise EestudyError(f"budget: {budget!r} is not valid; give a number above 0, in {unit}")
    logits, labels = _predictions(network, validation)
    regression, count = logits.shape[2] == 1, network.num_exits
    asked = ExitRule(rule or ("patience" if regression else "max-probability"), math.inf, 1 if regression else None)
    of_one_exit = isinstance(asked.rule_for(logits.shape[2]), OfOneExit)
    routed: Any = logits
    if temperatures and of_one_exit:
        fitted = fit_temperatures(logits, labels)
        asked, routed = replace(asked, temperatures=tuple(fitted.tolist())), apply_temperatures(logits, fitted)
    score = scores(logits, asked).astype(np.float64)
    worth = -squared_errors(logits, labels) if regression else predictions(logits).numpy() == labels
    measured = network.costs("flops" if unit == "%" else unit, batch_size, asked)
    size, ends = measured.backbone / 100 if unit == "%" else 1.0, (*network.exit_stages, len(network.backbone.stages))

    def tried(exits: Sequence[int]) -> list[Plan]:
        """What these exits alone come to for the budget, or less of it: deeper exits are not always better."""
        at, cost = np.array(exits) - 1, of_leaving(measured, ends, exits) / size
        if budget < cost[0]:
            return []
        fit, plans = fitter((routed[at], labels), cost, asked.name, method), []
        for limit in np.unique(np.linspace(cost[0], min(budget, cost[-1]), LIMITS)):
            thresholds, costs = np.full(count, math.inf), np.full(count, math.nan)
            thresholds[at], costs[at] = [_between(*pair) for pair in zip(score[at], fit(limit))], cost
            index = leave_at(score, thresholds) - 1
            rank = float(worth[index, np.arange(len(index))].mean()), -float(costs[index].mean())
            plans.append((rank, tuple(exits), thresholds, costs, index))
        return plans

    every = range(1, count + 1)
    best = max(next(filter(None, (tried(every[exit - 1 :]) for exit in every)), []), key=_RANK, default=None)
    if best is None:
        least = min(of_leaving(measured, ends, [exit])[0] for exit in every) / size
        raise EestudyError(f"budget: {budget:g} {unit} is below the cheapest exit's cost, {least:.4g} {unit}")
    reads = bool(network.last_exit_boost) or any(network.head(stage).reads_previous for stage in network.exit_stages)
    while of_one_exit and not reads and len(best[1]) > 1:
        others = [tried([exit for exit in best[1] if exit != off]) for off in best[1][:-1]]
        better = max(chain(*others), key=_RANK, default=None)
        if better is None or better[0] < best[0]:
            break
        best = better
    rank, exits, thresholds, spent, index = best
    own, left = worth[index, np.arange(len(labels))], np.bincount(index, minlength=count)
    sums = np.bincount(index, weights=own, minlength=count)
    means = np.divide(sums, left, out=np.full(count, math.nan), where=left > 0)
    return Deployed(
        network.keeping(exits), replace(asked, thresholds=tuple(thresholds.tolist())), exits, float(budget), unit,
        batch_size, getattr(measured, "hardware", ""), float(measured.backbone / size), abs(rank[0]), -rank[1],
        tuple(spent.tolist()), tuple((left / len(labels)).tolist()), tuple(abs(means).tolist()), len(labels),
    )  # fmt: skip


def _with_tuples(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}


def _between(score: np.ndarray, threshold: float) -> float:
    """In the middle between two samples' scores, so that rounding elsewhere moves none of them; the same ones leave."""
    above, below = score[score > threshold], score[score <= threshold]
    return float(above.min() + below.max()) / 2 if len(above) and len(below) else threshold


@torch.no_grad()
def _predictions(network: MultiExit, validation: Any) -> tuple[Tensor, np.ndarray]:
    """Logits (K, N, C) and labels (N,) of what was given."""
    wanted = "give (x, y), samples and labels, or (logits (K, N, C), labels)"
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise EestudyError(f"validation: {type(validation).__name__} is not valid; {wanted}")
    first, labels = validation
    shape = getattr(first, "shape", ())
    if shape[1:] != network.input_shape and shape[::2] == (network.num_exits, network.num_classes):
        return check_predictions(first, labels)
    x = network.inputs(first)
    if not len(x):
        raise EestudyError(f"validation: there are no samples in it; {wanted}")
    return check_predictions(torch.cat([torch.stack(network(part)) for part in x.split(BATCH)], 1), labels)
