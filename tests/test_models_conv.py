"""Convolutional backbones: sizes and FLOPs as published, exits at every block, from 8 to 224 pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models as torchvision_models

from eestudy.config import EestudyError
from eestudy.evaluation import max_probability, simulate
from eestudy.models import Backbone, MultiExit, build_backbone, exit_costs
from eestudy.models.backbone import stage_flops
from eestudy.models.families.msdnet import LAYOUTS

# Number of stages, from the papers: one for each block, or for each convolution of VGG.
STAGES = {
    "resnet20": 9, "resnet32": 15, "resnet56": 27, "resnet110": 54,
    "resnet18": 8, "resnet34": 16, "resnet50": 16, "resnet101": 33,
    "wrn-28-10": 12, "vgg16-bn": 13, "msdnet": 5,
    "efficientnet-v2-s": 40, "convnext-tiny": 18, "swin-v2-t": 12, "mobilenet-v3-large": 15,
}  # fmt: skip
# One of each kind; the others are the same with more blocks.
FAMILIES = (
    "resnet20", "resnet18", "resnet50", "wrn-28-10", "vgg16-bn", "msdnet", "efficientnet-v2-s", "convnext-tiny",
    "swin-v2-t", "mobilenet-v3-large",
)  # fmt: skip
# Ours, torchvision's constructor, and the weights whose documented GFLOPs (multiply-adds) and image size are meant.
TORCHVISION = {
    "resnet18": ("resnet18", "ResNet18_Weights.IMAGENET1K_V1", 224),
    "resnet34": ("resnet34", "ResNet34_Weights.IMAGENET1K_V1", 224),
    "resnet50": ("resnet50", "ResNet50_Weights.IMAGENET1K_V1", 224),
    "resnet101": ("resnet101", "ResNet101_Weights.IMAGENET1K_V1", 224),
    "vgg16-bn": ("vgg16_bn", "VGG16_BN_Weights.IMAGENET1K_V1", 224),
    "efficientnet-v2-s": ("efficientnet_v2_s", "EfficientNet_V2_S_Weights.IMAGENET1K_V1", 384),
    "convnext-tiny": ("convnext_tiny", "ConvNeXt_Tiny_Weights.IMAGENET1K_V1", 224),
    "swin-v2-t": ("swin_v2_t", "Swin_V2_T_Weights.IMAGENET1K_V1", 256),
    "mobilenet-v3-large": ("mobilenet_v3_large", "MobileNet_V3_Large_Weights.IMAGENET1K_V1", 224),
}


def unmade(name: str, shape: tuple[int, ...], classes: int, **args: object) -> Backbone:
    """On the meta device: shapes and counts are real, nothing is computed."""
    with torch.device("meta"):
        return build_backbone(name, shape, classes, **args)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", STAGES)
def test_every_block_is_a_stage(name):
    assert len(unmade(name, (3, 32, 32), 7).stages) == STAGES[name]


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (1, 28, 28)) for name in FAMILIES[:6]]
    + [(name, (3, 50, 64)) for name in ("resnet18", "vgg16-bn", "msdnet", "convnext-tiny", "swin-v2-t")],
)
def test_images_of_any_size(name, shape):
    """8 pixels, and 32 for all that enlarge them to that, are computed below; 224 are counted."""
    backbone = unmade(name, shape, 7)
    state = backbone.dry_input(2)
    for stage in backbone.stages:
        state = stage(state)
        features = backbone.features(state)
        assert features.ndim == 4
        assert min(features.shape) > 0
    assert backbone.classifier(state).shape == (2, 7)


@pytest.mark.parametrize(("depth", "million"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_papers_parameters(depth, million):
    """He et al. 2016, table 6; exactly: 3 x 3 convolutions with BatchNorm, no projections, and a linear layer."""

    def conv(before: int, after: int) -> int:
        return 9 * before * after + 2 * after

    blocks = (depth - 2) // 6
    groups = [conv(before, after) + (2 * blocks - 1) * conv(after, after) for before, after in ((16, 32), (32, 64))]
    wanted = conv(3, 16) + 2 * blocks * conv(16, 16) + sum(groups) + 64 * 10 + 10
    counted = size(unmade(f"resnet{depth}", (3, 32, 32), 10))
    assert counted == wanted
    assert counted / 1e6 == pytest.approx(million, rel=0.02)


def test_cifar_resnets_have_the_flops_of_the_formula():
    def conv(before: int, after: int, side: int) -> int:
        return 2 * 9 * before * after * side * side

    flops = stage_flops(unmade("resnet20", (3, 32, 32), 10))
    assert flops[0] == conv(3, 16, 32) + 2 * conv(16, 16, 32)
    assert flops[3] == conv(16, 32, 16) + conv(32, 32, 16)
    assert flops[6:] == [conv(32, 64, 8) + conv(64, 64, 8), *[2 * conv(64, 64, 8)] * 2, 2 * 64 * 10]
    assert sum(flops) / 2e6 == pytest.approx(41, rel=0.02)  # 0.41e8 multiply-adds


def test_the_shortcut_without_parameters():
    """Where the maps shrink, every second pixel is taken as it is, and new channels are 0."""
    x = torch.randn(2, 16, 8, 8)
    shortcut = build_backbone("resnet20", (3, 8, 8), 10).stages[3].get_submodule("shortcut")(x)
    assert torch.equal(shortcut[:, :16], x[:, :, ::2, ::2])
    assert shortcut.shape == (2, 32, 4, 4)
    assert not shortcut[:, 16:].any()


@pytest.mark.parametrize(
    ("depth", "width", "million"), [(40, 1, 0.6), (40, 4, 8.9), (16, 8, 11.0), (22, 8, 17.2), (28, 10, 36.5)]
)
def test_wide_resnets_have_the_papers_parameters(depth, width, million):
    """Zagoruyko & Komodakis 2016, table 4."""
    backbone = unmade("wrn-28-10", (3, 32, 32), 100, depth=depth, width=width)
    assert size(backbone) / 1e6 == pytest.approx(million, abs=0.08)
    assert size(unmade("wrn-28-10", (3, 32, 32), 10, depth=depth, width=width)) == (
        size(backbone) - 90 * (64 * width + 1)
    )


def test_a_wide_block_computes_its_equation():
    backbone = build_backbone("wrn-28-10", (3, 8, 8), 10, depth=16, width=1).eval()
    shrinking, same = backbone.stages[2], backbone.stages[3]
    x = torch.randn(2, 16, 8, 8)
    opened = F.relu(x / (1 + 1e-5) ** 0.5)  # BatchNorm that has seen nothing yet
    wide = shrinking.get_submodule("body")(opened) + shrinking.get_submodule("shortcut")(opened)
    torch.testing.assert_close(shrinking(x), wide)
    assert wide.shape == (2, 32, 4, 4)
    opened = F.relu(wide / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(same(wide), same.get_submodule("body")(opened) + wide)


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_and_flops_are_torchvisions(name):
    constructor, weights, side = TORCHVISION[name]
    with torch.device("meta"):
        theirs = torchvision_models.get_model(constructor, weights=None)
    ours = unmade(name, (3, side, side), 1000)
    assert size(ours) == size(theirs)
    if name in FAMILIES:
        billion = torchvision_models.get_weight(weights).meta["_ops"]
        assert sum(stage_flops(ours)) / 2e9 == pytest.approx(billion, abs=2e-3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_compute_what_torchvisions_do(name):
    theirs = torchvision_models.get_model(name, weights=None, num_classes=10).eval()
    ours = build_backbone(name, (3, 40, 40), 10, stem=7).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["efficientnet-v2-s", "convnext-tiny", "swin-v2-t", "mobilenet-v3-large"])
def test_torchvisions_networks_are_cut_and_not_changed(name):
    torch.manual_seed(0)
    theirs = torchvision_models.get_model(TORCHVISION[name][0], weights=None, num_classes=10).eval()
    torch.manual_seed(0)
    ours = build_backbone(name, (3, 32, 32), 10).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_heads_see_channels_first():
    """Swin keeps them last."""
    shapes = unmade("swin-v2-t", (3, 64, 32), 10).feature_shapes()
    assert (shapes[0], shapes[-1]) == ((96, 16, 8), (768, 2, 1))


def test_small_images_are_enlarged_and_channels_taken():
    torch.manual_seed(0)
    backbone = build_backbone("mobilenet-v3-large", (1, 8, 12), 10).eval()
    x = torch.randn(2, 1, 8, 12)
    larger = F.interpolate(x, size=(32, 48), mode="bilinear", align_corners=False)
    torch.manual_seed(0)
    at_32 = build_backbone("mobilenet-v3-large", (1, 32, 48), 10).eval()
    with torch.no_grad():
        assert torch.equal(backbone(x), at_32(larger))


# FLOPs (multiply-adds, in millions) and parameters (in millions) up to each classifier, those before it included.
MSDNETS = [
    # Published: the output of the authors' counter for their ImageNet model of step 7, as a user of it reports,
    # github.com/kalviny/MSDNet-PyTorch/issues/10.
    (
        (3, 224, 224), 1000, {"base": 7, "step": 7},
        [615.69, 1436.39, 2283.21, 2967.42, 3253.79], [8.76, 20.15, 31.73, 41.86, 62.31],
    ),
    # Measured: the authors' own code and counter (github.com/kalviny/MSDNet-PyTorch at f654595), run with the arguments
    # that its README gives for CIFAR-100, anytime (7 blocks) and budgeted (5). The paper shows FLOPs as curves only.
    # The counter also counts ReLU, pooling and biases, about 1 %.
    (
        (3, 32, 32), 100, {"mode": "anytime"},
        [15.140, 25.506, 37.096, 46.331, 57.336, 66.961, 75.938],
        [0.433876, 0.876792, 1.274952, 1.695548, 2.178352, 2.603252, 3.067960],
    ),
    (
        (3, 32, 32), 100, {},
        [6.860, 14.350, 27.537, 41.715, 58.481], [0.299704, 0.649740, 1.018308, 1.492424, 2.078924],
    ),
    # Likewise, with the arguments of github.com/gaohuang/MSDNet's README for CIFAR-10.
    (
        (3, 32, 32), 10, {"blocks": 7},
        [6.848, 14.327, 27.257, 48.402, 76.375, 108.781, 137.200],
        [0.288094, 0.626520, 1.076558, 1.680760, 2.326918, 2.982584, 3.885394],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "classes", "args", "million_flops", "million_params"), MSDNETS)
def test_msdnet_costs_what_the_authors_count(shape, classes, args, million_flops, million_params):
    costs = exit_costs(MultiExit(build_backbone("msdnet", shape, classes, **args)))
    assert [flops / 2e6 for flops in costs.flops] == pytest.approx(million_flops, rel=0.02)
    # Parameters leave nothing to define: equal to the last digit that is given.
    digits = 2 if args == {"base": 7, "step": 7} else 6
    assert [round(params / 1e6, digits) for params in costs.params] == million_params


def test_msdnet_steps_and_scales():
    assert LAYOUTS["cifar"]["budgeted"].layers() == [1, 2, 3, 4, 5]
    assert LAYOUTS["cifar"]["budgeted"].finest() == [0] * 5 + [1] * 5 + [2] * 5
    assert LAYOUTS["cifar"]["anytime"].layers() == [4, 2, 2, 2, 2, 2, 2]
    assert LAYOUTS["cifar"]["anytime"].finest() == [0] * 6 + [1] * 6 + [2] * 4
    backbone = build_backbone("msdnet", (1, 9, 13), 10, blocks=4, base=2, step=1, step_mode="even", scales=4)
    state, sides = torch.randn(2, 1, 9, 13), []
    for stage in backbone.stages:
        state = stage(state)
        sides.append([tuple(part.shape[2:]) for part in state])
    every = [(9, 13), (5, 7), (3, 4), (2, 2)]
    assert sides == [every, every[1:], every[2:], every[3:]]


# Small enough to compute, with the deepest; each has about five exits.
COMPUTED: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
    name: ((3, 8, 8), {}) for name in (*FAMILIES, "resnet110")
}
COMPUTED["msdnet"] = ((1, 28, 28), {})
COMPUTED["mobilenet-v3-large"] = ((1, 8, 8), {})
COMPUTED["wrn-28-10"] = ((3, 8, 8), {"width": 2})
COMPUTED["msdnet-short"] = ((3, 32, 32), {"mode": "anytime", "blocks": 2, "base": 2})


@pytest.fixture(scope="module", params=COMPUTED)
def network(request):
    """A network whose BatchNorm statistics are those of `images`, and 8 images."""
    torch.manual_seed(0)
    shape, args = COMPUTED[request.param]
    backbone = build_backbone(request.param.replace("-short", ""), shape, 10, **args)
    model = MultiExit(backbone, {"every": max(1, len(backbone.stages) // 5)})
    images = torch.randn(8, *shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    return model.eval(), images


def amid(confidences: Tensor) -> float:
    """The middle of the widest gap in the middle half of the values: no rounding moves a value across it."""
    ordered = confidences.flatten().sort().values
    middle = ordered[len(ordered) // 4 : 3 * len(ordered) // 4 + 1]
    place = int(middle.diff().argmax())
    return float(middle[place : place + 2].mean())


def test_predict_equals_the_simulation(network):
    model, images = network
    with torch.no_grad():
        stored = torch.stack(model(images))
    rule = max_probability(amid(stored[:-1].softmax(-1).amax(-1)))
    expected = torch.as_tensor(simulate(stored.numpy(), rule))
    assert len(set(expected.tolist())) > 1
    for batch in (1, 5):
        parts = [model.predict(part, rule) for part in images.split(batch)]
        logits, exit_index = (torch.cat(values) for values in zip(*parts))
        assert torch.equal(exit_index, expected)
        torch.testing.assert_close(logits, stored[expected - 1, torch.arange(8)], atol=2e-3, rtol=1e-2)


def test_channels_last_gives_the_same(network):
    model, images = network
    with torch.no_grad():
        plain = torch.stack(model(images[:3]))
        model.to(memory_format=torch.channels_last)
        turned = torch.stack(model(images[:3].contiguous(memory_format=torch.channels_last)))
        model.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(turned, plain, atol=2e-3, rtol=1e-2)


def test_every_parameter_gets_a_gradient(network):
    model, images = network
    torch.manual_seed(0)
    logits = torch.stack(model.train()(images[:4]))
    F.cross_entropy(logits.flatten(0, 1), torch.arange(len(logits) * 4) % 10).backward()
    model.eval()
    without = [name for name, tensor in model.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert not without
    assert all(tensor.grad.isfinite().all() for tensor in model.parameters())


@pytest.mark.parametrize(("side", "name"), [(32, "msdnet"), (96, "msdnet-wide")])
def test_msdnet_brings_its_heads(side, name):
    model = MultiExit(build_backbone("msdnet", (3, side, side), 10))
    assert model.backbone.default_head == name
    for head in (model.head(1), model.backbone.classifier.get_submodule("1")):
        first = head.get_submodule("0")
        assert first.out_channels == (128 if name == "msdnet" else first.in_channels)


@pytest.mark.parametrize(
    ("name", "args", "wanted"),
    [
        ("resnet18", {"stem": 5}, "architecture_args: stem: 5 is not valid; valid: 3, 7"),
        ("resnet20", {"widht": 8}, "unknown key 'widht' for resnet20; nearest: width"),
        ("wrn-28-10", {"depth": 27}, "depth: 27 is not valid; it must be 6 n . 4; nearest: 28"),
        ("wrn-28-10", {"depth": 4}, "nearest: 10"),
        ("msdnet", {"mode": "anytim"}, "architecture_args: mode: unknown name 'anytim'; nearest: anytime"),
        ("msdnet", {"step_mode": "linear"}, "step_mode: unknown name 'linear'; nearest: linear-growth"),
        ("msdnet", {"scales": 0}, "scales: 0 is not valid"),
        ("msdnet", {"blocks": 1, "base": 2}, "scales: 3 is more than the 2 layers"),
    ],
)
def test_wrong_arguments(name, args, wanted):
    with pytest.raises(EestudyError, match=wanted):
        unmade(name, (3, 32, 32), 10, **args)
