"""Means, paired differences and corrected tests over seeds, and the words a result may be told in.

Intervals are Student t intervals: mean +- t(0.975, n - 1) s / sqrt(n). With one seed, or with values that do not differ
at all, the spread cannot be estimated: the interval is NaN and `note` says why. Nothing here warns.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.core.groupby import SeriesGroupBy
from scipy import stats
from statsmodels.stats.multitest import multipletests

from eestudy.config import EestudyError

Seeds: TypeAlias = Mapping[int, float] | pd.Series  # seed -> value

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # of every corrected test
FEWEST_CELLS = 5  # below, the chi-squared approximation of the Friedman statistic is too rough to report


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
    unpaired: int = 0  # seeds that only one of the two has; they are left out
    sd: float = math.nan  # standard deviation of the differences


@dataclass(frozen=True)
class Friedman:
    """Friedman's test over n cells; `ranks` is the mean rank of each treatment (1: the highest value)."""

    n: int
    ranks: dict[str, float]
    p: float = math.nan
    note: str = ""


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
        found |= {"p": float(stats.ttest_1samp(d, 0).pvalue), "sd": float(d.std(ddof=1))}
    return Paired(**found)


def holm(p: Sequence[float] | np.ndarray | pd.Series) -> np.ndarray:
    """Holm-corrected p values (n,). A NaN (no test possible) stays NaN and does not count as a comparison."""
    p = np.array(p, dtype=float)
    known = np.isfinite(p)
    if known.any():
        p[known] = multipletests(p[known], method="holm")[1]
    return p


def tested(keys: Sequence[str], pairs: Iterable[tuple[Mapping[str, Any], Seeds, Seeds]]) -> pd.DataFrame:
    """The paired differences a - b of one family of tests. pairs: what a row is of (`keys` and more), a, b.

    One row per pair: the keys, the fields of `Paired`, p_holm (over all rows), decision ("better": a is), verdict. No
    pair: no rows, and the same columns.
    """
    rows = [{**names, **asdict(paired_difference(a, b))} for names, a, b in pairs]
    return corrected(pd.DataFrame(rows, columns=None if rows else [*keys, *(f.name for f in fields(Paired))]))


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """A family of tests with p_holm over all its rows (mean, low, high, p, note), `decision` and `verdict`."""
    frame = frame.assign(p_holm=holm(frame["p"]))
    return frame.assign(
        decision=[decision(r.mean, r.p_holm) for r in frame.itertuples()],
        verdict=[verdict(r.mean, r.low, r.high, r.p_holm, r.note) for r in frame.itertuples()],
    )


def friedman(values: pd.DataFrame) -> Friedman:
    """Do the columns (treatments, at least 3) of `values` (cells x treatments) differ? Friedman's test over the rows.

    Rows with a NaN are left out. With fewer than FEWEST_CELLS rows only the mean ranks are given.
    """
    complete = values.dropna()
    n = len(complete)
    ranks = {str(c): float(r) for c, r in complete.rank(axis=1, ascending=False).mean().items()} if n else {}
    if values.shape[1] < 3:
        return Friedman(n, ranks, note="not tested: fewer than 3 treatments")
    if n < FEWEST_CELLS:
        return Friedman(n, ranks, note=f"not tested: fewer than {FEWEST_CELLS} cells")
    if (complete.nunique(axis=1) == 1).all():
        return Friedman(n, ranks, note="not tested: all treatments tie in every cell")
    return Friedman(n, ranks, float(stats.friedmanchisquare(*complete.to_numpy().T).pvalue))


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


def verdict(mean: float, low: float, high: float, p_corrected: float, note: str = "") -> str:
    """What may be said of a paired difference (fractions): "better" or "worse" only where the corrected test does.

    Examples: "better by 1.2 points (95 % interval +0.9 to +1.5)", "no difference seen (−0.3 points, 95 % interval −1.2
    to +0.6)". Without any common seed: "not compared".
    """
    if math.isnan(mean):
        return "not compared (no common seed)"
    word = decision(mean, p_corrected)
    interval = spread(low, high, note)
    if word:
        return f"{word} by {points(abs(mean)).lstrip('+')} points ({interval})"
    if low > 0 or high < 0:  # the interval is of one comparison, the test is of all of them
        return (
            f"no difference seen after Holm's correction ({points(mean)} points, {interval} before it, "
            f"corrected p {p_corrected:.2g})"
        )
    return f"no difference seen ({points(mean)} points, {interval})"


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
