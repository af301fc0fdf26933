"""What the training dynamics say: paired effects by depth with corrected tests, and the claims C3 to C6.

All take frames of `Results.dynamics`, which carry cell, strategy and seed. Depth is told in thirds of a cell's stages
or exits. The definitions of "supported" and "contradicted" are ours (see `decided`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from eestudy.report import statistics as st
from eestudy.report.claims import NOT_COMPARED, Claim
from eestudy.report.tables import DASH, PAIRS, Table, table

PARTS = ("early", "middle", "late")
# In which phase all exits train together, by strategy: where they can compete for the backbone.
COMPETING = {"joint": 1, "mixed": 2}


def part_of(frame: pd.DataFrame, column: str) -> pd.Series:
    """The third of its cell that a stage or exit (from 1) lies in: "early", "middle" or "late"."""
    most = frame.groupby("cell")[column].transform("max")
    third = ((frame[column] - 1) * 3 // most.clip(lower=3)).clip(upper=2)
    return third.astype(int).map(dict(enumerate(PARTS)))


def effects(
    frame: pd.DataFrame, value: str, pairs: Sequence[tuple[str, str]] = PAIRS, by: Sequence[str] = ("part",)
) -> pd.DataFrame:
    """Paired differences a - b of the mean of `value`, over seeds: one row a cell x `by` x pair.

    mean_a, mean_b, mean, low, high (95 %), sd, n, p, note, p_holm (over all rows), decision: "higher", "lower" or "".
    Pairs of which a cell lacks a strategy are left out there; no rows when all are.
    """
    keys = ["cell", *by]
    tests = []
    for place, group in frame.groupby(keys, sort=False):
        here = group.groupby(["strategy", "seed"])[value].mean()
        there = set(here.index.get_level_values("strategy"))
        for a, b in pairs:
            if {a, b} <= there:
                names = {**dict(zip(keys, place, strict=True)), "a": a, "b": b, "pair": f"{a} − {b}"}
                means = {"mean_a": here[a].mean(), "mean_b": here[b].mean()}
                tests.append((names | means, here[a], here[b]))
    return _worded(st.tested([*keys, "a", "b", "pair", "mean_a", "mean_b"], tests))


def against(frame: pd.DataFrame, value: str, reference: str, by: Sequence[str] = ("strategy",)) -> pd.DataFrame:
    """Paired differences of two columns, `value` - `reference`, over seeds: one row a cell x `by`; as `effects`."""
    keys = ["cell", *by]
    tests = []
    for key, here in frame.groupby(keys, sort=False):
        seeds = here.groupby("seed")[[value, reference]].mean()
        means = {"mean_a": seeds[value].mean(), "mean_b": seeds[reference].mean()}
        tests.append((dict(zip(keys, key, strict=True)) | means, seeds[value], seeds[reference]))
    return _worded(st.tested([*keys, "mean_a", "mean_b"], tests))


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """With Holm-corrected p over all rows, and what they decide."""
    return _worded(st.corrected(frame))


def _worded(frame: pd.DataFrame) -> pd.DataFrame:
    """A metric is "higher" or "lower", and no accuracy that could be better."""
    words = {"better": "higher", "worse": "lower", "": ""}
    return frame.drop(columns="verdict").assign(decision=frame["decision"].map(words))


def decided(rows: pd.DataFrame, expected: Sequence[str]) -> str:
    """ "supported": the corrected tests decide every row as `expected` ("higher", "lower"). "contradicted": some row is
    decided the other way. "not decided" otherwise."""
    opposite = {"higher": "lower", "lower": "higher"}
    found = list(rows["decision"])
    if found and found == list(expected):
        return "supported"
    if any(word == opposite[wanted] for word, wanted in zip(found, expected, strict=True)):
        return "contradicted"
    return "not decided"


def effect_table(frame: pd.DataFrame, caption: str, name: str, digits: int = 3, scale: float = 1.0) -> Table:
    """`effects` or `against` for a reader: the two means, their difference with its interval; * where decided."""
    keys = [column for column in ("cell", "relation", "split", "part", "strategy", "pair") if column in frame]
    rows = [
        (_number(scale * r.mean_a, digits), _number(scale * r.mean_b, digits),
         _interval(scale * r.mean, scale * r.low, scale * r.high, digits, r.note) + ("*" if r.decision else ""))
        for r in frame.itertuples()
    ]  # fmt: skip
    made = pd.DataFrame(rows, columns=["a", "b", "a − b"], index=pd.MultiIndex.from_frame(frame[keys].astype(str)))
    tested = int(frame["p"].notna().sum())
    text = f"{caption} Mean of a, of b, and a − b [95 % interval]; * decided by Holm's correction over {tested} tests."
    return table(made, text, name)


def _number(value: float, digits: int) -> str:
    return DASH if not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def _interval(mean: float, low: float, high: float, digits: int, note: str) -> str:
    if not math.isfinite(low):
        return f"{_number(mean, digits)} ({note or 'no interval'})"
    return f"{_number(mean, digits)} [{_number(low, digits)} to {_number(high, digits)}]"


def _claim(name: str, statement: str, rows: pd.DataFrame, expected: Sequence[str], reason: str) -> Claim:
    """The verdict of rows that must all be decided as `expected`; without rows nothing is compared."""
    if rows.empty:
        return Claim(name, statement, "not decided", NOT_COMPARED, rows)
    return Claim(name, statement, decided(rows, expected), reason, rows)


# Gradient dominance (C3)


def competition(dominance: pd.DataFrame) -> pd.DataFrame:
    """Over the phase in which all exits train: one row a run. Mean over its checkpoints of the whole backbone's shares.

    middle: share of the gradient's norm that the middle third of the exits has; uniform: their share in number;
    evenness: entropy of the shares over log K, 1 where all exits pull alike. Checkpoints count alike, but for the
    start of a phase: mixed's second phase has none of its own, so joint's untrained network is left out too.
    """
    whole = dominance[(dominance["stage"] == 0) & (dominance["share"] > 0)]
    return exit_shares(whole[whole["phase"] == whole["strategy"].map(COMPETING)])


def exit_shares(whole: pd.DataFrame) -> pd.DataFrame:
    """`competition` over all the checkpoints that are given, of the whole backbone."""
    whole = whole.assign(part=part_of(whole, "exit"))
    rows = []
    for (cell, strategy, seed), run in whole.groupby(["cell", "strategy", "seed"], sort=False):
        shares = run.pivot_table(index="progress", columns="exit", values="norm_share")
        middle = sorted(set(run.loc[run["part"] == "middle", "exit"]))
        entropy = -(shares * np.log(shares.clip(lower=1e-12))).sum(axis=1) / math.log(shares.shape[1])
        rows.append(
            {"cell": cell, "strategy": strategy, "seed": seed, "middle": shares[middle].sum(axis=1).mean(),
             "uniform": len(middle) / shares.shape[1], "evenness": entropy.mean()}
        )  # fmt: skip
    return pd.DataFrame(rows, columns=["cell", "strategy", "seed", "middle", "uniform", "evenness"])


def c3(dominance: pd.DataFrame) -> Claim:
    """Supported: in every cell joint's middle exits have more than their share, and mixed is more even than joint."""
    runs = competition(dominance)
    middle = against(runs[runs["strategy"] == "joint"], "middle", "uniform").assign(what="middle share of joint")
    even = effects(runs, "evenness", (("mixed", "joint"),), ()).assign(what="evenness of mixed less joint's")
    # Half of the claim is no claim: without mixed there are no rows.
    rows = even if even.empty else corrected(pd.concat([middle, even], ignore_index=True))
    statement = "In the joint regime the exits in the middle drive the backbone; mixed training balances them."
    return _claim("C3", statement, rows, ["higher"] * len(rows), _reasons(rows, ("cell", "what")))


# Mode connectivity (C4)


def barriers(paths: pd.DataFrame, column: str = "loss", last: bool = False) -> pd.DataFrame:
    """The barrier of every path on each split (Entezari et al. 2022): of the joint loss, the mean over exits, or of the
    last exit's alone.

    One row a path and split: cell, relation, pair, strategy, strategy_2, seed, split, barrier, distance; and progress,
    where the paths have it.
    """
    rows = []
    keys = ["cell", "relation", "strategy", "strategy_2", "seed", "seed_2", "split"]
    keys += ["progress"] if "progress" in paths else []
    exit = paths.groupby("cell")["exit"].transform("max") if last else 0
    for key, path in paths[paths["exit"] == exit].groupby(keys, sort=False):
        path = path.sort_values("alpha")
        alpha, height = path["alpha"].to_numpy(float), path[column].to_numpy(float)
        line = (1 - alpha) * height[0] + alpha * height[-1]
        found = dict(zip(keys, key, strict=True))
        distance = path["distance"].iloc[0] if "distance" in path else math.nan
        rows.append({**found, "barrier": float((height - line).max()), "distance": distance})
    frame = pd.DataFrame(rows)
    words = {"seeds": "other seed", "start and end": "start to end"}
    pair = [f"{r.strategy} – {r.strategy_2}" if r.strategy != r.strategy_2 else f"{r.strategy}, {words[r.relation]}"
            for r in frame.itertuples()]  # fmt: skip
    return frame.assign(pair=pair)


def barriers_over_training(moving: pd.DataFrame, ends: pd.DataFrame) -> pd.DataFrame:
    """`barriers` of the last exit's loss, of pairs of networks at a share of the run, progress, the end among them.

    The other exits would not compare: a phase of the backbone alone leaves their heads untrained.

    moving: the table "paths_over_training"; ends: "paths". Of these the pairs are taken that were measured on the way,
    at the same points alpha.
    """
    moving = moving[moving["relation"] != "start and end"]
    pairs = ["cell", "relation", "strategy", "strategy_2", "seed", "seed_2"]
    ends = ends.merge(moving[pairs].drop_duplicates(), on=pairs).assign(progress=1.0)
    alphas = moving["alpha"].unique()
    near = np.isclose(ends["alpha"].to_numpy()[:, None], alphas[None]).any(1)
    return barriers(pd.concat([moving, ends[near]], ignore_index=True), last=True)


def barrier_table(frame: pd.DataFrame, caption: str, name: str) -> Table:
    """`barriers` by pair and split, and distances where there are any: mean over seeds (lowest to highest)."""

    def text(values: pd.Series, digits: int = 3) -> str:
        span = f" ({values.min():.{digits}f} to {values.max():.{digits}f})" if len(values) > 1 else ""
        return f"{values.mean():.{digits}f}{span}"

    keys = ["cell", "relation", "pair"]
    wide = frame.pivot_table(index=keys, columns="split", values="barrier", aggfunc=text)[["train", "test"]]
    if frame["distance"].notna().any():
        wide["distance"] = frame.drop_duplicates([*keys, "seed"]).groupby(keys)["distance"].agg(text, digits=1)
    return table(wide.droplevel("relation"), caption, name)  # the pairs say it


def curve_barriers(curves: pd.DataFrame) -> pd.DataFrame:
    """`barriers` of the curves, and of the lines measured as they are, by the column way: "line" or "curve"."""
    ways = ("line", "curve")
    return pd.concat([barriers(curves[curves["way"] == way]).assign(way=way) for way in ways], ignore_index=True)


# The pairs of strategies that C4 speaks of.
C4_PAIRS = {
    frozenset(("disjoint", "mixed")): "near",
    frozenset(("disjoint", "joint")): "disjoint to joint",
    frozenset(("joint", "mixed")): "mixed to joint",
}


def c4(paths: pd.DataFrame, split: str = "train", column: str = "loss") -> Claim:
    """Supported: in every cell disjoint and mixed have a lower barrier between them than either has to joint."""
    found = barriers(paths, column)
    found = found[(found["relation"] == "strategies") & (found["split"] == split)]
    which = [C4_PAIRS.get(frozenset(pair)) for pair in zip(found["strategy"], found["strategy_2"])]
    wide = found.assign(which=which).pivot_table(index=["cell", "seed"], columns="which", values="barrier")
    rows = _worded(st.tested(("cell", "what"), ()))
    if set(C4_PAIRS.values()) <= set(wide):
        compared = [
            against(wide.reset_index().assign(what=f"{far}, less disjoint to mixed"), far, "near", ("what",))
            for far in ("disjoint to joint", "mixed to joint")
        ]
        rows = corrected(pd.concat(compared, ignore_index=True))
    statement = "Disjoint and mixed models lie in one basin; the joint model lies in another."
    return _claim("C4", statement, rows, ["higher"] * len(rows), _reasons(rows, ("cell", "what"), "barrier "))


# Rank (C5), information (C6)


def finals(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows at the end of the runs, by third of the stages."""
    last = frame[frame["progress"] > 1 - 1e-6]
    return last.assign(part=part_of(last, "stage"))


def c5(rank: pd.DataFrame, value: str = "numerical_share") -> Claim:
    """Supported: in every cell joint's rank is higher than disjoint's in the early third, and lower in the late one."""
    rows = effects(finals(rank), value, (("joint", "disjoint"),))
    rows = corrected(rows[rows["part"].isin(["early", "late"])].reset_index(drop=True))
    expected = ["higher" if part == "early" else "lower" for part in rows["part"]]
    statement = (
        "Training the exits along (joint against disjoint) raises the rank of early stages and lowers late ones."
    )
    return _claim("C5", statement, rows, expected, _reasons(rows, ("cell", "part", "pair")))


def c6(information: pd.DataFrame, quantity: str = "lower", noise: float = 1.0) -> Claim:
    """Supported: in every cell some pair of strategies differs in some third of the stages, by one bound of I(X; T)."""
    chosen = information[(information["quantity"] == quantity) & np.isclose(information["noise"], noise)]
    rows = effects(finals(chosen), "value")
    statement = "Mutual information between the input and the hidden representations separates the regimes."
    if rows.empty:
        return Claim("C6", statement, "not decided", NOT_COMPARED, rows)
    apart = rows.groupby("cell")["decision"].apply(lambda found: (found != "").any())
    reasons = _reasons(rows[rows["decision"] != ""], ("cell", "part", "pair")) or "no pair differs in any third"
    tested = f"tested is the {quantity} bound at noise {noise:g}, not the information itself"
    return Claim("C6", statement, "supported" if apart.all() else "not decided", f"{tested}; {reasons}", rows)


def _reasons(rows: pd.DataFrame, names: Sequence[str], unit: str = "") -> str:
    parts = []
    for row in rows.to_dict("records"):
        where = ", ".join(str(row[name]) for name in names)
        size = _interval(row["mean"], row["low"], row["high"], 3, row["note"])
        word = row["decision"] or "no difference seen"
        parts.append(f"{where}: {unit}{word}, {size}, {row['n']} seeds")
    return "; ".join(parts)
