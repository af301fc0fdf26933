"""Heads of one's own: a function, modules, one for all exits, the backbone's classifier; how large default ones are."""

# Wrong types are given on purpose, and modules are looked into.
# mypy: disable-error-code="arg-type, union-attr, assignment, operator, override, index, call-arg, attr-defined"

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

import eestudy
from eestudy import evaluation, export
from eestudy.models import build_backbone, exit_costs
from eestudy.plan import fingerprint


def cnn(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(
        *convolutions, nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


class Attending(nn.Module):
    """Pools where a convolution says."""

    def __init__(self, shape: tuple[int, ...], classes: int, power: float = 1.0) -> None:
        super().__init__()
        self.where, self.out, self.power = nn.Conv2d(shape[0], 1, 1), nn.Linear(shape[0], classes), power

    def forward(self, x: Tensor) -> Tensor:
        weights = self.where(x).flatten(2).softmax(-1)
        return self.out((x.flatten(2) * weights).sum(-1)) * self.power


class Other(Attending):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.relu())


class Mixed(nn.Module):
    """Tokens whose channels come last; heads see them first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.more, self.out = (
            nn.Embedding(20, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.more(self.mix(self.table(x)).relu()).mean(1))


class Pair(nn.Module):
    """Hands on two tensors, of which heads read the first."""

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        return x if isinstance(x, tuple) else (x, x > 0)


class Product(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0] * x[1]


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def pooling(*end: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10), *end)


def in_place(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.LeakyReLU(0.3, inplace=True), nn.Flatten(), nn.Linear(8 * 64, classes))


def with_heads(head: Any, **others: Any) -> eestudy.MultiExit:
    return eestudy.add_exits(cnn(), after=["1", "3"], input_shape=(1, 8, 8), head=head, **others).eval()


def trained(head: Any, tmp_path: Path, strategy: str = "joint", **settings: Any) -> Any:
    fields = {"epochs": 1, "batch_size": 256, "lr": 0.01, **settings}
    config = eestudy.RunConfig(architecture="own", dataset="digits", strategy=strategy, **fields)
    return eestudy.run(config, store=tmp_path, model=with_heads(head))


@pytest.mark.parametrize("head", [Attending, in_place, pooling(), [Attending((8, 8, 8), 10), pooling()], "classifier"])
def test_a_head_of_ones_own_is_trained_stored_and_exported_like_any_other(head, tmp_path):
    network = with_heads(head)
    x = torch.randn(9, 1, 8, 8)
    assert torch.equal(network(x)[-1], cnn().eval()(x)), "the last exit is the model's own"
    run = trained(head, tmp_path)
    again, x = run.model(), run.data().test.inputs()[:64]
    logits = torch.stack(again(x))
    np.testing.assert_allclose(logits, run.predictions()[0][:, :64], atol=1e-5)
    sure = logits[0].softmax(1).amax(1).median().item()
    rule = evaluation.max_probability(sure)
    _, exits = again.predict(x, rule)
    assert len(set(exits.tolist())) > 1
    assert (exits.numpy() == evaluation.simulate(logits, rule)).all()
    if head is not in_place:  # an export takes seconds
        return
    runner = export.Runner(export.export(again, tmp_path / "exported", rule))
    np.testing.assert_allclose(runner.predict(x.numpy())[0], again.predict(x, rule)[0], atol=1e-4)


def test_one_head_for_all_exits_is_counted_and_saved_once(tmp_path):
    one = pooling()
    size = sum(weight.numel() for weight in one.parameters())
    for head in (one, lambda shape, classes: one):
        network = with_heads(head)
        assert exit_costs(network).params[-1] == sum(weight.numel() for weight in cnn().parameters()) + size
    run = trained(one, tmp_path, "disjoint")
    heads = [part for part in run.phases if part.startswith("heads")]
    with safe_open(tmp_path / "phases" / heads[0] / "checkpoint-100.safetensors", "np") as file:
        assert len(list(file.keys())) == 2
    first, second = run.model().heads.values()
    assert first[0][2].weight is second[0][2].weight
    assert not torch.equal(first[0][2].weight, one[2].weight)


def test_the_classifier_as_head_is_the_classifier():
    network = with_heads("classifier")
    assert sum(weight.numel() for weight in network.parameters()) == sum(
        weight.numel() for weight in cnn().parameters()
    )
    tokens = eestudy.add_exits(Mixed(), ["mix"], (6,), kind="sequence-last", head="classifier").eval()
    x = torch.randint(0, 20, (3, 6))
    assert torch.equal(tokens(x)[0], tokens.backbone.classifier(tokens.backbone.stages[0](x)))
    vit = eestudy.MultiExit(build_backbone("vit1d", (1, 40), 10), head="classifier").eval()
    x = torch.randn(3, 1, 40)
    assert torch.equal(vit(x)[0], vit.backbone.classifier(vit.backbone.stages[0](x)))


@pytest.mark.parametrize(
    ("head", "strategy", "line"),
    [
        ("classifier", "disjoint", "head: phase 'heads' leaves some exits as they are, but they share weights"),
        ("classifier", "branch-wise", "head: phase 'branch2' leaves some exits as they are"),
        (pooling(), "sequential-ewc", "head: phase 'ewc2' leaves some exits as they are"),
    ],
)
def test_what_exits_share_is_not_trained_behind_a_frozen_exits_back(head, strategy, line, tmp_path):
    with pytest.raises(eestudy.EestudyError, match=line):
        trained(head, tmp_path, strategy)


def test_a_layer_of_a_frozen_backbone_in_a_head_is_told(tmp_path):
    model = cnn()
    layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model[7])  # the classifier's own
    network = eestudy.add_exits(model, ["1"], (1, 8, 8), head=[nn.Sequential(layer, nn.Linear(10, 10))])
    config = eestudy.RunConfig(architecture="own", dataset="digits", strategy="disjoint", start="trained")
    with pytest.raises(eestudy.EestudyError, match="head: phase 'heads' leaves some exits as they are"):
        eestudy.run(config, store=tmp_path, model=network)


def test_code_and_values_of_a_head_are_in_its_runs_identity():
    def known(make: Callable[..., nn.Module], **values: Any) -> str:
        torch.manual_seed(0)
        return fingerprint(with_heads(lambda shape, classes: make(shape, classes, **values)))

    same = known(Attending)
    assert same == known(Attending)
    assert same != known(Other), "the same weights, other code"
    assert same != known(Attending, power=2.0), "the same weights and code, another value"


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (lambda s, c: pooling(nn.Softmax(1)), "gives probabilities; exits need logits"),
        (lambda s, c: pooling(nn.Sigmoid()), "gives probabilities; exits need logits"),
        (lambda s, c: nn.Sequential(nn.Flatten(), nn.Linear(512, 11)), r"gives \(3, 11\); logits \(3, 10\) are needed"),
        (lambda s, c: nn.Flatten(0), r"gives \(1536,\)"),
        (lambda s, c: nn.Linear(3, c), r"does not take features \(B, 8, 8, 8\)"),
        (lambda s, c: torch.tanh, "builtin_function_or_method is no torch module"),
        (lambda s: pooling(), r"it fails for \(8, 8, 8\), 10 classes"),
        (pooling(Noisy()), "random, NaN or depend on the others"),
        (pooling(Centred()), "random, NaN or depend on the others"),
        ([pooling()], "1 modules are given for 2 exits"),
        (3, "head: 3 is not valid; give a name"),
        (None, "head: None is not valid; give a name"),
    ],
)
def test_what_gives_no_logits_of_a_sample_is_refused(head, line):
    with pytest.raises(eestudy.EestudyError, match=line) as caught:
        with_heads(head)
    assert "\n" not in str(caught.value)


def test_a_head_that_starts_at_zero_is_none_of_probabilities():
    head = pooling()
    nn.init.zeros_(head[2].weight)
    nn.init.zeros_(head[2].bias)
    assert with_heads(head).num_exits == 3


def test_a_classifier_of_more_than_heads_read_is_refused():
    backbone = eestudy.Backbone.from_stages([Pair(), Pair()], Product(), (5,))
    with pytest.raises(eestudy.EestudyError, match=r"gives \(5,\); logits \(3, 5\) are needed"):
        eestudy.MultiExit(backbone, head="classifier")


def test_settings_of_built_in_heads_have_no_effect_on_ones_own():
    with pytest.raises(eestudy.EestudyError, match="head_layers, head_args: have no effect on heads of your own"):
        with_heads(Attending, head_layers=2)


def test_a_default_head_does_not_outweigh_a_backbone_of_ones_own(capfd):
    def sizes(classes: int, **head_args: int) -> list[int]:
        network = eestudy.add_exits(cnn(classes), ["1", "3"], (1, 8, 8), head_args=head_args)
        return [head[-1].in_features for head in network.heads.values()]

    assert sizes(100) == [8, 8]
    said = capfd.readouterr().err
    assert "head: pools to a side of 1 after stage 1, 1 after stage 2" in said
    assert said.count("\n") == 1
    assert sizes(100, side=4) == [128, 128]
    assert not capfd.readouterr().err
    wide = nn.Sequential(*cnn(), nn.Linear(10, 20_000), nn.Linear(20_000, 10))
    assert eestudy.add_exits(wide, ["1"], (1, 8, 8)).heads["1"][-1].in_features == 128
    published = eestudy.MultiExit(build_backbone("resnet-tiny", (1, 8, 8), 1000))
    assert published.heads["1"][-1].in_features == 16 * published.backbone.feature_shapes()[0][0]
