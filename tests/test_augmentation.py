"""Each augmentation against the obvious loop over samples, and what it may never do."""

from __future__ import annotations

import pytest
import torch

from eestudy.config import EestudyError
from eestudy.data import augmentation
from eestudy.data.splits import Normalization

BATCH = 48


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3, height: int = 12, width: int = 16) -> torch.Tensor:
    return torch.randint(1, 256, (BATCH, channels, height, width), generator=drawn(1)).to(torch.uint8)


def test_crop_is_a_cut_of_the_padded_image():
    x = images()
    cut = augmentation.crop(x, drawn(), {"crop": 3})
    assert cut.dtype == torch.uint8
    places = set()
    for before, after in zip(x, cut):
        padded = torch.nn.functional.pad(before, [3] * 4)
        found = [(i, j) for i in range(7) for j in range(7) if torch.equal(padded[:, i : i + 12, j : j + 16], after)]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 15, "one place for the whole batch"
    assert {0, 6} <= {i for i, _ in places}


def test_flip_mirrors_about_half_of_the_samples():
    x = images()
    flipped = augmentation.flip(x, drawn(), {})
    mirrored = [torch.equal(after, before.flip(2)) for before, after in zip(x, flipped)]
    assert all(mirror or torch.equal(after, before) for mirror, before, after in zip(mirrored, x, flipped))
    assert BATCH / 4 < sum(mirrored) < 3 * BATCH / 4


def test_cutout_sets_one_square_to_the_mean():
    x = images().float()
    cut = augmentation.cutout(x, drawn(), {"cutout": 5})
    sizes = set()
    for before, after in zip(x, cut):
        gone = (after == 0).all(0)
        assert torch.equal(after[:, ~gone], before[:, ~gone])
        rows, columns = gone.any(1).sum(), gone.any(0).sum()
        assert gone.sum() == rows * columns
        assert 0 < rows <= 5
        assert 0 < columns <= 5
        sizes.add((int(rows), int(columns)))
    assert (5, 5) in sizes
    assert len(sizes) > 1, "none was cut off at a border"


def blended(name: str, labels: torch.Tensor, classes: int, **args: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Constant images, each of its own value: what was mixed can be read off them."""
    x = torch.arange(BATCH, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 12, 16).contiguous()
    return augmentation.augment(x, labels, None, classes, name, args, drawn())


def test_mixup_mixes_pixels_and_labels_by_one_share():
    labels = torch.arange(BATCH)
    x, targets = blended("mixup", labels, BATCH, mixup=0.4)
    assert torch.allclose(targets.sum(1), torch.ones(BATCH))
    shares = targets.max(1).values
    for number in range(BATCH):
        parts = targets[number].nonzero().flatten()
        assert number in parts or shares[number] > 0.999
        assert len(parts) <= 2
        expected = (targets[number] * torch.arange(BATCH)).sum()
        assert torch.allclose(x[number], expected.expand(1, 12, 16), atol=1e-3)
    assert len(set(shares.tolist())) > BATCH / 2, "one share for the whole batch"


def test_cutmix_pastes_a_box_and_shares_by_its_size():
    labels = torch.arange(BATCH)
    x, targets = blended("cutmix", labels, BATCH)
    pasted = 0
    for number in range(BATCH):
        values = set(x[number].unique().tolist())
        assert len(values | {float(number)}) <= 2
        own = float((x[number] == number).float().mean())
        assert float(targets[number, number]) == pytest.approx(own, abs=1e-5)
        assert float(targets[number].sum()) == pytest.approx(1, abs=1e-5)
        pasted += own < 1
    assert pasted > BATCH / 2


def test_both_blends_give_each_sample_one_of_them():
    x, _ = blended("mixup+cutmix", torch.arange(BATCH), BATCH)
    whole = sum(len(sample.unique()) == 1 for sample in x)
    assert BATCH / 5 < whole < BATCH


def test_real_labels_are_mixed_themselves():
    labels = torch.linspace(-1, 1, BATCH)
    x, targets = blended("mixup", labels, 1)
    assert targets.shape == (BATCH,)
    assert torch.allclose(targets, -1 + x[:, 0, 0, 0] * 2 / (BATCH - 1), atol=1e-4)


def test_normalized_after_moving_and_before_blotting():
    """Padding is black, as in the image; cutout is the mean, as in the normalized one."""
    x = torch.full((BATCH, 1, 12, 16), 200, dtype=torch.uint8)
    normal = Normalization((100.0,), (50.0,))
    moved, _ = augmentation.augment(x, torch.zeros(BATCH).long(), normal, 2, "crop", {}, drawn())
    assert set(moved.unique().tolist()) == {-2.0, 2.0}
    blotted, _ = augmentation.augment(x, torch.zeros(BATCH).long(), normal, 2, "cutout", {}, drawn())
    assert set(blotted.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    "name", ["shift", "crop+flip", "cutout", "mixup+cutmix", "shift+crop+flip+cutout+mixup+cutmix"]
)
def test_the_generator_decides_alone(name):
    x, y = images(), torch.arange(BATCH) % 10
    normal = Normalization((100.0,) * 3, (50.0,) * 3)

    def once(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed + 99)
        return augmentation.augment(x.clone(), y, normal, 10, name, {}, drawn(seed))

    first, again, other = once(0), once(0), once(1)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].dtype == torch.float32
    assert torch.isfinite(first[0]).all()


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "valid"),
    [
        ("crop", (1, 40), torch.float32, "none, shift, mixup"),
        ("shift", (10,), torch.float32, "none, mixup"),
        ("mixup", (32,), torch.int64, "none"),
    ],
)
def test_one_that_does_not_fit_the_data(name, shape, dtype, valid):
    with pytest.raises(EestudyError) as caught:
        augmentation.check(name, shape, dtype)
    assert str(caught.value) == f"augmentation: {name} does not take inputs of shape {shape}; valid: {valid}"
