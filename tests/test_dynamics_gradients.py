"""Dominance and conflict against gradients written out by hand, and against one backward() an exit."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.dynamics.gradients import (
    CONFLICT,
    DOMINANCE,
    gradient_conflict,
    gradient_dominance,
    gradient_grams,
    gradient_tables,
    stage_parameters,
)
from eestudy.models import Backbone, MultiExit, build_backbone
from eestudy.training.losses import exit_losses, exit_weights

SHAPES: dict[str, tuple[int, ...]] = {
    "mlp": (1, 4, 4), "resnet1d": (1, 16), "vit1d": (1, 16), "msdnet": (1, 8, 8), "resnet-tiny": (1, 8, 8)
}  # fmt: skip
SMALLER: dict[str, dict[str, object]] = {
    "mlp": {"width": 6, "depth": 3}, "resnet1d": {"width": 4, "blocks": 1}, "vit1d": {"width": 8, "depth": 3},
    "resnet-tiny": {"width": 4, "blocks": 1},
}  # fmt: skip
WEIGHTS = (2.0, -1.0, 3.0)  # of the chain's stages
READERS = ((1.0, 0.5), (-0.5, 0.0), (0.25, -1.0))  # weight and bias of its exits


def small(name: str) -> Any:
    """A network whose BatchNorm statistics are not the ones it starts with."""
    torch.manual_seed(0)
    backbone = build_backbone(name, SHAPES[name], 3, **SMALLER.get(name, {}))
    model = MultiExit(backbone)
    with torch.no_grad():
        model.train()(torch.randn(16, *SHAPES[name]) * 2 + 1)
    return model


def labelled(shape: tuple[int, ...], batches: int = 3, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, *shape, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(batches)
    ]


def chain(scale: float = 1.0) -> MultiExit:
    """x -> w_1 x -> w_2 w_1 x -> ...; exit k gives scale * (h_k z_k + b_k), z_k what stage k gives."""
    stages = [nn.Linear(1, 1, bias=False) for _ in WEIGHTS]
    model = MultiExit(Backbone.from_stages(stages, nn.Linear(1, 1), (1,)))
    readers: list[Any] = [*(model.head(stage)[0] for stage in model.exit_stages), model.backbone.classifier]
    with torch.no_grad():
        for stage, weight in zip(stages, WEIGHTS, strict=True):
            stage.weight.fill_(weight)
        for reader, (weight, bias) in zip(readers, READERS, strict=True):
            reader.weight.fill_(scale * weight)
            reader.bias.fill_(scale * bias)
    return model


def regression(scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    xs = ([1.0, -2.0, 0.5], [0.3, 1.5, -1.0, 2.0])
    ys = ([5.0, -8.0, 1.0], [2.0, 0.0, 1.0, -0.5])
    return [(torch.tensor(x)[:, None], scale * torch.tensor(y)) for x, y in zip(xs, ys, strict=True)]


def chain_gradients() -> np.ndarray:
    """d/dw_l of mean((h_k z_k + b_k - y)^2) / 3 = 2/3 mean((h_k z_k + b_k - y) h_k z_k) / w_l: (batch, l, k)."""
    gradients = np.zeros((2, 3, 3))
    for batch, (x, y) in enumerate(regression()):
        for k, (h, b) in enumerate(READERS):
            z = np.prod(WEIGHTS[: k + 1]) * x[:, 0].numpy()
            for stage in range(k + 1):
                gradients[batch, stage, k] = 2 / 3 * np.mean((h * z + b - y.numpy()) * h * z) / WEIGHTS[stage]
    return gradients


def test_dominance_of_a_chain():
    table = gradient_dominance(chain(), regression()).set_index(["stage", "exit"])
    assert list(table.reset_index().columns) == ["stage", "exit", *DOMINANCE[2:]]
    assert sorted(table.index) == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
    g = chain_gradients()
    for stage in (1, 2, 3):
        for k in range(stage, 4):
            one, total = g[:, stage - 1, k - 1], g[:, stage - 1].sum(1)
            row = table.loc[stage, k]
            assert row.norm_share == pytest.approx(np.mean(abs(one) / abs(g[:, stage - 1]).sum(1)), rel=1e-5)
            assert row.signed_share == pytest.approx(np.mean(one / total), rel=1e-5)
            assert row.cosine == pytest.approx(np.mean(np.sign(one * total)), abs=1e-6)
            assert row["norm"] == pytest.approx(np.mean(abs(one)), rel=1e-5)
    lengths = np.linalg.norm(g, axis=1)  # over stages: the whole backbone
    for k in range(3):
        assert table.loc[0, k + 1].norm_share == pytest.approx(np.mean(lengths[:, k] / lengths.sum(1)), rel=1e-5)


def test_conflict_of_a_chain():
    table = gradient_conflict(chain(), regression()).set_index(["kind", "stage", "exit_a", "exit_b"])
    g = np.sign(chain_gradients())
    assert {*g[:, 0].flat} == {-1.0, 1.0}, "exits pull apart"
    for stage in (1, 2):
        for a in range(stage, 4):
            for b in range(a + 1, 4):
                signs = g[:, stage - 1, a - 1] * g[:, stage - 1, b - 1]
                row = table.loc["exits", stage, a, b]
                assert row.cosine == pytest.approx(signs.mean(), abs=1e-6)
                assert row.negative_rate == (signs < 0).mean()
    for k in (1, 2, 3):
        sign = g[0, 0, k - 1] * g[1, 0, k - 1]
        assert table.loc["noise", 1, k, k].cosine == pytest.approx(sign, abs=1e-6)
        assert table.loc["noise", 1, k, k].negative_rate == (sign < 0)


@pytest.mark.parametrize("name", ["resnet1d", "vit1d", "msdnet"])
def test_equals_a_backward_pass_for_each_exit(name):
    model, batches, settings = small(name), labelled(SHAPES[name]), "depth-linear"
    dominance, conflict = gradient_tables(model, batches, settings)
    stages = len(model.backbone.stages)
    last = [*model.exit_stages, stages]
    flat = [backward_gradients(model, batch, settings) for batch in batches]  # a batch -> (stage, exit) -> vector
    for row in dominance.itertuples():
        shares, signed, cosines, norms = [], [], [], []
        for gradients in flat:
            g = [gradients[row.stage, k] for k in range(len(last)) if last[k] >= row.stage]
            mine, total = gradients[row.stage, row.exit - 1], torch.stack(g).sum(0)
            shares.append(mine.norm() / sum(one.norm() for one in g))
            signed.append(mine @ total / total.square().sum())
            cosines.append(torch.cosine_similarity(mine, total, 0))
            norms.append(mine.norm())
        found = [row.norm_share, row.signed_share, row.cosine, row.norm]
        wanted = [float(torch.stack(values).mean()) for values in (shares, signed, cosines, norms)]
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    for row in conflict.itertuples():
        a, b = (row.stage, row.exit_a - 1), (row.stage, row.exit_b - 1)
        pairs = zip(flat, flat if row.kind == "exits" else flat[1:])
        cosines = [torch.cosine_similarity(one[a], other[b], 0) for one, other in pairs]
        assert row.cosine == pytest.approx(float(torch.stack(cosines).mean()), rel=1e-3, abs=1e-5)
        assert row.negative_rate == np.mean([float(cosine) < 0 for cosine in cosines])
    assert len(dominance) == len(last) + sum(of_exit for of_exit in last)
    assert (conflict.kind == "noise").sum() == len(dominance)


def backward_gradients(model: MultiExit, batch: tuple[Tensor, Tensor], weighting: str) -> dict[tuple[int, int], Tensor]:
    copy, gradients = deepcopy(model).eval(), {}
    x, y = batch
    for k in range(copy.num_exits):
        copy.zero_grad()
        (exit_weights(weighting, copy.num_exits)[k] * exit_losses(torch.stack(copy(x)), y)[k]).backward()
        for stage, module in enumerate([copy.backbone.stages, *copy.backbone.stages]):
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
            gradients[stage, k] = torch.cat([part.flatten() for part in parts]).double()
    return gradients


@pytest.mark.parametrize("name", SHAPES)
def test_shares_of_a_stage_sum_to_one(name):
    table = gradient_dominance(small(name), labelled(SHAPES[name]))
    sums = table.groupby("stage")[["norm_share", "signed_share"]].sum()
    assert sums.to_numpy() == pytest.approx(np.ones(sums.shape), abs=1e-9)
    assert table.cosine.between(-1 - 1e-9, 1 + 1e-9).all()


def test_a_head_with_zero_weights_has_no_share():
    model = small("vit1d")
    nn.init.zeros_(model.head(2)[-1].weight)
    dominance, conflict = gradient_tables(model, labelled(SHAPES["vit1d"]))
    none = dominance[dominance.exit == 2]
    assert list(none.stage) == [0, 1, 2]
    assert (none[["norm_share", "signed_share", "norm"]] == 0).all(axis=None)
    assert none.cosine.isna().all()
    only = dominance[dominance.exit != 2]
    assert (only.norm_share > 0).all()
    assert only.groupby("stage").norm_share.sum().to_numpy() == pytest.approx(1)
    involved = (conflict.exit_a == 2) | (conflict.exit_b == 2)
    assert conflict[involved][["cosine", "negative_rate"]].isna().all(axis=None)
    assert conflict[~involved].notna().all(axis=None)


def test_no_gradient_at_all_has_no_shares():
    model = small("mlp")
    for reader in (model.head(1)[-1], model.head(2)[-1], model.backbone.classifier):
        nn.init.zeros_(reader.weight)
    table = gradient_dominance(model, labelled(SHAPES["mlp"]))
    assert (table["norm"] == 0).all()
    assert table[["norm_share", "signed_share", "cosine"]].isna().all(axis=None)


def test_the_scale_of_the_loss_changes_norms_only():
    once, thrice = gradient_dominance(chain(), regression()), gradient_dominance(chain(3.0), regression(3.0))
    shares = ["norm_share", "signed_share", "cosine"]
    assert thrice[shares].to_numpy() == pytest.approx(once[shares].to_numpy(), rel=1e-5)
    assert thrice["norm"].to_numpy() == pytest.approx(9 * once["norm"].to_numpy(), rel=1e-5)


def test_weights_are_the_training_s():
    model, batches = small("mlp"), labelled(SHAPES["mlp"])
    equal, linear = (gradient_dominance(model, batches, name) for name in ("equal", "depth-linear"))
    assert (linear["norm"] / equal["norm"]).to_numpy() == pytest.approx(equal.exit.to_numpy() / 2, rel=1e-5)


def test_the_same_batch_again_has_no_noise_and_one_batch_no_rows_of_it():
    batches = labelled(SHAPES["mlp"], batches=1)
    twice = gradient_conflict(small("mlp"), batches * 2)
    noise = twice[twice.kind == "noise"]
    assert noise.cosine.to_numpy() == pytest.approx(1)
    assert (noise.negative_rate == 0).all()
    once = gradient_conflict(small("mlp"), batches)
    assert list(once.columns) == CONFLICT
    assert set(once.kind) == {"exits"}


def test_batches_without_a_gradient_are_left_out():
    x, y = labelled((1, 4, 4), batches=1)[0]
    model = small("mlp")
    with torch.no_grad():
        model.backbone.stages[0][1].bias.zero_()
        model.backbone.stages[0][1].weight.abs_()
    dead = torch.full_like(x, -1.0)  # every ReLU of the first stage is off
    both, one = gradient_dominance(model, [(x, y), (dead, y)]), gradient_dominance(model, [(x, y)])
    first = both.stage == 1
    assert both[first].norm_share.to_numpy() == pytest.approx(one[first].norm_share.to_numpy())
    assert both[first]["norm"].to_numpy() == pytest.approx(one[first]["norm"].to_numpy() / 2)


def test_the_model_is_left_as_it_was():
    model = small("resnet-tiny")
    model.backbone.stages[1].eval()
    model.backbone.stages[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    batches = labelled(SHAPES["resnet-tiny"])
    with torch.no_grad():  # as a caller who only reads may have it
        table = gradient_dominance(model, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == frozen
    assert all(parameter.grad is None for parameter in model.parameters())
    # What is frozen is measured all the same, and the mode the model is in does not matter.
    again = gradient_dominance(model.eval().requires_grad_(True), batches)
    assert table.equals(again)


def test_token_ids_and_stages_without_parameters():
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.unused = nn.Linear(2, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    stages = [Embedded(), nn.GELU(), shared, nn.Sequential(nn.GELU(), shared, nn.LayerNorm(4))]
    backbone = Backbone.from_stages(stages, classifier, (3,), kind="tokens", input_dtype=torch.int64)
    model = MultiExit(backbone)
    assert {stage: len(names) for stage, names in stage_parameters(model).items()} == {1: 3, 3: 2, 4: 2}
    grams = gradient_grams(model, [(torch.randint(7, (5, 3)), torch.randint(3, (5,))) for _ in range(2)])
    assert grams.stages == (0, 1, 3, 4)
    assert grams.within.shape == (2, 4, 4, 4)
    assert (grams.within[:, 2, :2] == 0).all(), "exits 1 and 2 do not see stage 3"
    assert (np.einsum("nskk->nsk", grams.within)[:, 0] > 0).all()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"weighting": "equl"}, "weighting: unknown name 'equl'; nearest: equal"),
        ({"batches": []}, "batches: there are none"),
        ({"batches": [(torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2, dtype=torch.int64))]}, r"exits \[1, 2, 3\]"),
    ],
)
def test_mistakes(change, wanted):
    given: dict[str, Any] = {"batches": labelled(SHAPES["mlp"]), **change}
    with pytest.raises(EestudyError, match=wanted):
        gradient_dominance(small("mlp"), **given)


def test_a_backbone_without_parameters():
    backbone = Backbone.from_stages([nn.Flatten(), nn.Tanh()], nn.Linear(4, 3), (4,))
    with pytest.raises(EestudyError, match="no stage of its backbone has parameters"):
        gradient_dominance(MultiExit(backbone), labelled((4,)))


def test_scaled_as_adamw_moves_the_weights():
    """Against one backward pass an exit, divided by hand by the root of the mean square of their sum."""
    model, batches = small("mlp"), labelled(SHAPES["mlp"])
    names = stage_parameters(model)
    parameters = dict(model.named_parameters())
    found = []  # batch, exit -> stage -> gradient
    for x, y in batches:
        logits = model.eval()(x)
        rows = []
        for of_exit in logits:
            grads = torch.autograd.grad(
                torch.nn.functional.cross_entropy(of_exit, y) / len(logits),
                [parameters[name] for own in names.values() for name in own], retain_graph=True, materialize_grads=True,
            )  # fmt: skip
            each = iter(grads)
            rows.append({stage: torch.cat([next(each).flatten() for _ in own]) for stage, own in names.items()})
        found.append(rows)
    frame = gradient_dominance(model, batches, scaled=True).set_index(["stage", "exit"])
    for stage in names:
        totals = [torch.stack([row[stage] for row in rows]).sum(0) for rows in found]
        v = torch.stack([total.square() for total in totals]).mean(0)
        scale = 1 / (v.sqrt() + 1e-8)
        reached = [k for k, of_exit in enumerate((*model.exit_stages, len(model.backbone.stages))) if of_exit >= stage]
        for k in reached:
            shares, cosines = [], []
            for rows, total in zip(found, totals, strict=True):
                norms = [float((row[stage] * scale).norm()) for row in rows]
                shares.append(norms[k] / sum(norms))
                cosines.append(float(torch.cosine_similarity(rows[k][stage] * scale, total * scale, 0)))
            assert frame.loc[(stage, k + 1), "norm_share"] == pytest.approx(np.mean(shares), rel=1e-4)
            assert frame.loc[(stage, k + 1), "cosine"] == pytest.approx(np.mean(cosines), rel=1e-4, abs=1e-5)
    plain = gradient_dominance(model, batches).set_index(["stage", "exit"])
    assert not np.allclose(plain["norm_share"], frame["norm_share"], atol=1e-3)


def test_scaled_with_one_batch_and_one_exit_every_weight_moves_alike():
    """|g| / sqrt(g^2) is 1 for every weight that has a gradient: the norm is the root of their number."""
    model = chain()
    frame = gradient_dominance(model, regression()[:1], scaled=True)
    last = frame[(frame["stage"] == 3) & (frame["exit"] == 3)].iloc[0]
    assert last["norm"] == pytest.approx(1, rel=1e-5)  # one weight, and no other exit reads what it gives
    assert last["cosine"] == pytest.approx(1)
