"""`eestudy adapt`: from a model and a folder of images to an exported early-exit network, and from a broken call to one
line.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import eestudy
from eestudy import adapt
from eestudy.adapting import steps
from eestudy.cli import main
from eestudy.config import EestudyError
from eestudy.export import Deployed
from eestudy.models.cut.places import exits_at
from eestudy.models.cut.weights import load_weights

SOURCE = """
from torch import nn

def block(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())

def net():
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(block(3, 8), block(8, 12), block(12, 16), *pooled, nn.Linear(16, 2))

number = 3
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with mine.py, w.pth and images of two classes: light from the left, or from the right."""
    folder = tmp_path_factory.mktemp("adapt")
    (folder / "mine.py").write_text(SOURCE)
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 16)
    for label, light in (("left", ramp[::-1]), ("right", ramp)):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(40):
            pixels = light[None, :, None] + generator.uniform(0, 55, (16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / label / f"{number}.png")
    torch.manual_seed(0)
    network = steps.factory(f"{folder}/mine.py:net")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, folder / "w.pth"
    )
    return folder


def command(place, *more):
    return main(["adapt", f"{place}/mine.py:net", "--data", f"{place}/images", "--epochs", "3", *more])


def test_from_a_model_and_images_to_files_that_predict(place, monkeypatch):
    """The exported files give, by onnxruntime, what the page says; a second call trains nothing."""
    out = place / "out"
    asked = ("--budget", "80%", "--exits", "2", "--weights", f"{place}/w.pth", "--out", str(out), "--lr", "0.01")
    assert command(place, *asked) == 0
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)=.?(http|//)", page)
    deployed = Deployed.load(out / "model")
    places = json.loads((out / "places.json").read_text())["after"]
    assert len(places) == 2
    assert all(f"<td>{name}</td>" in page for name in places)
    trained = sorted((out / "runs" / "phases").iterdir())
    made = adapt(
        load_weights(steps.factory(f"{place}/mine.py:net"), place / "w.pth"), str(place / "images"), "80%",
        out, exits=2, epochs=3, lr=0.01,
    )  # fmt: skip
    assert sorted((out / "runs" / "phases").iterdir()) == trained
    test = made.run.data().test
    logits, exit_index = deployed.predict(test.inputs())
    assert float((logits.argmax(-1) == test.y).float().mean()) == pytest.approx(made.test["accuracy"])
    spent = np.asarray(made.deployed.costs)[exit_index.numpy() - 1].mean() / 100
    assert spent == pytest.approx(made.test["cost"])
    assert made.deployed.cost <= 80
    assert f"{made.test['accuracy']:.1%}" in page


def test_the_normalization_the_model_was_trained_with_is_found(place, capsys):
    """A model that answers by brightness: of pixels / 255 it is right, of anything else it says one class."""

    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Conv2d(3, 3, 1, bias=False) for _ in range(2))
            self.last = nn.Linear(1, 2)
            with torch.no_grad():
                self.first.weight.copy_(torch.eye(3)[:, :, None, None])
                self.second.weight.copy_(torch.eye(3)[:, :, None, None])
                self.last.weight.copy_(torch.tensor([[-1.0], [1.0]]))
                self.last.bias.copy_(torch.tensor([0.3, -0.3]))

        def forward(self, x):
            left = self.second(self.first(x))[:, :, :, :4].mean((1, 2, 3))
            return self.last((left - 0.8).abs()[:, None])

    network = eestudy.add_exits(Bright(), after=["first"], input_shape=(3, 16, 16))
    made = adapt(network, str(place / "images"), "100%", place / "bright", epochs=1)
    assert made.run.config.dataset_args["normalization"] == "unit"
    assert "normalization: unit, with which the model is right on 100.0%" in capsys.readouterr().err


def test_with_train_validation_chooses_the_strategy(place):
    network = load_weights(steps.factory(f"{place}/mine.py:net"), place / "w.pth")
    made = adapt(network, str(place / "images"), "90%", place / "all", exits=1, train=True, epochs=2, lr=0.01)
    assert set(made.tried) == {"mixed", "joint", "disjoint"}
    assert made.tried[made.run.config.strategy] == max(made.tried.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "80"], "budget: '80' is not valid"),
        (["--budget", "1%"], "below the cheapest exit's cost"),
        (["--budget", "80%", "--data", "nowhere"], "'nowhere': no such file or folder"),
        (["--budget", "80%", "--weights", "none.pth"], "none.pth: no such file"),
        (["--budget", "80%", "--out", "."], "holds something else"),
    ],
)
def test_a_mistake_is_one_line(place, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*.onnx"))
    out = [] if "--out" in arguments else ["--out", "other"]
    assert command(place, *arguments, *out) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert sorted(place.rglob("*.onnx")) == before


@pytest.mark.parametrize("name", ["net2", "number", ""])
def test_a_factory_that_gives_no_module(place, name):
    with pytest.raises(EestudyError, match=r"^model: "):
        steps.factory(f"{place}/mine.py:{name}")


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = dict(before)
    bad = {
        "lacks 0.weight": {name: value for name, value in state.items() if name != "0.weight"},
        "model lacks: more": {**state, "more": torch.zeros(1)},
        r"0.bias \(3,\), not \(8,\)": {**state, "0.bias": torch.zeros(3)},
        "holds a list": [1, 2],
        "could run code": small(),
    }
    for said, content in bad.items():
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(EestudyError, match=said):
            load_weights(network, tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(EestudyError, match="cannot be read as weights"):
        load_weights(network, tmp_path / "w.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_places_near_the_shares_asked_for():
    """Three equal linear blocks: thirds of the FLOPs end at the blocks, whatever stands inside them."""

    def block():
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    network = nn.Sequential(block(), block(), block(), nn.Linear(16, 2))
    _, names = exits_at(network, [1 / 3, 2 / 3])
    assert names == ["0", "1"]
    with pytest.raises(EestudyError, match="no place for an exit"):
        exits_at(nn.Sequential(nn.Linear(4, 2)), [0.5])


def test_a_trained_model_by_name(tmp_path):
    """A Hugging Face model for classification from its folder, cut and equal to itself; what is none says so."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=50, num_labels=3, **small)
    given = transformers.BertForSequenceClassification(config).eval()
    given.save_pretrained(tmp_path / "bert")
    model = steps.factory(f"huggingface/{tmp_path / 'bert'}")
    x = torch.randint(5, 50, (4, 7))
    assert torch.equal(model(x).logits, given(x).logits)
    network = eestudy.add_exits(model, after=["bert.encoder.layer.0"], input_shape=(7,))
    assert torch.equal(network(x)[-1], given(x).logits)
    transformers.BertModel(config).save_pretrained(tmp_path / "plain")
    with pytest.raises(EestudyError, match="give one for classification"):
        steps.factory(f"huggingface/{tmp_path / 'plain'}")
    with pytest.raises(EestudyError, match="nearest: resnet18"):
        steps.factory("torchvision/resnet17")
