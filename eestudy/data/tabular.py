"""Tables of numbers: scikit-learn's diabetes, for regression without a download."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from eestudy.data.splits import SPLIT_SEED, DataSet, Split, hold_out


def diabetes(validation: int = 0) -> DataSet:
    """442 patients, ten measurements each, and how far their diabetes got in a year (Efron et al. 2004).

    Inputs (10,) and target, both standardized by mean and deviation of the training split, which holds what is neither
    test (a fifth) nor validation (see `hold_out`). A target of 1 is one deviation, about 77 points of the
    published measure; an R2 or a correlation is the same on either scale.
    """
    x, y = load_diabetes(return_X_y=True, scaled=False)  # as measured: the scaled ones have seen the test samples
    rest, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=SPLIT_SEED)
    kept, held_out = (rest[chosen] for chosen in hold_out(y[rest], validation, "regression"))
    x = (x - x[kept].mean(axis=0)) / x[kept].std(axis=0)
    y = (y - y[kept].mean()) / y[kept].std()

    def split(chosen: np.ndarray) -> Split:
        return Split(torch.from_numpy(x[chosen].astype(np.float32)), torch.from_numpy(y[chosen].astype(np.float32)))

    return DataSet("diabetes", 1, (10,), split(kept), split(held_out), split(test), task="regression")
