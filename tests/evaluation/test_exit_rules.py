"""Exit rules: thresholds, scores with known answers, and simulation against real stepping inference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eestudy import EestudyError
from eestudy import evaluation as ev
from eestudy.evaluation import exit_rules
from eestudy.evaluation.rules.rule import predictions
from eestudy.registry import EXIT_RULES

RULES_TO_TRY = [
    ev.max_probability(0.5),
    ev.max_probability(0.0),
    ev.max_probability(1.0),
    ev.entropy(0.8),
    ev.margin(0.3),
    ev.patience(0),
    ev.patience(1),
    ev.patience(2),
    ev.per_exit([0.9, 0.2, 0.6, 0.4, 0.0]),
    ev.per_exit([math.inf, 0.6, -math.inf, 0.5, 0.0]),
    ev.per_exit([-0.1, -1.0, -0.5, -2.0, 0.0], rule="entropy"),
]


def random_logits(seed=0, shape=(5, 97, 7), scale=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def step_through(logits, rule, batch_size):
    """What a model does: walk the exits, drop who leaves, ask the rule about the rest only."""
    num_exits, num_samples, _ = logits.shape
    exit_index = torch.zeros(num_samples, dtype=torch.int64)
    for start in range(0, num_samples, batch_size):
        inside = torch.arange(start, min(start + batch_size, num_samples))
        history = []
        for k in range(1, num_exits + 1):
            history.append(logits[k - 1, inside])
            if k == num_exits:
                exit_index[inside] = k
                break
            leaves = rule(history)
            assert leaves.dtype == torch.bool
            assert leaves.shape == inside.shape
            exit_index[inside[leaves]] = k
            inside, history = inside[~leaves], [past[~leaves] for past in history]
    return exit_index.numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 97])
@pytest.mark.parametrize("rule", RULES_TO_TRY, ids=str)
def test_simulation_equals_stepping_inference(rule, batch_size):
    logits = random_logits()
    np.testing.assert_array_equal(ev.simulate(logits, rule), step_through(logits, rule, batch_size))


@pytest.mark.parametrize("name", list(EXIT_RULES))
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_a_score_does_not_depend_on_the_batch(name, num_classes):
    # A threshold equal to a sample's own score is the hardest case: one last bit of difference flips the
    # decision.
    logits = random_logits(1, (3, 64, num_classes))
    stored = ev.scores(logits, name)
    for size in (1, 7, 64):
        for start in range(0, 64, size):
            rows = slice(start, start + size)
            seen = EXIT_RULES[name].score([logits[0, rows], logits[1, rows], logits[2, rows]])
            np.testing.assert_array_equal(seen.numpy(), stored[2, rows])


def test_blocks_of_rows_change_nothing(monkeypatch):
    logits = random_logits(2)
    whole = {name: ev.scores(logits, name) for name in EXIT_RULES}
    monkeypatch.setattr(exit_rules, "BLOCK", 70)  # 10 of the 97 rows at a time
    for name, expected in whole.items():
        np.testing.assert_array_equal(ev.scores(logits, name), expected)


def test_an_empty_batch_is_answered():
    for rule in RULES_TO_TRY:
        assert rule([torch.zeros(0, 7)]).shape == (0,)


def test_scores_with_known_values():
    p = torch.tensor([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    logits = p.log()[None]
    np.testing.assert_allclose(ev.scores(logits, "max-probability"), [[0.7, 1 / 3]], rtol=1e-6)
    np.testing.assert_allclose(ev.scores(logits, "margin"), [[0.5, 0.0]], atol=1e-6)
    by_hand = 0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)
    np.testing.assert_allclose(ev.scores(logits, "entropy"), [[by_hand, -math.log(3)]], rtol=1e-6)
    assert ev.scores(logits, ev.max_probability(0.1)).dtype == np.float32


def test_margin_and_entropy_survive_certain_predictions_and_ties():
    logits = torch.tensor([[[1000.0, 0.0, -1000.0], [5.0, 5.0, 0.0]]])
    assert ev.scores(logits, "margin").tolist() == [[1.0, 0.0]]
    assert ev.scores(logits, "entropy")[0, 0] == 0.0
    assert predictions(logits).tolist() == [[0, 0]]


def test_patience_counts_the_run_that_ends_here():
    predicted = torch.tensor([[0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1]])  # (K, N)
    logits = torch.nn.functional.one_hot(predicted, 3).float()
    runs = [[1, 1, 1], [2, 1, 1], [3, 2, 1], [4, 1, 2], [1, 2, 3]]
    assert ev.scores(logits, "patience").tolist() == runs
    assert ev.simulate(logits, ev.patience(0)).tolist() == [1, 1, 1]
    assert ev.simulate(logits, ev.patience(1)).tolist() == [2, 3, 4]
    assert ev.simulate(logits, ev.patience(2)).tolist() == [3, 5, 5]


def test_only_a_strictly_greater_score_leaves():
    logits = torch.zeros(2, 1, 4)  # every probability is exactly 1/4
    assert ev.simulate(logits, ev.max_probability(0.25)).tolist() == [2]
    assert ev.simulate(logits, ev.max_probability(np.nextafter(0.25, 0))).tolist() == [1]
    # float32 would round this threshold up to 0.25; the comparison is made in float64.
    assert ev.simulate(logits, ev.max_probability(0.25 - 1e-12)).tolist() == [1]
    assert ev.max_probability(0.25 - 1e-12)([logits[0]]).tolist() == [True]
    assert ev.simulate(logits, ev.margin(0.0)).tolist() == [2]


def test_entropy_leaves_below_h():
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]])  # H = log 2
    assert ev.simulate(logits, ev.entropy(0.69)).tolist() == [2]
    assert ev.simulate(logits, ev.entropy(0.70)).tolist() == [1]


def test_numpy_tensor_and_read_only_arrays_agree():
    logits = random_logits()
    frozen = logits.numpy().copy()
    frozen.flags.writeable = False
    for same in (logits.numpy(), frozen, logits.permute(2, 1, 0).contiguous().permute(2, 1, 0)):
        np.testing.assert_array_equal(
            ev.simulate(same, ev.max_probability(0.5)), ev.simulate(logits, ev.max_probability(0.5))
        )


def test_one_exit_takes_everybody():
    assert ev.simulate(random_logits(0, (1, 5, 3)), ev.max_probability(0.0)).tolist() == [1] * 5


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ev.max_probability(1.5), "1.5"),
        (lambda: ev.max_probability(-0.1), "-0.1"),
        (lambda: ev.max_probability(math.nan), "nan"),
        (lambda: ev.max_probability("0.5"), "'0.5'"),  # type: ignore[arg-type]
        (lambda: ev.max_probability(True), "True"),
        (lambda: ev.entropy(-1.0), "-1"),
        (lambda: ev.entropy(math.inf), "inf"),
        (lambda: ev.margin(2), "2"),
        (lambda: ev.patience(-1), "-1"),
        (lambda: ev.patience(1.5), "1.5"),  # type: ignore[arg-type]
        (lambda: ev.patience(math.inf), "inf"),  # type: ignore[arg-type]
        (lambda: ev.per_exit([0.5, math.nan]), "nan"),
        (lambda: ev.per_exit([0.5, 1.5]), "1.5"),
        (lambda: ev.per_exit([]), "none"),
        (lambda: ev.per_exit(np.array([[0.5]])), "shape"),
        (lambda: ev.per_exit([0.5], rule="marginn"), "margin"),
        (lambda: ev.scores(torch.zeros(2, 3, 4), "max-prob"), "max-probability"),
        (lambda: ev.scores(torch.zeros(2, 3, 4), 7), "rule: unknown name 7"),  # type: ignore[arg-type]
        (lambda: ev.scores(torch.zeros(3, 4)), r"\(3, 4\)"),
        (lambda: ev.scores(torch.zeros(2, 0, 4)), "0 samples"),
        (lambda: ev.scores(torch.tensor([[[0.0, math.nan]]])), "1 NaN"),
        (lambda: ev.scores(torch.tensor([[[math.inf, -math.inf]]])), "2 NaN or infinite"),
        (lambda: ev.simulate(torch.zeros(3, 2, 4), ev.per_exit([0.5, 0.5])), "2 thresholds.*3 exits"),
        (lambda: ev.per_exit([0.5])([torch.zeros(1, 2)] * 2), "exit 2"),
        (lambda: ev.max_probability(0.5)([]), "empty"),
    ],
)
def test_bad_input_is_refused_with_the_value(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("name", ["max-probability", "margin", "entropy"])
def test_temperatures_scale_what_is_scored(name: str) -> None:
    """In real inference and in simulation: the very numbers of `apply_temperatures`, thresholds at a score included."""
    logits = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0)) * 3
    temperatures = [0.3, 2.7, 1.0]
    routed = torch.as_tensor(ev.apply_temperatures(logits, temperatures))
    found = ev.scores(routed, name)
    for place in range(40):
        thresholds = [float(found[0, place]), float(found[1, (7 * place) % 40]), math.inf]
        rule = ev.per_exit(thresholds, name, temperatures=temperatures)
        np.testing.assert_array_equal(ev.scores(logits, rule), found)
        wanted = ev.simulate(routed, ev.per_exit(thresholds, name))
        assert ev.simulate(logits, rule).tolist() == wanted.tolist()
        for k in (1, 2):
            assert rule(list(logits[:k])).tolist() == (found[k - 1].astype(np.float64) > thresholds[k - 1]).tolist()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ev.per_exit([0.5, 1], temperatures=[1.0, 0.0]),
            "temperatures: must be finite numbers above 0, got 0.0",
        ),
        (lambda: ev.per_exit([0.5, 1], temperatures=[1.0, math.nan]), "temperatures: must be .* got nan"),
        (lambda: ev.per_exit([1, 1], "patience", temperatures=[1.0, 1.0]), "temperatures: patience reads no prob"),
        (
            lambda: ev.simulate(torch.zeros(2, 3, 4), ev.per_exit([0.5, 1], temperatures=[1.0])),
            "1 temperatures, .* 2 exits",
        ),
    ],
)
def test_temperatures_that_are_none_are_refused(make, words: str) -> None:
    with pytest.raises(EestudyError, match=words):
        make()
