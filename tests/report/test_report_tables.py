"""Frames and tables: what they read, what they refuse, what a reader sees."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import synthetic_study
from scipy import stats

from eestudy import study as studies
from eestudy.config import EestudyError
from eestudy.records import Record, Records
from eestudy.report import Results, collect, frames, load, results_folder, tables, union
from eestudy.report import statistics as st


def test_report_loads_no_torch() -> None:
    code = "import sys, eestudy.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_results_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path))
    assert results_folder("smoke") == tmp_path / "smoke"
    monkeypatch.delenv("EESTUDY_RESULTS")
    assert results_folder("smoke").parts[-3:] == ("book", "results", "smoke")


def test_frames_are_labelled(results: Results) -> None:
    assert results.cells == ["mlp / digits", "vit1d / mnist1d"]
    assert results.strategies == ["disjoint", "joint", "mixed"]
    for frame in (results.history, results.exits, results.budgets, results.tradeoff):
        assert set(frames.LABELS) <= set(frame.columns)
        assert frame["cell"].notna().all()
    assert set(results.budgets["budget"]) == {"25", "50", "75", "100", "max"}  # text, not numbers


def test_what_is_missing_is_named_with_its_command(folder: Path) -> None:
    with pytest.raises(EestudyError, match=r"dynamics has no record with the table 'rank'.*eestudy dynamics params/"):
        load("made-up").dynamics("rank")
    shutil.rmtree(folder / "runs")
    with pytest.raises(EestudyError, match=r"runs has no record; make some with: eestudy run params/made-up\.yaml"):
        load("made-up")


def test_the_command_names_the_params_where_they_are() -> None:
    assert frames._command("pilots", "run") == "eestudy run params/study/pilots.yaml"


def test_a_missing_column_and_an_empty_table(folder: Path) -> None:
    tables = synthetic_study.frames(1)
    lacking = {**tables, "exits": tables["exits"].drop(columns="nll")}
    shutil.rmtree(folder)
    synthetic_study.write(folder, lacking)
    with pytest.raises(EestudyError, match="exits: the column 'nll' is in no record"):
        _ = load("made-up").exits
    shutil.rmtree(folder)
    synthetic_study.write(folder, {**tables, "exits": tables["exits"][:0]})
    with pytest.raises(EestudyError, match="exits: no record has a row"):
        _ = load("made-up").exits


def test_rows_of_an_unknown_run_are_refused(folder: Path) -> None:
    table = pd.DataFrame({"run": ["another"], "rank": [3]})
    Records(folder).add(Record("dynamics", "rank-1", {}, {"rank": table}))
    with pytest.raises(EestudyError, match="'another'"):
        load("made-up").dynamics("rank")


@pytest.mark.parametrize(
    ("study", "message"), [("made-yp", "nearest: made-up"), ("../made-up", "not a name"), ("", "not a name")]
)
def test_unknown_studies(folder: Path, study: str, message: str) -> None:
    with pytest.raises(EestudyError, match=message):
        load(study)


def test_no_study_at_all_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EESTUDY_RESULTS", str(tmp_path / "none"))
    for module in (frames, studies):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    with pytest.raises(EestudyError, match=r"eestudy run params/smoke\.yaml"):
        load("smoke")


def test_a_study_that_varies_a_setting_is_not_averaged_over_it() -> None:
    once, again = synthetic_study.frames(), synthetic_study.frames()
    for frame in again.values():
        frame["run"] += "-long"
    again["runs"]["config"] = [json.dumps(json.loads(c) | {"epochs": 40}) for c in again["runs"]["config"]]
    both = Results("x", None, {name: pd.concat([once[name], again[name]], ignore_index=True) for name in once})
    assert "mlp / digits, epochs 40" in both.cells
    assert len(both.cells) == 4
    twice = Results("x", None, {name: pd.concat([once[name]] * 2, ignore_index=True) for name in once})
    with pytest.raises(EestudyError, match="twice"):
        _ = twice.runs


def test_collect_from_runs_gives_the_same_frames(results: Results) -> None:
    def pick(frame: pd.DataFrame, run: str, name: str) -> pd.DataFrame:
        columns = [*frames.COLUMNS[name], *frames.SCORES.get(name, ())]
        return frame.loc[frame["run"] == run, columns]

    def as_run(run: str) -> SimpleNamespace:
        return SimpleNamespace(
            summary=lambda: pick(results.runs, run, "runs").iloc[0].to_dict(),
            history=lambda: pick(results.history, run, "history"),
            exits=lambda: pick(results.exits, run, "exits"),
            tradeoff=lambda: pick(results.tradeoff, run, "tradeoff"),
        )

    names = list(results.runs["run"])
    collected = collect([as_run(n) for n in names], results.budgets[[*frames.COLUMNS["budgets"], "accuracy"]])
    pd.testing.assert_frame_equal(tables.comparisons(collected), tables.comparisons(results))
    assert tables.exit_table(collected).data.equals(tables.exit_table(results).data)
    with pytest.raises(EestudyError, match="not collected"):
        _ = collect([as_run(names[0])]).budgets
    with pytest.raises(EestudyError, match="empty"):
        collect([])


def test_budget_table_by_hand(results: Results) -> None:
    table = tables.budget_table(results)
    assert list(table.data.columns) == ["25 %", "50 %", "75 %", "100 %", "max"]
    x = results.budgets.query("cell == 'mlp / digits' and strategy == 'mixed' and protocol == 'calibrated'")
    a, b = 100 * x.loc[x["budget"] == "50", "accuracy"].to_numpy()
    expected = f"{(a + b) / 2:.1f} ± {12.706205 * abs(a - b) / 2:.1f}"
    assert table.data.loc[("mlp / digits", "mixed"), "50 %"] == expected
    assert table.data.loc[("mlp / digits", "mixed"), "25 %"] == tables.DASH  # exit 1 costs 26 %
    assert "no threshold keeps" in table.caption
    assert "Protocol calibrated" in table.caption
    assert "Protocol paper" in tables.budget_table(results, "paper").caption


def test_seeds_that_miss_a_budget_are_told() -> None:
    made = synthetic_study.frames()
    first = made["budgets"]["run"].iloc[0]
    at = (made["budgets"]["run"] == first) & (made["budgets"]["budget"] == "50")
    made["budgets"].loc[at, ["accuracy", "flops"]] = np.nan
    table = tables.budget_table(Results("x", None, made))
    assert table.data.loc[("mlp / digits", "disjoint"), "50 %"].endswith("(1 of 2 seeds)")
    assert "not comparable" in table.caption
    cell = tables.comparison_table(Results("x", None, made)).data.loc[("mlp / digits", "mixed − disjoint"), "50 %"]
    assert cell.endswith("(one seed)")


def test_one_seed_says_so() -> None:
    one = Results("x", None, synthetic_study.frames(seeds=1))
    assert tables.budget_table(one).data.loc[("mlp / digits", "joint"), "100 %"].endswith("(one seed)")
    assert "One seed: no interval" in tables.exit_table(one).caption
    assert (tables.comparisons(one)["decision"] == "").all()


def test_unknown_protocol_or_rule(results: Results) -> None:
    with pytest.raises(EestudyError, match="protocol: unknown name 'papers'; nearest: paper"):
        tables.budget_table(results, "papers")
    with pytest.raises(EestudyError, match="rule: unknown name 'entropy'"):
        tables.budget_table(results, rule="entropy")


def test_comparisons_agree_with_scipy_and_are_corrected_over_the_table() -> None:
    results = Results("x", None, synthetic_study.frames(seeds=4))
    frame = tables.comparisons(results)
    assert list(dict.fromkeys(frame["pair"])) == ["mixed − joint", "mixed − disjoint", "joint − disjoint"]
    row = frame.query("cell == 'vit1d / mnist1d' and pair == 'mixed − joint' and budget == '75'").iloc[0]
    x = tables.select(results.budgets, "calibrated", "max-probability").query(
        "cell == 'vit1d / mnist1d' and budget == '75'"
    )
    a, b = (x[x["strategy"] == s].sort_values("seed")["accuracy"].to_numpy() for s in ("mixed", "joint"))
    assert row["p"] == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert frame["p_holm"].to_numpy() == pytest.approx(st.holm(frame["p"]))
    assert set(frame["decision"]) == {"better", ""} or "worse" in set(frame["decision"])
    assert (frame["p_holm"] < 0.05).equals(frame["decision"] != "")


def test_comparisons_need_two_strategies() -> None:
    made = synthetic_study.frames()
    keep = made["runs"].query("strategy == 'mixed'")["run"]
    only = Results("x", None, {name: frame[frame["run"].isin(keep)] for name, frame in made.items()})
    with pytest.raises(EestudyError, match="two strategies"):
        tables.comparisons(only)


def test_html_and_text_are_stable(folder: Path) -> None:
    makers = (
        tables.budget_table,
        tables.exit_table,
        tables.comparison_table,
        tables.runs_table,
    )
    for make in makers:
        first, second = make(load("made-up")), make(load("made-up"))
        assert first.to_html() == second.to_html()
        assert repr(first) == repr(second)
        assert "0x" not in repr(first)
        assert 'class="dataframe"' in first.to_html()


def test_text_of_a_table_is_escaped() -> None:
    made = synthetic_study.frames()
    made["runs"]["hardware"] = "<b>2 cores</b>"
    assert "<b>" not in tables.runs_table(Results("x", None, made)).to_html()


def test_runs_table_adds_up(results: Results) -> None:
    table = tables.runs_table(results).data
    assert table.loc[("mlp / digits", "mixed"), "runs"] == 2
    assert table.loc[("mlp / digits", "mixed"), "seconds"] == "8.5"
    assert table.loc[("mlp / digits", "mixed"), "training FLOPs"] == "60 G"


def test_cost_table(results: Results) -> None:
    table = tables.cost_table(results).data
    assert list(table.index) == [1, 2, 3, 4]
    assert table.loc[1, "FLOPs a sample"] == "416 k"
    assert table.loc[4, "of the plain backbone"] == "104.0 %"


def test_engineering() -> None:
    values = [tables.engineering(v) for v in (0.0, 12.0, 1234.0, 12345678.0, 4e15)]
    assert values == ["0", "12", "1.23 k", "12.3 M", "4 P"]


def test_runs_stand_in_the_order_of_their_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records have none: by name disjoint comes first, and seed 10 before seed 9."""
    (tmp_path / "params" / "deep").mkdir(parents=True)
    text = "seeds: [10, 9]\ngrid:\n  - {architecture: mlp, dataset: digits, strategy: [joint, disjoint], epochs: 3}\n"
    (tmp_path / "params/deep/planned.yaml").write_text(text)
    monkeypatch.setattr(studies, "project_root", lambda: tmp_path)
    configs = studies.load_study(tmp_path / "params/deep/planned.yaml").configs
    study = tmp_path / "planned"
    for run in (*(config.id for config in reversed(configs)), "a-stranger"):
        Records(study).add(
            Record("dynamics", f"rank-{run}", {}, {"rank": pd.DataFrame({"run": [run, run], "at": [0, 1]})})
        )
    found = union.made(Records(study), "dynamics", "rank")
    assert found is not None
    assert list(dict.fromkeys(found["run"])) == [*(config.id for config in configs), "a-stranger"]
    assert found["at"].tolist() == [0, 1] * 5
