"""The claims of Kubaty et al. (2025) in one table: theirs, what was measured here, the verdict, what would decide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from eestudy.report import over_cells, study_cells, variants
from eestudy.report import statistics as st
from eestudy.report.effects import Measurement
from eestudy.report.tables import Table, texts

FEW = 4  # measurements of a claim that are told one by one
MARGIN = 0.01  # what "decided" means: an interval over cells of at most a point to each side


@dataclass(frozen=True)
class Claim:
    """After Kubaty et al. theirs: their networks, data, seeds and numbers, % at 100 % of the budget unless said."""

    statement: str
    theirs: str


CLAIMS = {
    "C1": Claim(
        "Joint and disjoint training are each suboptimal: one loses at early budgets, the other at late ones.",
        "ResNet-34, CIFAR-100, 3 to 4 seeds: disjoint 52.6 at 25 % and 73.8 at 100 %, joint 62.8 and 74.2. ViT-T, "
        "ImageNet: disjoint 71.6, joint 68.4.",
    ),
    "C2": Claim(
        "Mixed training gives consistent gains over architectures, data sets and methods.",
        "Mixed less the better of the two: CIFAR-100 +1.7 (ResNet-34), +0.7 (MSDNet), +3.8 (ViT-T); Tiny-ImageNet +1.5 "
        "(ResNet-50); ImageNet −0.4 (ViT-T), −0.1 (ViT-S); 20 Newsgroups −0.5 to −0.8 (BERT-B).",
    ),
    "C3": Claim(
        "In joint training the exits in the middle drive the backbone; mixed training balances it.",
        "Shown in figures; its definition could not be obtained.",
    ),
    "C4": Claim(
        "Disjoint and mixed models lie in one basin, the joint model in another.",
        "Shown in figures; its definition could not be obtained.",
    ),
    "C5": Claim(
        "The numerical rank of the backbone's activations differs between strategies, layer by layer.",
        "Shown in figures; its definition could not be obtained.",
    ),
    "C6": Claim(
        "Mutual information between input and hidden representation separates the strategies.",
        "Shown in figures; its definition could not be obtained.",
    ),
    "C7": Claim(
        "Joint training from scratch hurts the last exit on large data, and can help on small data.",
        "Joint less disjoint: CIFAR-100 +0.4 (ResNet-34) to +5.5 (MSDNet); ImageNet −3.2 (ViT-T), −1.9 (ViT-S); 20 "
        "Newsgroups −1.3 to −1.5 (BERT-B).",
    ),
    "C8": Claim(
        "Scaling losses or gradients is an alternative to mixed training, not a substitute.",
        "In tables that could not be obtained.",
    ),
}


def claims_table(frame: pd.DataFrame, measured: Mapping[str, Measurement]) -> Table:
    """A row a claim. Of `study_cells.studied` and, for C3 to C6, what the chapters on dynamics measure."""
    found = study_cells.differences(frame)
    means = study_cells.means(found)
    here = {
        "C1": _of_strategies(means, found, ("joint E − disjoint",), study_cells.c1(means, "Q1")),
        "C2": _of_strategies(means, found, ("mixed − joint E", "mixed − disjoint"), study_cells.c2(means, found, "Q1")),
        **{name: _measured(found) for name, found in measured.items()},
        "C7": _of_the_last_exit(found),
        "C8": _of_substitutes(frame),
    }
    rows = {
        name: {"claim": claim.statement, "Kubaty et al.": claim.theirs, **here[name]} for name, claim in CLAIMS.items()
    }
    caption = (
        "Differences are in points of accuracy, with 95 % intervals over cells. No verdict before all cells that it "
        "needs are in; none on C3 to C6, whose definitions in the paper could not be obtained."
    )
    return texts(pd.DataFrame(rows).T, caption, "claims")


def _row(here: str, verdict: str, decides: str) -> dict[str, str]:
    return {"measured here": here, "verdict": verdict, "what would decide it": decides}


def _of_strategies(means: pd.DataFrame, found: pd.DataFrame, pairs: tuple[str, ...], verdict: str) -> dict[str, str]:
    rows = means[(means["question"] == "Q1") & means["pair"].isin(pairs)]
    said = [f"{row.pair} at {row.budget} %: {over_cells.in_words(row)}" for row in rows.itertuples()]
    cells, planned = found["cell"].nunique(), len(study_cells.CELLS)
    needed = max(cells_needed(row.tau) for row in rows.itertuples())
    wide = f"an interval of a point to each side needs {needed} cells as unlike as these"
    if cells < planned:
        return _row("; ".join(said), f"open: {cells} of {planned} cells", f"the other {planned - cells} cells; {wide}")
    return _row("; ".join(said), verdict, wide)


def cells_needed(tau: float, most: int = 1000) -> int | str:
    """How many cells give an interval over cells of MARGIN to each side, if they differ by tau and seeds by little."""
    if math.isnan(tau):
        return "two or more"
    enough = (k for k in range(2, most) if stats.t.ppf(0.975, k - 1) * tau / math.sqrt(k) <= MARGIN)
    return next(enough, most)


def _measured(found: Measurement) -> dict[str, str]:
    rows = found.effects
    if rows.empty:
        return _row("the strategies it speaks of are not compared", "none", "")
    keys = [name for name in ("what", "part", "pair") if name in rows]
    groups = [
        (", ".join(each for each in key if isinstance(each, str)), group)
        for key, group in rows.groupby(keys, sort=False, dropna=False)
    ]
    if len(groups) > FEW:
        groups = [(f"all {len(groups)} differences in thirds of the backbone and pairs of strategies", rows)]
    said = [f"{name}: {_counts(group)}" for name, group in groups]
    return _row(f"{'; '.join(said)} (of {rows['cell'].nunique()} cells)", "none", "the paper's own definition")


def _counts(rows: pd.DataFrame) -> str:
    words = [decision or "inconclusive" for decision in rows["decision"]]
    return ", ".join(f"{word} in {words.count(word)}" for word in ("higher", "lower", "inconclusive") if word in words)


def _of_the_last_exit(found: pd.DataFrame) -> dict[str, str]:
    over, slopes = study_cells.c7(found)
    largest = f"plain − joint 2E at the last exit, largest cell of each data set: {st.with_interval(over)} points"
    words = [f"from the smaller to the larger {row.label} {st.with_interval(row)}" for row in slopes.itertuples()]
    complete = found["cell"].nunique() == len(study_cells.CELLS)
    verdict = "supported" if over.low > 0 else "contradicted" if over.high < 0 else "not supported"
    decides = "data of 100,000 samples and more: ImageNet is out of reach of two cores"
    return _row("; ".join([largest, *words]), verdict if complete else "open", decides)


def _of_substitutes(frame: pd.DataFrame) -> dict[str, str]:
    rows = variants.variants(variants.SUBSTITUTES)
    if rows["cell"].nunique() < 2:
        decides = f"the runs of params/study/{variants.SUBSTITUTES}.yaml"
        return _row("not yet", "open", decides)
    found = variants.against(rows, frame, "mixed")
    said = [f"{row.variant} at {row.budget} %, {row.cell}: {row.verdict}" for row in found.itertuples()]
    return _row("; ".join(said), variants.c8(found), "")
