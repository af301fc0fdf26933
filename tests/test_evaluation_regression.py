"""Exits of a regression: patience with a difference, its scores, budgets and tables, up to a run on diabetes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

import eestudy
from eestudy import evaluation as ev
from eestudy.analysis import add_records
from eestudy.cli import main
from eestudy.config import EestudyError
from eestudy.evaluation.rules.patience import TOO_EARLY
from eestudy.records import Records
from eestudy.report import collect, load, over_cells, plots, statistics, tables
from eestudy.store import Store

COSTS = [100, 230, 310, 470, 900]
BACKBONE = 850


def random_run(seed: int, samples: int = 83, coarse: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (5, N, 1) that get better from exit to exit, and real labels (N,). coarse: many equal changes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randn(samples, generator=generator) * 2 + 1
    noise = torch.randn(5, samples, generator=generator) * torch.tensor([2.0, 1.2, 0.8, 0.5, 0.4])[:, None]
    logits = (labels + noise).unsqueeze(2)
    return ((logits * 2).round() / 2 if coarse else logits), labels


def leaves_by_hand(values: list[float], k: int, difference: float) -> int:
    """The exit (from 1) at which one sample's predictions stay within `difference` for more than k exits in a row."""
    run = 1
    for number, value in enumerate(values[:-1], 1):
        if number > 1:
            run = run + 1 if abs(value - values[number - 2]) < difference else 1
        if run > k:
            return number
    return len(values)


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 9])
def test_the_rule_is_the_published_counter(k, coarse):
    logits, _ = random_run(1, coarse=coarse)
    seen = set()
    for difference in (0.05, 0.5, 1.0, 2.5, 1e6):
        where = ev.simulate(logits, ev.patience(k, difference=difference))
        by_hand = [leaves_by_hand(values, k, difference) for values in logits[:, :, 0].numpy().T]
        assert where.tolist() == by_hand
        seen |= set(by_hand)
    assert len(seen) == max(5 - k, 1) if k else seen == {1}


def test_a_change_equal_to_the_difference_is_a_change():
    logits = torch.tensor([0.0, 0.5, 9.0]).view(3, 1, 1)
    assert ev.simulate(logits, ev.patience(1, difference=0.5)).tolist() == [3]
    assert ev.simulate(logits, ev.patience(1, difference=np.nextafter(0.5, 1))).tolist() == [2]


def test_scores_by_hand():
    logits = torch.tensor([[1.0], [1.25], [0.75], [0.75]]).unsqueeze(2)
    assert ev.scores(logits, "patience")[:, 0].tolist() == [TOO_EARLY, -0.25, -0.5, 0.0]
    assert ev.scores(logits, ev.patience(2, difference=1.0))[:, 0].tolist() == [TOO_EARLY, TOO_EARLY, -0.5, -0.5]
    assert ev.scores(logits, ev.patience(3, difference=1.0))[:, 0].tolist() == [TOO_EARLY] * 3 + [-0.5]


RULES = [ev.patience(0, difference=1.0), ev.patience(1, difference=0.3), ev.patience(2, difference=0.6),
         ev.per_exit([-0.5, -0.2, -0.3, -1.0, math.inf], "patience", k=1)]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_stopping_for_real_equals_the_simulation(rule, batch):
    """Of a network's own predictions; a difference that is exactly one sample's change is the hardest case."""
    torch.manual_seed(0)
    model = eestudy.MultiExit(eestudy.models.build_backbone("mlp", (10,), 1, width=16)).eval().double()
    x = torch.randn(64, 10, dtype=torch.float64)
    with torch.no_grad():
        stored = torch.stack(model(x)).float()
    exact = ev.patience(1, difference=float((stored[1] - stored[0]).abs().median()))
    for each in (rule, exact):
        expected = ev.simulate(stored, each)
        parts = [model.predict(part, each) for part in x.split(batch)]
        assert torch.cat([index for _, index in parts]).tolist() == expected.tolist()
        left = torch.cat([logits for logits, _ in parts])
        torch.testing.assert_close(left.float(), stored[torch.from_numpy(expected) - 1, torch.arange(64)])
    assert len(set(ev.simulate(stored, exact).tolist())) > 1


def test_calibrated_thresholds_stop_for_real_as_simulated():
    """Every threshold is a stored score: the strict comparison must fall the same way in both."""
    logits, labels = random_run(3)
    for budget in (100, 300, 420.5, 700):
        rule = ev.per_exit(ev.calibrate(logits, labels, COSTS, budget, "patience"), "patience", k=1)
        where = ev.simulate(logits, rule)
        for n in range(logits.shape[1]):
            history: list[torch.Tensor] = []
            for number in range(1, 5):
                history.append(logits[number - 1, n : n + 1])
                if rule(history).item():
                    break
            else:
                number = 5
            assert number == where[n]


# ---------------------------------------------------------------- scores of exits, curves


def test_exit_metrics_by_hand():
    labels = np.array([1.0, 2.0, 3.0, 4.0])
    predicted = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 4.0, 3.0], [2.5] * 4])
    frame = ev.exit_metrics(predicted[:, :, None], labels)
    assert frame.columns.tolist() == ["exit", "r2", "pearson", "spearman", "mse"]
    np.testing.assert_allclose(frame.mse, [0, 5, 0.5, 1.25])
    np.testing.assert_allclose(frame.r2, [1, -3, 0.6, 0], atol=1e-12)
    np.testing.assert_allclose(frame.pearson, [1, -1, 0.8, np.nan])
    np.testing.assert_allclose(frame.spearman, [1, -1, 0.8, np.nan])


def test_labels_without_spread_have_no_r2():
    frame = ev.exit_metrics(np.array([[[1.0], [2.0]]]), np.array([3.0, 3.0]))
    assert frame[["r2", "pearson", "spearman"]].isna().all(axis=None)
    assert frame.mse.tolist() == [2.5]


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "tied"])
def test_the_curve_equals_the_loop_at_every_threshold(coarse):
    logits, labels = random_run(5, coarse=coarse)
    frame = ev.tradeoff_curve(logits, labels, COSTS, "patience")
    assert (np.diff(frame.threshold) > 0).all()
    assert (np.diff(frame.cost) >= 0).all()
    variance = labels.numpy().astype(float).var()
    rows = frame.to_dict("records")
    for row in rows:
        where = ev.simulate(logits, ev.per_exit([row["threshold"]] * 5, "patience", k=1))
        errors = logits[where - 1, range(83), 0].numpy().astype(float) - labels.numpy()
        assert row["mse"] == pytest.approx((errors**2).mean(), rel=1e-9)
        assert row["r2"] == pytest.approx(1 - (errors**2).mean() / variance, abs=1e-9)
        assert row["cost"] == np.asarray(COSTS)[where - 1].mean()
        assert [row[f"share_{e}"] for e in range(1, 6)] == (np.bincount(where, minlength=6)[1:] / 83).tolist()
    wanted = [row["threshold"] for row in rows] + [-0.7, -1e-3, math.inf]
    r2, cost = ev.threshold_sweep(logits, labels, COSTS, wanted, "patience")
    assert (r2[: len(rows)].tolist(), cost[: len(rows)].tolist()) == (frame.r2.tolist(), frame.cost.tolist())
    assert (r2[-1], cost[-1]) == (frame.r2.iloc[-1], frame.cost.iloc[-1])


# ---------------------------------------------------------------- budgets


def test_calibration_takes_the_largest_cost_within_the_budget():
    logits, labels = random_run(7)
    curve = ev.tradeoff_curve(logits, labels, COSTS, "patience")
    for budget in (100, 229, 310.5, 420, 899):
        thresholds = ev.calibrate(logits, labels, COSTS, budget, "patience")
        where = ev.simulate(logits, ev.per_exit(thresholds, "patience", k=1))
        assert np.asarray(COSTS)[where - 1].mean() == curve.cost[curve.cost <= budget].max()
    early = ev.calibrate(logits, labels, COSTS, 229, "patience")  # exit 2 costs 230: nobody can go there
    assert (ev.simulate(logits, ev.per_exit(early, "patience", k=1)) == 1).all()
    assert (ev.calibrate(logits, labels, COSTS, 900, "patience") == math.inf).all()


def test_calibrated_budgets_report_what_the_thresholds_do_on_test():
    validation, (logits, labels) = random_run(8), random_run(9)
    frame = ev.calibrated_budgets(validation, (logits, labels), COSTS, 390, "patience")  # 25 % is below exit 1
    assert frame.columns.tolist() == ["budget", "r2", "pearson", "spearman", "mse", "flops"]
    assert frame.iloc[0, 1:].isna().all()
    for row in frame.iloc[1:-1].itertuples():
        thresholds = ev.calibrate(*validation, COSTS, int(row.budget) / 100 * 390, "patience")
        where = ev.simulate(logits, ev.per_exit(thresholds, "patience", k=1)) - 1
        left = logits[where, range(83), 0].numpy()
        assert row.flops == np.asarray(COSTS, float)[where].mean()
        assert row.pearson == pytest.approx(np.corrcoef(left, labels)[0, 1])
        ranks = [pd.Series(values).rank() for values in (left, labels.numpy())]
        assert row.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert frame.iloc[-1, 1:-1].tolist() == ev.exit_metrics(logits, labels).iloc[-1, 1:].tolist()
    # Neither test labels nor validation labels play a part in who leaves where.
    other = ev.calibrated_budgets(
        (validation[0], validation[1].roll(1)), (logits, labels.roll(1)), COSTS, 390, "patience"
    )
    assert other.flops.equals(frame.flops)
    assert not other.r2.equals(frame.r2)
    curve = ev.calibrated_curve(validation, (logits, labels), COSTS, 390, "patience", [0.5, 0.75])
    assert curve.iloc[:, 1:].to_numpy().tolist() == frame.iloc[1:3, 1:].to_numpy().tolist()


def test_paper_budgets_equal_a_slow_reference():
    runs = [random_run(10 + seed, 40) for seed in range(3)]
    frame = ev.paper_budgets(runs, COSTS, BACKBONE, "patience")
    largest = [float((logits[1:-1] - logits[:-2]).abs().max()) for logits, _ in runs]
    sweep: list[tuple[list[float], list[np.ndarray]]] = [([-math.inf] * 3, [np.zeros(40, int)] * 3)]
    for part in np.linspace(1, 0, 100):
        differences = [part * change for change in largest]
        by_run = [
            [leaves_by_hand(v, 1, difference) for v in logits[:, :, 0].numpy().T]
            for (logits, _), difference in zip(runs, differences, strict=True)
        ]
        sweep.append(([-difference for difference in differences], [np.array(where) - 1 for where in by_run]))
    for budget in ev.BUDGETS:
        limit = math.inf if budget == "max" else int(budget) / 100 * BACKBONE
        within = [np.asarray(COSTS)[np.concatenate(wheres)].mean() <= limit for _, wheres in sweep]
        chosen = (within.index(False) if not all(within) else len(sweep)) - 1
        thresholds, wheres = sweep[chosen]
        rows = frame[frame.budget == budget]
        for row, threshold, where, (logits, labels) in zip(rows.itertuples(), thresholds, wheres, runs, strict=True):
            left = logits[where, range(40), 0].numpy()
            assert row.threshold == pytest.approx(threshold, abs=1e-6)
            assert row.flops == np.asarray(COSTS)[where].mean()
            assert row.pearson == pytest.approx(np.corrcoef(left, labels)[0, 1])
            assert row.mse == pytest.approx(float(((left - labels.numpy()) ** 2).mean()))
    assert frame.groupby("budget").threshold.first().nunique() == 5
    assert (frame[frame.budget == "max"].flops == COSTS[-1]).all()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.scores(x, "max-probability"), "rule: max-probability .*regression.*patience"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x, y), COSTS, 850), "rule: max-probability .*patience"),
        (lambda x, y: ev.entropy(0.3)([x[0]]), "rule: entropy .*patience"),
        (lambda x, y: ev.simulate(x, ev.margin(0.3)), "rule: margin .*patience"),
        (lambda x, y: ev.simulate(x, ev.patience(1)), r"patience\(k, difference=...\)"),
        (lambda x, y: ev.patience(1)([x[0], x[1]]), r"patience\(k, difference=...\)"),
        (lambda x, y: ev.simulate(x.expand(-1, -1, 3), ev.patience(1, difference=0.2)), "1 counts.*3 classes"),
    ],
)  # fmt: skip
def test_a_rule_of_the_other_task_says_which_to_take(call, words):
    with pytest.raises(EestudyError, match=words) as caught:
        call(*random_run(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, y: ev.exit_metrics(x, y.long()), "1 class .*int64.*at least 2 classes"),
        (lambda x, y: ev.exit_metrics(x[:, :, :0], y), "0 classes"),
        (lambda x, y: ev.exit_metrics(x, y[:-1]), r"\(83,\).*\(82,\)"),
        (lambda x, y: ev.exit_metrics(x, y / 0), "labels must be finite, got 83"),
        (lambda x, y: ev.exit_metrics(torch.full_like(x, math.nan), y), "415 NaN"),
        (lambda x, y: ev.calibrate(x[:4], y, COSTS, 300, "patience"), "4 exits"),
        (lambda x, y: ev.calibrate(x, y, COSTS, 99, "patience"), "99.*100"),
        (lambda x, y: ev.calibrate(x, y, COSTS, 300, "patience", "geometric"), "'shared' in regression.*geometric"),
        (lambda x, y: ev.calibrated_budgets((x, y), (x[:4], y), COSTS[:5], 850, "patience"), "differ"),
        (lambda x, y: ev.paper_budgets([(x, y), (x[:4], y)], COSTS, 850, "patience"), "equal exits"),
        (lambda x, y: ev.per_exit([-0.5] * 5, "patience", k=-1), "-1"),
        (lambda x, y: ev.tradeoff_curve(x, y, COSTS, "patienc"), "patience"),
        (lambda x, y: ev.patience(1, difference=0.0), "above 0, got 0.0"),
        (lambda x, y: ev.patience(1, difference=-0.5), "-0.5"),
        (lambda x, y: ev.patience(1, difference=math.nan), "nan"),
        (lambda x, y: ev.patience(-1, difference=0.5), "-1"),
        (lambda x, y: ev.per_exit([-0.5] * 5, "patience"), "need k"),
        (lambda x, y: ev.per_exit([0.5] * 5, "patience", k=1), "0.5"),
        (lambda x, y: ev.per_exit([-0.5] * 5, "margin", k=1), "margin"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call(*random_run(0))


# ---------------------------------------------------------------- a run, a study, its tables


DIABETES = {"train_size": None, "epochs": 20, "batch_size": 32}
STRATEGIES = ("disjoint", "joint", "mixed")


@pytest.fixture(scope="module")
def make(small_run: Callable[..., eestudy.Run]) -> Callable[..., eestudy.Run]:
    return lambda strategy, seed=0: small_run("mlp", "diabetes", strategy, seed=seed, **DIABETES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_learns_and_is_measured(make, strategy):
    run = make(strategy)
    assert (run.task, run.exit_rule) == ("regression", "patience")
    exits = run.exits()
    assert exits.columns.tolist() == [
        "run", "exit", "stage", "flops", "params", "r2", "pearson", "spearman", "mse", "score",
    ]  # fmt: skip
    # A linear fit has R2 0.45 on these samples; the mean of the labels has 0.
    assert exits["r2"].between(0.35, 0.7).all()
    assert exits["pearson"].between(0.6, 0.9).all()
    assert set(exits["score"]) == {"r2"}
    history = run.history()
    assert set(history["score"]) == {"r2"}
    logits, labels = run.predictions("validation")
    last = history[(history["split"] == "validation") & (history["exit"] == history["exit"].max())].iloc[-1]
    if strategy != "disjoint":  # there the last exit's last line is of the phase before
        expected = ev.exit_metrics(logits, labels).iloc[-1]
        assert (last["loss"], last["r2"]) == pytest.approx((expected["mse"], expected["r2"]), rel=1e-4)
    for protocol in ("calibrated", "paper"):
        budgets = run.budgets(protocol).set_index("budget")
        assert budgets.columns.tolist() == [
            "run", "protocol", "rule", "allocation", "r2", "flops", "pearson", "spearman", "mse", "score",
        ]  # fmt: skip
        assert set(budgets["rule"]) == {"patience"}
        final = exits.iloc[-1]
        assert budgets.loc["max", ["r2", "flops"]].tolist() == pytest.approx([final["r2"], final["flops"]])
        assert budgets["flops"].is_monotonic_increasing
        assert budgets["flops"].nunique() >= 4  # for 100 % nearly all stay, on test perhaps all
    curve = run.tradeoff()
    assert set(curve["rule"]) == {"patience"}
    assert curve["flops"].nunique() > 20
    assert curve["r2"].iloc[-1] == pytest.approx(exits["r2"].iloc[-1])
    with pytest.raises(EestudyError, match=r"rule: entropy .*patience"):
        run.budgets(rule="entropy")


def test_the_network_stops_as_its_stored_predictions_say(make):
    run = make("mixed")
    model, test = run.model(), run.data().test
    logits, labels = run.predictions("validation")
    thresholds = ev.calibrate(logits, labels, run.costs, 0.6 * run.backbone_flops, "patience")
    rule = ev.per_exit(thresholds, "patience", k=1)
    left, index = model.predict(test.x, rule)
    logits, labels = run.predictions("test")
    where = ev.simulate(logits, rule)
    # In float32, sums in other batches may differ in their last bit; no threshold is that close to a change here.
    assert index.tolist() == where.tolist()
    assert len(set(where.tolist())) > 1
    np.testing.assert_allclose(left[:, 0], logits[where - 1, range(len(labels)), 0], atol=1e-5)


@pytest.fixture(scope="module")
def study(make, small_run, small_store, tmp_path_factory):
    """Tables of a study of regression, and of one that has both tasks, as the runner writes them."""
    root = tmp_path_factory.mktemp("results")
    runs = [make(strategy, seed) for strategy in STRATEGIES for seed in (0, 1)]
    both = [*runs, *(small_run("mlp", "digits", strategy) for strategy in ("joint", "mixed"))]
    store = Store(small_store)
    for name, chosen in (("regression", runs), ("both", both), ("classes", both[len(runs) :])):
        add_records([run.config for run in chosen], store, Records(root / name))
    return root, runs


def test_a_study_of_regression_has_tables_and_figures(study, monkeypatch, capsys):
    root, runs = study
    monkeypatch.setenv("EESTUDY_RESULTS", str(root))
    results = load("regression")
    assert set(results.budgets["rule"]) == {"patience"}
    assert main(["table", "regression"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("R2 on test, %, at a mean cost within the budget. Protocol calibrated")
    assert "exit rule patience." in said
    assert main(["table", "regression", "--rule", "entropy"]) == 2
    assert "rule: unknown name 'entropy'; valid: patience" in capsys.readouterr().err
    shown = tables.exit_table(results)
    mean = results.exits[(results.exits["strategy"] == "mixed") & (results.exits["exit"] == 5)]["r2"].mean()
    assert shown.data.loc[("mlp / diabetes", "mixed"), "exit 5"].startswith(f"{100 * mean:.1f} ±")
    compared = tables.comparisons(results)
    assert tables.comparison_table(results).caption.startswith("Difference in R2, points")
    assert over_cells.answer(compared) == "One cell: there is no mean over cells."
    backbone = float(results.runs["backbone_flops"].iloc[0])
    for figure, text in (
        (plots.training_curves(results.history), "R2, %"),
        (plots.tradeoff(results.tradeoff, results.exits, backbone), "R2, %"),
        (plots.exit_grid(results.exits), "R2, %"),
    ):
        assert text in {*(axes.get_ylabel() for axes in figure.axes), figure.get_supylabel(), figure.get_supxlabel()}
    collected = collect(runs, eestudy.budgets(runs[:2]))
    assert tables.budget_table(collected).caption.startswith("R2 on test")


def test_a_study_of_both_tasks_names_both_and_leaves_classification_as_it_is(study, monkeypatch):
    root, _ = study
    monkeypatch.setenv("EESTUDY_RESULTS", str(root))
    both, classes = load("both"), load("classes")
    for name in ("exits", "budgets", "tradeoff", "history"):
        assert not {"score", "r2", "pearson"} & set(getattr(classes, name).columns)
        mixed = getattr(both, name)
        regression = mixed["dataset"] == "diabetes"
        assert set(mixed["score"][regression]) == {"r2"}
        assert set(mixed["score"][~regression]) == {"accuracy"}
        assert mixed["accuracy"][regression].isna().all()
        assert mixed["r2"][~regression].isna().all()
    shown = tables.budget_table(both)
    assert shown.caption.startswith("Accuracy (regression: R2) on test, %")
    assert "exit rule max-probability (regression: patience)." in shown.caption
    alone = tables.budget_table(classes)
    assert alone.caption.startswith("Accuracy on test, %, at a mean cost")
    assert "exit rule max-probability." in alone.caption
    cell = "mlp / digits"
    assert shown.data.loc[cell, "100 %"].tolist() == alone.data.loc[cell, "100 %"].tolist()
    assert "mlp / diabetes" in shown.data.index.get_level_values("cell")
    assert set(tables.budget_table(both, rule="entropy").data.index.get_level_values("cell")) == {cell}
    assert not tables.comparisons(both).empty


def test_r2_below_zero_stays_on_the_figure(make):
    exits = make("joint").exits().assign(strategy="joint", cell="a")
    exits["r2"] -= 1
    low, _ = plots.exit_grid(exits).axes[0].get_ylim()
    assert low < exits["r2"].min() < 0


def test_hard_samples_of_a_regression_are_those_with_large_errors():
    labels = np.zeros(4)
    logits = [np.array([[[0.1], [0.2], [3.0], [4.0]], [[0.1], [3.0], [0.2], [4.0]]])]
    assert statistics.share_wrong(logits, labels).tolist() == [0, 0.5, 0.5, 1]
