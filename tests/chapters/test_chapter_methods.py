"""Cards that say what the code says, and the comparison of methods on made-up tables with known differences."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from eestudy.chapters import methods
from eestudy.chapters.strategies import phase_table
from eestudy.config import RunConfig
from eestudy.registry import METHODS, STRATEGIES
from eestudy.report import differences
from eestudy.report.frames import Results
from eestudy.report.tables import BUDGETS
from eestudy.training.strategies import phases_of

# Cards

ROW = {"protocol": "calibrated", "allocation": "shared"}


def settings(card: methods.Card) -> dict[str, object]:
    found = re.findall(r"```yaml\n(.*?)```", card.body, flags=re.DOTALL)
    assert len(found) == 1, card.name
    return yaml.safe_load(found[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_card_has_an_idea_an_equation_and_yaml_that_works(name):
    card = methods.method_cards()[name]
    config = RunConfig(**settings(card))
    assert config.method == name
    METHODS[name].args(config)
    assert card.body.count("$$") % 2 == 0
    assert "$$" in card.body
    assert ":math:" not in card.idea + card.body
    assert ".. " not in card.body
    assert card.markdown("much").endswith("*Cost.* much")
    assert card.markdown().startswith(f"**`{name}`.** {card.idea}")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategys_card_has_yaml_and_a_line_for_each_phase(name):
    card = methods.strategy_cards()[name]
    config = RunConfig(architecture="mlp", dataset="digits", **settings(card))
    assert config.strategy == name
    phases = phases_of(config, (1, 2, 3))
    assert len(phase_table({name: phases}).data) == len(phases)
    assert len(card.idea) > 40


def test_what_a_card_says_of_phases():
    joint, mixed = (methods.strategy_cards()[name].idea for name in ("joint", "mixed"))
    assert joint.startswith("Phase 2: backbone and heads")
    assert mixed.startswith("Phase 1: the backbone alone, with its own classifier; then Phase 2")
    rows = phase_table({"mixed": STRATEGIES["mixed"](0.25)}).data
    assert rows["share of epochs"].tolist() == ["25 %", "75 %"]
    assert rows.loc[("mixed", 2), "learns"] == "backbone and heads"


def test_docstrings_become_markdown():
    text = "One :math:`x_1`.\n\n.. math:: a = b,\n    c\n\nwhere\n\n.. math::\n\n    d\n\n"
    text += ".. code-block:: yaml\n\n    k:\n      - 1\n"
    assert methods.markdown(text) == (
        "One $x_1$.\n\n$$\na = b,\nc\n$$\n\nwhere\n\n$$\nd\n$$\n\n```yaml\nk:\n  - 1\n```"
    )


def test_relative_cost():
    assert methods.relative_cost({"a": 3.0, "b": 2.0}, "b") == {
        "a": "150 % of the training FLOPs of `b`.", "b": "100 % of the training FLOPs of `b`.",
    }  # fmt: skip


# Comparison

GAINS = {("joint", "sdn"): 0.0, ("joint", "pbee"): -0.02, ("mixed", "sdn"): 0.03, ("mixed", "pbee"): 0.031,
         ("gradual", "sdn"): -0.05}  # fmt: skip
RULES = {"sdn": "max-probability", "pbee": "patience"}


def study(seeds: int = 4) -> Results:
    """Each method at its own rule differs from SDN joint by GAINS; under the other rule everything is 0.9 higher."""
    rows: dict[str, list[dict[str, object]]] = {"runs": [], "budgets": [], "tradeoff": []}
    for (strategy, method), gain in GAINS.items():
        for seed in range(seeds):
            run = f"{strategy}-{method}-{seed}"
            labels = {
                "architecture": "vit1d",
                "dataset": "mnist1d",
                "strategy": strategy,
                "method": method,
                "seed": seed,
            }
            facts = {"backbone_flops": 1e6, "training_flops": 2e9 if method == "pbee" else 1e9, "seconds": 3.0,
                     "hardware": "h", "versions": "{}", "commit": "c", "config": json.dumps(labels)}  # fmt: skip
            rows["runs"].append({"run": run, **labels, **facts})
            noise = 0.001 * np.random.default_rng([seed, sum(run.encode())]).normal()
            for budget in BUDGETS:
                for rule in RULES.values():
                    value = 0.5 + 0.1 * seed + gain + noise + (0.9 if rule != RULES[method] else 0)
                    value = np.nan if budget == "25" else value
                    rows["budgets"].append({**ROW, "run": run, "rule": rule, "budget": budget,
                                            "accuracy": value, "flops": 1e5})  # fmt: skip
            rows["tradeoff"].append({**ROW, "run": run, "rule": RULES[method], "budget": 0.5,
                                     "accuracy": 0.5, "flops": 1e5})  # fmt: skip
    return Results("made-up", None, {name: pd.DataFrame(records) for name, records in rows.items()})


def test_methods_are_compared_at_their_own_rule_with_sdn_under_the_same_strategy():
    frame = methods.differences(study(), "method")
    assert list(dict.fromkeys(zip(frame["strategy"], frame["method"]))) == [("joint", "pbee"), ("mixed", "pbee")]
    assert set(frame["budget"]) == {"50", "75", "100", "max"}
    means = frame.groupby("strategy")["mean"].mean()
    assert means["joint"] == pytest.approx(-0.02, abs=2e-3)
    assert means["mixed"] == pytest.approx(0.001, abs=2e-3)
    assert set(frame[frame["strategy"] == "joint"]["decision"]) == {"worse"}
    assert set(frame[frame["strategy"] == "mixed"]["decision"]) == {""}
    said = methods.in_short(frame, methods.regimes(study()), methods.differences(study(), "strategy"))
    assert "joint: lower in 4 of 4; mixed: inconclusive in 4 of 4 comparisons." in said


def test_strategies_are_compared_with_joint():
    frame = methods.differences(study(), "strategy")
    assert list(dict.fromkeys(frame["strategy"])) == ["mixed", "gradual"]
    assert set(frame["method"]) == {"sdn"}
    assert set(frame["decision"]) == {"better", "worse"}


def test_regimes_within_a_method():
    frame = methods.regimes(study())
    assert list(dict.fromkeys(zip(frame["pair"], frame["method"]))) == [
        ("mixed − joint", "sdn"), ("mixed − joint", "pbee"),
    ]  # fmt: skip
    assert frame.groupby("method")["mean"].mean()["pbee"] == pytest.approx(0.051, abs=3e-3)


def test_a_method_that_is_sdn_number_for_number_is_no_case_of_its_own():
    plain = study()
    assert methods.same_as_reference(plain) == []
    frames = {}
    for name in ("runs", "budgets", "tradeoff"):
        frame = plain._recorded(name)
        twins = frame[frame["run"].str.contains("^(?:joint|mixed)-sdn")].replace({"method": "sdn"}, "msdnet")
        frames[name] = pd.concat(
            [frame, twins.assign(run=twins["run"].str.replace("sdn", "msdnet"))], ignore_index=True
        )
    twin = Results("made-up", None, dict(frames))
    assert methods.same_as_reference(twin) == ["msdnet"]
    assert set(methods.regimes(twin)["method"]) == {"sdn", "pbee"}
    assert set(methods.differences(twin, "method")["method"]) == {"pbee"}
    assert ("joint", "msdnet") in methods.accuracy_table(twin, "method").data.index
    frames["budgets"].loc[frames["budgets"]["run"] == "joint-msdnet-0", "accuracy"] += 0.1
    assert methods.same_as_reference(Results("made-up", None, frames)) == []


def test_tables_for_readers():
    made = methods.accuracy_table(study(), "method")
    assert list(made.data.index) == [("joint", "sdn"), ("joint", "pbee"), ("mixed", "sdn"), ("mixed", "pbee")]
    assert made.data.loc[("joint", "pbee"), "FLOPs, %"] == "200"
    assert made.data.loc[("joint", "sdn"), "25 %"] == "–"
    assert made.data.loc[("joint", "sdn"), "max"].startswith("65.")
    alone = methods.accuracy_table(study(), "strategy").data
    assert list(alone.index) == [("joint", "sdn"), ("mixed", "sdn"), ("gradual", "sdn")]
    text = differences.difference_table(methods.regimes(study()), "Regimes", "r").data
    assert text.loc[("mixed − joint", "sdn"), "50 %"].startswith("+")
    assert text.loc[("mixed − joint", "sdn"), "50 %"].endswith("*")


def test_the_figure_has_a_panel_for_each_strategy_or_one_for_strategies_alone():
    for frame, panels in (
        (methods.differences(study(), "method"), ["joint", "mixed"]),
        (methods.differences(study(), "strategy"), ["sdn"]),
        (methods.regimes(study()), ["mixed − joint"]),
    ):
        figure = differences.difference_plot(frame, label="a less b")
        assert [axes.get_title(loc="left") for axes in figure.axes] == panels
        assert figure.png()[:4] == b"\x89PNG"
