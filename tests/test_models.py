from __future__ import annotations

import pytest
import torch
from torch import nn

from eestudy.config import EestudyError
from eestudy.evaluation import max_probability
from eestudy.models import MultiExit, build_backbone, exit_costs
from eestudy.models.heads import SDNPool

SHAPES = {"mlp": (1, 8, 8), "resnet-tiny": (1, 8, 8), "resnet1d": (1, 40), "vit1d": (1, 40)}


def small(name: str, **args: object) -> MultiExit:
    torch.manual_seed(0)
    return MultiExit(build_backbone(name, SHAPES[name], 10, **args)).eval()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("layers", [1, 2])
def test_every_exit_gives_logits(name, layers):
    backbone = build_backbone(name, SHAPES[name], 7)
    model = MultiExit(backbone, layers=layers)
    logits = model(torch.randn(3, *SHAPES[name]))
    assert len(logits) == model.num_exits == len(backbone.stages)
    assert all(exit_logits.shape == (3, 7) for exit_logits in logits)


@pytest.mark.parametrize("name", SHAPES)
def test_the_last_exit_is_the_backbone(name):
    model, x = small(name), torch.randn(5, *SHAPES[name])
    assert torch.equal(model(x)[-1], model.backbone(x))


def test_exits_can_be_chosen():
    model = MultiExit(build_backbone("vit1d", (1, 40), 10), exits=[2, 4, 6], head="token")
    assert model.exit_stages == (2, 4, 6)
    assert model.num_exits == 4


@pytest.mark.parametrize(
    ("exits", "wanted"),
    [([8], "not valid for 8 stages"), ([0], "not valid"), ([], "not valid"), ([2, 2], "different stages from 1 to 7")],
)
def test_wrong_exits(exits, wanted):
    with pytest.raises(EestudyError, match=wanted):
        MultiExit(build_backbone("vit1d", (1, 40), 10), exits=exits)


def test_one_stage_has_no_place_for_an_exit():
    with pytest.raises(EestudyError, match="1 stage, so there is no place for an early exit"):
        MultiExit(build_backbone("mlp", (1, 8, 8), 10, depth=1))


@pytest.mark.parametrize(
    ("name", "shape", "args", "wanted"),
    [
        ("vit2d", (1, 40), {}, "architecture: unknown name 'vit2d'; nearest: vit1d"),
        ("vit1d", (1, 8, 8), {}, r"does not take inputs of shape \(1, 8, 8\); valid: mlp, resnet-tiny"),
        ("vit1d", (1, 40), {"widht": 3}, "unknown key 'widht' for vit1d; nearest: width"),
        ("vit1d", (1, 40), {"width": 0}, "width: 0 is not valid"),
        ("vit1d", (1, 40), {"patch": 7}, "patch 7 must divide the length 40"),
    ],
)
def test_wrong_backbones(name, shape, args, wanted):
    with pytest.raises(EestudyError, match=wanted):
        build_backbone(name, shape, 10, **args)


def test_sdn_pooling_is_a_learned_mix():
    pool = SDNPool((2, 8, 8))
    assert pool.share is not None
    x = torch.randn(3, 2, 8, 8)
    most, mean = nn.functional.max_pool2d(x, 2), nn.functional.avg_pool2d(x, 2)
    for share in (0.0, 0.3, 1.0):
        pool.share.data.fill_(share)
        torch.testing.assert_close(pool(x), (share * most + (1 - share) * mean).flatten(1))
    pool(x).sum().backward()
    assert pool.share.grad is not None
    assert pool(x).shape == (3, 2 * 16)


def linear(before: int, after: int) -> int:
    return 2 * before * after


def test_flops_against_the_formula_mlp():
    costs = exit_costs(small("mlp", width=32, depth=3))
    assert costs.stages == (linear(64, 32), linear(32, 32), linear(32, 32))
    assert costs.heads == (linear(32, 10),) * 2
    assert costs.backbone == sum(costs.stages) + linear(32, 10)
    assert costs.flops == (
        linear(64, 32) + linear(32, 10),
        linear(64, 32) + linear(32, 32) + 2 * linear(32, 10),
        costs.backbone + 2 * linear(32, 10),
    )
    assert costs.params[-1] == sum(p.numel() for p in small("mlp", width=32, depth=3).parameters())


def test_flops_against_the_formula_vit():
    width, tokens = 48, 11
    block = tokens * (linear(width, 3 * width) + linear(width, width) + 2 * linear(width, 2 * width))
    attention = 2 * (2 * tokens * tokens * width)
    costs = exit_costs(small("vit1d", width=width, depth=2))
    assert costs.stages == (10 * linear(4, width) + block + attention, block + attention)
    assert costs.heads == (linear(width, 10),)


def test_flops_against_the_formula_resnet():
    def conv(before, after, side, kernel=3):
        return 2 * side * side * before * after * kernel * kernel

    costs = exit_costs(small("resnet-tiny", width=16, blocks=1))
    assert costs.stages == (
        conv(1, 16, 8) + 2 * conv(16, 16, 8),
        conv(16, 32, 4) + conv(32, 32, 4) + conv(16, 32, 4, kernel=1),
        conv(32, 64, 2) + conv(64, 64, 2) + conv(32, 64, 2, kernel=1),
    )
    assert costs.heads == (linear(16 * 16, 10), linear(32 * 16, 10))


def test_counting_leaves_the_model_as_it_was():
    model = small("resnet-tiny").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exit_costs(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predict_really_stops():
    """Later stages see only the samples that are still inside, and are not called when none is."""
    model = small("mlp", depth=3)
    seen: list[int] = []
    for stage in model.backbone.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    _, exit_index = model.predict(torch.randn(32, 1, 8, 8), max_probability(0.12))
    assert seen == [32, int((exit_index > 1).sum()), int((exit_index > 2).sum())]
    assert len(set(seen)) == 3
    seen.clear()
    model.predict(torch.randn(4, 1, 8, 8), max_probability(0.0))
    assert seen == [4]


def test_heads_start_the_same_whichever_others_there_are():
    backbone = build_backbone("mlp", (1, 8, 8), 10)
    few = MultiExit(backbone, [3], seed_of_head=lambda stage: stage)
    many = MultiExit(backbone, "all", seed_of_head=lambda stage: stage)
    one, rest = dict(few.named_parameters()), dict(many.named_parameters())
    assert torch.equal(one["heads.3.0.weight"], rest["heads.3.0.weight"])
    assert not torch.equal(rest["heads.2.0.weight"], rest["heads.3.0.weight"])
