"""Information bounds and usable information, against channels and predictors whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.dynamics import activations, information, label_information
from eestudy.dynamics.activations import stage_activations
from eestudy.dynamics.information import information_sweep, mutual_information, stage_information
from eestudy.dynamics.label_information import usable_information
from eestudy.models import Backbone, MultiExit

NOISES = (1e-6, 0.03, 0.1, 0.3, 1.0, 3.0, 100.0)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def cloud() -> np.ndarray:
    """60 samples of 5 features of different scales, off centre, three of them equal."""
    points = normal(60, 5) * (1.0, 3.0, 0.1, 1.0, 2.0) + 7.0
    points[10] = points[20] = points[30]
    return points


# ---- I(X; T)


@pytest.mark.parametrize("dims", [1, 4])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])  # of the noise to a feature's standard deviation
def test_a_gaussian_channel_lies_within_the_bounds(dims: int, ratio: float) -> None:
    def limit(s: float) -> float:  # E[-log E exp(-d^2 / (2 s^2))] of standard normal inputs, by hand
        return dims / 2 * (math.log(1 + 1 / s**2) + 1 / (1 + s**2))

    lower, upper = mutual_information(normal(3000, dims), ratio / math.sqrt(dims))
    assert lower < dims / 2 * math.log(1 + 1 / ratio**2) < upper
    # 3000 samples: off by 0.03 nats at most here, far below log N = 8.0; at ratio 0.5 and 4 features by 0.1
    tolerance = 0.15 if dims == 4 and ratio == 0.5 else 0.05
    assert (lower, upper) == pytest.approx((limit(2 * ratio), limit(ratio)), abs=tolerance)


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5, 1.0, 2.0])
def test_the_bounds_hold_the_information_of_the_mixture_itself(noise: float) -> None:
    points = np.array([-2.0, -1.9, -0.3, 0.0, 0.0, 1.1, 2.5, 4.0])
    standard = (points - points.mean()) / points.std()

    def density(t: float) -> float:
        return stats.norm.pdf(t, standard, noise).mean()

    ends = (standard.min() - 12 * noise, standard.max() + 12 * noise)
    entropy, _ = integrate.quad(lambda t: -density(t) * math.log(density(t)), *ends, points=standard, limit=500)
    exact = entropy - stats.norm.entropy(scale=noise)
    lower, upper = mutual_information(points[:, None], noise)
    assert lower <= exact + 1e-9
    assert exact <= upper + 1e-9


@pytest.mark.parametrize("noise", [0.1, 0.4, 2.0])
def test_the_bounds_are_the_pairwise_formulas(noise: float) -> None:
    """The pairwise estimator of Kolchinsky and Tracey 2017, with the two divergences of N(a, s^2 I) and N(b, s^2 I)."""
    points = cloud()
    standard = (points - points.mean(0)) / math.sqrt(points.var(0).sum())
    squared = ((standard[:, None] - standard[None]) ** 2).sum(2)
    leibler, bhattacharyya = squared / (2 * noise**2), squared / (8 * noise**2)
    expected = [-np.log(np.exp(-d).mean(1)).mean() for d in (bhattacharyya, leibler)]
    assert mutual_information(points, noise) == pytest.approx(expected, rel=1e-10)


def test_two_clusters_of_equal_points_carry_their_entropy() -> None:
    a, b = normal(2, 30, seed=1)
    even = np.stack([a, b] * 50)
    assert mutual_information(even, 0.05) == pytest.approx((math.log(2), math.log(2)), abs=1e-12)
    uneven = np.stack([a] * 25 + [b] * 75)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert mutual_information(uneven, 0.05) == pytest.approx((entropy, entropy), abs=1e-12)
    # equal points stay one however fine the noise is, although their distance is a difference of rounded numbers
    assert mutual_information(uneven.astype(np.float32), 1e-6) == pytest.approx((entropy, entropy), abs=1e-12)


def test_little_noise_saturates_at_log_n_and_much_noise_leaves_nothing() -> None:
    points = normal(300, 20)
    assert mutual_information(points, 1e-3) == pytest.approx((math.log(300), math.log(300)), abs=1e-9)
    assert mutual_information(points, 1e4) == pytest.approx((0, 0), abs=1e-7)


def test_a_sweep_falls_with_noise_between_0_and_the_ceiling() -> None:
    sweep = information_sweep(cloud(), NOISES)
    assert list(sweep.columns) == ["noise", "lower", "upper", "ceiling"]
    assert list(sweep["noise"]) == list(NOISES)
    assert (sweep["ceiling"] == math.log(60)).all()
    assert (sweep["lower"] <= sweep["upper"]).all()
    assert sweep[["lower", "upper"]].diff().iloc[1:].max().max() <= 0
    assert sweep["lower"].min() >= 0
    # three equal samples: below the ceiling at any noise
    assert sweep["upper"].max() == pytest.approx(math.log(60) - 3 / 60 * math.log(3))
    assert [mutual_information(cloud(), noise) for noise in NOISES] == list(zip(sweep["lower"], sweep["upper"]))


@pytest.mark.parametrize(
    "same",
    [
        lambda x: 1e4 * x,
        lambda x: x - 3.0,
        lambda x: x @ np.linalg.qr(normal(5, 5))[0],
        lambda x: x[np.random.default_rng(0).permutation(60)],
        lambda x: np.hstack([x, x, x]),  # copies of every feature
        lambda x: np.hstack([x, np.full((60, 40), 5.0)]),  # features that are off
        lambda x: torch.as_tensor(x).reshape(60, 5, 1, 1),  # maps
    ],
    ids=["scale", "shift", "rotation", "order", "copies", "constants", "maps"],
)
def test_only_the_shape_of_the_cloud_counts(same: Any) -> None:
    expected = information_sweep(cloud(), NOISES[1:])
    pd.testing.assert_frame_equal(information_sweep(same(cloud()), NOISES[1:]), expected, rtol=1e-9)


def test_constant_activations_carry_nothing() -> None:
    assert mutual_information(np.full((20, 4), 0.1), 1e-6) == (0, 0)
    rounded = torch.full((20, 4), 0.1) + 1e-8 * (torch.arange(20)[:, None] % 2)  # the last bit of float32
    assert len(rounded.unique(dim=0)) > 1
    assert mutual_information(rounded, 0.1) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("block", [1, 7, 59, 60, 1000])
def test_blocks_of_rows_give_what_the_whole_gives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = information_sweep(cloud(), NOISES)
    monkeypatch.setattr(information, "ROWS", block)
    pd.testing.assert_frame_equal(information_sweep(cloud(), NOISES), whole, rtol=1e-12)


# ---- I_V(T -> Y)


def test_independent_labels_carry_no_usable_information() -> None:
    labels = np.random.default_rng(1).integers(0, 4, 800)
    assert usable_information(normal(800, 10), labels) == pytest.approx(0, abs=0.03)
    # more features than samples, where a probe without the choice of the constant would be below -1
    few = [usable_information(normal(60, 300, seed=seed), labels[:60]) for seed in range(5)]
    assert np.mean(few) == pytest.approx(0, abs=0.1)


def test_what_shuffled_labels_give_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    gains, seen = iter((1.0, 0.4)), []

    def gain(features: np.ndarray, classes: np.ndarray, *_: Any) -> float:
        seen.append(classes)
        return next(gains)

    monkeypatch.setattr(label_information, "_held_out_gain", gain)
    labels = np.arange(60) % 3
    assert usable_information(cloud(), labels) == pytest.approx(1.0 - 0.4)
    own, shuffled = seen
    assert np.array_equal(own, labels)
    assert not np.array_equal(shuffled, labels)
    assert np.array_equal(np.sort(shuffled), np.sort(labels))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("width", [6, 700])  # fewer features than samples, more
def test_separable_classes_give_the_logarithm_of_their_number(classes: int, width: int) -> None:
    labels = np.arange(400) % classes
    samples = 10 * np.eye(classes, width)[labels] + 0.1 * normal(400, width)
    assert usable_information(samples, labels) == pytest.approx(math.log(classes), abs=0.04)


def test_two_gaussians_give_their_true_information() -> None:
    """y = +-1, t given y is N(y m, 1): the log odds are 2 m t, so a linear probe can use all there is."""
    mean = 1.0
    labels = np.arange(4000) % 2
    samples = normal(4000, 1) + mean * (2 * labels[:, None] - 1)
    missing, _ = integrate.quad(lambda t: stats.norm.pdf(t, mean) * math.log1p(math.exp(-2 * mean * t)), -9, 11)
    assert usable_information(samples, labels) == pytest.approx(math.log(2) - missing, abs=0.03)


def test_what_no_linear_probe_can_use_does_not_count() -> None:
    samples = normal(1500, 2)
    labels = (samples[:, 0] * samples[:, 1] > 0).astype(int)  # given t there is no doubt: log 2, but not linearly
    assert usable_information(samples, labels) == pytest.approx(0, abs=0.02)
    product = np.hstack([samples, np.sign(samples.prod(1, keepdims=True))])
    assert usable_information(product, labels) == pytest.approx(math.log(2), abs=0.02)


def test_the_marginal_is_what_is_left_to_gain() -> None:
    labels = (np.arange(500) % 10 == 0).astype(int)
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert usable_information(labels[:, None] + 0.01 * normal(500, 3), labels) == pytest.approx(entropy, abs=0.03)


def test_usable_information_of_copies_scales_and_names_is_the_same() -> None:
    labels = np.arange(200) % 3
    samples = 0.5 * np.eye(3, 8)[labels] + normal(200, 8)
    value = usable_information(samples, labels)
    assert 0.02 < value < 0.6
    assert usable_information(samples, labels) == value
    turned = samples @ np.linalg.qr(normal(8, 8))[0]
    assert usable_information(turned, labels) == pytest.approx(value, abs=1e-3)
    copies = np.tile(1e3 * samples + 4, 50)  # 400 features: the way by the principal directions
    assert usable_information(copies, labels) == pytest.approx(value, abs=1e-3)
    assert usable_information(np.hstack([samples, np.ones((200, 300))]), labels) == pytest.approx(value, abs=1e-3)
    names = torch.tensor([40, 7, 9])[labels]
    assert usable_information(torch.as_tensor(samples), names) == pytest.approx(value, abs=0.1)


def test_a_small_direction_among_large_ones_is_found() -> None:
    labels = np.arange(400) % 2
    samples = np.hstack([10 * normal(400, 3), labels[:, None] + 0.05 * normal(400, 1)])
    assert usable_information(samples, labels) == pytest.approx(math.log(2), abs=0.05)


def test_the_leading_directions_are_kept() -> None:
    labels = np.arange(300) % 2
    hidden = 4.0 * labels[:, None] + 0.1 * normal(300, 1)
    wide = hidden @ np.ones((1, 40)) + normal(300, 40)
    one = usable_information(wide, labels, directions=1)
    assert one == pytest.approx(math.log(2), abs=0.02)
    assert usable_information(np.hstack([wide] * 20), labels, directions=1) == pytest.approx(one, abs=1e-3)


def test_a_class_that_is_never_seen_in_fitting_has_a_finite_likelihood() -> None:
    labels = np.arange(100) % 2
    labels[0] = 2
    value = usable_information(np.eye(3)[labels] + 0.01 * normal(100, 3), labels)
    assert 0.6 < value < 0.8


# ---- every stage of a model


class Pair(nn.Module):
    """A stage that passes on a tuple, its features first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = state[0] if isinstance(state, tuple) else state
        return self.layer(x), x


class Last(nn.Linear):
    def forward(self, state: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        return super().forward(state[0].flatten(1))


@pytest.fixture
def model() -> MultiExit:
    torch.manual_seed(0)
    stages = [Pair(nn.Conv2d(1, 4, 3, padding=1)), Pair(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))]
    stages.append(Pair(nn.Conv2d(4, 2, 3, padding=1)))
    return MultiExit(Backbone.from_stages(stages, Last(2 * 6 * 6, 3), (1, 6, 6)))


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 1, 6, 6, generator=generator), torch.arange(50) % 3
    x += y[:, None, None, None]
    return list(zip(x.split(16), y.split(16)))


def test_a_stage_has_the_information_of_its_activations(
    model: MultiExit, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "FEATURES", 100)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    found = stage_information(model, batches, [0.1, 0.5])
    assert list(found.columns) == ["stage", "quantity", "noise", "value"]
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    labels = torch.cat([y for _, y in batches])
    taken = list(stage_activations(model, batches))
    for stage in (1, 2, 3):
        samples = torch.cat([each[stage] for each in taken])
        assert samples.shape == (50, 72 if stage == 3 else 100)
        rows = found[found["stage"] == stage].set_index(["quantity", "noise"])["value"]
        sweep = information_sweep(samples, [0.1, 0.5]).set_index("noise")
        for quantity in ("lower", "upper", "ceiling"):
            assert list(rows[quantity]) == list(sweep[quantity])
        assert list(rows["usable"]) == [usable_information(samples, labels)]
    assert len(found) == 3 * (3 * 2 + 1)


def test_stages_that_do_not_fit_at_once_are_taken_one_after_another(
    model: MultiExit, batches: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = stage_information(model, batches, [0.3])
    for held in (1, 2 * 2 * 4 * 50 * 144):  # one stage, two stages
        monkeypatch.setattr(information, "HELD", held)
        pd.testing.assert_frame_equal(stage_information(model, batches, [0.3]), at_once)


def test_regression_has_no_usable_information(model: MultiExit, batches: list) -> None:
    real = [(x, y.float()) for x, y in batches]
    assert set(stage_information(model, real, [0.3])["quantity"]) == {"lower", "upper", "ceiling"}


# ---- mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mutual_information(normal(1, 3), 0.1), r"activations: shape \(1, 3\)"),
        (lambda: mutual_information(normal(5), 0.1), r"activations: shape \(5,\)"),
        (lambda: mutual_information(np.array([[1.0, math.nan], [0.0, math.inf]]), 0.1), "activations: 2 of 4 values"),
        (lambda: mutual_information(cloud(), -0.1), "noise: -0.1"),
        (lambda: mutual_information(cloud(), 0), "noise: 0"),
        (lambda: mutual_information(cloud(), math.inf), "noise: inf"),
        (lambda: mutual_information(cloud(), math.nan), "noise: nan"),
        (lambda: information_sweep(cloud(), []), "noises: none"),
        (lambda: usable_information(cloud(), normal(60)), "labels: float64 is not valid"),
        (lambda: usable_information(cloud(), np.arange(59)), r"labels: shape \(59,\) does not fit 60"),
        (lambda: usable_information(cloud(), np.ones(60, dtype=int)), "labels: all 60 are 1"),
        (lambda: usable_information(cloud()[:7], np.arange(7) % 2), "7 samples"),
        (lambda: usable_information(cloud(), np.arange(60) % 2, 0), "directions: 0"),
    ],
)
def test_a_mistake_is_named(call: Any, message: str) -> None:
    with pytest.raises(EestudyError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_minus_zero_is_zero() -> None:
    """Two different samples, each twice, written with either zero: exactly log 2 at no noise to speak of."""
    samples = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, -0.0], [1.0, 0.0]])
    assert mutual_information(samples, 1e-3) == pytest.approx((math.log(2), math.log(2)), abs=1e-12)
    points, weights = information._distinct(samples)
    assert points.shape == (2, 2)
    assert weights.tolist() == [0.5, 0.5]
