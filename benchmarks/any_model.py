"""Which models get exits without a word on where: timm, torchvision, Hugging Face, recurrent nets, a U-Net.

python benchmarks/any_model.py [NAME ...] -> any_model.json

Without trained weights, so nothing is downloaded; timm's and Hugging Face's where the packages are installed. Of each:
cut by torch.fx or torch.export, where; whether the last exit equals the model bit for bit, whether `predict` equals
the simulation on the exits' logits, whether a step of training changes all parts, whether each exit's ONNX file
gives what PyTorch does. What fails has its one line.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from timing import hardware, save
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.evaluation import max_probability, simulate
from eestudy.export import Runner, export
from eestudy.models.cut.places import exits_at

SHARES = (0.35, 0.7)
TIMM = (
    "resnet18", "resnet26d", "seresnet18", "resnext26ts", "regnetx_002", "regnety_002", "mobilenetv3_small_050",
    "mobilenetv2_050", "efficientnet_b0", "efficientnet_lite0", "densenet121", "ghostnet_050", "hardcorenas_a",
    "mnasnet_small", "lcnet_050", "tinynet_e", "repvgg_a0", "convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224",
    "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "resmlp_12_224", "poolformer_s12",
    "pit_ti_224", "xcit_nano_12_p16_224", "coat_tiny", "levit_128s", "mobilevit_xxs", "edgenext_xx_small",
    "cait_xxs24_224",
)  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 24)
        self.first, self.second, self.third = (kind(24, 24, batch_first=True) for _ in range(3))
        self.classify = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            x, _ = layer(self.embed(x) if layer is self.first else x)
        return self.classify(x[:, -1])


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up1, self.up2 = nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.classify = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x).relu()
        second = self.down2(first).relu()
        third = torch.cat([self.up1(second).relu(), first], 1)
        return self.classify(self.up2(third).relu().mean((2, 3)))


def huggingface() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    try:
        import transformers as tr
    except ImportError:
        return {}
    text = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    deep = {"n_embd": 32, "n_layer": 4, "n_head": 2, "vocab_size": 60, "pad_token_id": 0}
    llama = {**text, "num_key_value_heads": 2, "vocab_size": 60, "pad_token_id": 0}
    image = {**text, "image_size": 32, "patch_size": 8}
    distil = {"dim": 32, "n_layers": 4, "n_heads": 2, "hidden_dim": 64, "vocab_size": 60}
    configs: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
        "BERT": (tr.BertForSequenceClassification, tr.BertConfig(vocab_size=60, **text), (9,)),
        "RoBERTa": (tr.RobertaForSequenceClassification, tr.RobertaConfig(vocab_size=60, **text), (9,)),
        "ELECTRA": (tr.ElectraForSequenceClassification, tr.ElectraConfig(vocab_size=60, **text), (9,)),
        "DistilBERT": (tr.DistilBertForSequenceClassification, tr.DistilBertConfig(**distil), (9,)),
        "GPT-2": (tr.GPT2ForSequenceClassification, tr.GPT2Config(**deep), (9,)),
        "Llama": (tr.LlamaForSequenceClassification, tr.LlamaConfig(**llama), (9,)),
        "ViT": (tr.ViTForImageClassification, tr.ViTConfig(**image), (3, 32, 32)),
        "DeiT": (tr.DeiTForImageClassification, tr.DeiTConfig(**image), (3, 32, 32)),
        "Swin": (
            tr.SwinForImageClassification,
            tr.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4),
            (3, 32, 32),
        ),
        "ResNet": (
            tr.ResNetForImageClassification,
            tr.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"),
            (3, 32, 32),
        ),
        "MobileNetV2": (tr.MobileNetV2ForImageClassification, tr.MobileNetV2Config(depth_multiplier=0.35), (3, 64, 64)),
    }  # fmt: skip
    return {
        f"Hugging Face {name}": (lambda kind=kind, config=config, shape=shape: (kind(config), shape))
        for name, (kind, config, shape) in configs.items()
    }


def models() -> dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]]:
    found: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
        "LSTM": lambda: (Recurrent(nn.LSTM), (11, 6)),
        "GRU": lambda: (Recurrent(nn.GRU), (11, 6)),
        "U-Net": lambda: (UNet(), (3, 32, 32)),
        **huggingface(),
    }
    for name in ("resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1", "googlenet", "vit_b_16"):
        found[f"torchvision {name}"] = lambda name=name: (torchvision.models.get_model(name), (3, 224, 224))
    try:
        import timm
    except ImportError:
        return found
    for name in TIMM:
        found[f"timm {name}"] = lambda name=name: (timm.create_model(name), (3, 224, 224))
    return found


def tried(make: Callable[[], tuple[nn.Module, tuple[int, ...]]]) -> dict[str, Any]:
    """What the table says of one model."""
    torch.manual_seed(0)
    model, shape = make()
    model.eval()
    said = io.StringIO()
    found: dict[str, Any] = {"parameters": sum(weight.numel() for weight in model.parameters())}
    try:
        with contextlib.redirect_stderr(said):
            network, names = exits_at(model, SHARES, input_shape=shape)
    except EestudyError as error:
        return {**found, "refused": str(error)}
    found |= {"cut by": "torch.export" if "torch.export" in said.getvalue() else "torch.fx", "exits after": names}
    whole = network.backbone.input_dtype == torch.int64
    x = torch.randint(5, 50, (3, *shape)) if whole else torch.randn(3, *shape)
    with torch.no_grad():
        logits, own = network(x), model(x)
    own = own if isinstance(own, Tensor) else own.logits
    found["last exit equals the model"] = torch.equal(logits[-1], own)
    levels = torch.stack(logits).softmax(-1).amax(-1)[:-1].flatten().sort().values
    middle = len(levels) // 2  # between two samples' confidences, so that no rounding moves anybody
    rule = max_probability(float(levels[middle - 1 : middle + 1].mean()))
    answers, exit_index = network.predict(x, rule)
    wanted = simulate(torch.stack(logits).numpy(), rule)
    picked = torch.stack(logits)[torch.from_numpy(wanted) - 1, torch.arange(len(x))]
    near = torch.allclose(answers, picked, 1e-4, 1e-5)
    found["predict equals the simulation"] = near and bool((exit_index.numpy() == wanted).all())
    copied = copy.deepcopy(network).train()  # a pass in training moves BatchNorm's statistics
    torch.stack([each.square().mean() for each in copied(x)]).sum().backward()
    gradients = [weight.grad for weight in copied.parameters() if weight.grad is not None]
    found["trains"] = bool(gradients) and all(bool(gradient.isfinite().all()) for gradient in gradients)
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
            export(network, folder, rule)
            files = len(list(Path(folder).glob("*.onnx")))
            if files < network.num_exits:
                raise EestudyError(said.getvalue().strip().splitlines()[-1].removeprefix("eestudy: "))
            outside, places = Runner(Path(folder)).predict(x.numpy())
        found["exported"] = bool(np.allclose(outside, picked, 1e-3, 1e-4)) and bool((places == wanted).all())
    except EestudyError as error:
        found["exported"] = str(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="some of them (default: all)")
    asked = parser.parse_args().names
    warnings.simplefilter("ignore")
    target = Path(__file__).with_suffix(".json")
    results = json.loads(target.read_text())["models"] if target.is_file() else {}
    for name, make in models().items():
        if not asked or any(part in name for part in asked):
            try:
                results[name] = tried(make)
            except Exception as error:  # noqa: BLE001  (the table says which models break it)
                results[name] = {"broken": f"{type(error).__name__}: {str(error)[:300]}"}
            print(f"{name}: {results[name]}", flush=True)
            save(target.stem, {**hardware(), "models": results})


if __name__ == "__main__":
    main()
