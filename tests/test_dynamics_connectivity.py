"""Paths, planes and curves between models whose losses in between are known."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.data import load
from eestudy.dynamics.connectivity import barrier, bezier, distance, linear_path, plane
from eestudy.dynamics.weight_space import tensors_of, with_statistics_of
from eestudy.models import Backbone, MultiExit, build_backbone


class Well(nn.Module):
    """Whatever the input is, `height` of the parameter vector: (B, 1)."""

    def __init__(self, start: list[float], ring: bool) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start))
        self.ring = ring

    def forward(self, x: Tensor) -> Tensor:
        height = self.theta.norm() - 1 if self.ring else self.theta.square().sum() - 1
        return height.expand(len(x), 1)


def well(*start: float, ring: bool = False) -> MultiExit:
    """With targets 0 the last exit's loss is (theta^2 - 1)^2, or (|theta| - 1)^2; that of exit 1 is 0."""
    model = MultiExit(Backbone.from_stages([nn.Identity(), Well(list(start), ring)], nn.Identity(), (1,)))
    for parameter in model.head(1).parameters():
        nn.init.zeros_(parameter)
    return model


WELL_DATA = [(torch.ones(4, 1), torch.zeros(4)), (torch.ones(3, 1), torch.zeros(3))]


def at(frame: pd.DataFrame, exit: int, column: str = "loss") -> np.ndarray:
    return frame[frame["exit"] == exit].sort_values("alpha")[column].to_numpy()


def linear(seed: int, classes: int = 1) -> MultiExit:
    torch.manual_seed(seed)
    return MultiExit(Backbone.from_stages([nn.Identity(), nn.Identity()], nn.Linear(3, classes), (3,)))


def noise_data(seed: int = 0, classes: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 3, generator=generator)
    y = torch.randint(classes, (30,), generator=generator) if classes else torch.randn(30, generator=generator)
    return [(x[:20], y[:20]), (x[20:], y[20:])]


def test_a_convex_path_has_no_barrier_and_the_quadratic_it_must_have():
    a, b, data = linear(1), linear(2), noise_data()
    frame = linear_path(a, b, data, points=11)
    assert list(frame.columns) == ["alpha", "exit", "loss", "error"]
    assert [barrier(frame, column, exit) for column in ("loss", "error") for exit in (0, 1, 2)] == [0] * 6
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        ends = [[logits[:, 0] for logits in model(x)] for model in (a, b)]
    for exit in (1, 2):
        for alpha, loss, error in frame.query("exit == @exit")[["alpha", "loss", "error"]].to_numpy():
            wanted = float(((1 - alpha) * ends[0][exit - 1] + alpha * ends[1][exit - 1] - y).square().mean())
            assert loss == pytest.approx(wanted, rel=1e-5)
            assert error == pytest.approx(wanted / float(y.var(correction=0)), rel=1e-5)
    np.testing.assert_allclose(at(frame, 0), (at(frame, 1) + at(frame, 2)) / 2)
    logistic = linear_path(linear(1, 4), linear(2, 4), noise_data(classes=4), points=11)
    assert [barrier(logistic, exit=exit) for exit in (0, 1, 2)] == [0] * 3


def test_the_double_well_is_one_high():
    frame = linear_path(well(-1.0), well(1.0), WELL_DATA, points=25)
    theta = np.linspace(-1, 1, 25)
    np.testing.assert_allclose(at(frame, 2), (theta**2 - 1) ** 2, atol=1e-6)
    assert barrier(frame, exit=2) == pytest.approx(1, abs=1e-6)
    assert barrier(frame, exit=1) == 0
    assert barrier(frame) == pytest.approx(0.5, abs=1e-6)
    assert at(frame, 2)[12] == pytest.approx(1)
    # Of unequal ends: the height is over the straight line between their losses.
    frame = linear_path(well(-1.0), well(2.0), WELL_DATA, points=301)
    theta, alpha = np.linspace(-1, 2, 301), np.linspace(0, 1, 301)
    assert barrier(frame, exit=2) == pytest.approx(np.max((theta**2 - 1) ** 2 - 9 * alpha), abs=1e-5)


@pytest.fixture(scope="module")
def digits() -> list[tuple[Tensor, Tensor]]:
    split = load("digits").train
    return [(split.inputs(places), split.y[places]) for places in torch.arange(512).split(128)]


def trained(model: MultiExit, data: list[tuple[Tensor, Tensor]], epochs: int = 50) -> MultiExit:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for x, y in data * epochs:
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(logits, y) for logits in model(x)]).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def mlp(digits) -> MultiExit:
    torch.manual_seed(0)
    return trained(MultiExit(build_backbone("mlp", (1, 8, 8), 10, width=32, depth=3)), digits)


def permuted(model: MultiExit) -> MultiExit:
    """The same function, with the units of every hidden layer in another order."""
    torch.manual_seed(1)
    result, before = copy.deepcopy(model), torch.arange(64)
    with torch.no_grad():
        for number, reads in enumerate(("heads.1.0", "heads.2.0", "backbone.classifier")):
            order = torch.randperm(32)
            layer = f"backbone.stages.{number}.1"
            for name, places in ((f"{layer}.weight", before), (f"{layer}.bias", None), (f"{reads}.weight", order)):
                parameter = result.get_parameter(name)
                rows = parameter if name.startswith(reads) else parameter[order]
                parameter.copy_(rows if places is None else rows[:, places])
            before = order
    return result


def test_a_model_against_itself_is_flat(mlp, digits):
    frame = linear_path(mlp, mlp, digits, points=5)
    for exit in range(4):
        assert np.ptp(at(frame, exit)) < 1e-5
        assert barrier(frame, exit=exit) < 1e-5
    with torch.no_grad():
        logits = [torch.cat(parts) for parts in zip(*(mlp(x) for x, _ in digits), strict=True)]
    y = torch.cat([y for _, y in digits])
    for exit, each in enumerate(logits, 1):
        assert at(frame, exit)[0] == pytest.approx(float(F.cross_entropy(each, y)), rel=1e-5)
        assert at(frame, exit, "error")[0] == pytest.approx(float((each.argmax(1) != y).float().mean()), abs=1e-6)


def test_permuted_copies_have_a_barrier_that_a_curve_goes_around(mlp, digits):
    other = permuted(mlp)
    frame = linear_path(mlp, other, digits, points=9)
    for exit in (0, 1, 2, 3):
        loss = at(frame, exit)
        assert loss[0] == pytest.approx(loss[-1], rel=1e-4)
        assert loss[0] < 0.15
    assert barrier(frame) > 0.5
    assert barrier(frame, "error") > 0.1
    curve = bezier(mlp, other, digits, digits, steps=300, lr=1e-2, points=9)
    assert list(curve.columns) == ["alpha", "length", "exit", "loss", "error"]
    np.testing.assert_allclose(at(curve, 0)[[0, -1]], at(frame, 0)[[0, -1]], rtol=1e-6)
    assert barrier(curve) < 0.3 * barrier(frame)


def test_the_curve_goes_around_the_ring():
    angle = math.radians(150)
    ends = [(1.0, 0.0), (math.cos(angle), math.sin(angle))]
    a, b = (well(*end, ring=True) for end in ends)
    t = np.linspace(0, 1, 1001)[:, None]

    def through(middle: np.ndarray) -> np.ndarray:
        return (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * middle + t**2 * ends[1]

    def losses(middle: np.ndarray) -> np.ndarray:
        return (np.linalg.norm(through(middle), axis=1) - 1) ** 2

    best = minimize(lambda middle: losses(middle).mean(), np.mean(ends, 0)).x
    line = linear_path(a, b, WELL_DATA, points=11)
    assert barrier(line, exit=2) == pytest.approx((math.cos(angle / 2) - 1) ** 2, abs=1e-5)
    curve = bezier(a, b, WELL_DATA, WELL_DATA, steps=400, lr=0.05, points=11)
    np.testing.assert_allclose(at(curve, 2), losses(best)[::100], atol=3e-3)
    assert barrier(curve, exit=2) < 0.05 * barrier(line, exit=2)
    pieces = np.linalg.norm(np.diff(through(best), axis=0), axis=1).reshape(10, 100).sum(1)
    np.testing.assert_allclose(at(curve, 2, "length"), [0, *pieces.cumsum()], rtol=2e-2)
    unbent = bezier(a, b, WELL_DATA, WELL_DATA, steps=1, lr=1e-9, points=4)
    np.testing.assert_allclose(at(unbent, 2, "length"), distance(a, b) * np.linspace(0, 1, 4), rtol=1e-6)
    again, same = (bezier(a, b, WELL_DATA, WELL_DATA, steps=20, lr=1e-3, points=3) for _ in range(2))
    assert again.equals(same)


def test_the_plane_has_true_distances_and_the_loss_at_every_point():
    models = [linear(seed) for seed in (1, 2, 3)]
    data = noise_data()
    grid, own = plane(models[0], models[1], models[2], data, points=5)
    assert list(grid.columns) == ["x", "y", "loss", "error"]
    assert list(own.columns) == ["name", "x", "y", "loss", "error"]
    assert list(own["name"]) == ["a", "b", "c"]
    flat = [torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy() for model in models]
    place = own[["x", "y"]].to_numpy()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        wanted = np.linalg.norm(flat[i] - flat[j])
        assert np.linalg.norm(place[i] - place[j]) == pytest.approx(wanted, rel=1e-6)
        assert distance(models[i], models[j]) == pytest.approx(wanted, rel=1e-6)
    for number, model in enumerate(models):
        itself = linear_path(model, model, data, points=2)
        assert own["loss"][number] == pytest.approx(at(itself, 0)[0], rel=1e-6)
    # The grid by an orthonormal basis, as Garipov et al. write it.
    u = (flat[1] - flat[0]) / np.linalg.norm(flat[1] - flat[0])
    v = flat[2] - flat[0] - u * (u @ (flat[2] - flat[0]))
    v /= np.linalg.norm(v)
    x, y = (torch.cat(parts).double().numpy() for parts in zip(*data, strict=True))
    names = [name for name, _ in models[0].named_parameters()]
    assert names == ["backbone.classifier.weight", "backbone.classifier.bias", "heads.1.0.weight", "heads.1.0.bias"]
    assert len(grid) == 25
    for _, row in grid.iterrows():
        point = flat[0] + row["x"] * u + row["y"] * v
        losses = [np.mean((x @ point[s : s + 3] + point[s + 3] - y) ** 2) for s in (0, 4)]
        assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    low, high = place.min(0), place.max(0)
    np.testing.assert_allclose(grid[["x", "y"]].min(), low - 0.2 * (high - low), atol=1e-9)
    np.testing.assert_allclose(grid[["x", "y"]].max(), high + 0.2 * (high - low), atol=1e-9)


def test_distances_over_the_backbone_leave_the_heads_out():
    models = [well(*start) for start in ((1.0, 0.0), (4.0, 0.0))]
    nn.init.constant_(models[1].get_parameter("heads.1.0.bias"), 7.0)
    assert distance(models[0], models[1], over="backbone") == pytest.approx(3)
    assert distance(models[0], models[1]) == pytest.approx(math.sqrt(3**2 + 7**2))


def normed(scale: float) -> MultiExit:
    """x -> scale * x -> BatchNorm -> linear: with statistics of its own the scale is without effect."""
    torch.manual_seed(0)
    first = nn.Linear(3, 3, bias=False)
    model = MultiExit(Backbone.from_stages([first, nn.BatchNorm1d(3, eps=1e-12, momentum=0.3)], nn.Linear(3, 4), (3,)))
    with torch.no_grad():
        first.weight.copy_(scale * torch.eye(3))
    nn.init.zeros_(model.get_parameter("heads.1.0.weight"))
    return model.eval()


def test_batchnorm_statistics_are_means_over_batches_weighed_by_size():
    model, data = normed(2.0), noise_data()
    data = [(3 + x, y) for x, y in data]
    given = tensors_of(model)
    found = with_statistics_of(model, given, data)
    means, variances = (torch.stack([statistic(2 * x) for x, _ in data]) for statistic in (lambda x: x.mean(0), var))
    weights = torch.tensor([[20.0], [10.0]]) / 30
    name = "backbone.stages.1.running_"
    torch.testing.assert_close(found[name + "mean"], (weights * means).sum(0))
    torch.testing.assert_close(found[name + "var"], (weights * variances).sum(0))
    assert torch.equal(given[name + "mean"], torch.zeros(3))
    assert torch.equal(model.get_buffer(name + "var"), torch.ones(3))
    assert model.backbone.stages[1].momentum == 0.3
    assert not model.backbone.stages[1]._forward_pre_hooks
    without = linear(0)
    own = tensors_of(without)
    assert with_statistics_of(without, own, data) is own


def var(x: Tensor) -> Tensor:
    return x.var(0)


def test_with_statistics_of_at_every_point_a_scale_before_batchnorm_is_without_effect():
    a, b, data = normed(1.0), normed(5.0), noise_data(classes=4)
    b.load_state_dict({**a.state_dict(), "backbone.stages.0.weight": 5 * torch.eye(3)})
    frame = linear_path(a, b, data, points=5)
    assert np.ptp(at(frame, 2)) < 1e-5
    other = linear_path(a, b, data, points=5, train=[(4 * x, y) for x, y in data])
    assert abs(at(other, 2) - at(frame, 2)).min() > 1e-3  # `train` is what they come from
    wanted = with_statistics_of(a, tensors_of(a), data)
    a.load_state_dict(wanted)
    with torch.no_grad():
        losses = [F.cross_entropy(a(x)[1], y, reduction="sum").item() for x, y in data]
    np.testing.assert_allclose(at(frame, 2), sum(losses) / 30, rtol=1e-5)


@pytest.mark.parametrize("way", ["line", "probes on the line", "curve"])
def test_what_statistics_the_models_came_with_is_without_effect(way):
    """Neither on what is measured nor on how the curve is fitted; tanh makes the scale matter to a probe."""
    data = noise_data(classes=4)

    def between(mean: float, variance: float) -> pd.DataFrame:
        a, b = normed(1.0), normed(5.0)
        for model in (a, b):
            norm = model.backbone.stages[1]
            nn.init.constant_(norm.get_buffer("running_mean"), mean)
            nn.init.constant_(norm.get_buffer("running_var"), variance)
            model.backbone.stages[1] = nn.Sequential(norm, nn.Tanh())
        if way == "curve":
            return bezier(a, b, data, data, steps=20, lr=0.1, points=3)
        heads = "all" if way == "line" else "probe"
        return linear_path(a, b, data, points=3, heads=heads, train=data)

    pd.testing.assert_frame_equal(between(0.0, 1.0), between(0.3, 9.0))


@pytest.mark.parametrize("classes", [0, 2, 4])
def test_probes_are_refitted_to_what_the_backbone_gives(classes):
    """Against scikit-learn on features computed by hand, and whatever the heads are."""
    torch.manual_seed(3)
    a, b = (MultiExit(tiny(max(classes, 1))) for _ in range(2))
    train, test = noise_data(1, classes), noise_data(2, classes)
    frame = linear_path(a, b, {"train": train, "test": test}, points=3, heads="probe", train=train)
    assert list(frame.columns) == ["split", "alpha", "exit", "loss", "error"]
    for module in (a.head(1), a.backbone.classifier):
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    again = linear_path(a, b, {"train": train, "test": test}, points=3, heads="probe", train=train)
    assert frame.equals(again)

    weights = [[each[0].weight.detach(), each[0].bias.detach()] for each in (*a.backbone.stages, *b.backbone.stages)]
    for alpha in (0.0, 0.5, 1.0):
        layers = [[(1 - alpha) * p + alpha * q for p, q in zip(weights[i], weights[i + 2])] for i in (0, 1)]
        features: dict[str, list[np.ndarray]] = {}
        for name, batches in (("train", train), ("test", test)):
            state, features[name] = torch.cat([x for x, _ in batches]), []
            for layer in layers:
                state = torch.tanh(F.linear(state, *layer))
                features[name].append(state.double().numpy())
        y = {name: torch.cat([y for _, y in batches]).numpy() for name, batches in (("train", train), ("test", test))}
        for exit in (1, 2):
            scale = StandardScaler().fit(features["train"][exit - 1])
            fitted: Any = LogisticRegression(max_iter=5000, tol=1e-8) if classes else Ridge()
            fitted.fit(scale.transform(features["train"][exit - 1]), y["train"])
            for name in ("train", "test"):
                row = frame.query("split == @name and alpha == @alpha and exit == @exit").iloc[0]
                scaled = scale.transform(features[name][exit - 1])
                if classes:
                    shares = fitted.predict_proba(scaled)[np.arange(30), y[name]]
                    assert row["loss"] == pytest.approx(-np.log(shares).mean(), rel=1e-3)
                    assert row["error"] == pytest.approx(1 - fitted.score(scaled, y[name]))
                else:
                    assert row["loss"] == pytest.approx(np.mean((fitted.predict(scaled) - y[name]) ** 2), rel=1e-4)
                    assert row["error"] == pytest.approx(1 - fitted.score(scaled, y[name]), rel=1e-4)


def tiny(classes: int, width: int = 4) -> Backbone:
    stages = [nn.Sequential(nn.Linear(before, width), nn.Tanh()) for before in (3, width)]
    return Backbone.from_stages(stages, nn.Linear(width, classes), (3,))


def test_probes_see_no_difference_in_heads_and_in_scale(mlp, digits):
    """Standardized features: a path to a backbone that is scaled up in its last stage has flat probes there."""
    other = copy.deepcopy(mlp)
    with torch.no_grad():
        for parameter in other.backbone.stages[2].parameters():
            parameter.mul_(3)
    frame = linear_path(mlp, other, digits, points=3, heads="probe", train=digits)
    for exit in (1, 2, 3):
        np.testing.assert_allclose(at(frame, exit), at(frame, exit)[0], rtol=1e-2, atol=1e-4)
    assert at(frame, 3, "error").max() < 0.03


KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "resnet1d": ((1, 40), {"blocks": 1}),
    "vit1d": ((1, 40), {"width": 16, "depth": 3}),
    "resnet-tiny": ((1, 8, 8), {"blocks": 1}),
    "msdnet": ((1, 8, 8), {}),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("heads", ["all", "probe"])
def test_every_kind_of_backbone_and_its_models_are_left_as_they_were(name, heads):
    shape, settings = KINDS[name]
    torch.manual_seed(0)
    a, b = (MultiExit(build_backbone(name, shape, 3, **settings), exits=[1, 2]) for _ in range(2))
    data = [(torch.randn(9, *shape), torch.arange(9) % 3), (torch.randn(8, *shape), torch.arange(8) % 3)]
    check_unchanged([a, b], data, heads)


def test_token_ids_and_states_that_are_tuples():
    torch.manual_seed(0)
    a = MultiExit(build_backbone("minilm", (6,), 3), exits=[1, 3])
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.get_parameter("backbone.stages.1.layer.output.dense.weight").mul_(1.1)
    data = [(torch.randint(1000, 2000, (6, 6)), torch.arange(6) % 3)]
    check_unchanged([a, b], data, "probe")


def check_unchanged(models: list[MultiExit], data: list[tuple[Tensor, Tensor]], heads: str) -> None:
    for model in models:
        model.train()
        model.backbone.stages[1].eval()
        next(model.parameters()).requires_grad_(False)
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    modes = [[module.training for module in model.modules()] for model in models]
    a, b = models
    frame = linear_path(a, b, data, points=2, heads=heads, train=data)
    if heads == "all":
        bezier(a, b, data, data, steps=2, lr=1e-3, points=2)
    assert np.isfinite(frame[["loss", "error"]].to_numpy()).all()
    assert len(frame) == 2 * 4
    assert [[module.training for module in model.modules()] for model in models] == modes
    for model, kept in zip(models, before, strict=True):
        assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert [p.requires_grad for p in model.parameters()] == [False] + [True] * (len(list(model.parameters())) - 1)
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_stays_off():
    stages = [nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9)), nn.BatchNorm1d(4)]
    model = MultiExit(Backbone.from_stages(stages, nn.Linear(4, 3), (3,))).train()
    data = noise_data(classes=3)
    assert linear_path(model, model, data, points=2).equals(linear_path(model, model, data, points=2))


def path(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"alpha": [0.0, 0.5, 1.0], "exit": 0, "loss": [1.0, 3.0, 2.0], "error": 0.0} | columns)


def test_the_barrier_of_a_table():
    assert barrier(path()) == 1.5
    assert barrier(path()[::-1]) == 1.5
    assert barrier(path(), "error") == 0
    down = pd.DataFrame({"alpha": [0, 0.5, 1], "exit": 0, "loss": [3.0, 2.0, 1.0], "error": [0.0, 0.75, 0.5]})
    assert (barrier(down), barrier(down, above="mean")) == (0, 1), "a straight way down"
    assert (barrier(down, "error"), barrier(down, "error", above="mean")) == (0.5, 0.5)


DATA = noise_data(classes=4)
ODD = [(DATA[0][0][:1], DATA[0][1][:1])]


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (
            lambda: linear_path(linear(0, 4), linear(0, 5), DATA),
            r"model_b: 'backbone.classifier.weight' is \(5, 3\) in it and \(4, 3\) in model_a; both must have",
        ),
        (
            lambda: linear_path(linear(0, 4), well(1.0), DATA),
            r"model_b: 'backbone.classifier.weight' is absent in it and \(4, 3\) in model_a",
        ),
        (
            lambda: linear_path(exits_at(1), exits_at(2), DATA, heads="probe", train=DATA),
            r"model_b: its exits read stages \(2,\), those of model_a \(1,\)",
        ),
        (lambda: linear_path(linear(0), linear(0), DATA, heads="prob"), "heads: unknown name 'prob'; nearest: probe"),
        (lambda: linear_path(linear(0), linear(0), DATA, points=1), "points: 1 is not valid"),
        (lambda: linear_path(linear(0), linear(0), []), "data: has no samples"),
        (lambda: linear_path(linear(0), linear(0), {}), "data: no split given"),
        (lambda: linear_path(linear(0), linear(0), DATA, heads="probe"), "train: heads 'probe' fits its probes to"),
        (
            lambda: linear_path(linear(0, 4), linear(0, 4), DATA, heads="probe", train=ODD),
            r"train: its labels are \[\d\]; lacks \[",
        ),
        (lambda: linear_path(normed(1.0), normed(1.0), ODD), "train: batches of 1 samples; BatchNorm's statistics"),
        (lambda: linear_path(normed(1.0), normed(1.0), DATA, train=[]), "data: train has no samples"),
        (lambda: linear_path(well(1e30), well(1.0), WELL_DATA), "data: the loss of exit 2 is not finite at this point"),
        (
            lambda: bezier(well(1e30), well(1.0), WELL_DATA, WELL_DATA, 9, 0.1),
            "bezier: the loss is inf in step 1 of 9; try",
        ),
        (
            lambda: bezier(well(1.0), well(1.0), WELL_DATA, WELL_DATA, steps=0, lr=0.001),
            "steps: 0 at lr 0.001 is not valid",
        ),
        (
            lambda: plane(well(0.0), well(1.0), well(3.0), WELL_DATA),
            r"model_c: the three models lie on one line: \|b - a\| = 1, \|c - a\| = 3, distance of c from the line 0",
        ),
        (lambda: plane(well(0.0), well(0.0), well(3.0), WELL_DATA), "model_c: the three models lie on one line"),
        (lambda: distance(well(0.0), well(0.0), over="stages"), "over: unknown name 'stages'; valid: all, backbone"),
        (lambda: barrier(path(), "accuracy"), "column: unknown name 'accuracy'"),
        (lambda: barrier(path(), above="ends"), "above: unknown name 'ends'; nearest: mean"),
        (lambda: barrier(path(), exit=3), r"exit: the path has none of number 3; valid: \[0\]"),
        (
            lambda: barrier(pd.concat([path(), path()])),
            "frame: 6 rows for exit 0 at 3 alphas from 0 to 1; give one path",
        ),
        (lambda: barrier(path()[:2]), "frame: 2 rows for exit 0 at 2 alphas from 0 to 0.5"),
    ],
)
def test_mistakes_are_told_in_one_line(call, wanted):
    with pytest.raises(EestudyError, match=wanted) as raised:
        call()
    assert "\n" not in str(raised.value)


def exits_at(stage: int) -> MultiExit:
    stages = [nn.Identity(), nn.Identity(), nn.Identity()]
    return MultiExit(Backbone.from_stages(stages, nn.Linear(3, 4), (3,)), [stage])
