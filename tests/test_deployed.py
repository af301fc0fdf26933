"""A network for a budget: what it expects is what it does, and it comes back from its folder."""

# Wrong types are given on purpose, and modules are looked into.
# mypy: disable-error-code="arg-type, union-attr, assignment, operator, override, index, call-arg, attr-defined"

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eestudy import EestudyError
from eestudy import evaluation as ev
from eestudy.export import Deployed, Runner, deploy
from eestudy.models import Backbone, MultiExit, build_backbone, exit_costs, times
from tests.test_predict import stored

CLASSES, SAMPLES = 4, 300


def build(head: str = "auto") -> MultiExit:
    torch.manual_seed(0)
    return MultiExit(build_backbone("mlp", (1, 4, 4), CLASSES, depth=4, width=16), head=head)


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Half can be told by one number each, the rest by the signs of two products: deeper exits know more."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(SAMPLES, 16, generator=generator)
    y = 2 * (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] * x[:, 3] > 0).long()
    easy = torch.arange(SAMPLES)[: SAMPLES // 2]
    x[easy, 4 + y[easy]] += 6
    return x.reshape(-1, 1, 4, 4), y


@pytest.fixture(scope="module")
def trained() -> MultiExit:
    model = build()
    x, y = (torch.cat(parts) for parts in zip(*(data(seed) for seed in range(10, 20))))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        sum(F.cross_entropy(logits, y) for logits in model(x)).backward()  # type: ignore[union-attr]
        optimizer.step()
    return model.eval()


def check(model: MultiExit, made: Deployed, x: Tensor, y: Tensor) -> None:
    """On the validation data the object does what it expects; on other data what the simulation does."""
    logits, exits = made.predict(x)
    assert exits.tolist() == ev.simulate(stored(model, x), made.rule).tolist()
    torch.testing.assert_close(logits, stored(model, x)[exits - 1, torch.arange(len(x))])
    assert (logits.argmax(1) == y).float().mean().item() == pytest.approx(made.accuracy)
    shares = np.bincount(exits - 1, minlength=model.num_exits) / len(x)
    np.testing.assert_allclose(shares, made.share)
    np.testing.assert_allclose(np.nansum(np.array(made.costs) * shares), made.cost)
    right = (logits.argmax(1) == y).numpy()
    for exit in made.exits:
        here = right[exits.numpy() == exit]
        np.testing.assert_allclose(made.accuracies[exit - 1], here.mean() if len(here) else math.nan)
    other = data(9)[0]
    for part in (other, other[:1]):
        assert made.predict(part)[1].tolist() == ev.simulate(stored(model, part), made.rule).tolist()


@pytest.mark.parametrize("rule", ["max-probability", "entropy", "margin", "patience"])
@pytest.mark.parametrize(("budget", "method"), [(40, "shared"), (60, "shared"), (70, "optimized"), (500, "shared")])
def test_it_does_what_it_expects(trained: MultiExit, budget: float, rule: str, method: str) -> None:
    x, y = data(2)
    made = trained.deploy(budget, validation=(x, y), rule=rule, method=method)
    check(trained, made, x, y)
    assert made.cost <= budget * (1 + 1e-12)
    costs = exit_costs(trained.keeping(made.exits))
    np.testing.assert_allclose([made.costs[k - 1] for k in made.exits], np.array(costs.flops) / costs.backbone * 100)
    assert (made.temperatures is None) == (rule == "patience")
    if rule != "patience":
        np.testing.assert_allclose(made.temperatures, ev.fit_temperatures(stored(trained, x), y))


def test_it_is_no_worse_than_the_same_budget_with_every_exit(trained: MultiExit) -> None:
    x, y = data(2)
    logits, costs = stored(trained, x), exit_costs(trained)
    for budget in (40, 60, 80):
        flops = budget / 100 * costs.backbone
        found = ev.simulate(logits, ev.per_exit(ev.calibrate(logits, y, costs.flops, flops, method="shared")))
        accuracy = (logits[found - 1, torch.arange(len(x))].argmax(1) == y).float().mean()
        made = trained.deploy(budget, validation=(x, y), temperatures=False)
        assert made.temperatures is None
        assert made.accuracy >= accuracy


def test_an_exit_that_costs_more_than_it_saves_is_off_and_not_run() -> None:
    """A head as large as all else, and another that knows nothing."""
    torch.manual_seed(0)
    model = MultiExit(Backbone.from_stages([nn.Linear(8, 8) for _ in range(4)], nn.Linear(8, 3), (8,))).eval()
    for stage, width in ((1, 8), (2, 2000), (3, 8)):
        model.heads[str(stage)].insert(0, nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8)))
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 500)
    easy = draw.random(500) < 0.6
    sure = np.eye(3)[labels] * np.where(easy, 8.0, 1.0)[:, None]
    logits = np.stack([sure, sure, draw.normal(size=(500, 3)) * 9, np.eye(3)[labels] * 9]).astype(np.float32)
    whole = exit_costs(model)
    made = model.deploy(2.5 * whole.flops[0], "flops", (logits, labels))
    assert made.exits == (1, 4)
    assert made.rule.thresholds[1:] == (math.inf,) * 3
    assert [math.isnan(cost) for cost in made.costs] == [False, True, True, False]
    assert made.costs[3] == whole.backbone + whole.heads[0]
    assert made.accuracy == 1
    seen: list[str] = []
    for stage, head in model.heads.items():
        head.register_forward_hook(lambda *_, stage=stage: seen.append(stage))
        head[0].register_forward_hook(lambda *_, stage=stage: seen.append(stage))
    _, exits = made.predict(torch.randn(6, 8))
    assert set(seen) <= {"1"}
    assert set(exits.tolist()) <= {1, 4}
    lines = str(made).splitlines()
    assert [line.split()[1] for line in lines[4:6]] == ["off", "off"]
    assert len(lines) == 3 + 4


def test_a_head_that_reads_the_one_before_keeps_it_on() -> None:
    model = build("cascading-vector").eval()
    x, y = data(2)
    made = model.deploy(300, validation=(x, y))
    assert made.exits == tuple(range(1, model.num_exits + 1))
    assert made.predict(x)[1].tolist() == ev.simulate(stored(model, x), made.rule).tolist()


def test_milliseconds_are_those_of_costs(trained: MultiExit, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr(times, "now", lambda: next(ticks) / 1000)  # each part takes a millisecond
    monkeypatch.setattr(times, "SECONDS", 1e9)
    stages = len(trained.backbone.stages)
    made = trained.deploy(0.6 * (stages + 2), "ms", data(2))
    check(trained, made, *data(2))
    assert made.backbone == pytest.approx(stages + 2), "the copy and the classifier count too"
    for place, exit in enumerate(made.exits, 1):
        end = (*trained.exit_stages, stages)[exit - 1]
        assert made.costs[exit - 1] == pytest.approx(1 + end + place)
    assert made.hardware
    halved = trained.deploy(0.3 * (stages + 2), "ms", data(2), batch_size=2)
    np.testing.assert_allclose(halved.cost, made.cost / 2)


def test_logits_serve_as_well_as_samples(trained: MultiExit) -> None:
    x, y = data(2)
    made = [
        trained.deploy(50, "%", given) for given in ((x, y), (x.numpy(), y.numpy()), (stored(trained, x).numpy(), y))
    ]
    assert str(made[0]) == str(made[1]) == str(made[2])
    flops = exit_costs(trained).backbone
    np.testing.assert_allclose(deploy(trained, flops / 2, "flops", (x, y)).cost, made[0].cost / 100 * flops)


def test_thresholds_stand_between_two_scores(trained: MultiExit) -> None:
    """So the last bits of a logit, which are others elsewhere, move nobody."""
    x, y = data(2)
    made = trained.deploy(60, validation=(x, y))
    found = ev.scores(stored(trained, x), made.rule).astype(np.float64)
    finite = [(row, t) for row, t in zip(found, made.thresholds) if math.isfinite(t)]
    assert finite
    for row, threshold in finite:
        low, high = row[row <= threshold].max(), row[row > threshold].min()
        assert low < threshold < high
        assert threshold == pytest.approx((low + high) / 2, abs=1e-12)


def test_a_regression_by_patience(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MultiExit(Backbone.from_stages([nn.Linear(3, 3) for _ in range(4)], nn.Linear(3, 1), (3,))).eval()
    x, y = torch.randn(50, 3), torch.randn(50)
    made = model.deploy(90, validation=(x, y))
    logits, exits = made.predict(x)
    assert exits.tolist() == ev.simulate(stored(model, x), made.rule).tolist()
    assert ((logits[:, 0] - y) ** 2).mean().item() == pytest.approx(made.accuracy, rel=1e-4)
    assert "mse" in str(made)


def test_it_comes_back(trained: MultiExit, tmp_path: Path) -> None:
    x, y = data(2)
    made = trained.deploy(60, validation=(x, y))
    assert len(made.exits) > 1
    wanted, exits = made.predict(x)
    folder = made.save(tmp_path / "saved")
    fresh = build()
    loaded = Deployed.load(folder, fresh)
    again, index = loaded.predict(x)
    assert torch.equal(again, wanted)
    assert torch.equal(index, exits)
    assert str(loaded) == str(made)
    assert loaded.rule == made.rule
    alone = Deployed.load(folder)
    for found, at in (
        alone.predict(x),
        alone.predict(x.numpy()),
        map(torch.from_numpy, Runner(folder).predict(x.numpy())),
    ):
        assert at.tolist() == exits.tolist()
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(EestudyError, match="loaded without its network; copy the folder"):
        alone.save(tmp_path / "other")


def test_the_export_has_all_forms_with_the_same_exits(trained: MultiExit, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x, y = data(2)
    made = trained.deploy(60, validation=(x, y))
    folder = made.export(tmp_path / "exported")
    names = {file.name for file in folder.iterdir()}
    assert names == {"exits.json", "deployed.json", "weights.safetensors", "all_exits.onnx", "early_exit.onnx"} | {
        f"exit_{exit}.{form}" for exit in made.exits for form in ("onnx", "pt2")
    }
    facts = json.loads((folder / "exits.json").read_text())
    assert facts["rule"]["temperatures"] == list(made.temperatures)
    runner = Runner(folder)
    assert runner.num_exits == trained.num_exits
    assert np.isnan(runner.flops).tolist() == [exit not in made.exits for exit in range(1, trained.num_exits + 1)]
    early = onnxruntime.InferenceSession(folder / "early_exit.onnx")
    found = [int(early.run(["exit"], {"x": one.numpy()})[0]) for one in x[:40].split(1)]
    assert found == made.predict(x[:40])[1].tolist()
    outputs = onnxruntime.InferenceSession(folder / "all_exits.onnx").get_outputs()
    assert [each.name for each in outputs] == [f"logits_{exit}" for exit in made.exits]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget": 1}, r"budget: 1 % is below the cheapest exit's cost, \d"),
        *(
            ({"budget": budget}, "budget: .* give a number above 0, in %")
            for budget in (0, -5, math.nan, math.inf, "60%")
        ),
        ({"unit": "mJ"}, "unit: 'mJ' needs counters of energy"),
        ({"unit": "s"}, "unit: unknown name 's'"),
        ({"rule": "max"}, "rule: unknown name 'max'; "),
        ({"method": "best"}, "method: unknown name 'best'; "),
        *(({"validation": given}, "validation: .* give \\(x, y\\)") for given in (None, data(2)[0], (1, 2, 3))),
        ({"validation": (data(2)[0][:0], data(2)[1][:0])}, "validation: there are no samples"),
        ({"validation": (data(2)[0], data(2)[1][:7])}, r"labels: must have shape \(300,\)"),
        ({"validation": (data(2)[0], data(2)[1] + 1)}, r"labels: must be in 0\.\.3, got 1\.\.4"),
        ({"validation": (data(2)[0], data(2)[1] * 0)}, "labels: all 300 are of class 0"),
        ({"validation": (data(2)[0][0], data(2)[1])}, "x: got shape"),
        ({"validation": (data(2)[0] * math.nan, data(2)[1])}, "logits: must be finite"),
    ],
)
def test_what_is_no_deployment_is_refused(trained: MultiExit, given: dict[str, Any], words: str) -> None:
    with pytest.raises(EestudyError, match=f"^{words}") as caught:
        trained.deploy(**{"budget": 50, "validation": data(2), **given})
    assert "\n" not in str(caught.value)


def test_training_mode_is_refused() -> None:
    with pytest.raises(EestudyError, match=r"training mode; call model\.eval"):
        build().train().deploy(50, validation=data(2))


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (lambda: MultiExit(build_backbone("mlp", (1, 4, 4), CLASSES, depth=4, width=9)), "another network"),
        (lambda: MultiExit(build_backbone("mlp", (1, 4, 4), CLASSES, depth=4, width=16), exits=[1]), "2 exits"),
    ],
)
def test_another_network_or_folder_is_refused(
    trained: MultiExit, network: Callable[[], MultiExit], words: str, tmp_path: Path
) -> None:
    folder = trained.deploy(60, validation=data(2)).save(tmp_path / "saved", onnx=())
    with pytest.raises(EestudyError, match=words) as caught:
        Deployed.load(folder, network())
    assert "\n" not in str(caught.value)
    (folder / "deployed.json").write_text("{}")
    with pytest.raises(EestudyError, match=r"is none of save\(\)"):
        Deployed.load(folder)
    with pytest.raises(EestudyError, match=r"is none of save\(\)"):
        Deployed.load(tmp_path / "nowhere")
