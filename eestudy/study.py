"""One run from top to bottom: config -> data -> network -> phases -> predictions -> tables. Start reading here."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eestudy import data, evaluation
from eestudy.config import SCHEMA, EestudyError, RunConfig, content_hash, named_seed
from eestudy.data.augmentation import check as check_augmentation
from eestudy.environment import describe, say
from eestudy.methods import METHODS, change, hooks_of, implied_by, more_flops, settled, trained_as
from eestudy.models import MultiExit, build_backbone, exit_costs
from eestudy.store import Arrays, Folder, Store
from eestudy.training.batches import clean_batches
from eestudy.training.cost import once_flops, step_flops
from eestudy.training.execution import Execution, execution, warn_if_slow
from eestudy.training.freezing import check_batch_norms
from eestudy.training.loop import checkpoint_name, train_phase
from eestudy.training.phases import Phase, resolve
from eestudy.training.saved import state_files
from eestudy.training.settings import configured
from eestudy.training.strategies import BY_EXIT, phases_of, together_phase

CURVE_FRACTIONS = tuple(np.round(np.linspace(0.05, 1.3, 51), 3))  # budgets of a trade-off curve, of the plain backbone

BUDGET_COLUMNS = ["run", "protocol", "rule", "budget", "accuracy", "flops"]
REGRESSION_SCORE = "R2"  # what regression has in the place of accuracy


def run(
    config: RunConfig,
    store: str | Path | Store | None = None,
    device: str | None = None,
    workers: int = 0,
    compile: str = "auto",
    model: MultiExit | None = None,
) -> Run:
    """Trains the run of `config`, or loads what of it is done.

    store: a folder (default $EESTUDY_HOME or ./runs); device: "cpu", "cuda", ... (default: a GPU if there is one);
    workers, compile: see `training.execution`. model: your own network, for `architecture="own"`; a copy of it is
    trained, from the weights it comes with, which are part of the run's identity.
    Raises EestudyError for settings that do not fit together and for a store that cannot be written.
    """
    store = store if isinstance(store, Store) else Store(store)
    done = Run(config, store, model)
    how = execution(device, workers, compile)
    store.check_writable()
    with _locked(done.folder, how):
        if how.agreed(how.main and not (store.usable(done.folder) and done.phases_whole())):
            warn_if_slow(config.precision, how.device)
            plan = prepare(config, model)
            if how.main:
                done.folder.write_json("config.json", config.model_dump(mode="json"))
            for number, phase_id in enumerate(plan.phase_ids):
                train_or_load(store, plan, number, phase_id, plan.model, how)
            if how.main:
                _finish(done.folder, store, plan, plan.model.eval(), how)
    return done


@contextmanager
def _locked(folder: Folder, how: Execution) -> Iterator[None]:
    """Of several processes that train together, the first holds the lock; all leave together."""
    with folder.lock(say) if how.main else nullcontext():
        yield
        how.wait()


@dataclass(frozen=True)
class Plan:
    """What a config comes to: the data, the untrained network, its phases and their ids, FLOPs of a training step."""

    config: RunConfig
    data: data.DataSet
    model: MultiExit
    phases: tuple[Phase, ...]
    phase_ids: tuple[str, ...]
    step_flops: dict[str, float]  # of one sample, by phase name
    once_flops: float  # of what the phases compute once, beside their steps

    @property
    def training_flops(self) -> float:
        """Of the whole run, if every phase trains all its epochs."""
        samples = len(self.data.train)
        return self.once_flops + sum(self.step_flops[phase.name] * phase.epochs * samples for phase in self.phases)


def prepare(config: RunConfig, model: MultiExit | None = None) -> Plan:
    """Checks that a config's parts fit together, without training. Raises EestudyError where they do not."""
    loaded = data.load(config.dataset, config.train_size, **config.dataset_args)
    check_augmentation(config.augmentation, loaded.input_shape, loaded.train.dtype)
    network = build_model(config, loaded, model)
    chosen = settled(config, network.backbone.kind)
    phases = phases_of(config, stages_of(network))
    phases = configured(phases, chosen, network.num_exits, trained_as(config), implied_by(config))
    check_batch_norms(network, phases)
    flops = {phase.name: step_flops(network, phase) + more_flops(config, network, phase) for phase in phases}
    joint = step_flops(network, together_phase(1.0)) if config.match == "flops" else None
    phases = resolve(phases, config, flops, joint)
    once = sum(once_flops(network, phase, len(loaded.train)) for phase in phases)
    own = fingerprint(network) if model else None
    ids: list[str] = []
    for place, phase in enumerate(phases):
        ids.append(_phase_id(chosen, phase, place, ids[-1] if ids else None, network, own))
    return Plan(config, loaded, network, phases, tuple(ids), flops, once)


def stages_of(network: MultiExit) -> tuple[int, ...]:
    """The stage that each exit reads, counted from 1."""
    return (*network.exit_stages, len(network.backbone.stages))


@lru_cache(maxsize=1024)
def planned(config: RunConfig) -> tuple[Phase, ...]:
    """The phases of a run without its settings and epochs; builds the network where they depend on its exits."""
    if config.strategy not in BY_EXIT:
        return phases_of(config)
    loaded = data.load(config.dataset, config.train_size, **config.dataset_args)
    return phases_of(config, stages_of(build_model(config, loaded)))


def build_model(config: RunConfig, loaded: data.DataSet, model: MultiExit | None = None) -> MultiExit:
    """The untrained network. Backbone and heads are seeded by name: strategies start from the same weights."""
    if model is not None:
        network = copy.deepcopy(model).requires_grad_(True)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(named_seed(config.seed, "backbone"))
            backbone = build_backbone(
                config.architecture, loaded.input_shape, loaded.num_classes, **config.architecture_args
            )
        network = MultiExit(
            backbone, config.exits, settled(config, backbone.kind).head, config.head_layers,
            lambda stage: named_seed(config.seed, "head", stage), config.head_args,
        )  # fmt: skip
    _check_fit(config, network, loaded)
    change(network, config, phases_of(config, stages_of(network)))
    # The layout convolutions are fastest in; set here, so that training and loading see the same bits. Not for a user's
    # own network, which may rely on the usual one (x.view).
    images = len(loaded.input_shape) == 3 and model is None and not _needs_contiguous(network)
    return network.to(memory_format=torch.channels_last) if images else network


def _needs_contiguous(network: MultiExit) -> bool:
    """Whether torch 2.15 would write past a buffer on a processor with AVX2 alone (seen as crashes and changing bits).

    It does in the weight gradient of channels-last, strided 1x1 convolutions with 2 to 7 input channels.
    """
    kernels = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    return any(part.kernel_size == (1, 1) and part.stride != (1, 1) and 1 < part.in_channels < 8 for part in kernels)


def _check_fit(config: RunConfig, network: MultiExit, loaded: data.DataSet) -> None:
    """EestudyError if the network does not take what the data set gives, or answers with another number of classes."""
    given = torch.int64 if loaded.train.dtype == torch.int64 else torch.float32
    if network.backbone.input_dtype != given:
        words = {torch.int64: "token ids", torch.float32: "numbers"}
        raise EestudyError(
            f"architecture: {config.architecture} takes {words[network.backbone.input_dtype]}, "
            f"but {loaded.name} gives {words[given]}"
        )
    for fact, own, wanted in (
        ("inputs of shape", network.input_shape, loaded.input_shape),
        ("logits for", network.num_classes, loaded.num_classes),
    ):
        if own != wanted:
            raise EestudyError(f"model: has {fact} {own}, but {loaded.name} needs {wanted}")


def fingerprint(model: MultiExit) -> str:
    """What a network of the user's own is known by: its modules as they print, its weights bit for bit."""
    content = hashlib.sha256(str(model).encode())
    for part in model.modules():
        code = getattr(part, "code", "")  # of a module that torch.fx cut out
        content.update(code.encode() if isinstance(code, str) else b"")
    for name, value in model.state_dict().items():
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:10]


def _phase_id(
    config: RunConfig, phase: Phase, place: int, parent: str | None, network: MultiExit, own: str | None
) -> str:
    """Content address of a phase. What does not change its weights (the strategy's name, unused heads) is left out."""
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "parent": parent,
        "place": place,
        "phase": phase.identity(),
        "seed": config.seed,
        "data": [config.dataset, config.dataset_args, config.train_size],
        "backbone": [config.architecture, config.architecture_args, own],
    }
    if phase.uses_heads:
        content["heads"] = [config.head, config.head_layers, config.head_args, network.exit_stages]
    return f"{phase.name}-{content_hash(content)}"


def train_or_load(store: Store, plan: Plan, number: int, phase_id: str, model: MultiExit, how: Execution) -> None:
    """Brings `model` from the end of the phase before to the end of phase `number`, training only what is not done."""
    phase, folder = plan.phases[number], store.folder("phases", phase_id)
    with _locked(folder, how):
        # The summary is a phase's last file; without `done` behind it, it was killed just there.
        if how.agreed(how.main and not store.usable(folder) and not folder.has("summary.json")):
            if how.main:
                if not folder.has("environment.json"):
                    folder.write_json("environment.json", describe(how.device.type))
                parent = plan.phase_ids[number - 1] if number else None
                content = {"phase": phase.identity(), "parent": parent, "seed": plan.config.seed}
                folder.write_json("config.json", content)
            with torch.random.fork_rng(devices=[]):
                hooks = hooks_of(plan.config) if phase.method else None
                train_phase(model, phase, plan.data, folder, plan.config.seed, number, how, hooks)
        else:
            load_weights(model, folder.arrays(checkpoint_name(100)))
        if how.main and not folder.done():
            for name in state_files(folder):
                folder.remove(name)
            folder.finish()


def load_weights(model: MultiExit, arrays: Arrays) -> None:
    """Copies a phase's checkpoint, the tensors it trained, into the network; the others stay."""
    model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()}, strict=False)


def _finish(folder: Folder, store: Store, plan: Plan, model: MultiExit, how: Execution) -> None:
    """Predictions on clean validation and test data, the exits' table and where they come from; then `done`."""
    arrays: Arrays = {}
    for name, split in (("validation", plan.data.validation), ("test", plan.data.test)):
        arrays[f"{name}.logits"] = predict_logits(model, split, how)
        arrays[f"{name}.labels"] = split.y.numpy()
    folder.write_arrays("predictions.safetensors", arrays)
    costs = exit_costs(model)
    stages = stages_of(model)
    exits = evaluation.exit_metrics(arrays["test.logits"], arrays["test.labels"])
    exits = exits.assign(stage=stages, flops=costs.flops, params=costs.params)
    columns = ["exit", "stage", "flops", "params", "accuracy", "nll", "ece"]
    folder.write_frame("exits.parquet", _scored(exits, columns))
    summaries = [store.folder("phases", phase_id).json("summary.json") for phase_id in plan.phase_ids]
    spent = [
        plan.step_flops[phase.name] * summary["samples"] for phase, summary in zip(plan.phases, summaries, strict=True)
    ]
    folder.write_json(
        "run.json",
        {
            "phases": list(plan.phase_ids),
            "seconds": round(sum(summary["seconds"] for summary in summaries), 3),
            "training_flops": float(sum(spent) + plan.once_flops),
            "stage_flops": costs.stages,
            "classifier_flops": costs.classifier,
            "head_flops": costs.heads,
        },
    )
    if not folder.has("environment.json"):
        folder.write_json("environment.json", describe(how.device.type))
    folder.finish()


@torch.no_grad()
def predict_logits(model: MultiExit, split: data.Split, how: Execution) -> np.ndarray:
    """Logits of every exit (K, N, C), float32, in eval mode; all of them in this process."""
    model.eval().to(how.device)
    logits = [torch.stack(model(x)).float().cpu() for x, _ in clean_batches(split, how, model.memory_format)]
    return torch.cat(logits, dim=1).numpy()


class Run:
    """A finished run: its weights, predictions and tables, read from the store."""

    def __init__(self, config: RunConfig, store: Store, model: MultiExit | None = None) -> None:
        if (config.architecture == "own") != (model is not None):
            hint = "give yours: eestudy.run(config, model=...)" if model is None else 'architecture="own" trains it'
            raise EestudyError(f"model: architecture is {config.architecture!r}; {hint}")
        self.config = config
        self._store = store
        self._own = model
        self.id = f"{config.id}-{fingerprint(model)}" if model else config.id
        self.folder = store.folder("runs", self.id)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return self.folder.json("run.json")

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def phases(self) -> list[str]:
        """Ids of the phases, in order."""
        return self._facts["phases"]

    def phases_whole(self) -> bool:
        """Whether what the phases left is there as it was written."""
        phases = self.folder.json("run.json")["phases"]
        return all(self._store.whole(self._store.folder("phases", phase)) for phase in phases)

    def model(self) -> MultiExit:
        """The network with its final weights, in eval mode."""
        return self.checkpoint(len(self.phases), 100)

    def checkpoint(self, phase: int, share: int) -> MultiExit:
        """The network as it was at `share` per cent of its phase number `phase` (from 1), in eval mode.

        EestudyError if there is no such phase, or no checkpoint at that share.
        """
        shares = sorted({*self.config.checkpoints, 100})
        if not 1 <= phase <= len(self.phases) or share not in shares:
            raise EestudyError(
                f"checkpoint: {share} % of phase {phase} is not there; {self.config.strategy} has "
                f"{len(self.phases)} phases, with checkpoints at {', '.join(map(str, shares))} %"
            )
        model = build_model(self.config, self.data(), self._own)
        for number, name in enumerate(self.phases[:phase], 1):
            reached = share if number == phase else 100
            load_weights(model, self._store.folder("phases", name).arrays(checkpoint_name(reached)))
        return model.eval().requires_grad_(False)

    def data(self) -> data.DataSet:
        """The data set the run was trained and tested on."""
        return data.load(self.config.dataset, self.config.train_size, **self.config.dataset_args)

    def history(self) -> pd.DataFrame:
        """Training curves: run, phase, epoch, exit, split, loss, accuracy."""
        frames = [
            pd.DataFrame(self._store.folder("phases", phase).records()).assign(phase=f"{number}-{phase.split('-')[0]}")
            for number, phase in enumerate(self.phases, 1)
        ]
        frame = pd.concat(frames, ignore_index=True).assign(run=self.id)
        frame = frame[["run", "phase", "epoch", "exit", "split", "loss", "accuracy"]]
        return frame.assign(score=REGRESSION_SCORE) if self.task == "regression" else frame

    def exits(self) -> pd.DataFrame:
        """Test metrics by exit: run, exit, stage, flops, params (both cumulative), accuracy, nll, ece.

        Regression: `accuracy` is R2, as everywhere; nll and ece are NaN; score "R2", pearson, spearman, mse come after.
        """
        frame = self.folder.frame("exits.parquet")
        frame.insert(0, "run", self.id)
        return frame

    @cached_property
    def _predictions(self) -> Arrays:
        return self.folder.arrays("predictions.safetensors")

    def predictions(self, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """Logits (K, N, C) float32 and labels (N,) of "validation" or "test", both without augmentation."""
        if split not in ("validation", "test"):
            raise EestudyError(f"split: {split!r} has no stored predictions; valid: validation, test")
        return self._predictions[f"{split}.logits"], self._predictions[f"{split}.labels"]

    @property
    def task(self) -> str:
        """ "classification", or "regression": one output."""
        return "regression" if self._predictions["test.logits"].shape[2] == 1 else "classification"

    @property
    def exit_rule(self) -> str:
        """The rule its budgets are reported with: the method's; in regression patience, which needs no classes."""
        return "patience" if self.task == "regression" else METHODS[self.config.method].exit_rule

    @cached_property
    def costs(self) -> np.ndarray:
        """Mean cost of leaving at each exit, (K,) FLOPs a sample: backbone so far and every head so far."""
        return self.folder.frame("exits.parquet")["flops"].to_numpy(dtype=float)

    @property
    def parts(self) -> dict[str, Any]:
        """FLOPs part by part: "stages" (one a stage), "classifier", "heads" (one a head)."""
        return {
            "stages": self._facts["stage_flops"],
            "classifier": self._facts["classifier_flops"],
            "heads": self._facts["head_flops"],
        }

    @property
    def backbone_flops(self) -> float:
        """FLOPs of the plain backbone for one sample: 100 % of a budget."""
        return float(sum(self._facts["stage_flops"]) + self._facts["classifier_flops"])

    @property
    def provenance(self) -> dict[str, Any]:
        """seconds and training_flops of all phases; hardware, versions and commit that made the run."""
        facts = {key: self._facts[key] for key in ("seconds", "training_flops")}
        return {**facts, **self.folder.json("environment.json")}

    def budgets(self, protocol: str = "calibrated", rule: str | None = None) -> pd.DataFrame:
        """Accuracy and mean cost at each budget: run, protocol, rule, budget, accuracy, flops (NaN: not reachable).

        Regression: `accuracy` is R2; score "R2", pearson, spearman, mse come after.
        """
        return budgets([self], protocol, rule)

    def tradeoff(self, rule: str | None = None) -> pd.DataFrame:
        """The calibrated accuracy-cost curve: run, protocol, rule, budget (share of the backbone), accuracy, flops."""
        rule = rule or self.exit_rule
        curve = evaluation.calibrated_curve(
            self.predictions("validation"), self.predictions("test"), self.costs, self.backbone_flops, rule,
            CURVE_FRACTIONS,
        )  # fmt: skip
        return _scored(curve.assign(run=self.id, protocol="calibrated", rule=rule), BUDGET_COLUMNS)

    def summary(self) -> dict[str, Any]:
        """One row of runs.csv."""
        names = ("architecture", "dataset", "strategy", "method", "seed")
        return {
            "run": self.id,
            **{name: getattr(self.config, name) for name in names},
            "backbone_flops": self.backbone_flops,
            **self.provenance,
            "config": json.dumps(self.config.identity(), sort_keys=True),
        }


def budgets(runs: Sequence[Run], protocol: str = "calibrated", rule: str | None = None) -> pd.DataFrame:
    """The budget table of one cell's seeds, one row a run and budget.

    calibrated: thresholds fitted on each run's validation data, applied once to test. paper: one threshold for all
    seeds, swept on test as in the published tables. rule: default, the method's.
    """
    if protocol not in ("calibrated", "paper"):
        raise EestudyError(f"protocol: unknown name {protocol!r}; valid: calibrated, paper")
    if not runs:
        raise EestudyError("runs: the list is empty; a budget table needs at least one run")
    rule = rule or runs[0].exit_rule
    if len({tuple(run.costs) for run in runs}) > 1:
        raise EestudyError("runs: their exits cost different FLOPs, so they do not belong to one budget table")
    if protocol == "paper":
        frame = evaluation.paper_budgets(
            [run.predictions("test") for run in runs], runs[0].costs, runs[0].backbone_flops, rule
        )
        frame = frame.assign(run=[runs[number].id for number in frame["run_index"]])
    else:
        frames = [
            evaluation.calibrated_budgets(
                run.predictions("validation"), run.predictions("test"), run.costs, run.backbone_flops, rule
            ).assign(run=run.id)
            for run in runs
        ]
        frame = pd.concat(frames, ignore_index=True)
    return _scored(frame.assign(protocol=protocol, rule=rule), BUDGET_COLUMNS)


def _scored(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The `columns` of a table. In regression R2 stands under `accuracy`; a column says so, the other scores follow."""
    if "r2" not in frame:
        return frame[columns]
    named = frame.rename(columns={"r2": "accuracy"}).assign(score=REGRESSION_SCORE)
    return named.reindex(columns=[*columns, "score", "pearson", "spearman", "mse"])


def tradeoffs(runs: Sequence[Run], rule: str | None = None) -> pd.DataFrame:
    """The calibrated accuracy-cost curves of several runs, one below the other."""
    return pd.concat([run.tradeoff(rule) for run in runs], ignore_index=True)
