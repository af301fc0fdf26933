"""The tables of `eestudy evaluate`: from a tiny real study, and where something has no answer."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from eestudy import data, evaluation
from eestudy.analysis import cells_of, evaluations
from eestudy.analysis.evaluations import RunEvaluation
from eestudy.analysis.executor import EVALUATIONS, analyse_study, keep
from eestudy.cli import main
from eestudy.config import EestudyError
from eestudy.data.out_of_distribution import KINDS, outside
from eestudy.evaluation import difficulty, run_tables
from eestudy.evaluation.run_tables import Predicted
from eestudy.records import Records, agree
from eestudy.report import Results
from eestudy.runs import Run
from eestudy.store import Store
from eestudy.study import Study

from .evaluation.cases import BACKBONE, COSTS, random_run

TABLES = {
    *("allocation", "explorer", "risk", "draws", "reliability", "bins", "ood"),
    *("curves", "agreement", "leaving", "samples", "examples"),
}


@pytest.fixture(scope="module")
def runs(small_run):
    """Two strategies and two seeds of one cell, and a regression."""
    made = [small_run("mlp", "digits", strategy, seed=seed) for strategy in ("joint", "mixed") for seed in (0, 1)]
    return [*made, small_run("mlp", "diabetes", "joint", train_size=200)]


@pytest.fixture(scope="module")
def folder(runs, small_store, tmp_path_factory):
    """The study's records, as the command writes them."""
    folder = tmp_path_factory.mktemp("results") / "tiny"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_tables, "DRAWS", 4)
        patched.setattr(evaluations, "OOD_SAMPLES", 100)
        study = Study("tiny", tuple(run.config for run in runs))
        records = Records(folder)
        assert not analyse_study(study, EVALUATIONS, Store(small_store), records)
        assert len(records.ids("evaluation")) == len(runs) + len(cells_of(study.configs))
        # What has a record is not asked for again, whatever the store holds.
        assert not analyse_study(study, EVALUATIONS, Store(folder.parent / "empty"), records)
    assert {name for record in Records(folder).read("evaluation") for name in record.tables} == TABLES
    return folder


@pytest.fixture(scope="module")
def results(runs, folder):
    return Results("tiny", folder, {"runs": pd.DataFrame([run.summary() for run in runs])})


def predicted(seed=0, **changed) -> Predicted:
    sizes = {"validation": 200, "test": 300}
    made = {name: random_run(seed + place, (5, size, 6), 2.0) for place, (name, size) in enumerate(sizes.items())}
    pairs = {name: (logits.numpy(), labels.numpy()) for name, (logits, labels) in made.items()}
    return Predicted(**{**pairs, "costs": np.array(COSTS, dtype=float), "backbone_flops": BACKBONE, **changed})


def test_every_run_is_in_every_table_and_numbers_are_those_of_the_functions(runs, results):
    for name in TABLES - {"samples", "examples", "bins"}:
        assert set(results.evaluation(name)["run"]) == {run.id for run in runs}, name
    run = runs[1]
    own = {name: frame[frame["run"] == run.id] for name in TABLES for frame in [results.evaluation(name)]}
    given = (run.predictions("validation"), run.predictions("test"), run.costs, run.backbone_flops)
    for rule, method in (("entropy", "optimized"), ("patience", "shared")):
        known = evaluation.budget_misses(*given, rule, method)
        found = own["allocation"].query("rule == @rule and allocation == @method")
        for column in ("limit", "flops", "miss", "accuracy"):
            np.testing.assert_allclose(found[column], known[column], rtol=1e-5)
    metrics = evaluation.reliability_metrics(*run.predictions("test"))
    found = own["reliability"].query("not scaled").set_index("system")
    for column in ("ece", "ks", "brier", "auroc"):
        np.testing.assert_allclose(found.loc[metrics["system"], column], metrics[column], rtol=1e-5)
    assert set(found["temperature"].dropna()) == {1.0}
    scaled = own["reliability"].query("scaled").set_index("system")["temperature"].dropna()
    np.testing.assert_allclose(scaled, evaluation.fit_temperatures(*run.predictions("validation")), rtol=1e-5)
    bins = own["bins"].query("not scaled").groupby("system")["count"].sum()
    assert set(bins) == {len(run.predictions("test")[1])}


def test_the_explorer_s_ends_are_the_first_and_the_last_exit(runs, results):
    frame = results.evaluation("explorer")
    for run in runs[:4]:
        logits, labels = run.predictions("test")
        for method in evaluation.ALLOCATIONS:
            rows = frame[(frame["run"] == run.id) & (frame["allocation"] == method)]
            left = rows[[f"left_{k}" for k in range(1, len(run.costs) + 1)]].to_numpy()
            assert len(rows) == run_tables.STEPS
            assert (left.sum(axis=1) == len(labels)).all()
            np.testing.assert_allclose(left @ run.costs / len(labels) / run.backbone_flops, rows["cost"], rtol=1e-5)
            for row, logit in ((0, logits[0]), (-1, logits[-1])):
                assert rows["accuracy"].iloc[row] == pytest.approx((logit.argmax(1) == labels).mean(), rel=1e-5)
            middle = rows.iloc[run_tables.STEPS // 2]
            thresholds = [*(middle[f"threshold_{k}"] for k in range(1, len(run.costs))), np.inf]
            budget = float(np.linspace(run.costs[0], run.costs[-1], run_tables.STEPS)[run_tables.STEPS // 2])
            validation, truth = run.predictions("validation")
            known = evaluation.calibrate(validation, truth, run.costs, budget, method=method)
            np.testing.assert_allclose(thresholds, known, rtol=1e-5)


def test_a_regression_has_what_it_can_have_and_says_why_not(runs, results):
    run = runs[-1]
    own = {name: frame[frame["run"] == run.id] for name in TABLES for frame in [results.evaluation(name)]}
    shared = own["allocation"].query("allocation == 'shared'")
    assert set(shared["score"]) == {"r2"}
    known = evaluation.budget_misses(
        run.predictions("validation"), run.predictions("test"), run.costs, run.backbone_flops, "patience", "shared"
    )
    np.testing.assert_allclose(shared["r2"], known["r2"], rtol=1e-5)
    geometric = own["allocation"].query("allocation == 'geometric'")
    assert geometric["r2"].isna().all()
    assert geometric["reason"].iloc[0].startswith("method: must be 'shared' in regression")
    assert len(own["explorer"].query("allocation == 'shared'")) == run_tables.STEPS
    for name in ("risk", "draws", "reliability", "ood", "agreement", "leaving", "samples", "examples"):
        assert own[name]["reason"].str.contains("regression").all(), name
    assert own["curves"]["area"].notna().all()
    assert own["bins"].empty


def test_samples_out_of_the_distribution(runs, results):
    frame = results.evaluation("ood")
    own = frame[frame["run"] == runs[0].id]
    assert {"inverted", "turned", "noise"} <= set(own["outside"])
    for kind, rows in own.groupby("outside"):
        if rows["reason"].iloc[0]:  # the other data set is not on this machine
            assert kind == "another data set"
            continue
        assert set(rows["system"]) == {*(f"exit {k + 1}" for k in range(len(runs[0].costs))), "dynamic"}
        assert rows["auroc"].between(0, 1).all()
    dynamic = own[own["system"] == "dynamic"]
    assert dynamic[["cost", "cost_inside"]].notna().all(axis=None)
    logits, _ = runs[0].predictions("test")
    split, _ = outside(runs[0].data(), 100)["turned"]
    assert split is not None
    with torch.no_grad():
        turned = torch.stack(runs[0].model()(split.x))
    known = evaluation.ood_detection(logits, turned)
    found = own[(own["outside"] == "turned") & (own["system"] != "dynamic")]
    np.testing.assert_allclose(found["auroc"], known["auroc"], rtol=1e-5)


def test_difficulty_of_the_study(runs, results):
    labels = runs[0].predictions("test")[1]
    wrong = np.concatenate([run.predictions("test")[0].argmax(-1) != labels for run in runs[:4]])
    samples = results.evaluation("samples").query("reason != reason or reason == ''")
    np.testing.assert_allclose(samples["difficulty"], wrong.mean(axis=0), atol=1e-6)
    leaving = results.evaluation("leaving")
    left = leaving[leaving["run"] == runs[2].id]
    assert left["left"].sum() == len(labels)
    assert left.groupby("group")["left"].sum().to_dict() == left.groupby("group")["samples"].first().to_dict()
    agreement = results.evaluation("agreement")
    own = agreement[(agreement["run"] == runs[0].id) & (agreement["with"] == "other seeds")]
    first, second = (run.predictions("test")[0].argmax(-1) for run in runs[:2])
    np.testing.assert_allclose(own["agreement"], (first == second).mean(axis=1), rtol=1e-5)
    pictures = results.evaluation("examples").dropna(subset="kind")
    assert set(pictures["kind"]) == {"easy", "hard", "split"}
    assert {len(pixels) for pixels in pictures["pixels"]} == {64}
    assert pictures.query("kind == 'hard'")["difficulty"].min() >= pictures.query("kind == 'easy'")["difficulty"].max()


def test_goals_of_the_curves(runs, results):
    frame = results.evaluation("curves").set_index(["run", "goal_of"])
    last = {run.id: (run.predictions("validation")[0][-1].argmax(1) == run.predictions("validation")[1]).mean()
            for run in runs[:4]}  # fmt: skip
    for run in runs[:4]:
        assert frame.loc[(run.id, "own"), "goal"] == pytest.approx(0.99 * last[run.id])
        best = max(last[other.id] for other in runs[:4] if other.config.seed == run.config.seed)
        assert frame.loc[(run.id, "best"), "goal"] == pytest.approx(0.99 * best)


def test_what_is_evaluated_is_not_evaluated_again(runs, folder, small_store, tmp_path, monkeypatch):
    def never(_):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(evaluations, "run_makers", never)
    study = Study("tiny", tuple(run.config for run in runs))
    assert not analyse_study(study, EVALUATIONS, Store(small_store), Records(tmp_path))
    here, there = (Records(place).read("evaluation") for place in (folder, tmp_path))
    assert len(here) == len(there) > len(runs)
    assert all(agree(left, right) for left, right in zip(here, there, strict=True))


def test_what_is_kept_belongs_to_these_predictions_alone(runs, small_store, tmp_path):
    """A run made again with other predictions is evaluated again."""
    store, run = Store(tmp_path), runs[0]
    shutil.copytree(run.path, tmp_path / "runs" / run.id)
    copied, evaluation_of = Run(run.config, store), RunEvaluation((run.config,))
    before = evaluation_of.folder(store).id
    assert before == evaluation_of.folder(Store(small_store)).id
    content = copied.folder.arrays("predictions.safetensors")
    copied.folder.write_arrays("predictions.safetensors", {**content, "test.logits": content["test.logits"] + 1})
    assert evaluation_of.folder(store).id != before


def test_a_killed_evaluation_goes_on_with_what_it_lacks(runs, small_store, monkeypatch):
    store = Store(small_store)
    monkeypatch.setattr(evaluations, "SCHEMA", -1)  # a folder of this test's own
    asked = []

    def makers(_):
        def make(name):
            asked.append(name)
            if len(asked) == 2:
                raise KeyboardInterrupt
            return {name: pd.DataFrame({"value": [len(asked)]})}

        return {name: partial(make, name) for name in ("one", "two", "three")}

    monkeypatch.setattr(evaluations, "run_makers", makers)
    with pytest.raises(KeyboardInterrupt):
        keep(RunEvaluation((runs[0].config,)), store)
    keep(RunEvaluation((runs[0].config,)), store)
    assert asked == ["one", "two", "two", "three"]


def test_runs_that_are_not_done_are_one_line_with_the_command(tmp_path, capsys):
    path = tmp_path / "one.yaml"
    path.write_text("architecture: mlp\ndataset: digits\nstrategy: joint\nseeds: [0, 1]\n")
    assert main(["evaluate", str(path), "--store", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "and 1 more: not trained yet; make with: eestudy run params/one.yaml" in said


def test_a_missing_table_is_named_with_its_command(tmp_path, results):
    lacking = Results("tiny", tmp_path, results._frames | {})
    with pytest.raises(
        EestudyError, match=r"evaluation has no record with the table 'odd'; make it with: eestudy evaluate"
    ):
        lacking.evaluation("odd")


def test_a_budget_below_the_first_exit_is_a_dash_with_the_numbers():
    run = predicted(backbone_flops=180.0)  # half of it is below the first exit's 110
    table = run_tables.allocation(run)
    small = table[table["budget"].isin(["25", "50"])]
    assert small["accuracy"].isna().all()
    assert (small.query("budget == '50'")["reason"] == "budget of 90 FLOPs is below the first exit's 110").all()
    assert table[table["budget"] == "75"]["accuracy"].notna().all()
    metrics = run_tables.reliability(run)["reliability"]
    dynamic = metrics[metrics["system"] == "dynamic"]
    assert len(dynamic) == 2
    assert dynamic["ece"].isna().all()
    assert dynamic["reason"].str.contains("90 FLOPs is below the cost of the first exit").all()
    assert metrics[metrics["system"] == "exit 1"]["ece"].notna().all()


def test_one_class_only_is_a_dash_where_labels_are_learned_from():
    logits, labels = predicted().validation
    run = predicted(validation=(logits, np.full_like(labels, 2)))
    table = run_tables.allocation(run)
    refused = table[table["accuracy"].isna()]
    assert set(refused["allocation"]) == {"optimized"}
    assert refused["reason"].str.contains("all 200 are of class 2").all()
    assert set(table[table["accuracy"].notna()]["allocation"]) == {"geometric", "shared"}
    assert run_tables.risk(run)["reason"].str.contains("class 2").all()
    scaled = run_tables.reliability(run)["reliability"].query("scaled")
    assert scaled["reason"].str.contains("class 2").all()


def test_logits_that_are_not_numbers_are_dashes_everywhere():
    logits, labels = predicted().test
    bad = np.array(logits)
    bad[1, 7, 2] = np.nan
    run = predicted(test=(bad, labels))
    for table, values in ((run_tables.allocation(run), 9000), (run_tables.draws(run), 15000)):
        assert table["reason"].str.contains(f"got 1 NaN or infinite of {values} values").all()
    metrics = run_tables.reliability(run)
    assert metrics["reliability"]["reason"].str.contains("NaN").all()
    assert "bins" not in metrics


def test_draws_know_the_true_risk(monkeypatch):
    monkeypatch.setattr(run_tables, "DRAWS", 12)
    monkeypatch.setattr(run_tables, "DRAWN", (0.05, 0.8))
    run = predicted()
    table = run_tables.draws(run)
    assert len(table) == 12
    assert (table["exceeded"] == (table["risk"] > 0.05)).all()
    assert table["certified"].any()
    logits = np.concatenate([run.validation[0], run.test[0]], axis=1)
    labels = np.concatenate([run.validation[1], run.test[1]])
    generator = np.random.default_rng(0)
    chosen = generator.integers(500, size=200)
    found = evaluation.control_risk(logits[:, chosen], labels[chosen], run.costs, 0.05, 0.8)
    if found.threshold is not None:
        accuracy, _ = evaluation.threshold_sweep(logits, labels, run.costs, [found.threshold, np.inf])
        assert table["risk"].iloc[0] == pytest.approx(accuracy[1] - accuracy[0])


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_ood_samples_have_the_shape_and_range_of_the_data(name):
    loaded = data.load(name, **({"samples": 1000} if name == "mnist1d" else {}))
    found = outside(loaded, 50)
    assert tuple(found) == KINDS
    low, high = float(loaded.train.x.min()), float(loaded.train.x.max())
    for kind, (split, reason) in found.items():
        if split is None:
            assert kind == "another data set"
            assert reason
            continue
        assert split.x.shape == (50, *loaded.input_shape)
        if kind in ("noise", "another data set"):
            assert low - 1e-4 <= float(split.x.min())
            assert float(split.x.max()) <= high + 1e-4
    own = loaded.test.x[:50]
    turned, inverted = found["turned"][0], found["inverted"][0]
    assert turned is not None
    assert inverted is not None
    assert torch.equal(turned.x[..., 0], own.flip(-2)[..., -1] if name == "digits" else own[..., -1])
    torch.testing.assert_close(inverted.x + own, torch.full_like(own, low + high))


def test_a_data_set_that_is_not_there_and_inputs_that_are_no_pictures(monkeypatch):
    def missing(_):
        raise EestudyError("dataset: fashion-mnist was not found")

    monkeypatch.setattr("eestudy.data.out_of_distribution.load", missing)
    assert outside(data.load("digits"), 5)["another data set"] == (None, "dataset: fashion-mnist was not found")
    table = data.load("diabetes")
    assert {split for split, _ in outside(table, 5).values()} == {None}
    assert "no pictures" in outside(table, 5)["noise"][1]


def test_difficulty_of_known_votes():
    labels = np.array([0, 0, 1])
    votes = [np.array([[0, 1, 1], [0, 0, 0]]), np.array([[0, 1, 0], [0, 2, 0]])]
    table = difficulty.sample_table(votes, labels)
    assert table["difficulty"].tolist() == [0, 0.75, 0.75]
    assert table["agreement"].tolist() == [1, 0.5, 0.75]
    assert table["majority"].tolist() == [0, 1, 0]
    assert difficulty.group_of(np.array([0, 0.1, 0.11, 0.49, 0.5, 1])).tolist() == [
        *["easy"] * 2, *["middle"] * 2, *["hard"] * 2
    ]  # fmt: skip
    agreed = difficulty.exit_agreement(votes).set_index(["place", "exit", "with"])["agreement"]
    assert agreed[0, 1, "other seeds"] == pytest.approx(2 / 3)
    assert agreed[1, 1, "own last exit"] == pytest.approx(2 / 3)
    assert agreed[0, 2, "own last exit"] == 1
    assert set(difficulty.exit_agreement(votes[:1])["with"]) == {"own last exit"}
