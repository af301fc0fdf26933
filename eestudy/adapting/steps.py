"""Cut, place exits, train, calibrate, export: one call from a model to what is deployed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from eestudy.adapting.adapted import MODEL, PAGE, Adapted
from eestudy.adapting.page import write_page
from eestudy.config import EestudyError, RunConfig
from eestudy.data.own import given
from eestudy.data.own_splits import NORMALIZATIONS
from eestudy.data.splits import Split
from eestudy.environment import hardware, say
from eestudy.evaluation.exit_rules import simulate
from eestudy.export.deployed import BATCH, Deployed, deploy
from eestudy.models import MultiExit
from eestudy.models.cut.any_model import add_exits
from eestudy.models.cut.named import SOURCES, named
from eestudy.models.cut.places import exits_at
from eestudy.models.cut.weights import load_weights
from eestudy.plan import load_data, outline_of
from eestudy.runs import Run, run
from eestudy.store import Store, check_writable, write_atomically

BUDGET = re.compile(r"\s*([0-9.]+)\s*(%|ms)\s*")
PLACES = "places.json"  # in the folder that is written
STRATEGIES = ("mixed", "joint", "disjoint")  # tried with `train`; disjoint alone without
TIMED, SECONDS = 100, 10.0  # test samples whose latency is measured, at most; seconds after which no more are


def adapt(
    model: nn.Module | MultiExit, data: Any, budget: str = "60%", out: str | Path = "adapted", exits: int = 3,
    train: bool = False, epochs: int = 20, lr: float = 1e-3, weights: str | Path | None = None,
    normalization: str | None = None, store: str | Path | None = None, device: str | None = None,
) -> Adapted:  # fmt: skip
    """An early-exit network for `budget` from a trained model, exported to the folder `out`, with a page on it.

    model: a torch module, or a network that has exits already. data: as `eestudy.run` takes it; inputs of its shape go
    through the model. budget: "60%" of the model's FLOPs, or "20ms" a sample on this device; `exits` are placed by the
    same. Only their heads are trained, for `epochs` at the rate `lr`, and the model stays as it is; with `train`
    everything is, from the model's weights, by each of STRATEGIES, and the one most accurate on validation data at the
    budget is taken. weights: a file that the model's are read from before. normalization: of the inputs, as the model
    was trained with; None: of NORMALIZATIONS the one with which it is right most often on validation data, which is
    said. store: of the runs, default `out`/runs, where a killed one goes on.
    Raises EestudyError for a budget that cannot be kept and for a folder that holds something else.
    """
    limit, unit = budget_of(budget)
    folder = Path(out)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there and not there & {"runs", PLACES, PAGE}:
        raise EestudyError(f"out: {folder} holds something else; give a new folder")
    check_writable(folder)
    asked = given(
        RunConfig(architecture="own", dataset="own", strategy="disjoint", start="trained", epochs=epochs, lr=lr), data
    )
    facts = outline_of(asked)
    if facts.task != "classification":
        raise EestudyError(f"data: {facts.task} is not adapted yet; eestudy.run and deploy do it step by step")
    if weights is not None:
        load_weights(model, weights)
    if isinstance(model, MultiExit):
        network, names = model, [f"stage {stage}" for stage in model.exit_stages]
    else:
        network, names = _with_exits(model, exits, "flops" if unit == "%" else "time", facts.input_shape, folder)
    say(f"exits after {', '.join(names)}, and the model's own output")
    network.eval()
    asked = _normalized(asked, network, normalization)
    least = network.costs("flops" if unit == "%" else "ms")
    cheapest = 100 * least.flops[0] / least.backbone if unit == "%" else least.ms[0]  # type: ignore[union-attr]
    if limit < cheapest:
        raise EestudyError(f"budget: {budget!r} is below the cheapest exit's cost, {cheapest:.3g} {unit}; give more")
    where = Store(store or folder / "runs")
    found: dict[str, tuple[Run, Deployed]] = {}
    for strategy in STRATEGIES if train else ("disjoint",):
        say(f"{strategy}: {'everything' if strategy != 'disjoint' else 'the heads alone'}, {epochs} epochs")
        done = run(asked.replace(strategy=strategy), where, device, model=network, data=data)
        fitted = deploy(done.model().eval(), limit, unit, done.predictions("validation"))
        found[strategy] = done, fitted
        say(f"{strategy}: {fitted.accuracy:.1%} on validation data for {fitted.cost:.3g} {unit}")
    best = max(found, key=lambda name: (found[name][1].accuracy, -found[name][1].cost))
    done, fitted = found[best]
    fitted.export(folder / MODEL)
    tried = {name: each.accuracy for name, (_, each) in found.items()}
    test, latency = on_test(done, fitted, network), latencies(network, fitted, done)
    machine = hardware(next(network.parameters()).device.type)
    made = Adapted(fitted, done, tuple(names), tried, test, latency, machine, folder)
    say(f"open {write_page(made, budget).resolve().as_uri()}")
    return made


def _normalized(config: RunConfig, network: MultiExit, name: str | None) -> RunConfig:
    """The config with the normalization `name`, or with the one that suits the network as it is trained."""
    if name is None:
        rates = {}
        for each in NORMALIZATIONS if network.backbone.input_dtype.is_floating_point else ():
            with suppress(EestudyError):  # imagenet has three channels
                held_out = load_data(_with(config, each)).validation
                rates[each] = float((own_answers(network, held_out) == held_out.y.numpy()).mean())
        if not rates:
            return config
        name = max(rates, key=lambda each: rates[each])
        others = ", ".join(f"{each} {rate:.1%}" for each, rate in rates.items() if each != name)
        say(f"normalization: {name}, with which the model is right on {rates[name]:.1%} of validation data ({others})")
    return _with(config, name)


def _with(config: RunConfig, normalization: str) -> RunConfig:
    return config.replace(dataset_args={**config.dataset_args, "normalization": normalization})


@torch.no_grad()
def own_answers(network: MultiExit, split: Split) -> np.ndarray:
    """The class (N,) that the plain backbone gives each sample of a split."""
    parts = torch.arange(len(split.y)).split(BATCH)
    return torch.cat([network.backbone(network.inputs(split.inputs(part))).argmax(-1).cpu() for part in parts]).numpy()


def _with_exits(
    model: nn.Module, exits: int, by: str, input_shape: tuple[int, ...], folder: Path
) -> tuple[MultiExit, list[str]]:
    """`exits_at` equal shares. The folder remembers the places: measured times would choose others the next time."""
    asked, file = {"exits": exits, "by": by}, folder / PLACES
    with torch.random.fork_rng():
        torch.manual_seed(0)  # heads start alike, so that a second call finds what the first one trained
        if file.is_file() and (known := json.loads(file.read_text(encoding="utf-8"))).items() >= asked.items():
            return add_exits(model, known["after"], input_shape), list(known["after"])
        _, names = exits_at(model, [place / (exits + 1) for place in range(1, exits + 1)], by, input_shape)
    write_atomically(file, json.dumps({**asked, "after": names}).encode())
    return _with_exits(model, exits, by, input_shape, folder)


def budget_of(text: str) -> tuple[float, str]:
    """ "60%" -> (60.0, "%"), "20ms" -> (20.0, "ms"); EestudyError for anything else."""
    match = BUDGET.fullmatch(str(text))
    try:
        limit = float(match[1]) if match else 0.0
    except ValueError:
        limit = 0.0
    if not match or not limit > 0:
        raise EestudyError(
            f"budget: {text!r} is not valid; give per cent of the model's FLOPs as 60%, or a time as 20ms"
        )
    return limit, match[2]


def on_test(done: Run, fitted: Deployed, network: MultiExit) -> dict[str, float]:
    """Of the test data: accuracy and mean cost (a share of the plain backbone's), samples; before: accuracy of the
    model as it was given; low, high: 95 % interval of accuracy less before, over samples.
    """
    logits, labels = done.predictions("test")
    exit_index = simulate(logits, fitted.rule)
    answers = logits[exit_index - 1, np.arange(len(labels))].argmax(-1)
    cost = np.asarray(fitted.costs)[exit_index - 1].mean() / fitted.backbone
    right, before = answers == labels, own_answers(network, done.data().test) == labels
    change = right.astype(float) - before
    half = 1.96 * float(change.std()) / len(labels) ** 0.5
    return {
        "accuracy": float(right.mean()), "before": float(before.mean()), "low": float(change.mean()) - half,
        "high": float(change.mean()) + half, "cost": float(cost), "samples": len(labels),
    }  # fmt: skip


@torch.no_grad()
def latencies(network: MultiExit, fitted: Deployed, done: Run) -> tuple[float, float]:
    """Median milliseconds of a test sample by itself: of the plain backbone, and of what is deployed; in turn."""
    x = done.data().test.inputs()[:TIMED]
    device = next(network.parameters()).device
    plain: Callable[[Any], Any] = network.backbone.eval()
    taken: list[tuple[float, float]] = []
    began = time.perf_counter()
    for sample in x:
        one, spent = sample[None].to(device), []
        for call in (plain, fitted.predict):
            start = time.perf_counter()
            call(one)
            spent.append(1000 * (time.perf_counter() - start))
        taken.append((spent[0], spent[1]))
        if time.perf_counter() - began > SECONDS:
            break
    before, now = np.median(taken[min(3, len(taken) - 1) :], axis=0)
    return float(before), float(now)


def factory(place: str) -> nn.Module:
    """What "package.module:function" or "file.py:function" gives, or "torchvision/resnet18" and the like (`named`).

    EestudyError, one line, for whatever fails there.
    """
    if ":" not in place and place.split("/")[0] in SOURCES:
        return named(place)
    module_name, _, name = place.rpartition(":")
    if not module_name or not name.isidentifier():
        raise EestudyError(
            f"model: {place!r} is not valid; give package.module:factory, file.py:factory or torchvision/NAME"
        )
    sys.path.insert(0, "")  # as `python -m` has it
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module_name).stem, module_name)
            if spec is None or spec.loader is None:
                raise ImportError("it is no Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        made = getattr(module, name)
        made = made if isinstance(made, nn.Module) else made()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise EestudyError(f"model: {place} fails: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove("")
    if not isinstance(made, nn.Module):
        raise EestudyError(f"model: {place} gives a {type(made).__name__}; give a function that gives a torch module")
    return made
