from __future__ import annotations

import itertools
import math

import pytest
import torch

from eestudy import data
from eestudy.config import EestudyError
from eestudy.data import augmentation
from eestudy.registry import DATASETS


@pytest.mark.parametrize(
    ("name", "shape", "sizes"), [("digits", (1, 8, 8), (1293, 144, 360)), ("mnist1d", (1, 40), (3600, 400, 1000))]
)
def test_facts(name, shape, sizes):
    loaded = data.load(name)
    assert loaded.input_shape == shape
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == sizes
    assert loaded.num_classes == 10
    assert loaded.train.x.dtype == torch.float32
    assert abs(float(loaded.train.x.mean())) < 1e-5
    assert abs(float(loaded.train.x.std()) - 1) < 1e-3


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_splits_share_no_sample(name):
    loaded = data.load(name)
    rows = [{bytes(x.numpy().tobytes()) for x in split.x} for split in (loaded.train, loaded.validation, loaded.test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_validation_is_stratified_and_fixed():
    first, second = data.load("digits").validation, DATASETS["digits"]().validation
    assert torch.equal(first.x, second.x)
    counts = torch.bincount(first.y)
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("size", [10, 400, 1290, 1293])
def test_train_size_draws_a_stratified_subset(size):
    whole, part = data.load("digits"), data.load("digits", train_size=size)
    assert len(part.train) == size
    assert torch.equal(part.validation.x, whole.validation.x)
    assert torch.equal(part.test.x, whole.test.x)
    share = torch.bincount(part.train.y, minlength=10) / size
    assert torch.allclose(share, torch.bincount(whole.train.y) / len(whole.train), atol=0.011)
    assert len({x.numpy().tobytes() for x in part.train.x} - {x.numpy().tobytes() for x in whole.train.x}) == 0


def test_noise_makes_mnist1d_noisier():
    calm, noisy = (data.load("mnist1d", noise=noise, correlated_noise=0.0) for noise in (0.0, 0.5))

    def roughness(split):
        return float(split.x.diff(dim=-1).pow(2).mean())

    assert roughness(noisy.train) > 2 * roughness(calm.train)


@pytest.mark.parametrize(
    ("name", "size", "args", "wanted"),
    [
        ("digitz", None, {}, "dataset: unknown name 'digitz'; nearest: digits"),
        ("digits", 5000, {}, "train_size: 5000 is not valid for digits; it has 10 classes and 1293 training samples"),
        ("digits", 3, {}, "train_size: 3 is not valid"),
        ("digits", None, {"noise": 1}, "unknown key 'noise' for digits; valid: validation"),
        ("digits", None, {"validation": 5}, "validation: 5 is not valid; it must be from 10 to 1427, or 0 for a tenth"),
        ("digits", None, {"validation": True}, "validation: True is not valid; it must be a whole number"),
        ("mnist1d", None, {"test": 4950}, "test: 4950 is not valid for mnist1d; it must be from 0 (a fifth) to 4900"),
        ("mnist1d", None, {"noize": 1}, "unknown key 'noize' for mnist1d; nearest: noise"),
        ("mnist1d", None, {"noise": -1}, "noise: -1 is not valid"),
        ("mnist1d", None, {"samples": 10}, "samples: 10 is not valid"),
    ],
)
def test_mistakes(name, size, args, wanted):
    with pytest.raises(EestudyError) as caught:
        data.load(name, size, **args)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("shape", [(64, 3, 16), (64, 2, 16, 24)])
def test_shift_moves_each_sample_by_its_own_amount(shape):
    """Against the obvious loop: pad a sample with zeros and cut at its own offset."""
    x = torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    moved = augmentation.shift(x, torch.Generator().manual_seed(0), {})
    reach = [max(1, size // 8) for size in shape[2:]]
    offsets = []
    every = [torch.arange(2 * size + 1).tolist() for size in reach]
    for before, after in zip(x, moved):
        padded = torch.nn.functional.pad(before, [pad for size in reversed(reach) for pad in (size, size)])
        found = []
        for offset in itertools.product(*every):
            cut = (slice(None), *(slice(start, start + size) for start, size in zip(offset, shape[2:])))
            if torch.equal(padded[cut], after):
                found.append(offset)
        assert len(found) == 1
        offsets.append(found[0])
    assert len(set(offsets)) > 3


def test_validation_and_test_are_never_augmented(small_run):
    """Stored predictions are those of the clean splits, and the loop's own validation too."""
    run = small_run("vit1d", "mnist1d", "joint", augmentation="shift")
    model, clean = run.model(), run.data()
    for name in ("validation", "test"):
        logits, labels = run.predictions(name)
        split = getattr(clean, name)
        with torch.no_grad():
            again = torch.stack(model(split.x)).numpy()
        assert abs(again - logits).max() < 1e-4
        assert (labels == split.y.numpy()).all()
    history = run.history()
    last = history[(history.epoch == 2) & (history.split == "validation")].sort_values("exit")
    logits, labels = run.predictions("validation")
    assert last["accuracy"].to_numpy() == pytest.approx((logits.argmax(2) == labels).mean(1), abs=1e-6)
