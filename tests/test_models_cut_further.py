"""Models that torch.fx cannot cut, several outputs, repeated modules, randomness in Python, and what is refused."""

# Wrong types are given on purpose, and modules are looked into.
# mypy: disable-error-code="arg-type, union-attr, assignment, operator, override, index, call-arg, attr-defined"

from __future__ import annotations

import random
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eestudy
from eestudy.config import EestudyError
from eestudy.evaluation import max_probability
from eestudy.models.backbone import counted, flop_counter
from eestudy.models.cut.exporting import InBothModes


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def body(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for block in self.blocks:
            x = torch.relu(block(x))
        return x

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


def with_exits(model: nn.Module, after: tuple[str, ...] = ("blocks.0", "blocks.1"), **more: Any) -> eestudy.MultiExit:
    return eestudy.add_exits(model, after=after, input_shape=more.pop("input_shape", (8,)), **more)


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def check(model: nn.Module, network: eestudy.MultiExit, x: Tensor, logits: Tensor) -> None:
    """The last exit is the model's output in both modes, its weights are the model's, and early exit is exact."""
    network.eval()
    assert torch.equal(network(x)[-1], logits)
    own = {id(weight) for weight in model.parameters()}
    assert {id(weight) for weight in network.backbone.parameters()} == own
    rule = max_probability(float(network(x)[0].detach().softmax(1).amax(1).median()))
    left, exits = network.predict(x, rule)
    every = network(x)
    for row, exit in enumerate(exits.tolist()):
        torch.testing.assert_close(left[row], every[exit - 1][row])
    assert len(set(exits.tolist())) > 1
    network.train()
    sum(each.sum() for each in network(x)).backward()
    assert all(weight.grad is not None for weight in model.parameters())


@dataclass
class Scores:
    scores: Tensor
    hidden: Tensor


class Mapped(Base):
    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return {"logits": self.head(hidden), "hidden": hidden}


class Paired(Base):
    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return self.head(hidden), hidden


class Named(Base):
    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        return Scores(self.head(hidden), hidden[:, None])


@pytest.mark.parametrize(
    ("kind", "output", "said"),
    [(Mapped, None, "'logits'"), (Mapped, "logits", ""), (Paired, 0, ""), (Named, None, "'scores'")],
)
def test_outputs(kind, output, said, capsys):
    model, x = made(kind), torch.randn(6, 8)
    network = with_exits(model, output=output)
    assert said in capsys.readouterr().err
    given = model(x)
    logits = given["logits"] if isinstance(given, dict) else given[0] if isinstance(given, tuple) else given.scores
    check(model, network, x, logits)


@pytest.mark.parametrize(
    ("kind", "output", "wanted"),
    [
        (Paired, None, r"output: name which of the model's outputs are the logits: 0 \(2, 5\), 1 \(2, 16\)"),
        (Mapped, "logit", "output: unknown name 'logit'; nearest: logits"),
        (Base, "logits", "output: 'logits' is not valid: the model gives one tensor; leave output out"),
    ],
)
def test_outputs_that_are_not_there(kind, output, wanted):
    with pytest.raises(EestudyError, match=wanted):
        with_exits(made(kind), output=output)


class Shared(Base):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(16, 16)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(self.blocks[0](x))
        return self.head(x)


def test_a_repeated_module_is_cut_at_a_call():
    model, x = made(Shared), torch.randn(6, 8)
    check(model, with_exits(model, ("blocks.0@1", "blocks.0@2")), x, model(x))
    with pytest.raises(EestudyError, match=r"'blocks.0' is called 3 times.*valid: blocks.0@1, blocks.0@2, blocks.0@3"):
        with_exits(made(Shared), ("blocks.0",))
    with pytest.raises(EestudyError, match=r"'blocks.0@4' is no call of 'blocks.0'; valid: blocks.0@1"):
        with_exits(made(Shared), ("blocks.0@4",))


class Inline(Base):
    """A module made in forward, and a step that training has and evaluation has not."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.ReLU()(self.first(x))
        x = self.blocks[1](torch.tanh(self.blocks[0](x)))
        if self.training:
            x = torch.dropout(x, 0.5, True)
        return self.head(self.blocks[2](x))


def test_what_fx_cannot_follow_is_cut_by_export(capsys):
    model, x = made(Inline), torch.randn(6, 8)
    network = with_exits(model)
    assert "cut by the graph of torch.export" in capsys.readouterr().err
    assert all(isinstance(stage, InBothModes) for stage in network.backbone.stages)
    check(model, network, x, model(x))
    network.train()
    torch.manual_seed(1)
    dropped = network(x)[-1]
    torch.manual_seed(1)
    assert torch.equal(dropped, model.train()(x))
    config = eestudy.RunConfig(architecture="own", dataset="own", strategy="disjoint", start="trained", epochs=1)
    assert config.id


class PythonDraws(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x if self.training and random.random() < 0.5 else block(x)
        return self.head(x)


class NumpyDraws(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * (1.0 if not self.training else float(np.random.rand())))


class TwoInputs(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.body(x + y))


class Locked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Exhausted(Base):
    def forward(self, x: Tensor) -> Tensor:
        return next(iter(()))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (PythonDraws, "it draws random numbers, which would be drawn once and for all"),
        (NumpyDraws, "it draws random numbers, which would be drawn once and for all"),
        (TwoInputs, "model: its forward needs x, y; wrap it in a module whose forward takes one tensor"),
        (Locked, "model: it cannot be copied, as looking at it takes"),
        (Exhausted, "input_shape: (8,) does not go through the model: StopIteration"),
    ],
)
def test_refused_in_one_line(kind, wanted):
    model, state = made(kind), random.getstate()
    with pytest.raises(EestudyError) as caught:
        with_exits(model)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
    assert random.getstate() == state


def test_inference_mode():
    model, x = made(Base), torch.randn(6, 8)
    with torch.inference_mode():
        network = with_exits(model)
        inside = made(Base)
    check(model, network, x, model(x))
    with pytest.raises(EestudyError, match=r"made inside torch.inference_mode"):
        with_exits(inside)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.gru = nn.GRU(16, 12, batch_first=True, bidirectional=True)
        self.mix = nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        return self.head(self.mix(x).mean(1))


def test_recurrent_layers_say_where_their_features_are():
    model, x = made(Recurrent), torch.randn(6, 7, 8)
    network = with_exits(model, ("lstm",), input_shape=(7, 8))
    assert network.backbone.kind == "sequence"
    check(model, network, x, model(x))


transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 50, "num_labels": 4, "pad_token_id": 0}
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, **SIZES}
GROUP = "albert.encoder.albert_layer_groups"
IMAGES = {"image_size": 16, "num_labels": 4, "patch_size": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Bert": ("SequenceClassification", TEXT, "bert.encoder.layer.0"),
    "Roberta": ("SequenceClassification", TEXT, "roberta.encoder.layer.0"),
    "Electra": ("SequenceClassification", {**TEXT, "embedding_size": 16}, "electra.encoder.layer.0"),
    "Albert": (
        "SequenceClassification", {**TEXT, "embedding_size": 16}, f"{GROUP}.0.albert_layers.0@1"
    ),
    "DistilBert": (
        "SequenceClassification", {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, **SIZES},
        "distilbert.transformer.layer.0",
    ),
    "GPT2": ("SequenceClassification", {"n_embd": 16, "n_layer": 2, "n_head": 2, **SIZES}, "transformer.h.0"),
    "Llama": ("SequenceClassification", {**TEXT, "num_key_value_heads": 1}, "model.layers.0"),
    "ViT": ("ImageClassification", {**TEXT, **IMAGES}, "vit.layers.0"),
    "Swin": (
        "ImageClassification",
        {**IMAGES, "patch_size": 1, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        "swin.encoder.layers.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family):
    task, settings, place = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, f"{family}For{task}")(config).eval()
    text = "vocab_size" in settings
    x = torch.randint(1, 50, (6, 9)) if task.startswith("Seq") else torch.randn(6, 3, 16, 16)
    network = eestudy.add_exits(model, after=[place], input_shape=tuple(x.shape[1:]))
    network.eval()
    assert text or x.ndim == 4
    assert torch.equal(network(x)[-1], model(x).logits)
    left, exits = network.predict(x, max_probability(float(network(x)[0].detach().softmax(1).amax(1).median())))
    assert set(exits.tolist()) == {1, 2}
    torch.testing.assert_close(
        left, torch.stack([network(x)[exit - 1][row] for row, exit in enumerate(exits.tolist())])
    )


def test_an_lstm_costs_what_its_products_cost():
    """torch's counter leaves the processor's fused LSTM out: 8 products of (24 + 32) x 32 a step, twice backwards."""
    lstm = nn.LSTM(24, 32, batch_first=True)
    (_, flops), forward = counted(lstm, torch.randn(1, 11, 24)), 8 * 11 * (24 + 32) * 32
    assert flops == forward
    with flop_counter() as counter:
        lstm(torch.randn(1, 11, 24))[0].sum().backward()
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_alone_behind_the_last_exit(kind):
    """The last stage ends with what a layer's tuple holds, where nothing but such layers are left."""

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = kind(6, 16, batch_first=True), kind(16, 16, batch_first=True)
            self.classify = nn.Linear(16, 3)

        def forward(self, x):
            x, _ = self.first(x)
            x, _ = self.second(x)
            return self.classify(x[:, -1])

    model, x = Stack().eval(), torch.randn(4, 9, 6)
    network = eestudy.add_exits(model, after=["first"], input_shape=(9, 6))
    assert torch.equal(network(x)[-1], model(x))


def test_a_head_reads_in_training_what_it_reads_in_evaluation():
    """Where training takes a step more, nodes of one name are other steps: a block's end stays its end."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x, *, scale=1.0):
            y = self.inner(x) * scale
            if self.training:
                y = y + 0 * y
            return x + y

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))
            self.last = nn.Linear(8, 3)

        def forward(self, x):
            for block in self.blocks:
                x = block(x, scale=0.5)
                if x.shape[0] > 10**6:  # torch.fx does not follow this
                    x = x[:1]
            return self.last(x)

    model, x = Net(), torch.randn(4, 8)
    network = eestudy.add_exits(model, after=["blocks.0", "blocks.1"], input_shape=(8,))
    given = []
    hook = model.blocks[1].register_forward_hook(lambda module, inputs, result: given.append(result))
    for training in (False, True):
        model.train(training)
        model(x)
        network.train(training)
        state = network.advance(2, network.advance(1, x))
        assert torch.equal(network.backbone.features(state), given[-1]), training
    hook.remove()


def test_a_module_that_is_given_a_parameter_is_counted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.given, self.drop = nn.Parameter(torch.ones(8)), nn.Dropout()
            self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.second(self.first(x) + self.drop(self.given)))

    network = eestudy.add_exits(Net(), after=["first"], input_shape=(8,))
    assert network.costs().backbone == 2 * (8 * 8 + 8 * 8 + 8 * 3)
