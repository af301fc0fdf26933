"""Paired differences of a measured quantity between strategies, Holm-corrected; in a table, and in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from eestudy.report import statistics as st
from eestudy.report.tables import DASH, PAIRS, Table, table, tested


def effects(
    frame: pd.DataFrame,
    value: str,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    by: Sequence[str] = ("part",),
    of: str = "strategy",
) -> pd.DataFrame:
    """Paired differences a - b of the mean of `value`, over seeds: one row per cell, `by` and pair of values of `of`.

    mean_a, mean_b, mean, low, high (95 %), sd, n, p, note, p_holm (over all rows), decision: "higher", "lower" or "".
    Pairs of which a cell lacks one are left out there; no rows when all are.
    """
    keys = ["cell", *by]
    tests = []
    for key, group in frame.groupby(keys, sort=False):
        here = group.groupby([of, "seed"])[value].mean()
        there = set(here.index.get_level_values(of))
        for a, b in pairs:
            if {a, b} <= there:
                names = {**dict(zip(keys, key, strict=True)), "a": a, "b": b, "pair": f"{a} − {b}"}
                means = {"mean_a": here[a].mean(), "mean_b": here[b].mean()}
                tests.append((names | means, here[a], here[b]))
    return _worded(st.tested([*keys, "a", "b", "pair", "mean_a", "mean_b"], tests))


def against(frame: pd.DataFrame, value: str, reference: str, by: Sequence[str] = ("strategy",)) -> pd.DataFrame:
    """Paired differences of two columns, `value` - `reference`, over seeds: one row per cell and `by`; as `effects`."""
    keys = ["cell", *by]
    tests = []
    for key, here in frame.groupby(keys, sort=False):
        seeds = here.groupby("seed")[[value, reference]].mean()
        means = {"mean_a": seeds[value].mean(), "mean_b": seeds[reference].mean()}
        tests.append((dict(zip(keys, key, strict=True)) | means, seeds[value], seeds[reference]))
    return _worded(st.tested([*keys, "mean_a", "mean_b"], tests))


def one_family(*frames: pd.DataFrame) -> pd.DataFrame:
    """The rows of all frames, their p corrected over all of them, and what that decides."""
    return _worded(st.corrected(pd.concat(frames, ignore_index=True)))


def _worded(frame: pd.DataFrame) -> pd.DataFrame:
    """A metric is "higher" or "lower", and no accuracy that could be better."""
    words = {"better": "higher", "worse": "lower", "": ""}
    return frame.drop(columns="verdict").assign(decision=frame["decision"].map(words))


def effect_table(frame: pd.DataFrame, caption: str, name: str, digits: int = 3, scale: float = 1.0) -> Table:
    """`effects` or `against` for a reader: the two means, their difference with its interval; * where decided."""
    keys = [column for column in ("cell", "relation", "split", "part", "strategy", "pair") if column in frame]
    number = partial(_number, digits=digits, scale=scale)
    rows = [
        (number(r.mean_a), number(r.mean_b), st.with_interval(r, number, to=" to ") + ("*" if r.decision else ""))
        for r in frame.itertuples()
    ]
    made = pd.DataFrame(rows, columns=["a", "b", "a − b"], index=pd.MultiIndex.from_frame(frame[keys].astype(str)))
    return table(made, f"{caption} Mean of a, of b, and a − b [95 % interval]; {tested(frame)}", name)


def _number(value: float, digits: int = 3, scale: float = 1.0) -> str:
    return DASH if not math.isfinite(value) else f"{scale * value:.{digits}f}".replace("-", "−")


def counted(frame: pd.DataFrame, *by: str) -> str:
    """In how many rows of each group of `by` the corrected tests decide, as part of a sentence."""
    words = frame["decision"].mask(frame["decision"] == "", "inconclusive").mask(frame["p"].isna(), "not tested")
    parts = []
    for key, here in words.groupby([frame[name] for name in by], sort=False):
        counts = [(word, (here == word).sum()) for word in ("higher", "lower", "inconclusive", "not tested")]
        told = ", ".join(f"{word} in {many}" for word, many in counts if many)
        parts.append(f"{', '.join(map(str, key))}: {told} of {len(here)}")
    return "; ".join(parts)


@dataclass(frozen=True)
class Measurement:
    """What was measured of a claim whose definition in the paper could not be obtained: no verdict on it."""

    name: str
    claimed: str
    found: str
    effects: pd.DataFrame

    def _repr_markdown_(self) -> str:
        return f"**In short.** {self.name} claims: {self.claimed} Measured, under this book's definition: {self.found}."

    def __repr__(self) -> str:
        return f"{self.name}: {self.found}"


def measurement(name: str, claimed: str, rows: pd.DataFrame, by: Sequence[str], of: str) -> Measurement:
    """With `counted`; of: what was measured. Without rows nothing is compared."""
    found = f"{counted(rows, *by)} cells ({of})" if len(rows) else "the strategies it speaks of are not compared here"
    return Measurement(name, claimed, found, rows)
