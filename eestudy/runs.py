"""One run from top to bottom: config -> data -> network -> phases -> predictions -> tables. Start reading here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eestudy import data, evaluation
from eestudy.config import EestudyError, RunConfig, check_name
from eestudy.data.splits import MULTI_LABEL
from eestudy.environment import describe, say
from eestudy.evaluation.quality import LABEL_SCORES, REGRESSION_SCORES
from eestudy.methods import MethodOfRun
from eestudy.models import MultiExit, check_network, exit_costs
from eestudy.plan import Plan, build_model, fingerprint, load_data, outline_of, prepare, stages_of
from eestudy.registry import METHODS
from eestudy.store import Arrays, Folder, Store
from eestudy.training.batches import clean_batches
from eestudy.training.execution import Execution, execution, warn_if_slow
from eestudy.training.loop import checkpoint_name, train_phase
from eestudy.training.own_loss import with_criterion
from eestudy.training.phases import Phase
from eestudy.training.resume import state_files
from eestudy.training.whole_step import fits

CURVE_FRACTIONS = tuple(np.round(np.linspace(0.05, 1.3, 51), 3))  # budgets of a trade-off curve, of the plain backbone

ALLOCATION = "shared"  # one threshold for all exits, in every table that is not asked for another one
BUDGET_COLUMNS = ["run", "protocol", "rule", "allocation", "budget", "accuracy", "flops"]


def run(
    config: RunConfig,
    store: str | Path | Store | None = None,
    device: str | None = None,
    workers: int = 0,
    compile: str = "auto",
    model: MultiExit | None = None,
    data: object = None,
    criterion: object = None,
) -> Run:
    """Trains the run of `config`, or loads what of it is done.

    store: a folder (default $EESTUDY_HOME or ./runs); device: "cpu", "cuda", ... (default: a GPU if there is one);
    workers, compile: see `training.execution`. model: your own network, for `architecture="own"`; a copy of it is
    trained, from the weights it comes with, which are part of the run's identity; what of it is frozen
    (requires_grad=False) stays as it is. data: your own, for `dataset="own"`: (x, y), a torch Dataset, a data frame, a
    mapping from train, validation and test to these, or a path (`data.own`); their content is part of the identity.
    criterion: a loss of your own, logits (B, C) of an exit (regression: (B,)) and targets -> losses (B,) or their mean;
    its code and the values it holds are part of the identity.
    Raises EestudyError for settings that do not fit together and for a store that cannot be written.
    """
    store = store if isinstance(store, Store) else Store(store)
    _check_types(config, model)
    if data is not None or config.dataset == "own":
        from eestudy.data.own import given  # seconds of imports that built-in data do not need

        config = given(config, data)
    if criterion is not None:
        config = with_criterion(config, criterion)
    done = Run(config, store, model)
    how = execution(device, workers, compile)
    store.check_writable()
    with _locked(done.folder, how):
        if how.agreed(how.main and not (store.usable(done.folder) and store.phases_whole(done.folder))):
            warn_if_slow(config.precision, how.device)
            plan = prepare(config, model)
            if how.main:
                done.folder.write_json("config.json", config.model_dump(mode="json"))
            for number, phase_id in enumerate(plan.phase_ids):
                train_or_load(store, plan, number, phase_id, plan.model, how)
            if how.main:
                _finish(done.folder, store, plan, plan.model.eval(), how)
    return done


def _check_types(config: object, model: object) -> None:
    if not isinstance(config, RunConfig):
        raise EestudyError(f"config: give a RunConfig, got {type(config).__name__}; RunConfig(**fields) makes one")
    if model is not None:
        check_network(model)


@contextmanager
def _locked(folder: Folder, how: Execution) -> Iterator[None]:
    """Of several processes that train together, the first holds the lock; all leave together."""
    with folder.lock(say) if how.main else nullcontext():
        yield
        how.wait()


def train_or_load(store: Store, plan: Plan, number: int, phase_id: str, model: MultiExit, how: Execution) -> None:
    """Brings `model` from the end of the phase before to the end of phase `number`, training only what is not done."""
    phase, folder = plan.phases[number], store.folder("phases", phase_id)
    with _locked(folder, how):
        # The summary is a phase's last file; without `done` behind it, it was killed just there.
        if how.agreed(how.main and not store.usable(folder) and not folder.has("summary.json")):
            how = _as_begun(folder, phase, plan, model, how)
            seed, parent = plan.config.seed, plan.phase_ids[number - 1] if number else None
            if how.main:
                folder.write_json("config.json", {"phase": phase.identity(), "parent": parent, "seed": seed})
            with torch.random.fork_rng(devices=[]):
                train_phase(model, phase, plan.data, folder, seed, number, how, plan.method.hooks(phase))
        else:
            load_weights(model, folder.arrays(checkpoint_name(100)))
        if how.main and not folder.done():
            for name in state_files(folder):
                folder.remove(name)
            folder.finish()


# What of a phase is compiled, as its environment.json says -> the setting that compiles just this. Phases begun when
# only networks could be compiled have a truth value.
COMPILED = {"no": "never", "network": "always", "step": "step", False: "never", True: "always"}


def _as_begun(folder: Folder, phase: Phase, plan: Plan, model: MultiExit, how: Execution) -> Execution:
    """`how`, compiling what the phase was begun with, so that a resumed one has the bits of an undisturbed one."""
    if not folder.has("environment.json"):
        settings, samples = phase.settings, plan.outline.train
        steps = settings.epochs * (samples // min(settings.batch_size, samples))
        compiled = "network" if how.compiles(steps) else "no"
        if fits(model, phase, plan.data, how):
            compiled = "step"
        if how.main:
            folder.write_json("environment.json", {**describe(how.device.type), "compiled": compiled})
    else:
        compiled = folder.json("environment.json")["compiled"]
    return dataclasses.replace(how, compile=COMPILED[compiled])


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
    exits = evaluation.exit_metrics(arrays["test.logits"], arrays["test.labels"])
    exits = exits.assign(stage=stages_of(model), flops=costs.flops, params=costs.params)
    columns = ["exit", "stage", "flops", "params", "accuracy", "nll", "ece"]
    folder.write_frame("exits.parquet", _scored(exits, columns))
    summaries = [store.folder("phases", phase_id).json("summary.json") for phase_id in plan.phase_ids]
    trained = zip(plan.phases, summaries, strict=True)
    spent = sum(plan.step_flops[phase.name] * summary["samples"] for phase, summary in trained)
    facts = {
        "phases": list(plan.phase_ids),
        "seconds": round(sum(summary["seconds"] for summary in summaries), 3),
        "training_flops": float(spent + plan.once_flops),
        "stage_flops": costs.stages,
        "classifier_flops": costs.classifier,
        "head_flops": costs.heads,
    }
    folder.write_json("run.json", facts)
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

    def model(self) -> MultiExit:
        """The network with its final weights, in eval mode."""
        return self.checkpoint(len(self.phases), 100)

    def checkpoint(self, phase: int, share: int) -> MultiExit:
        """The network, in eval mode, as it was at `share` per cent of phase number `phase`, or EestudyError."""
        shares = sorted({*self.config.checkpoints, 100})
        if not 1 <= phase <= len(self.phases) or share not in shares:
            raise EestudyError(
                f"checkpoint: {share} % of phase {phase} is not there; {self.config.strategy} has "
                f"{len(self.phases)} phases, with checkpoints at {', '.join(map(str, shares))} %"
            )
        if not self.reached(phase, share):
            raise EestudyError(f"checkpoint: phase {phase} of {self.id} ended by patience before {share} %")
        model = build_model(MethodOfRun(self.config), outline_of(self.config), self._own)
        for number, name in enumerate(self.phases[:phase], 1):
            reached = share if number == phase else 100
            load_weights(model, self._store.folder("phases", name).arrays(checkpoint_name(reached)))
        return model.eval().requires_grad_(False)

    def reached(self, phase: int, share: int) -> bool:
        """Whether phase number `phase` came to `share` per cent; one that ends by patience may not."""
        if self.config.match != "patience":
            return True
        return self._store.folder("phases", self.phases[phase - 1]).has(checkpoint_name(share))

    def data(self) -> data.DataSet:
        """The data set the run was trained and tested on."""
        return load_data(self.config)

    def history(self) -> pd.DataFrame:
        """Training curves: run, phase, epoch, exit, split, loss, accuracy; else r2 or exact_match, named in `score`."""
        frames = [
            pd.DataFrame(self._store.folder("phases", phase).records()).assign(phase=f"{number}-{phase.split('-')[0]}")
            for number, phase in enumerate(self.phases, 1)
        ]
        frame = pd.concat(frames, ignore_index=True).assign(run=self.id)
        columns = ["run", "phase", "epoch", "exit", "split", "loss"]
        if self.task == "classification":
            return frame[[*columns, "accuracy"]]
        if self.task == MULTI_LABEL:
            return frame[[*columns, "exact_match"]].assign(score="exact_match")
        # The training loop may call its one score of an exit by either name.
        frame["r2"] = frame["r2"] if "r2" in frame else frame["accuracy"]
        return frame[[*columns, "r2"]].assign(score="r2")

    def exits(self) -> pd.DataFrame:
        """Test metrics by exit: run, exit, stage, flops, params (both cumulative), accuracy, nll, ece.

        Regression: r2, pearson, spearman, mse in place of the last three, and score "r2"; of several labels a sample
        exact_match, macro_f1, mean_average_precision, and score "exact_match".
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
        """ "classification", "regression": one output, or "multi-label": several labels a sample."""
        if self._predictions["test.labels"].ndim == 2:
            return MULTI_LABEL
        return "regression" if self._predictions["test.logits"].shape[2] == 1 else "classification"

    @property
    def exit_rule(self) -> str:
        """The rule its budgets are reported with: the method's; for other tasks than classification theirs."""
        others = {"regression": "patience", MULTI_LABEL: "every-label"}
        return others.get(self.task) or METHODS[self.config.method].exit_rule

    @cached_property
    def costs(self) -> np.ndarray:
        """Mean cost of leaving at each exit, (K,) FLOPs a sample: backbone so far and every head so far."""
        return self.folder.frame("exits.parquet")["flops"].to_numpy(dtype=float)

    @property
    def parts(self) -> dict[str, Any]:
        """FLOPs part by part: "stages" (one a stage), "classifier", "heads" (one a head)."""
        names = {"stages": "stage_flops", "classifier": "classifier_flops", "heads": "head_flops"}
        return {part: self._facts[name] for part, name in names.items()}

    @property
    def backbone_flops(self) -> float:
        """FLOPs of the plain backbone for one sample: 100 % of a budget."""
        return float(sum(self._facts["stage_flops"]) + self._facts["classifier_flops"])

    @property
    def provenance(self) -> dict[str, Any]:
        """seconds and training_flops of all phases; hardware, versions and commit that made the run."""
        facts = {key: self._facts[key] for key in ("seconds", "training_flops")}
        return {**facts, **self.folder.json("environment.json")}

    def budgets(
        self, protocol: str = "calibrated", rule: str | None = None, allocation: str = ALLOCATION
    ) -> pd.DataFrame:
        """Accuracy and mean cost at each budget: run, protocol, rule, allocation, budget, accuracy, flops.

        NaN: not reachable. allocation: how the thresholds of the exits share the budget, of `evaluation.ALLOCATIONS`.
        Other tasks: their first score in place of accuracy; the others and its name, `score`, come after.
        """
        return budgets([self], protocol, rule, allocation)

    def tradeoff(self, rule: str | None = None, allocation: str = ALLOCATION) -> pd.DataFrame:
        """The calibrated accuracy-cost curve, columns as of `budgets`; budget is a share of the backbone."""
        rule = rule or self.exit_rule
        given = self.predictions("validation"), self.predictions("test"), self.costs, self.backbone_flops
        curve = evaluation.calibrated_curve(*given, rule, CURVE_FRACTIONS, allocation)
        curve = curve.assign(run=self.id, protocol="calibrated", rule=rule, allocation=allocation)
        return _scored(curve, BUDGET_COLUMNS)

    def summary(self) -> dict[str, Any]:
        """The run in one row: names and seed, costs, provenance, settings."""
        names = ("architecture", "dataset", "strategy", "method", "seed")
        return {
            "run": self.id,
            **{name: getattr(self.config, name) for name in names},
            "backbone_flops": self.backbone_flops,
            **self.provenance,
            "config": json.dumps(self.config.identity(), sort_keys=True),
        }


def budgets(
    runs: Sequence[Run], protocol: str = "calibrated", rule: str | None = None, allocation: str = ALLOCATION
) -> pd.DataFrame:
    """The budget table of one cell's seeds, one row a run and budget.

    calibrated: thresholds fitted on each run's validation data, applied once to test. paper: one threshold for all
    seeds and exits, swept on test as in the published tables. rule: default, the method's.
    """
    check_name("protocol", protocol, ("calibrated", "paper"))
    if not runs:
        raise EestudyError("runs: the list is empty; a budget table needs at least one run")
    rule = rule or runs[0].exit_rule
    if len({tuple(run.costs) for run in runs}) > 1:
        raise EestudyError("runs: their exits cost different FLOPs, so they do not belong to one budget table")
    if protocol == "paper":
        if allocation != "shared":
            raise EestudyError(
                f"allocation: protocol paper has one threshold for all exits, 'shared'; got {allocation!r}"
            )
        predictions = [run.predictions("test") for run in runs]
        frame = evaluation.paper_budgets(predictions, runs[0].costs, runs[0].backbone_flops, rule)
        frame = frame.assign(run=[runs[number].id for number in frame["run_index"]])
    else:
        frames = []
        for run in runs:
            given = run.predictions("validation"), run.predictions("test"), run.costs, run.backbone_flops
            found = evaluation.calibrated_budgets(*given, rule, evaluation.BUDGETS, allocation)
            frames.append(found.assign(run=run.id))
        frame = pd.concat(frames, ignore_index=True)
    return _scored(frame.assign(protocol=protocol, rule=rule, allocation=allocation), BUDGET_COLUMNS)


def _scored(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """The `columns` of a table. For other tasks their first score stands for accuracy, the rest and `score` follow."""
    scores = [name for name in (*REGRESSION_SCORES, *LABEL_SCORES) if name in frame]
    if not scores:
        return frame[columns]
    own = [scores[0] if name == "accuracy" else name for name in columns if name not in ("nll", "ece")]
    return frame.assign(score=scores[0])[[*own, *scores[1:], "score"]]
