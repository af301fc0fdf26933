"""Class weights, label smoothing and a loss of one's own: what they are, what they are known by, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eestudy
from eestudy.content import code_of
from eestudy.study import load_study
from eestudy.training.losses import exit_losses
from eestudy.training.own_loss import with_class_weights
from eestudy.training.phases import Phase, Settings

LOGITS, LABELS = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2])
FACTOR = 1.0


def halved(logits: Tensor, targets: Tensor) -> Tensor:
    return FACTOR * F.cross_entropy(logits, targets)


def focal(power: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(logits, targets, reduction="none")
        return each * (1 - torch.exp(-each)) ** power

    return loss


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.scale * F.cross_entropy(logits, targets)


def run(store: Path, criterion: Any = None, dataset: str = "digits", **settings: Any) -> Any:
    fields = {"strategy": "joint", "epochs": 1, "batch_size": 256, **settings}
    return eestudy.run(eestudy.RunConfig(architecture="mlp", dataset=dataset, **fields), store, criterion=criterion)


def test_class_weights_and_smoothing_are_those_of_torch():
    weights = (1.0, 2.0, 4.0)
    found = exit_losses(LOGITS, LABELS, Settings(class_weights=weights, label_smoothing=0.2))
    for losses, logits in zip(found, LOGITS):
        each = F.cross_entropy(logits, LABELS, torch.tensor(weights), reduction="none", label_smoothing=0.2)
        torch.testing.assert_close(losses, each.mean())
    shares = F.one_hot(LABELS, 3).float()
    hard, soft = (exit_losses(LOGITS, targets, Settings(class_weights=weights)) for targets in (LABELS, shares))
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("given", ["balanced", (2.0, 3.0, 6.0), (20.0, 30.0, 60.0)])
def test_class_weights_have_mean_1_over_the_training_data(given):
    phase = Phase("together", ("backbone",), "all", settings=Settings(class_weights=given))
    found = torch.tensor(with_class_weights(phase, LABELS, 3).settings.class_weights)
    torch.testing.assert_close(found[LABELS].mean(), torch.tensor(1.0))
    torch.testing.assert_close(found / found[0], torch.tensor([1.0, 1.5, 3.0]))


def test_class_weights_of_absent_classes_alone_are_refused():
    phase = Phase("together", ("backbone",), "all", settings=Settings(class_weights=(0.0, 0.0, 0.0, 1.0)))
    with pytest.raises(eestudy.EestudyError, match=r"class_weights: .* are 0 for every class of the training data"):
        with_class_weights(phase, LABELS, 4)


def test_a_criterion_is_the_loss(tmp_path):
    plain = run(tmp_path)
    for criterion in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")):
        same = run(tmp_path, criterion)
        assert same.id != plain.id
        np.testing.assert_array_equal(same.predictions()[0], plain.predictions()[0])
    smooth = run(tmp_path, label_smoothing=0.1), run(tmp_path, nn.CrossEntropyLoss(label_smoothing=0.1))
    np.testing.assert_array_equal(smooth[0].predictions()[0], smooth[1].predictions()[0])
    assert not np.array_equal(smooth[0].predictions()[0], plain.predictions()[0])
    assert smooth[0].phases != plain.phases


def test_a_criterion_of_a_regression_sees_predictions_and_labels_of_one_shape(tmp_path):
    same = run(tmp_path, nn.MSELoss(), "diabetes"), run(tmp_path, None, "diabetes")
    np.testing.assert_allclose(same[0].predictions()[0], same[1].predictions()[0], atol=1e-6)


def test_a_criterion_is_known_by_its_code_and_what_it_uses(monkeypatch):
    assert code_of(focal(1.0)) == code_of(focal(1.0)) != code_of(focal(2.0))
    weights = (torch.ones(3), torch.tensor([1.0, 1.0, 2.0]))
    assert len({code_of(nn.CrossEntropyLoss(weight)) for weight in weights}) == 2
    assert code_of(partial(F.cross_entropy, label_smoothing=0.1)) != code_of(
        partial(F.cross_entropy, label_smoothing=0.2)
    )
    before = code_of(halved)
    monkeypatch.setitem(halved.__globals__, "FACTOR", 0.5)
    assert code_of(halved) != before
    typed: dict[str, Any] = {}
    exec("one = lambda x: [x * 1 for x in x]\ntwo = lambda x: [x * 2 for x in x]", typed)
    assert code_of(typed["one"]) != code_of(typed["two"])
    assert "0x" not in code_of(typed["one"])


@pytest.mark.parametrize(
    ("criterion", "settings", "line"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), {}, "criterion: gives the sum over the batch"),
        (nn.BCEWithLogitsLoss(), {}, r"criterion: fails for logits \(4, 10\) and targets \(4,\) of torch.int64"),
        (
            nn.BCEWithLogitsLoss(),
            {"augmentation": "mixup", "class_weights": "balanced"},
            "class_weights: has no effect",
        ),
        (lambda x, y: x.square(), {}, r"criterion: gives \(4, 10\) .* finite losses \(4,\) or their mean are needed"),
        (lambda x, y: F.cross_entropy(x, y) / 0, {}, "finite losses"),
        (lambda x, y: 1.0, {}, "criterion: gives float"),
        (lambda x, y: F.cross_entropy(x.detach(), y), {}, "criterion: its loss has no gradient"),
        (lambda x: x, {}, "criterion: fails for logits"),
        (nn.CrossEntropyLoss, {}, "criterion: .* is not valid; give a function of logits"),
        ("mse", {}, "criterion: 'mse' is not valid"),
        (Learned(), {}, "criterion: has parameters, which nothing would train"),
        (nn.CrossEntropyLoss(), {"label_smoothing": 0.1}, "label_smoothing: has no effect with a criterion"),
        (nn.CrossEntropyLoss(), {"method": "l2w"}, "criterion: gives the mean of a batch, and the method needs"),
        (None, {"class_weights": [1, 2]}, "class_weights: 2 are given, but digits has 10 classes"),
        (None, {"class_weights": [-1] + 9 * [1]}, "class_weights: -1 is out of range; it must be at least 0"),
        (None, {"class_weights": 10 * [0]}, "class_weights: .* is not valid; at least one is above 0"),
        (None, {"class_weights": "even"}, "class_weights: 'even' is not valid; give 'balanced'"),
        (None, {"label_smoothing": 1.0}, "label_smoothing: 1.0 is out of range; it must be at least 0 and below 1"),
        (
            None,
            {"label_smoothing": 0.1, "dataset": "diabetes"},
            "label_smoothing: 0.1 is for classes; diabetes is regr",
        ),
        (None, {"class_weights": [1], "dataset": "diabetes"}, r"class_weights: .* is for classes; diabetes is regr"),
    ],
)
def test_what_is_no_loss_is_refused(criterion, settings, line, tmp_path):
    with pytest.raises(eestudy.EestudyError, match=line) as caught:
        run(tmp_path, criterion, **settings)
    assert "\n" not in str(caught.value)


def test_a_criterion_that_is_not_here_is_asked_for(tmp_path):
    config = eestudy.RunConfig(architecture="mlp", dataset="digits", strategy="joint", criterion="abc")
    with pytest.raises(eestudy.EestudyError, match="criterion: abc was not given in this process"):
        eestudy.run(config, store=tmp_path)


def test_weights_of_classes_in_a_yaml_are_one_value(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "architecture: mlp\ndataset: digits\nstrategy: joint\nclass_weights: [1, 2, 3]\n"
    )
    (only,) = load_study(tmp_path / "one.yaml").configs
    assert only.class_weights == (1, 2, 3)


def test_old_settings_keep_their_identity():
    plain = eestudy.RunConfig(architecture="mlp", dataset="digits", strategy="joint")
    assert not {"class_weights", "label_smoothing", "criterion"} & plain.identity().keys()
    assert plain.replace(class_weights=(), label_smoothing=0.0).id == plain.id
    assert len({plain.id, plain.replace(class_weights="balanced").id, plain.replace(label_smoothing=0.1).id}) == 3
