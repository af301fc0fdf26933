"""Heads in two steps, cascades, widths, and where heads stand."""

from __future__ import annotations

import pytest
import torch

from eestudy.config import EestudyError
from eestudy.models import MultiExit, build_backbone, exit_costs
from eestudy.models.backbone import stage_flops
from eestudy.models.heads import CASCADING, HEADS, build_head

SHAPES = {"maps": (6, 9, 10), "sequence": (6, 12), "tokens": (5, 8), "vector": (7,)}


def test_every_kind_of_features_has_heads():
    assert {kind for kinds, _ in HEADS.values() for kind in kinds} == set(SHAPES)


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (kinds, _) in HEADS.items() for kind in kinds])
def test_two_steps_are_the_whole(name, kind, layers):
    first = build_head(name, kind, SHAPES[kind], 4, layers).eval()
    later = build_head(name, kind, SHAPES[kind], 4, layers, first=False).eval()
    x, previous = torch.randn(3, *SHAPES[kind]), torch.randn(3, 4)
    assert first(x).shape == later(x, previous).shape == (3, 4)
    for head in (first, later):
        torch.testing.assert_close(head.read(head.reduce(x), previous), head(x, previous), rtol=0, atol=0)
    changed = not torch.equal(later(x, previous), later(x, previous.flip(1)))
    assert changed == (name in CASCADING)
    if name in CASCADING:
        with pytest.raises(EestudyError, match="needs the logits of the exit before"):
            later(x)


def test_more_layers_and_widths_have_the_weights_they_say():
    count = lambda head: sum(parameter.numel() for parameter in head.parameters())  # noqa: E731
    assert count(build_head("vector", "vector", (7,), 4, 3, {"width": 11})) == 7 * 11 + 11 + 11 * 11 + 11 + 11 * 4 + 4
    assert count(build_head("vector", "vector", (7,), 4, 2)) == 7 * 7 + 7 + 7 * 4 + 4
    maps = build_head("pooled", "maps", (6, 9, 10), 4, 3, {"width": 5})
    assert count(maps) == (6 * 5 * 9 + 10) + (5 * 5 * 9 + 10) + 1 + 5 * 16 * 4 + 4


def test_a_cascade_passes_no_gradient_back_to_the_exit_before():
    model = MultiExit(build_backbone("mlp", (1, 8, 8), 10), head="cascading-vector")
    logits = model(torch.randn(4, 1, 8, 8))
    logits[2].sum().backward()
    assert all(parameter.grad is None for stage in (1, 2) for parameter in model.head(stage).parameters())
    assert next(model.head(3)[-1].parameters()).grad is not None


def test_cascade_reads_the_shape_of_the_logits_not_their_scale():
    head = build_head("cascading-vector", "vector", (7,), 4, first=False)
    x, previous = torch.randn(3, 7), torch.randn(3, 4)
    torch.testing.assert_close(head(x, previous), head(x, 10 * previous + 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: build_head("token", "maps", (6, 9, 9), 4), "head: 'token' does not read maps; valid: auto, pooled"),
        (lambda: build_head("vector", "vector", (7,), 4, 0), "head_layers: 0 is out of range; it must be 1 to 5"),
        (lambda: build_head("vector", "vector", (7,), 4, 6), "head_layers: 6 is out of range; it must be 1 to 5"),
        (lambda: build_head("vector", "vector", (7,), 4, 2, {"widht": 3}), "head_args: unknown key 'widht' for vector"),
        (lambda: build_head("vector", "vector", (7,), 4, 2, {"width": 0}), "head_args: width: 0 is not valid"),
        (lambda: build_head("vector", "vector", (7,), 4, 1, {"width": 3}), "width: 3 has no effect on one layer"),
    ],
)
def test_mistakes(call, wanted):
    with pytest.raises(EestudyError) as caught:
        call()
    assert wanted in str(caught.value)


def test_every_nth_stage():
    backbone = build_backbone("resnet-tiny", (1, 8, 8), 10)
    assert MultiExit(backbone, {"every": 2}).exit_stages == (2, 4)
    assert MultiExit(backbone, {"every": 5}).exit_stages == (5,)
    with pytest.raises(EestudyError, match=r"every.*6.* is not valid for 6 stages"):
        MultiExit(backbone, {"every": 6})


def test_by_share_of_flops():
    backbone = build_backbone("resnet-tiny", (1, 8, 8), 10, blocks=5)
    parts = stage_flops(backbone)
    spent = [100 * sum(parts[: number + 1]) / sum(parts) for number in range(len(parts) - 2)]
    wanted = [15, 30, 45, 60, 75, 90]
    stages = MultiExit(backbone, {"flops": wanted}).exit_stages
    assert len(stages) == 6
    for share, stage in zip(wanted, stages, strict=True):
        assert abs(spent[stage - 1] - share) == min(abs(each - share) for each in spent)
    model = MultiExit(backbone, "all")
    assert list(exit_costs(model).stages) == parts[:-1]


def test_two_shares_on_one_stage():
    backbone = build_backbone("mlp", (1, 8, 8), 10, depth=3)
    with pytest.raises(EestudyError, match=r"exits: flops: 60 % and 62 % both fall on stage \d"):
        MultiExit(backbone, {"flops": [60, 62]})
