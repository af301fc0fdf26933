"""Means, paired differences and corrected tests over seeds, means over cells, and the words a result may be told in.

Intervals over seeds are Student t intervals: mean +- t(0.975, n - 1) s / sqrt(n). With one seed, or with values that do
not differ at all, the spread cannot be estimated: the interval is NaN and `note` says why. Nothing here warns.

A difference is "better" or "worse" where the paired t test says so; "equivalent within m points" where two one-sided t
tests do (Schuirmann 1987); "inconclusive" otherwise, which is not "equal". All p are Holm-corrected over their family.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.core.groupby import SeriesGroupBy
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.weightstats import DescrStatsW

from eestudy.config import EestudyError

Seeds: TypeAlias = Mapping[int, float] | pd.Series  # seed -> value

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # of every corrected test
MARGINS = (0.005, 0.01)  # within which a difference is "equivalent", fractions; the smaller one first


@dataclass(frozen=True)
class Interval:
    """A mean over n values with its 95 % t interval; `low` and `high` are NaN when the spread is unknown."""

    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    note: str = ""

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Paired(Interval):
    """The same of the paired differences a - b over n common seeds, and the paired t test's p."""

    p: float = math.nan
    p_equal: tuple[float, ...] = (math.nan,) * len(MARGINS)  # of two one-sided tests, one of MARGINS each
    unpaired: int = 0  # seeds that only one of the two has; they are left out
    sd: float = math.nan  # standard deviation of the differences


@dataclass(frozen=True)
class OverCells(Interval):
    """A mean over n cells, each with its own true difference; NaN and a note where there are too few.

    low, high: of the mean (95 %). tau: standard deviation of the true differences between cells. lowest, highest: the
    95 % prediction interval, in which a further cell's true difference would lie.
    """

    p: float = math.nan
    tau: float = math.nan
    lowest: float = math.nan
    highest: float = math.nan


def mean_interval(values: Sequence[float] | np.ndarray | pd.Series) -> Interval:
    """Mean of `values` (n,), NaN left out, with its 95 % t interval."""
    x = np.asarray(values, dtype=float).ravel()
    x = x[np.isfinite(x)]
    if x.size < 2:
        mean, note = (float(x[0]), "one seed: no interval") if x.size else (math.nan, "no value")
        return Interval(mean, n=x.size, note=note)
    mean = float(x.mean())
    # Differences of equal accuracies may differ in their last bits: that is no spread.
    if np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())):
        return Interval(mean, n=x.size, note=f"the same in all {x.size} seeds: no interval")
    half = float(stats.t.ppf((1 + LEVEL) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, int(x.size))


def intervals(values: SeriesGroupBy) -> pd.DataFrame:
    """`mean_interval` of each group, a row each: mean, low, high, n, note, half (NaN where there is no interval)."""
    found = pd.DataFrame({key: asdict(mean_interval(group)) for key, group in values}).T.infer_objects()
    return found.assign(half=(found["high"] - found["low"]) / 2)


def paired_difference(a: Seeds, b: Seeds) -> Paired:
    """`mean_difference` of a - b over the seeds that both have (seed -> value; NaN counts as missing)."""
    left, right = (pd.Series(x, dtype=float).dropna() for x in (a, b))
    common = left.index.intersection(right.index)
    unpaired = len(left.index.union(right.index)) - len(common)
    return mean_difference((left.loc[common] - right.loc[common]).to_numpy(), unpaired)


def mean_difference(differences: np.ndarray | pd.Series, unpaired: int = 0) -> Paired:
    """Mean of the differences (n,) of n pairs, with t interval and two-sided t test against 0.

    When every difference is the same the test is not defined: p and the interval are NaN.
    """
    d = np.asarray(differences, dtype=float)
    found = asdict(mean_interval(d))
    found |= {"note": found["note"].replace("value", "common seed"), "unpaired": unpaired}
    if not math.isnan(found["low"]):
        weighed = DescrStatsW(d)
        equal = tuple(float(weighed.ttost_mean(-margin, margin)[0]) for margin in MARGINS)
        found |= {"p": float(stats.ttest_1samp(d, 0).pvalue), "p_equal": equal, "sd": float(d.std(ddof=1))}
    return Paired(**found)


def over_cells(means: Sequence[float] | pd.Series, variances: Sequence[float] | pd.Series) -> OverCells:
    """The random-effects mean of the cells' mean differences (k,), given the variances (k,) of these means.

    tau by Paule and Mandel (1982); the interval by Hartung and Knapp (2001), its factor at least 1 (Roever et al.
    2015); the prediction interval with k - 2 degrees of freedom (Higgins et al. 2009). Cells without a variance are
    left out.
    """
    effects, within = np.asarray(means, dtype=float), np.asarray(variances, dtype=float)
    known = np.isfinite(effects) & (within > 0)
    effects, within = effects[known], within[known]
    count = len(effects)
    if count < 2:
        mean, note = (float(effects[0]), "one cell: no mean over cells") if count else (math.nan, "no cell")
        return OverCells(mean, n=count, note=note)
    with np.errstate(divide="ignore"):  # of a measure of heterogeneity that is not used here
        found = combine_effects(effects, within, method_re="iterated")
    mean, error = float(found.mean_effect_re), max(float(found.sd_eff_w_re), float(found.sd_eff_w_re_hksj))
    tau = math.sqrt(max(0.0, float(found.tau2)))
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error
    more = float(stats.t.ppf((1 + LEVEL) / 2, count - 2)) * math.hypot(tau, error) if count > 2 else math.nan
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return OverCells(mean, mean - half, mean + half, count, "", p, tau, mean - more, mean + more)


def holm(p: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    """Holm-corrected p values (n,). A NaN (no test possible) stays NaN and does not count as a comparison."""
    p = np.array(p, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN come last
    # By hand: statsmodels' collects garbage at every call, which takes most of a chapter's time.
    p[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return p


def tested(keys: Sequence[str], pairs: Iterable[tuple[Mapping[str, Any], Seeds, Seeds]]) -> pd.DataFrame:
    """The paired differences a - b of one family of tests. pairs: what a row is of (`keys` and more), a, b.

    One row per pair: the keys, the fields of `Paired`, p_holm (over all rows), decision ("better": a is), verdict. No
    pair: no rows, and the same columns.
    """
    rows = [{**names, **asdict(paired_difference(a, b))} for names, a, b in pairs]
    return corrected(pd.DataFrame(rows, columns=None if rows else [*keys, *(f.name for f in fields(Paired))]))


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """A family of tests with p_holm over all its rows (mean, low, high, p, p_equal, note), `decision` and `verdict`."""
    equal = np.array([*frame["p_equal"]], dtype=float).reshape(-1, len(MARGINS))
    within = np.stack([holm(p) for p in equal.T], axis=1) < ALPHA
    margins = [next((margin for margin, yes in zip(MARGINS, row) if yes), math.nan) for row in within]
    frame = frame.assign(p_holm=holm(frame["p"]), equivalent_within=margins)
    frame = frame.assign(decision=[decision(r.mean, r.p_holm) for r in frame.itertuples()])
    return frame.assign(verdict=[verdict(r) for r in frame.itertuples()])


def smallest_difference(n: int, sd: float) -> float:
    """The smallest mean of n paired differences (standard deviation `sd`) that one t test calls; NaN of one."""
    return float(stats.t.ppf(1 - ALPHA / 2, n - 1) * sd / math.sqrt(n))


def signed(value: float) -> str:
    """A number with its sign and one decimal; a zero has none."""
    return f"{value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def points(value: float) -> str:
    """A difference of two fractions in percentage points, signed, with one decimal: 0.0123 -> "+1.2"."""
    return signed(100 * value)


def with_interval(row: Any, write: Callable[[float], str] = points, star: str = "", to: str = ", ") -> str:
    """ "mean [low, high]" of a row with mean, low, high and note, or "mean (note)" where there is no interval.

    star: stands after the mean, `to` between the ends.
    """
    if math.isnan(row.low):
        return f"{write(row.mean)} ({row.note or 'no interval'})"
    return f"{write(row.mean)}{star} [{write(row.low)}{to}{write(row.high)}]"


def spread(low: float, high: float, note: str = "") -> str:
    """The interval in words, or why there is none."""
    return (note or "no interval") if math.isnan(low) else f"95 % interval {points(low)} to {points(high)}"


def decision(mean: float, p_corrected: float) -> str:
    """ "better" or "worse" where the corrected test says so; "" otherwise (also where there is no test)."""
    if not p_corrected < ALPHA:  # NaN too
        return ""
    return "better" if mean > 0 else "worse"


def word(row: Any) -> str:
    """What a row of `corrected` is: "better", "worse", "equivalent within 1 point" (or 0.5) or "inconclusive"."""
    if math.isnan(row.mean):
        return "not compared"
    if row.decision:
        return str(row.decision)
    if not math.isnan(row.equivalent_within):
        return f"equivalent within {100 * row.equivalent_within:g} point{'' if row.equivalent_within == 0.01 else 's'}"
    return "inconclusive"


def verdict(row: Any) -> str:
    """A row of `corrected` in words, its difference in points.

    Examples: "better by 1.2 points [+0.9, +1.5]", "inconclusive: −0.3 points [−1.2, +0.6]". Without any common seed:
    "not compared (no common seed)".
    """
    said = word(row)
    if said == "not compared":
        return "not compared (no common seed)"
    interval = with_interval(row)
    if said in ("better", "worse"):
        return f"{said} by {points(abs(row.mean)).lstrip('+')} points{interval.removeprefix(points(row.mean))}"
    return f"{said}: {interval.replace(' ', ' points ', 1)}"


def share_wrong(logits: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """The share of (seed, exit) pairs that classify a sample wrongly, (N,) in [0, 1]: how hard it is. Ours.

    In regression (C = 1): whose error is larger than the median of all of them.
    `logits`: one array (K, N, C) a seed, on the same samples; `labels` (N,).
    """
    if not len(logits):
        raise EestudyError("difficulty: needs the logits of at least one seed")
    every, labels = np.concatenate([np.asarray(each) for each in logits]), np.asarray(labels)
    if every.shape[-1] == 1:
        errors = np.abs(every[:, :, 0] - labels)
        return (errors > np.median(errors)).mean(axis=0)
    return (every.argmax(axis=-1) != labels).mean(axis=0)
