"""Every name that a setting can have: where it is made, and its title. Plain data; no torch here.

A new backbone, data set, strategy, method or exit rule is a file of its own and a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Entry:
    """at: "module:attribute", of this package. title: in texts and figures; empty: the name itself.

    inputs, of an architecture: dimensions of a sample; None: any. outline, of a data set: what tells its facts without
    generating it; empty: it is loaded, or its published facts are known.
    """

    at: str
    title: str = ""
    inputs: int | None = None
    outline: str = ""


class Names(Mapping[str, Any]):
    """Name -> what it names, imported when it is first asked for. Iterating, counting and `in` import nothing."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        return imported(self.entries[name].at)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # Mapping's own would import it

    def title(self, name: str) -> str:
        """As texts and figures write it; a name that is not here stays as it is."""
        return (name in self.entries and self.entries[name].title) or name

    def module(self, name: str) -> ModuleType:
        """The module it is made in."""
        return importlib.import_module(f"eestudy.{self.entries[name].at.split(':')[0]}")


def imported(at: str) -> Any:
    """What stands at "module:attribute" of this package."""
    module, attribute = at.split(":")
    return getattr(importlib.import_module(f"eestudy.{module}"), attribute)


ARCHITECTURES = Names({
    "mlp": Entry("models.families.mlp:mlp", "MLP"),
    "resnet1d": Entry("models.families.resnet:small_resnet", "ResNet-1D", inputs=2),
    "vit1d": Entry("models.families.vit:vit1d", "ViT-1D", inputs=2),
    "resnet-tiny": Entry("models.families.resnet:small_resnet", "ResNet-tiny", inputs=3),
    **{
        f"resnet{depth}": Entry(f"models.families.resnet:resnet{depth}", f"ResNet-{depth}", inputs=3)
        for depth in (20, 32, 56, 110, 18, 34, 50, 101)
    },
    "wrn-28-10": Entry("models.families.resnet:wide_resnet", "WRN-28-10", inputs=3),
    "vgg16-bn": Entry("models.families.vgg:vgg16_bn", "VGG-16-BN", inputs=3),
    "msdnet": Entry("models.families.msdnet:msdnet", "MSDNet", inputs=3),
    "vit-tiny": Entry("models.families.vit:vit", "ViT-T", inputs=3),
    "vit-small": Entry("models.families.vit:vit_small", "ViT-S", inputs=3),
    "vit-base": Entry("models.families.vit:vit_base", "ViT-B", inputs=3),
    "efficientnet-v2-s": Entry("models.families.torchvision_networks:efficientnet_v2_s", "EfficientNetV2-S", inputs=3),
    "convnext-tiny": Entry("models.families.torchvision_networks:convnext_tiny", "ConvNeXt-T", inputs=3),
    "swin-v2-t": Entry("models.families.torchvision_networks:swin_v2_t", "Swin-V2-T", inputs=3),
    "mobilenet-v3-large": Entry("models.families.torchvision_networks:mobilenet_v3_large", "MobileNetV3-L", inputs=3),
    "minilm": Entry("models.families.encoder:minilm", "MiniLM-L6", inputs=1),
})  # fmt: skip
DATASETS = Names({
    "digits": Entry("data.small:digits"),
    "mnist1d": Entry("data.small:mnist1d", "MNIST-1D", outline="data.small:mnist1d_outline"),
    "fashion-mnist": Entry("data.vision:fashion_mnist", "Fashion-MNIST"),
    "cifar10": Entry("data.vision:cifar10", "CIFAR-10"),
    "cifar100": Entry("data.vision:cifar100", "CIFAR-100"),
    "svhn": Entry("data.vision:svhn", "SVHN"),
    "tiny-imagenet": Entry("data.imagenet:tiny_imagenet", "Tiny-ImageNet"),
    "imagenette": Entry("data.imagenet:imagenette", "Imagenette"),
    "imagenet": Entry("data.imagenet:imagenet", "ImageNet"),
    "20newsgroups": Entry("data.text:newsgroups", "20 Newsgroups"),
    "wordnet-supersense": Entry("data.wordnet:wordnet_supersense", "WordNet supersenses"),
    "stsb": Entry("data.text:stsb", "STS-B"),
    "diabetes": Entry("data.small:diabetes"),
})  # fmt: skip
STRATEGIES = Names({
    name: Entry(f"training.strategies:{name.replace('-', '_')}")
    for name in (
        "disjoint", "joint", "mixed", "mixed-heads", "joint-heads", "alternating", "branch-wise", "separate", "gradual",
        "sequential-lwf", "sequential-ewc",
    )
})  # fmt: skip
METHODS = Names({
    name: Entry(f"methods.{name}:METHOD")
    for name in ("sdn", "branchynet", "pbee", "gpf", "ztw", "l2w", "msdnet", "boosted", "cgt")
})  # fmt: skip
HEADS = Names({
    **{name: Entry(f"models.heads:{name}") for name in ("pooled", "token", "vector", "msdnet")},
    "msdnet-wide": Entry("models.heads:msdnet_wide"),
    **{f"cascading-{name}": Entry(f"models.heads:{name}") for name in ("pooled", "token", "vector")},
})  # fmt: skip
WEIGHTINGS = Names({
    **dict.fromkeys(("equal", "depth-linear", "custom"), Entry("training.losses:fixed")),
    "sdn-ramp": Entry("training.losses:Ramp"),
})  # fmt: skip
# Of several labels a sample, where those of EXIT_RULES, of classes, say nothing.
LABEL_RULES = Names({"every-label": Entry("evaluation.rules.every_label:RULE")})
EXIT_RULES = Names({
    name: Entry(f"evaluation.rules.{name.replace('-', '_')}:RULE")
    for name in ("max-probability", "entropy", "margin", "patience")
})  # fmt: skip
