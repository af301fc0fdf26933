"""Every backbone under the three strategies: three steps, predictions, and the same logits from what was saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import eestudy
from eestudy import data, runs
from eestudy.config import RunConfig
from eestudy.registry import ARCHITECTURES

# Shallower than they are known by, so that all of them fit in the time of a test; their builders are the real ones and
# their sizes as published are checked in test_models_conv and test_models_tokens.
ARGS: dict[str, dict[str, int]] = {
    "wrn-28-10": {"depth": 10, "width": 2},
    "vit-small": {"depth": 3},
    "vit-base": {"depth": 2},
}
# Of the deep ones not every stage, which would only repeat the same head dozens of times.
EXITS: dict[str, object] = {
    "resnet32": {"every": 5}, "resnet56": {"every": 9}, "resnet110": {"every": 18}, "resnet18": {"every": 3},
    "resnet34": {"every": 6}, "resnet50": {"flops": [30, 70]}, "resnet101": {"every": 12},
    "efficientnet-v2-s": {"every": 15}, "swin-v2-t": {"every": 5}, "convnext-tiny": {"every": 6},
}  # fmt: skip
# Slow ones, trained as mixed alone, which has both a phase of the backbone and one of everything.
SLOW = ("resnet56", "resnet110", "resnet34", "resnet50", "resnet101", "vgg16-bn", "efficientnet-v2-s", "swin-v2-t",
        "convnext-tiny", "vit-small", "vit-base")  # fmt: skip
INPUTS = {None: "digits", 1: "tokens", 2: "mnist1d", 3: "digits"}
STEPS, BATCH = 3, 4


def tiny(loaded: data.DataSet) -> data.DataSet:
    """The first samples of a data set: three batches to train on, one for each of the others."""

    def first(split: data.Split, count: int) -> data.Split:
        return split.part(torch.arange(count))

    return dataclasses.replace(
        loaded,
        train=first(loaded.train, STEPS * BATCH),
        validation=first(loaded.validation, BATCH),
        test=first(loaded.test, BATCH),
    )


def tokens() -> data.DataSet:
    """Ids of eight tokens and the classes of 20newsgroups, as a data set of texts gives them; 0 is the padding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1000, 2000, (40, 8), generator=generator)
    x[:, 6:] = 0
    y = torch.arange(40) % 20
    train, validation, test = (data.Split(x[start:end], y[start:end]) for start, end in ((0, 20), (20, 30), (30, 40)))
    return data.DataSet("tokens", 20, (8,), train, validation, test)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trains_predicts_saves_and_reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    dataset = INPUTS[ARCHITECTURES.entries[architecture].inputs]
    loaded = tiny(tokens() if dataset == "tokens" else data.load(dataset))
    monkeypatch.setattr(runs.data, "load", lambda *args, **kwargs: loaded)
    for strategy in ("mixed",) if architecture in SLOW else ("disjoint", "joint", "mixed"):
        config = RunConfig(
            architecture=architecture,
            dataset="20newsgroups" if dataset == "tokens" else dataset,
            strategy=strategy,
            epochs=2,  # one for each phase
            phase_split=0.5,
            batch_size=BATCH,
            checkpoints=[100],
            exits=EXITS.get(architecture, "all"),
            architecture_args=ARGS.get(architecture, {}),
        )
        run = eestudy.run(config, store=tmp_path, device="cpu")
        logits, labels = run.predictions()
        model = run.model()
        assert logits.shape == (model.num_exits, BATCH, loaded.num_classes)
        assert np.isfinite(logits).all()
        assert (labels == loaded.test.y.numpy()).all()
        x = loaded.test.inputs().contiguous(memory_format=model.memory_format) if dataset == "digits" else loaded.test.x
        with torch.no_grad():
            again = torch.stack(model(x)).numpy()
        np.testing.assert_array_equal(again, logits)
        left, exit_index = model.predict(x, eestudy.evaluation.max_probability(0.2))
        np.testing.assert_allclose(left.numpy(), logits[exit_index.numpy() - 1, np.arange(BATCH)], rtol=1e-3, atol=1e-4)
