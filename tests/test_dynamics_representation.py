"""Ranks of matrices whose spectrum is known, and linear CKA against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.dynamics import activations, representation
from eestudy.dynamics.activations import stage_activations
from eestudy.dynamics.representation import (
    RANKS,
    SIMILARITY,
    effective_rank,
    linear_cka,
    numerical_rank,
    squared_singular_values,
    stable_rank,
    stage_ranks,
    stage_similarity,
)
from eestudy.models import MultiExit, build_backbone

SHAPES: dict[str, tuple[int, ...]] = {
    "mlp": (1, 4, 4), "resnet1d": (1, 16), "vit1d": (1, 16), "msdnet": (1, 8, 8), "resnet-tiny": (1, 8, 8)
}  # fmt: skip
SMALLER: dict[str, dict[str, object]] = {
    "mlp": {"width": 6, "depth": 3}, "resnet1d": {"width": 4, "blocks": 1}, "vit1d": {"width": 8, "depth": 3},
    "resnet-tiny": {"width": 4, "blocks": 1},
}  # fmt: skip


def small(name: str, seed: int = 0) -> MultiExit:
    torch.manual_seed(seed)
    return MultiExit(build_backbone(name, SHAPES[name], 3, **SMALLER.get(name, {})))


def probes(name: str, sizes: tuple[int, ...] = (7, 7, 3)) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(16, dtype=torch.int64)
    return [(torch.randn(size, *SHAPES[name], generator=generator) + 3, labels[:size]) for size in sizes]


def whole(model: MultiExit, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Every stage's activations of all batches at once, (n, m), by running the stages here."""
    state, rows = torch.cat([x for x, _ in batches]), []
    with torch.no_grad():
        for stage in model.eval().backbone.stages:
            state = stage(state)
            rows.append(model.backbone.features(state).flatten(1))
    return rows


def with_spectrum(values: list[float], samples: int, features: int, mean: float = 5.0) -> np.ndarray:
    """(samples, features) whose centred squared singular values are `values` and 0s, up to a common factor.

    Columns of Hadamard matrices, of which all but the first are centred, are orthogonal without rounding.
    """
    left = scipy.linalg.hadamard(samples)[:, 1 : len(values) + 1]
    right = scipy.linalg.hadamard(features)[:, : len(values)]
    return mean + (left * np.sqrt(values)) @ right.T


def gaussian(samples: int, features: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(samples, features))


# Ranks.


@pytest.mark.parametrize(("samples", "features"), [(16, 64), (64, 16), (32, 32)])
@pytest.mark.parametrize("threshold", [1e-3, 0.25])
def test_the_threshold_is_exact(samples, features, threshold, monkeypatch):
    monkeypatch.setattr(representation, "THRESHOLD", threshold)

    def rank(*shares: float) -> int:
        return numerical_rank(with_spectrum([4.0, 4.0 * 0.5, *(4.0 * share for share in shares)], samples, features))

    assert rank() == 2
    assert rank(threshold) == 2, "at the threshold does not count"
    assert rank(threshold * (1 + 1e-8), threshold * (1 - 1e-8)) == 3
    assert rank(*[threshold * 1.01] * 5, *[threshold * 0.99] * 5) == 7
    assert rank(1.0, 0.9, 0.8) == 5


@pytest.mark.parametrize(("samples", "features"), [(16, 64), (64, 16)])
def test_ranks_of_a_known_spectrum(samples, features):
    flat = with_spectrum([2.0] * 7, samples, features)
    for rank in (numerical_rank, stable_rank, effective_rank):
        assert rank(flat) == pytest.approx(7, rel=1e-6)
    # s = 2, 1, 1: p = 1/2, 1/4, 1/4, whose entropy is 1.5 log 2
    steep = with_spectrum([4.0, 1.0, 1.0], samples, features)
    assert stable_rank(steep) == pytest.approx(1.5)
    assert effective_rank(steep) == pytest.approx(2**1.5, rel=1e-5)
    assert numerical_rank(steep) == 3


@pytest.mark.parametrize(("samples", "features"), [(20, 7), (7, 20), (12, 12), (2, 5), (5, 1), (9, 2345)])
def test_equals_numpy_s_svd(samples, features):
    rows = gaussian(samples, features, 0) * np.geomspace(1, 1e-2, features) + 100
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    values = squared_singular_values(rows).numpy()
    assert values == pytest.approx(singular**2, rel=1e-8, abs=1e-9 * singular[0] ** 2)
    assert numerical_rank(rows) == (singular**2 > 1e-3 * singular[0] ** 2).sum()
    assert stable_rank(torch.tensor(rows)) == pytest.approx((singular**2).sum() / singular[0] ** 2)
    shares = singular[singular > 1e-6 * singular[0]] / singular.sum()
    assert effective_rank(rows) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (50, 3)])
def test_constant_activations_have_no_rank(shape):
    rows = np.full(shape, 0.1)
    assert (numerical_rank(rows), stable_rank(rows), effective_rank(rows)) == (0, 0.0, 0.0)
    rows[1, 1] = 0.2
    assert (numerical_rank(rows), stable_rank(rows), effective_rank(rows)) == (1, 1.0, 1.0)


def test_the_mean_is_no_dimension_and_float32_is_enough():
    rows = with_spectrum([1.0] * 3, 16, 64, mean=1000.0).astype(np.float32)
    assert numerical_rank(rows) == 3


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sizes", [(7, 7, 3), (60, 60, 50)])
def test_stage_ranks_are_those_of_the_whole(name, sizes, monkeypatch):
    monkeypatch.setattr(representation, "THRESHOLD", 1e-2)
    model, batches = small(name), probes(name, sizes)
    table = stage_ranks(model, batches)
    assert list(table.columns) == RANKS
    assert list(table.stage) == list(range(1, len(model.backbone.stages) + 1))
    for row, rows in zip(table.itertuples(), whole(model, batches), strict=True):
        assert (row.samples, row.features) == rows.shape
        ranks = (numerical_rank(rows), stable_rank(rows), effective_rank(rows))
        assert (row.numerical_rank, row.stable_rank, row.effective_rank) == pytest.approx(ranks, rel=1e-4)
        shares = (row.numerical_share, row.stable_share, row.effective_share)
        assert shares == pytest.approx([rank / min(rows.shape) for rank in ranks], rel=1e-4)


def test_both_ways_to_gather_are_seen():
    sizes = {name: stage_ranks(small(name), probes(name, (60, 60, 50))) for name in ("mlp", "resnet-tiny")}
    assert (sizes["mlp"].samples >= sizes["mlp"].features).all()
    assert (sizes["resnet-tiny"].samples < sizes["resnet-tiny"].features).any()


def test_activations_far_from_zero_keep_their_digits_when_summed():
    model, batches = small("mlp"), probes("mlp", (60, 60, 50))
    before = stage_ranks(model, batches)
    with torch.no_grad():
        model.backbone.stages[2] = nn.Sequential(model.backbone.stages[2], Shift(4096.0))
        rows = whole(model, batches)[2].double()
    after = stage_ranks(model, batches)
    singular = torch.linalg.svdvals(rows - rows.mean(0))
    assert after.stable_rank[2] == pytest.approx(float(singular.square().sum() / singular[0] ** 2), rel=1e-9)
    assert after.numerical_rank[2] == before.numerical_rank[2]


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def test_more_passes_give_the_same(monkeypatch):
    model, other, batches = small("vit1d"), small("vit1d", seed=1), probes("vit1d")
    ranks, alike = stage_ranks(model, batches), stage_similarity(model, other, batches)
    monkeypatch.setattr(representation, "HELD", 1)  # one stage a pass
    assert stage_ranks(model, batches).equals(ranks)
    assert stage_similarity(model, other, batches).equals(alike)


def test_at_most_so_many_features_drawn_alike(monkeypatch):
    monkeypatch.setattr(activations, "FEATURES", 11)
    model, other, batches = small("vit1d"), small("vit1d", seed=1), probes("vit1d")
    parts = list(stage_activations(model, batches))
    assert [part[2].shape for part in parts] == [(7, 11), (7, 11), (3, 11)]
    rows = whole(model, batches)[1]
    places = [(rows[:7] == column[:, None]).all(0).nonzero()[:, 0].tolist() for column in parts[0][2].T]
    columns = [place for found in places for place in found]
    assert len(set(columns)) == 11
    assert columns == sorted(columns)
    assert torch.equal(torch.cat([part[2] for part in parts]), rows[:, columns])
    of_other = next(stage_activations(other, batches))[2]
    assert torch.equal(of_other, whole(other, batches)[1][:7, columns]), "the same ones of another model"
    assert list(next(stage_activations(model, batches, stages=[3, 1]))) == [1, 3]
    assert (stage_ranks(model, batches).features == 11).all()


def test_heads_of_msdnet_read_the_coarsest_scale():
    model, batches = small("msdnet"), probes("msdnet")
    parts = next(stage_activations(model, batches))
    assert {stage: tuple(part.shape[1:]) for stage, part in parts.items()} == {
        stage: (int(np.prod(shape)),) for stage, shape in enumerate(model.backbone.feature_shapes(), 1)
    }


def test_the_model_is_left_as_it_was():
    model = small("resnet-tiny").train()
    model.backbone.stages[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    stage_ranks(model, probes("resnet-tiny"))
    stage_similarity(model, model, probes("resnet-tiny"))
    taken = stage_activations(model, probes("resnet-tiny"))
    next(taken)
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes, "between batches too"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# CKA.


def hsic_cka(a: np.ndarray, b: np.ndarray) -> float:
    """By kernel matrices and the centring matrix, as Kornblith et al. write HSIC."""
    centre = np.eye(len(a)) - 1 / len(a)
    k, l = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre  # noqa: E741
    return np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))


def unbiased_cka(a: np.ndarray, b: np.ndarray) -> float:
    """By Song et al.'s estimator on kernel matrices without diagonal, not centred."""

    def hsic(x: np.ndarray, y: np.ndarray) -> float:
        n = len(x)
        k, l = x @ x.T, y @ y.T  # noqa: E741
        np.fill_diagonal(k, 0)
        np.fill_diagonal(l, 0)
        product = np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()
        return product / (n * (n - 3))

    return hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))


@pytest.mark.parametrize("widths", [(5, 6), (40, 50), (5, 40), (40, 5), (20, 20)])
def test_cka_is_its_definition(widths):
    a, b = (gaussian(20, width, seed) + 1 for seed, width in enumerate(widths))
    b[:, 0] += 2 * a[:, 0]
    assert linear_cka(a, b) == pytest.approx(hsic_cka(a, b), rel=1e-9)
    assert linear_cka(b, a) == pytest.approx(linear_cka(a, b), rel=1e-12)
    assert linear_cka(a, b, debiased=True) == pytest.approx(unbiased_cka(a, b), rel=1e-9)


@pytest.mark.parametrize("features", [6, 60])
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_does_not_see_rotation_scale_and_shift(features, debiased):
    a, b = gaussian(30, features, 0), gaussian(30, 9, 1)
    rotation = np.linalg.qr(gaussian(features, features, 2))[0]
    assert linear_cka(a, 3.5 * a @ rotation + 7, debiased) == pytest.approx(1, abs=1e-9)
    assert linear_cka(a @ rotation, b, debiased) == pytest.approx(linear_cka(a, b, debiased), rel=1e-9)
    skewed = a * np.geomspace(1, 100, features)
    assert linear_cka(a, skewed, debiased) < 0.9, "it does see how directions are weighted"


def test_independent_features_have_their_known_cka():
    for samples, features in ((2000, 20), (200, 50)):
        a, b = gaussian(samples, features, 0), gaussian(samples, features, 1)
        assert linear_cka(a, b) == pytest.approx(features / (samples + features), rel=0.1)
        assert abs(linear_cka(a, b, debiased=True)) < 0.02
    few, too = gaussian(50, 950, 2), gaussian(50, 950, 3)
    assert linear_cka(few, too) == pytest.approx(0.95, abs=0.01), "the bias that the docstring warns of"
    assert abs(linear_cka(few, too, debiased=True)) < 0.1


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("debiased", [False, True])
def test_similarity_is_cka_of_all_pairs(name, debiased):
    model, other, batches = small(name), small("resnet1d" if name == "vit1d" else name, seed=1), probes(name, (20, 15))
    table = stage_similarity(model, other, batches, debiased=debiased)
    assert list(table.columns) == SIMILARITY
    rows, others = whole(model, batches), whole(other, batches)
    assert len(table) == len(rows) * len(others)
    for row in table.itertuples():
        wanted = linear_cka(rows[row.stage_a - 1], others[row.stage_b - 1], debiased)
        assert row.cka == pytest.approx(wanted, abs=1e-6)


def test_similarity_with_itself():
    model, batches = small("resnet1d"), probes("resnet1d", (20, 15))
    square = stage_similarity(model, model, batches).pivot(index="stage_a", columns="stage_b", values="cka").to_numpy()
    assert np.diag(square) == pytest.approx(1)
    assert square == pytest.approx(square.T, rel=1e-12)
    assert (square[~np.eye(len(square), dtype=bool)] < 0.999).all()


def test_cka_with_a_constant_is_not_known():
    assert np.isnan(linear_cka(np.ones((5, 3)), gaussian(5, 3, 0)))


# Mistakes.


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: numerical_rank(np.ones((1, 4))), r"shape \(1, 4\) is not valid.*at least 2"),
        (lambda: numerical_rank(np.ones(4)), r"shape \(4,\) is not valid"),
        (lambda: stable_rank(np.array([[1.0, np.nan], [np.inf, 2.0]])), "2 of 4 values are not finite"),
        (lambda: linear_cka(np.eye(3), np.eye(4)), "a and b: 3 and 4 samples"),
        (lambda: linear_cka(np.eye(3), np.eye(3), debiased=True), r"a: shape \(3, 3\) is not valid.*at least 4"),
        (lambda: stage_ranks(small("mlp"), probes("mlp", (1,))), "batches: 1 sample in all; at least 2"),
        (lambda: stage_ranks(small("mlp"), []), "batches: 0 samples in all"),
        (lambda: next(stage_activations(small("mlp"), probes("mlp"), stages=[4])), r"stages: \[4\].*of 1 to 3"),
    ],
)
def test_mistakes(call, wanted):
    with pytest.raises(EestudyError, match=wanted):
        call()


def test_activations_that_are_not_finite():
    model = small("mlp")
    nn.init.constant_(model.get_parameter("backbone.stages.1.1.bias"), torch.inf)
    with pytest.raises(EestudyError, match="activations of stage 2: 6 of 6 values are not finite"):
        stage_ranks(model, probes("mlp"))
