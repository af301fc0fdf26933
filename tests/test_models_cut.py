"""Exits for any model: its own output stays the last one, to the bit, and what cannot be cut is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.regnet import BlockParams

import eestudy
from eestudy.config import EestudyError
from eestudy.evaluation import per_exit, scores, simulate
from eestudy.models import Backbone, MultiExit, exit_costs

add_exits = eestudy.add_exits


class Functional(nn.Module):
    """No modules but those with weights; dropout by self.training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.conv3, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 4 * 4, 5)
        self.drop = 0.3

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or not x.shape[1] == 1:
            raise ValueError("images of one channel")
        x = F.relu(self.conv1(x))
        x = F.dropout(F.max_pool2d(F.relu(self.conv2(x)), 2), self.drop, self.training)
        x = F.dropout2d(F.relu(self.conv3(x)), self.drop, training=self.training)
        return self.fc(x.reshape(x.shape[0], -1))


class Spanning(nn.Module):
    """A residual connection and the batch size of the input go over the cut after conv2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(each, 4, 3, padding=1) for each in (2, 4, 4))
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        first = self.conv1(x)
        second = self.conv2(torch.relu(first))
        return self.fc((self.norm(self.conv3(second)) + first).mean((2, 3)).view(batch, 4))


class InPlace(nn.Module):
    """The input is changed in place, and what is cut off: by a ReLU always, by dropout in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.4, inplace=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.drop(self.b(self.relu(self.a(x.mul_(2)))))))


class Shared(nn.Module):
    """One weight under two names, one block in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.block, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.block(torch.tanh(self.a(x))))
        return self.fc(torch.tanh(self.block(torch.tanh(self.b(x)))))


class Tokens(nn.Module):
    """A transformer with a class token and learned places, on (B, T, 5) or on token ids (B, T)."""

    def __init__(self, ids: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8) if ids else nn.Linear(5, 8)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.randn(1, 7, 8))
        layer = partial(nn.TransformerEncoderLayer, 8, 2, 16, dropout=0.2, batch_first=True)
        self.blocks = nn.ModuleList(layer() for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.places[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


def sequential() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 36, 3),
    )  # fmt: skip


def on_sequences() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.GELU(), nn.Conv1d(4, 6, 3, stride=2), nn.ReLU(),
        nn.Conv1d(6, 6, 3, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def spectral() -> nn.Module:
    layers = [nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)) for _ in range(3)]
    return nn.Sequential(*layers, nn.Linear(6, 2))


def vit() -> nn.Module:
    return tv.VisionTransformer(16, 8, 3, 2, 16, 32, dropout=0.1, num_classes=5)


def swin() -> nn.Module:
    return tv.SwinTransformer([2, 2], 8, [2, 1, 1], [1, 1, 2], [4, 4], num_classes=5)


def regnet() -> nn.Module:
    return tv.RegNet(BlockParams([1, 1, 2], [8, 8, 16], [8, 8, 8], [1.0] * 3, [2] * 3, 0.25), num_classes=5)


def efficientnet() -> nn.Module:
    """With stochastic depth, which draws numbers in training."""
    layers = [
        MBConvConfig(ratio, 3, 2, before, after, 2, 1.0, 1.0)
        for ratio, before, after in ((1, 8, 8), (4, 8, 8), (4, 8, 16))
    ]
    return tv.EfficientNet(layers, dropout=0.2, stochastic_depth_prob=0.5, num_classes=5)


# name -> (model, after, input_shape, the kind found, parts of the state after the first cut)
CASES: dict[str, tuple[Callable[[], nn.Module], list[str], tuple[int, ...], str, int]] = {
    "sequential": (sequential, ["2", "3"], (1, 6, 6), "maps", 1),
    "functional": (Functional, ["conv1", "conv2"], (1, 8, 8), "maps", 1),
    "functional by node": (Functional, ["relu", "max_pool2d"], (1, 8, 8), "maps", 1),
    "spanning": (Spanning, ["conv2"], (2, 5, 5), "maps", 3),
    "in place": (InPlace, ["a", "b"], (6,), "vector", 1),
    "shared": (Shared, ["a"], (6,), "vector", 1),
    "spectral norm": (spectral, ["0", "1"], (6,), "vector", 1),
    "tokens": (partial(Tokens, False), ["blocks.0", "blocks.1"], (6, 5), "tokens", 1),
    "token ids": (partial(Tokens, True), ["blocks.0", "blocks.1"], (6,), "tokens", 1),
    "sequence": (on_sequences, ["2", "3"], (2, 12), "sequence", 1),
    "resnet18": (partial(tv.resnet18, num_classes=5), ["layer1.1", "layer3"], (3, 32, 32), "maps", 1),
    "inside a block": (partial(tv.resnet18, num_classes=5), ["layer2.1.conv1"], (3, 32, 32), "maps", 2),
    "regnet": (
        regnet, ["trunk_output.block2", "trunk_output.block3.block3-0"], (3, 32, 32), "maps", 1,
    ),
    "shufflenet": (partial(tv.shufflenet_v2_x0_5, num_classes=5), ["stage2", "stage3"], (3, 32, 32), "maps", 1),
    "densenet": (
        lambda: tv.DenseNet(4, (2, 2, 2), 8, num_classes=5),
        ["features.denseblock1", "features.transition2"], (3, 32, 32), "maps", 1,
    ),
    "mobilenet_v2": (
        partial(tv.mobilenet_v2, width_mult=0.25, num_classes=5), ["features.6", "features.12"], (3, 32, 32), "maps", 1,
    ),
    "efficientnet": (
        efficientnet, ["features.2", "features.3.0"], (3, 32, 32), "maps", 1,
    ),
    "vit": (vit, ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"], (3, 16, 16), "tokens", 1),
    "swin": (swin, ["features.1.0", "features.3"], (3, 32, 32), "maps", 1),
}  # fmt: skip


@cache
def built(name: str) -> tuple[nn.Module, MultiExit]:
    build, after, shape, _, _ = CASES[name]
    torch.manual_seed(0)
    model = build()
    return model, add_exits(model, after, shape)


def made(name: str) -> tuple[nn.Module, MultiExit]:
    """A model and its network for one test alone; they share their weights, as those made once do."""
    return copy.deepcopy(built(name))


def inputs(network: MultiExit, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if network.backbone.input_dtype == torch.int64:
        return torch.randint(20, (batch, *network.input_shape), generator=generator)
    return torch.randn(batch, *network.input_shape, generator=generator)


def seeded(module: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(2)
    return module(x.clone())


def storages(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


@pytest.mark.parametrize("name", CASES)
def test_the_last_exit_is_the_models_own_output(name):
    model, network = made(name)
    assert storages(built(name)[1].backbone) <= storages(built(name)[0])
    _, after, _, kind, parts = CASES[name]
    assert (network.backbone.kind, network.num_exits) == (kind, len(after) + 1)
    x = inputs(network)
    state = network.backbone.stages[0](x.clone())
    assert (len(state) if isinstance(state, tuple) else 1) == parts

    # Training first, on a copy of the model: both then have moved their statistics by one step.
    untouched = copy.deepcopy(model)
    wanted, found = seeded(untouched, x), seeded(network.backbone, x)
    assert torch.equal(found, wanted)
    assert all(
        torch.equal(mine, own) for mine, own in zip(model.state_dict().values(), untouched.state_dict().values())
    )
    wanted.square().mean().backward()
    found.square().mean().backward()
    for mine, own in zip(model.parameters(), untouched.parameters(), strict=True):
        assert (mine.grad is None) == (own.grad is None)
        assert mine.grad is own.grad is None or torch.equal(mine.grad, own.grad)  # type: ignore[arg-type]

    network.eval()
    assert torch.equal(network(x.clone())[-1], untouched.eval()(x.clone()))


@pytest.mark.parametrize("name", CASES)
def test_all_exits_train_the_models_own_weights(name):
    model, network = made(name)
    assert network.training
    assert storages(network.backbone) <= storages(model)
    x = inputs(network)
    logits = network(x.clone())
    assert [tuple(each.shape) for each in logits] == [(4, network.num_classes)] * network.num_exits
    torch.stack([F.cross_entropy(each, torch.zeros(4, dtype=torch.long)) for each in logits]).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    weight = next(model.parameters())
    before = network.eval()(x.clone())[0]
    with torch.no_grad():
        weight.add_(1)
    assert not torch.equal(network(x.clone())[0], before)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_predict_equals_the_simulation(name):
    _, network = made(name)
    network.eval()
    x = inputs(network, 7)
    stored = torch.stack(network(x.clone())).numpy()
    # Half of the samples leave at each exit: thresholds in the middle between two scores, as bits depend on the batch.
    ranked = torch.from_numpy(scores(stored)).double().sort(1).values
    rule = per_exit((ranked[:, 3] + ranked[:, 4]) / 2)
    logits, exit_index = network.predict(x.clone(), rule)
    assert exit_index.tolist() == simulate(stored, rule).tolist()
    assert len(set(exit_index.tolist())) > 1
    wanted = torch.from_numpy(stored)[exit_index - 1, torch.arange(7)]
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_copies_are_whole_and_apart(name):
    _, network = made(name)
    copied = copy.deepcopy(network)
    assert not storages(copied) & storages(network)
    assert len(storages(copied)) == len(storages(network)), "what was shared is shared in the copy"
    x = inputs(network)
    assert torch.equal(seeded(copied, x)[-1], seeded(network, x)[-1]), "in training, dropout included"
    other = made(name)[1]
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(network.state_dict())
    for parameter in copied.parameters():
        parameter.zero_()
    assert all(torch.equal(*pair) for pair in zip(other.eval()(x.clone()), network.eval()(x.clone())))


@pytest.mark.parametrize("name", ["functional", "spanning", "in place", "tokens", "shufflenet", "swin"])
def test_autocast_gives_what_the_model_gives_there(name):
    model, network = made(name)
    x = inputs(network)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found, logits = seeded(copy.deepcopy(model), x), seeded(network.backbone, x), network(x.clone())
    assert torch.equal(found, wanted)
    torch.stack([each.float().mean() for each in logits]).sum().backward()


@pytest.mark.parametrize("name", ["spanning", "densenet", "shufflenet", "mobilenet_v2", "swin"])
@torch.no_grad()
def test_channels_last(name):
    model, network = made(name)
    network.eval().to(memory_format=torch.channels_last)
    x = inputs(network).contiguous(memory_format=torch.channels_last)
    assert torch.equal(network(x.clone())[-1], model(x.clone()))
    assert (
        network.predict(x.clone(), per_exit([float("inf")] * network.num_exits))[1].tolist() == [network.num_exits] * 4
    )


def test_one_call_on_a_torchvision_model_and_what_it_costs():
    network = add_exits(tv.resnet18(), after=["layer2", "layer3"])
    assert (network.input_shape, network.num_classes, network.num_exits) == ((3, 224, 224), 1000, 3)
    assert network.backbone.feature_shapes() == [(128, 28, 28), (256, 14, 14), (512, 7, 7)]
    costs = exit_costs(network)
    assert abs(costs.backbone / 2 / 1.814e9 - 1) < 0.01, "torchvision states 1.81 billion multiply-adds"
    assert sum(p.numel() for p in network.backbone.parameters()) == 11_689_512, "torchvision's own count"


def test_heads_read_channels_first_where_the_model_has_them_last():
    assert made("swin")[1].backbone.feature_shapes() == [(8, 16, 16), (16, 8, 8), (32, 4, 4)]


def test_the_input_shape_is_found_where_the_model_tells():
    linear = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 2))
    assert add_exits(linear, ["0"]).input_shape == (9,)
    flattening = nn.Sequential(*sequential()[:-1], nn.Linear(4 * 28 * 28, 3))
    assert add_exits(flattening, ["0"]).input_shape == (1, 28, 28)
    model = sequential()
    with pytest.raises(EestudyError, match=r"shape: missing; \(1, 224, 224\), .*most likely \(1, height, width\)"):
        add_exits(model, ["0"])
    model.input_shape = [1, 6, 6]  # type: ignore[assignment]
    assert add_exits(model, ["0"]).input_shape == (1, 6, 6)
    model.input_shape = [7, 3]  # type: ignore[assignment]
    with pytest.raises(EestudyError, match=r"input_shape: \(7, 3\) does not go through the model"):
        add_exits(model, ["0"])


def test_it_leaves_the_model_as_it_was():
    model = sequential().train()
    model[1].eval()
    model.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    backbone = eestudy.from_model(model, nodes=["2"], input_shape=(1, 6, 6))
    assert torch.equal(state, torch.get_rng_state())
    assert backbone.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert add_exits(model, ["2"], (1, 6, 6)).training
    assert [module.training for module in model] == [True, False] + [True] * 7
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not add_exits(model.eval(), ["2"], (1, 6, 6)).training


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 1e9 else torch.relu(self.inner(x))


class Mixing(nn.Module):
    """Takes the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x - x.mean(0)))


class Noisy(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x) + torch.randn(6) * self.training))


class Counting(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.calls: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.c(self.b(self.a(x)))


class ByBatch(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)) if x.shape[0] > 1 else self.b(self.a(x) + 0))


class Stacked(Mixing):
    """Its features travel as (2, B, 6) between a and c."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.stack([x, self.a(x)]))[1])


class Unused(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(F.linear(x, self.a.weight)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.mid, self.fc = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.mid(self.rnn(x)[0][:, -1]))


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), *between, nn.Linear(6, 6), nn.Linear(6, 2))


WRONG: dict[str, tuple[Callable[..., nn.Module], list[str], dict[str, Any], str]] = {
    "unknown": (tv.resnet18, ["layer22"], {"input_shape": (3, 32, 32)}, "unknown name 'layer22'; nearest: layer2"),
    "empty": (chain, [], {}, "nodes: the list is empty"),
    "two the same": (chain, ["0", "0"], {}, "name one place twice"),
    "called twice": (Shared, ["block"], {}, r"'block' is called 2 times, .*; valid: block@1, block@2"),
    "untraceable": (
        partial(chain, Branching()), ["1.inner"], {},
        r"'1.inner' cannot be cut out of '1'.*Branching: .*nearest: 0, 1, 2",
    ),
    "wholly so": (Branching, ["inner"], {}, r"model: 'inner' cannot be cut .* Branching: .*Backbone.from_stages"),
    "no rows": (Stacked, ["b"], {}, r"'b' gives a tensor of shape \(2, 2, 6\).*nearest: a"),
    "not called": (Unused, ["a"], {}, r"'a' is not called by itself in the forward pass; valid: c"),
    "nothing left": (tv.resnet18, ["layer4"], {"input_shape": (3, 32, 32)}, "between 'layer4' and the classifier"),
    "wrong shape": (tv.resnet18, ["layer1"], {"input_shape": (1, 32, 32)}, r"\(1, 32, 32\) does not go"),
    "no shape": (tv.resnet18, ["layer1"], {"input_shape": 32}, r"input_shape: 32 is not valid; .*\(3, height, width\)"),
    "length": (on_sequences, ["2"], {}, r"input_shape: missing; .*most likely \(2, length\)"),
    "kind": (chain, ["0"], {"kind": "map"}, "kind: unknown name 'map'; nearest: maps"),
    "other kind": (chain, ["0"], {"kind": "maps"}, r"kind: 'maps' does not fit features of shape \(B, 6\) after '0'"),
    "two kinds": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 5), nn.Linear(5, 5), nn.Linear(5, 2)),
        ["0", "2"], {"input_shape": (1, 6, 6)}, "features of one kind, found {'maps': '0', 'vector': '2'}",
    ),
    "not told": (
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 5), nn.Flatten(), nn.Linear(25, 2)),
        ["0"], {"input_shape": (5, 5)}, r"kind: cannot be told .* give one of sequence, tokens, sequence-last",
    ),
    "no layer": (nn.Sequential, ["0"], {}, r"input_shape: missing; .*\(channels, height, width\)"),
    "maps out": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)),
        ["0"], {}, r"model: expected logits of shape \(B, C\) from its forward, found \(2, 2, 224, 224\) for B = 2",
    ),
    "mixes samples": (Mixing, ["a"], {}, "depends on the others in the batch"),
    "two heads in training": (
        partial(tv.googlenet, num_classes=5, init_weights=False), ["inception4a"], {"input_shape": (3, 64, 64)},
        "'inception4a' cannot be cut .* its steps in training are not those in evaluation",
    ),
    "end": (chain, ["0"], {"classifier_after": "0"}, "classifier_after: '0' does not come after the last"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_cut_is_named_in_one_line(name):
    build, after, settings, wanted = WRONG[name]
    with pytest.raises(EestudyError, match=wanted) as caught:
        add_exits(build(), after, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Noisy, ByBatch, Counting])
def test_what_fx_would_freeze_is_cut_by_export(kind):
    """Noise that is drawn at each call, a way that depends on the batch's size, and a buffer that counts."""
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(5, 6)
    network = add_exits(model, ["a"])
    for training in (False, True):
        model.train(training)
        network.train(training)
        for _ in range(2):
            torch.manual_seed(1)
            wanted = copy.deepcopy(model)(x)
            torch.manual_seed(1)
            assert torch.equal(network(x)[-1], wanted)
    if kind is Counting:
        assert float(model.calls) == 4 + float(kind().calls), "one a call, and none of those that looked at it"


def test_kind_head_and_end_can_be_given():
    model = nn.Sequential(
        nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Flatten(), nn.Linear(25, 9), nn.Linear(9, 2)
    )
    network = add_exits(model, ["0"], (5, 5), "token", 2, {"width": 3}, kind="tokens", classifier_after="2")
    assert (network.backbone.kind, network.head(1)[1].weight.shape[0]) == ("tokens", 3)
    assert network.backbone.feature_shapes() == [(5, 5), (5, 5)]
    assert [len(list(part.parameters())) for part in (network.backbone.stages[1], network.backbone.classifier)] == [
        2,
        6,
    ]


def test_what_differs_in_training_keeps_its_name_in_the_code():
    """The code of what is cut out is in the ids of runs, which may change with SCHEMA alone."""
    code = "".join(str(stage.code) for stage in made("functional")[1].backbone.stages)
    assert "eestudy_models_tracing_either(" in code


def test_stages_of_ones_own():
    conv = nn.Conv2d(1, 3, 3)
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone.from_stages([conv, flat], nn.Linear(3, 4), (1, 6, 6))
    assert (backbone.kind, backbone.num_classes, backbone.feature_shapes()) == ("maps", 4, [(3, 4, 4), (3,)])
    assert [tuple(each.shape) for each in MultiExit(backbone)(torch.randn(2, 1, 6, 6))] == [(2, 4)] * 2
    ids = Backbone.from_stages(
        [nn.Embedding(9, 4), nn.Flatten()], nn.Linear(12, 2), (3,), kind="tokens", input_dtype=torch.int64
    )
    assert MultiExit(ids)(torch.zeros(2, 3, dtype=torch.long))[0].shape == (2, 2)


@pytest.mark.parametrize(
    ("stages", "classifier", "settings", "wanted"),
    [
        ([], nn.Identity(), {}, "stages: the list is empty"),
        ([nn.Linear(6, 3), nn.Linear(4, 3)], nn.Identity(), {}, "stages: stage 2 does not take what it is given"),
        ([nn.GRU(6, 3, batch_first=True)], nn.Identity(), {"input_shape": (2, 6)}, "kind: cannot be told"),
        ([nn.Linear(6, 3), nn.Unflatten(1, (3, 1)), nn.Flatten()], nn.Linear(3, 2), {}, "features of one kind"),
        ([nn.Linear(6, 3), nn.Linear(3, 3)], nn.Linear(4, 2), {}, "classifier: it does not take"),
        ([nn.Linear(6, 3), nn.Linear(3, 3)], nn.Unflatten(1, (3, 1)), {}, "classifier: expected logits"),
        ([nn.Linear(6, 3), nn.Linear(3, 3)], nn.Linear(3, 2), {"kind": "maps"}, "'maps' does not fit .*valid: vector"),
        ([nn.Linear(6, 3), nn.Linear(3, 3)], nn.Linear(3, 2), {"kind": "vectors"}, "nearest: vector"),
    ],
)
def test_wrong_stages(stages, classifier, settings, wanted):
    with pytest.raises(EestudyError, match=wanted):
        Backbone.from_stages(stages, classifier, **{"input_shape": (6,), **settings})
