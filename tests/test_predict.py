"""Inference that stops is the simulation on stored logits: random networks, thresholds and batches, all four rules.

A smaller batch may change the last bits of a sample's logits, so a threshold within them of a score has no one answer.
In float64 those bits are far below the float32 in which scores are compared, and even thresholds that are a sample's
own score have to agree. In lower precision thresholds stand in gaps between the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eestudy import EestudyError, add_exits
from eestudy.evaluation import ExitRule, max_probability, patience, per_exit, scores, simulate
from eestudy.models import Backbone, MultiExit, build_backbone
from eestudy.registry import EXIT_RULES

CLASSES = 5


class OwnModel(nn.Module):
    """A convolutional network that somebody else wrote: an early layer is read again after the exits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.late = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        early = self.stem(x)
        x = torch.relu(self.body(early))
        x = torch.relu(self.late(x) + early)
        return self.fc(x.mean((2, 3)))


class Both(nn.Module):
    """A state of two parts, (B, D) and (B, D, 2): the second is what another layer needs later."""

    def __init__(self, width: int, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.linear = nn.Linear(width, 6)

    def forward(self, state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, kept = (state, state[:, :6, None].expand(-1, -1, 2)) if isinstance(state, Tensor) else state
        return torch.tanh(self.linear(x)) + kept[..., 1], kept + x.mean(1)[:, None, None]


class First(nn.Module):
    def forward(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0] + state[1].sum(-1)


def of(name: str, shape: tuple[int, ...], head: str = "auto", layers: int = 1, **args: object) -> MultiExit:
    return MultiExit(build_backbone(name, shape, CLASSES, **args), head=head, layers=layers)


def tuples() -> MultiExit:
    stages = [Both(8), Both(6), Both(6)]
    return MultiExit(Backbone.from_stages(stages, nn.Sequential(First(), nn.Linear(6, CLASSES)), (8,)))


FAMILIES: dict[str, Callable[[], MultiExit]] = {
    "mlp": lambda: of("mlp", (1, 4, 4), depth=4, width=12),
    "resnet1d": lambda: of("resnet1d", (1, 16), width=4, blocks=1),
    "vit1d": lambda: of("vit1d", (1, 16), width=8, depth=4, heads=2),
    "resnet-tiny": lambda: of("resnet-tiny", (1, 8, 8), width=4, blocks=1, layers=2),
    "msdnet": lambda: of("msdnet", (3, 8, 8), growth=2, channels=4, blocks=4, step=1, step_mode="even"),
    "own": lambda: add_exits(OwnModel(), after=["stem", "body.2"], input_shape=(1, 8, 8)),
    "tuples": tuples,
    "cascading-token": lambda: of("vit1d", (1, 16), "cascading-token", width=8, depth=4, heads=2),
    "cascading-pooled": lambda: of("resnet-tiny", (1, 8, 8), "cascading-pooled", width=4),
}


SHORT = {"short": lambda: of("mlp", (1, 4, 4), depth=2, width=12)}  # what is compiled: minutes otherwise


def network(family: str, seed: int, dtype: torch.dtype = torch.float64) -> MultiExit:
    model = randomized({**FAMILIES, **SHORT}[family], seed).to(dtype)
    return model.to(memory_format=torch.channels_last) if seed % 2 and family != "own" else model


def randomized(build: Callable[[], MultiExit], seed: int) -> MultiExit:
    """Random weights, BatchNorm statistics too, and logits that differ enough from sample to sample."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
        last = [module for module in model.modules() if isinstance(module, nn.Linear)]
        for module in last:
            if module.out_features == CLASSES:
                nn.init.normal_(module.weight, std=3 / math.sqrt(module.in_features))
    return model.eval()


def inputs(model: MultiExit, count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, *model.input_shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.no_grad()
def stored(model: MultiExit, x: Tensor) -> Tensor:
    return torch.stack(model(x))


def random_rule(name: str, logits: Tensor, draw: np.random.Generator) -> ExitRule:
    """A threshold an exit: a sample's own score, a number between scores, or one that takes all or none."""
    if name == "patience":
        return patience(int(draw.integers(0, len(logits) + 1)))
    thresholds = []
    for found in scores(logits, name):
        own, between = draw.choice(found), draw.uniform(found.min(), found.max())
        thresholds.append(float(draw.choice([own, own, between, between, between, math.inf, -math.inf])))
    return per_exit(thresholds, name)


def assert_same(model: MultiExit, x: Tensor, rule: ExitRule, batches: list[int], logits: Tensor, close: float) -> None:
    expected = torch.as_tensor(simulate(logits, rule))
    parts = [model.predict(part, rule) for part in x.split(batches)]
    found, exit_index = (torch.cat(values) for values in zip(*parts))
    assert exit_index.tolist() == expected.tolist()
    assert exit_index.dtype == torch.int64
    kept = logits[expected - 1, torch.arange(len(x))]
    torch.testing.assert_close(found.float(), kept.float(), atol=close * float(kept.abs().max()), rtol=close)


def cut(count: int, draw: np.random.Generator) -> list[int]:
    """Batch sizes that sum to `count`: random ones, all ones, or one batch."""
    kind = draw.integers(3)
    if kind < 2:
        return [1] * count if kind else [count]
    sizes: list[int] = []
    while (rest := count - sum(sizes)) > 0:
        sizes.append(int(draw.integers(1, rest + 1)))
    return sizes


@pytest.mark.parametrize("name", list(EXIT_RULES))
@pytest.mark.parametrize("family", FAMILIES)
def test_predict_is_the_simulation_whatever_network_thresholds_and_batches(family: str, name: str) -> None:
    """In float64, where a threshold may be a sample's own score."""
    draw = np.random.default_rng([list(FAMILIES).index(family), list(EXIT_RULES).index(name)])
    taken = set()
    for seed in (0, 1):
        model = network(family, seed)
        x = inputs(model, int(draw.integers(7, 15)), seed)
        logits = stored(model, x)
        for _ in range(8):
            rule = random_rule(name, logits, draw)
            assert_same(model, x, rule, cut(len(x), draw), logits, 1e-6)
            taken |= set(simulate(logits, rule).tolist())
    every = {1, model.num_exits} if name == "patience" else set(range(1, model.num_exits + 1))
    assert every <= taken, "the thresholds drawn try every exit"


# ---------------------------------------------------------------- lower precision


def in_gaps(logits: Tensor, name: str, apart: float, draw: np.random.Generator) -> ExitRule:
    """A threshold an exit in the middle of two neighbouring scores that are `apart`; some exit has one."""
    thresholds = []
    for found in scores(logits, name):
        ordered = np.sort(found)
        wide = [(low + high) / 2 for low, high in pairwise(ordered) if high - low > apart]
        thresholds.append(float(draw.choice(wide)) if wide else math.inf)
    assert np.isfinite(thresholds[:-1]).any()
    return per_exit(thresholds, name)


def clear(logits: Tensor, apart: float) -> Tensor:
    """The samples whose two largest logits differ by more than `apart` of the larger at every exit."""
    two = logits.float().topk(2, dim=-1).values
    return ((two[..., 0] - two[..., 1]) > apart * two[..., 0].abs()).all(0).nonzero().squeeze(1)


def assert_same_in(model: MultiExit, x: Tensor, apart: float, draw: np.random.Generator, close: float) -> None:
    logits = stored(model, x)
    for name in EXIT_RULES:
        for batches in ([1] * len(x), [len(x)], cut(len(x), draw)):
            if name == "patience":
                safe = clear(logits, 2 * apart)
                assert len(safe) > 3
                sizes = [1] * len(safe) if len(batches) > 1 else [len(safe)]
                assert_same(model, x[safe], patience(1), sizes, logits[:, safe], close)
            else:
                assert_same(model, x, in_gaps(logits, name, apart, draw), batches, logits, close)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32(family: str) -> None:
    model = network(family, 2, torch.float32)
    assert_same_in(model, inputs(model, 16, 2, torch.float32), 1e-4, np.random.default_rng(2), 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_bfloat16_weights(family: str) -> None:
    """Against the logits of the same precision: bfloat16 moves scores, and so exits, from where float32 has them."""
    model = network(family, 3, torch.bfloat16)
    assert_same_in(model, inputs(model, 10, 3, torch.bfloat16), 0.004, np.random.default_rng(3), 0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_under_bfloat16_autocast(family: str) -> None:
    model = network(family, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_in(model, inputs(model, 10, 4, torch.float32), 0.004, np.random.default_rng(4), 0.05)


def test_exits_of_different_precision_meet_in_the_wider_one() -> None:
    """As under autocast, where a classifier of the user's own ends in float32."""

    class Precise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    stages = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    model = MultiExit(Backbone.from_stages(stages, nn.Sequential(nn.Linear(8, CLASSES), Precise()), (8,))).eval()
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        exits = model(x)
        assert [each.dtype for each in exits] == [torch.bfloat16, torch.bfloat16, torch.float32]
        rule = in_gaps(torch.stack([each.float() for each in exits]), "margin", 0.01, np.random.default_rng(0))
        logits, exit_index = model.predict(x, rule)
    assert len(set(exit_index.tolist())) > 1
    assert logits.dtype == torch.float32


# ---------------------------------------------------------------- compiled


def test_compiled_stages_and_heads_with_a_dynamic_batch() -> None:
    """What saves time: each part compiled in place. A batch of one is compiled apart, any other size only once."""
    model = network("short", 5, torch.float32)
    x = inputs(model, 20, 5, torch.float32)
    logits = stored(model, x)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for part in (*model.backbone.stages, *model.heads.values(), model.backbone.classifier):
        part.compile(dynamic=True)
    rule = in_gaps(logits, "max-probability", 1e-3, np.random.default_rng(5))
    for batches in ([20], [7, 6, 5, 2], [1] * 20):
        assert_same(model, x, rule, batches, logits, 1e-4)
    assert len(set(simulate(logits, rule).tolist())) > 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["max-probability", "patience"])
def test_compiled_as_a_whole(name: str) -> None:
    """torch.compile breaks its graph wherever a sample may leave, and gives the same."""
    model = network("short", 6, torch.float32)
    x = inputs(model, 12, 6, torch.float32)
    logits = stored(model, x)
    rule = patience(1) if name == "patience" else in_gaps(logits, name, 1e-3, np.random.default_rng(6))
    torch._dynamo.reset()
    compiled = torch.compile(model.predict, dynamic=True, backend="eager")
    found, exit_index = compiled(x, rule)
    assert exit_index.tolist() == simulate(logits, rule).tolist()
    torch.testing.assert_close(found, logits[exit_index - 1, torch.arange(12)], atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


# ---------------------------------------------------------------- the edges


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("threshold", [-math.inf, math.inf])
def test_all_leave_at_once_or_none_does(family: str, threshold: float) -> None:
    """Then nothing is copied: every stage that runs reads the very state that the one before gave."""
    model = network(family, 7)
    states: list[Tensor] = []
    sizes: list[int] = []
    for stage in model.backbone.stages:
        stage.register_forward_hook(lambda _, given, gives: states.append(model.backbone.features(gives)))
        stage.register_forward_pre_hook(
            lambda _, given: sizes.append(len(given[0] if isinstance(given[0], Tensor) else given[0][0]))
        )
    x = inputs(model, 6, 7)
    logits = stored(model, x)
    states.clear()
    sizes.clear()
    found, exit_index = model.predict(x, ExitRule("max-probability", threshold))
    last = 1 if threshold < 0 else model.num_exits
    assert exit_index.tolist() == [last] * 6
    assert sizes == [6] * (model.exit_stages[0] if threshold < 0 else len(model.backbone.stages))
    torch.testing.assert_close(found, logits[last - 1])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_batch(family: str) -> None:
    model = network(family, 8)
    for rule in (max_probability(0.5), patience(1)):
        logits, exit_index = model.predict(inputs(model, 0, 8), rule)
        assert (logits.shape, exit_index.shape) == ((0, CLASSES), (0,))
        assert exit_index.dtype == torch.int64


def test_the_memory_format_survives_who_leaves() -> None:
    """A convolution on the rest runs in the layout of its weights, as it did on all."""
    model = network("resnet-tiny", 9, torch.float32)
    x = inputs(model, 16, 9, torch.float32).contiguous(memory_format=torch.channels_last)
    seen: list[tuple[int, bool]] = []
    for stage in model.backbone.stages[1:]:
        stage.register_forward_pre_hook(
            lambda _, given: seen.append((len(given[0]), given[0].is_contiguous(memory_format=torch.channels_last)))
        )
    model.predict(x, in_gaps(stored(model, x), "margin", 1e-4, np.random.default_rng(9)))
    assert {size for size, _ in seen} - {16}, "somebody left"
    assert all(kept for _, kept in seen)


def test_what_it_gives_may_be_trained_on() -> None:
    """Not inference tensors: those of torch.inference_mode can never enter a loss."""
    model = network("mlp", 10, torch.float32)
    x = inputs(model, 4, 10, torch.float32)
    logits, _ = model.predict(x, max_probability(0.5))
    assert not logits.requires_grad
    nn.functional.mse_loss(model(x)[0], logits).backward()
    assert model.head(1)[0].weight.grad is not None


def test_training_mode_is_refused() -> None:
    """BatchNorm would normalize by those who are still inside."""
    with pytest.raises(EestudyError, match=r"training mode; call model\.eval\(\)"):
        network("resnet-tiny", 11).train().predict(torch.zeros(2, 1, 8, 8).double(), max_probability(0.5))


def test_a_bare_threshold_is_no_rule() -> None:
    model = network("mlp", 12)
    with pytest.raises(EestudyError, match=r"^rule: give a rule, as max_probability\(0\.9\), got 0\.9$"):
        model.predict(inputs(model, 3, 12), 0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 5])
def test_thresholds_for_another_number_of_exits_are_refused(count: int) -> None:
    model = network("mlp", 12)
    assert model.num_exits == 4
    x = inputs(model, 3, 12)
    rule = per_exit([-math.inf] * count)
    with pytest.raises(EestudyError, match=rf"{count} thresholds, the model has 4 exits"):
        model.predict(x, rule)
    with pytest.raises(EestudyError, match=rf"{count} thresholds, .* 4 exits"):
        simulate(stored(model, x), rule)


def test_float64_logits_that_are_equal_when_stored_are_equal_to_patience() -> None:
    """The first exit's largest two differ in float64 alone; stored in float32 they do not."""
    almost = torch.tensor([[1.0, 1.0 + 1e-12, 0.0]], dtype=torch.float64)
    clearly = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert patience(1)([almost, clearly]).tolist() == [True]
    assert simulate(torch.stack([almost, clearly, clearly]), patience(1)).tolist() == [2]
