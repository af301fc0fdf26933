"""Thresholds with a guarantee: early exits cost at most a tolerated risk, with a stated confidence.

Learn then test (Angelopoulos et al. 2021) with fixed-sequence testing. Thresholds fixed before any data are seen, from
"hardly anybody leaves" towards "everybody leaves", are tested one after another on calibration data: null hypothesis
"with this threshold the risk is above the tolerance". The first that is not rejected at level 1 - confidence ends the
sequence; the last rejected one is certified, and costs the least of all certified. Whatever the distribution, the
network and the sequence, the probability over draws of N calibration samples that the certified threshold's true risk
is above the tolerance is at most 1 - confidence. The promise is about samples drawn like those, and independently.

Risks after Jazbec et al. 2024, of 0-1 losses, where early is the network with early exits and full its last exit:

| risk     | its mean is                                   | p-value                                              |
|----------|-----------------------------------------------|------------------------------------------------------|
| gap      | accuracy of full less accuracy of early       | betting (Waudby-Smith and Ramdas 2024)               |
| error    | share of samples that early gets wrong        | exact binomial tail                                  |
| disagree | share where early differs from full, whatever the labels | exact binomial tail             |

A gap is lost accuracy that early exits of other samples may win back, so a sample counts -1, 0 or 1; the bet adapts to
how rarely it is not 0, where bounds from the range alone (Hoeffding) need many times the samples.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats

from eestudy.config import EestudyError, check_name

from .checks import ArrayLike, Costs, check_between, check_classes, check_costs
from .exit_rules import ExitRule, leave_at, rule_for, score_table

RISKS = ("gap", "error", "disagree")
_MOST = 2**20  # samples, up to which `fewest_samples` looks
_AIM = 0.05  # the stakes are best for p-values near this one, and valid for all


@dataclass(frozen=True)
class Certified:
    """What `control_risk` found.

    threshold: on the score, shared by all exits; None when none is certified, and then reason says why.
    risk, cost: of the certified threshold on the calibration data (mean; FLOPs a sample), NaN without one.
    tests: threshold, risk, cost, p of each test made, in order; the last may be the one that failed.
    """

    rule: str
    kind: str
    tolerance: float
    confidence: float
    threshold: float | None
    reason: str
    risk: float
    cost: float
    tests: pd.DataFrame = field(repr=False, compare=False)

    def exit_rule(self) -> ExitRule:
        """For `predict` and `simulate`. Raises EestudyError with the reason when nothing is certified."""
        if self.threshold is None:
            raise EestudyError(f"threshold: none is certified: {self.reason}")
        return ExitRule(self.rule, self.threshold)


def control_risk(
    logits: ArrayLike,
    labels: ArrayLike,
    costs: Costs,
    tolerance: float,
    confidence: float = 0.9,
    rule: str = "max-probability",
    risk: str = "gap",
    thresholds: Sequence[float] | ArrayLike | None = None,
) -> Certified:
    """The cheapest threshold that keeps the risk at or below `tolerance`, with probability `confidence`; or None.

    logits (K, N, C), labels (N,): calibration data that trained nothing and chose nothing; costs (K,) in FLOPs.
    tolerance in (0, 1): for a gap, the accuracy that may be lost (0.01: one point). risk: see above.
    thresholds: an own sequence, falling; it must not come from these data, or the guarantee is void.
    Classification only. Raises EestudyError for numbers out of range, bad arrays, and labels of one class only.
    """
    check_name("risk", risk, RISKS)
    tolerance = check_between("tolerance", tolerance, 0, 1)
    confidence = check_between("confidence", confidence, 0, 1)
    tensor, label_array = check_classes(logits, labels, "risk control")
    cost_array = check_costs(costs, len(tensor))
    num_exits, num_samples, num_classes = tensor.shape
    score, predicted = score_table(tensor, rule)
    if thresholds is None:
        sequence = np.append(rule_for(rule, num_classes).sequence(num_exits, num_classes), -math.inf)
    else:
        sequence = np.asarray(thresholds, dtype=np.float64)
        if sequence.ndim != 1 or not len(sequence) or np.isnan(sequence).any() or (np.diff(sequence) >= 0).any():
            raise EestudyError(f"thresholds: must be a falling list of numbers, got {thresholds!r}")
    tests = []
    for threshold in sequence:
        index = leave_at(score, np.full(num_exits, threshold)) - 1
        loss = _losses(predicted, label_array, index, risk)
        gap = risk == "gap"
        p = betting_p_value(loss, tolerance) if gap else binomial_p_value(int(loss.sum()), len(loss), tolerance)
        tests.append({"threshold": threshold, "risk": loss.mean(), "cost": cost_array[index].mean(), "p": p})
        if p > 1 - confidence:
            break  # what comes after the first test that fails is never certified: this is the correction
    frame = pd.DataFrame(tests)
    certified = frame[frame["p"] <= 1 - confidence]
    if certified.empty:
        first = frame.iloc[0]
        reason = too_few(num_samples, risk, tolerance, confidence) or (
            f"already the most careful threshold, {first['threshold']:.6g}, has risk ({risk}) {first['risk']:.4g} on "
            f"{num_samples} samples, p = {first['p']:.3g} > {1 - confidence:.3g} for risk > {tolerance:g}"
        )
        return Certified(rule, risk, tolerance, confidence, None, reason, math.nan, math.nan, frame)
    risk_found, cost = (float(certified[name].iloc[-1]) for name in ("risk", "cost"))
    threshold = float(certified["threshold"].iloc[-1])
    return Certified(rule, risk, tolerance, confidence, threshold, "", risk_found, cost, frame)


def _losses(predicted: np.ndarray, labels: np.ndarray, index: np.ndarray, risk: str) -> np.ndarray:
    """Of every sample (N,), when it leaves at exit index[n] from 0: -1, 0 or 1 for a gap, else 0 or 1."""
    early, full = predicted[index, np.arange(len(index))], predicted[-1]
    if risk == "gap":
        return (full == labels).astype(np.int64) - (early == labels)
    return (early != (labels if risk == "error" else full)).astype(np.int64)


def too_few(num_samples: int, risk: str, tolerance: float, confidence: float) -> str:
    """Why that many samples certify nothing without a loss on any of them, and how many would; "" where they do."""
    needed = fewest_samples(risk, tolerance, confidence)
    even = f"even without a single loss, tolerance {tolerance:g} at confidence {confidence:g} takes at least {needed}"
    return f"{num_samples} samples are too few: {even}" if num_samples < needed else ""


@cache
def fewest_samples(risk: str, tolerance: float, confidence: float) -> int:
    """How many samples without a single loss certify a threshold; for a gap, 2^20 where that many do not yet."""
    level = 1 - confidence
    if risk != "gap":  # p is (1 - tolerance)^N
        return math.ceil(math.log(level) / math.log1p(-tolerance))
    return bisect_left(range(_MOST), True, lo=1, key=lambda n: betting_p_value(np.zeros(n), tolerance) <= level)


def binomial_p_value(losses: int, samples: int, tolerance: float) -> float:
    """P(Binomial(samples, tolerance) <= losses): small when so few losses would be a surprise at risk `tolerance`.

    Valid for risks above the tolerance too, which make few losses less likely still.
    """
    return float(stats.binom.cdf(losses, samples, tolerance))


def betting_p_value(losses: np.ndarray, tolerance: float) -> float:
    """p-value of "the mean is above `tolerance`" from independent losses (N,) in [-1, 1].

    A gambler stakes on every sample that its loss is below the tolerance, the stake fixed before the sample is seen:
    capital = prod(1 + stake_i (tolerance - loss_i)). If the mean is above the tolerance the capital is a
    supermartingale that starts at 1, so by Ville's inequality P(max capital >= 1/p) <= p. Stakes as of
    Waudby-Smith and Ramdas 2024 (predictable plug-in), with the variance of the samples before, at most 3/4 of
    what could ruin. The samples' order must not depend on their losses.
    """
    loss = np.asarray(losses, dtype=np.float64)
    n = len(loss)
    count = np.arange(1, n + 1)
    mean = np.cumsum(loss) / (count + 1)  # of the samples so far, and of one 0 before them
    variance = np.concatenate([[1.0], 1.0 + np.cumsum((loss - mean) ** 2)[:-1]]) / count  # of the samples before
    stake = np.minimum(np.sqrt(2 * math.log(1 / _AIM) / (n * variance)), 0.75 / (1 - tolerance))
    capital = np.cumsum(np.log1p(stake * (tolerance - loss)))
    return float(np.exp(-max(0.0, capital.max())))
