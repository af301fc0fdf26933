"""The landscape of losses that are known at every point of the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eestudy.config import EestudyError, named_seed
from eestudy.dynamics.landscape import filter_directions, landscape
from eestudy.models import Backbone, MultiExit, build_backbone


def linear_regression(inputs: int = 3) -> MultiExit:
    """Two exits that are each one linear layer of the input: mean squared errors are quadratics of the weights."""
    backbone = Backbone.from_stages([nn.Identity(), nn.Identity()], nn.Linear(inputs, 1), (inputs,))
    return MultiExit(backbone)


def regression_data(inputs: int = 3, samples: int = 50) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, inputs, generator=generator) * torch.arange(1.0, inputs + 1)
    y = x @ torch.arange(1.0, inputs + 1) + torch.randn(samples, generator=generator)
    return [(x[:20], y[:20]), (x[20:], y[20:])]


def flattened(data) -> tuple[np.ndarray, np.ndarray]:
    x, y = (torch.cat(parts).double().numpy() for parts in zip(*data, strict=True))
    return x, y


def test_a_quadratic_at_every_point_of_the_grid():
    torch.manual_seed(0)
    model, data = linear_regression(), regression_data()
    frame = landscape(model, data, span=1.5, points=7)
    assert list(frame.columns) == ["x", "y", "exit", "loss", "error"]
    assert len(frame) == 7 * 7 * 3
    d_x, d_y = (filter_directions(model, named_seed(0, "landscape", axis)) for axis in "xy")
    inputs, targets = flattened(data)
    for exit, layer in ((1, "heads.1.0"), (2, "backbone.classifier")):
        name = f"{layer}.weight"
        weight = model.get_parameter(name).detach().double().numpy()[0]
        bias = model.get_parameter(f"{layer}.bias").item()
        u, v = (direction[name].double().numpy()[0] for direction in (d_x, d_y))
        for _, row in frame[frame["exit"] == exit].iterrows():
            left = inputs @ (weight + row["x"] * u + row["y"] * v) + bias - targets
            assert row["loss"] == pytest.approx(np.mean(left**2), rel=1e-5)
            assert row["error"] == pytest.approx(np.mean(left**2) / np.var(targets), rel=1e-5)


def test_a_quadratic_returns_its_hessian():
    torch.manual_seed(0)
    model, data = linear_regression(), regression_data()
    table = landscape(model, data, points=5).query("exit == 2").pivot(index="y", columns="x", values="loss")
    loss, step = table.to_numpy(), 0.5
    found = np.array(
        [
            [loss[2, 3] - 2 * loss[2, 2] + loss[2, 1], (loss[3, 3] - loss[3, 1] - loss[1, 3] + loss[1, 1]) / 4],
            [(loss[3, 3] - loss[3, 1] - loss[1, 3] + loss[1, 1]) / 4, loss[3, 2] - 2 * loss[2, 2] + loss[1, 2]],
        ]
    )
    directions = [filter_directions(model, named_seed(0, "landscape", axis)) for axis in "xy"]
    both = np.stack([each["backbone.classifier.weight"].double().numpy()[0] for each in directions])
    inputs, _ = flattened(data)
    hessian = 2 * both @ (inputs.T @ inputs / len(inputs)) @ both.T
    np.testing.assert_allclose(found / step**2, hessian, rtol=1e-3)


def test_the_grid_is_symmetric_and_the_model_in_its_middle():
    torch.manual_seed(0)
    model = MultiExit(build_backbone("resnet-tiny", (1, 8, 8), 10), exits=[2, 4])
    data = [(torch.randn(16, 1, 8, 8), torch.arange(16) % 10) for _ in range(2)]
    model.train()
    with torch.no_grad():
        model(data[0][0])  # statistics that are not those they start as
    model.eval()
    frame = landscape(model, data, span=0.3, points=3)
    assert sorted(set(frame["x"])) == sorted(set(frame["y"])) == [-0.3, 0.0, 0.3]
    assert sorted(-frame["x"]) == sorted(frame["x"])
    assert (frame.groupby(["x", "y"]).size() == 4).all()
    with torch.no_grad():
        logits = torch.stack([torch.stack(model(x)) for x, _ in data])
    own = frame.query("x == 0 and y == 0").set_index("exit")
    for exit in (1, 2, 3):
        right = [nn.functional.cross_entropy(logits[place, exit - 1], y) for place, (_, y) in enumerate(data)]
        assert own["loss"][exit] == pytest.approx(float(sum(right)) / 2, rel=1e-5)
        hits = [(logits[place, exit - 1].argmax(1) == y).float().mean() for place, (_, y) in enumerate(data)]
        assert own["error"][exit] == pytest.approx(1 - float(sum(hits)) / 2, abs=1e-6)
    for column in ("loss", "error"):
        assert own[column][0] == pytest.approx(own[column][[1, 2, 3]].mean())


def test_filters_are_as_long_as_the_weights_and_the_rest_stays():
    model = MultiExit(build_backbone("resnet-tiny", (1, 8, 8), 10), exits=[2])
    directions = filter_directions(model, 5)
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            assert name not in directions
            continue
        lengths = [tensor.detach().flatten(1).norm(dim=1) for tensor in (weight, directions[name])]
        torch.testing.assert_close(*lengths)
        assert directions[name].std() > 0
    again, other = filter_directions(model, 5), filter_directions(model, 6)
    assert all(torch.equal(directions[name], again[name]) for name in directions)
    assert not any(torch.equal(directions[name], other[name]) for name in directions)


def test_a_model_is_left_as_it_was():
    model = MultiExit(build_backbone("resnet-tiny", (1, 8, 8), 10), exits=[2])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.backbone.stages[0].eval()
    modes = [module.training for module in model.modules()]
    frame = landscape(model, {"a": [(torch.randn(4, 1, 8, 8), torch.arange(4))]}, points=3)
    assert list(frame.columns) == ["split", "x", "y", "exit", "loss", "error"]
    assert set(frame["split"]) == {"a"}
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"points": 4}, "points: 4 is not valid; it must be odd and at least 3"),
        ({"points": 1}, "points: 1 is not valid"),
        ({"span": 0}, "span: 0 is not valid; it must be above 0"),
        ({"span": 1e30}, "data: the loss of exit 1 is not finite at this point"),
    ],
)
def test_mistakes_are_told_in_one_line(settings, wanted):
    with pytest.raises(EestudyError, match=wanted) as raised:
        landscape(linear_regression(), regression_data(), **settings)
    assert "\n" not in str(raised.value)


def test_no_samples():
    with pytest.raises(EestudyError, match="data: has no samples"):
        landscape(linear_regression(), [])
