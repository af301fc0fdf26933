"""Claims of Kubaty et al. (2025) put to the test on a study's tables, and what may be said over all cells.

Over cells, each cell's mean paired difference is one value; the t interval over cells and the t test's p, corrected by
Holm over all pairs and budgets (`over_cells`), decide. A study of one cell is decided by its seeds. The definitions of
"supported" and "contradicted" are ours.
"""

import json
from dataclasses import asdict, dataclass

import pandas as pd

from eestudy.report import statistics as st
from eestudy.report.frames import Results, score_name
from eestudy.report.tables import BUDGETS, budget_name

# What C7 calls large: these data sets, all of them. Of what it does not speak: networks that were trained before.
LARGE, PRETRAINED = ("imagenet",), ("minilm",)
NOT_COMPARED = "The strategies it speaks of are not compared in this study."


@dataclass(frozen=True)
class Claim:
    """A verdict ("supported", "contradicted", "not decided"), why in words, and the effects it rests on."""

    name: str
    statement: str
    verdict: str
    reason: str
    effects: pd.DataFrame

    def _repr_markdown_(self) -> str:
        return f"**{self.name}: {self.verdict}.** {self.statement}\n\n- " + self.reason.replace("; ", "\n- ")

    def __repr__(self) -> str:
        return f"{self.name}: {self.verdict}. {self.reason}"


def over_cells(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Every pair at every budget that all cells reach ("max" is no budget); each cell's mean is one value.

    One row each: a, b, pair, budget, mean, low, high (fractions), n, unit ("cells", or "seeds" in a study of
    one cell), p, p_holm (over all rows), decision, verdict. No rows when no budget is reached everywhere.
    """
    cells = comparisons["cell"].nunique()
    pairs = list(dict.fromkeys(zip(comparisons["a"], comparisons["b"], strict=True)))
    compared = comparisons.dropna(subset="mean").groupby(["a", "b", "budget"])["cell"].nunique()
    records = []
    for budget in BUDGETS[:-1]:
        if any(compared.get((*pair, budget), 0) < cells for pair in pairs):
            continue
        for a, b in pairs:
            here = (comparisons["a"] == a) & (comparisons["b"] == b) & (comparisons["budget"] == budget)
            names = {"a": a, "b": b, "pair": f"{a} − {b}", "budget": budget, "unit": "seeds" if cells == 1 else "cells"}
            test = comparisons[here].iloc[0].to_dict()
            if cells > 1:
                test = asdict(st.mean_difference(comparisons[here]["mean"]))
                test["note"] = test["note"].replace("seed", "cell")
            records.append({**test, **names})
    columns = ["a", "b", "pair", "budget", "unit", "mean", "low", "high", "n", "p", "note"]
    return st.corrected(pd.DataFrame(records, columns=columns))


def c1(comparisons: pd.DataFrame) -> Claim:
    """Supported: joint and disjoint each lose at one end of the budgets. Contradicted: one loses at both.

    The early end is the smallest budget that every cell reaches, the late one the largest.
    """
    table = over_cells(comparisons)
    table = table[(table["a"] == "joint") & (table["b"] == "disjoint")]
    verdict = "not decided"
    if len(table) > 1:
        table = table.iloc[[0, -1]]
        first, last = table["decision"]
        if first and last:
            verdict = "contradicted" if first == last else "supported"
    statement = "Joint and disjoint are each suboptimal: one loses at early budgets, the other at late ones."
    return Claim("C1", statement, verdict, _reason(table), table)


def c2(comparisons: pd.DataFrame) -> Claim:
    """Supported: mixed is better than both at every budget. Contradicted: worse than one somewhere."""
    table = over_cells(comparisons)
    table = table[(table["a"] == "mixed") & table["b"].isin(["joint", "disjoint"])]
    verdict = "not decided"
    if (table["decision"] == "worse").any():
        verdict = "contradicted"
    elif table["b"].nunique() == 2 and (table["decision"] == "better").all():
        verdict = "supported"
    statement = "Mixed gains over joint and over disjoint consistently, at every budget."
    return Claim("C2", statement, verdict, _reason(table), table)


def c7(results: Results) -> Claim:
    """Joint against disjoint at the last exit alone, over seeds, at the study's matched training budget.

    Supported: worse in every cell of LARGE data and better in some other cell. Contradicted: better in a cell of LARGE
    data. Without such a cell its first half is not tested.
    """
    exits = results.exits[~results.exits["architecture"].isin(PRETRAINED)]
    whole = results.runs.set_index("run")["config"].map(lambda text: json.loads(text).get("train_size") is None)
    last = exits[exits["exit"] == exits.groupby("run")["exit"].transform("max")]
    pairs = []
    for (cell, dataset), here in last.groupby(["cell", "dataset"], sort=False):
        joint, disjoint = (here[here["strategy"] == s].set_index("seed")["value"] for s in ("joint", "disjoint"))
        if len(joint) and len(disjoint):
            large = dataset in LARGE and bool(whole[here["run"]].all())
            pairs.append(({"cell": cell, "large": large}, joint, disjoint))
    statement = "Joint training from scratch hurts the last exit on large data, and can help on small data."
    frame = st.tested(("cell", "large"), pairs)
    if frame.empty:
        return Claim("C7", statement, "not decided", NOT_COMPARED, frame)
    on_large, on_small = (set(frame.loc[frame["large"] == which, "decision"]) for which in (True, False))
    verdict = "not decided"
    if "better" in on_large:
        verdict = "contradicted"
    elif on_large == {"worse"} and "better" in on_small:
        verdict = "supported"
    reasons = [] if on_large else ["no cell has large data, so what it says of that is not tested"]
    reasons += [f"{row.cell}, last exit, joint against disjoint: {row.verdict}" for row in frame.itertuples()]
    return Claim("C7", statement, verdict, "; ".join(reasons), frame)


def findings(comparisons: pd.DataFrame) -> str:
    """What the corrected tests of the table decide, as a Markdown list, and how many they leave open."""
    decided = comparisons[comparisons["decision"] != ""]
    lines = [f"- {r.cell} at {budget_name(r.budget)}: {r.a} against {r.b}: {r.verdict}." for r in decided.itertuples()]
    tested = int(comparisons["p"].notna().sum())
    head = (
        f"Of {len(comparisons)} comparisons the corrected tests decide {len(decided)}; {tested - len(decided)} were "
        f"tested without a difference seen, {len(comparisons) - tested} could not be tested."
    )
    return "\n".join([head, "", *lines])


def answer(comparisons: pd.DataFrame) -> str:
    """The strategies against each other over all cells, at each budget that all cells reach, as Markdown."""
    table = over_cells(comparisons)
    if table.empty:
        return "No budget is reached by every strategy in every cell: nothing can be said over all cells."
    lines = []
    for budget, rows in table.groupby("budget", sort=False):
        lines.append(f"- At {budget_name(str(budget))}:")
        lines += [f"  - {row.a} against {row.b}: {row.verdict}." for row in rows.itertuples()]
    reached = set(comparisons["budget"]) - set(table["budget"])
    left_out = [budget_name(budget) for budget in BUDGETS[:-1] if budget in reached]
    unit = f"{table['n'].max()} {table['unit'].iloc[0]}"
    head = f"Differences in {score_name(comparisons)} over {unit}, Holm-corrected over these {len(table)} comparisons:"
    end = f"Left out, because not every cell reaches it: {', '.join(left_out)}." if left_out else ""
    return "\n".join([head, "", *lines, "", end]).strip()


def limits(comparisons: pd.DataFrame) -> str:
    """What the number of seeds cannot show: the smallest difference that a test in one cell could have called."""
    counts = comparisons.loc[comparisons["n"] > 0, "n"]
    if counts.empty or counts.max() < 2:
        return "One seed a cell: no interval, no test; a difference between strategies may be noise."
    n, sd = int(counts.median()), float(comparisons["sd"].median())
    least = st.smallest_difference(n, sd)
    return (
        f"With {n} seeds, a paired difference whose standard deviation is the table's median "
        f"({100 * sd:.1f} points) must reach {100 * least:.1f} points before even an uncorrected test in one "
        f'cell calls it. A smaller true difference is likely to read "no difference seen" here: that is not '
        "evidence of equality."
    )


def _reason(table: pd.DataFrame) -> str:
    parts = []
    for row in table.itertuples():
        parts.append(f"{row.a} against {row.b} at {budget_name(row.budget)}: {row.verdict}, over {row.n} {row.unit}")
    return "; ".join(parts) + "." if parts else NOT_COMPARED
