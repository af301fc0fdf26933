"""Vision transformers against torchvision's, encoders against transformers'; folders that hold no usable encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from transformers import AutoConfig, AutoModel

from eestudy.config import EestudyError
from eestudy.evaluation import max_probability, simulate
from eestudy.models import Backbone, MultiExit, build_backbone, exit_costs
from eestudy.models.families.encoder import SUPPORTED, Embed, cut_encoder, sentence_numbers
from eestudy.models.families.vit import Embed1d, EncoderBlock
from eestudy.pretrained import load_tokenizer, locate

SMALL_VIT: dict[str, object] = {"width": 24, "depth": 3, "heads": 3}
LENGTH, SEPARATOR = 12, 5


# Vision transformers.


@pytest.mark.parametrize(
    ("name", "parameters"), [("vit-tiny", 5_717_416), ("vit-small", 22_050_664), ("vit-base", 86_567_656)]
)
def test_parameters_are_the_published_ones(name, parameters):
    with torch.device("meta"):
        backbone = build_backbone(name, (3, 224, 224), 1000)
        base = torchvision.models.vit_b_16()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert len(backbone.stages) == 12
    if name == "vit-base":
        assert sum(parameter.numel() for parameter in base.parameters()) == parameters


def test_vit_computes_what_torchvision_s_does():
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(32, 8, 3, 3, 24, 96, num_classes=10).eval()
    for parameter in theirs.parameters():  # theirs starts its classifier and biases at 0
        nn.init.normal_(parameter, std=0.2)
    ours = build_backbone("vit-tiny", (3, 32, 32), 10, patch=8, **SMALL_VIT).eval()
    names = [
        ("stages.0.0.patches", "conv_proj"), ("classifier.1", "encoder.ln"), ("classifier.2", "heads.head"),
        *(
            (f"stages.{stage}{'.1' if stage == 0 else ''}.{own}", f"encoder.layers.encoder_layer_{stage}.{name}")
            for stage in range(3)
            for own, name in (
                ("norm_attention", "ln_1"), ("out", "self_attention.out_proj"), ("norm_mlp", "ln_2"),
                ("mlp.0", "mlp.0"), ("mlp.2", "mlp.3"), ("qkv", "self_attention.in_proj"),
            )
        ),
    ]  # fmt: skip
    found = theirs.state_dict()
    copied = {"stages.0.0.class_token": found["class_token"], "stages.0.0.positions": found["encoder.pos_embedding"]}
    for own, name in names:
        between = "_" if name.endswith("in_proj") else "."
        copied |= {f"{own}.{kind}": found[f"{name}{between}{kind}"] for kind in ("weight", "bias")}
    ours.load_state_dict(copied)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [
        ((1, 8, 8), 17),
        ((1, 28, 28), 50),
        ((3, 32, 32), 65),
        ((3, 64, 64), 65),
        ((3, 128, 192), 97),
        ((3, 224, 224), 197),
    ],
)
def test_the_default_patch_goes_by_the_size(shape, tokens):
    backbone = build_backbone("vit-tiny", shape, 10, **SMALL_VIT)
    assert backbone.feature_shapes() == [(tokens, 24)] * 3


def test_vit_starts_as_deit_does():
    torch.manual_seed(0)
    backbone = build_backbone("vit-small", (3, 32, 32), 100, depth=2)
    state = backbone.state_dict()
    for name in ("stages.1.qkv.weight", "stages.0.1.mlp.2.weight", "stages.0.0.positions", "classifier.2.weight"):
        assert abs(float(state[name].std()) / 0.02 - 1) < 0.05, name
        assert abs(float(state[name].mean())) < 0.001, name
    assert not state["stages.1.mlp.0.bias"].any()


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({"patch": 5}, "patch 5 must divide the image's 28 x 28 pixels; valid: 1, 2, 4, 7, 14, 28"),
        ({"heads": 5}, "heads 5 must divide the width 192"),
        ({"mlp": 0}, "mlp: 0 is not valid; it must be a whole number above 0"),
        ({"patches": 4}, "unknown key 'patches' for vit-tiny; nearest: patch"),
    ],
)
def test_wrong_vits(args, wanted):
    with pytest.raises(EestudyError) as caught:
        build_backbone("vit-tiny", (1, 28, 28), 10, **args)
    assert wanted in str(caught.value)


def test_flops_against_the_formula():
    def linear(before: int, after: int) -> int:
        return 2 * before * after

    width, tokens, hidden = 24, 50, 2 * 24
    block = tokens * (linear(width, 3 * width) + linear(width, width) + 2 * linear(width, hidden))
    attention = 2 * (2 * tokens * tokens * width)
    costs = exit_costs(MultiExit(build_backbone("vit-tiny", (1, 28, 28), 10, mlp=2, **SMALL_VIT)))
    assert costs.stages == (49 * linear(16, width) + block + attention, block + attention, block + attention)


def test_the_sequence_transformer_still_starts_the_same():
    """Committed results depend on which of vit1d's weights is drawn when."""
    torch.manual_seed(0)
    backbone = build_backbone("vit1d", (1, 40), 10, width=8, depth=2, heads=2)
    torch.manual_seed(0)
    blocks = [EncoderBlock(8, 2, 16), EncoderBlock(8, 2, 16)]
    expected = nn.Sequential(nn.Sequential(Embed1d(1, 40, 4, 8), blocks[0]), blocks[1])
    last = nn.Linear(8, 10)
    for name, value in expected.state_dict().items():
        assert torch.equal(backbone.stages.state_dict()[name], value), name
    assert torch.equal(backbone.classifier.state_dict()["2.weight"], last.weight)
    assert {module.eps for module in backbone.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}


# Encoders.


def small_encoder(kind: str, **changes: Any) -> Any:
    """A transformers model of three layers, random weights. Ids: padding 0 (RoBERTa's 1), SEPARATOR, words to 99."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
        "intermediate_size": 32, "max_position_embeddings": 64,
    }  # fmt: skip
    if kind == "distilbert":
        sizes = {"vocab_size": 100, "dim": 24, "n_layers": 3, "n_heads": 3, "hidden_dim": 32}
        sizes |= {"max_position_embeddings": 64}
    if kind == "electra":
        sizes["embedding_size"] = 16
    config = AutoConfig.for_model(kind, **sizes, **changes)
    config.initializer_range = 0.3  # layers that do something
    return AutoModel.from_config(config, attn_implementation="sdpa")


def some_ids(pad: int, pairs: bool = False) -> torch.Tensor:
    """Ids (4, LENGTH) with padding in all rows but one."""
    ids = torch.randint(10, 100, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 4 if pairs else 0] = SEPARATOR
    for row, used in enumerate((LENGTH, 9, 7, 6)):
        ids[row, used - 1] = SEPARATOR
        ids[row, used:] = pad
    return ids


def states_of(backbone: Backbone, ids: torch.Tensor) -> list[torch.Tensor]:
    state: Any = ids
    features = []
    with torch.no_grad():
        for stage in backbone.eval().stages:
            state = stage(state)
            features.append(backbone.features(state))
    return features


@pytest.mark.parametrize("kind", SUPPORTED)
def test_each_stage_is_a_layer_of_the_whole_model(kind):
    model = small_encoder(kind)
    backbone = cut_encoder(model, (LENGTH,), 5, SEPARATOR)
    model.eval()
    pad = model.config.pad_token_id
    ids = some_ids(pad, pairs=True)
    more = {}
    if getattr(model.config, "type_vocab_size", 1) > 1 and kind != "distilbert":
        more["token_type_ids"] = (torch.arange(LENGTH) > 4).long() * (ids != pad)
    with torch.no_grad():
        whole = model(ids, attention_mask=(ids != pad).long(), output_hidden_states=True, **more).hidden_states
    features = states_of(backbone, ids)
    assert len(features) == 3
    for ours, theirs in zip(features, whole[1:]):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert backbone.input_dtype == torch.int64
    assert not any("pooler" in name for name in backbone.state_dict())


def test_padding_changes_nothing():
    backbone = cut_encoder(small_encoder("bert"), (LENGTH,), 5, SEPARATOR).eval()
    ids = some_ids(0)[2:3]
    longer = torch.nn.functional.pad(ids, (0, 8))
    with torch.no_grad():
        torch.testing.assert_close(backbone(ids[:, :7]), backbone(longer), atol=1e-5, rtol=1e-5)


def test_the_packaged_encoder():
    """all-MiniLM-L6-v2: published size, layers equal to transformers', sentence numbers equal to its tokenizer's."""
    backbone = build_backbone("minilm", (32,), 45)
    pooler = 384 * 384 + 384
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 22_713_216 - pooler + 384 * 45 + 45
    assert len(backbone.stages) == 6
    tokenizer = load_tokenizer("tokenizer", "minilm")
    given = tokenizer(
        ["a small dog", "the sea"], ["a young wolf that plays", "a large body of water"],
        padding="max_length", max_length=32, return_tensors="pt",
    )  # fmt: skip
    assert torch.equal(sentence_numbers(given["input_ids"], 102, 0), given["token_type_ids"])
    model = AutoModel.from_pretrained(str(locate("encoder", "minilm"))).eval()
    with torch.no_grad():
        whole = model(**given, output_hidden_states=True).hidden_states
    for ours, theirs in zip(states_of(backbone, given["input_ids"]), whole[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_an_encoder_with_exits():
    """Logits at every exit, gradients to every layer, stopping as simulated; a dry run of padding alone is finite."""
    backbone = cut_encoder(small_encoder("bert"), (LENGTH,), 5, SEPARATOR)
    torch.manual_seed(0)
    model = MultiExit(backbone)
    ids = some_ids(0).repeat(8, 1)
    logits = model(ids)
    assert [exit_logits.shape for exit_logits in logits] == [(32, 5)] * 3
    sum(exit_logits.square().sum() for exit_logits in logits).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        assert model(backbone.dry_input(2))[-1].isfinite().all()
        assert backbone.stages[0](backbone.dry_input(2))[1].sum() == 2, "something to attend to in each row"
        stored = torch.stack(model(ids))
    rule = max_probability(float(stored[0].softmax(1).amax(1).median()))
    expected = torch.as_tensor(simulate(stored.numpy(), rule))
    assert len(expected.unique()) > 1
    for batch in (1, 5, 32):
        parts = [model.predict(part, rule) for part in ids.split(batch)]
        assert torch.equal(torch.cat([exit_index for _, exit_index in parts]), expected)
    assert all(cost > 0 for cost in exit_costs(model).stages)


def test_dropout_follows_the_seed():
    backbone = cut_encoder(small_encoder("bert"), (LENGTH,), 5, SEPARATOR)
    assert backbone.training
    assert all(module.training for module in backbone.modules())
    logits = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        logits.append(backbone(some_ids(0)))
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    assert torch.equal(backbone.eval()(some_ids(0)), backbone(some_ids(0)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small BERT, and the real tokenizer beside it."""
    folder = tmp_path_factory.mktemp("encoder")
    model = small_encoder("bert", pad_token_id=0)
    model.pooler = None  # as many published ones: transformers draws the missing weights when it loads them
    model.save_pretrained(folder)
    load_tokenizer("tokenizer", "minilm").save_pretrained(folder)
    return folder


def test_an_encoder_from_a_folder(saved):
    """Its saved weights; only the classifier is drawn, first of all, from the run's own random numbers."""
    torch.manual_seed(3)
    backbone = build_backbone("minilm", (LENGTH,), 5, encoder=str(saved))
    torch.manual_seed(3)
    assert torch.equal(backbone.get_parameter("classifier.linear.weight"), nn.Linear(24, 5).weight)
    embed = backbone.get_submodule("stages.0.0")
    assert isinstance(embed, Embed)
    assert (embed.pad, embed.separator) == (0, 102)
    words = small_encoder("bert", pad_token_id=0).embeddings.word_embeddings.weight
    assert torch.equal(embed.get_parameter("embeddings.word_embeddings.weight"), words)


def without(saved: Path, folder: Path, gone: str) -> Path:
    for path in saved.iterdir():
        if path.name != gone:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_folders_that_hold_no_encoder(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    def refused(encoder: object, *wanted: str) -> None:
        with pytest.raises(EestudyError) as caught:
            build_backbone("minilm", (LENGTH,), 5, encoder=encoder)
        assert len(str(caught.value).splitlines()) == 1
        for part in wanted:
            assert part in str(caught.value)

    for name in ("empty", "weightless", "partial", "pickled", "cut"):
        (tmp_path / name).mkdir()
    refused(str(tmp_path / "empty"), "holds no config.json")
    refused("some-owner/some-model", "some-owner/some-model", "hf download some-owner/some-model")
    refused("no such/name/at all", "neither minilm nor a folder")
    refused(7, "7 is not valid")
    refused(str(without(saved, tmp_path / "weightless", "model.safetensors")), "cannot be loaded by transformers")
    partial = without(saved, tmp_path / "partial", "model.safetensors")
    weights = load_file(saved / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    refused(str(partial), "lacks 1 weights, such as encoder.layer.1.output.dense.weight")
    pickled = without(saved, tmp_path / "pickled", "model.safetensors")
    torch.save(weights, pickled / "pytorch_model.bin")
    refused(str(pickled), "cannot be loaded by transformers")
    damaged = without(saved, tmp_path / "cut", "")
    (damaged / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-1000])
    refused(str(damaged), "cannot be loaded by transformers")


@pytest.mark.parametrize("kind", ["albert", "mpnet", "gpt2", "roberta-prelayernorm"])
def test_models_that_cannot_be_cut(kind):
    config = AutoConfig.for_model(
        kind, vocab_size=100, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with pytest.raises(EestudyError, match=f"a {kind} model cannot be cut after its layers .*; tested: bert, roberta"):
        cut_encoder(AutoModel.from_config(config), (LENGTH,), 5)


@pytest.mark.parametrize(("kind", "most"), [("bert", 64), ("roberta", 62), ("distilbert", 64)])
def test_no_more_tokens_than_positions(kind, most):
    model = small_encoder(kind)
    backbone = cut_encoder(model, (most,), 5).eval()
    assert backbone(torch.full((1, most), 50)).shape == (1, 5)
    with pytest.raises(
        EestudyError, match=f"length: {most + 1} tokens, but the {kind} encoder has positions for {most}"
    ):
        cut_encoder(model, (most + 1,), 5)
    with pytest.raises(EestudyError, match=f"{most + 1} tokens, but it has positions for {most}"):
        backbone(torch.full((1, most + 1), 50))


def test_ids_of_another_vocabulary():
    backbone = cut_encoder(small_encoder("bert"), (LENGTH,), 5)
    with pytest.raises(EestudyError, match=r"token ids from 50 to 100, but it knows 0 to 99; .*tokenizer must name"):
        backbone(torch.tensor([[50, 100, 60]]))


def test_attention_of_few_tokens_equals_the_fused_one(monkeypatch):
    torch.manual_seed(0)
    block, x = EncoderBlock(8, 2, 16), torch.randn(3, 5, 8)
    plain = block(x)
    monkeypatch.setattr("eestudy.models.families.vit.FEW_TOKENS", 0)
    torch.testing.assert_close(plain, block(x))
