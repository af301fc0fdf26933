"""What a user's model gives is looked at before it is cut, and what is asked of a network is checked in one line."""

# Wrong types are given on purpose, and modules are looked into.
# mypy: disable-error-code="arg-type, union-attr, assignment, operator, override, index, call-arg, attr-defined"

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eestudy
from eestudy import dynamics, evaluation, export
from eestudy.models import exit_costs


def mlp(*end: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    return nn.Sequential(*layers, *end)


class Tokens(nn.Module):
    """Attention over tokens; `read` says which of them its classifier reads, `causal` who sees whom."""

    def __init__(self, read: Callable[[Tensor], Tensor], causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.read = nn.Embedding(20, 8), read
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
        self.out = nn.Linear(8, 3)
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1) if causal else torch.zeros(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        for block in self.blocks:
            x = block(x, src_mask=self.mask)
        return self.out(self.read(x))


class Squeezed(nn.Module):
    """Pools its maps and squeezes what is left, with one sample its batch too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).relu()).mean((2, 3), keepdim=True).squeeze())


class Recurrent(nn.Module):
    """Two recurrent layers, whose second value, their last states, is dropped or never unpacked."""

    def __init__(self, unpacked: bool, layer: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = layer(5, 8, batch_first=True), layer(8, 8, batch_first=True)
        self.out, self.unpacked = nn.Linear(8, 4), unpacked

    def forward(self, x: Tensor) -> Tensor:
        if self.unpacked:
            x, _ = self.first(x)
            x, _ = self.second(x)
        else:
            x = self.second(self.first(x)[0])[0]
        return self.out(x[:, -1])


class Settings:
    """An object that torch.fx cannot write down."""

    scale = 2.0


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, settings: Settings) -> Tensor:
        return self.linear(x).relu() * settings.scale


class Passed(nn.Module):
    """Hands the object from block to block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.out = nn.ModuleList(Scaled() for _ in range(3)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        settings = Settings()
        for block in self.blocks:
            x = block(x, settings)
        return self.out(x)


def refused(call: Callable[[], Any], line: str) -> None:
    with pytest.raises(eestudy.EestudyError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_probabilities_are_refused_and_logits_are_not():
    wrong: dict[str, nn.Module] = {
        "probabilities that sum to 1": nn.Softmax(1),
        "of a sigmoid": nn.Sigmoid(),
    }
    for line, end in wrong.items():
        refused(partial(eestudy.add_exits, mlp(end), after=["2"], input_shape=(1, 8, 8)), line)
    for right in (nn.Identity(), nn.LogSoftmax(1), nn.ReLU()):
        assert eestudy.add_exits(mlp(right), after=["2"], input_shape=(1, 8, 8)).num_exits == 2


def test_an_output_without_its_batch_is_refused():
    refused(
        lambda: eestudy.add_exits(Squeezed(), after=["first"], input_shape=(3, 8, 8)),
        r"model: gives \(3,\) for one sample where \(1, 3\) is needed",
    )


@pytest.mark.parametrize(
    ("read", "causal", "kind"),
    [
        (lambda x: x[:, 0], False, "tokens"),
        (lambda x: x.mean(1), False, "sequence"),
        (lambda x: x[:, -1], True, "sequence"),
    ],
)
def test_heads_read_the_tokens_that_the_classifier_reads(read, causal, kind, capfd):
    network = eestudy.add_exits(Tokens(read, causal), after=["blocks.0"], input_shape=(6,)).eval()
    assert network.backbone.kind == kind
    assert ("heads pool all of them" in capfd.readouterr().err) == (kind == "sequence")
    x = torch.randint(0, 20, (8, 6))
    x[:, 0] = 7
    assert network(x)[0].std(0).max() > 1e-4, "one answer for all that begin alike"


def test_the_kind_that_is_given_stays():
    given = eestudy.add_exits(Tokens(lambda x: x.mean(1)), after=["blocks.0"], input_shape=(6,), kind="tokens")
    assert given.backbone.kind == "tokens"


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize("name", ["first", "getitem"])
def test_an_exit_after_a_recurrent_layer(name, unpacked, layer):
    model = Recurrent(unpacked, layer)
    end = "getitem_2" if unpacked else "getitem_1"
    network = eestudy.add_exits(model, [name], (6, 5), kind="sequence-last", classifier_after=end).eval()
    x = torch.randn(7, 6, 5)
    assert torch.equal(network(x)[-1], model.eval()(x))
    rule = evaluation.max_probability(0.3)
    logits, exits = network.predict(x, rule)
    whole = torch.stack(network(x))
    assert torch.allclose(logits, whole[exits - 1, range(7)], atol=1e-5)


def test_what_fx_cannot_write_down_is_cut_by_export():
    model = Passed().eval()
    network, x = eestudy.add_exits(model, after=["blocks.1"], input_shape=(8,)).eval(), torch.randn(5, 8)
    assert torch.equal(network(x)[-1], model(x))


NETWORK = eestudy.add_exits(mlp(), after=["2"], input_shape=(1, 8, 8)).eval()
X = torch.randn(5, 1, 8, 8)
STOP = evaluation.max_probability(0.3)
PAIRS = [(X, torch.tensor([0, 1, 2, 3, 0]))]


SAFE = [
    X.numpy(),
    X.double(),
    X.half(),
    X.bfloat16(),
    list(X),
    tuple(X),
    list(X.numpy()),
    X.numpy().astype(float),
    X.tolist(),
]


@pytest.mark.parametrize("given", SAFE)
def test_what_is_safe_is_converted(given):
    logits, exits = NETWORK.predict(given, STOP)
    rounded = given.float() if isinstance(given, Tensor) else X
    wanted = NETWORK.predict(rounded, STOP)
    assert torch.equal(logits, wanted[0])
    assert torch.equal(exits, wanted[1])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (X[0], r"x: got shape \(1, 8, 8\).* takes \(B, 1, 8, 8\).*; give one sample as x\[None\]"),
        (X[0, 0], r"x: got shape \(8, 8\)"),
        (X.byte(), "of torch.uint8, but the network takes .*, normalized as in training"),
        (X.long(), "of torch.int64"),
        (torch.randn(2, 1, 4, 4), r"x: got shape \(2, 1, 4, 4\).*, and others do not go through it"),
        ("text", "x: str cannot be made one tensor of samples"),
        ([X[0], X[0, :, :4]], "x: list cannot be made one tensor of samples"),
        ([], r"x: got shape \(0,\)"),
    ],
)
def test_what_would_need_a_guess_is_refused(given, line):
    refused(lambda: NETWORK.predict(given, STOP), line)


def test_what_a_network_gives_is_what_simulation_takes():
    answers = [each.detach() for each in NETWORK(X)]
    assert (evaluation.simulate(answers, STOP) == NETWORK.predict(X, STOP)[1].numpy()).all()
    assert eestudy.MultiExit(NETWORK.backbone, exits=1).exit_stages == (1,)


def test_an_empty_batch_is_none_that_is_wrong():
    assert len(NETWORK.predict(X[:0], STOP)[0]) == 0


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda c: eestudy.run(c, model=mlp()), r"model: give a MultiExit, got Sequential; eestudy.add_exits"),
        (lambda c: eestudy.run({"architecture": "mlp"}), r"config: give a RunConfig, got dict"),
        (lambda c: eestudy.MultiExit(mlp()), "backbone: give a Backbone, got Sequential"),
        (lambda c: export.export(cast(Any, mlp()), "never", STOP), "export: give a MultiExit, got Sequential"),
        (lambda c: eestudy.add_exits(np.tanh, after=["a"]), "model: give a torch.nn.Module, got ufunc"),
        (lambda c: eestudy.add_exits(mlp(), after=None), r"nodes: \[None\] is not valid"),
        (lambda c: eestudy.add_exits(mlp(), after=[]), "nodes: the list is empty"),
        (lambda c: exit_costs(mlp()), "model: give a MultiExit, got Sequential; eestudy.add_exits"),
        (lambda c: dynamics.gradient_dominance(mlp(), PAIRS), "model: give a MultiExit, got Sequential"),
        (lambda c: dynamics.stage_ranks(mlp(), PAIRS), "model: give a MultiExit, got Sequential"),
        (lambda c: dynamics.landscape(mlp(), PAIRS, points=3), "model: give a MultiExit, got Sequential"),
        (lambda c: dynamics.linear_path(NETWORK, mlp(), PAIRS), "model_b: give a MultiExit, got Sequential"),
        (lambda c: dynamics.distance(mlp(), NETWORK), "model_a: give a MultiExit, got Sequential"),
        (lambda c: evaluation.latency(mlp(), STOP, X), "model: give a MultiExit, got Sequential"),
        (
            lambda c: eestudy.MultiExit(NETWORK.backbone, exits="1"),
            r"exits: 1 is not valid for 2 stages; give 'all' or different stages from 1 to 1",
        ),
        (lambda c: eestudy.MultiExit(NETWORK.backbone, exits=[1.5]), r"exits: \[1.5\] is not valid"),
        (lambda c: evaluation.simulate("logits", STOP), "logits: str is not one array"),
        (lambda c: evaluation.simulate([X, X[:2]], STOP), "logits: list is not one array"),
        (lambda c: eestudy.add_exits(mlp(), after=[2]), r"nodes: \[2\] is not valid"),
    ],
)
def test_another_type_than_is_needed_is_refused(call, line):
    refused(lambda: call(eestudy.RunConfig(architecture="own", dataset="digits", strategy="joint")), line)
