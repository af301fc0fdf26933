"""How hard a sample is: the evaluation's definition beside the one of a run's page."""

from __future__ import annotations

import numpy as np

from eestudy.evaluation.difficulty import share_wrong
from eestudy.report import statistics

from .cases import random_run


def test_the_share_wrong_is_that_of_a_run_s_page() -> None:
    runs = [random_run(seed)[0].numpy() for seed in (1, 2, 3)]
    labels = random_run(1)[1].numpy()
    found = share_wrong([logits.argmax(-1) for logits in runs], labels)
    np.testing.assert_allclose(found, statistics.share_wrong(runs, labels), atol=1e-12)
    assert 0 < found.mean() < 1
    real = np.random.default_rng(0).normal(size=120)
    found = share_wrong([logits[:, :, 0] for logits in runs], real)
    assert found.tolist() == statistics.share_wrong([logits[:, :, :1] for logits in runs], real).tolist()
