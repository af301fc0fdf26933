"""Data sets that need no download: scikit-learn's digits and diabetes, MNIST-1D."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

from eestudy.config import EestudyError
from eestudy.data import Outline
from eestudy.data.splits import SPLIT_SEED, DataSet, Split, held_out_size, hold_out, split_and_normalize


def digits(validation: int = 0) -> DataSet:
    """1,797 handwritten digits of 8x8 pixels (Alpaydin and Kaynak 1998, from scikit-learn); a fifth for test."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=SPLIT_SEED, stratify=labels)
    return split_and_normalize("digits", images[train], labels[train], images[test], labels[test], validation)


def mnist1d(
    noise: float = 0.02, correlated_noise: float = 0.25, samples: int = 5000, hardness: float = 1.0, test: int = 0,
    validation: int = 0,
) -> DataSet:  # fmt: skip
    """MNIST-1D (Greydanus and Kobak 2024): ten templates of a line of 40 points, shifted, sheared and made noisy.

    noise: deviation of the independent noise; correlated_noise: that of the smooth one; samples: how many are made,
    the last `test` of them (0: a fifth) for test. hardness: what both noises are multiplied by, 0 for none, 1 as
    published. validation: how many of the rest are held out, see `hold_out`.
    The generator's own seed (42) is kept, so the defaults give its published data set.
    """
    from mnist1d.data import get_dataset_args, make_dataset

    _check_mnist1d(samples, test, noise=noise, correlated_noise=correlated_noise, hardness=hardness)
    settings = get_dataset_args()
    settings.num_samples = samples
    settings.iid_noise_scale = noise * hardness
    settings.corr_noise_scale = correlated_noise * hardness
    made = make_dataset(settings)
    x, y = (np.concatenate([made[name], made[f"{name}_test"]]) for name in "xy")
    first = len(y) - test if test else len(made["y"])
    return split_and_normalize("mnist1d", x[:first, None], y[:first], x[first:, None], y[first:], validation)


def mnist1d_outline(samples: int = 5000, test: int = 0, validation: int = 0, **noises: float) -> Outline:
    """Facts of `mnist1d`, which takes a millisecond a sample to make."""
    _check_mnist1d(samples, test, **noises)
    made = samples // 10 * 10  # as many of each class
    test = test or made - int(made * 0.8)
    held_out = held_out_size(made - test, validation)
    return Outline("mnist1d", 10, (1, 40), torch.float32, made - test - held_out, held_out, test)


def _check_mnist1d(samples: int, test: int, **noises: float) -> None:
    for name, value in noises.items():
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise EestudyError(f"dataset_args: {name}: {value!r} is not valid for mnist1d; it must be 0 or more")
    if not isinstance(samples, int) or samples < 1000:
        raise EestudyError(f"dataset_args: samples: {samples!r} is not valid for mnist1d; it must be 1000 or more")
    if isinstance(test, bool) or not isinstance(test, int) or not 0 <= test <= samples - 100:
        raise EestudyError(
            f"dataset_args: test: {test!r} is not valid for mnist1d; it must be from 0 (a fifth) to {samples - 100}, "
            f"as {samples} samples are made"
        )


def diabetes(validation: int = 0) -> DataSet:
    """442 patients, ten measurements each, and how far their diabetes got in a year (Efron et al. 2004).

    Inputs (10,) and target are standardized by the training split. A fifth is for test. A target of 1 is one deviation,
    about 77 points of the published measure; an R2 or a correlation is the same on either scale.
    """
    x, y = load_diabetes(return_X_y=True, scaled=False)  # as measured: the scaled ones have seen the test samples
    rest, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=SPLIT_SEED)
    kept, held_out = (rest[chosen] for chosen in hold_out(y[rest], validation, "regression"))
    x = (x - x[kept].mean(axis=0)) / x[kept].std(axis=0)
    y = (y - y[kept].mean()) / y[kept].std()

    def split(chosen: np.ndarray) -> Split:
        return Split(torch.from_numpy(x[chosen].astype(np.float32)), torch.from_numpy(y[chosen].astype(np.float32)))

    return DataSet("diabetes", 1, (10,), split(kept), split(held_out), split(test), task="regression")
